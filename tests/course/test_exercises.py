"""Each solution passes its check, each blank and typical mistake gets its hint; notebooks hold what the texts say."""

import re

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell

from e2lib.course import exercises, run
from e2lib.course.exercises import Hint
from e2lib.course.notebook import EXERCISE, code_cells, read, source_hash
from notebooks.exercises import write as writer
from tests.course.mistakes import MISTAKES

EXERCISES = {item.number: item for notebook in writer.NUMBERS for item in writer.of_notebook(notebook)[0]}
CASES = [(number, *mistake) for number, mistakes in MISTAKES.items() for mistake in mistakes]
ALL = pytest.mark.parametrize("item", EXERCISES.values(), ids=lambda item: item.number)


def said(code: str, capsys) -> str:
    """What a cell with this code prints last."""
    torch.manual_seed(0)
    exec(compile(code, "cell", "exec"), {"__name__": "cell"})
    return capsys.readouterr().out.strip().splitlines()[-1]


@ALL
def test_the_solution_is_right(item, capsys):
    assert said(item.cell(item.solution), capsys).startswith(f"{item.number} is right")


@ALL
def test_the_blank_runs_and_gets_a_hint(item, capsys):
    assert re.match(rf"{item.number} is not right yet: \S", said(item.cell(item.start), capsys))


@pytest.mark.parametrize(("number", "old", "new", "hint"), CASES, ids=[f"{case[0]}-{case[3]}" for case in CASES])
def test_a_typical_mistake_gets_its_hint(number, old, new, hint, capsys):
    item = EXERCISES[number]
    right = item.cell(item.solution)
    assert old in right
    message = said(right.replace(old, new), capsys)
    assert message.startswith(f"{number} is not right yet: ") and hint in message, message


@ALL
def test_a_text_is_whole_and_does_not_give_the_solution_away(item):
    assert item.start.strip() not in item.solution and "..." in item.start
    assert item.solution.strip() not in item.task and re.search(r"(minute|second)s?\.\*$", item.task, re.MULTILINE)
    assert re.fullmatch(r"exercises\.check\(\"(.+?)\", .+\)", item.check.splitlines()[-1])[1] == item.number
    assert item.number in MISTAKES


def test_each_notebook_has_three_to_six():
    for notebook in writer.NUMBERS:
        numbers = [number for number in EXERCISES if number.startswith(notebook)]
        assert numbers == [f"{notebook}.{i}" for i in range(1, len(numbers) + 1)] and 3 <= len(numbers) <= 6


def test_notebooks_and_solutions_are_those_of_the_texts():
    names = sorted(f"{path.parent.name}/{path.name}" for path in writer.stale())
    assert not names, "python notebooks/exercises/write.py writes anew: " + ", ".join(names)


def test_solutions_lie_beside_their_notebooks():
    found = {*(writer.FOLDER / "solutions").glob("*.ipynb")}
    assert found == {writer.files(number)[2] for number in writer.NUMBERS}


