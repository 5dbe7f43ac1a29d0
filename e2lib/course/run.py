"""Notebooks run once: each executed notebook is kept under a hash of everything that goes in.

`start` lets Snakemake run the jobs of a list that are not done: the notebooks of a preset, or the points of a sweep.
Snakemake calls `execute` for each of them.
"""

import contextlib
import ctypes
import fcntl
import functools
import glob
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
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import yaml
from tqdm import tqdm

from e2lib.course import notebook, parameters
from e2lib.disk import digest, digest_of_files, replacing, write

PRESETS = ("smoke", "laptop", "full", "paper", "real")
FILES = {"results": "results.csv", "claims": "claims.yaml"}  # parameter -> what None means: a file beside notebooks
KEPT = Path("runs", ".kept")  # hidden, because the notebooks of a sweep show test numbers
PROFILES = Path("notebooks", "sweeps", "profiles")
PATIENCE = 30.0  # seconds that a stopped Snakemake has to end once its jobs have ended
THREADS = 8  # of a job on a cluster


@contextlib.contextmanager
def locked(file: Path, waiting: str | None = None) -> Iterator[IO[str] | None]:
    """Hold the lock `file` and yield it as an open file. The system frees it when the process ends, even by a kill.

    While another process holds it: print `waiting` and wait, or yield None if `waiting` is None.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                yield None
                return
            print(waiting, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


@functools.lru_cache
def _read(path: Path, *state: int) -> tuple[dict[str, parameters.Parameter], str, list[tuple[str, ...]]]:
    """The parameters of a notebook, the digest of what its numbers come from, and what its jobs share."""
    cells = [cell.source for cell in notebook.code_cells(notebook.read(path))]
    return parameters.of(path), notebook.origin(cells), parameters.sharing(cells)


@functools.lru_cache
def _hash(path: Path, *state: int) -> str:
    """Digest of a file, or of the names, sizes and times of the files in a folder, such as photographs."""
    if path.is_file():
        return digest_of_files([path])
    names = sorted(glob.glob("**", root_dir=path, recursive=True))  # without hidden files
    return digest([(name, _state(path / name)) for name in names if (path / name).is_file()])


def _state(file: Path) -> tuple[int, int]:
    """Time and size of a file. If they are the same, it is not read again: jobs share notebooks and weights."""
    return file.stat().st_mtime_ns, file.stat().st_size


def _texts(value: Any) -> Iterator[str]:
    """All texts in a parameter, also within lists and dicts."""
    value = vars(value) if isinstance(value, SimpleNamespace) else value
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)


@dataclass(frozen=True)
class Job:
    """A notebook and its parameters."""

    notebook: Path
    given: dict[str, Any]  # the parameters that papermill gets
    device: str  # the one it asks for
    origin: str  # of the notebook
    key: str  # hash of everything that goes in
    read: list[str]  # names of files and folders among the parameters, whose content goes in as well
    starts: tuple[str, ...]  # say what it starts from, such as a teacher; the first job of a start runs before others
    kept: Path  # the executed notebook; the job is done when it exists
    error: Path  # one line on why the last try failed
    lock: Path  # held while a process executes the job
    place: Path  # where the list shows the executed notebook; without ending
    failed: Path  # what a notebook had executed when it failed, to look at
    name: str  # in the summary
    about: dict[str, Any]  # columns that a sweep adds to the numbers

    @classmethod
    def of(cls, path: Path, given: Mapping, place: Path, name: str = "", read: list | None = None, **about) -> "Job":
        """The job of the notebook in `path`; "{key}" in `place` is filled in. ValueError names each wrong parameter."""
        # As the job reads them from JSON: keys are texts. Paths may begin with a variable, such as $E2LIB_REAL.
        given = json.loads(os.path.expandvars(json.dumps(given)))
        schema, origin, sharing = _read(path, *_state(path))
        values = parameters.check(schema, given)
        kept = {name: value for name, value in values.items() if name != "work"}  # the work folder changes no number
        named = [*(file for name, file in FILES.items() if kept.get(name, "") is None), *_texts(kept)]
        named = {text: path.parent / os.path.expanduser(text) for text in named if text}
        read = [text for text, file in named.items() if os.path.exists(file) and (read is None or text in read)]
        key = digest([origin, repr(kept), [_hash(named[text], *_state(named[text])) for text in read]])
        starts = tuple(parameters.shared(values, origin, without) for without in sharing)
        done, place = KEPT / f"{path.stem}-{key}.ipynb", Path(str(place).replace("{key}", key))
        beside = (done, done.with_suffix(".error"), done.with_suffix(".lock"))
        failed, device = place.with_name(f"{place.name}.failed.ipynb"), values.get("device") or "cpu"
        return cls(path, given, device, origin, key, read, starts, *beside, place, failed, name or path.stem, about)

    def running(self) -> bool:
        """Whether a process is executing it."""
        if not self.lock.exists():
            return False
        with locked(self.lock) as free:
            return free is None

    def show(self, path: Path) -> None:
        """Copy the executed notebook to `path`. Edits of the copy do not change what is kept."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            shutil.copyfile(self.kept, part)

    def state(self) -> dict[str, Any]:
        """Minutes, device and commit of a job that is done. The commit is empty outside a repository."""
        return json.loads(self.kept.read_text("utf-8"))["metadata"]["run"]


