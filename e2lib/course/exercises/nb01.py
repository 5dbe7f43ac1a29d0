"""Exercises of notebook 01."""

import numpy as np
import torch

from e2lib import boxes, datasets
from e2lib.course.exercises import Hint, compare, exercise


@exercise(
    "01.1",
    "The pixels of a box",
    "Compute by hand, two minutes",
    text="""
    An image is 100 pixels wide and 50 high. How many pixels does the mask of the box (10, 20, 40, 30) hold, and what
    share of the image is that, in per cent?
    """,
    setup="from e2lib.course import exercises",
    start="""
    pixels = ...
    share = ...
    """,
    solution="""
    pixels = (40 - 10) * (30 - 20)
    share = 100 * pixels / (100 * 50)
    """,
    answer="pixels, share",
    why="""
    Boxes are half-open: from x₁ up to but not including x₂, so the width is x₂ − x₁, with nothing to add.
    """,
    mistakes=(("(40 - 10) * (30 - 20)", "31 * 11", "half-open"), ("100 * pixels", "pixels", "in per cent")),
)
def pixels_of_a_box(pixels, share):
    compare("pixels", pixels, 300, (31 * 11, "boxes are half-open: x₂ and y₂ are not part of them any more."))
    compare("share", share, 6.0, (0.06, "the share is wanted in per cent."))


@exercise(
    "01.2",
    "Dilate a box",
    "Write a function, five minutes",
    text="""
    Write `dilate(boxes, fraction, size)`: boxes (N, 4) float, `fraction` 0.5 for boxes half as wide and half as high
    again, `size` = (height, width) of the image. Each box keeps its centre, and is cut off at the image's borders.
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    """,
    start="""
    def dilate(boxes, fraction, size):
        x1, y1, x2, y2 = boxes.unbind(1)
        ...


    """,
    solution="""
    def dilate(boxes, fraction, size):
        x1, y1, x2, y2 = boxes.unbind(1)
        dx, dy = (x2 - x1) * fraction / 2, (y2 - y1) * fraction / 2
        height, width = size
        x1, x2 = (x1 - dx).clamp(0, width), (x2 + dx).clamp(0, width)
        y1, y2 = (y1 - dy).clamp(0, height), (y2 + dy).clamp(0, height)
        return torch.stack([x1, y1, x2, y2], 1)


    """,
    answer="dilate",
    why="""
    Half of what is added comes on each side. `e2lib.boxes.dilate` is this function.
    """,
    mistakes=(
        ("fraction / 2, (y2 - y1) * fraction / 2", "fraction, (y2 - y1) * fraction", "twice too much"),
        (".clamp(0, width)", "", "outside the image"),
        (".clamp(0, height)", "", "outside the image"),
        ("height, width = size", "width, height = size", "(height, width)"),
        ("        return torch.stack([x1, y1, x2, y2], 1)".strip(), "torch.stack([x1, y1, x2, y2], 1)", "None"),
    ),
)
def dilate_a_box(dilate):
    middle = torch.tensor([[40.0, 50, 60, 54], [30, 40, 50, 60]])
    wide = boxes.dilate(middle, 0.5, (100, 200))
    hint = "that is twice too much: a box that grows by a half grows by a quarter on each side."
    compare(
        "a box in the middle, dilated,",
        dilate(middle, 0.5, (100, 200)),
        wide,
        (boxes.dilate(middle, 1.0, (100, 200)), hint),
    )
    corner = torch.tensor([[150.0, 2, 198, 98]])
    found, right = dilate(corner, 0.25, (100, 200)), boxes.dilate(corner, 0.25, (100, 200))
    if (found < 0).any() or found[0, 2] > 200 or found[0, 3] > 100:
        swapped = boxes.dilate(corner, 0.25, (200, 100))
        if torch.allclose(found, swapped):
            raise Hint("size is (height, width), and x goes with the width.")
        raise Hint(f"the box {corner[0].tolist()} becomes {found[0].tolist()}, which reaches outside the image.")
    compare(
        "a box at the corner, dilated,",
        found,
        right,
        (boxes.dilate(corner, 0.25, (200, 100)), "size is (height, width), and x goes with the width."),
    )
    some = torch.rand(20, 2) * 50
    some = torch.cat([some, some + 1 + torch.rand(20, 2) * 40], 1)
    compare("boxes at random, dilated,", dilate(some, 0.1, (90, 70)), boxes.dilate(some, 0.1, (90, 70)))


@exercise(
    "01.3",
    "How much of a wide box is object?",
    "Predict, three minutes",
    text="""
    In the notebook the object fills 45 % of its box. The same boxes are drawn 50 % wider and 50 % higher. How much of
    them is object now, in per cent, if no border cuts them off?
    """,
    setup="from e2lib.course import exercises",
    start="share = ...",
    solution="share = 45 / 1.5**2",
    answer="share",
    why="""
    The area grows by 1.5² = 2.25, the object does not. A loss that asks for attribution all over such a box asks
    for four fifths of it beside the object; notebook 05 shows what comes of that.
    """,
    mistakes=(("1.5**2", "1.5", "width *and* height"), ("1.5**2", "2**2", "quarter on each side")),
)
def wide_box(share):
    compare(
        "share",
        share,
        20.0,
        (30.0, "that is for a box that is only wider: here width *and* height grow."),
        (45 / 4, "a box that grows by 50 % grows by a quarter on each side, not by a half."),
        (0.2, "the share is wanted in per cent."),
        within=0.05,
    )


