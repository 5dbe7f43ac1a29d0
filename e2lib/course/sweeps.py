"""Grids of runs: one YAML file names a notebook and what varies; what is not finished is executed, in parallel.

`python -m e2lib.course.sweeps run FILE` (in `make sweep`) starts Snakemake, which starts `execute` once a job: on this
machine, or, with a profile, on a cluster. It leaves the scores on validation images in a table. Those on test images,
and the executed notebooks, which show them, are put aside, so that no choice is made by them, until `python -m
e2lib.course.sweeps results FILE` is asked for them.
"""

import argparse
import contextlib
import fcntl
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from e2lib.course import runs

PROFILES = Path("notebooks", "sweeps", "profiles")
SEALED = ".sealed"  # folder of what shows test numbers
PATIENCE = 30.0  # seconds that a stopped Snakemake has to end after its jobs


class Sweep(BaseModel):
    """What a sweep's YAML file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    notebook: Annotated[str, Field(pattern=r"^\d\d$")]  # its number
    preset: str = ""  # a file in notebooks/presets without its ending; "": laptop/NN
    parameters: dict[str, Any] = {}  # of all jobs, besides the preset's
    # A parameter, or a field of one ("schedule.lr"), or "preset" -> its values
    axes: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    gpus: Annotated[int, Field(ge=0, le=1)] = 1  # a job wants, where there are some


@dataclass(frozen=True)
class Job:
    """One point of the grid. Jobs that start from the same networks wait for the first of them, which trains these."""

    run: runs.Run
    point: dict[str, Any]  # axis -> value
    starts: tuple[str, ...]  # tell what it starts from, such as a teacher or a baseline


def read(path: Path) -> Sweep:
    """The sweep in file `path`; ValueError names the file, the field and what is wrong."""
    if not path.is_file():
        named = "no sweep is named" if path == Path() else f"there is no sweep {path}"
        raise FileNotFoundError(f"{named}: SWEEP=notebooks/sweeps/NAME.yaml names one")
    try:
        return Sweep.model_validate(_content(path))
    except ValidationError as error:
        wrong = "; ".join(_complaint(item) for item in error.errors())
        raise ValueError(f"{path}: {wrong}") from None


def _content(file: Path) -> Any:
    with file.open(encoding="utf-8") as text:  # not its text: the error names the file
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is no YAML: {error}") from None


def _complaint(item: Mapping[str, Any]) -> str:
    """What is wrong in a sweep's file, where pydantic's own text would not tell what would be right."""
    right = {
        "extra_forbidden": f"unknown; here are {', '.join(Sweep.model_fields)}",
        "list_type": f"{item['input']!r} must be a list of values, such as [{item['input']}]",
        "string_type": f"{item['input']!r} must be a text, in quotes",
        "string_pattern_mismatch": f"{item['input']!r} must be a notebook's number, of two digits and in quotes",
    }
    return f"{'.'.join(map(str, item['loc']))}: {right.get(item['type'], item['msg'])}"


def plan(path: Path) -> list[Job]:
    """The jobs of a sweep, in the order of its axes, the last one varying fastest. Every parameter is checked.

    Each has a folder of its own below runs/sweeps/, named by a hash of its parameters. What jobs start from, the
    notebook's calls of `runs.work_folder` say; a notebook with a parameter `work` gets a folder that all jobs share,
    unless the preset names one.
    """
    sweep = read(path)
    found = {notebook.name[:2]: notebook for notebook in Path("notebooks").glob("[0-9][0-9]_*.ipynb")}
    if sweep.notebook not in found:
        raise ValueError(f"{path}: notebook: there is no {sweep.notebook}; choose from {' '.join(sorted(found))}")
    notebook = found[sweep.notebook]
    own = runs.defaults(notebook)
    chosen = sweep.axes.get("preset", [sweep.preset or f"laptop/{sweep.notebook}"])
    presets = {name: _preset(path, name) for name in chosen}
    sharing = runs.sharing(notebook)
    kept = {"work": f"../runs/sweeps/{path.stem}/work"} if "work" in own else {}
    names = [name for name in own if name != "device"]  # checked where the job runs
    jobs = []
    for values in itertools.product(*sweep.axes.values()):
        point = dict(zip(sweep.axes, values, strict=True))
        parameters = kept | presets[point.get("preset", chosen[0])] | sweep.parameters
        for axis, value in point.items():
            if axis != "preset":
                _set(parameters, own, axis, value, path)
        parameters = json.loads(json.dumps(parameters))  # as a job reads them: keys are texts
        try:
            runs.validated(names, {k: v for k, v in (own | parameters).items() if k != "device"})
        except ValueError as error:
            raise ValueError(f"{path}: {point}: {error}") from error
        run = runs.Run(notebook, f"sweeps/{path.stem}/{SEALED}/{runs.digest(parameters)}", parameters)
        values = json.loads(json.dumps(own)) | parameters
        starts = tuple(
            runs.digest({name: values[name] for name in own if name not in ("device", "work", *without)})
            for without in sharing
        )
        jobs.append(Job(run, point, starts))
    if len({job.run.preset for job in jobs}) < len(jobs):
        raise ValueError(f"{path}: axes: a value is named twice")
    return jobs


def _preset(path: Path, name: str) -> dict[str, Any]:
    file = Path("notebooks", "presets", f"{name}.yaml")
    if not file.is_file():
        raise FileNotFoundError(f"{path}: preset: there is no {file}")
    return _content(file) or {}


def _set(parameters: dict[str, Any], own: dict[str, Any], axis: str, value: Any, path: Path) -> None:
    """Sets a parameter, or a field of one, leaving the objects of the preset as they are."""
    name, *fields = axis.split(".")
    if name not in own:
        raise ValueError(f"{path}: axes: {axis}: the notebook has no parameter {name!r}; it has {', '.join(own)}")
    if not fields:
        parameters[name] = value
        return
    content = parameters.get(name, own[name])
    if len(fields) > 1 or not isinstance(content, dict):
        raise ValueError(f"{path}: axes: {axis}: {name}={content!r} has no such field")
    parameters[name] = content | {fields[0]: value}


def run_all(path: Path, profile: str = "", jobs_at_once: int = 0) -> int:
    """Executes what is not finished of the sweep, shows how far it is, and returns Snakemake's exit status.

    profile: a folder of notebooks/sweeps/profiles: where jobs run. "": here, one on each GPU, or one where there is
    none; or `jobs_at_once`, which share the processor's cores.
    """
    jobs, sweep = plan(path), read(path)
    if profile and not (PROFILES / profile).is_dir():
        known = ", ".join(sorted(folder.name for folder in PROFILES.iterdir()))
        raise ValueError(f"unknown PROFILE {profile!r}: choose from {known}")
    folder = Path("runs", "sweeps", path.stem)
    folder.mkdir(parents=True, exist_ok=True)
    origin = folder / "sweep.txt"  # whose folder this is
    if origin.exists() and Path(other := origin.read_text()).exists() and not path.samefile(other):
        raise ValueError(f"{path}: {folder} is that of {other}; rename one of the two files")
    runs.write(origin, os.path.relpath(path))
    on_gpu = any(str(job.run.parameters.get("device")).startswith("cuda") for job in jobs)
    if on_gpu and not profile and not _cards():
        raise ValueError(f"{path}: device='cuda', but torch sees no GPU here; PROFILE=slurm sends jobs to a cluster's")
    cards = 0 if profile or not sweep.gpus else len(_cards())
    at_once = jobs_at_once or max(1, cards)
    threads = 0 if profile else max(1, (os.cpu_count() or 1) // at_once)
    with _alone(folder) as lock, (folder / "snakemake.log").open("a+") as log:
        before = {job.run.error for job in jobs if job.run.error.exists()}
        for error in before:
            error.unlink()
        file = folder / "plan.json"
        # Those that failed the last time come last: no other job is to wait for them.
        ordered = sorted(jobs, key=lambda job: job.run.error in before)
        describe(ordered, file, threads, pick=not profile and sweep.gpus > 0)
        call = command(file, sweep.gpus)
        call += ["--keep-going", "--scheduler", "greedy"]
        call += ["--profile", str(PROFILES / profile)] if profile else ["--cores", str(at_once)]
        call += ["--resources", f"gpu={cards}"] if cards else []
        start = log.seek(0, os.SEEK_END)
        if older := sum(job.run.running() for job in jobs if not job.run.marker.exists()):
            print(f"{path.stem}: {older} of the jobs run still, started earlier; they are waited for")
        # Snakemake holds the lock too: were this process killed, its jobs would go on.
        process = subprocess.Popen(call, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()])
        _watch(process, jobs, path.stem)
        log.seek(start)
        said = log.read()
    missing = [job for job in jobs if not job.run.marker.exists()]
    print(f"{path.stem}: {len(jobs) - len(missing)} of {len(jobs)} jobs done")
    if len(missing) < len(jobs):
        from e2lib.course import tables

        if (found := numbers(jobs, "validation")) is not None:
            print(f"  on validation images: {tables.write(folder / 'validation.csv', found)}")
        print(f"  on test images, once all is chosen: make results SWEEP={path}")
        shown = folder / "results.csv"
        newest = max(job.run.marker.stat().st_mtime for job in jobs if job.run.marker.exists())
        if shown.exists() and shown.stat().st_mtime < newest:
            print(f"  ({shown} is older than some of these jobs)")
    failed = [job for job in missing if job.run.error.exists()]
    if len(failed) < len(missing):
        print(f"  {len(missing) - len(failed)} did not run")
    for job in failed[:10]:
        print(f"  failed: {job.point}: {job.run.error.read_text()}")
    if len(failed) > 10:
        print(f"  and {len(failed) - 10} others")
    if process.returncode < 0:
        print(f"  Snakemake was ended by {signal.Signals(-process.returncode).name}; the same command goes on")
    elif process.returncode and not failed:  # no notebook's fault
        print(said)
    return process.returncode


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[TextIO]:
    """The lock of the sweep in `folder`; ValueError while the sweep runs."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"sweep {folder.name} is running already; wait for it, or stop it and its Snakemake"
            raise ValueError(text) from None
        yield lock


