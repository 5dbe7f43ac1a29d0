"""Parameters of notebooks, and their execution: a run is named by the hash of what goes in, finished by its marker.

`python -m e2lib.course.runs run` executes notebooks: Snakemake starts `execute` once for each that is not finished.
`python -m e2lib.course.runs publish` writes their outputs into their sources.
"""

import argparse
import ast
import atexit
import contextlib
import difflib
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Self

import yaml
from filelock import FileLock, Timeout
from IPython.core.inputtransformer2 import TransformerManager
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from e2lib.disk import replacing

if TYPE_CHECKING:
    import nbformat  # otherwise where it is used: it takes two seconds, and a notebook that is opened needs it not

PRESETS = ("smoke", "laptop", "paper")
DEVICES = r"auto|cpu|cuda(:\d+)?"
FILES = {"results": "results.csv", "claims": "claims.yaml"}  # parameter -> what it is by default, beside the notebooks
WIDGET = "application/vnd.jupyter.widget-view+json"
SOURCE = "E2LIB_NOTEBOOK"  # environment variable: the hash of the code of the notebook that `execute` runs
NUMBERS = "application/vnd.e2lib.numbers+json"  # rows of numbers in a notebook's output
EXERCISE = "exercise"  # tag of cells that `python -m e2lib.course.exercises` writes, in which readers work
# A notebook's own parameters cell goes on after the colon; the cell that papermill injects begins with the bare word.
OWN_CELL, INJECTED_CELL = "# Parameters:", "# Parameters\n"


