"""Processes that torchrun starts train or measure together, each with its share of the images."""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.utils.data import RandomSampler

from e2lib.attribution import Exact
from e2lib.datasets import Batch


def processes() -> tuple[int, int]:
    """The number of this process and the number of processes; (0, 1) alone. The first call joins those of torchrun."""
    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))  # waits may be long
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class StepModule(nn.Module):
    """A whole step, from batch to terms, as one Module, so that DistributedDataParallel averages its gradients."""

    def __init__(self, model: nn.Module, step: Callable[[nn.Module, Batch], dict[str, Tensor]]):
        super().__init__()
        self.model, self.step = model, step

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with Exact() if len(batch.images) == 1 else nullcontext():
            return self.step(self.model, batch)


def from_first(value: Any) -> Any:
    """The `value` of the first process, in all processes."""
    held = [value]
    if processes()[1] > 1:
        dist.broadcast_object_list(held)
    return held[0]


def summed(totals: dict[str, float], device: torch.device) -> dict[str, float]:
    """The sum of each number over the processes, computed on `device`."""
    if processes()[1] == 1:
        return totals
    sums = torch.tensor(list(totals.values()), dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return dict(zip(totals, sums.tolist(), strict=True))


class Batches:
    """This process's share of each shuffled batch of an epoch, as lists of positions.

    A last batch of one image joins the one before, as norm layers cannot learn from one value per channel. A process
    without a share gets one image of weight 0. `counts` holds (images of weight 1 here, images in all) per batch.
    """

    def __init__(self, images: int, size: int, order: Generator):
        self.rank, self.world = processes()
        self.sampler = RandomSampler(range(images), generator=order)
        bounds = [*range(0, images, size), images]
        if size > 1 and len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
            del bounds[-2]
        self.bounds = list(pairwise(bounds))
        self.counts = [(len(range(self.rank, b - a, self.world)), b - a) for a, b in self.bounds]

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for a, b in self.bounds:
            yield order[a:b][self.rank :: self.world] or order[a : a + 1]

    def apart(self, worker: int) -> None:
        """Give the workers of each process random numbers of their own."""
        torch.manual_seed(torch.initial_seed() + 1000 * self.rank)
