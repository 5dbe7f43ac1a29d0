"""The set-up: what pyproject.toml, the constraints, the workflows and the Makefile say agrees."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

import e2lib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def plain(requirement: str) -> str:
    """The name of a requirement, written as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def load(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
EXTRAS = PROJECT["optional-dependencies"]
HOMES = packages_distributions()  # module -> the packages that bring it
REQUIRED = {plain(name) for name in (*PROJECT["dependencies"], *sum(EXTRAS.values(), []))} - {"e2lib"}


def test_each_requirement_and_what_it_brings_is_pinned():
    waiting, brought = set(REQUIRED), set()
    while waiting:
        brought |= (found := waiting)
        installed = [package for package in distributions() if plain(package.name) in found]
        needed = {Requirement(text) for package in installed for text in package.requires or []}
        waiting = {plain(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})} - brought
    assert not brought - set(map(plain, PINS))


def test_the_library_needs_few_packages():
    needs = {plain(name) for name in PROJECT["dependencies"]}
    assert len(needs) <= 12
    assert not needs & {"captum", "ipython", "jupyterlab", "pandas", "papermill", "pycocotools", "seaborn", "snakemake"}


def test_torch_and_torchvision_belong_together():
    assert (PINS["torch"], PINS["torchvision"]) == ("2.14.1", "0.29.1")


def test_each_pin_installs_on_the_oldest_python():
    for package in distributions():
        needs = package.metadata["Requires-Python"] or ""
        assert not re.search(r">=?\s*3\.(11\.[1-9]|1[2-9])", needs), f"{package.name} needs Python {needs}"