def device(name: str):
    """The torch.device of auto (CUDA where there is one), cpu, cuda or cuda:N; ValueError for others."""
    import torch  # here: running and publishing notebooks need no torch, and start at once without it

    name = str(name)
    if not re.fullmatch(DEVICES, name):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and int(name[5:] or 0) >= torch.cuda.device_count():
        raise ValueError(f"torch sees {torch.cuda.device_count()} CUDA devices here; use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _known_data(name: str) -> str:
    return _known(name, without=("imagefolder",))  # it has no boxes


def _known_source(name: str) -> str:
    return _known(name, without=("voc", "coco"))  # their images have several labels


def _known(name: str, without: tuple[str, ...]) -> str:
    from e2lib import datasets  # here, as torch above

    known = [name for name in (*datasets.EMBEDDED, *datasets.ON_DISK) if name not in without]
    if name not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return name


def _known_size(size: int) -> int:
    if size not in range(64, 225, 32):
        raise ValueError("must be a multiple of 32 from 64 to 224 (pixels a side)")
    return size


def _known_losses(lambdas: dict[str, Any]) -> dict[str, Any]:
    from e2lib.guidance import LOSSES  # here, as torch above

    if "energy" not in lambdas or lambdas.keys() - LOSSES.keys():
        others = ", ".join(name for name in LOSSES if name != "energy")
        raise ValueError(f"must have values for energy, and may have some for {others}")
    return lambdas


def _known_rule(name: str) -> str:
    from e2lib.groups import RULES  # here, as torch above

    if name not in RULES:
        raise ValueError(f"must be one of {', '.join(RULES)}")
    return name


class Pace(BaseModel):
    """How a network is trained, but for the epochs: as for `training.fit`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    lr: Annotated[float, Field(gt=0)]
    batch_size: Annotated[int, Field(strict=True, ge=1)] = 32
    workers: Annotated[int, Field(strict=True, ge=0)] = 0


class Fit(Pace):
    """With a number of epochs."""

    epochs: Annotated[int, Field(strict=True, ge=1)]


class Schedule(Fit):
    """With `start_epochs` of plain training before all else."""

    start_epochs: Annotated[int, Field(strict=True, ge=0)] = 0


class WholeSchedule(Fit):
    """With images of its own, boxes for some of them, and a λ."""

    size: Annotated[int, Field(strict=True), AfterValidator(_known_size)]
    images: Annotated[int, Field(strict=True, ge=1)]
    boxes: Annotated[float, Field(gt=0, le=1)]  # the share of images that have some
    weight: Annotated[float, Field(gt=0)]  # λ


class Network(BaseModel):
    """A network and where it starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: Annotated[str, Field(min_length=1)]  # a name that models.build knows
    weights: str | None  # imagenet, scenes, a file, or None


class Student(Network, Pace):
    """And how it learns."""


class Taught(Student):
    """With the τ of the answers that it imitates."""

    temperature: Annotated[float, Field(gt=0)] = 1.0


class Trained(Student):
    """With a number of epochs."""

    epochs: Annotated[int, Field(strict=True, ge=1)]


class Teacher(Student):
    """With a number of epochs; 0: its weights are what it has learned."""

    epochs: Annotated[int, Field(strict=True, ge=0)]


class Unrelated(Trained):
    """A student that sees the images of another folder; None: of embedded data."""

    root: Annotated[Path, AfterValidator(Path.expanduser)] | None


class GuidedHead(Network):
    """With the λ of the energy loss that guides it, and a number of epochs."""

    energy: Annotated[float, Field(gt=0)]
    epochs: Annotated[int, Field(strict=True, ge=1)]


class Guided(Trained, GuidedHead):
    """With that of L1 as well."""

    l1: Annotated[float, Field(gt=0)]


class Pupil(Trained):
    """With the λ of its explanation term."""

    weight: Annotated[float, Field(gt=0)]


class WholeStudent(Network):
    """With the λ of its explanation term, images of its own, and more: rivals to compare with, α of mixup (0: none)."""

    weight: Annotated[float, Field(gt=0)]
    size: Annotated[int, Field(strict=True), AfterValidator(_known_size)]
    images: Annotated[int, Field(strict=True, ge=1)]
    rivals: bool = False  # AT, ReviewKD and CAT-KD as well
    mixup: Annotated[float, Field(ge=0)] = 0.0


class Explained(BaseModel):
    """What a student's explanations are, and the λ of their term: as for `distillation.Distill`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Literal["gradcam", "ixg", "bcos", "weights"]
    at: Literal["Input", "Mid1", "Mid2", "Mid3", "Final"]
    weight: Annotated[float, Field(gt=0)]
    every: Annotated[int, Field(strict=True, ge=1)] = 1

    @model_validator(mode="after")
    def _weights_are_of_the_input(self) -> Self:
        if self.method == "weights" and self.at != "Input":
            raise ValueError("at must be Input for method weights")
        return self


class Images(BaseModel):
    """A second data set of a notebook."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    data: Annotated[str, AfterValidator(_known_data)]
    data_root: Annotated[Path, AfterValidator(Path.expanduser)] | None
    size: Annotated[int, Field(strict=True), AfterValidator(_known_size)]
    images: Annotated[int, Field(strict=True, ge=1)]
    measured: Annotated[int, Field(strict=True, ge=1)]


# Every parameter that some notebook has: its type and limits. A new one takes one line here.
TYPES = {
    "data": Annotated[str, AfterValidator(_known_data)],
    "data_root": Annotated[Path, AfterValidator(Path.expanduser)] | None,  # folder of the real data
    "source": Annotated[str, AfterValidator(_known_source)],  # data for which no boxes are needed
    "source_root": Annotated[Path, AfterValidator(Path.expanduser)] | None,
    "size": Annotated[int, Field(strict=True), AfterValidator(_known_size)],  # pixels a side
    "results": Annotated[Path, AfterValidator(Path.expanduser)] | None,  # file of numbers, and of claims; None: FILES
    "claims": Annotated[Path, AfterValidator(Path.expanduser)] | None,
    "images": Annotated[int, Field(strict=True, ge=1)],  # how many are looked at, or trained with
    "measured": Annotated[int, Field(strict=True, ge=1)],  # validation images, and as many test images
    "seed": Annotated[int, Field(strict=True, ge=0)],
    "device": Annotated[Any, AfterValidator(device)],
    "model": Annotated[str, Field(min_length=1)],  # a name that models.build knows
    "weights": str | None,  # where the network starts: imagenet, scenes, a file, or None
    "teacher": Teacher,
    "student": Taught,
    "explained": Explained,
    # images a class, or all -> epochs
    "shots": Annotated[
        dict[Annotated[int, Field(ge=1)] | Literal["all"], Annotated[int, Field(ge=1)]], Field(min_length=1)
    ],
    "crops": bool,
    "birds": Pupil,
    "unrelated": Unrelated,
    "vit": Trained,
    "cnn": Teacher,  # the teacher of other families
    "students": Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)],  # names of other families
    "guided_head": GuidedHead,
    "head": Pupil,
    "network": WholeStudent,
    "network_schedule": Fit,
    "scenes": Images,
    "guided": Guided,
    "pupil": Pupil,
    "depths": Annotated[list[Literal["Input", "Mid1", "Mid2", "Mid3", "Final"]], Field(min_length=1)],
    "lambdas": Annotated[
        dict[str, Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]], AfterValidator(_known_losses)
    ],
    "lambda_of": Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_known_losses)],  # one a loss
    # share of images with boxes -> how often these come in an epoch
    "fractions": Annotated[dict[Annotated[float, Field(gt=0, le=1)], Annotated[int, Field(ge=1)]], Field(min_length=1)],
    # 0.1: boxes widened by a tenth
    "dilations": Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)],
    "schedule": Schedule,
    "head_schedule": Fit,
    "family_schedule": Fit,
    "whole": WholeSchedule,  # the schedule of a whole network, where another one is that of its head
    "rule": Annotated[str, AfterValidator(_known_rule)],  # how an epoch is chosen
    "work": Annotated[Path, AfterValidator(Path.expanduser)] | None,  # folder that keeps trainings
}


