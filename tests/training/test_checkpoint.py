"""A training goes on where it was killed, bit for bit, and is never taken for another one: that begins anew."""

import copy
import os
import re
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from e2lib import training
from e2lib.datasets import Samples, Scenes, with_boxes
from e2lib.guidance import Guide
from tests.training.common import GUIDED, differ, flipped, started, tiny


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


def files(folder):
    """The files in a folder but for hidden ones; each is named run-KEY.pt."""
    found = [p for p in folder.iterdir() if not p.name.startswith(".")]
    assert all(re.fullmatch(r"run-[0-9a-f]{16}\.pt", p.name) for p in found)
    return found


def die(path):
    """Train until the process is killed after the third epoch."""
    run(path, lambda epoch: os.kill(os.getpid(), signal.SIGKILL) if epoch == 3 else None)


def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    path = tmp_path / "run.pt"
    killed = started(die, path)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(files(tmp_path)) == len(list(tmp_path.iterdir())) == 1
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
    assert len(files(tmp_path)) == 1
    monkeypatch.undo()
    seen = []
    resumed, history = run(path, seen.append)
    expected, whole = run()
    assert seen == [3, 4]
    assert not differ(resumed, expected) and history == whole
    assert len(files(tmp_path)) == 1


def test_a_finished_checkpoint_is_returned_at_once(tmp_path, monkeypatch):
    expected, history = run(tmp_path / "run.pt", epochs=2)
    (file,) = files(tmp_path)
    content = file.read_bytes()

    def forbidden(*_):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(Guide, "__call__", forbidden)
    model, again = run(tmp_path / "run.pt", forbidden, epochs=2)
    assert not differ(model, expected) and again == history
    assert files(tmp_path) == [file] and file.read_bytes() == content


def half_frozen():
    model = tiny()
    model[0].requires_grad_(False)
    return model


class Shifted(nn.Module):
    """A step with a parameter of its own."""

    def __init__(self, start):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(start))

    def extra_repr(self):
        return "shifted"

    def forward(self, model, batch):
        return {"classification": training.classify(model, batch)["classification"] + (self.shift - 2).square()}


FOUR = Scenes("train", 4, 64)
CHANGES = {
    "as it was": {},
    "lr": {"lr": 2e-2},
    "seed": {"seed": 1},
    "epochs": {"epochs": 2},
    "batches": {"batch_size": 4},
    "number of images": {"dataset": Scenes("train", 6, 64)},
    "transform": {"dataset": flipped(4)},
    "labels": {"dataset": Scenes("train", 4, 64, seed=1)},
    "boxes": {"dataset": with_boxes(FOUR, 0.25)},
    "fewer boxes": {"dataset": with_boxes(FOUR, 0.5)},
    "precision": {"precision": "bfloat16"},
    "optimizer": {"optimizer": partial(torch.optim.Adam, lr=1e-2, weight_decay=0.1)},
    "schedule": {"schedule": torch.optim.lr_scheduler.ExponentialLR},
    "longer schedule": {"schedule": lambda optimizer, steps: CosineAnnealingLR(optimizer, 2 * steps)},
    "weights": {"model": other()},
    "frozen": {"model": half_frozen()},
    "step": {"step": training.classify},
    "settings of the step": {"step": Guide(weight=0.2)},
    "start of the step": {"step": Shifted(1.0)},
    "another start of the step": {"step": Shifted(3.0)},
}


def test_another_training_begins_anew_beside_the_first(tmp_path):
    for number, (name, change) in enumerate(CHANGES.items(), 1):
        how, seen = {"epochs": 1, "dataset": FOUR} | change, []
        model, step = how.pop("model", tiny()), how.pop("step", GUIDED)
        first = copy.deepcopy((model, step))
        run(tmp_path / "run.pt", seen.append, model, step=step, **how)
        assert seen == list(range(1, how["epochs"] + 1)) and len(files(tmp_path)) == number, name
        seen.clear()
        again, _ = run(tmp_path / "run.pt", seen.append, first[0], step=first[1], **how)
        assert seen == [] and len(files(tmp_path)) == number and not differ(again, model), name
        assert not isinstance(step, Shifted) or step.shift == first[1].shift != 1.0


def test_a_trained_network_trains_on(tmp_path):
    once, expected = run(tmp_path / "run.pt", epochs=2)[0], run(epochs=2)[0]
    for path, model in ((tmp_path / "run.pt", once), (None, expected)):
        run(path, model=model, epochs=2)
    assert not differ(once, expected) and len(files(tmp_path)) == 2
    # The same two calls again find both.
    seen = []
    again, _ = run(tmp_path / "run.pt", seen.append, epochs=2)
    run(tmp_path / "run.pt", seen.append, again, epochs=2)
    assert seen == [] and not differ(again, once)


class Photos(Samples):
    """Images that a transform flips at random, known by reading them."""

    classes, multilabel, transform = flipped().classes, True, flipped().transform

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return self.transform(FOUR[i % 4])


def test_a_checkpoint_changes_nothing_also_where_images_are_drawn_to_know_them(tmp_path):
    found = [run(path, dataset=Photos(), epochs=2)[0] for path in (None, tmp_path / "run.pt", tmp_path / "run.pt")]
    assert not differ(found[0], found[1]) and not differ(found[0], found[2]) and len(files(tmp_path)) == 1


def test_numbers_of_numpy_can_be_resumed(tmp_path):
    for kind in (np.float64, np.float32, float):
        guide = Guide(weight=kind(0.5), fraction=kind(1), dropout=kind(0))
        how = {"epochs": np.int64(1), "lr": np.float64(1e-2), "batch_size": np.int64(4), "seed": np.int64(0)}
        training.fit(tiny(), Scenes("train", 4, 64), step=guide, checkpoint=tmp_path / "run.pt", **how)


def by_lambda(factor):
    return lambda optimizer, steps: LambdaLR(optimizer, lambda step: factor)


def scaled(factor):
    return lambda model, batch: {"loss": factor * training.classify(model, batch)["classification"]}


def test_what_no_weights_tell_begins_another_training(tmp_path):
    """The structure, the functions of a schedule and of a step."""
    changes = [{}, {"schedule": by_lambda(1)}, {"schedule": by_lambda(0.5)}, {"step": scaled(1)}, {"step": scaled(2)}]
    changes += [{"step": Guide(loss=lambda maps, masks, c=c: c * maps.square().sum((1, 2, 3)))} for c in (1, 2)]
    tanh = tiny()
    tanh[2] = nn.Tanh()
    changes.append({"model": tanh})
    found = [run(tmp_path / "run.pt", epochs=1, **change)[1] for change in changes]
    assert len(files(tmp_path)) == len(changes)
    assert found == [run(tmp_path / "run.pt", epochs=1, **change)[1] for change in changes[:-1]] + found[-1:]
    assert len(files(tmp_path)) == len(changes)
