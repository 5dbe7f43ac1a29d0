"""Data whose groups (bird x place, ...) differ between training and test: the choice of an epoch, reference methods."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from e2lib import training
from e2lib.attribution import modes_restored, predict
from e2lib.datasets import Batch, Selection
from e2lib.datasets.files import check_value
from e2lib.datasets.subsets import random_order
from e2lib.guidance import Guide

# How an epoch is chosen -> the measure of `metrics.GroupAccuracy` on validation images that is to be high.
RULES = {
    "last epoch": None,
    "in-distribution validation": "adjusted mean",  # the accuracy on images distributed as those of training
    "worst validation group": "worst group",  # uses the groups of validation images that training does not show
}


def uses(rule: str, *others: str) -> str:
    """Whose group labels a result needs: the `others` that are not "", and "validation" if the rule uses them."""
    found = [*others, "validation" if RULES[rule] == "worst group" else ""]
    return ", ".join(dict.fromkeys(filter(None, found))) or "none"


class BestEpoch:
    """`after_epoch` of `training.fit` that keeps the weights of the best epoch by a rule of `RULES`.

    `val` holds validation Samples with groups, `seen` how many training images each group has. The last of equally good
    epochs is taken. ValueError for another rule, and for a training that was resumed.
    """

    def __init__(self, model: nn.Module, val: Dataset, seen: Sequence[int], rule: str = "last epoch"):
        check_value(rule in RULES, "rule", rule, f"one of {', '.join(RULES)}")
        self.model, self.val, self.seen, self.rule = model, val, seen, rule
        self.epoch, self.weights = 0, {}  # of the best
        self.history: list[dict[str, float]] = []  # `evaluate` of each epoch

    def __call__(self, epoch: int) -> dict[str, float]:
        """Measure the network after this epoch, and keep its weights if it is the best; returns the scores."""
        wanted = f"{len(self.history) + 1}: a resumed training cannot choose among all epochs"
        check_value(epoch == len(self.history) + 1, "epoch", epoch, wanted)
        self.history.append(training.evaluate(self.model, self.val, seen=self.seen))
        measure = RULES[self.rule]
        if measure is None or self.history[-1][measure] >= max(scores[measure] for scores in self.history):
            self.epoch, self.weights = epoch, copy.deepcopy(self.model.state_dict())
        return self.history[-1]

    def restore(self) -> None:
        """Give the network the weights of the best epoch."""
        self.model.load_state_dict(self.weights)


def counts(dataset: Dataset) -> list[int]:
    """How many images each of the data set's groups has."""
    return np.bincount(dataset.group_of, minlength=len(dataset.groups)).tolist()


def group_balanced(dataset: Dataset, seed: int = 0) -> Selection:
    """A random choice of equally many images of each group: as many as the smallest group with images has."""
    order = random_order(len(dataset), seed)
    groups = [order[dataset.group_of[order] == g] for g in np.unique(dataset.group_of)]
    return Selection(dataset, np.sort(np.ravel([*zip(*groups, strict=False)])))  # zip stops with the smallest


def dfr(model: nn.Module, start: nn.Module, val: Dataset, epochs: int, lr: float, batch_size=64, seed=0) -> nn.Module:
    """A copy of `model` whose classifier is that of `start`, trained as by `fit` on group-balanced images of `val`.

    Deep feature reweighting (Kirichenko et al., ICLR 2023), with one balanced choice in place of the mean of ten, and
    without the ℓ1 penalty. Both networks are of `models.build`, or `models.Head`.
    """
    result = training.train_head_only(copy.deepcopy(model))
    names = [name for name, parameter in result.named_parameters() if parameter.requires_grad]
    result.load_state_dict({name: start.state_dict()[name] for name in names}, strict=False)
    training.fit(result, group_balanced(val, seed), epochs, lr, batch_size, seed, Guide(weight=0))
    return result


def _losses(model: nn.Module, batch: Batch, seen: Sequence[int]) -> Tensor:
    """Binary cross-entropy per image (B,), in eval mode; ValueError where `seen` does not count an image's group."""
    if unknown := [g for g in batch.groups.tolist() if not (0 <= g < len(seen) and seen[g])]:
        raise ValueError(f"seen is {seen}; it must count the training images, and some are of {unknown[0]}")
    with modes_restored(model):
        model.eval()
        logits = predict(model, batch.images).float()
    return F.binary_cross_entropy_with_logits(logits, batch.hot(logits.shape[1]), reduction="none").mean(1)


@dataclass(frozen=True)
class Reweighted:
    """A training step in which every group counts alike: over an epoch, the mean of the groups' mean losses.

    The loss of an image of group g is multiplied by N / (G · n_g); `seen` are the n_g, each group's training images.
    """

    seen: tuple[int, ...]

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The term classification; ValueError for an image of a group that `seen` does not count."""
        losses, seen = _losses(model, batch, self.seen), torch.tensor(self.seen, device=batch.groups.device)
        weights = seen.sum() / ((seen > 0).sum() * seen[batch.groups])
        return {"classification": (weights * losses).mean()}


class GroupDRO(nn.Module):
    """A training step on the worst group: group distributionally robust optimisation (Sagawa et al., ICLR 2020).

    Algorithm 1: q_g ← q_g exp(η L_g), normalised; the loss is Σ_g q_g L_g, L_g the mean loss of the batch's images of
    group g. q begins uniform over the groups of which `seen` counts training images. `rate` is η.
    """

    def __init__(self, seen: Sequence[int], rate: float = 0.01):
        super().__init__()
        self.seen = tuple(seen)
        shown = torch.tensor(self.seen) > 0
        # Buffers, so that checkpoints hold q and tell a training by the rate.
        self.register_buffer("weights", shown / shown.sum())  # q, float32 (groups,)
        self.register_buffer("rate", torch.tensor(float(rate)))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """As that of `Reweighted`; moves the weights q."""
        losses = _losses(model, batch, self.seen)
        means = losses.new_zeros(len(self.seen)).scatter_reduce(0, batch.groups, losses, "mean", include_self=False)
        q = self.weights.to(losses.device) * (self.rate * means.detach()).exp()
        self.weights = q / q.sum()
        return {"classification": (self.weights * means).sum()}