def parameters(namespace: Mapping[str, Any]) -> BaseModel:
    """The checked parameters, as attributes, of the notebook that passes its `globals()`.

    Their names are those that its parameters cell assigns; that cell's first line has the words '# Parameters:'.
    ValueError names each unknown parameter and each wrong value, whether from this cell or from papermill.
    """
    # IPython records the cells run so far in In: what other cells have assigned since is no parameter.
    sources = [source + "\n" for source in namespace.get("In", [])]
    own = [source for source in sources if _is_own(source)]
    injected = [source for source in sources if source.startswith(INJECTED_CELL)]
    # nbval runs cells unrecorded, but always from the first on
    names = list(assigned(own[-1])) if own else [name for name in TYPES if name in namespace]
    if not names:
        raise ValueError(f"no parameter is set: first run the cell whose first line has {OWN_CELL!r}")
    given = [*names, *(name for source in injected for name in assigned(source))]
    checked = validated(names, {name: namespace[name] for name in given})
    fields = type(checked).model_fields
    for name in ("data", "source"):
        if {name, f"{name}_root"} <= fields.keys():
            _check_root(name, getattr(checked, name), getattr(checked, f"{name}_root"))
    if "scenes" in fields:
        _check_root("scenes.data", checked.scenes.data, checked.scenes.data_root)
    if {"unrelated", "source"} <= fields.keys():
        _check_root("source", checked.source, checked.unrelated.root, "unrelated.root")
    return checked


def _is_own(source: str) -> bool:
    return OWN_CELL in source.partition("\n")[0]


def validated(names: Iterable[str], values: Mapping[str, Any]) -> BaseModel:
    """`values` of the parameters `names`, checked one by one: types and limits, not whether folders exist.

    ValueError names each that is unknown, missing or wrong.
    """
    model = _model(tuple(name for name in names if name in TYPES))
    try:
        return model(**values)
    except ValidationError as error:
        # pydantic's own text would repeat this less clearly
        raise ValueError("\n".join(_complaint(item, model) for item in error.errors())) from None


@functools.cache
def _model(names: tuple[str, ...]) -> type[BaseModel]:
    fields = {name: (TYPES[name], ...) for name in names}
    return create_model("Parameters", __config__=ConfigDict(extra="forbid", frozen=True), **fields)


