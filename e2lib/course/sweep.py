"""Grids of runs: one YAML file names notebooks and what varies; `make sweep` runs what is not done, in parallel.

The scores on validation images are in a table. Those on test images, and the executed notebooks, which show them, stay
out of sight, so that nothing is chosen by them, until `make results` asks for them.
"""

import itertools
import os
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e2lib.course import results, run
from e2lib.course.run import Job, Source
from e2lib.disk import write

Axes = dict[
    str, Annotated[list[Any], Field(min_length=1)]
]  # a parameter, a field ("schedule.lr"), or "preset" -> values


class Grid(BaseModel):
    """The runs of one notebook."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    notebook: Annotated[str, Field(pattern=r"^\d\d$")]  # its number
    preset: str = ""  # a file in notebooks/presets without its ending; "": laptop/NN
    parameters: dict[str, Any] = {}  # of all jobs, besides the preset's; a field is named "schedule.lr", too
    axes: Axes = {}


class Sweep(BaseModel):
    """What a sweep's YAML file holds; one with a single grid may hold that grid's lines instead of `runs`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    runs: Annotated[dict[str, Grid], Field(min_length=1)]
    axes: Axes = {}  # of grids that have none of their own
    gpus: Annotated[int, Field(ge=0, le=1)] = 1  # a job wants, where there are some
    into: Path | None = None  # folder of results.csv and results.md; None: results.csv in that of the sweep


def read(path: Path) -> Sweep:
    """The sweep in file `path`; ValueError names the file, the field and what is wrong."""
    if not path.is_file():
        named = "no sweep is named" if path == Path() else f"there is no sweep {path}"
        raise FileNotFoundError(f"{named}: SWEEP=notebooks/sweeps/NAME.yaml names one")
    content = run.mapping(path)
    if single := "runs" not in content:
        whole = {name: content.pop(name) for name in ("gpus", "into") if name in content}
        content = whole | {"runs": {path.stem: content}}
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(_complaint(item, single) for item in error.errors())
        raise ValueError(f"{path}: {wrong}") from None


def _complaint(item: Any, single: bool) -> str:
    """What is wrong in a sweep's file, where pydantic's own text would not tell what would be right."""
    where = item["loc"][2:] if single and item["loc"][0] == "runs" else item["loc"]
    known = [*(Grid if item["loc"][0] == "runs" else Sweep).model_fields, *(["gpus", "into"] if single else [])]
    right = {
        "extra_forbidden": f"unknown; here are {', '.join(known)}",
        "list_type": f"{item['input']!r} must be a list of values, such as [{item['input']}]",
        "string_type": f"{item['input']!r} must be a text, in quotes",
        "string_pattern_mismatch": f"{item['input']!r} must be a notebook's number, of two digits and in quotes",
    }
    return f"{'.'.join(map(str, where))}: {right.get(item['type'], item['msg'])}"


def plan(path: Path, names: str = "") -> list[Job]:
    """The jobs of a sweep, or of those of its runs that `names` has, "07 08"; the last axis varies fastest.

    ValueError names each wrong parameter, and two jobs of a run that are the same. A notebook with a parameter `work`
    gets a folder that all jobs share, unless the preset names one.
    """
    sweep = read(path)
    wanted = names.split() or [*sweep.runs]
    if unknown := [name for name in wanted if name not in sweep.runs]:
        raise ValueError(f"unknown RUNS {' '.join(unknown)!r}: choose from {' '.join(sweep.runs)}")
    found, sources, jobs = run.notebooks(), {}, []
    for name, grid in sweep.runs.items():
        if name not in wanted:
            continue
        if grid.notebook not in found:
            raise ValueError(f"{path}: notebook: there is no {grid.notebook}; choose from {' '.join(sorted(found))}")
        source = sources.setdefault(grid.notebook, None) or Source.read(found[grid.notebook])
        sources[grid.notebook] = source
        new = _jobs(path, name, grid, grid.axes or sweep.axes, source)
        if len({job.key for job in new}) < len(new):
            raise ValueError(f"{path}: axes: a value is named twice")
        jobs += new
    return jobs


def _jobs(path: Path, name: str, grid: Grid, axes: Axes, source: Source) -> list[Job]:
    if both := grid.parameters.keys() & axes.keys():
        raise ValueError(f"{path}: {', '.join(sorted(both))} is among both parameters and axes")
    files = {preset: _preset(path, preset) for preset in axes.get("preset", [grid.preset or f"laptop/{grid.notebook}"])}
    work = {"work": f"../runs/sweeps/{path.stem}/work"} if "work" in source.schema else {}
    jobs = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        given = work | files[point.get("preset", next(iter(files)))]
        for parameter, value in (grid.parameters | point).items():
            if parameter != "preset":
                _set(given, source, parameter, value, path)
        text = ", ".join(f"{axis}={value}" for axis, value in point.items())
        about = {"run": name} | {f"axis {axis}": str(value) for axis, value in point.items() if axis != "seed"}
        place = Path("runs", "sweeps", path.stem, ".failed", "{key}")
        try:
            jobs.append(Job.of(source, given, place, name=f"{name}: {text}" if text else name, about=about))
        except ValueError as error:
            raise ValueError(f"{path}: {text or name}: {error}") from error
    return jobs


