"""Exercises of notebook 11."""

import pandas as pd
import torch

from e2lib.course import claims
from e2lib.course.exercises import Hint, compare, exercise


@exercise(
    "11.1",
    "A 95 % interval",
    "Write a function, ten minutes",
    text="""
    Write `interval(values)`: a tensor of three numbers, one a seed, to (low, high), the 95 % confidence interval of
    their mean by Student's t: mean ± 4.303 · s / √n, s the standard deviation of a sample (with n − 1), n = 3. """,
    setup="from e2lib.course import exercises",
    start="""
    def interval(values):
        ...


    """,
    solution="""
    def interval(values):
        half = 4.303 * values.std() / len(values) ** 0.5
        return values.mean() - half, values.mean() + half


    """,
    answer="interval",
    why="""
    4.303 is for three seeds; for very many it would be 1.96. With so few, the spread itself is hardly known, and
    that makes the interval wide: 2.5 standard deviations to either side.
    """,
    mistakes=(
        ("4.303", "1.96", "1.96"),
        ("values.std()", "values.std(correction=0)", "n − 1"),
        (" / len(values) ** 0.5", "", "√n"),
        ("return values.mean() - half, values.mean() + half", "return half", "two numbers"),
    ),
)
def confidence(interval):
    for seed in range(3):
        values = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double() * 2 + 5
        found = interval(values)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Hint("two numbers are wanted, (low, high).")
        s, low = values.std(), claims.interval(pd.Series(values.tolist()))[0]
        compare(
            "low",
            found[0],
            low,
            (values.mean() - 1.96 * s / 3**0.5, "1.96 is for very many seeds; there are three."),
            (
                values.mean() - 4.303 * values.std(correction=0) / 3**0.5,
                "the standard deviation of a sample divides by n − 1.",
            ),
            (values.mean() - 4.303 * s, "divide the standard deviation by √n."),
            (2 * values.mean() - low, "that is the upper end: low comes first."),
            within=1e-3,
        )
        compare("high", found[1], 2 * values.mean() - low, within=1e-3)


@exercise(
    "11.2",
    "The verdict",
    "Write a function, five minutes",
    text="""
    Write `verdict(low, high, above)`: the text `"holds"`, `"does not hold"` or `"undecided"`, by the rule of this
    notebook, for an interval and the bound above which the number should be.
    """,
    setup="from e2lib.course import exercises",
    start="""
    def verdict(low, high, above):
        ...


    """,
    solution="""
    def verdict(low, high, above):
        if low > above:
            return "holds"
        return "does not hold" if high <= above else "undecided"


    """,
    answer="verdict",
    why="""
    The mean does not enter: an interval around a fine mean that reaches below the bound decides nothing.
    """,
    mistakes=(
        ("if low > above:", "if (low + high) / 2 > above:", "mean"),
        ('"does not hold" if high <= above else "undecided"', '"does not hold"', "undecided"),
        ("if low > above:", "if low > 0:", "bound"),
        ("if low > above:", "if high > above:", "whole interval"),
        ('"undecided"', '"unclear"', "three texts"),
    ),
)
def verdict_rule(verdict):
    cases = ((1, 3, 0), (-3, -1, 0), (-1, 3, 0), (-0.5, 2, -1), (1, 3, 2), (0.5, 0.9, 1), (-2, 1, 0))
    for low, high, above in cases:
        found, right = verdict(low, high, above), claims.verdict(low, high, above)
        where = f"for the interval {low} to {high} and the bound {above} it says {found!r}"
        if found not in (claims.HOLDS, claims.NOT, claims.OPEN):
            raise Hint(f"{where}, which is none of the three texts.")
        if found == right:
            continue
        if above:
            raise Hint(f"{where}. What is the bound there?")
        if right == claims.OPEN and found == claims.HOLDS:
            raise Hint(f"{where}; but the whole interval has to be above the bound, not its mean or one end.")
        if right == claims.OPEN:
            raise Hint(f"{where}; but part of the interval is above the bound: that is undecided.")
        raise Hint(f"{where}. Look at the rule again.")


