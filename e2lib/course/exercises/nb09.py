"""Exercises of notebook 09."""

import torch
import torch.nn.functional as F

from e2lib.course.claims import load
from e2lib.course.exercises import Hint, compare, exercise


@exercise(
    "09.1",
    "Patches and cells",
    "Compute by hand, three minutes",
    text="""
    An image has 96 × 96 pixels. How many patches of 16 × 16 does a ViT cut it into? And how many cells has a
    Grad-CAM map at Mid3, where an image of 64 pixels has 4 × 4?
    """,
    setup="from e2lib.course import exercises",
    start="""
    patches = ...
    cells = ...
    """,
    solution="""
    patches = (96 // 16) ** 2
    cells = (96 // (64 // 4)) ** 2
    """,
    answer="patches, cells",
    why="""
    Both are 36 here, one cell for 16 × 16 pixels. W(x) has a weight for every pixel and channel, whatever the
    network cuts the image into: that is why maps of two architectures can be compared there.
    """,
    mistakes=(("(96 // 16) ** 2", "96 // 16", "side"), ("(96 // (64 // 4)) ** 2", "4 * 4", "grows")),
)
def patches_and_cells(patches, cells):
    compare("patches", patches, 36, (6, "that is one side of the grid."))
    compare(
        "cells",
        cells,
        36,
        (16, "the grid grows with the image: a cell stays as many pixels wide."),
        (6, "that is one side."),
    )


@exercise(
    "09.2",
    "Do explanations move along?",
    "Write a function, ten minutes",
    text="""
    A window of an image was moved down by `s` and right by `s` pixels. Write `alike(first, moved, s)`: maps of the
    first and of the moved window (B, K, H, W), 0 ≤ s < H, to the cosine (B,) of the two where both windows show the
    same pixels. If the explanation moves exactly with the image it is 1.
    """,
    setup="""
    import torch.nn.functional as F

    from e2lib.course import exercises
    """,
    start="""
    def alike(first, moved, s):
        height, width = first.shape[2:]
        ...


    """,
    solution="""
    def alike(first, moved, s):
        height, width = first.shape[2:]
        here, there = first[..., s:, s:], moved[..., : height - s, : width - s]
        return F.cosine_similarity(here.flatten(1), there.flatten(1), dim=1)


    """,
    answer="alike",
    why="""
    What was at (y + s, x + s) of the first window is at (y, x) of the moved one. (With `[..., :-s]` for the second
    cut, s = 0 would leave nothing.)
    """,
    mistakes=(
        ("first[..., s:, s:], moved[..., : height - s, : width - s]", "first, moved", "both windows show"),
        (
            "first[..., s:, s:], moved[..., : height - s, : width - s]",
            "moved[..., s:, s:], first[..., : height - s, : width - s]",
            "other way",
        ),
        ("moved[..., : height - s, : width - s]", "moved[..., :-s, :-s] if s else 0 * moved", "s = 0"),
        (".flatten(1)", "", "shape"),
    ),
)
def moves_along(alike):
    wide = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    first = wide[..., :16, :16]
    for s in (4, 1, 15):
        moved = wide[..., s : s + 16, s : s + 16]
        found = alike(first, moved, s)
        compare(
            f"the cosine of maps that move with the image, s = {s},",
            found,
            torch.ones(3),
            (
                F.cosine_similarity(first.flatten(1), moved.flatten(1), dim=1),
                "compare only the pixels that both windows show: cut both maps.",
            ),
            (
                F.cosine_similarity(moved[..., s:, s:].flatten(1), first[..., : 16 - s, : 16 - s].flatten(1), dim=1),
                "the other way round: what was at (y + s, x + s) of the first window, where is it in the moved one?",
            ),
        )
    if alike(first, first, 0).sub(1).abs().max() > 1e-4:
        raise Hint("for s = 0 the two windows are the same, and all of them has to be compared.")
    noise = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    right = F.cosine_similarity(first[..., 3:, 3:].flatten(1), noise[..., :13, :13].flatten(1), dim=1)
    compare("the cosine of other maps", alike(first, noise, 3), right)