def notebooks() -> dict[str, Path]:
    """The notebooks of the working directory by number, such as 04, or 04b, which goes on where lesson 04 ends.

    ValueError if two have the same number.
    """
    paths = sorted(Path("notebooks").glob("[0-9][0-9]*_*.ipynb"))
    found = {path.name.partition("_")[0]: path for path in paths}
    if not found:
        raise FileNotFoundError(f"there is no notebook NN_name.ipynb in {Path('notebooks').absolute()}")
    if len(found) < len(paths):
        raise ValueError(f"two notebooks have the same number: {' '.join(path.name for path in paths)}")
    return found


class _Loader(yaml.SafeLoader):
    """Refuses a key that is in a mapping twice, even in two spellings, such as 5 and "5", or 0.1 and 0.10."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.value != "<<"]
        keys = [parameters.as_key(self.construct_object(key, deep=True), float) for key in own]
        if twice := [str(key.value) for i, key in enumerate(own) if keys[i] in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def of_yaml(text: str | bytes, name: str) -> Any:
    """The content of a YAML text. ValueError gives its `name` if it is no YAML, or has a key twice."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no YAML: {error}") from None


def mapping(file: Path, kind: type = dict) -> Any:
    """The content of a YAML file, a dict or list (`kind`). ValueError as for `of_yaml`, and for any other content."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}")
    content = of_yaml(file.read_bytes(), str(file))
    if content is not None and not isinstance(content, kind):
        raise ValueError(f"{file} holds {content!r} instead of {'lines name: value' if kind is dict else 'a list'}")
    return content or kind()


def chosen(kind: str, words: str, known: Mapping[str, Any]) -> list[str]:
    """The known names that are among `words`, or all if there are no words. ValueError for an unknown word."""
    if unknown := [word for word in words.split() if word not in known]:
        raise ValueError(f"unknown {kind} {' '.join(unknown)!r}: choose from {' '.join(known)}")
    return [name for name in known if name in words.split() or not words.split()]


def plan(preset: str, numbers: str = "", device: str = "auto") -> list[Job]:
    """The jobs of a preset's notebooks in teaching order; `numbers` chooses some, as "02 03" does.

    A notebook belongs to a preset that has a file for it. The laptop preset leaves out notebooks such as 04b, which go
    on where a lesson ends, unless they are chosen. ValueError for an unknown preset, notebook, device or parameter;
    FileNotFoundError if the folder of photographs is missing, which the preset real takes from E2LIB_REAL.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown PRESET {preset!r}: choose from {', '.join(PRESETS)}")
    if not re.fullmatch(parameters.DEVICES, device):
        raise ValueError(f"unknown DEVICE {device!r}: choose from auto, cpu, cuda")
    if preset == "real" and not (real := Path(os.path.expandvars("$E2LIB_REAL"))).is_dir():
        raise FileNotFoundError(f"there is no folder {real}; REAL=FOLDER names one with voc2007/, waterbirds100/, ...")
    words = " ".join(word.zfill(2 + word[-1].isalpha()) for word in numbers.split())
    found, jobs, lessons = notebooks(), [], preset == "laptop" and not words
    files = {number: Path("notebooks", "presets", preset, f"{number}.yaml") for number in found}
    files = {number: file for number, file in files.items() if file.is_file() and not (lessons and number[2:])}
    for number in chosen("NOTEBOOKS", words, files):
        path, file = found[number], files[number]
        given = mapping(file)
        if device != "auto" and "device" in parameters.of(path):
            given["device"] = device
        try:
            jobs.append(Job.of(path, given, Path("runs", preset, path.stem)))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    return jobs


