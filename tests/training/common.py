"""Small networks and data for the tests of training."""

import multiprocessing

import torch
from torch import nn

from e2lib.datasets import Scenes, train_transform
from e2lib.guidance import Guide


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


GUIDED = Guide(weight=0.3)


def differ(a, b):
    """Names of the tensors that are not equal bit for bit."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def flipped(length=12):
    """Scenes of several classes, flipped at random: both Guide and the data set draw random numbers."""
    return Scenes("train", length, 64, transform=train_transform(64))


def started(function, *arguments):
    """A process that runs a function of a module. All are forked from one that has imported what takes long."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["e2lib.distillation", "e2lib.training", "torch.distributed.launcher.api"])
    process = server.Process(target=function, args=arguments)
    process.start()
    return process
