"""Grids of runs: a YAML file names notebooks and what varies, and `make sweep` runs what is not done, in parallel.

A table shows the scores on validation images. Scores on test images stay hidden until `make results` asks for them, as
do the executed notebooks, which show them. So nobody chooses by test images.
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
    preset: str = ""  # a file in notebooks/presets, without the ending; "" stands for laptop/NN
    parameters: dict[str, Any] = {}  # of all jobs, in addition to the preset's; "schedule.lr" names a field
    axes: Axes = {}


class Sweep(BaseModel, extra="forbid", frozen=True):
    """The content of a sweep's YAML file. A file with one grid may hold the lines of the grid instead of `runs`."""

    runs: Annotated[dict[str, Grid], Field(min_length=1)]
    axes: Axes = {}  # for grids without axes of their own
    gpus: Annotated[int, Field(ge=0, le=1, strict=True)] = 1  # that a job needs, if there are any
    into: Path | None = None  # folder of results.csv and results.md; None: only results.csv, in the folder of the sweep


def folder_of(path: Path) -> Path:
    """The folder for the results of the sweep in file `path`."""
    return Path("runs", "sweeps", path.stem)


def read(path: Path) -> Sweep:
    """The sweep in file `path`. ValueError names the file, the field and what is wrong."""
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
    """The jobs of a sweep; `names` chooses some of its runs, as "07 08" does. The last axis varies fastest.

    A notebook with a parameter `work` gets a folder that all jobs share, unless its preset names one. ValueError names
    each wrong parameter, and a run in which two jobs are the same.
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
    """The jobs of one run, of the notebook in `path`. ValueError names the point of the grid."""
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
                if fields and known in schema:  # a field; the other fields stay as in the preset
                    content = given.get(known, schema[known].default)
                    if len(fields) > 1 or not isinstance(content, dict):
                        raise ValueError(f"axes: {parameter}: {known}={content!r} has no such field")
                    value = content | {fields[0]: value}
                given[known] = value
            yield Job.of(path, given, folder / ".failed" / "{key}", f"{name}: {text}" if text else name, **about)
        except ValueError as error:
            raise ValueError(f"{text or name}: {error}") from error


def start(path: Path, names: str = "", profile: str = "", at_once: int = 0) -> int:
    """Run the jobs that are not done, write the scores on validation images, and return 0 if all are done.

    `profile` and `at_once` are as in `run.start`.
    """
    jobs, folder = plan(path, names), folder_of(path)
    origin = folder / "sweep.txt"  # names the file that the folder belongs to
    if origin.exists() and Path(other := origin.read_text()).exists() and not path.samefile(other):
        raise ValueError(f"{path}: {folder} belongs to {other}; rename one of the two files")
    folder.mkdir(parents=True, exist_ok=True)
    write(origin, os.path.relpath(path))
    status = run.start(jobs, folder, at_once, read(path).gpus, profile)
    if (found := numbers(jobs, "validation")) is not None:
        print(f"  on validation images: {results.write(folder / 'validation.csv', found)}  {results.revisions(found)}")
    if any(job.kept.exists() for job in jobs):
        print(f"  on test images, once all is chosen: make results SWEEP={path}")
    return status


def numbers(jobs: list[Job], split: str) -> pd.DataFrame | None:
    """The tidy table (`results.tidy`) of the "validation" or "test" numbers that jobs recorded; None without numbers.

    "run" is the name of the run in the sweep's file. Each axis is a setting, "axis NAME".
    """
    rows, settings = [], set()
    for job in (job for job in jobs if job.kept.exists()):
        found, more = results.recorded(job.kept, split)
        settings |= {*more, *job.about} - {"run"}
        rows += [row | job.about | job.state() for row in found]
    return results.tidy(pd.DataFrame(rows), settings) if rows else None


def unseal(path: Path, names: str = "") -> None:
    """Write the numbers on test images into results.csv, and put the executed notebooks into the sweep's folder.

    With `into`, only runs whose jobs are all done get new rows; the rows of other runs stay. ValueError while the sweep
    runs, or if jobs have neither finished nor failed, because nobody may choose later jobs by these numbers. If jobs
    failed, ValueError names up to ten of them, after everything is written; with `into`, all their runs, too.
    """
    jobs, folder, sweep = plan(path, names), folder_of(path), read(path)
    with run.locked(folder / "lock") as free:  # a failed job may be about to run again
        if not free:
            raise ValueError(f"{folder.name} is still running; wait for it, or stop it and its Snakemake")
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
        runs = ", ".join(dict.fromkeys(job.about["run"] for job in failed))  # the first ten jobs may all be of one
        stay = f"; in {sweep.into / 'results.csv'} these runs get no new rows: {runs}" if sweep.into else ""
        first = "; ".join(job.name for job in failed[:10])
        raise ValueError(f"{len(failed)} of {len(jobs)} jobs failed: {first}{stay}")


def _merged(table: pd.DataFrame, into: Path, names: list[str]) -> pd.DataFrame:
    """`table` and the rows of other runs in results.csv. Runs are in the order of `names`, others last."""
    if (file := into / "results.csv").exists():
        others = results.read(file)
        table = pd.concat([others[~others.run.isin({*table.run})], table], ignore_index=True)
    return table.sort_values("run", kind="stable", key=lambda runs: runs.map([*names, *runs.unique()].index))