@exercise(
    "09.3",
    "Explaining in each fourth step",
    "Compute by hand, three minutes",
    text="""
    With `every=4` and λ = 5 the explanation term is there in one step of four, with the weight λ. Which constant
    weight, in every step, has the same mean gradient? Which λ would have the mean of λ = 5 in every step?
    """,
    setup="from e2lib.course import exercises",
    start="""
    same_as = ...
    instead = ...
    """,
    solution="""
    same_as = 5 / 4
    instead = 5 * 4
    """,
    answer="same_as, instead",
    why="""
    One explains less often to save time: an explained step costs up to twice a plain one. To compare with λ = 5 in
    every step one has to decide what is to be the same, λ or the mean.
    """,
    mistakes=(("5 / 4", "5", "three of four"), ("5 * 4", "5 / 4", "larger")),
)
def each_fourth_step(same_as, instead):
    compare(
        "same_as",
        same_as,
        1.25,
        (5.0, "in three of four steps there is no such term."),
        (20.0, "that is the other one."),
    )
    compare("instead", instead, 20.0, (1.25, "it has to be larger, not smaller."), (5.0, "then the mean is smaller."))


@exercise(
    "09.4",
    "Chance, and what may be chance",
    "Compute by hand, five minutes",
    text="""
    A student of five classes is right on 33 % of 600 test images. What is chance, in per cent? How far, in points
    of per cent, does the 95 % interval of its accuracy reach to either side, by 1.96 standard errors √(p (1 − p) /
    n)?
    """,
    setup="from e2lib.course import exercises",
    start="""
    chance = ...
    half_width = ...
    """,
    solution="""
    chance = 100 / 5
    half_width = 100 * 1.96 * (0.33 * 0.67 / 600) ** 0.5
    """,
    answer="chance, half_width",
    why="""
    Nearly four points, which is why the text holds smaller differences of one seed for possible chance. It is
    clearly above chance. (Two students that are tested on the same images can be told apart a little better than
    that.)
    """,
    mistakes=(
        ("100 * 1.96", "1.96", "points"),
        ("100 * 1.96", "100", "1.96"),
        ("** 0.5", "", "root"),
        ("100 / 5", "50", "five classes"),
    ),
)
def may_be_chance(chance, half_width):
    right = 196 * (0.33 * 0.67 / 600) ** 0.5
    compare("chance", chance, 20.0, (50.0, "there are five classes, not two."), (0.2, "per cent are wanted."))
    compare(
        "half_width",
        half_width,
        right,
        (right / 100, "points of per cent are wanted."),
        (right / 1.96, "that is one standard error; the interval has 1.96 of them to either side."),
        (2 * right, "to either side, not in all."),
        (196 * 0.33 * 0.67 / 600, "the standard error is a square root."),
        within=0.01,
    )


@exercise(
    "09.5",
    "Which families gain?",
    "Read results.csv, ten minutes",
    text="""
    In run 09 the rows of the four convolutional students have their network's name in column `task`, and their gain
    in column `gain over KD, accuracy`. Which of the four, if any, gain accuracy by e²KD *in each of the seeds*? Put
    their names into a set.
    """,
    setup="""
    from e2lib.course import exercises
    from e2lib.course.claims import load

    table = load()
    names = ["test_convnext", "mobilenetv3_small_050", "shufflenet_v2_x0_5", "test_efficientnet"]
    part = table[(table.run == "09") & table.task.isin(names) & (table.method == "KD + e²KD")]
    """,
    start="always = ...",
    solution="""
    lowest = part.groupby("task")["gain over KD, accuracy"].min()
    always = set(lowest[lowest > 0].index)
    """,
    answer="always",
    why="""
    A mean above zero can be one seed's. "In each of the seeds" is a harsher question, and easy to ask of three.
    """,
    mistakes=(
        (".min()", ".max()", "in some seed"),
        ("lowest[lowest > 0]", "lowest", "not in each"),
        ("set(lowest[lowest > 0].index)", "sorted(lowest[lowest > 0].index)", "a set"),
    ),
)
def families(always):
    table = load()
    names = ["test_convnext", "mobilenetv3_small_050", "shufflenet_v2_x0_5", "test_efficientnet"]
    part = table[(table.run == "09") & table.task.isin(names) & (table.method == "KD + e²KD")]
    gains = part.groupby("task")["gain over KD, accuracy"].agg(["min", "mean", "max"])
    if not isinstance(always, set) or not always <= set(names):
        raise Hint(f"a set of some of the names {', '.join(names)} is wanted; it may be empty: set().")
    right = set(gains[gains["min"] > 0].index)
    for name in sorted(always - right):
        where = "gains in some seed, but not in each" if gains.loc[name, "max"] > 0 else "does not gain in any seed"
        raise Hint(f"{name} {where}.")
    if right - always:
        raise Hint("one that gains in each seed is missing.")
    means = ", ".join(f"{name} {row['mean']:+.1f}" for name, row in gains.iterrows())
    return f"mean gains over the seeds: {means}."


MORE = """
Predict, then run the notebook with another parameter: `explained={"method": "weights", "at": "Input", "weight":
5.0, "every": 4}`: what is left of the gain if only each fourth step explains?
"""