def test_an_executed_solution_says_that_it_is_right():
    for notebook in writer.NUMBERS:
        cells = code_cells(read(writer.files(notebook)[2]))
        outputs = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
        numbers = [number for number in EXERCISES if number.startswith(notebook)]
        assert all(f"{number} is right" in output for number, output in zip(numbers, outputs, strict=True))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with notebook 01 alone, and its exercises."""
    path, text, _ = writer.files("01")
    for file in path, text:
        copy = tmp_path / file.relative_to(path.parent)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(writer, "FOLDER", tmp_path)


def test_writing_keeps_code_and_outputs(folder):
    before = read(writer.files("01")[0])
    after = writer.with_exercises("01")
    assert code_cells(before) == code_cells(after)
    assert source_hash(before) == source_hash(after)
    assert before.cells[-1] == after.cells[-1] and "References" in after.cells[-1].source


def test_earlier_exercises_are_replaced(folder):
    path, *_ = writer.files("01")
    content = read(path)
    extra = new_code_cell("", id="extra")
    extra.metadata.tags = [EXERCISE]
    content.cells.insert(3, extra)
    nbformat.write(content, path)
    assert "extra" not in [cell.id for cell in writer.with_exercises("01").cells]


def test_a_readers_answer_changes_no_run_and_is_not_overwritten(folder):
    path, *_ = writer.files("01")
    content = read(path)
    before = source_hash(content)
    cell = next(cell for cell in content.cells if cell.id == "exercise-01-1-work")
    cell.source = "pixels = 300"
    nbformat.write(content, path)
    assert source_hash(content) == before
    with pytest.raises(ValueError, match="01_meet_the_data.ipynb: exercise-01-1-work hold answers"):
        writer.with_exercises("01")


def test_headless_runs_skip_the_cells_to_fill(folder, tmp_path):
    papermill = pytest.importorskip("papermill")
    cells = [cell for cell in writer.with_exercises("01").cells if cell.id.endswith("-work")]
    notebook = nbformat.v4.new_notebook(cells=[new_code_cell("print(7)"), *cells])
    nbformat.write(notebook, tmp_path / "in.ipynb")
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", kernel_name="python3", progress_bar=False)
    first, *others = read(tmp_path / "out.ipynb").cells
    assert first.outputs and others and not any(cell.outputs for cell in others)


def test_a_text_with_a_wrong_cell_is_refused_by_name(folder):
    path = writer.FOLDER / "exercises" / "01_meet_the_data.md"
    path.write_text(path.read_text().replace('["start"]', '["begin"]', 1))
    with pytest.raises(ValueError, match=r"01_meet_the_data.md: a cell is tagged begin where start is right:\npixels"):
        writer.of_notebook("01")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("## 01.3", "## 01.2", "the exercises are 01.1, 01.2, 01.2, .*; 01.1, 01.2, 01.3, .* is right"),
        ("## 01.2", "## 02.2", "the exercises are 01.1, 02.2, "),
    ],
)
def test_a_text_that_would_lose_an_exercise_is_refused(folder, old, new, complaint):
    path = writer.FOLDER / "exercises" / "01_meet_the_data.md"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=f"01_meet_the_data.md: {complaint}"):
        writer.of_notebook("01")


def test_a_text_that_ends_before_its_last_explanation_is_refused(folder):
    path = writer.FOLDER / "exercises" / "01_meet_the_data.md"
    text = path.read_text().partition("All images get one random order")[0]
    for ending, complaint in (
        ("", "the last exercise ends before its explanation"),
        ("\n\n", "a cell is empty where text"),
    ):
        path.write_text(text.strip() + ending)
        with pytest.raises(ValueError, match=f"{complaint}.*\nexercises.check"):
            writer.of_notebook("01")


def test_no_answer_stands_twice_in_the_file_of_values():
    assert run.mapping(exercises.VALUES)


def test_unknown_numbers_are_refused():
    with pytest.raises(ValueError, match=r"number is '01.9'; it must be one of 01.1, 01.2"):
        exercises.check("01.9", 1)
    with pytest.raises(ValueError, match="number is '77.1'; it must be one of 01.1, .* 12.4"):
        exercises.check("77.1", 1)


def test_check_prints_and_returns_nothing(capsys):
    assert exercises.check("01.3", 11.25) is None
    assert exercises.check("01.3", 22.5) is None
    first, second = capsys.readouterr().out.splitlines()
    assert first == "01.3 is right." and second.startswith("01.3 is not right yet: ") and "11" not in second


def test_an_exception_of_a_function_that_is_handed_in_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        exercises.check("01.2", lambda boxes, fraction, size: 1 / 0)


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        (None, "does your function return"),
        ("3", "is a str; it should be a number"),
        (True, "is a bool"),
        (4.0, "too large"),
        (2.0, "too small"),
        (1.5, "halved"),
        (0.03, "in per cent"),
        (float("nan"), "NaN"),
        (torch.tensor([3.0]), r"the shape \(1,\); it should be \(\)"),
    ],
)
def test_compare_tells_what_is_wrong(found, hint):
    exercises.compare("x", 3, 3.0)
    with pytest.raises(Hint, match=f"(?i){hint}"):
        exercises.compare("x", found, 3.0, (1.5, "halved"), per_cent=True)


def test_compare_of_tensors():
    right = torch.arange(3.0)
    exercises.compare("x", right.to(torch.float32), right)
    for found, hint in ((3.0, r"is a float; it should be a tensor of shape \(3,\)"), (right + 1, "off by up to 1")):
        with pytest.raises(Hint, match=hint):
            exercises.compare("x", found, right)