def _preset(path: Path, name: str) -> dict[str, Any]:
    file = Path("notebooks", "presets", f"{name}.yaml")
    if not file.is_file():
        raise FileNotFoundError(f"{path}: preset: there is no {file}")
    return run.mapping(file)


def _set(given: dict[str, Any], source: Source, parameter: str, value: Any, path: Path) -> None:
    """Set a parameter, or a field of one, and leave the objects of the preset as they are."""
    name, *fields = parameter.split(".")
    if fields and name in source.schema:
        content = given.get(name, source.schema[name].default)
        if len(fields) > 1 or not isinstance(content, dict):
            raise ValueError(f"{path}: axes: {parameter}: {name}={content!r} has no such field")
        value = content | {fields[0]: value}
    given[name] = value


def start(path: Path, names: str = "", profile: str = "", at_once: int = 0) -> int:
    """Run what is not done of the sweep, write the scores on validation images, and return 0 if all is done.

    profile: a folder of notebooks/sweeps/profiles: where jobs run. at_once: how many, as for `run.start`.
    """
    jobs, folder = plan(path, names), Path("runs", "sweeps", path.stem)
    origin = folder / "sweep.txt"  # whose folder this is
    if origin.exists() and Path(other := origin.read_text()).exists() and not path.samefile(other):
        raise ValueError(f"{path}: {folder} is that of {other}; rename one of the two files")
    folder.mkdir(parents=True, exist_ok=True)
    write(origin, os.path.relpath(path))
    status = run.start(jobs, folder, at_once, read(path).gpus, profile)
    if (found := numbers(jobs, "validation")) is not None:
        print(f"  on validation images: {results.write(folder / 'validation.csv', found)}{_mixed(found)}")
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
        settings |= {*more, *(name for name in job.about if name != "run")}
        rows += [job.about | row | job.state() for row in found]
    return results.tidy(pd.DataFrame(rows), settings) if rows else None


def _mixed(table: pd.DataFrame) -> str:
    commits = sorted({*table.commit})
    return f" (rows of several revisions: {', '.join(commits)})" if len(commits) > 1 else ""


def unseal(path: Path, names: str = "") -> None:
    """Write the numbers on test images into results.csv, and put the executed notebooks into the sweep's folder.

    Where the sweep says `into`, rows of other runs stay as they are, and those of runs of which a job failed.

    ValueError while the sweep runs, or where jobs have neither finished nor failed: what is still to run must not be
    chosen by these numbers; and in the end, where jobs failed.
    """
    jobs, folder, into = plan(path, names), Path("runs", "sweeps", path.stem), read(path).into
    with run.alone(folder, wait=False):  # a job that failed may be about to run again
        pass
    done = [job for job in jobs if job.kept.exists()]
    if waiting := sum(job.running() or not (job.kept.exists() or job.error.exists()) for job in jobs):
        raise ValueError(f"{path}: {waiting} of {len(jobs)} jobs have not run yet; make sweep SWEEP={path}")
    table = numbers(done, "test")
    if table is None:
        raise ValueError(f"{path}: every job failed; make sweep SWEEP={path}")
    for job in done:
        job.show(folder / "notebooks" / f"{job.key}.ipynb")
    print(f"executed notebooks: {folder / 'notebooks'}{os.sep}{_mixed(table)}")
    failed = [job for job in jobs if job not in done]
    if into is None:
        written = results.write(folder / "results.csv", table)
    else:
        written = _merge(table[~table.run.isin({job.about["run"] for job in failed})], into, [*read(path).runs])
    print(f"written: {written}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(job.name for job in failed[:10])}")


def _merge(table: pd.DataFrame, into: Path, names: list[str]) -> Path:
    """Write the rows of some runs into results.csv, those of others as they were; runs in the order of `names`."""
    if (file := into / "results.csv").exists():
        others = results.read(file)
        table = pd.concat([others[~others.run.isin({*table.run})], table], ignore_index=True)
    place = {name: number for number, name in enumerate(names)}  # runs that are no longer named come last
    table = table.iloc[table.run.map(lambda name: place.get(name, len(place))).argsort(kind="stable")]
    write(into / "results.md", results.report(table))
    return results.write(file, table)
