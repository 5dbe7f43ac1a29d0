"""TensorBoard shows what happens, and changes nothing."""

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from e2lib import training
from e2lib.datasets import Scenes
from tests.training.common import tiny


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
