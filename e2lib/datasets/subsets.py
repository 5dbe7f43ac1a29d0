"""Data sets made from others: fewer images, boxes for some of them, wider boxes, other transforms."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from e2lib.boxes import dilate
from e2lib.datasets.sample import Sample, Samples, Transform, check_transform, check_value
from e2lib.disk import digest


class Selection(Samples):
    """The images of a data set at `indices`, int (n,); `annotated`, bool (n,), says whose boxes may be used."""

    def __init__(self, dataset: Samples, indices: np.ndarray, annotated: np.ndarray | None = None):
        if getattr(dataset, "annotated", None) is not None:
            annotated = dataset.annotated[indices] & (True if annotated is None else annotated)
        self.dataset, self.indices, self.annotated = dataset, indices, annotated
        self.classes, self.groups, self.multilabel = dataset.classes, dataset.groups, dataset.multilabel

    transform = property(lambda self: self.dataset.transform)
    group_of = property(lambda self: self.dataset.group_of[self.indices])

    @property
    def without(self) -> Callable[[int, int], Sample]:
        """The data set's method of this name, such as that of Scenes; AttributeError if it has none."""
        of_whole = self.dataset.without
        return lambda i, label: of_whole(int(self.indices[i]), label)

    @cached_property
    def targets(self) -> Tensor:
        """Those of Samples, without building those of the whole data set."""
        shown = [np.isin(self.indices, self.dataset.images_with(c)) for c in range(len(self.classes))]
        return torch.from_numpy(np.stack(shown, 1).astype(np.uint8))

    def fingerprint(self) -> str:
        return digest([self.dataset.fingerprint(), self.indices, self.annotated])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Sample:
        sample = self.dataset[int(self.indices[i])]
        return sample if self.annotated is None or self.annotated[i] else replace(sample, annotated=False)


def random_order(length: int, seed: int) -> np.ndarray:
    """Random order of 0 to length - 1, the same for ever: NumPy keeps the stream of raw PCG64 numbers."""
    return np.argsort(np.random.PCG64(seed).random_raw(length), kind="stable")


def at_most(dataset: Samples, length: int, seed: int = 0) -> Samples:
    """The data set, or `length` of its images at random where it has more. Raises ValueError for a length below 1."""
    check_value(length >= 1, "length", length, "at least 1")
    return Selection(dataset, np.sort(random_order(len(dataset), seed)[:length])) if length < len(dataset) else dataset


def few_shot(dataset: Samples, per_class: int, seed: int = 0) -> Selection:
    """For each class the first `per_class` images that show it, in a random order; 10 shots include the 5 shots.

    Multi-label images count for every class in them. ValueError names a class with fewer images.
    """
    check_value(per_class >= 1, "per_class", per_class, "at least 1")
    rank, chosen = np.argsort(random_order(len(dataset), seed)), []  # each image's place in the random order
    for c, name in enumerate(dataset.classes):
        having = dataset.images_with(c)
        if len(having) < per_class:
            raise ValueError(f"class {name} has {len(having)} images; {per_class} per class were asked for")
        chosen.append(having[np.argsort(rank[having])[:per_class]])
    return Selection(dataset, np.unique(np.concatenate(chosen)))


def with_boxes(dataset: Samples, fraction: float, seed: int = 0, repeats: int = 1) -> Selection:
    """All images. round(fraction * len), at least 1, are `annotated` and come `repeats` times; 10 % include 1 %."""
    check_value(0 < fraction <= 1, "box fraction", fraction, "in (0, 1]: 0.01 keeps the boxes of 1 % of the images")
    check_value(repeats >= 1, "repeats", repeats, "at least 1")
    chosen = np.sort(random_order(len(dataset), seed)[: max(1, round(fraction * len(dataset)))])
    indices = np.concatenate([np.arange(len(dataset)), np.repeat(chosen, repeats - 1)])
    return Selection(dataset, indices, np.isin(indices, chosen))


def with_transform(dataset: Samples, transform: Transform) -> Samples:
    """The data set with another transform. ValueError for a data set without one."""
    if isinstance(dataset, Selection):
        return Selection(with_transform(dataset.dataset, transform), dataset.indices, dataset.annotated)
    if not hasattr(dataset, "transform"):
        raise ValueError(f"dataset is a {type(dataset).__name__}, which has no transform to replace: see Samples")
    result = copy.copy(dataset)
    result.transform = check_transform(transform)
    return result


@dataclass
class _Dilate:
    fraction: float
    then: Transform

    def __call__(self, sample: Sample) -> Sample:
        sample = replace(sample, boxes=dilate(sample.boxes, self.fraction, sample.boxes.canvas_size))
        return sample if self.then is None else self.then(sample)


def dilated(dataset: Samples, fraction: float) -> Samples:
    """The data set with boxes dilated by `fraction` (0.1, 0.25, 0.5; see `boxes.dilate`), before its transform."""
    check_value(0 < fraction <= 1, "dilation", fraction, "in (0, 1]: 0.1 moves each side out by 10 %")
    return with_transform(dataset, _Dilate(fraction, getattr(dataset, "transform", None)))