def describe(jobs: list[Job], file: Path, threads: int, pick: bool = False) -> None:
    """Writes the plan that the sweeps' Snakefile and `execute` read.

    A job waits for the first one of a start only until some job of that start is finished.

    threads: of each job, 0 for its own choice. pick: jobs choose themselves a GPU that is free.
    """
    started = {start for job in jobs if job.run.marker.exists() for start in job.starts}
    first = {start: job for job in reversed(jobs) for start in job.starts}

    def after(job: Job) -> list[str]:
        others = [first[start] for start in job.starts if start not in started]
        return list(dict.fromkeys(str(other.run.marker) for other in others if other is not job))

    described = {
        str(job.run.marker): {
            "notebook": str(job.run.notebook),
            "preset": job.run.preset,
            "parameters": job.run.parameters,
            "after": after(job),
            "threads": threads,
            "pick": pick,
        }
        for job in jobs
    }
    runs.write(file, json.dumps(described))


def command(file: Path, gpus: int) -> list[str]:
    """How Snakemake is called for the plan in `file`, but for where the jobs run."""
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(Path("notebooks", "sweeps", "Snakefile"))]
    # The names of the markers tell what is finished; no lock, because a killed Snakemake would leave it behind.
    words += ["--directory", ".", "--rerun-triggers", "mtime", "--nolock", "--ignore-incomplete"]
    return [*words, "--config", f"plan={file}", f"gpus={gpus}"]


