"""Notebooks are executed once: what comes of one is kept under a hash of all that goes in.

`start` has Snakemake run the jobs of a list that are not done: a preset's notebooks, or a sweep's points. Snakemake
calls `execute` for each.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from e2lib.course import notebook, parameters
from e2lib.disk import digest, replacing, write

PRESETS = ("smoke", "laptop", "paper")
FILES = {
    "results": "results.csv",
    "claims": "claims.yaml",
}  # parameter -> the file beside the notebooks that None means
KEPT = Path("runs", ".kept")  # out of sight, as a sweep's notebooks show test numbers
PROFILES = Path("notebooks", "sweeps", "profiles")
PATIENCE = 30.0  # seconds that a stopped Snakemake has to end after its jobs


@dataclass(frozen=True)
class Source:
    """A notebook, as far as jobs need it."""

    path: Path
    schema: dict[str, parameters.Parameter]
    origin: str
    sharing: list[tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> "Source":
        """The notebook in file `path`."""
        cells = [cell.source for cell in notebook.code_cells(notebook.read(path))]
        return cls(path, parameters.of(path), notebook.origin(cells), parameters.sharing(cells))


@dataclass(frozen=True)
class Job:
    """A notebook and its parameters. `place` is the folder, and the stem of files, of the list that it belongs to."""

    notebook: Path
    given: dict[str, Any]  # parameters, as papermill gets them
    key: str  # hash of all that goes in
    starts: tuple[str, ...]  # tell what it starts from, such as a teacher: jobs wait for the first one of a start
    place: Path
    name: str  # in summaries
    about: dict[str, Any] = field(default_factory=dict)  # what a sweep writes beside its numbers

    @classmethod
    def of(cls, source: Source, given: Mapping[str, Any], place: Path, **more: Any) -> "Job":
        """The job; a `{key}` in the name of `place` is filled in. ValueError names each wrong parameter."""
        given = json.loads(json.dumps(given))  # as a job reads them: keys are texts
        values = parameters.check(source.schema, given)
        here = source.path.parent
        named = [FILES[name] for name in FILES if name in values and values[name] is None]
        files = [here / text for text in (*named, *_texts(values)) if text and (here / text).is_file()]
        kept = {name: value for name, value in values.items() if name != "work"}  # where trainings lie is no matter
        key = digest([source.origin, repr(kept), [_contents(file) for file in files]])
        starts = tuple(parameters.shared(values, source.origin, without) for without in source.sharing)
        place = place.with_name(place.name.format(key=key))
        return cls(source.path, given, key, starts, place, **({"name": source.path.stem} | more))

    @property
    def kept(self) -> Path:
        """The executed notebook: the job is done where this lies."""
        return KEPT / f"{self.notebook.stem}-{self.key}.ipynb"

    @property
    def error(self) -> Path:
        """One line: why the last try failed."""
        return self.kept.with_suffix(".error")

    @property
    def failed(self) -> Path:
        """What a failing notebook had executed when it stopped, for a look."""
        return self.place.with_name(f"{self.place.name}.failed.ipynb")

    @property
    def lock(self) -> FileLock:
        """Held while a process executes the job; the system gives it back when that one ends, however it ends."""
        return FileLock(self.kept.with_suffix(".lock"))

    def running(self) -> bool:
        """Whether a process executes it now."""
        if not Path(self.lock.lock_file).exists():
            return False
        try:
            with self.lock.acquire(blocking=False):
                return False
        except Timeout:
            return True

    def show(self, path: Path) -> None:
        """Copy the executed notebook to `path`: whoever edits it there leaves what is kept as it is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            shutil.copyfile(self.kept, part)

    def state(self) -> dict[str, Any]:
        """Of a job that is done: minutes, device, and commit, empty outside of a repository."""
        return json.loads(self.kept.read_text("utf-8"))["metadata"]["run"]


def _texts(value: Any) -> Iterator[str]:
    """The texts in parameters, also within others."""
    value = vars(value) if isinstance(value, SimpleNamespace) else value
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)


def _contents(file: Path) -> str:
    state = file.stat()
    return _hash(file, state.st_mtime_ns, state.st_size)


