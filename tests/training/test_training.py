"""Fitting: it learns, is repeatable, goes on where it was killed, stops at NaN. Measuring: equal to single images."""

import copy
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from e2lib import models, training
from e2lib.datasets import Scenes, Selection, collate, train_transform, with_boxes
from e2lib.guidance import Guide


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


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


def test_tensorboard_shows_each_step_and_epoch_and_changes_nothing(tmp_path, monkeypatch):
    dataset, first, second = Scenes("train", 20, 64), tiny(), tiny()
    history = training.fit(first, dataset, epochs=2, lr=1e-2, batch_size=8)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("E2LIB_TENSORBOARD", str(tmp_path))
    how = {"epochs": 2, "lr": 1e-2, "batch_size": 8, "after_epoch": lambda epoch: {"F1": 10.0 * epoch}}
    assert training.fit(second, dataset, **how) == history
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    training.fit(second, dataset, **how)
    found = sorted(tmp_path.glob("*/*"))
    assert len(found) == 2  # a folder a training
    log = EventAccumulator(str(found[0])).Reload()
    losses = [event.value for event in log.Scalars("training/classification")]
    sizes = np.array([8, 8, 4])
    means = [np.average(losses[i : i + 3], weights=sizes) for i in (0, 3)]
    assert means == pytest.approx([epoch["classification"] for epoch in history], rel=1e-5)
    assert [(event.step, event.value) for event in log.Scalars("after each epoch/F1")] == [(1, 10.0), (2, 20.0)]
    assert log.Scalars("training/learning rate")[-1].value == pytest.approx(0, abs=1e-8)
    assert "text" in str(log.Tags()["tensors"])  # the arguments


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


# ---- fitting with any step


GUIDED = Guide(weight=0.3)