def start(jobs: list[Job], folder: Path, at_once: int = 0, gpus: int = 1, profile: str = "", bars: bool = False) -> int:
    """Run the jobs that are not done, print a summary, and return 0 if all are done in the end.

    folder: where Snakemake keeps its records of this list. While another process runs the list, this one waits.
    at_once: the number of jobs that run at once and share the cores. 0: one per GPU, or one if there is no GPU.
    gpus: how many GPUs a job needs. profile: a folder of notebooks/sweeps/profiles, for jobs that run elsewhere.
    bars: show the progress of each job and put its notebook into `folder`. Otherwise one bar shows the whole list.
    """
    known = sorted(path.name for path in PROFILES.glob("*"))
    if profile and profile not in known:
        raise ValueError(f"unknown PROFILE {profile!r}: choose from {', '.join(known)}")
    if not profile and not cards() and any(job.device.startswith("cuda") for job in jobs):
        raise ValueError("device='cuda', but torch sees no GPU here; DEVICE=cpu runs notebooks, PROFILE=slurm sweeps")
    on, elsewhere = len(cards()) if gpus and not profile else 0, str((PROFILES / profile).absolute())
    at_once = at_once or max(1, on)
    waiting = f"{folder.name} is already running; waiting for it to end"
    with locked(folder / "lock", waiting) as lock, (folder / "snakemake.log").open("a+") as log:
        if older := sum(job.running() for job in jobs if not job.kept.exists()):
            print(f"{older} of the jobs, started earlier, still running; waiting for them", flush=True)
        # Jobs that failed last time come last, so that no other job waits for them.
        ordered = sorted(jobs, key=lambda job: job.error.exists())
        for job in jobs:
            job.error.unlink(missing_ok=True)
            job.failed.unlink(missing_ok=True)
            if bars and job.kept.exists():
                job.show(job.place.with_suffix(".ipynb"))
        describe(ordered, folder / "plan.json", pick=on > 0, bars=bars)
        # A lock of Snakemake itself is left from a kill: a living Snakemake would hold our lock, too.
        shutil.rmtree(folder / ".snakemake" / "locks", ignore_errors=True)
        threads = max(1, (os.cpu_count() or 1) // at_once) if not profile else THREADS
        call = command(folder, gpus, threads)
        call += ["--profile", elsewhere] if profile else ["--cores", str(threads * at_once)]
        call += ["--resources", f"gpu={on}"] if on else []
        begin = log.seek(0, os.SEEK_END)
        output = {"stdout": None if bars else log, "stderr": log, "env": os.environ | {"E2LIB_PROFILE": elsewhere}}
        # Snakemake holds our lock, too: if this process is killed, the jobs go on.
        process = subprocess.Popen(call, pass_fds=[lock.fileno()], **output)
        _watch(process, jobs, not bars and folder.name)
        log.seek(begin)
        said = log.read()
    print(summary(jobs, folder.name) + (f"\n{folder}/ holds the executed notebooks" if bars else ""))
    if process.returncode < 0:
        print(f"Snakemake was ended by {signal.Signals(-process.returncode).name}; run the same command to continue")
    elif process.returncode and not any(job.error.exists() for job in jobs):  # not because a notebook failed
        print(said)
    return process.returncode


def describe(jobs: list[Job], file: Path, pick: bool = False, bars: bool = False) -> None:
    """Write the plan that the Snakefile and `execute` read. Jobs with one start wait for the first of them.

    pick: each job chooses a free GPU.
    """
    started = {start for job in jobs if job.kept.exists() for start in job.starts}
    first = {start: job for job in reversed(jobs) for start in job.starts if start not in started}
    described = {}
    for number, job in enumerate(jobs, 1):
        others = dict.fromkeys(first[start].kept for start in job.starts if start in first)
        after = [str(other.absolute()) for other in others if other != job.kept]
        about = {"notebook": str(job.notebook), "given": job.given, "place": str(job.place), "read": job.read}
        about |= {"after": after, "pick": pick, "bar": bars and f"{number}/{len(jobs)}: {job.name}"}
        described[str(job.kept.absolute())] = about
    write(file, json.dumps(described))


def command(folder: Path, gpus: int, threads: int = 1) -> list[str]:
    """The command that runs Snakemake on the plan in `folder`, without the options on where jobs run."""
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(Path("notebooks", "Snakefile").absolute())]
    # A name already says what went in. Snakemake's records say which jobs were running when it was killed.
    words += ["--directory", str(folder), "--rerun-triggers", "mtime", "--rerun-incomplete", "--keep-going"]
    return [*words, "--scheduler", "greedy", "--config", f"root={Path.cwd()}", f"gpus={gpus}", f"threads={threads}"]


