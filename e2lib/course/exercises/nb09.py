"""Checks of the exercises of notebook 09."""

import torch

from e2lib.course.claims import load
from e2lib.course.exercises import Hint, compare


def check_2(alike):
    def cosine(first, second):
        return torch.cosine_similarity(first.flatten(1), second.flatten(1), dim=1)

    wide = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    first = wide[..., :16, :16]
    round_ = "the other way round: what was at (y + s, x + s) of the first window, where is it in the moved one?"
    for s in (4, 1, 15):
        moved = wide[..., s : s + 16, s : s + 16]
        mistakes = [
            (cosine(first, moved), "compare only the pixels that both windows show: cut both maps."),
            (cosine(moved[..., s:, s:], first[..., : 16 - s, : 16 - s]), round_),
        ]
        name = f"the cosine of maps that move with the image, s = {s},"
        compare(name, alike(first, moved, s), torch.ones(3), *mistakes)
    if alike(first, first, 0).sub(1).abs().max() > 1e-4:
        raise Hint("for s = 0 the two windows are the same: compare all of them.")
    noise = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    right = cosine(first[..., 3:, 3:], noise[..., :13, :13])
    compare("the cosine of other maps", alike(first, noise, 3), right)


def check_5(always):
    table = load()
    names = ["test_convnext", "mobilenetv3_small_050", "shufflenet_v2_x0_5", "test_efficientnet"]
    part = table[(table.run == "09") & table.task.isin(names) & (table.method == "KD + e²KD")]
    gains = part.groupby("task")["gain over KD, accuracy"].agg(["min", "mean", "max"])
    if not isinstance(always, set) or not always <= set(names):
        raise Hint(f"always should be a set of some of the names {', '.join(names)}; it may be empty: set().")
    right = set(gains[gains["min"] > 0].index)
    for name in sorted(always - right):
        where = "gains in some seed, but not in each" if gains.loc[name, "max"] > 0 else "does not gain in any seed"
        raise Hint(f"{name} {where}.")
    if right - always:
        raise Hint("one that gains in each seed is missing.")
    means = ", ".join(f"{name} {row['mean']:+.1f}" for name, row in gains.iterrows())
    return f"mean gains over the seeds: {means}."