def differ(a, b):
    """Names of the tensors that are not equal bit for bit."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def flipped(length=12):
    """Scenes of several classes, flipped at random: both Guide and the data set draw random numbers."""
    return Scenes("train", length, 64, transform=train_transform(64))


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


# ---- checkpoints


class Stopped(Exception):
    pass


def run(checkpoint=None, after_epoch=None, model=None, **change):
    """Four epochs: the model and its history."""
    model = tiny() if model is None else model
    arguments = {"dataset": flipped(), "epochs": 4, "lr": 1e-2, "batch_size": 5, "step": GUIDED} | change
    return model, training.fit(model, **arguments, checkpoint=checkpoint, after_epoch=after_epoch)


def other():
    """Like `tiny`, with other numbers in it."""
    model = tiny()
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_()
    return model


def stop_after(wanted):
    def after_epoch(epoch):
        if epoch == wanted:
            raise Stopped

    return after_epoch


@pytest.mark.parametrize("step", [training.classify, GUIDED], ids=["classify", "guided"])
def test_interrupted_training_goes_on_bit_for_bit(step, tmp_path):
    path, seen = tmp_path / "folder" / "run.pt", []
    expected, history = run(step=step, after_epoch=seen.append)
    assert seen == [1, 2, 3, 4]
    with pytest.raises(Stopped):
        run(path, stop_after(2), step=step)
    seen.clear()
    resumed, again = run(path, seen.append, tiny(), step=step)
    assert seen == [2, 3, 4]
    assert not differ(resumed, expected)
    assert again == history
    learnt = differ(expected, tiny())
    assert "5.weight" in learnt and ("1.running_mean" in learnt) == (step is training.classify)


def die(path):
    """Train until the process is killed after the third epoch."""
    run(path, lambda epoch: os.kill(os.getpid(), signal.SIGKILL) if epoch == 3 else None)


def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    path = tmp_path / "run.pt"
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['die'](sys.argv[2])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, __file__, path], cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    seen = []
    resumed, history = run(path, seen.append)
    expected, whole = run()
    assert seen == [3, 4]
    assert not differ(resumed, expected) and history == whole


def test_a_checkpoint_that_could_not_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path, save = tmp_path / "run.pt", torch.save

    def full(content, file):
        if len(content["history"]) == 3:
            Path(file).write_bytes(b"half")
            raise OSError("disk full")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        run(path)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["run.pt"]
    monkeypatch.undo()
    seen = []
    resumed, history = run(path, seen.append)
    expected, whole = run()
    assert seen == [3, 4]
    assert not differ(resumed, expected) and history == whole
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["run.pt"]


def test_a_finished_checkpoint_is_returned_at_once(tmp_path, monkeypatch):
    expected, history = run(tmp_path / "run.pt", epochs=2)
    content = (tmp_path / "run.pt").read_bytes()

    def forbidden(*_):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(Guide, "__call__", forbidden)
    model, again = run(tmp_path / "run.pt", forbidden, epochs=2)
    assert not differ(model, expected) and again == history
    assert (tmp_path / "run.pt").read_bytes() == content


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "run.pt"
    run(path, epochs=1, dataset=flipped(4))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-2}, "lr=0.01, not 0.02"),
        ({"seed": 1}, "seed=0, not 1"),
        ({"epochs": 3}, "epochs=1, not 3"),
        ({"batch_size": 4}, "batch_size=5, not 4"),
        ({"dataset": Scenes("train", 6, 64)}, "images=4, not 6"),
        ({"precision": "bfloat16"}, "bfloat16=False, not True"),
        ({"dataset": Scenes("train", 4, 64)}, "data="),
        (
            {"optimizer": partial(torch.optim.Adam, lr=1e-2, weight_decay=0.1)},
            "optimizer=.Adam.*weight_decay: 0 .*, not",
        ),
        ({"schedule": torch.optim.lr_scheduler.ExponentialLR}, "schedule=.CosineAnnealingLR"),
        ({"model": other()}, "weights at the start="),
        ({"step": training.classify}, r"step=.Guide\(.*, not 'classify'"),
        ({"step": Guide(weight=0.2)}, r"step=.Guide\(.*weight=0.3.*, not .Guide\(.*weight=0.2"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused_by_name(finished, change, message):
    change = {"epochs": 1, "dataset": flipped(4), "model": tiny()} | change
    before, content = copy.deepcopy(change["model"]), finished.read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint .*run.pt was made with {message}.*; delete it"):
        run(finished, **change)
    assert not differ(change["model"], before) and finished.read_bytes() == content


# ---- precision, and numbers that are none


@pytest.mark.parametrize("step", [training.classify, GUIDED], ids=["classify", "guided"])
def test_bfloat16_is_close_to_float32_and_keeps_the_parameters_type(step):
    histories = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model, inside = models.build("resnet10t", 10), []
        model.net.conv1[0].register_forward_hook(lambda _, i, output, inside=inside: inside.append(output.dtype))
        dataset = Scenes("train", 4, 64)
        histories += training.fit(model, dataset, epochs=1, lr=1e-4, batch_size=4, precision=precision, step=step)
        assert set(inside) == {torch.bfloat16 if precision == "bfloat16" else torch.float32}
        assert {p.dtype for p in model.state_dict().values() if p.is_floating_point()} == {torch.float32}
    full, low = histories
    assert low != full and low == pytest.approx(full, rel=0.03)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("float16", "precision is 'float16'; .*: gradients of explanations overflow in it"),
        ("half", "precision is 'half'; it must be float32, bfloat16 or auto$"),
    ],
)
def test_other_precisions_are_refused(precision, message):
    with pytest.raises(ValueError, match=message):
        training.fit(tiny(), Scenes("train", 2, 64), epochs=1, lr=1e-2, precision=precision)


def test_the_term_or_gradient_that_is_not_finite_is_named_with_its_images():
    def nan(model, batch):
        return training.classify(model, batch) | {"guidance": torch.tensor(float("nan"))}

    def steep(model, batch):
        w = model[5].weight.sum()
        return training.classify(model, batch) | {"root": (w - w.detach()).sqrt()}  # 0, and its gradient infinite

    for step, what in ((nan, "guidance is nan"), (steep, "gradient's norm is inf")):
        model = tiny()
        with pytest.raises(
            ValueError, match=rf"the {what} on images scene-train-[01], scene-train-[01]; lower lr=0.01"
        ):
            training.fit(model, Scenes("train", 2, 64), epochs=1, lr=1e-2, step=step)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny().parameters(), strict=True))


# ---- measuring


def test_measuring_after_an_epoch_changes_no_training():
    dataset, guide = Scenes("train", 16, 64), Guide(at="Input", weight=0.1)
    quiet, measured = tiny(), tiny()
    training.fit(quiet, dataset, epochs=2, lr=1e-2, batch_size=8, step=guide)

    def look(epoch):
        training.evaluate(measured, dataset)  # its loader draws from torch's generator

    training.fit(measured, dataset, epochs=2, lr=1e-2, batch_size=8, step=guide, after_epoch=look)
    assert all(torch.equal(a, b) for a, b in zip(quiet.parameters(), measured.parameters(), strict=True))


def test_a_checkpoint_knows_its_labels_boxes_and_parameters(tmp_path):
    dataset, file = Scenes("train", 16, 64), tmp_path / "run.pt"
    training.fit(tiny(), with_boxes(dataset, 0.5), epochs=1, lr=1e-2, checkpoint=file)
    for other in (with_boxes(Scenes("train", 16, 64, seed=1), 0.5), with_boxes(dataset, 0.25)):
        with pytest.raises(ValueError, match="made with data="):
            training.fit(tiny(), other, epochs=1, lr=1e-2, checkpoint=file)
    model = tiny()
    model[0].requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="made with trained parameters="):
        training.fit(model, with_boxes(dataset, 0.5), epochs=1, lr=1e-2, checkpoint=file)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_numbers_of_numpy_can_be_resumed(tmp_path):
    for kind in (np.float64, np.float32, float):
        guide = Guide(weight=kind(0.5), fraction=kind(1), dropout=kind(0))
        how = {"epochs": np.int64(1), "lr": np.float64(1e-2), "batch_size": np.int64(4), "seed": np.int64(0)}
        training.fit(tiny(), Scenes("train", 4, 64), step=guide, checkpoint=tmp_path / "run.pt", **how)


def test_no_images_and_a_negative_number_of_epochs_are_refused():
    empty = Selection(Scenes("train", 4, 64), np.arange(0))
    with pytest.raises(ValueError, match="dataset is empty"):
        training.fit(tiny(), empty, epochs=1, lr=1e-2)
    with pytest.raises(ValueError, match="dataset is empty"):
        training.evaluate(tiny(), empty)
    with pytest.raises(ValueError, match="epochs is -1; it must be 0 or more"):
        training.fit(tiny(), Scenes("train", 4, 64), epochs=-1, lr=1e-2)
