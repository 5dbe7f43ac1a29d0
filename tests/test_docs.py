"""The examples in the documents run as they stand, and README says what results.csv and the lessons say."""

import base64
import importlib.util
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+\.\d ± \d+\.\d")
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
SHARED, *EXAMPLES = CODE.findall((ROOT / "docs" / "own.md").read_text(encoding="utf-8"))
SHARED += "loader = [(images, labels, boxes)]\n"  # README's example has a loader
EXAMPLES += CODE.findall(README)


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{n}" for n in range(1, len(EXAMPLES) + 1)])
def test_an_example_of_ten_lines_runs(example, tmp_path, monkeypatch):
    assert len(example.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "example"}
    exec(compile(SHARED + example, "docs/own.md", "exec"), namespace)
    gradients = [p.grad for p in namespace["net"].parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.fixture(scope="module")
def picture():
    """docs/picture.py as a module."""
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_results_of_results_csv(picture):
    assert picture.filled(README).partition("<!-- lessons -->")[0] == README.partition("<!-- lessons -->")[0]


def test_photographs_quotes_results():
    """Each mean ± deviation stands in the results of the run that its line, or list item, names."""
    report = (ROOT / "notebooks" / "results.md").read_text("utf-8")
    runs = {part.split()[0]: part for part in report.split("\n## ")[1:]}
    text = (ROOT / "docs" / "photographs.md").read_text("utf-8")
    parts = re.split(r"\n(?=[|\-#])", text)
    quoted = [(run[1], n) for part in parts if (run := re.search(r"`(\d\d[^`]*)`", part)) for n in NUMBER.findall(part)]
    assert len(quoted) == len(NUMBER.findall(text)) > 50
    assert not [(run, number) for run, number in quoted if f"| {number} |" not in runs[run]]


def test_lessons_are_launched_elsewhere_once_the_repository_is_named(picture, monkeypatch, tmp_path):
    assert not picture.launch("") and "mybinder.org" not in README or picture.repository()
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/us/course/"\n')
    monkeypatch.setattr(picture, "ROOT", tmp_path)
    assert picture.repository() == "us/course"
    line = picture.launch(picture.repository())
    assert "/gh/us/course/main?labpath=notebooks/01" in line and "/github/us/course/blob/main/notebooks/01" in line


def test_a_result_is_the_mean_over_seeds(picture, monkeypatch):
    plain = {"run": "06", "where": {"task": "bird", "method": "KD"}, "value": "accuracy"}
    monkeypatch.setattr(picture, "RESULTS", [("birds", plain, {"method": "ours"}, "boxes")])
    rows = [("bird", "KD", 0, 30.0), ("bird", "KD", 1, 34.4), ("bird", "ours", 0, 70.0), ("bird", "ours", 1, 72.0)]
    rows += [("place", "KD", 0, 99.0), ("place", "ours", 0, 99.0)]
    table = pd.DataFrame(rows, columns=["task", "method", "seed", "accuracy"]).assign(run="06")
    assert picture.results(table).splitlines()[-1] == "|birds|32|71: boxes|"
    with pytest.raises(ValueError, match="run 06: .*'ours'.* names 0 rows of 'accuracy'"):
        picture.results(table[table.method == "KD"])


def test_pictures_come_from_the_tagged_cells(picture, tmp_path):
    for (lesson, kind), name in picture.PICTURES.items():
        output = new_output("display_data", {kind: base64.b64encode(name.encode()).decode()})
        path, tagged = tmp_path / f"{lesson}_a.ipynb", new_code_cell(outputs=[output], metadata={"tags": ["readme"]})
        cells = nbformat.read(path, 4).cells if path.exists() else []
        nbformat.write(new_notebook(cells=[*cells, tagged, new_code_cell(outputs=[output])]), path)
    assert picture.pictures(tmp_path) == {name: name.encode() for name in picture.PICTURES.values()}
    path.unlink()
    with pytest.raises(ValueError, match=f"must show one .*image/jpeg of lesson {lesson}"):
        picture.pictures(tmp_path)
