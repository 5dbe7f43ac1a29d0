"""Groups, such as bird x place, whose shares differ between training and test: choice of epoch, reference methods."""

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
from e2lib.datasets.sample import Batch, check_value
from e2lib.datasets.subsets import Selection, random_order
from e2lib.guidance import Guide

# How an epoch is chosen -> the measure of `metrics.GroupAccuracy` on validation images that must be highest.
RULES = {
    "last epoch": None,
    "in-distribution validation": "adjusted mean",  # accuracy on images whose groups are as frequent as in training
    "worst validation group": "worst group",  # needs validation images of groups that training does not show
}


def uses(rule: str, *others: str) -> str:
    """The images whose group labels a result needs: `others` except "", and "validation" if the rule uses them."""
    used = [*others, "validation"] if RULES[rule] == "worst group" else others
    return ", ".join(dict.fromkeys(filter(None, used))) or "none"


class BestEpoch:
    """An `after_epoch` of `training.fit` that keeps the weights of the best epoch, by a rule of `RULES`.

    `val` holds validation Samples with groups; `seen` counts the training images of each group. The last of equally
    good epochs counts. ValueError for another rule, and for a training that was resumed.
    """

    def __init__(self, model: nn.Module, val: Dataset, seen: Sequence[int], rule: str = "last epoch"):
        check_value(rule in RULES, "rule", rule, f"one of {', '.join(RULES)}")
        self.model, self.val, self.seen, self.rule = model, val, seen, rule
        self.epoch, self.weights = 0, {}  # the best epoch, and its weights
        self.history: list[dict[str, float]] = []  # scores of each epoch

    def __call__(self, epoch: int) -> dict[str, float]:
        """Measure the network after this epoch, and keep its weights if it is the best; returns the scores."""
        due, measure = len(self.history) + 1, RULES[self.rule]
        check_value(epoch == due, "epoch", epoch, f"{due}: a resumed training cannot choose among all epochs")
        self.history.append(scores := training.evaluate(self.model, self.val, seen=self.seen))
        if measure is None or scores[measure] >= max(earlier[measure] for earlier in self.history):
            self.epoch, self.weights = epoch, copy.deepcopy(self.model.state_dict())
        return scores

    def restore(self) -> None:
        """Give the network the weights of the best epoch."""
        self.model.load_state_dict(self.weights)


def counts(dataset: Dataset) -> list[int]:
    """The number of images in each group of the data set."""
    return np.bincount(dataset.group_of, minlength=len(dataset.groups)).tolist()


def group_balanced(dataset: Dataset, seed: int = 0) -> Selection:
    """Random images, as many of each group as the smallest group has. Empty groups do not count."""
    order = random_order(len(dataset), seed)
    groups = [order[dataset.group_of[order] == g] for g in np.unique(dataset.group_of)]
    return Selection(dataset, np.sort(np.ravel([*zip(*groups, strict=False)])))  # zip stops with the smallest


def dfr(model: nn.Module, start: nn.Module, val: Dataset, epochs: int, lr: float, batch_size=64, seed=0) -> nn.Module:
    """Deep feature reweighting (Kirichenko et al., ICLR 2023): a copy of `model` with its classifier trained anew.

    The classifier begins as that of `start`, and `fit` trains it on group-balanced images of `val`. Both networks are
    made by `models.build` or `models.split`. Notes: the paper averages ten balanced choices and has an ℓ1 penalty.
    """
    result, weights = training.train_head_only(copy.deepcopy(model)), start.state_dict()
    head = {name: weights[name] for name, parameter in result.named_parameters() if parameter.requires_grad}
    result.load_state_dict(head, strict=False)
    training.fit(result, group_balanced(val, seed), epochs, lr, batch_size, seed, Guide(weight=0))
    return result


def _losses(model: nn.Module, batch: Batch, seen: Sequence[int]) -> Tensor:
    """Binary cross-entropy per image (B,), in eval mode; ValueError for an image of a group that `seen` lacks."""
    for g in batch.groups.tolist():
        check_value(0 <= g < len(seen) and seen[g], "seen", seen, f"the number of training images, also of group {g}")
    with modes_restored(model):
        model.eval()
        logits = predict(model, batch.images).float()
    return F.binary_cross_entropy_with_logits(logits, batch.hot(logits.shape[1]), reduction="none").mean(1)


@dataclass(frozen=True)
class Reweighted:
    """A training step in which all groups weigh the same: N / (G · n_g) times the loss of each image of group g.

    `seen` are the n_g, the training images per group. ValueError for an image of a group without training images.
    """

    seen: tuple[int, ...]

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses, seen = _losses(model, batch, self.seen), torch.tensor(self.seen, device=batch.groups.device)
        weights = seen.sum() / ((seen > 0).sum() * seen[batch.groups])
        return {"classification": (weights * losses).mean()}


class GroupDRO(nn.Module):
    """A training step on the worst group: group distributionally robust optimisation (Sagawa et al., ICLR 2020).

    Algorithm 1: q_g ← q_g exp(η L_g), normalised; the loss is Σ_g q_g L_g. L_g is the mean loss of the batch's images
    of group g. At the start q is uniform over the groups with training images, counted in `seen`. `rate` is η.
    """

    def __init__(self, seen: Sequence[int], rate: float = 0.01):
        super().__init__()
        self.seen, shown = tuple(seen), torch.tensor(seen) > 0
        # Buffers: a checkpoint holds q, and another rate gives another checkpoint.
        self.register_buffer("weights", shown / shown.sum())  # q, float32 (groups,)
        self.register_buffer("rate", torch.tensor(float(rate)))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses = _losses(model, batch, self.seen)
        means = losses.new_zeros(len(self.seen)).scatter_reduce(0, batch.groups, losses, "mean", include_self=False)
        q = self.weights.to(losses.device) * (self.rate * means.detach()).exp()
        self.weights = q / q.sum()
        return {"classification": (self.weights * means).sum()}