def assigned(source: str) -> dict[str, ast.expr]:
    """The names that a cell assigns at its top level, each with the expression of its value."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    return found


def _complaint(item: Mapping[str, Any], model: type[BaseModel]) -> str:
    name, known = ".".join(map(str, item["loc"])), list(model.model_fields)
    if len(item["loc"]) > 1:  # a field of a parameter
        outer = item["loc"][0]
        known = [f"{outer}.{field}" for field in getattr(model.model_fields[outer].annotation, "model_fields", ())]
    if item["type"] != "extra_forbidden":
        return f"parameter {name}={item['input']!r}: {item['msg'].removeprefix('Value error, ')}"
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown parameter {name!r}: {hint}Here are {', '.join(known)}"


def _check_root(name: str, data: str, root: Path | None, where: str = "") -> None:
    from e2lib import datasets

    where = where or f"{name}_root"
    given = f"parameter {where}={root and str(root)!r}"
    if data in datasets.EMBEDDED and root is not None:
        raise ValueError(f"{given}: {name}={data!r} is embedded, leave {where}=None")
    if data in datasets.ON_DISK and (root is None or not root.is_dir()):
        raise ValueError(f"{given}: {name}={data!r} needs a folder with {datasets.ON_DISK[data].layout}")


@dataclass(frozen=True)
class Run:
    """One notebook with one preset: what goes in, and where its results lie (below the working directory)."""

    notebook: Path
    preset: str
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """The notebook's file name without its ending."""
        return self.notebook.stem

    @functools.cached_property
    def key(self) -> str:
        """Twelve hex digits: the hash of the notebook's code cells, its parameters and e2lib's code.

        And the files of numbers and claims that it reads. Not its text, which changes no number and is written when the
        numbers are known.
        """
        files = [self.notebook, *_library()]
        states = [(path, state.st_mtime_ns, state.st_size) for path in files for state in [path.stat()]]
        code, own = _source(tuple(states))
        files = [(own | self.parameters)[name] or file for name, file in FILES.items() if name in own]
        return digest([code, self.parameters, *((self.notebook.parent / file).read_text() for file in files)])

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return Path("runs", self.preset, self.notebook.name)

    @property
    def failed(self) -> Path:
        """What a failing notebook had executed when it stopped, for a look."""
        return self.output.with_suffix(".failed.ipynb")

    @property
    def marker(self) -> Path:
        """Written last: the run is finished where this lies."""
        return self.output.with_name(".state") / f"{self.name}-{self.key}.json"

    @property
    def error(self) -> Path:
        """One line: why the last try failed."""
        return self.output.with_name(".state") / f"{self.name}.error"

    @property
    def lock(self) -> FileLock:
        """Held while a process executes the run; the system gives it back when that one ends, however it ends."""
        return FileLock(self.error.with_suffix(".lock"))

    def running(self) -> bool:
        """Whether a process executes it now."""
        if not self.marker.parent.exists():
            return False
        try:
            with self.lock.acquire(blocking=False):
                return False
        except Timeout:
            return True


@functools.lru_cache(maxsize=16)  # of ten thousand runs of a sweep each asks
def _source(files: tuple[tuple[Path, int, int], ...]) -> tuple[str, dict[str, Any]]:
    """The hash of the code cells of the first file, a notebook, and of the other files; and the notebook's defaults.

    The files' states tell whether they were edited.
    """
    (notebook, *_), *others = files
    cells = [cell.source for cell in code_cells(read(notebook))]
    return digest([cells, _contents(path for path, *_ in others)]), defaults(notebook)


def _library() -> list[Path]:
    """The files of e2lib, but for the exercises, which change no number of a notebook."""
    return _files(Path(__file__).parents[1])


@functools.cache  # as above
def _files(library: Path) -> list[Path]:
    return [path for path in sorted(library.rglob("*.py")) if path.parent.name != "exercises"]


def _contents(files: Iterable[Path]) -> list[tuple[str, str]]:
    here = Path(__file__).parents[1]
    return [(path.relative_to(here).as_posix(), path.read_text()) for path in files]


def work_folder(parameters: BaseModel, without: Iterable[str] = ()) -> Path:
    """The folder below `parameters.work` of these parameters, the notebook's and e2lib's code; not of the device.

    Where `work` is None, or no parameter, a temporary one, which is removed when the process ends.

    without: names of parameters that make no difference either. What does not depend on them, such as a baseline that
        is guided with several λ, is kept there for all of them. Jobs of a sweep that share such a folder wait for the
        first of them.
    """
    if getattr(parameters, "work", None) is None:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)
    if unknown := {*without} - type(parameters).model_fields.keys():
        raise ValueError(f"without names {', '.join(sorted(unknown))}, which are no parameters")
    values = parameters.model_dump(mode="json", exclude={"device", "work", *without})
    return parameters.work / digest([values, _contents(_library()), os.environ.get(SOURCE, "")])


