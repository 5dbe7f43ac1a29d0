"""Checks of the exercises of notebook 11."""

import pandas as pd
import torch

from e2lib.course import claims
from e2lib.course.exercises import Hint, compare


def check_1(interval):
    for seed in range(3):
        values = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double() * 2 + 5
        found = interval(values)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Hint("interval should return two numbers, (low, high).")
        mean, s, of_all = values.mean(), values.std(), values.std(correction=0)
        low, high = claims.interval(pd.Series(values.tolist()))
        mistakes = [
            (mean - 1.96 * s / 3**0.5, "1.96 is for very many seeds; there are three."),
            (mean - 4.303 * of_all / 3**0.5, "the standard deviation of a sample divides by n − 1."),
            (mean - 4.303 * s, "divide the standard deviation by √n."),
            (high, "that is the upper end: low comes first."),
        ]
        compare("low", found[0], low, *mistakes, within=1e-3)
        compare("high", found[1], high, within=1e-3)


def check_2(verdict):
    cases = ((1, 3, 0), (-3, -1, 0), (-1, 3, 0), (-0.5, 2, -1), (1, 3, 2), (0.5, 0.9, 1), (-2, 1, 0))
    for low, high, above in cases:
        found, right = verdict(low, high, above), claims.verdict(low, high, above)
        where = f"verdict returns {found!r} for the interval {low} to {high} and the bound {above}"
        if found not in (claims.HOLDS, claims.NOT, claims.OPEN):
            raise Hint(f"{where}, which is none of the three texts.")
        if found == right:
            continue
        if above:
            raise Hint(f"{where}. What is the bound there?")
        if right == claims.OPEN and found == claims.HOLDS:
            raise Hint(f"{where}, but the whole interval has to be above the bound, not its mean or one end.")
        if right == claims.OPEN:
            raise Hint(f"{where}, but part of the interval is above the bound: that is undecided.")
        raise Hint(f"{where}. Look at the rule again.")


def check_4(now, higher):
    found, table = claims.read(), claims.load()

    def count(change, once=True):
        rows = claims.judge([c.model_copy(update={"above": change(c.above)}) for c in found], table)
        return ((rows.drop_duplicates("claim") if once else rows).verdict == claims.HOLDS).sum().item()

    rows = "count claims, not rows: a claim that is tested on two data sets has two."
    compare("now", now, count(lambda b: b), (count(lambda b: b, once=False), rows))
    mistakes = [
        (count(lambda b: b + 3, once=False), rows),
        (count(lambda b: b), "that is the number of now: the bounds are not changed."),
        (count(lambda b: 3.0), "some claims have another bound than 0: raise each from its own bound."),
        (count(lambda b: b - 3), "these bounds are lower, not higher."),
    ]
    compare("higher", higher, count(lambda b: b + 3), *mistakes)
