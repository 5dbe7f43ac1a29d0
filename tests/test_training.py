"""Fitting: it learns, it is repeatable, it leaves frozen parts and modes alone, it stops at NaN."""

import pytest
import torch
from torch import nn

from e2lib import models, training
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