def sharing(path: Path) -> list[tuple[str, ...]]:
    """For each folder that a notebook asks `work_folder` for, which parameters make no difference to it."""
    calls = [
        node
        for cell in code_cells(read(path))
        for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "runs.work_folder"
    ]
    return [ast.literal_eval(keyword.value) for call in calls for keyword in call.keywords if keyword.arg == "without"]


def plan(preset: str, notebooks: str = "", device: str = "auto") -> list[Run]:
    """The runs of `notebooks` ("02 03"; "" for all) below the working directory, in teaching order.

    ValueError for an unknown preset, notebook or device; FileNotFoundError for a missing preset file.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown PRESET {preset!r}: choose from {', '.join(PRESETS)}")
    if not re.fullmatch(DEVICES, device):
        raise ValueError(f"unknown DEVICE {device!r}: choose from auto, cpu, cuda")
    paths = sorted(Path("notebooks").glob("[0-9][0-9]_*.ipynb"))
    found = {path.name[:2]: path for path in paths}
    if not found:
        raise FileNotFoundError(f"there is no notebook NN_name.ipynb in {Path('notebooks').absolute()}")
    if len(found) < len(paths):
        raise ValueError(f"two notebooks have the same number: {' '.join(path.name for path in paths)}")
    wanted = {number.zfill(2) for number in notebooks.split()} or set(found)
    if unknown := sorted(wanted - set(found)):
        raise ValueError(f"unknown NOTEBOOKS {' '.join(unknown)!r}: choose from {' '.join(found)}")
    runs = []
    for number in sorted(wanted):
        file = Path("notebooks", "presets", preset, f"{number}.yaml")
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: the parameters of {found[number]} for PRESET {preset}")
        values = yaml.safe_load(file.read_text()) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{file} holds {values!r} instead of lines name: value")
        if device != "auto" and "device" in assigned(_parameters_cell(found[number])):
            values["device"] = device
        runs.append(Run(found[number], preset, values))
    return runs


def execute(run: Run, marker: Path, position: str = "", place: Callable = contextlib.nullcontext) -> None:
    """Executes a notebook with papermill; SystemExit names the notebook, the cell and the error where it fails.

    A job that outlived its Snakemake may execute it still: then this waits, and takes what that one makes.

    position: "2/10", for the progress bar; without it there is none. place: makes the context to execute it in.
    """
    run.marker.parent.mkdir(parents=True, exist_ok=True)
    with run.lock:
        if marker != replace(run).marker:  # as it is now
            _fail(run, "the notebook, its preset or e2lib was edited while other notebooks ran; run it again")
        if not run.marker.exists():
            run.error.unlink(missing_ok=True)  # of a job that outlived its Snakemake, and failed in the end
            with place():
                _execute(run, position)


def _execute(run: Run, position: str) -> None:
    import papermill

    os.environ.pop("MPLBACKEND", None)  # the kernel's own choice puts figures into the notebook
    part = run.output.with_name(f".{run.name}.{secrets.token_hex(4)}.ipynb").absolute()
    os.environ[SOURCE] = source_hash(read(run.notebook))
    if log := os.environ.get("E2LIB_TENSORBOARD"):  # the notebook has another working directory
        os.environ["E2LIB_TENSORBOARD"] = str(Path(log).absolute())
    commit = _commit()  # before: the code may be edited while this runs
    interval = 0.1 if sys.stderr.isatty() else 20  # seconds between updates of the bar: few in a log file
    start = time.monotonic()
    error = None
    try:
        papermill.execute_notebook(
            run.notebook,
            part,
            run.parameters,
            kernel_name="python3",
            language="python",
            cwd=run.notebook.parent,
            progress_bar=position and {"desc": f"notebook {position}: {run.name}", "mininterval": interval},
            extra_arguments=["--log-level=ERROR"],  # the kernel's warnings about itself
        )
    except Exception as caught:  # of whatever kind: what was executed is kept for a look, and other notebooks go on
        error = caught
        if not part.exists():  # it could not even be written
            raise
        if isinstance(caught, OSError):  # of papermill, not of a cell: on a full disk, what is written is no notebook
            part.unlink()
            _fail(run, f"{type(caught).__name__}: {caught}")
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if trouble := _trouble(read(part), error):
        os.replace(part, run.failed)
        _fail(run, f"{trouble} (see {run.failed})")
    minutes = (time.monotonic() - start) / 60
    for other in run.marker.parent.glob(f"{run.name}-{'?' * len(run.key)}.json"):
        other.unlink()
    os.replace(part, run.output)
    state = {"notebook": run.name, "preset": run.preset, "parameters": run.parameters, "minutes": round(minutes, 2)}
    state |= {"device": _machine(run), "commit": commit}
    write(run.marker, json.dumps(state, indent=1))


def _machine(run: Run) -> str:
    """What the notebook ran on: a GPU's name, or the processor's kind and the threads that torch takes of it."""
    import torch

    chosen = run.parameters.get("device", "auto") if "device" in assigned(_parameters_cell(run.notebook)) else "cpu"
    if (kind := device(chosen)).type == "cuda":
        return torch.cuda.get_device_name(kind)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _commit() -> str:
    """The revision of the working directory's repository, with -dirty where it was edited; empty outside of one."""
    asked = (["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain"])
    head, edited = (subprocess.run(command, capture_output=True, text=True) for command in asked)
    if head.returncode:
        return ""
    return head.stdout.strip() + ("-dirty" if edited.stdout.strip() else "")