@exercise(
    "11.3",
    "How many seeds?",
    "Compute by hand, five minutes",
    text="""
    A gain of 2 points has a standard deviation of 2 points over seeds, however many there are. From how many seeds
    on does the 95 % interval lie above 0? `claims.T` has the factors of Student's t by the number of seeds. And how
    many would it seem to need with 1.96 for all of them?
    """,
    setup="""
    from e2lib.course import exercises
    from e2lib.course.claims import T
    """,
    start="""
    seeds = ...
    seemingly = ...
    """,
    solution="""
    seeds = min(n for n in T if 2 - T[n] * 2 / n**0.5 > 0)
    seemingly = min(n for n in T if 2 - 1.96 * 2 / n**0.5 > 0)
    """,
    answer="seeds, seemingly",
    why="""
    Seven, not four. With three seeds a gain has to be 2.5 times its spread: what is decided with three is large.
    (And the spread of three is itself known badly.)
    """,
    mistakes=(
        ("T[n] * 2 / n**0.5", "1.96 * 2 / n**0.5", "1.96"),
        ("T[n] * 2 / n**0.5 > 0", "T[n] * 2 / n**0.5 > -0.1", "just below 0"),
        ("T[n] * 2 / n**0.5", "T[n] * 2 / n", "√n"),
    ),
)
def how_many_seeds(seeds, seemingly):
    compare(
        "seeds",
        seeds,
        7,
        (4, "4 comes of 1.96 for every number of seeds, and also of n in place of √n."),
        (6, "with six the interval still begins just below 0."),
    )
    compare("seemingly", seemingly, 4, (7, "that is with Student's t."))


@exercise(
    "11.4",
    "Raise the bar",
    "Read results.csv, ten minutes",
    text="""
    How many of the claims hold, and how many would hold if every bound were three points higher? A claim's fields
    are fixed; `claim.model_copy(update={"above": …})` gives one with another bound, and `judge(claims, table)` a
    row for each claim and data set, with the claim's `verdict`.
    """,
    setup="""
    from e2lib.course import exercises
    from e2lib.course.claims import judge, load, read

    claims, table = read(), load()
    """,
    start="""
    now = ...
    higher = ...
    """,
    solution="""
    raised = [c.model_copy(update={"above": c.above + 3}) for c in claims]
    first, second = (judge(part, table).drop_duplicates("claim") for part in (claims, raised))
    now, higher = ((found.verdict == "holds").sum().item() for found in (first, second))
    """,
    answer="now, higher",
    why="""
    "Holds" is said of a bound. Above 0 is a weak claim and is easier to show; a reader who needs three points more
    gets another list.
    """,
    mistakes=(
        ('.drop_duplicates("claim")', "", "rows"),
        ("c.above + 3", "3.0", "its own bound"),
        ("c.above + 3", "c.above - 3", "lower"),
        ("(claims, raised)", "(claims, claims)", "not changed"),
    ),
)
def raise_the_bar(now, higher):
    found, table = claims.read(), claims.load()

    def count(change, once=True):
        rows = claims.judge([c.model_copy(update={"above": change(c.above)}) for c in found], table)
        rows = rows.drop_duplicates("claim") if once else rows
        return (rows.verdict == claims.HOLDS).sum().item()

    rows = "count claims, not rows: one that is tested on two data sets has two."
    compare("now", now, count(lambda b: b), (count(lambda b: b, once=False), rows))
    compare(
        "higher",
        higher,
        count(lambda b: b + 3),
        (count(lambda b: b + 3, once=False), rows),
        (count(lambda b: b), "that is the number of now: the bounds are not changed."),
        (count(lambda b: 3.0), "some claims have another bound than 0: each is raised from its own bound."),
        (count(lambda b: b - 3), "these bounds are lower, not higher."),
    )


@exercise(
    "11.5",
    "What chance does to a long list",
    "Compute by hand, three minutes",
    text="""
    There are 55 intervals of 95 %. If each missed its true value by chance alone, independently of the others: how
    many miss, on average, and how likely is it, in per cent, that at least one does?
    """,
    setup="from e2lib.course import exercises",
    start="""
    missing = ...
    at_least_one = ...
    """,
    solution="""
    missing = 55 * 0.05
    at_least_one = 100 * (1 - 0.95**55)
    """,
    answer="missing, at_least_one",
    why="""
    Nearly three, and almost surely one at least. A miss turns a verdict only where the bound lies between; and a
    list like this should be read as a whole, not for its single most surprising line.
    """,
    mistakes=(
        ("55 * 0.05", "55 * 0.95", "hit"),
        ("100 * (1 - 0.95**55)", "100 * 0.95**55", "none"),
        ("100 * (1 - 0.95**55)", "100 * 55 * 0.05", "above 100"),
        ("100 * (1 - 0.95**55)", "5", "one interval"),
    ),
)
def chance(missing, at_least_one):
    compare("missing", missing, 2.75, (52.25, "that many hit."), within=0.01)
    if isinstance(at_least_one, int | float) and at_least_one > 100:
        raise Hint("a probability above 100 %? Probabilities of events that can happen together do not add up.")
    right = 100 * (1 - 0.95**55)
    compare(
        "at_least_one",
        at_least_one,
        right,
        (100 - right, "that is the probability that none misses."),
        (right / 100, "per cent are wanted."),
        (5.0, "that is for one interval."),
        within=0.1,
    )


MORE = """
Put your own bound into a copy of claims.yaml (say, `above: 5.1` for the gain with few images), give its path as
`claims` in the parameters cell, and run the notebook again. Which verdicts change?
"""