def _watch(process: subprocess.Popen, jobs: list[Job], name: str) -> None:
    """A progress bar over the markers, until the process ends."""
    markers = {job.run.marker for job in jobs}
    done = {marker for marker in markers if marker.exists()}
    often = 0.1 if sys.stderr.isatty() else 60  # seconds: few lines in a file
    try:
        with tqdm(total=len(jobs), initial=len(done), desc=f"sweep {name}", unit="job", mininterval=often) as bar:
            while True:
                ended = process.poll() is not None
                new = {marker for marker in markers - done if marker.exists()}
                done |= new
                bar.update(len(new))
                if ended:
                    return
                time.sleep(0.5)
    except BaseException:
        process.terminate()  # Snakemake starts no other job, and ends after those that run
        while process.poll() is None:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                # A signal that comes while it holds its own lock makes it wait for itself, forever.
                if not any(job.run.running() for job in jobs):
                    process.kill()
        raise


def execute(file: Path, marker: str) -> None:
    """Runs the job that the plan in `file` describes for `marker`, on a GPU that no other job has."""
    job = json.loads(file.read_text())[marker]
    run = runs.Run(Path(job["notebook"]), job["preset"], job["parameters"])
    if job["threads"]:
        os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    runs.execute(run, Path(marker), place=_card if job["pick"] else contextlib.nullcontext)