def _fail(run: Run, trouble: str) -> NoReturn:
    write(run.error, trouble)
    sys.exit(f"{run.notebook}: {trouble}")


def _trouble(notebook: "nbformat.NotebookNode", error: Exception | None) -> str | None:
    """The first code cell that failed or did not finish, and why (`error`, where the cell itself shows none)."""
    for number, cell in enumerate(code_cells(notebook), 1):
        where = f"code cell {number} ({cell.source.splitlines()[0]!r})"
        for output in cell.outputs:
            if output.output_type == "error":
                return f"{where}: {output.ename}: {output.evalue}"
        if "shell.execute_reply" not in cell.metadata.get("execution", {}):
            return f"{where}: {type(error).__name__}: {error}"
    return f"{type(error).__name__}: {error}" if error else None


def summary(runs: list[Run]) -> str:
    """The table notebook, minutes, status of `runs`, and where the executed notebooks are."""
    rows = [("notebook", "minutes", "status")]
    for run in runs:
        if run.marker.exists():
            rows.append((run.name, f"{json.loads(run.marker.read_text())['minutes']:.1f}", "done"))
        elif run.error.exists():
            rows.append((run.name, "-", f"failed: {run.error.read_text()}"))
        else:
            rows.append((run.name, "-", "not finished"))
    width = max(len(row[0]) for row in rows)
    table = "\n".join(f"{name:<{width}}  {minutes:>7}  {status}" for name, minutes, status in rows)
    return f"\n{table}\nExecuted notebooks: {runs[0].output.parent}{os.sep}"


def run_all(preset: str, notebooks: str, device: str) -> int:
    """Executes what is not finished of the plan, prints the summary, returns Snakemake's exit status."""
    runs = plan(preset, notebooks, device)
    for run in runs:
        run.failed.unlink(missing_ok=True)
        run.error.unlink(missing_ok=True)
    log = Path("runs", "snakemake.log")
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(Path(__file__).parents[2] / "Snakefile")]
    # The names of the markers tell what is finished; no lock, because a killed Snakemake would leave it behind.
    command += ["--rerun-triggers", "mtime", "--nolock", "--ignore-incomplete"]
    command += ["--keep-going", "--cores", "all", "--scheduler", "greedy"]
    numbers = " ".join(run.name[:2] for run in runs)
    command += ["--config", f"preset={preset}", f"notebooks={json.dumps(numbers)}", f"device={device}"]
    with log.open("w") as stderr:  # where Snakemake talks; notebooks talk on stdout
        status = subprocess.run(command, stderr=stderr).returncode
    if status and not any(run.error.exists() for run in runs):  # no notebook's fault
        print(log.read_text())
    print(summary(runs))
    return status


def record(table) -> None:
    """Leave the numbers of a DataFrame in the notebook, unseen, for `collect`: a row a setting, metrics in per cent.

    Its columns are notebook, data, model, seed, ..., λ, and the metrics; and split, where a row is not of test images:
    "validation".
    """
    from IPython.display import display

    text = f"({len(table)} rows of numbers, which `make results` collects)"
    display({"text/plain": text, NUMBERS: json.loads(table.to_json(orient="split", index=False))}, raw=True)


