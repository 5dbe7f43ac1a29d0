"""Checks of the exercises of notebook 01."""

import torch

from e2lib import boxes, datasets
from e2lib.course.exercises import Hint, compare


def check_2(dilate):
    size, name = (100, 200), "a dilated box in the middle"
    middle = torch.tensor([[40.0, 50, 60, 54], [30, 40, 50, 60]])
    twice = "that is twice too much: a box that grows by a half grows by a quarter on each side."
    right, wide = (boxes.dilate(middle, fraction, size) for fraction in (0.5, 1.0))
    compare(name, dilate(middle, 0.5, size), right, (wide, twice))
    corner = torch.tensor([[150.0, 2, 198, 98]])
    found = dilate(corner, 0.25, size)
    if (found < 0).any() or found[0, 2] > 200 or found[0, 3] > 100:
        if torch.allclose(found, boxes.dilate(corner, 0.25, size[::-1])):
            raise Hint("size is (height, width), and x goes with the width.")
        raise Hint(f"the box {corner[0].tolist()} becomes {found[0].tolist()}, which reaches outside the image.")
    compare("a dilated box at the corner", found, boxes.dilate(corner, 0.25, size))
    some = torch.rand(20, 2) * 50
    some = torch.cat([some, some + 1 + torch.rand(20, 2) * 40], 1)
    compare("a random dilated box", dilate(some, 0.1, (90, 70)), boxes.dilate(some, 0.1, (90, 70)))


def check_4(missing):
    birds = datasets.load("birds", None, "train", 64, 40, seed=3, correlation=1.0)
    for chosen in ([*range(40)], (birds.group_of == 0).nonzero()[0], [5], birds.group_of.argsort()):
        part = datasets.Selection(birds, chosen)
        there = [name for g, name in enumerate(part.groups) if g in part.group_of]
        found = missing(part)
        if found is None or not all(isinstance(name, str) for name in found):
            raise Hint(f"missing returns {found}; it should be a list of names.")
        if sorted(found) == sorted(there):
            raise Hint("these are the groups that are there.")
        if sorted(found) != sorted({*part.groups} - {*there}):
            raise Hint(f"for {', '.join(there)} missing returns {found}. Does it look at all the images?")


def check_5(few_shot):
    labels = torch.arange(120) % 4 + 3
    labels = labels[torch.randperm(120, generator=torch.Generator().manual_seed(1))]
    found = few_shot(labels, 5, 0)
    if not isinstance(found, torch.Tensor) or found.shape != (20,) or found.dtype != torch.int64:
        shape = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise Hint(f"for 4 classes and 5 shots few_shot returns {shape}; it should be 20 int64 positions.")
    counts = [(labels[found] == c).sum().item() for c in labels.unique()]
    if set(counts) != {5}:
        raise Hint(f"with 5 shots the classes come {counts} times. In which order are the positions that you select?")
    if len(found.unique()) < 20:
        raise Hint("one image comes twice.")
    again, other, more = (set(few_shot(labels, *how).tolist()) for how in ((5, 0), (5, 1), (10, 0)))
    found = set(found.tolist())
    if found != again:
        raise Hint("the same seed gives other images the second time.")
    if found == other:
        raise Hint("every seed gives the same images.")
    if not found <= more:
        raise Hint("the choices are not nested: 5 shots are not part of 10. Does the random order depend on shots?")
