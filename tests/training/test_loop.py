"""Fitting: it learns, is repeatable, restores what it touches, stops at NaN, takes an optimizer and a schedule."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from e2lib import models, training
from e2lib.datasets import Scenes, Selection, collate
from e2lib.guidance import Guide
from tests.training.common import GUIDED, differ, flipped, tiny


def test_fit_lowers_the_loss_and_is_repeatable():
    dataset = Scenes("train", 48, 64)
    first, second = tiny(), tiny()
    history = training.fit(first, dataset, epochs=3, lr=1e-2, batch_size=16)
    assert len(history) == 3 and history[2]["classification"] < history[0]["classification"]
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
    with pytest.raises(
        ValueError, match=r"classification is nan on images scene-train-[01], scene-train-[01]; lower lr=0.01"
    ):
        training.fit(model, Scenes("train", 2, 64), epochs=1, lr=1e-2)


def test_history_is_the_mean_of_each_term_over_images():
    dataset = Scenes("train", 10, 64)
    model, whole = tiny().eval(), collate([dataset[i] for i in range(10)])
    logits = model(whole.images)
    classification = nn.functional.binary_cross_entropy_with_logits(logits, whole.labels.float()).item()
    model.train()

    def step(model, batch):
        loss = Guide(weight=0)(model, batch)["classification"]
        return {"classification": loss, "images": torch.tensor(float(len(batch.names)))}

    # Nothing is learnt; the last batch has two images.
    history = training.fit(model, dataset, epochs=2, lr=0.0, batch_size=4, step=step)
    assert [list(epoch) for epoch in history] == [["classification", "images"]] * 2
    assert history[0]["classification"] == pytest.approx(classification)
    assert history[0]["images"] == (4 * 4 + 4 * 4 + 2 * 2) / 10
    (epoch,) = training.fit(model, dataset, epochs=1, lr=0.0, batch_size=4, step=GUIDED)
    assert set(epoch) == {"classification", "guidance"} and 0 < epoch["guidance"] < 0.3
    assert epoch["classification"] == pytest.approx(classification)


def test_the_sum_of_the_terms_is_trained():
    dataset = Scenes("train", 8, 64)

    def halves(model, batch):
        half = training.classify(model, batch)["classification"] / 2
        return {"a": half, "b": half}

    one, two = tiny(), tiny()
    training.fit(one, dataset, epochs=2, lr=1e-2, batch_size=4)
    training.fit(two, dataset, epochs=2, lr=1e-2, batch_size=4, step=halves)
    assert not differ(one, two)


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_generator_is_left_alone_and_does_not_matter(fails):
    results = []
    for seed in (1, 2):
        model = tiny()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            training.fit(
                model, flipped(), 1, 1e-2, 4, step=GUIDED, after_epoch=(lambda _: 1 / 0) if fails else torch.rand
            )
        assert torch.equal(torch.get_rng_state(), before)
        results.append(model)
    assert not differ(*results)


def test_workers_change_nothing():
    dataset = Scenes("train", 8, 64)
    here, there = tiny(), tiny()
    history = training.fit(here, dataset, epochs=2, lr=1e-2, batch_size=3, step=GUIDED)
    assert training.fit(there, dataset, epochs=2, lr=1e-2, batch_size=3, step=GUIDED, workers=2) == history
    assert not differ(here, there)
    scores = training.evaluate(here, dataset, 3, "ixg")
    assert training.evaluate(here, dataset, 3, "ixg", workers=2) == scores


def test_the_term_or_gradient_that_is_not_finite_is_named_with_its_images():
    def nan(model, batch):
        return training.classify(model, batch) | {"guidance": torch.tensor(float("nan"))}

    def steep(model, batch):
        w = model[5].weight.sum()
        return training.classify(model, batch) | {"root": (w - w.detach()).sqrt()}  # 0, and its gradient infinite

    for step, what in ((nan, "guidance is nan"), (steep, "gradient's norm is inf")):
        model = tiny()
        with pytest.raises(ValueError, match=rf"{what} on images scene-train-[01], scene-train-[01]; lower lr=0.01"):
            training.fit(model, Scenes("train", 2, 64), epochs=1, lr=1e-2, step=step)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny().parameters(), strict=True))


def test_measuring_after_an_epoch_changes_no_training():
    dataset, guide = Scenes("train", 16, 64), Guide(at="Input", weight=0.1)
    quiet, measured = tiny(), tiny()
    training.fit(quiet, dataset, epochs=2, lr=1e-2, batch_size=8, step=guide)

    def look(epoch):
        training.evaluate(measured, dataset)  # its loader draws from torch's generator

    training.fit(measured, dataset, epochs=2, lr=1e-2, batch_size=8, step=guide, after_epoch=look)
    assert all(torch.equal(a, b) for a, b in zip(quiet.parameters(), measured.parameters(), strict=True))


def test_no_images_and_a_negative_number_of_epochs_are_refused():
    empty = Selection(Scenes("train", 4, 64), np.arange(0))
    with pytest.raises(ValueError, match=r"len\(dataset\) is 0; it must be at least 1"):
        training.fit(tiny(), empty, epochs=1, lr=1e-2)
    with pytest.raises(ValueError, match="dataset is empty"):
        training.evaluate(tiny(), empty)
    with pytest.raises(ValueError, match="epochs is -1; it must be at least 0"):
        training.fit(tiny(), Scenes("train", 4, 64), epochs=-1, lr=1e-2)


def test_an_optimizer_and_a_schedule_can_be_passed():
    dataset, rates = Scenes("train", 8, 64), []

    def trained(**how):
        model = tiny()
        training.fit(model, dataset, 2, 1e-2, 4, **how)
        return model

    class Seen(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            super().step()

    assert not differ(trained(), trained(optimizer=partial(torch.optim.Adam, lr=1e-2)))
    model = tiny()
    training.fit(model, dataset, 2, 0.0, 4, optimizer=Seen(model.parameters(), lr=1e-2))
    assert not differ(trained(), model)
    assert rates == pytest.approx([1e-2 * (1 + np.cos(np.pi * k / 4)) / 2 for k in range(4)])
    rates.clear()
    halving = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.5**step)
    trained(optimizer=partial(Seen, lr=1.0), schedule=lambda optimizer, steps: halving(optimizer))
    assert rates == [1, 0.5, 0.25, 0.125]
    assert differ(trained(optimizer=partial(torch.optim.SGD, lr=1e-2)), trained())


def test_an_optimizer_can_be_used_twice_and_a_batch_has_an_image():
    model, weights = tiny(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        training.fit(model, flipped(), 1, 0.1, optimizer=optimizer)
        weights.append(model[0].weight.detach().clone())
    assert optimizer.param_groups[0]["lr"] == 0.1 and not torch.equal(*weights)
    with pytest.raises(ValueError, match="batch_size is -4"):
        training.fit(tiny(), flipped(), 1, 0.1, batch_size=-4)


def test_an_optimizer_without_the_parameters_of_the_step_is_refused():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, model, batch):
            return {name: self.scale * term for name, term in training.classify(model, batch).items()}

    model, step = tiny(), Step()
    with pytest.raises(ValueError, match="optimizer lacks step.scale; a function from parameters to an optimizer"):
        training.fit(model, flipped(), 1, 0.1, step=step, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    training.fit(model, flipped(), 1, 0.1, step=step, optimizer=torch.optim.SGD)
    assert step.scale != 1


def test_tensorboard_shows_each_step_and_epoch_and_changes_nothing(tmp_path, monkeypatch):
    dataset, first, second = Scenes("train", 20, 64), tiny(), tiny()
    history = training.fit(first, dataset, epochs=2, lr=1e-2, batch_size=8)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("E2LIB_TENSORBOARD", str(tmp_path))
    how = {"epochs": 2, "lr": 1e-2, "batch_size": 8, "after_epoch": lambda epoch: {"F1": 10.0 * epoch}}
    assert training.fit(second, dataset, **how) == history
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    training.fit(second, dataset, **how)
    found = sorted(tmp_path.iterdir())
    assert len(found) == 2  # a folder a training
    log = EventAccumulator(str(found[0])).Reload()
    losses = [event.value for event in log.Scalars("training/classification")]
    sizes = np.array([8, 8, 4])
    means = [np.average(losses[i : i + 3], weights=sizes) for i in (0, 3)]
    assert means == pytest.approx([epoch["classification"] for epoch in history], rel=1e-5)
    assert [(event.step, event.value) for event in log.Scalars("after each epoch/F1")] == [(1, 10.0), (2, 20.0)]
    assert log.Scalars("training/learning rate")[-1].value == pytest.approx(0, abs=1e-8)
    assert "text" in str(log.Tags()["tensors"])  # the arguments
