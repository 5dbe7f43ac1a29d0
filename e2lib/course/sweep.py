"""Grids of runs: one YAML file names notebooks and what varies; `make sweep` runs what is not done, in parallel.

The scores on validation images are in a table. Those on test images, and the executed notebooks, which show them, stay
out of sight, so that nothing is chosen by them, until `make results` asks for them.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from e2lib.course import parameters, results, run
from e2lib.course.run import Job
from e2lib.disk import write

# A parameter, a field ("schedule.lr"), or "preset" -> values.
Axes = dict[str, Annotated[list[Any], Field(min_length=1)]]


class Grid(BaseModel, extra="forbid", frozen=True):
    """The runs of one notebook."""

    notebook: str  # its number
    preset: str = ""  # a file in notebooks/presets without its ending; "": laptop/NN
    parameters: dict[str, Any] = {}  # of all jobs, besides the preset's; a field is named "schedule.lr", too
    axes: Axes = {}


class Sweep(BaseModel, extra="forbid", frozen=True):
    """What a sweep's YAML file holds; one with a single grid may hold that grid's lines instead of `runs`."""

    runs: Annotated[dict[str, Grid], Field(min_length=1)]
    axes: Axes = {}  # of grids that have none of their own
    gpus: Annotated[int, Field(ge=0, le=1, strict=True)] = 1  # a job wants, where there are some
    into: Path | None = None  # folder of results.csv and results.md; None: results.csv in that of the sweep


def folder_of(path: Path) -> Path:
    """Where the jobs of the sweep in file `path` leave what they make."""
    return Path("runs", "sweeps", path.stem)


def read(path: Path) -> Sweep:
    """The sweep in file `path`; ValueError names the file, the field and what is wrong."""
    if not path.is_file():
        named = "no sweep is named" if path == Path() else f"there is no sweep {path}"
        raise FileNotFoundError(f"{named}: SWEEP=notebooks/sweeps/NAME.yaml names one")
    content, inner = run.mapping(path), ""
    if "runs" not in content:
        whole, inner = {name: content.pop(name) for name in ("gpus", "into") if name in content}, f"runs.{path.stem}."
        content = whole | {"runs": {path.stem: content}}
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        wrong = []
        for item in error.errors():
            where, of = ".".join(map(str, item["loc"])), Grid if item["loc"][0] == "runs" else Sweep
            known = ", ".join([*of.model_fields, *(["gpus", "into"] if inner else [])])
            says = f"unknown; here are {known}" if item["type"] == "extra_forbidden" else item["msg"]
            wrong.append(f"{where.removeprefix(inner)}={item['input']!r}: {says}")
        raise ValueError(f"{path}: {'; '.join(wrong)}") from None


def plan(path: Path, names: str = "") -> list[Job]:
    """The jobs of a sweep, or of those of its runs that `names` has, "07 08"; the last axis varies fastest.

    ValueError names each wrong parameter, and two jobs of a run that are the same. A notebook with a parameter `work`
    gets a folder that all jobs share, unless the preset names one.
    """
    sweep, found, jobs = read(path), run.notebooks(), []
    try:
        for name in run.chosen("RUNS", names, sweep.runs):
            grid = sweep.runs[name]
            if grid.notebook not in found:
                raise ValueError(f"{name}: notebook: there is no {grid.notebook}; choose from {', '.join(found)}")
            new = [*_jobs(name, grid, grid.axes or sweep.axes, found[grid.notebook], folder_of(path))]
            if len({job.key for job in new}) < len(new):
                raise ValueError(f"{name}: axes: a value is named twice")
            jobs += new
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{path}: {error}") from error
    return jobs


def _jobs(name: str, grid: Grid, axes: Axes, path: Path, folder: Path) -> Iterator[Job]:
    """The jobs of the run `name` of the notebook in `path`; ValueError names the point."""
    order = [*["preset"] * bool(grid.preset), *grid.parameters, *axes]
    for i, one in enumerate(order):
        if later := [other for other in order[i + 1 :] if f"{one}.".startswith(f"{other}.")]:
            raise ValueError(f"axes or parameters: {later[0]} replaces {one}, which stands before it; take one out")
    presets = axes.get("preset", [grid.preset or f"laptop/{grid.notebook}"])
    files = {preset: run.mapping(Path("notebooks", "presets", f"{preset}.yaml")) for preset in presets}
    schema = parameters.of(path)
    work = {"work": str(Path("..", folder, "work"))} if "work" in schema else {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        text = ", ".join(f"{axis}={value}" for axis, value in point.items())
        about = {"run": name} | {f"axis {axis}": str(value) for axis, value in point.items() if axis != "seed"}
        given = work | files[point.pop("preset", presets[0])]
        try:
            for parameter, value in (grid.parameters | point).items():
                known, *fields = parameter.split(".")
                if fields and known in schema:  # a field: the preset's object stays as it is
                    content = given.get(known, schema[known].default)
                    if len(fields) > 1 or not isinstance(content, dict):
                        raise ValueError(f"axes: {parameter}: {known}={content!r} has no such field")
                    value = content | {fields[0]: value}
                given[known] = value
            yield Job.of(path, given, folder / ".failed" / "{key}", f"{name}: {text}" if text else name, **about)
        except ValueError as error:
            raise ValueError(f"{text or name}: {error}") from error


def start(path: Path, names: str = "", profile: str = "", at_once: int = 0) -> int:
    """Run what is not done of the sweep, write the scores on validation images, and return 0 if all is done.

    profile: a folder of notebooks/sweeps/profiles: where jobs run. at_once: how many, as for `run.start`.
    """
    jobs, folder = plan(path, names), folder_of(path)
    origin = folder / "sweep.txt"  # whose folder this is
    if origin.exists() and Path(other := origin.read_text()).exists() and not path.samefile(other):
        raise ValueError(f"{path}: {folder} is that of {other}; rename one of the two files")
    folder.mkdir(parents=True, exist_ok=True)
    write(origin, os.path.relpath(path))
    status = run.start(jobs, folder, at_once, read(path).gpus, profile)
    if (found := numbers(jobs, "validation")) is not None:
        print(f"  on validation images: {results.write(folder / 'validation.csv', found)}  {results.revisions(found)}")
    if any(job.kept.exists() for job in jobs):
        print(f"  on test images, once all is chosen: make results SWEEP={path}")
    return status


def numbers(jobs: list[Job], split: str) -> pd.DataFrame | None:
    """The tidy table (`results.tidy`) of "validation" or "test" images that jobs recorded; None if there is none.

    "run" is the name of the run in the sweep's file; the settings hold the values of the axes, "axis …".
    """
    rows, settings = [], set()
    for job in (job for job in jobs if job.kept.exists()):
        found, more = results.recorded(job.kept, split)
        settings |= {*more, *job.about} - {"run"}
        rows += [row | job.about | job.state() for row in found]
    return results.tidy(pd.DataFrame(rows), settings) if rows else None


def unseal(path: Path, names: str = "") -> None:
    """Write the numbers on test images into results.csv, and put the executed notebooks into the sweep's folder.

    Where the sweep says `into`, rows of other runs stay as they are, and those of runs of which a job failed.

    ValueError while the sweep runs, or where jobs have neither finished nor failed: what is still to run must not be
    chosen by these numbers; and in the end, where jobs failed.
    """
    jobs, folder, sweep = plan(path, names), folder_of(path), read(path)
    with run.locked(folder / "lock") as free:  # a job that failed may be about to run again
        if not free:
            raise ValueError(f"{folder.name} runs still; wait for it, or stop it and its Snakemake")
    done = [job for job in jobs if job.kept.exists()]
    if waiting := sum(job.running() or not (job.kept.exists() or job.error.exists()) for job in jobs):
        raise ValueError(f"{path}: {waiting} of {len(jobs)} jobs have not run yet; make sweep SWEEP={path}")
    if (table := numbers(done, "test")) is None:
        raise ValueError(f"{path}: every job failed; make sweep SWEEP={path}")
    for job in done:
        job.show(folder / "notebooks" / f"{job.key}.ipynb")
    print(f"executed notebooks: {folder / 'notebooks'}{os.sep}  {results.revisions(table)}")
    failed = [job for job in jobs if job not in done]
    if sweep.into:
        table = _merged(table[~table.run.isin({job.about["run"] for job in failed})], sweep.into, [*sweep.runs])
        write(sweep.into / "results.md", results.report(table))
    print(f"written: {results.write((sweep.into or folder) / 'results.csv', table)}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(job.name for job in failed[:10])}")


def _merged(table: pd.DataFrame, into: Path, names: list[str]) -> pd.DataFrame:
    """The rows of some runs, and those of others that results.csv has; runs in the order of `names`, others last."""
    if (file := into / "results.csv").exists():
        others = results.read(file)
        table = pd.concat([others[~others.run.isin({*table.run})], table], ignore_index=True)
    return table.sort_values("run", kind="stable", key=lambda runs: runs.map([*names, *runs.unique()].index))
