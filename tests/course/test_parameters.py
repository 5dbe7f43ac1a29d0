"""A parameters cell is the schema of its notebook: names, types and fields are refused by name."""

import ast
import inspect
import linecache
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import papermill
import pytest
import torch

from e2lib.course import parameters
from tests.course.conftest import ROOT, write

CELL = """# Parameters: change them here
size = 64
rate = 1.0
data = None
schedule = {"epochs": 1, "lr": 0.1, "weights": None}
shots = {20: 30}
shares = {0.1: 5}
lambdas: dict[str, list[float]] = {"energy": [0.5]}
depths = ["Input"]
seed = 0
device = "cpu" """


def namespace(injected: str = "", cell: str = CELL, **later) -> dict:
    """What a notebook's `globals()` holds after its parameters cell, and the one that papermill adds."""
    cells = [cell, "# Parameters\n" + injected] if injected else [cell]
    held = {"In": ["", *cells], "get_ipython": print}
    for source in cells:
        exec(source, held)
    return held | later


def test_parameters_are_checked_values():
    p = parameters.read(namespace("rate = 2; shots = {'5': 1, 'all': 2}; lambdas = {'l1': [1, 2.5]}; data = 'x'"))
    assert vars(p) == {
        "size": 64,
        "rate": 2.0,
        "data": "x",
        "schedule": SimpleNamespace(epochs=1, lr=0.1, weights=None),
        "shots": {5: 1, "all": 2},
        "shares": {0.1: 5},
        "lambdas": {"l1": [1.0, 2.5]},
        "depths": ["Input"],
        "seed": 0,
        "device": torch.device("cpu"),
    }
    assert type(p.rate) is float and type(p.lambdas["l1"][0]) is float
    found = parameters.read(namespace("schedule = {'epochs': 2, 'lr': 1, 'weights': 'scenes'}"))
    assert (found.schedule.epochs, found.schedule.weights) == (2, "scenes")


def test_later_variables_are_no_parameters():
    assert parameters.read(namespace(images=[1, 2], sise=3)).size == 64


def test_works_where_no_cell_is_recorded(monkeypatch):  # nbval executes cells like that; Python has their lines
    monkeypatch.setitem(linecache.cache, "cell", (0, None, CELL.splitlines(keepends=True), "cell"))
    assert parameters.read(namespace("size = 96") | {"In": [""]}).size == 96


@pytest.mark.parametrize(
    ("injected", "complaint"),
    [
        ("sise = 96", "unknown parameter 'sise': did you mean 'size'"),
        ("colour = 1", "unknown parameter 'colour': Here are size, rate"),
        ("size = '64'", "parameter size='64': must be int"),
        ("size = 64.0", "parameter size=64.0: must be int"),
        ("seed = True", "parameter seed=True: must be int"),
        ("rate = 'x'", "parameter rate='x': must be float"),
        ("data = 3", "parameter data=3: must be str"),
        ("depths = []", r"parameter depths=\[\]: must be list\[str\] that is not empty"),
        ("depths = [1]", "parameter depths=1: must be str"),
        ("shares = {0.5: 'x'}", "parameter shares.0.5='x': must be int"),
        ("shots = {5: 1, '5': 2}", "parameter shots has a key twice: 5, 5"),
        ("shares = {'0.1': 1, '0.10': 2}", "parameter shares has a key twice: 0.1, 0.10"),
        ("lambdas = {'l1': 3}", r"parameter lambdas.l1=3: must be list\[float\]"),
        ("schedule = 3", "parameter schedule=3: must be a dict of epochs, lr, weights"),
        ("schedule = {'eposs': 1, 'lr': 1}", "unknown parameter 'schedule.eposs': did you mean 'schedule.epochs'"),
        ("schedule = {'epochs': 1, 'lr': 1}", "parameter schedule.weights is missing; here are schedule.epochs, sch"),
        ("schedule = {'epochs': 'x', 'lr': 1, 'weights': None}", "parameter schedule.epochs='x': must be int"),
        ("device = 'gpu'", "parameter device='gpu': must be auto, cpu, cuda or cuda:N"),
        ("device = 'cuda:99'", "parameter device='cuda:99': torch sees"),
        ("size = 1.5\nseed = -1.5", r"(?s)size=1.5: .*seed=-1.5: "),
    ],
)
def test_unknown_names_and_wrong_values_are_refused(injected, complaint):
    with pytest.raises(ValueError, match=complaint):
        parameters.read(namespace(injected))


def test_the_parameters_cell_comes_first():
    with pytest.raises(ValueError, match="first run the cell whose first line has '# Parameters:'"):
        parameters.read({"In": ["", "x = 1"], "x": 1})


def test_an_edited_parameters_cell_counts_not_its_earlier_version():
    held = namespace() | {"sise": 96}
    held["In"].append(CELL + "\nsise = 96")
    assert parameters.read(held).sise == 96
    held["In"].append(CELL)
    assert not hasattr(parameters.read(held), "sise")


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("a: Path = 1", r"type 'Path' is not made of bool, int, float, str, list\[…\] and dict\[…, …\]"),
        ("import os", "parameters cell: 'import os' is not like name = value"),
    ],
)
def test_a_cell_that_declares_nothing_clear_is_refused(cell, complaint):
    with pytest.raises(ValueError, match=complaint):
        parameters.declared(cell)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_papermill_reads_the_same_parameters(path):
    found = {name: ast.literal_eval(about["default"]) for name, about in papermill.inspect_notebook(path).items()}
    assert found == {name: parameter.default for name, parameter in parameters.of(path).items()}


def test_papermill_alone_refuses_an_unknown_parameter(project):
    cell = "import sys\nsys.path.insert(0, root)\nfrom e2lib.course import parameters\nparameters.read(globals())"
    source = write(project / "notebooks" / "01_first.ipynb", f"root = {str(ROOT)!r}\n" + cell)
    command = [sys.executable, "-m", "papermill", str(source), "out.ipynb", "--no-progress-bar", "-k", "python3"]
    command += ["--language", "python"]
    refused = subprocess.run([*command, "-p", "sise", "96"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "unknown parameter 'sise': did you mean 'size'?" in refused.stderr


def test_the_work_folder_belongs_to_the_parameters(tmp_path):
    cell = f"{CELL}\nwork = {str(tmp_path)!r}"

    def folder(injected="seed = 0", without=()):
        return parameters.work_folder(parameters.read(namespace(injected, cell)), without)

    assert folder().parent == tmp_path
    assert folder() == folder("device = 'auto'") != folder("size = 96")
    assert folder("work = None") != folder("work = None")
    assert folder(without=["size"]) == folder("size = 96", ["size"]) != folder("seed = 1", ["size"])
    assert folder(without=["size"]) != folder()
    with pytest.raises(ValueError, match="without names sede; the parameters are size, rate"):
        folder(without=["sede"])


def test_what_jobs_share_is_read_off_the_cells():
    first = "a, b = parameters.work_folder(p), parameters.work_folder(p, without=['size'])"
    second = "%time 1\nc = parameters.work_folder(p, without=('size', 'seed'))"
    assert parameters.sharing([first, second, "1"]) == [("size",), ("size", "seed")]


def test_a_temporary_work_folder_ends_with_its_process():
    def program():
        from types import SimpleNamespace

        from e2lib.course import parameters

        folder = parameters.work_folder(SimpleNamespace(work=None))
        (folder / "0.pt").write_text("")
        print(folder)

    code = inspect.cleandoc("\n".join(inspect.getsource(program).splitlines()[1:]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    folder = Path(done.stdout.strip())
    assert folder.is_absolute() and not folder.exists()
