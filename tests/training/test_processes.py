"""Two processes, started as two nodes by torchrun, train and measure as one does; a loop of one's own in DDP too."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from e2lib import training
from e2lib.datasets import Scenes
from e2lib.training.processes import Batches

# Nobody starts a process group here: that is what `processes` is to do.
TOGETHER = """
import sys

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from e2lib import datasets, models, training
from e2lib.attribution import explain
from e2lib.distillation import Distill
from e2lib.guidance import Guide

torch.set_num_threads(1)
rank, world = training.processes()
data = datasets.Scenes("train", 7, 64, objects=1)  # batches of 4 and 3
one_box = datasets.Selection(data, np.arange(7), annotated=np.arange(7) == 2)  # the other process has none
images, count = datasets.collate([data[0], data[1]]).images, len(data.classes)
found = {"processes": world}


def build(name, seed, *weights):
    torch.manual_seed(seed + 10 * rank)  # fit gives all of them the first one's network
    return models.build(name, count, *weights)


teacher = build("bcos_scenes", 5, "scenes")
STEPS = {
    "guided": (lambda net: Guide("energy", "ixg", "Final", 3.0), data),
    "one box": (lambda net: Guide("energy", "ixg", "Input", 3.0), one_box),
    "distilled": (lambda net: Distill(teacher, net, images, {"kd": 1.0, "at": 10.0}), data),
    "explained": (lambda net: Distill(teacher, net, images, {"kd": 1.0, "e2kd": 2.0}, method="ixg", at="Input"), data),
}
real = nn.utils.clip_grad_norm_
for name, (make, images_of) in STEPS.items():
    net, grads = build("test_convnext", 1), []

    def clip(parameters, norm):  # here gradients are whole; after it they have norm 1
        grads.append(torch.cat([p.grad.flatten() for p in parameters]))
        return real(parameters, norm)

    nn.utils.clip_grad_norm_ = clip
    history = training.fit(net, images_of, 1, 1e-4, 4, step=make(net), precision="float32")
    nn.utils.clip_grad_norm_ = real
    found[name] = {"gradients": torch.stack(grads)[:, ::31], "history": history}
found["scores"] = training.evaluate(net, data, 4, method="ixg", at="Final", threshold=0.3, teacher=teacher)


class Explained(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images, classes):
        logits, maps = explain(self.net, images, classes, at="Mid2", create_graph=True)
        return logits.square().mean() + maps[..., :32].abs().mean()


own = Explained(build("test_convnext", 1))
batch = datasets.collate([data[i] for i in range(4)])
mine = slice(rank, None, world)
shared = own if world == 1 else DistributedDataParallel(own)
shared(batch.images[mine], batch.labels.argmax(1)[mine]).backward()
found["own loop"] = torch.cat([p.grad.flatten() for p in own.parameters()])[::31]
if rank == 0 and world > 1:
    torch.save(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the script finds in one process, and in two."""
    folder = tmp_path_factory.mktemp("together")
    script = folder / "together.py"
    script.write_text(TOGETHER)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = f"--rdzv-endpoint=localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", "--rdzv-id=test", where, "--local-addr=localhost", script, folder / "two.pt"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        one = runpy.run_path(str(script))["found"]
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    return one, torch.load(folder / "two.pt", weights_only=True)


def test_torchrun_is_enough_to_start_them(found):
    assert [x["processes"] for x in found] == [1, 2]


@pytest.mark.parametrize("name", ["guided", "one box", "distilled", "explained"])
def test_two_processes_step_as_one_does(found, name):
    one, two = (x[name] for x in found)
    assert len(one["gradients"]) == 2 and (one["gradients"].norm(dim=1) > 0.05).all()
    torch.testing.assert_close(two["gradients"], one["gradients"], rtol=1e-3, atol=1e-5)
    for epoch, other in zip(one["history"], two["history"], strict=True):
        assert other == pytest.approx(epoch, rel=1e-3)


def test_two_processes_measure_as_one_does(found):
    one, two = (x["scores"] for x in found)
    assert two == pytest.approx(one, abs=0.1) and "agreement" in one


def test_explanations_inside_ones_own_module_train_in_ddp(found):
    one, two = (x["own loop"] for x in found)
    assert one.norm() > 0.01
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(9, 4, [4, 5]), (9, 8, [9]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1]), (4, 4, [4]), (3, 2, [3])],
)
def test_a_last_batch_of_one_image_joins_the_one_before(images, size, expected):
    batches = Batches(images, size, torch.Generator().manual_seed(0))
    for _ in range(2):
        drawn = list(batches)
        assert [len(batch) for batch in drawn] == expected and len(batches) == len(expected)
        assert sorted(sum(drawn, [])) == list(range(images))
    assert [batches.count(number) for number in range(len(batches))] == [(size, size) for size in expected]


def test_processes_share_a_batch_and_one_without_an_image_gets_one_that_counts_nothing(monkeypatch):
    shares = []
    for rank in range(3):
        monkeypatch.setattr(sys.modules["e2lib.training.processes"], "processes", lambda rank=rank: (rank, 3))
        batches = Batches(6, 4, torch.Generator().manual_seed(0))
        shares.append((list(batches), [batches.count(number) for number in range(2)]))
    assert [counts for _, counts in shares] == [[(2, 4), (1, 2)], [(1, 4), (1, 2)], [(1, 4), (0, 2)]]
    first, last = zip(*(drawn for drawn, _ in shares), strict=True)
    assert len(set(sum(first, []))) == 4 and last[2] == last[0] != last[1]


def test_norm_layers_never_learn_from_a_single_image_of_an_epoch():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10)
    )
    training.fit(net, Scenes("train", 5, 64), 1, 1e-3, batch_size=4)
