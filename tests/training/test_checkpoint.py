"""A training goes on where it was killed, bit for bit, and is never taken for another one."""

import copy
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from e2lib import training
from e2lib.datasets import Scenes, with_boxes
from e2lib.guidance import Guide
from tests.training.common import GUIDED, differ, flipped, tiny


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
