"""What pip installs: little, quick to import, complete outside the repository, and checked by type checkers."""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch

import e2lib
from e2lib import datasets, models

ROOT = Path(__file__).parents[1]
EXTRAS = ["IPython", "captum", "ipywidgets", "nbformat", "pandas", "papermill", "pycocotools", "pydantic", "seaborn"]


def python(code: str, *options: str, where: Path = ROOT, **environment: str) -> str:
    """What a fresh Python prints that runs `code` in the folder `where`."""
    command = [sys.executable, *(options or ["-c", code])]
    done = subprocess.run(command, cwd=where, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- importing


def test_import_is_instant():
    code = "import time; start = time.perf_counter(); import e2lib; print(time.perf_counter() - start)"
    assert min(float(python(code)) for _ in range(3)) < 0.1


def test_explain_brings_no_notebook_table_figure_or_extra():
    brought = python("import sys; from e2lib import explain; print(*sys.modules)").split()
    assert "torch" in brought and not {*EXTRAS, "matplotlib", "jupyter_client"} & set(brought)


def test_each_name_is_there_without_the_extras():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # importing any of these now fails
import e2lib
for name in e2lib.__all__:
    print(name, getattr(e2lib, name).__name__)
"""
    found = dict(line.split() for line in python(code).splitlines())
    functions = {"Distill", "Guide", "evaluate", "explain", "fit"}
    assert found == {name: name if name in functions else f"e2lib.{name}" for name in e2lib.__all__}


def test_each_module_of_the_library_has_its_name():
    entries = (
        path.stem for path in (ROOT / "e2lib").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    )
    modules = {name for name in entries if name not in ("__init__", "course")}
    assert modules == set(e2lib.__all__) - {"Distill", "Guide", "evaluate", "explain", "fit"}
    assert set(dir(e2lib)) == set(e2lib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        e2lib.nothing  # noqa: B018


def test_a_method_that_needs_captum_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model = models.build("test_resnet", 2)
    with pytest.raises(ImportError, match=r"pip install 'e2lib\[captum\]'"):
        e2lib.explain(model, torch.rand(1, 3, 64, 64), torch.tensor([0]), method="occlusion")


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    python("", "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    python("", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def test_the_wheel_holds_the_library_and_its_data_alone(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"e2lib", "e2lib-0.1.0.dist-info"}
    kept = {path.relative_to(ROOT) for path in (ROOT / "data").rglob("*") if path.suffix not in (".py", ".pyc", "")}
    assert {Path("e2lib") / path for path in kept} <= {Path(name) for name in names}
    assert {"e2lib/__init__.pyi", "e2lib/py.typed", "e2lib/data/LICENSE", "e2lib/course/box_canvas.js"} <= names
    assert not {name for name in names if name.startswith("e2lib/data/") and name.endswith(".py")}


def test_the_wheel_says_what_it_is(wheel):
    archive = zipfile.ZipFile(wheel)
    about = Parser().parsestr(archive.read("e2lib-0.1.0.dist-info/METADATA").decode())
    assert about.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert about["Version"] == e2lib.__version__ and len(about.get_all("Project-URL")) == 2
    assert set(about.get_all("Provides-Extra")) == {"captum", "coco", "course", "site", "test", "weights"}


def test_the_wheel_works_in_an_empty_folder(installed, tmp_path):
    code = """
import torch, e2lib
from e2lib import datasets, explain, models
print(e2lib.__file__)
batch = datasets.collate([datasets.Scenes("val", 2, 128)[i] for i in range(2)])
print(batch.images.double().sum().item(), datasets.SceneBirds("train", 1, 64)[0].image.sum().item())
model = models.build("bcos_scenes", 10, weights="scenes").eval()
logits, maps = explain(model, batch.images, batch.labels.argmax(1), method="bcos")
print(logits.abs().sum().item(), *maps.shape)
"""
    there = {"PYTHONPATH": str(installed)}
    place, pictures, maps = python(code, where=tmp_path, **there).splitlines()
    assert Path(place) == installed / "e2lib" / "__init__.py" and not list(tmp_path.iterdir())
    batch = datasets.collate([datasets.Scenes("val", 2, 128)[i] for i in range(2)])
    birds = datasets.SceneBirds("train", 1, 64)[0].image.sum().item()
    assert pictures == f"{batch.images.double().sum().item()} {birds}"
    logits = models.build("bcos_scenes", 10, weights="scenes").eval()(batch.images).abs().sum().item()
    assert float(maps.split()[0]) == pytest.approx(logits, rel=1e-4) and maps.split()[1:] == ["2", "1", "128", "128"]
    assert "usage: python -m e2lib.course" in python("", "-m", "e2lib.course", "--help", where=tmp_path, **there)
    code = "import runpy, sys; sys.modules['yaml'] = None; runpy.run_module('e2lib.course', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | there, capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'e2lib[course]'" in done.stderr and "Traceback" not in done.stderr


# ---- types

CALLS = """
import torch
import e2lib
from e2lib import Distill, Guide, datasets, evaluate, explain, features, fit, frozen, models

net = models.build("resnet18", 10)
images, labels = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])
explain(net, images, labels, method="gradcam", at="Final")
explain(net, images, labels, methode="gradcam")  # wrong
explain(net, images, labels, at=3)  # wrong
explain(net)  # wrong
models.build("resnet18", "10")  # wrong
e2lib.models.build("resnet18", 10, weigths="imagenet")  # wrong
data = datasets.Scenes("train", 8, 64)
step = Guide("energy", "ixg", "Input", weight=0.1)
Guide("energy", weight="much")  # wrong
Distill(net, net, images, {"kd": 1.0})
Distill(net, net, images)  # wrong
fit(net, data, epochs=1, lr=1e-3, step=step)
fit(net, data, epochs=1)  # wrong
evaluate(net, data, batch_size=8)
evaluate(net, data, batch=8)  # wrong
features.extract(net, data, "folder", batch_size=8, workers=2)
features.extract(net, data, "folder", batch=8)  # wrong
features.keep(net, data, "folder", len, "about")  # wrong
frozen.freeze(net, data, "folder", 64, precision="float32")
frozen.freeze(net, data, "folder", 64, precision=32)  # wrong
e2lib.nothing  # wrong
"""
# Without the types of other packages, which take a minute to read.
SETTINGS = """
[mypy]
follow_imports = silent
ignore_missing_imports = True
[mypy-torch.*,numpy.*,timm.*,bcos.*,torchmetrics.*,matplotlib.*,PIL.*]
follow_imports = skip
"""


def test_mypy_sees_wrong_calls(tmp_path):
    (tmp_path / "calls.py").write_text(CALLS)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "--cache-dir=cache", "calls.py"]
    there = os.environ | {"MYPYPATH": str(ROOT)}
    said = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True).stdout
    found = {int(line.split(":")[1]) for line in said.splitlines() if ": error:" in line}
    assert found == {i for i, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# wrong")}, said
