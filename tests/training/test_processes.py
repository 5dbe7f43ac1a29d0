"""Two processes, started as two nodes by torchrun, train and measure as one does; a loop of one's own in DDP too."""

import socket
import sys

import pytest
import torch
from torch import nn

from e2lib import training
from e2lib.datasets import Scenes
from e2lib.training.processes import Batches
from tests.training import together
from tests.training.common import started


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What is found in one process, and in two."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    nodes = [started(together.node, port, folder) for _ in range(2)]
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        one = together.find() | {"resumed": together.resume(None)}
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        for node in nodes:
            node.join(timeout=300)
            node.kill()
    assert [node.exitcode for node in nodes] == [0, 0]
    return one, torch.load(folder / "two.pt", weights_only=True), [p.name for p in folder.glob("run*")]


def test_torchrun_is_enough_to_start_them(found):
    assert [x["processes"] for x in found[:2]] == [1, 2]


@pytest.mark.parametrize("name", ["guided", "one box", "distilled", "explained"])
def test_two_processes_step_as_one_does(found, name):
    one, two = (x[name] for x in found[:2])
    assert len(one["gradients"]) == 2 and (one["gradients"].norm(dim=1) > 0.05).all()
    torch.testing.assert_close(two["gradients"], one["gradients"], rtol=1e-3, atol=1e-5)
    for epoch, other in zip(one["history"], two["history"], strict=True):
        assert other == pytest.approx(epoch, rel=1e-3)


def test_two_processes_measure_as_one_does(found):
    one, two = (x["scores"] for x in found[:2])
    assert two == pytest.approx(one, abs=0.1) and "agreement" in one


def test_explanations_inside_ones_own_module_train_in_ddp(found):
    one, two = (x["own loop"] for x in found[:2])
    assert one.norm() > 0.01
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-6)


def test_two_processes_go_on_from_one_checkpoint(found):
    one, two = (x["resumed"] for x in found[:2])
    assert two["epochs"] == [1, 2, 2, 3] and len(found[2]) == 1
    for epoch, other in zip(one["history"], two["history"], strict=True):
        assert other == pytest.approx(epoch, rel=1e-3)


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(9, 4, [4, 5]), (9, 8, [9]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1]), (4, 4, [4]), (3, 2, [3])],
)
def test_a_last_batch_of_one_image_joins_the_one_before(images, size, expected):
    batches = Batches(images, size, torch.Generator().manual_seed(0))
    for _ in range(2):
        drawn = list(batches)
        assert [len(batch) for batch in drawn] == expected
        assert sorted(sum(drawn, [])) == list(range(images))
    assert batches.counts == [(size, size) for size in expected]


def test_processes_share_a_batch_and_one_without_an_image_gets_one_that_counts_nothing(monkeypatch):
    shares = []
    for rank in range(3):
        monkeypatch.setattr(sys.modules["e2lib.training.processes"], "processes", lambda rank=rank: (rank, 3))
        batches = Batches(6, 4, torch.Generator().manual_seed(0))
        shares.append((list(batches), batches.counts))
    assert [counts for _, counts in shares] == [[(2, 4), (1, 2)], [(1, 4), (1, 2)], [(1, 4), (0, 2)]]
    first, last = zip(*(drawn for drawn, _ in shares), strict=True)
    assert len(set(sum(first, []))) == 4 and last[2] == last[0] != last[1]


def test_norm_layers_never_learn_from_a_single_image_of_an_epoch():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10)
    )
    training.fit(net, Scenes("train", 5, 64), 1, 1e-3, batch_size=4)