def _watch(process: subprocess.Popen, jobs: list[Job], title: str | bool) -> None:
    """Wait until the process ends, with a progress bar over the jobs."""
    kept, ended = {job.kept for job in jobs}, False
    often = 0.1 if sys.stderr.isatty() else 60  # seconds: few lines in a log file
    try:
        with tqdm(desc=f"{title}", total=len(kept), unit="job", mininterval=often, disable=not title) as bar:
            while not ended:
                ended = process.poll() is not None
                bar.update(sum(path.exists() for path in kept) - bar.n)
                time.sleep(0 if ended else 0.5)
    except BaseException:
        process.terminate()  # Snakemake starts no more jobs, and ends after the running ones
        while process.poll() is None:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                # A signal that arrives while Snakemake holds its own lock makes it wait for itself forever.
                if not any(job.running() for job in jobs):
                    process.kill()
        raise


def summary(jobs: list[Job], title: str) -> str:
    """How many jobs are done, and a table of all jobs, or of ten failed ones if there are more than 30 jobs."""
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
    """Run the job that the plan in `file` describes for `kept`. SystemExit names the notebook, cell and error.

    The job may still run, because it outlived its Snakemake. Then this waits for it and uses its result.
    """
    # nbformat would compile its grammar of web addresses, which takes a second and serves no notebook.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    about = json.loads(file.read_text("utf-8"))[kept]
    job = Job.of(Path(about["notebook"]), about["given"], Path(about["place"]), read=about["read"])  # as it is now
    if job.kept.absolute() != Path(kept):
        trouble = "the notebook, its files or e2lib changed meanwhile; the same command runs it as it is now"
        write(Path(kept).with_suffix(".error"), trouble)
        sys.exit(f"{job.notebook}: {trouble}")
    with locked(job.lock, f"{job.notebook} is already running; waiting for it to end"):
        for rest in job.kept.parent.glob(f".{job.kept.name}.*"):  # left by a kill
            rest.unlink()
        if not job.kept.exists():
            job.error.unlink(missing_ok=True)  # left by a job that outlived its Snakemake and failed
            with _card() if about["pick"] else contextlib.nullcontext():
                _execute(job, about["bar"])
    if about["bar"]:
        job.show(job.place.with_suffix(".ipynb"))


