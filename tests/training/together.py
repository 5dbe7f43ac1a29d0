"""What one process finds, and what two nodes do that torch's launcher starts; no tests."""

import contextlib

import numpy as np
import torch
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from e2lib import datasets, models, training
from e2lib.attribution import explain
from e2lib.distillation import Distill
from e2lib.guidance import Guide

TERMS = {"distilled": {"kd": 1.0, "at": 10.0}, "explained": {"kd": 1.0, "e2kd": 2.0}}


class Explained(nn.Module):
    """A loop of one's own: a loss on explanations, as a Module."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images, classes):
        logits, maps = explain(self.net, images, classes, at="Mid2", create_graph=True)
        return logits.square().mean() + maps[..., :32].abs().mean()


def find():
    """Gradients, terms and scores. Nobody starts a process group here: that is what `processes` is to do."""
    torch.set_num_threads(1)
    rank, world = training.processes()
    data = datasets.Scenes("train", 7, 64, objects=1)  # batches of 4 and 3
    one_box = datasets.Selection(data, np.arange(7), annotated=np.arange(7) == 2)  # the other process has none
    images, count = datasets.collate([data[0], data[1]]).images, len(data.classes)

    def build(name, seed, *weights):
        torch.manual_seed(seed + 10 * rank)  # fit gives all of them the first one's network
        return models.build(name, count, *weights)

    teacher = build("bcos_scenes", 5, "scenes")
    steps = {
        "guided": (lambda net: Guide("energy", "ixg", "Final", 3.0), data),
        "one box": (lambda net: Guide("energy", "ixg", "Input", 3.0), one_box),
        "distilled": (lambda net: Distill(teacher, net, images, TERMS["distilled"]), data),
        "explained": (lambda net: Distill(teacher, net, images, TERMS["explained"], method="ixg", at="Input"), data),
    }
    found, real = {"processes": world}, nn.utils.clip_grad_norm_
    for name, (make, images_of) in steps.items():
        net, grads = build("test_convnext", 1), []

        def clip(parameters, norm, grads=grads):  # here gradients are whole; after it they have norm 1
            grads.append(torch.cat([p.grad.flatten() for p in parameters]))
            return real(parameters, norm)

        nn.utils.clip_grad_norm_ = clip
        history = training.fit(net, images_of, 1, 1e-4, 4, step=make(net), precision="float32")
        nn.utils.clip_grad_norm_ = real
        found[name] = {"gradients": torch.stack(grads)[:, ::31], "history": history}
    found["scores"] = training.evaluate(net, data, 4, method="ixg", at="Final", threshold=0.3, teacher=teacher)
    removed = datasets.Without(data, "scene")
    found["scores"] |= {"still named": training.evaluate(teacher, data, 4, removed=removed)["still named"]}
    own = Explained(build("test_convnext", 1))
    batch = datasets.collate([data[i] for i in range(4)])
    mine = slice(rank, None, world)
    shared = own if world == 1 else DistributedDataParallel(own)
    shared(batch.images[mine], batch.labels.argmax(1)[mine]).backward()
    found["own loop"] = torch.cat([p.grad.flatten() for p in own.parameters()])[::31]
    return found


class Stopped(Exception):
    pass


class Named:
    """A step whose repr is another in each process, as one with an address in it."""

    def __repr__(self):
        return f"of {training.processes()[0]}"

    def __call__(self, model, batch):
        return training.classify(model, batch)


def resume(folder):
    """Train three epochs, stopped in the second one where `folder` is given; what is found in the end."""
    data, epochs = datasets.Scenes("train", 7, 64, objects=1), []

    def stop(epoch):
        epochs.append(epoch)
        if len(epochs) == 2:
            raise Stopped

    for _ in range(1 if folder is None else 2):
        torch.manual_seed(1 + 10 * training.processes()[0])
        net = models.build("test_convnext", len(data.classes))
        if folder is None:
            how = {}
        else:  # the second process is on another disk, where nothing is ever written
            disk = folder if training.processes()[0] == 0 else folder / "elsewhere"
            how = {"checkpoint": disk / "run.pt", "after_epoch": stop}
        with contextlib.suppress(Stopped):
            history = training.fit(net, data, 3, 1e-3, 4, step=Named(), precision="float32", **how)
    return {"history": history, "epochs": epochs}


def node(port, folder):
    """One of two nodes, as `torchrun --nnodes=2 --nproc-per-node=1` is, which forks its process instead of a script."""
    how = {"min_nodes": 2, "max_nodes": 2, "nproc_per_node": 1, "start_method": "fork", "local_addr": "localhost"}
    how |= {"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": f"localhost:{port}", "max_restarts": 0}
    elastic_launch(LaunchConfig(**how), save)(folder)


def save(folder):
    """What the first of several processes finds, in a file."""
    found = find() | {"resumed": resume(folder)}
    if training.processes()[0] == 0:
        torch.save(found, folder / "two.pt")