@functools.lru_cache  # a sweep's jobs share their weights
def _hash(file: Path, *state: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def notebooks() -> dict[str, Path]:
    """The notebooks below the working directory by number; ValueError where two have the same one."""
    paths = sorted(Path("notebooks").glob("[0-9][0-9]_*.ipynb"))
    found = {path.name[:2]: path for path in paths}
    if not found:
        raise FileNotFoundError(f"there is no notebook NN_name.ipynb in {Path('notebooks').absolute()}")
    if len(found) < len(paths):
        raise ValueError(f"two notebooks have the same number: {' '.join(path.name for path in paths)}")
    return found


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def mapping(file: Path) -> dict[str, Any]:
    """What a YAML file holds; ValueError where it is no YAML or no mapping, or a key stands there twice."""
    with file.open(encoding="utf-8") as text:  # not its text: the error names the file
        try:
            content = yaml.load(text, _Loader) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {content!r} instead of lines name: value")
    return content


def plan(preset: str, numbers: str = "", device: str = "auto") -> list[Job]:
    """The jobs of a preset's notebooks, "02 03" or "" for all, in teaching order.

    ValueError for an unknown preset, notebook, device or parameter; FileNotFoundError for a missing preset file.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown PRESET {preset!r}: choose from {', '.join(PRESETS)}")
    if not re.fullmatch(parameters.DEVICES, device):
        raise ValueError(f"unknown DEVICE {device!r}: choose from auto, cpu, cuda")
    found = notebooks()
    wanted = {number.zfill(2) for number in numbers.split()} or set(found)
    if unknown := sorted(wanted - set(found)):
        raise ValueError(f"unknown NOTEBOOKS {' '.join(unknown)!r}: choose from {' '.join(found)}")
    jobs = []
    for number in sorted(wanted):
        file = Path("notebooks", "presets", preset, f"{number}.yaml")
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: the parameters of {found[number]} for PRESET {preset}")
        given, source = mapping(file), Source.read(found[number])
        if device != "auto" and "device" in source.schema:
            given["device"] = device
        try:
            jobs.append(Job.of(source, given, Path("runs", preset, source.path.stem)))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    return jobs


def preset(name: str, numbers: str, device: str) -> int:
    """Run a preset's notebooks, put them into runs/NAME, and return 0 if all are done."""
    jobs = plan(name, numbers, device)
    # A notebook uses every core; in the smoke preset, where most of the time goes to starting, two run at once.
    return start(jobs, Path("runs", name), 2 if name == "smoke" and not cards() else 0, bars=True)


def start(jobs: list[Job], folder: Path, at_once: int = 0, gpus: int = 1, profile: str = "", bars: bool = False) -> int:
    """Run the jobs that are not done, print a summary, and return 0 if all are done in the end.

    folder: of the list; Snakemake keeps its books there. While another process runs the list, this one waits.
    at_once: how many jobs, which share the processor's cores; 0: one on each GPU, or one where there is none.
    gpus: how many of these a job wants. profile: a folder of notebooks/sweeps/profiles, for jobs that run elsewhere.
    bars: each job shows its progress, and its notebook lies in `folder`; otherwise one bar shows that of the list.
    """
    known = sorted(path.name for path in PROFILES.glob("*"))
    if profile and profile not in known:
        raise ValueError(f"unknown PROFILE {profile!r}: choose from {', '.join(known)}")
    if not profile and not cards() and any(str(job.given.get("device")).startswith("cuda") for job in jobs):
        raise ValueError("device='cuda', but torch sees no GPU here; DEVICE=cpu runs notebooks, PROFILE=slurm sweeps")
    on = len(cards()) if gpus and not profile else 0
    at_once = at_once or max(1, on)
    KEPT.mkdir(parents=True, exist_ok=True)
    with alone(folder) as lock, (folder / "snakemake.log").open("a+") as log:
        if older := sum(job.running() for job in jobs if not job.kept.exists()):
            print(f"{older} of the jobs run already, started earlier; they are waited for", flush=True)
        before = {job.key for job in jobs if job.error.exists()}
        for job in jobs:
            job.error.unlink(missing_ok=True)
            job.failed.unlink(missing_ok=True)
            if bars and job.kept.exists():
                job.show(job.place.with_suffix(".ipynb"))
        # Those that failed the last time come last: no other job is to wait for them.
        ordered = sorted(jobs, key=lambda job: job.key in before)
        threads = max(1, (os.cpu_count() or 1) // at_once) if at_once > 1 and not profile else 0
        describe(ordered, folder / "plan.json", threads, pick=on > 0, bars=bars)
        call = command(folder, gpus)
        if any((folder / ".snakemake" / "locks").glob("*")):  # of one that was killed: it would hold our lock, too
            subprocess.run([*call, "--cores", "1", "--unlock"], stdout=log, stderr=log, check=True)
        call += ["--profile", str((PROFILES / profile).absolute())] if profile else ["--cores", str(at_once)]
        call += ["--resources", f"gpu={on}"] if on else []
        begin = log.seek(0, os.SEEK_END)
        # It holds the lock too: were this process killed, its jobs would go on.
        there = os.environ | {"E2LIB_PROFILE": str((PROFILES / profile).absolute())}
        output = {"stdout": None if bars else log, "stderr": log}
        process = subprocess.Popen(call, env=there, pass_fds=[lock.fileno()], **output)
        _watch(process, jobs, not bars and folder.name)
        log.seek(begin)
        said = log.read()
    print(summary(jobs, folder.name))
    if process.returncode < 0:
        print(f"Snakemake was ended by {signal.Signals(-process.returncode).name}; the same command goes on")
    elif process.returncode and not any(job.error.exists() for job in jobs):  # no notebook's fault
        print(said)
    return process.returncode


@contextlib.contextmanager
def alone(folder: Path, wait: bool = True) -> Iterator[IO[str]]:
    """The lock of the list of jobs in `folder`; without `wait`, ValueError while another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise ValueError(f"{folder.name} runs still; wait for it, or stop it and its Snakemake") from None
            print(f"{folder.name} runs already, started earlier; it is waited for", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def describe(jobs: list[Job], file: Path, threads: int = 0, pick: bool = False, bars: bool = False) -> None:
    """Write the plan that the Snakefile and `execute` read. A job waits for the first of its start until one is done.

    threads: of each job, 0 for its own choice. pick: jobs choose themselves a GPU that is free.
    """
    started = {start for job in jobs if job.kept.exists() for start in job.starts}
    first = {start: job for job in reversed(jobs) for start in job.starts if start not in started}

    def after(job: Job) -> list[str]:
        others = [first[start] for start in job.starts if start in first]
        return list(dict.fromkeys(str(other.kept.absolute()) for other in others if other.key != job.key))

    described = {}
    for number, job in enumerate(jobs, 1):
        about = {"notebook": str(job.notebook), "given": job.given, "place": str(job.place), "after": after(job)}
        about |= {"threads": threads, "pick": pick, "bar": bars and f"{number}/{len(jobs)}: {job.name}"}
        described[str(job.kept.absolute())] = about
    write(file, json.dumps(described))


def command(folder: Path, gpus: int) -> list[str]:
    """How Snakemake is called for the plan in `folder`, but for where the jobs run."""
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(Path("notebooks", "Snakefile").absolute())]
    # The name of what is kept tells what went in. Its books tell which jobs it had begun when it was killed.
    words += ["--directory", str(folder), "--rerun-triggers", "mtime", "--rerun-incomplete", "--keep-going"]
    return [*words, "--scheduler", "greedy", "--config", f"root={Path.cwd()}", f"gpus={gpus}"]


def _watch(process: subprocess.Popen, jobs: list[Job], title: str | bool) -> None:
    """Wait until the process ends, with a progress bar over the jobs."""
    missing = {job.kept for job in jobs if not job.kept.exists()}
    total = len({job.kept for job in jobs})
    often = 0.1 if sys.stderr.isatty() else 60  # seconds: few lines in a file
    how = {"desc": f"{title}", "unit": "job", "mininterval": often, "disable": not title}
    try:
        with tqdm(total=total, initial=total - len(missing), **how) as bar:
            while True:
                ended = process.poll() is not None
                new = {kept for kept in missing if kept.exists()}
                missing -= new
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
                if not any(job.running() for job in jobs):
                    process.kill()
        raise


def summary(jobs: list[Job], title: str) -> str:
    """How many are done, and a table: of every job where they are few, else of ten that failed."""
    done = [job for job in jobs if job.kept.exists()]
    failed = [job for job in jobs if job.error.exists() and not job.kept.exists()]
    text = f"\n{title}: {len(done)} of {len(jobs)} jobs done"
    if waiting := len(jobs) - len(done) - len(failed):
        text += f", {waiting} did not run"
    shown = jobs if len(jobs) <= 30 else failed[:10]
    width = max((len(job.name) for job in shown), default=0)
    for job in shown:
        status = f"failed: {job.error.read_text()}" if job in failed else "done" if job in done else "did not run"
        minutes = f"{job.state()['minutes']:.1f}" if job in done else "-"
        text += f"\n  {job.name:<{width}}  {minutes:>7} minutes  {status}"
    return text + (f"\n  and {len(failed) - 10} others failed" if shown is not jobs and len(failed) > 10 else "")


def execute(file: Path, kept: str) -> None:
    """Run the job that the plan in `file` describes for `kept`; SystemExit names notebook, cell and error if it fails.

    A job that outlived its Snakemake may run still: then this waits, and takes what that one makes.
    """
    about = json.loads(file.read_text("utf-8"))[kept]
    source = Source.read(Path(about["notebook"]))
    job = Job.of(source, about["given"], Path(about["place"]))  # as it is now
    if job.kept.absolute() != Path(kept):
        planned = Path(kept).with_suffix(".error")
        write(planned, "the notebook, its files or e2lib changed meanwhile; the same command runs it as it is now")
        sys.exit(f"{job.notebook}: {planned.read_text('utf-8')}")
    if about["threads"]:
        os.environ["OMP_NUM_THREADS"] = str(about["threads"])
    with job.lock:
        for rest in job.kept.parent.glob(f".{job.kept.name}.*"):  # of a try that was killed
            rest.unlink()
        if not job.kept.exists():
            job.error.unlink(missing_ok=True)  # of a job that outlived its Snakemake, and failed in the end
            with _card() if about["pick"] else contextlib.nullcontext():
                _execute(job, source, about["bar"])
    if about["bar"]:
        job.show(job.place.with_suffix(".ipynb"))


def _execute(job: Job, source: Source, bar: str) -> None:
    import nbformat
    import papermill

    os.environ.pop("MPLBACKEND", None)  # the kernel's own choice puts figures into the notebook
    os.environ[parameters.ORIGIN] = source.origin
    if log := os.environ.get("E2LIB_TENSORBOARD"):  # the notebook has another working directory
        os.environ["E2LIB_TENSORBOARD"] = str(Path(log).absolute())
    commit = _commit(job.notebook.parent)  # before: the code may be edited while this runs
    part = job.kept.with_name(f".{job.kept.name}.{secrets.token_hex(4)}.ipynb").absolute()
    interval = 0.1 if sys.stderr.isatty() else 20  # seconds between updates of the bar: few in a log file
    how = {"kernel_name": "python3", "language": "python", "cwd": job.notebook.parent}
    how |= {"extra_arguments": ["--log-level=ERROR"]}  # not the kernel's warnings about itself
    how |= {"progress_bar": bar and {"desc": f"notebook {bar}", "mininterval": interval}}
    begin, error = time.monotonic(), None
    try:
        papermill.execute_notebook(job.notebook, part, job.given, **how)
    except Exception as caught:  # of whatever kind: what was executed is kept for a look, and other notebooks go on
        error = caught
        if not part.exists():  # it could not even be written
            raise
        if isinstance(caught, OSError):  # of papermill, not of a cell: on a full disk, what is written is no notebook
            part.unlink()
            _fail(job, f"{type(caught).__name__}: {caught}")
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    executed = notebook.read(part)
    if trouble := _trouble(executed, error):
        job.failed.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, job.failed)
        _fail(job, f"{trouble} (see {job.failed})")
    minutes = round((time.monotonic() - begin) / 60, 2)
    executed.metadata["run"] = {"minutes": minutes, "device": _machine(job, source), "commit": commit}
    write(job.kept, nbformat.writes(executed) + "\n")
    part.unlink()


def _fail(job: Job, trouble: str) -> NoReturn:
    write(job.error, trouble)
    sys.exit(f"{job.notebook}: {trouble}")


def _trouble(executed: Any, error: Exception | None) -> str | None:
    """The first code cell that failed or did not finish, and why (`error`, where the cell itself shows none)."""
    for number, cell in enumerate(notebook.code_cells(executed), 1):
        where = f"code cell {number} ({cell.source.splitlines()[0]!r})"
        for output in cell.outputs:
            if output.output_type == "error":
                return f"{where}: {output.ename}: {output.evalue}"
        if "shell.execute_reply" not in cell.metadata.get("execution", {}):
            return f"{where}: {type(error).__name__}: {error}"
    return f"{type(error).__name__}: {error}" if error else None


def _machine(job: Job, source: Source) -> str:
    """What the notebook ran on: a GPU's name, or the processor's kind and the threads that torch takes of it."""
    import torch

    chosen = job.given.get("device", source.schema["device"].default) if "device" in source.schema else "cpu"
    if (kind := parameters.device(chosen)).type == "cuda":
        return torch.cuda.get_device_name(kind)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _commit(folder: Path) -> str:
    """The revision of the folder's repository, with -dirty where it was edited; empty outside of one."""
    asked = (["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain"])
    head, edited = (subprocess.run(call, cwd=folder, capture_output=True, text=True) for call in asked)
    return "" if head.returncode else head.stdout.strip() + ("-dirty" if edited.stdout.strip() else "")


@functools.cache
def cards() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    import torch  # here: on a login node nothing needs it

    return [str(i) for i in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _card() -> Iterator[None]:
    """Let this process, and what it starts, see one GPU that no other job on this machine uses, if there is one.

    A lock says so, which the system gives back when a process ends, however it ends.
    """
    folder = Path(tempfile.gettempdir())
    for name in cards():
        with (folder / f"e2lib-gpu-{os.getuid()}-{name.replace('/', '_')}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            yield
            return
    raise RuntimeError(f"other jobs use every GPU of this machine ({', '.join(cards())}); start fewer at once")
