"""`python -m e2lib.course.exercises` writes exercises into the notebooks, and their solutions into notebooks/solutions.

What it wrote before is replaced; solutions are executed anew where they, or the results that they read, changed.
"""

import importlib
import inspect
from pathlib import Path

import nbclient
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from e2lib.course import exercises, runs

FOLDER = Path(__file__).parents[3] / "notebooks"
TAG = runs.EXERCISE  # of the cells that are written into a notebook


def notebook_file(notebook: str) -> Path:
    """The notebook with a number "01" to "12"."""
    (path,) = FOLDER.glob(f"{notebook}_*.ipynb")
    return path


def solution_file(notebook: str) -> Path:
    """Where its solutions are."""
    return FOLDER / "solutions" / notebook_file(notebook).name


def with_exercises(notebook: str) -> NotebookNode:
    """The notebook with its exercises before its last cell, which holds the references.

    ValueError where a reader has solved one in it.
    """
    path = notebook_file(notebook)
    content = runs.read(path)
    mine = [cell for cell in content.cells if TAG in cell.metadata.get("tags", [])]
    if any(cell.cell_type == "code" and cell.source.strip() for cell in mine):
        raise ValueError(f"{path}: a cell of an exercise holds an answer; keep it elsewhere, and empty the cell")
    *others, last = (cell for cell in content.cells if cell not in mine)
    content.cells = [*others, *_exercise_cells(notebook), last]
    return content


def _exercise_cells(notebook: str) -> list[NotebookNode]:
    name = solution_file(notebook).name
    intro = f"""
    ## Exercises
    Copy the code below a task into the empty cell that follows, and put your answer in place of the dots. No exercise
    needs anything from the cells above, or from another exercise. Each computes for seconds; the minutes are yours.
    `exercises.check` says that an answer is right, or gives a hint. The [solutions](solutions/{name}) come with
    explanations.
    """
    cells = [_markdown(f"exercises-{notebook}", intro)]
    for item in exercises.of_notebook(notebook):
        name = f"exercise-{item.number.replace('.', '-')}"
        fenced = f"```python\n{item.code(item.start)}\n```"
        cells += [_markdown(name, f"### {_title(item)}\n{item.text}\n\n{fenced}"), new_code_cell(id=f"{name}-work")]
    if more := getattr(importlib.import_module(f"e2lib.course.exercises.nb{notebook}"), "MORE", ""):
        cells.append(_markdown(f"exercises-{notebook}-more", f"### With more time\n{more.strip()}"))
    for cell in cells:
        cell.metadata = {"tags": [TAG]}
    return cells


def _markdown(name: str, text: str) -> NotebookNode:
    return new_markdown_cell(inspect.cleandoc(text), id=name)


def _title(item: exercises.Exercise) -> str:
    return f"{item.number} · {item.title}\n*{item.kind}.*\n"


def solutions(notebook: str) -> NotebookNode:
    """The notebook of solutions, not executed."""
    path = notebook_file(notebook)
    title = runs.read(path).cells[0].source.splitlines()[0].removeprefix("# ")
    intro = f"# Solutions: {title}\n\nOf the exercises of [the notebook](../{path.name}). Try them there first."
    cells = [_markdown("intro", intro)]
    for item in exercises.of_notebook(notebook):
        name = item.number.replace(".", "-")
        cells.append(_markdown(f"task-{name}", f"## {_title(item)}\n{item.text}"))
        cells.append(new_code_cell(item.code(item.solution), id=f"solution-{name}"))
        cells.append(_markdown(f"why-{name}", item.why))
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    metadata = {"e2lib": {"source": _state(cells)}, "kernelspec": kernel, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def _state(cells: list[NotebookNode]) -> str:
    """Tells the code of cells, and the results where it reads them, from others."""
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    reads = any("e2lib.course.claims" in source for source in sources)
    return runs.digest([sources, *((FOLDER / name).read_text() for name in runs.FILES.values() if reads)])


def _executed(notebook: NotebookNode) -> NotebookNode:
    """With its outputs; nbclient's CellExecutionError where a cell fails."""
    metadata = dict(notebook.metadata)
    quiet = ["--log-level=ERROR"]  # the kernel's warnings about itself
    notebook = nbclient.NotebookClient(notebook, kernel_name="python3", extra_arguments=quiet).execute()
    for cell in notebook.cells:
        cell.metadata = {}
    for cell in runs.code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if not runs.is_bar(output)]
    notebook.metadata = metadata
    return notebook


def _solved(notebook: str) -> NotebookNode:
    """The notebook of solutions with its outputs: those that are there, where they belong to this code."""
    fresh, path = solutions(notebook), solution_file(notebook)
    old = runs.read(path) if path.exists() else None
    if old is None or old.metadata.get("e2lib") != fresh.metadata.e2lib:
        return _executed(fresh)
    for cell, done in zip(runs.code_cells(fresh), runs.code_cells(old), strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return fresh


def stale() -> list[Path]:
    """The files that `main` would write: notebooks, and solutions."""
    found = []
    for number in exercises.NUMBERS:
        path, other = notebook_file(number), solution_file(number)
        if path.read_text(encoding="utf-8") != _text(with_exercises(number)):
            found.append(path)
        fresh = solutions(number)
        if not other.exists() or _essence(runs.read(other)) != _essence(fresh):
            found.append(other)
    return found


def _essence(notebook: NotebookNode) -> tuple:
    return [(cell.id, cell.source) for cell in notebook.cells], notebook.metadata.get("e2lib")


def _text(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook) + "\n"


def main() -> None:
    """Write what is stale."""
    (FOLDER / "solutions").mkdir(exist_ok=True)
    for path in stale():
        number = path.name[:2]
        solved = path.parent != FOLDER
        runs.write(path, _text(_solved(number) if solved else with_exercises(number)))
        print(f"wrote {path.relative_to(FOLDER)}")


if __name__ == "__main__":
    with runs.plainly():
        main()
