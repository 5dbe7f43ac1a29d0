"""How good the classifier is: torchmetrics of logits and labels, which refuse NaN, and the removal test."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryF1Score
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from e2lib.metrics.localisation import kind


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless logits are float (B, C) without NaN, and labels (B, C) are 0 or 1."""
    if logits.ndim != 2 or not logits.is_floating_point() or labels.shape != logits.shape:
        raise ValueError(f"logits is {kind(logits)}, labels {kind(labels)}; both must be (B, C), logits float")
    if logits.isnan().any():
        raise ValueError("logits hold NaN: the network's weights, or its images, are not finite")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"labels hold {labels.min()} to {labels.max()}; each must be 0 or 1")


class F1(BinaryF1Score):
    """Multi-label F1 in [0, 1], of all classes together (micro, as in Rao et al.); logits above 0 count as yes."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, C) float, labels (B, C), 0 or 1; see `check_logits`."""
        check_logits(logits, labels)
        if len(logits):  # torchmetrics fails on an empty batch
            super().update((logits > 0).long(), labels.long())


class MeanAP(Metric):
    """Mean average precision in [0, 1] over the classes that have a positive label; 0 when none has one.

    Only the order of the logits matters. torchmetrics alone would take their sigmoid, which makes large ones equal.
    """

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        check_logits(logits, labels)
        self.logits.append(logits)
        self.labels.append(labels.to(torch.uint8))
        if len(self.logits) == 64:  # a small tensor kept per batch would split the memory that the next images need
            self.logits, self.labels = [torch.cat(self.logits)], [torch.cat(self.labels)]

    def compute(self) -> Tensor:
        logits, labels = dim_zero_cat(self.logits), dim_zero_cat(self.labels).long()
        logits, labels = logits[:, labels.any(0)].T.contiguous(), labels[:, labels.any(0)]
        if not len(logits):
            return torch.zeros((), device=labels.device)
        ranks = torch.searchsorted(logits.sort(1).values, logits)  # equal logits share a rank
        shares = ranks.double().T / len(labels)  # in [0, 1), which torchmetrics leaves as they are
        return multilabel_average_precision(shares, labels, len(logits), validate_args=False).float()


class GroupAccuracy(Metric):
    """Accuracy by group of single-label data whose groups (bird x place, ...) differ in frequency between splits.

    groups: their names; an image's group is an index into them. seen: the number of training images of each, if known.
    `compute` returns shares in [0, 1], each only if it has images: every group's accuracy by its name, "accuracy",
    "worst group" and "mean of groups". With `seen` also the "adjusted mean", weighted by it (Sagawa et al., ICLR 2020),
    and the accuracy "in distribution" and "out of distribution": over the images of all groups that have training
    images, and of all that have none (Parchami-Araghi et al., ECCV 2024, section 4.2).
    """

    full_state_update = False

    def __init__(self, groups: Sequence[str], seen: Sequence[int] | None = None):
        super().__init__()
        if not groups or (seen is not None and len(seen) != len(groups)):
            raise ValueError(f"groups are {groups}, seen is {seen}; there must be a group, and a number for each")
        self.groups, self.seen = list(groups), None if seen is None else torch.as_tensor(seen).double()
        self.add_state("counts", torch.zeros(2, len(groups), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Add a batch: logits (B, C) float, labels (B, C) one-hot, groups (B,) int64; else ValueError."""
        check_logits(logits, labels)
        if not (labels.sum(1) == 1).all():
            raise ValueError(f"labels hold {labels.sum(1).tolist()} classes per image; they must be one-hot")
        fits = groups.shape == logits.shape[:1] and not groups.is_floating_point()
        if not fits or not ((groups >= 0) & (groups < len(self.groups))).all():
            raise ValueError(f"groups is {groups.tolist()}; each must be 0 to {len(self.groups) - 1}")
        right = groups[logits.argmax(1) == labels.long().argmax(1)]
        self.counts += torch.stack([torch.bincount(some, minlength=len(self.groups)) for some in (right, groups)])

    def compute(self) -> dict[str, Tensor]:
        """The accuracies so far; empty before the first image."""
        hits, images = self.counts.double()
        rate, here = hits / images.clamp(min=1), (images > 0).double()
        weights = {"accuracy": images, "mean of groups": here}
        if self.seen is not None:
            seen = self.seen.to(here)
            weights |= {"adjusted mean": seen * here, "in distribution": images * (seen > 0)}
            weights["out of distribution"] = images * (seen == 0)
        worst = {"worst group": rate[here > 0].min()} if here.any() else {}
        means = {name: (w * rate).sum() / w.sum() for name, w in weights.items() if w.any()}
        return worst | means | {name: rate[g] for g, name in enumerate(self.groups) if here[g]}


def still_named(before: Tensor, after: Tensor, pairs: Tensor) -> float:
    """The share, in [0, 1], of named classes that a network still names when all their objects are gone.

    before: bool (N, C), which classes the network names in each image; after: bool (M, C), in each image without the
    objects of one class; pairs: int64 (M, 2), the image and the class, as of `datasets.Without`. Pairs that were not
    named before do not count; nan if none was.

    Notes: EPG says where a map lies, this whether the answer needs the object. It is 0 for a network that looks at
    objects alone. Xiao et al. (Noise or Signal, ICLR 2021) remove objects to show what a background alone tells.
    """
    named = before[*pairs.T]
    return after.gather(1, pairs[:, 1:])[named].float().mean().item()