@exercise(
    "01.4",
    "The groups that training lacks",
    "Write a function, five minutes",
    text="""
    The embedded birds have four groups, whose names are in `dataset.groups`; `dataset[i].group` is an index into
    them. Write `missing(dataset)`: the list of the names of groups of which the data set has no image. Which are
    missing where correlation is 1, and what does that do to a test on images of the same kind?
    """,
    setup="""
    from e2lib import datasets
    from e2lib.course import exercises

    birds = datasets.load("birds", None, "train", 64, 60, correlation=1.0)
    """,
    start="""
    def missing(dataset):
        ...


    print(missing(birds))
    """,
    solution="""
    def missing(dataset):
        there = {dataset[i].group for i in range(len(dataset))}
        return [name for g, name in enumerate(dataset.groups) if g not in there]


    print(missing(birds))
    """,
    answer="missing",
    why="""
    With correlation 1 each bird is at its own place, so two groups are missing, and no test image of the same kind
    can tell whether a network looks at the bird or at the place. (`dataset.group_of` has all groups without making
    an image.)
    """,
    mistakes=(
        ("if g not in there", "if g in there", "those that are there"),
        ("[name for g, name in enumerate(dataset.groups) if g not in there]", "set(range(4)) - there", "names"),
        ("range(len(dataset))", "range(3)", "looks at all of the images"),
    ),
)
def missing_groups(missing):
    birds = datasets.load("birds", None, "train", 64, 40, seed=3, correlation=1.0)
    for chosen in (np.arange(40), (birds.group_of == 0).nonzero()[0], np.array([5]), np.argsort(birds.group_of)):
        part = datasets.Selection(birds, chosen)
        there = [name for g, name in enumerate(part.groups) if g in set(part.group_of.tolist())]
        right = [name for name in part.groups if name not in there]
        found = missing(part)
        if found is None or not all(isinstance(name, str) for name in found):
            raise Hint(f"missing gives {found}; a list of names is wanted.")
        if sorted(found) == sorted(there):
            raise Hint("these are those that are there.")
        if sorted(found) != sorted(right):
            said = f"of a data set with {', '.join(there)} missing gives {found}."
            raise Hint(f"{said} Is it sure that it looks at all of the images?")


@exercise(
    "01.5",
    "A few-shot choice",
    "Write a function, ten minutes",
    text="""
    Write `few_shot(labels, shots, seed)`: labels int64 (N,), one class an image, to int64 (classes · shots,)
    positions in them. Each class is there `shots` times, no image twice, chosen at random by `seed` alone; and
    choices are nested: those for 5 shots are part of those for 10.
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    """,
    start="""
    def few_shot(labels, shots, seed):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        ...


    """,
    solution="""
    def few_shot(labels, shots, seed):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        chosen = [order[labels[order] == c][:shots] for c in labels.unique()]
        return torch.cat(chosen)


    """,
    answer="few_shot",
    why="""
    One random order of all images, and of each class the first ones in it: more shots only take more of the same
    order, so that choices are nested. `e2lib.datasets.few_shot` does this.
    """,
    mistakes=(
        ("manual_seed(seed)", "manual_seed(0)", "same images with every seed"),
        (", generator=torch.Generator().manual_seed(seed)", "", "the same seed gives"),
        ("manual_seed(seed)", "manual_seed(seed + shots)", "nested"),
        ("order[labels[order] == c]", "order[labels == c]", "times"),
        ("[:shots]", "[:1]", "positions are wanted"),
    ),
)
def few_shot_choice(few_shot):
    labels = torch.arange(120) % 4 + 3
    labels = labels[torch.randperm(120, generator=torch.Generator().manual_seed(1))]
    found = few_shot(labels, 5, 0)
    if not isinstance(found, torch.Tensor) or found.shape != (20,) or found.dtype != torch.int64:
        shape = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise Hint(f"for 4 classes and 5 shots few_shot gives {shape}; 20 int64 positions are wanted.")
    counts = [(labels[found] == c).sum().item() for c in labels.unique()]
    if set(counts) != {5}:
        raise Hint(f"with 5 shots the classes are there {counts} times. Positions in which order do you select?")
    if len(found.unique()) < 20:
        raise Hint("an image comes twice.")
    if set(found.tolist()) != set(few_shot(labels, 5, 0).tolist()):
        raise Hint("the same seed gives other images a second time.")
    if set(found.tolist()) == set(few_shot(labels, 5, 1).tolist()):
        raise Hint("these are the same images with every seed.")
    if not set(found.tolist()) <= set(few_shot(labels, 10, 0).tolist()):
        raise Hint("the choices are not nested: 5 shots are no part of 10. Does the random order depend on shots?")


MORE = """
Change `seed` in the parameters cell, and run the notebook again: which numbers move, and which do not?
"""
