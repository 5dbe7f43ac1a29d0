"""Each solution passes its check, each blank and typical mistake gets its hint; notebooks hold what the sources say."""

import re

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell

from e2lib.course import exercises, runs
from e2lib.course.exercises import Hint
from e2lib.course.exercises import __main__ as writer

EXERCISES = [item for notebook in exercises.NUMBERS for item in exercises.of_notebook(notebook)]
MISTAKES = [(item, *mistake) for item in EXERCISES for mistake in item.mistakes]
ALL = pytest.mark.parametrize("item", EXERCISES, ids=lambda item: item.number)


def said(code: str, capsys) -> str:
    """What a cell with this code prints last."""
    torch.manual_seed(0)
    exec(compile(code, "cell", "exec"), {"__name__": "cell"})
    return capsys.readouterr().out.strip().splitlines()[-1]


@ALL
def test_the_solution_is_right(item, capsys):
    assert said(item.code(item.solution), capsys).startswith(f"{item.number} is right")


@ALL
def test_the_blank_gets_a_hint(item, capsys):
    assert re.match(rf"{item.number} is not right yet: \S", said(item.code(item.start), capsys))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake[0].number}-{mistake[3]}")
def test_a_typical_mistake_gets_its_hint(mistake, capsys):
    item, old, new, hint = mistake
    assert old in item.solution
    message = said(item.code(item.solution.replace(old, new)), capsys)
    assert message.startswith(f"{item.number} is not right yet: ") and hint in message, message


@ALL
def test_a_text_does_not_give_the_solution_away(item):
    assert item.start.strip() not in item.solution and "..." in item.start
    assert item.solution.strip() not in item.text and re.search(r"(minute|second)s?$", item.kind)


def test_each_notebook_has_three_to_six():
    for notebook in exercises.NUMBERS:
        numbers = [item.number for item in exercises.of_notebook(notebook)]
        assert numbers == [f"{notebook}.{i}" for i in range(1, len(numbers) + 1)] and 3 <= len(numbers) <= 6


def test_notebooks_and_solutions_are_those_of_the_sources():
    names = sorted(f"{path.parent.name}/{path.name}" for path in writer.stale())
    assert not names, "python -m e2lib.course.exercises writes anew: " + ", ".join(names)


def test_solutions_lie_beside_their_notebooks():
    found = {path.name for path in (writer.FOLDER / "solutions").glob("*.ipynb")}
    assert found == {writer.notebook_file(number).name for number in exercises.NUMBERS}


def test_an_executed_solution_says_that_it_is_right():
    for number in exercises.NUMBERS:
        outputs = [
            "".join(output.get("text", "") for output in cell.outputs)
            for cell in runs.read(writer.solution_file(number)).cells
            if cell.cell_type == "code"
        ]
        items = exercises.of_notebook(number)
        assert len(outputs) == len(items)
        assert all(f"{item.number} is right" in output for item, output in zip(items, outputs, strict=True))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with notebook 01 alone, in which a cell is solved."""
    content = runs.read(writer.notebook_file("01"))
    nbformat.write(content, tmp_path / "01_meet_the_data.ipynb")
    monkeypatch.setattr(writer, "FOLDER", tmp_path)
    return tmp_path


def test_writing_keeps_code_and_outputs(folder):
    before = runs.read(writer.notebook_file("01"))
    after = writer.with_exercises("01")
    assert runs.code_cells(before) == runs.code_cells(after)
    assert runs.source_hash(before) == before.metadata.e2lib.source == runs.source_hash(after)
    assert before.cells[-1] == after.cells[-1] and "References" in after.cells[-1].source


def test_earlier_exercises_are_replaced(folder):
    path = writer.notebook_file("01")
    content = runs.read(path)
    extra = new_code_cell("", id="extra")
    extra.metadata.tags = [runs.EXERCISE]
    content.cells.insert(3, extra)
    nbformat.write(content, path)
    assert "extra" not in [cell.id for cell in writer.with_exercises("01").cells]


def test_a_readers_answer_changes_no_run_and_is_not_overwritten(folder):
    path = writer.notebook_file("01")
    content = runs.read(path)
    before = runs.source_hash(content)
    cell = next(cell for cell in content.cells if cell.id == "exercise-01-1-work")
    cell.source = "pixels = 300"
    nbformat.write(content, path)
    assert runs.source_hash(content) == before
    with pytest.raises(ValueError, match="01_meet_the_data.ipynb: a cell of an exercise holds an answer"):
        writer.with_exercises("01")


def test_unknown_numbers_are_refused():
    with pytest.raises(ValueError, match=r"number is '01.9'; it must be one of 01.1, 01.2"):
        exercises.check("01.9", 1)
    with pytest.raises(ValueError, match="notebook is '77'; it must be one of 01, 02"):
        exercises.check("77.1", 1)


def test_check_prints_and_returns_nothing(capsys):
    assert exercises.check("01.3", 20.0) is None
    assert exercises.check("01.3", 30.0) is None
    first, second = capsys.readouterr().out.splitlines()
    assert first == "01.3 is right." and second.startswith("01.3 is not right yet: ") and "20" not in second


def test_an_exception_of_a_function_that_is_handed_in_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        exercises.check("01.2", lambda boxes, fraction, size: 1 / 0)


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        (None, "does your function return"),
        ("3", "is a str; a number is wanted"),
        (True, "is a bool"),
        (4.0, "too large"),
        (2.0, "too small"),
        (1.5, "halved"),
        (float("nan"), "NaN"),
        (torch.tensor([3.0]), r"the shape \(1,\); \(\) is wanted"),
    ],
)
def test_compare_tells_what_is_wrong(found, hint):
    exercises.compare("x", 3, 3.0)
    with pytest.raises(Hint, match=hint):
        exercises.compare("x", found, 3.0, (1.5, "halved"))


def test_compare_of_tensors():
    right = torch.arange(3.0)
    exercises.compare("x", right.to(torch.float32), right)
    for found, hint in ((3.0, r"is a float; a tensor of shape \(3,\)"), (right + 1, "off by up to 1")):
        with pytest.raises(Hint, match=hint):
            exercises.compare("x", found, right)