def _execute(job: Job, bar: str) -> None:
    import nbformat
    import papermill

    os.environ.pop("MPLBACKEND", None)  # the kernel's own choice puts figures into the notebook
    os.environ[parameters.ORIGIN] = job.origin
    if log := os.environ.get("E2LIB_TENSORBOARD"):  # the notebook has another working directory
        os.environ["E2LIB_TENSORBOARD"] = str(Path(log).absolute())
    commit = _commit(job.notebook.parent)  # now, because the code may be edited while this runs
    part = job.kept.with_name(f".{job.kept.name}.{secrets.token_hex(4)}.ipynb").absolute()
    interval = 0.1 if sys.stderr.isatty() else 20  # seconds between updates of the bar: few in a log file
    how = {"kernel_name": "python3", "language": "python", "cwd": job.notebook.parent}
    how |= {"extra_arguments": ["--log-level=ERROR"]}  # not the kernel's warnings about itself
    how |= {"progress_bar": bar and {"desc": f"notebook {bar}", "mininterval": interval}}
    begin, error = time.monotonic(), None
    try:
        papermill.execute_notebook(job.notebook, part, job.given, **how)
    except Exception as caught:  # of any kind: what was executed is kept to look at, and other notebooks go on
        error = caught
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    trouble = f"{type(error).__name__}: {error}"
    if part.exists() and not isinstance(error, OSError):  # on a full disk, the file is not a notebook
        executed = notebook.read(part)
        if trouble := _trouble(executed, error):
            job.failed.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, job.failed)
            trouble += f" (see {job.failed})"
    part.unlink(missing_ok=True)
    if trouble:
        write(job.error, trouble)
        sys.exit(f"{job.notebook}: {trouble}")
    minutes = round((time.monotonic() - begin) / 60, 2)
    executed.metadata["run"] = {"minutes": minutes, "device": _machine(job.device), "commit": commit}
    write(job.kept, nbformat.writes(executed) + "\n")


def _trouble(executed: Any, error: Exception | None) -> str | None:
    """The first code cell that failed or did not finish, and why. `error` counts if the cell itself shows none."""
    for number, cell in enumerate(notebook.code_cells(executed), 1):
        where = f"code cell {number} ({cell.source.splitlines()[0]!r})"
        for output in cell.outputs:
            if output.output_type == "error":
                return f"{where}: {output.ename}: {output.evalue}"
        if "shell.execute_reply" not in cell.metadata.get("execution", {}):
            return f"{where}: {type(error).__name__}: {error}"
    return f"{type(error).__name__}: {error}" if error else None


def _machine(device: str) -> str:
    """The name of the GPU, or the kind of processor and the number of threads that Snakemake gives to torch."""
    if device == "cpu" or not cards():
        return f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads"
    import torch

    return torch.cuda.get_device_name(parameters.device(device))


def _commit(folder: Path) -> str:
    """The revision of the repository of `folder`, with -dirty if it has edits; empty outside a repository."""
    asked = (["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain"])
    head, edited = (subprocess.run(call, cwd=folder, capture_output=True, text=True) for call in asked)
    return "" if head.returncode else head.stdout.strip() + ("-dirty" if edited.stdout.strip() else "")


@functools.cache
def cards() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    try:
        ctypes.CDLL("libcuda.so.1")  # NVIDIA's driver
    except OSError:
        return []
    import torch  # here, because it takes seconds

    count = torch.cuda.device_count()  # CUDA takes the names before the first that is no GPU, such as -1
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named is not None else [str(i) for i in range(count)]


@contextlib.contextmanager
def _card() -> Iterator[None]:
    """Show this process and its children one GPU that no other job on this machine uses, if there is a GPU."""
    for name in cards():
        file = Path(tempfile.gettempdir(), f"e2lib-gpu-{os.getuid()}-{name.replace('/', '_')}.lock")
        with locked(file) as free:
            if free:
                os.environ["CUDA_VISIBLE_DEVICES"] = name
                yield
                return
    raise RuntimeError(f"other jobs use every GPU of this machine ({', '.join(cards())}); start fewer at once")
