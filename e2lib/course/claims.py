"""The two papers' claims beside our numbers: one verdict per claim, by the rule in notebooks/claims.yaml."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from e2lib.course import results
from e2lib.course.run import FILES, mapping

FOLDER = Path(__file__).parents[2] / "notebooks"  # of the repository
HOLDS, NOT, OPEN, MIXED = "holds", "does not hold", "undecided", "mixed"
# Student's t: the factor of 95 % confidence intervals, by the number of seeds.
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


class Ours(BaseModel, extra="forbid", frozen=True):
    """One number per seed: a metric in the row of results.csv that `where` describes, minus that of another row."""

    run: str  # as in sweeps/results.yaml
    where: dict[str, str | float]  # column or setting -> value
    value: str  # a metric, in per cent or points
    minus: dict[str, str | float] | None = None  # where the other row differs


class Claim(BaseModel, extra="forbid", frozen=True):
    """A claim of a paper: a number should be above a bound."""

    claim: str
    paper: Literal["guidance", "e²KD"]
    theme: str  # a figure of its own
    headline: list[str] = []  # names of data sets whose rows stand first, large
    above: float = 0.0  # points
    paper_says: float | None  # the paper's number in the setting most like ours
    setting: str  # which setting that is
    reproductions: dict[str, float] = {}  # by whom -> points
    ours: Annotated[dict[str, Ours], Field(min_length=1)]  # embedded, or the name of real data


def read(path: str | Path | None = None) -> list[Claim]:
    """The claims in a YAML file, which holds a list; None means the file of the repository.

    ValueError names the file, the number of the claim, the field and what is wrong.
    """
    path = path or FOLDER / FILES["claims"]
    claims = {}
    for number, entry in enumerate(mapping(Path(path), list), 1):
        try:
            claim = Claim.model_validate(entry)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"{path}, claim {number}: {wrong}") from error
        if unknown := [name for name in claim.headline if name not in claim.ours]:
            raise ValueError(f"{path}, claim {number}: headline names {unknown}; choose from {list(claim.ours)}")
        if claims.setdefault(claim.claim, claim) is not claim:
            raise ValueError(f"{path}, claim {number}: there is another claim {claim.claim!r}")
    return [*claims.values()]


def missing(claims: list[Claim], table: pd.DataFrame) -> list[str]:
    """The runs that claims name and that the results do not have."""
    return sorted({ours.run for claim in claims for ours in claim.ours.values()} - {*table.run})


def values(table: pd.DataFrame, ours: Ours) -> pd.Series:
    """One number per seed. ValueError for an unknown column, or unless each seed has one row."""
    first = _rows(table, ours.run, ours.where, ours.value)
    if ours.minus is None:
        return first
    second = _rows(table, ours.run, ours.where | ours.minus, ours.value)
    if list(first.index) != list(second.index):
        raise ValueError(f"run {ours.run}: {ours.where} and {ours.minus} have different seeds")
    return first - second


def _rows(table: pd.DataFrame, run: str, where: dict[str, Any], value: str) -> pd.Series:
    if unknown := [column for column in (*where, value) if column not in table]:
        raise ValueError(f"run {run}: the results have no column {', '.join(map(repr, unknown))}")
    part = table.loc[table.run == run, [*{*where, value, "seed"}]]
    for column, wanted in where.items():
        part = part[part[column] == wanted]
    found = part.set_index("seed")[value].sort_index()
    if found.empty or found.isna().any() or found.index.duplicated().any():
        raise ValueError(f"run {run}: {where} names {len(found)} rows of {value!r}; one per seed is right")
    return found


def interval(numbers: pd.Series) -> tuple[float, float]:
    """The 95 % confidence interval of the mean over seeds, by Student's t. ValueError unless there are 2 to 10."""
    if len(numbers) not in T:
        raise ValueError(f"there are {len(numbers)} seeds; an interval needs 2 to {max(T)}")
    half = T[len(numbers)] * numbers.std() / len(numbers) ** 0.5
    return numbers.mean() - half, numbers.mean() + half


def verdict(low: float, high: float, above: float) -> str:
    """holds: the whole interval is above the bound; does not hold: none of it is; undecided: the bound lies within."""
    return HOLDS if low > above else NOT if high <= above else OPEN


def judge(claims: list[Claim], table: pd.DataFrame) -> pd.DataFrame:
    """One row per claim and data set of ours: mean, interval, seeds, the others' numbers, and two verdicts.

    "here" is the verdict on this data set, "verdict" that on the claim: holds or does not hold if no data set says the
    opposite, mixed if both occur, else undecided. "held" says in how many rows it holds. "revisions" is the text
    of `results.pooled` for the run, or empty. Data sets whose run is `missing` are left out.
    """
    rows, pooled, runs = [], results.pooled(table), {*table.run}
    for claim in claims:
        mine = []
        for name, ours in claim.ours.items():
            if ours.run in runs:
                numbers = values(table, ours)
                low, high = interval(numbers)
                row = claim.model_dump(exclude={"ours"}) | {"data": name, "ours": numbers.mean(), "seeds": len(numbers)}
                row |= {"revisions": pooled.get(ours.run, ""), "headline": name in claim.headline}
                mine.append(row | {"low": low, "high": high, "here": verdict(low, high, claim.above)})
        said = {row["here"] for row in mine} - {OPEN}
        overall = MIXED if len(said) > 1 else said.pop() if said else OPEN
        held = f"{sum(row['here'] == HOLDS for row in mine)} of {len(mine)}"
        rows += [row | {"verdict": overall, "held": held} for row in mine]
    return pd.DataFrame(rows)


def load(path: str | Path | None = None) -> pd.DataFrame:
    """The numbers in a file of `make results`, one row per setting and seed; None means the file of the repository."""
    return results.wide(results.read(path or FOLDER / FILES["results"]))