def imported(source: str, in_functions: bool = True) -> set[str]:
    """The packages from outside that a source imports; without `in_functions` those that it imports when loaded."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not in_functions:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found - sys.stdlib_module_names - {"e2lib", "notebooks", "tests"}


def missing(modules: set[str], declared: set[str]) -> set[str]:
    """Those modules that no declared package brings."""
    return {module for module in modules if not declared & {plain(home) for home in HOMES.get(module, [module])}}


@pytest.mark.parametrize("top", ["e2lib", "tests", "data", "notebooks"])
def test_whatever_is_imported_is_required(top):
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / top).rglob("*.py")}
    for path in (ROOT / top).glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        sources[path] = "\n".join(map(TransformerManager().transform_cell, cells))
    assert not {path: found for path in sources if (found := missing(imported(sources[path]), REQUIRED))}


def test_the_library_imports_what_pip_installs_with_it_and_extras_only_where_they_are_used():
    needs = {plain(name) for name in PROJECT["dependencies"]}
    library = [path for path in (ROOT / "e2lib").rglob("*.py") if "course" not in path.parts]
    wrong = {path: missing(imported(path.read_text(encoding="utf-8"), in_functions=False), needs) for path in library}
    assert not {path: names for path, names in wrong.items() if names}
    course = needs | {plain(name) for extra in ("course", "captum", "coco", "weights") for name in EXTRAS[extra]}
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "e2lib").rglob("*.py")]
    assert not missing(set().union(*map(imported, sources)), course)


def test_conda_environment_installs_this_project():
    conda = load("environment.yml")
    plain_packages = [item for item in conda["dependencies"] if isinstance(item, str)]
    [pip] = [item["pip"] for item in conda["dependencies"] if isinstance(item, dict)]
    assert conda["name"] == PROJECT["name"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert plain_packages == [f"python={oldest}", "pip"]  # one minor version, or Binder starts from its own default
    assert pip == ["-c constraints.txt", "-e .[course]"]


def test_the_cells_for_colab_set_up_a_copy_of_this_repository(tmp_path):
    """As written, but from here in place of GitHub, and with pip only saying what it would install."""
    if not (ROOT / ".git").exists():
        pytest.skip("this folder is no git repository: nothing can be cloned")
    first, second = re.findall(r"```\n(.+?)```", (ROOT / "docs" / "colab.md").read_text(), re.DOTALL)
    place = tmp_path / "e2lib"
    dry = f"{sys.executable} -m pip install --dry-run --no-index --no-build-isolation"
    changes = {
        "!": "",
        "/content/e2lib": str(place),
        "https://github.com/OWNER/NAME": ROOT.as_uri(),
        "pip install": dry,
    }
    for line in first.splitlines():
        for old, new in changes.items():
            line = line.replace(old, new)
        done = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (place / "e2lib" / "__init__.py").exists()
    folder = second.strip().removeprefix("%cd ").replace("/content/e2lib", str(place))
    assert {path.name for path in Path(folder).glob("[0-9]*.ipynb")} == {p.name for p in NOTEBOOKS}


def commands(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_continuous_integration_runs_the_tests():
    jobs = load(".github/workflows/ci.yml")["jobs"]
    assert {job["runs-on"] for job in jobs.values()} == {"ubuntu-latest"}
    assert commands(jobs["test"]) == ["make test"]
    install, browse = commands(jobs["site"])
    assert jobs["site"]["container"] == "debian:12" and " chromium " in install and browse == "make test-browser"
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert [line.strip() for line in script.read_text().splitlines() if "make" in line] == [
        "make test",
        "make test-browser",
    ]


def test_gpu_workflow_runs_the_laptop_preset_on_a_gpu_runner():
    [job] = load(".github/workflows/gpu.yml")["jobs"].values()
    check, kills, first, nightly = commands(job)
    assert kills.endswith("pytest tests/kills.py")
    assert check.startswith("make setup") and "torch.cuda.is_available()" in check  # where none is, auto takes the CPU
    assert first == "make run PRESET=laptop"
    compared = "tests.verdicts notebooks/claims.yaml runs/before.csv notebooks/results.csv"
    assert nightly.splitlines()[-1].endswith(compared) and "make results" in nightly
    assert "gpu" in job["runs-on"]


def test_no_package_index_is_named():
    files = ["pyproject.toml", "constraints.txt", "environment.yml", "Makefile", "notebooks/Snakefile", ".ci/run"]
    for name in [*files, ".github/workflows/ci.yml", ".github/workflows/gpu.yml"]:
        text = (ROOT / name).read_text().replace("https://arxiv.org/abs/", "")  # the papers
        assert not re.search(r"://|index-url|find-links|trusted-host", text), name


def test_citation_is_of_this_version():
    citation = load("CITATION.cff")
    assert citation["version"] == PROJECT["version"] == e2lib.__version__
    assert PROJECT["license"] == f"{citation['license']} AND GPL-3.0-or-later"  # the code; the photographs
    assert {reference["title"].split()[0] for reference in citation["references"]} == {"Studying", "Good"}


def make(*words: str, where: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *words], cwd=where, capture_output=True, text=True)


def test_make_test_checks_everything():
    done = make("--dry-run", "test").stdout
    steps = [
        "ruff check",
        "ruff format --check",
        "pytest -n 2",
        "pytest -m alone",
        "run --preset smoke",
        "--nbval-lax --nbval-current-env",
    ]
    places = [done.index(step) for step in steps]
    assert places == sorted(places)


def test_make_run_passes_its_variables_on():
    done = make("--dry-run", "run", "PRESET=smoke", "NOTEBOOKS=02 03", "DEVICE=cpu").stdout
    assert 'e2lib.course run --preset "smoke" --notebooks "02 03" --device "cpu"' in done


def test_setup_refuses_an_old_python(tmp_path):
    for name in ["Makefile", "pyproject.toml", "constraints.txt"]:
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"  # one that says it is 3.9
    pretend = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretend}" "$2"\n')
    old.chmod(0o755)
    refused = make("setup", "PYTHON=./old-python", where=tmp_path)
    assert refused.returncode
    assert "Python 3.11 or newer is needed; ./old-python is 3.9" in refused.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_second_setup_is_instant(tmp_path):
    for name in ["Makefile", "pyproject.toml", "constraints.txt"]:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "ready").touch()
    assert "pip" not in make("--dry-run", "setup", where=tmp_path).stdout
    os.utime(tmp_path / "constraints.txt", (4e9, 4e9))  # changed later
    assert "pip install" in make("--dry-run", "setup", where=tmp_path).stdout
