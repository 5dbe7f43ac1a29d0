"""What the two papers claim, beside our numbers: a verdict a claim, by a stated rule (notebooks/claims.yaml).

`python -m e2lib.course.claims CLAIMS BEFORE AFTER` names the verdicts that differ between two results.csv, if any do.
"""

import argparse
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e2lib.course import tables
from e2lib.course.runs import FILES, plainly

FOLDER = Path(__file__).parents[2] / "notebooks"  # of the repository
HOLDS, NOT, OPEN, MIXED = "holds", "does not hold", "undecided", "mixed"
# Student's t: the factor of 95 % confidence intervals, by the number of seeds.
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ours(_Model):
    """One number a seed: a metric of results.csv where `where` describes the row, less that of the row `minus`."""

    run: str  # as in presets/results.yaml
    where: dict[str, str | float]  # column, or name of a setting -> value
    value: str  # a metric, in per cent or points
    minus: dict[str, str | float] | None = None  # what differs from `where` in the other row


class Claim(_Model):
    """A claim of a paper as a number that should be above a bound."""

    claim: str
    paper: Literal["guidance", "e²KD"]
    above: float = 0.0  # points
    paper_says: float | None  # the paper's number, in the setting that is most like ours
    setting: str  # which setting that is
    reproductions: dict[str, float] = {}  # by whom -> points
    ours: Annotated[dict[str, Ours], Field(min_length=1)]  # embedded, or the name of real data


def read(path: str | Path | None = None) -> list[Claim]:
    """The claims in a YAML file, which holds a list; None: the repository's.

    ValueError names the file, the claim's number, the field and what is wrong.
    """
    path = path or FOLDER / FILES["claims"]
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, list):
        raise ValueError(f"{path} holds no list of claims")
    claims = []
    for number, entry in enumerate(content, 1):
        try:
            claims.append(Claim.model_validate(entry))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"{path}, claim {number}: {wrong}") from error
        if claims[-1].claim in [other.claim for other in claims[:-1]]:
            raise ValueError(f"{path}, claim {number}: there is another claim {claims[-1].claim!r}")
    return claims


def missing(claims: list[Claim], results: pd.DataFrame) -> list[str]:
    """The runs of which claims speak, but not the results."""
    return sorted({ours.run for claim in claims for ours in claim.ours.values()} - {*results.run})


def values(results: pd.DataFrame, ours: Ours) -> pd.Series:
    """One number a seed, by seed. ValueError for a column that is not there, or none or several rows of a seed."""
    first = _rows(results, ours.run, ours.where, ours.value)
    if ours.minus is None:
        return first
    second = _rows(results, ours.run, ours.where | ours.minus, ours.value)
    if list(first.index) != list(second.index):
        raise ValueError(f"run {ours.run}: {ours.where} and {ours.minus} have not the same seeds")
    return first - second


def _rows(results: pd.DataFrame, run: str, where: dict[str, Any], value: str) -> pd.Series:
    part = results[results.run == run]
    if unknown := [column for column in (*where, value) if column not in results]:
        raise ValueError(f"run {run}: the results have no column {', '.join(map(repr, unknown))}")
    for column, wanted in where.items():
        part = part[part[column] == wanted]
    found = part.set_index("seed")[value].sort_index()
    if found.empty or found.isna().any() or found.index.duplicated().any():
        raise ValueError(f"run {run}: {where} names {len(found)} rows of {value!r}; one a seed is wanted")
    return found


def interval(numbers: pd.Series) -> tuple[float, float]:
    """The 95 % confidence interval of the mean over seeds, by Student's t. ValueError but for 2 to 10 seeds."""
    if len(numbers) not in T:
        raise ValueError(f"there are {len(numbers)} seeds; an interval is drawn from 2 to {max(T)}")
    half = T[len(numbers)] * numbers.std() / len(numbers) ** 0.5
    return numbers.mean() - half, numbers.mean() + half


def verdict(low: float, high: float, above: float) -> str:
    """holds: the whole interval is above the bound; does not hold: none of it; undecided: the bound lies within."""
    return HOLDS if low > above else NOT if high <= above else OPEN


def judge(claims: list[Claim], results: pd.DataFrame) -> pd.DataFrame:
    """A row for each claim and each of our data sets: mean, interval, seeds, the others' numbers, and two verdicts.

    Data sets whose run is `missing` are left out.

    "here" is the data set's own verdict. "verdict" is the claim's: holds, where it holds on one of our data sets and is
    refuted on none; does not hold, the other way round; mixed, where both happen; else undecided.
    """
    rows, known = [], {*results.run}
    for claim in claims:
        mine = []
        for name, ours in claim.ours.items():
            if ours.run not in known:
                continue
            numbers = values(results, ours)
            low, high = interval(numbers)
            row = {
                "paper": claim.paper,
                "claim": claim.claim,
                "data": name,
                "above": claim.above,
                "ours": numbers.mean(),
            }
            row |= {"low": low, "high": high, "seeds": len(numbers), "paper_says": claim.paper_says}
            row |= {"setting": claim.setting, "reproductions": claim.reproductions}
            mine.append(row | {"here": verdict(low, high, claim.above)})
        said = {row["here"] for row in mine} - {OPEN}
        overall = MIXED if len(said) > 1 else said.pop() if said else OPEN
        rows += [row | {"verdict": overall} for row in mine]
    return pd.DataFrame(rows)


def load(path: str | Path | None = None) -> pd.DataFrame:
    """The numbers in a file that `make results` wrote, a row for each setting and seed; None: the repository's."""
    return tables.wide(tables.read(path or FOLDER / FILES["results"]))


def changed(claims: list[Claim], before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """A line for each claim whose verdict differs, or is there in one of the two only."""
    old, new = (judge(claims, part).groupby("claim").verdict.first().to_dict() for part in (before, after))
    names = [claim.claim for claim in claims if old.get(claim.claim) != new.get(claim.claim)]
    return [f"{name}: {old.get(name, 'no numbers')} before, {new.get(name, 'no numbers')} now" for name in names]


def main() -> None:
    """The command line of this module; the nightly workflow calls it."""
    parser = argparse.ArgumentParser(prog="python -m e2lib.course.claims", description=__doc__)
    for name in ("claims", "before", "after"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    with plainly():
        found = changed(read(given.claims), load(given.before), load(given.after))
    if found:
        sys.exit("\n".join(["verdicts that changed:", *found]))
    print("no verdict changed")


if __name__ == "__main__":
    main()
