"""Fitting: it learns, it is repeatable, it leaves frozen parts and modes alone, it stops at NaN."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from e2lib import models, training
from e2lib.attribution import explain
from e2lib.datasets import Scenes


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


def test_fit_lowers_the_loss_and_is_repeatable():
    dataset = Scenes("train", 48, 64)
    first, second = tiny(), tiny()
    history = training.fit(first, dataset, epochs=3, lr=1e-2, batch_size=16)
    assert len(history) == 3 and history[2] < history[0]
    assert training.fit(second, dataset, epochs=3, lr=1e-2, batch_size=16) == history
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert training.fit(tiny(), dataset, epochs=3, lr=1e-2, batch_size=16, seed=1) != history


def test_only_the_head_learns_and_frozen_norms_keep_their_statistics():
    model = training.train_head_only(models.build("resnet18", 10)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    training.fit(model, Scenes("train", 8, 64), epochs=1, lr=1e-2)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"net.fc.weight", "net.fc.bias"}
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "bcos_simple_vit_ti_patch16_224", "bcos_scenes"])
def test_the_head_is_what_another_number_of_classes_changes(name):
    model = training.train_head_only(models.build(name, 10))
    other = models.build(name, 11).state_dict()
    changed = {k for k, p in model.named_parameters() if p.shape != other[k].shape}
    assert {k for k, p in model.named_parameters() if p.requires_grad} == changed and changed


def test_modules_without_parameters_follow_their_parent():
    model = nn.Sequential(tiny()[:5], nn.Dropout(), nn.Linear(8, 10))
    model[0].insert(5, nn.Dropout())
    model[0].requires_grad_(False)
    modes = []
    model.register_forward_hook(lambda *_: modes.append([m.training for m in (model[1], model[0][5], model[0][1])]))
    training.fit(model.eval(), Scenes("train", 2, 64), epochs=1, lr=1e-2)
    assert modes == [[True, False, False]]


@pytest.mark.parametrize("call", [lambda m, d: training.fit(m, d, epochs=1, lr=1e-2), training.evaluate])
@pytest.mark.parametrize("fails", [False, True])
def test_modes_are_restored(call, fails):
    model = tiny().train()
    model[1].eval()
    if fails:
        model[5].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        call(model, Scenes("train", 2, 64))
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True, True]


def test_a_frozen_model_and_a_loss_that_is_not_finite_are_refused_by_name():
    with pytest.raises(ValueError, match="every parameter of the model is frozen"):
        training.fit(tiny().requires_grad_(False), Scenes("train", 2, 64), epochs=1, lr=1e-2)
    model = tiny()
    nn.init.constant_(model[-1].bias, float("nan"))
    with pytest.raises(ValueError, match=r"loss is nan on images scene-train-[01], scene-train-[01]; lower lr=0.01"):
        training.fit(model, Scenes("train", 2, 64), epochs=1, lr=1e-2)


class Oracle(nn.Module):
    """Knows the labels of a data set, in order, and answers with a margin of `sign`."""

    def __init__(self, dataset, sign):
        super().__init__()
        self.answers, self.sign = iter(dataset.targets.float().split(4)), nn.Parameter(torch.tensor(sign))

    def forward(self, x):
        return (next(self.answers) - 0.5) * self.sign


def test_evaluate_in_per_cent():
    dataset = Scenes("test", 12, 64)
    assert training.evaluate(Oracle(dataset, 2.0), dataset, batch_size=4) == {"F1": 100.0, "mAP": 100.0}
    wrong = training.evaluate(Oracle(dataset, -2.0), dataset, batch_size=4)
    assert wrong["F1"] == 0 and wrong["mAP"] < 50


def test_the_committed_network_of_the_scenes_is_small_and_knows_them():
    assert (Path(__file__).parents[1] / "data" / "bcos_scenes.safetensors").stat().st_size <= 10 * 2**20
    model = models.build("bcos_scenes", 10, weights="scenes")
    assert training.evaluate(model, Scenes("test", 300))["F1"] >= 78


def test_contributions_in_the_committed_network_add_up_to_its_logits():
    model = models.build("bcos_scenes", 10, weights="scenes").double()
    images = torch.stack([Scenes("test", 2)[i].image for i in range(2)]).double() / 255
    for at in ("Input", "Final"):
        logits, maps = explain(model, images, torch.arange(10).expand(2, -1), "bcos", at)
        scale = 1 if at == "Input" else (4 / 128) ** 2  # up-sampling keeps the mean, not the sum
        torch.testing.assert_close(maps.sum((2, 3)) * scale, logits - model.logit_bias, rtol=1e-6, atol=1e-6)