@functools.cache
def _cards() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # here: on a login node nothing needs it

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name for name in named.split(",") if name] if named else [str(i) for i in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _card() -> Iterator[None]:
    """Lets this process, and what it starts, see one GPU that no other job on this machine uses, if there is one.

    A lock that the system gives back when a process ends, however it ends.
    """
    folder = Path(tempfile.gettempdir())
    for name in _cards():
        with (folder / f"e2lib-gpu-{os.getuid()}-{name.replace('/', '_')}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            yield
            return
    if _cards():
        raise RuntimeError(f"other jobs use every GPU of this machine ({', '.join(_cards())}); start fewer at once")
    yield


def numbers(jobs: list[Job], split: str):
    """The tidy table (`tables`) of "validation" or "test" images that finished jobs recorded; None if there is none.

    Its settings hold the values of the axes, "axis …", its runs are the names of the jobs' folders.
    """
    import pandas as pd  # here, as torch: what only plans or runs needs it not

    from e2lib.course import tables

    rows = []
    for job in jobs:
        if job.run.marker.exists():
            about = {f"axis {name}": str(value) for name, value in job.point.items()}
            about["run"] = Path(job.run.preset).name
            rows += [about | row for row in runs.rows_of(job.run, split)]
    return tables.tidy(pd.DataFrame(rows)) if rows else None


def results(path: Path) -> Path:
    """Writes runs/sweeps/NAME/results.csv, the numbers on test images, and puts the executed notebooks beside it.

    ValueError while the sweep runs, or jobs have neither finished nor failed: what is still to run must not be chosen
    by these numbers.
    """
    from e2lib.course import tables

    jobs = plan(path)
    folder = Path("runs", "sweeps", path.stem)
    if folder.exists():
        with _alone(folder):  # a job that failed may be about to run again
            pass
    done = [job for job in jobs if job.run.marker.exists()]
    if waiting := sum(not (job.run.marker.exists() or job.run.error.exists()) for job in jobs):
        raise ValueError(f"{path}: {waiting} of {len(jobs)} jobs have not run yet; make sweep SWEEP={path}")
    if (found := numbers(done, "test")) is None:
        raise ValueError(f"{path}: every job failed; make sweep SWEEP={path}")
    print(f"{len(done)} of {len(jobs)} jobs are finished")
    (folder / "notebooks").mkdir(exist_ok=True)
    for job in done:
        shown = folder / "notebooks" / f"{Path(job.run.preset).name}.ipynb"
        shown.unlink(missing_ok=True)
        shown.hardlink_to(job.run.output)  # takes no room
    return tables.write(folder / "results.csv", found)


def main() -> None:
    """The command line of this module; the Makefile and the sweeps' Snakefile call it."""
    parser = argparse.ArgumentParser(prog="python -m e2lib.course.sweeps", description=__doc__)
    parser.add_argument("command", choices=["run", "execute", "results"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--profile", default="")
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--marker")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: the same command goes on with what is not finished"))
    with runs.plainly():
        if given.command == "run":
            sys.exit(run_all(given.file, given.profile, given.jobs))
        if given.command == "results":
            written = results(given.file)
            print(f"written: {written}, and the executed notebooks in {written.parent / 'notebooks'}{os.sep}")
            return
        execute(given.file, given.marker)


if __name__ == "__main__":
    main()