def recorded(path: Path, split: str = "test") -> list[dict[str, Any]]:
    """The rows of test or validation images that `record` left in an executed notebook.

    ValueError if there are none of any kind.
    """
    outputs = [output.get("data", {}) for cell in read(path).cells for output in cell.get("outputs", [])]
    tables = [data[NUMBERS] for data in outputs if NUMBERS in data]
    if not (rows := [dict(zip(t["columns"], row, strict=True)) for t in tables for row in t["data"]]):
        raise ValueError(f"{path} holds no numbers: one of its cells has to call runs.record")
    return [row for row in rows if (row.pop("split", None) or "test") == split]


def rows_of(run: Run, split: str = "test") -> list[dict[str, Any]]:
    """The numbers of a finished run, each row with the minutes, device and git revision of the run."""
    state = json.loads(run.marker.read_text())
    about = {name: state[name] for name in ("minutes", "device", "commit")}
    return [row | about for row in recorded(run.output, split)]


def repeated() -> list[tuple[str, Run]]:
    """The runs that notebooks/presets/results.yaml names, with their names there, each with every seed.

    One that differs in nothing from the laptop preset is that preset's run. A run may have `seeds` of its own.
    """
    content = yaml.safe_load(Path("notebooks/presets/results.yaml").read_text())
    found = []
    for name, entry in content["runs"].items():
        (laptop,) = plan("laptop", entry["notebook"])
        own = defaults(laptop.notebook)
        for seed in entry.get("seeds", content["seeds"]):
            values = entry.get("parameters", {}) | {"seed": seed}
            if unknown := values.keys() - own.keys():
                raise ValueError(f"results.yaml: {name} names {sorted(unknown)}, which {laptop.notebook} has not")
            changed = {key: value for key, value in values.items() if value != own[key]}
            found.append((name, Run(laptop.notebook, f"results/{name}-{seed}", changed) if changed else laptop))
    return found


def collect(names: str = "") -> None:
    """Executes what is not finished of `repeated`; joins their numbers in notebooks/results.csv and results.md.

    names: those that are wanted, "07 08-waterbirds"; the numbers of others stay as they are in the file. "" for all.
    ValueError for one that results.yaml does not name.
    """
    import pandas as pd

    from e2lib.course import tables  # here: it imports this module

    found, file = repeated(), Path("notebooks", "results.csv")
    known = list(dict.fromkeys(name for name, _ in found))
    wanted = names.split() or known
    if unknown := sorted({*wanted} - {*known}):
        raise ValueError(f"unknown RUNS {' '.join(unknown)!r}: choose from {' '.join(known)}")
    found = [(name, run) for name, run in found if name in wanted]
    for name, run in found:  # before hours of work, and before numbers are lost
        for where in _roots(run.parameters):
            if not (Path("notebooks") / where).is_dir():
                where = Path("notebooks") / where
                raise FileNotFoundError(f"results.yaml: {name} needs {where}; put the data there, or take out the run")
    for number, (_, run) in enumerate(found, 1):
        if not run.marker.exists():
            execute(run, run.marker, f"{number}/{len(found)} ({run.preset})")
    table = tables.tidy(pd.DataFrame([{"run": name} | row for name, run in found for row in rows_of(run)]))
    if {*wanted} != {*known} and file.exists():
        others = tables.read(file)
        table = pd.concat([others[~others.run.isin(wanted)], table], ignore_index=True)
        place = {name: i for i, name in enumerate(known)}  # runs that results.yaml no longer names come last
        table = table.sort_values(
            "run", key=lambda runs: runs.map(lambda run: place.get(run, len(place))), kind="stable"
        )
    tables.write(file, table)
    write(Path("notebooks", "results.md"), tables.report(table))


def _roots(parameters: dict[str, Any]) -> Iterator[str]:
    """Folders of data that parameters name, also those within others."""
    for name, value in parameters.items():
        if isinstance(value, dict):
            yield from _roots(value)
        elif str(name).endswith("root") and value is not None:
            yield value


def publish(runs: list[Run]) -> None:
    """Writes the outputs of executed notebooks into their sources, without what only papermill or this machine needs.

    FileNotFoundError for a run that is not finished, ValueError for one whose preset is not the notebook's defaults.
    """
    import nbformat

    for run in runs:
        if not run.marker.exists():
            raise FileNotFoundError(f"{run.name} has no finished run with PRESET {run.preset}")
        own = defaults(run.notebook)
        if changed := {name: value for name, value in run.parameters.items() if own.get(name) != value}:
            raise ValueError(f"PRESET {run.preset} differs from the parameters cell of {run.notebook}: {changed}")
        notebook, executed = read(run.notebook), read(run.output)
        for number, (cell, done) in enumerate(zip(code_cells(notebook), code_cells(executed), strict=True), 1):
            cell.outputs = [output for output in done.outputs if not is_bar(output)]
            for output in cell.outputs:
                if "image/jpeg" in (data := output.get("data", {})):  # a widget that brings a picture of itself
                    data.pop(WIDGET, None)
            for item in [cell, *(output for output in cell.outputs if output.output_type == "execute_result")]:
                item.execution_count = number
        for cell in notebook.cells:
            cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        card = notebook.metadata.get("e2lib", {})
        card |= {"minutes": json.loads(run.marker.read_text())["minutes"], "source": source_hash(notebook)}
        kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        shown = any(WIDGET in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs)
        kept = {"widgets": executed.metadata.widgets} if shown else {}
        notebook.metadata = {"e2lib": card, "kernelspec": kernel, "language_info": {"name": "python"}} | kept
        write(run.notebook, nbformat.writes(notebook) + "\n")


def is_bar(output: "nbformat.NotebookNode") -> bool:
    """Whether this is a progress bar: an executed notebook would show it as it was at the start."""
    return bool(re.search(r"\d%\|", "".join(output.get("data", {}).get("text/plain", ""))))


def read(path: Path) -> "nbformat.NotebookNode":
    """The notebook in file `path`; ValueError names a file that holds none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except ValueError as error:
        raise ValueError(f"{path} is no readable notebook: {error}") from error


def own_cells(notebook: "nbformat.NotebookNode") -> "list[nbformat.NotebookNode]":
    """The cells of the author: without those that papermill added."""
    added = {"injected-parameters", "papermill-error-cell-tag"}
    return [cell for cell in notebook.cells if not added & set(cell.metadata.get("tags", []))]


def code_cells(notebook: "nbformat.NotebookNode") -> "list[nbformat.NotebookNode]":
    """The author's code cells that are not empty: without those in which a reader solves an exercise."""
    cells = [cell for cell in own_cells(notebook) if EXERCISE not in cell.metadata.get("tags", [])]
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def defaults(path: Path) -> dict[str, Any]:
    """Names and values of a notebook's parameters cell; ValueError where there is not exactly one, of literals."""
    return {name: ast.literal_eval(value) for name, value in assigned(_parameters_cell(path)).items()}


def _parameters_cell(path: Path) -> str:
    tagged = [cell.source for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1 or not _is_own(tagged[0]):
        raise ValueError(
            f"{path} has {len(tagged)} cells tagged parameters: one, with {OWN_CELL!r} in its first line, is right"
        )
    return tagged[0]


def source_hash(notebook: "nbformat.NotebookNode") -> str:
    """Twelve hex digits of the hash of the code cells: tells whether the outputs are those of the present code."""
    return digest([cell.source for cell in code_cells(notebook)])


def digest(value: Any) -> str:
    """Twelve hex digits that tell a JSON value from others."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def write(path: Path, text: str) -> None:
    """Replaces the file in one step."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Of what is wrong with a command, or an interruption, the message alone."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on with what is not finished")


def main() -> None:
    """The command line of this module; the Makefile and the Snakefile call it."""
    parser = argparse.ArgumentParser(prog="python -m e2lib.course.runs", description=__doc__)
    parser.add_argument("command", choices=["run", "execute", "publish", "results"])
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--notebooks", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", default="")
    parser.add_argument("--marker", type=Path)
    parser.add_argument("--position")
    given = parser.parse_args()
    arguments = given.preset, given.notebooks, given.device
    with plainly():
        if given.command == "run":
            sys.exit(run_all(*arguments))
        if given.command == "results":
            collect(given.runs)
            return
        runs = plan(*arguments)
        if given.command == "publish":
            publish(runs)
        else:
            execute(runs[0], given.marker, given.position)


if __name__ == "__main__":
    main()
