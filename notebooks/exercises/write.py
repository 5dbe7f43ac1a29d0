"""`python notebooks/exercises/write.py` writes exercises into notebooks, and solutions into notebooks/solutions.

Each text in notebooks/exercises is a notebook for jupytext. An exercise there has cells of these KINDS. The command
replaces what it wrote before. It runs solutions again if their code changed, or the results that they read.
"""

import copy
import inspect
import itertools
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbclient
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from e2lib.course import plainly
from e2lib.course.notebook import EXERCISE, code_cells, is_bar, read
from e2lib.course.run import FILES
from e2lib.disk import digest, write

FOLDER = Path(__file__).parents[1]
NUMBERS = sorted(path.name[:2] for path in (FOLDER / "exercises").glob("*.md"))  # of notebooks
KINDS = ("text", "setup", "start", "solution", "check", "text")  # tags of the cells of an exercise


class Exercise(NamedTuple):
    """The texts of an exercise in Markdown, and the parts of its code cell."""

    number: str  # of notebook and exercise: "04.2"
    task: str
    setup: str  # imports and data
    start: str  # with dots where the answer belongs
    solution: str
    check: str  # what runs after the answer
    why: str  # what the solution shows

    def cell(self, answer: str) -> str:
        """A whole cell: the setup, an answer (start, solution or a wrong one), and the check."""
        code = self.setup
        for part, gap in ((answer, "\n\n"), (self.check, "\n")):
            function = part.startswith("def ") or code.splitlines()[-1].startswith(" ")
            code += ("\n\n\n" if function else gap) + part
        return code


def files(notebook: str) -> tuple[Path, Path, Path]:
    """The files of notebook "01" to "12": the notebook, its exercises as text, and its solutions."""
    (path,) = FOLDER.glob(f"{notebook}_*.ipynb")
    return path, FOLDER / "exercises" / f"{path.stem}.md", FOLDER / "solutions" / path.name


def of_notebook(notebook: str) -> tuple[list[Exercise], list[str]]:
    """The exercises of a notebook, and the text on what to do with more time, if there is one.

    ValueError for cells that do not follow KINDS, and for numbers that do not follow each other.
    """
    _, path, _ = files(notebook)
    (_, *cells), texts = jupytext.read(path).cells, []  # the first one is the title
    for cell, kind in zip(cells, itertools.cycle(KINDS), strict=False):
        if (tag := cell.metadata.get("tags", ["text"])[0]) != kind:
            raise ValueError(f"{path}: a cell is tagged {tag} where {kind} is right:\n{cell.source}")
        if not cell.source.strip():
            raise ValueError(f"{path}: a cell is empty where {kind} is right, after:\n{texts[-1]}")
        texts.append(cell.source)
    *starts, rest = range(0, len(texts) + 1, len(KINDS))
    parts = [texts[start : start + len(KINDS)] for start in starts]
    found = [Exercise(part[0].split()[1], *part) for part in parts]  # "## 04.2 · its title"
    right = [f"{notebook}.{number}" for number in range(1, len(parts) + 1)]
    if (numbers := [item.number for item in found]) != right:
        raise ValueError(f"{path}: the exercises are {', '.join(numbers)}; {', '.join(right)} is right")
    if len(texts) > rest + 1:
        raise ValueError(f"{path}: the last exercise ends before its explanation, after:\n{texts[-1]}")
    return found, texts[rest:]


def with_exercises(notebook: str) -> NotebookNode:
    """The notebook with its exercises before its last cell, which holds the references.

    ValueError if a reader has put an answer into it.
    """
    path, *_ = files(notebook)
    content = read(path)
    old = [cell for cell in content.cells if EXERCISE in cell.metadata.get("tags", [])]
    code = [cell for cell in old if cell.cell_type == "code" and cell.source.strip()]
    if answers := [cell.id for cell in code if "..." not in cell.source]:
        raise ValueError(f"{path}: {', '.join(answers)} hold answers; keep them elsewhere, and empty the cells")
    *others, last = (cell for cell in content.cells if cell not in old)
    content.cells = [*others, *_exercise_cells(notebook), last]
    return content


def _exercise_cells(notebook: str) -> list[NotebookNode]:
    intro = f"""
    ## Exercises
    Below each task, put your answer in place of the dots and run the cell. No exercise needs anything from the cells
    above or from another exercise. Each one runs in seconds; the minutes are for thinking. `exercises.check` says that
    an answer is right, or gives a hint. The [solutions](solutions/{files(notebook)[0].name}) come with explanations.
    """
    cells = [new_markdown_cell(inspect.cleandoc(intro), id=f"exercises-{notebook}")]
    items, more = of_notebook(notebook)
    for item in items:
        name = f"exercise-{item.number.replace('.', '-')}"
        cells += [new_markdown_cell(f"#{item.task}", id=name), new_code_cell(item.cell(item.start), id=f"{name}-work")]
    cells += [new_markdown_cell(f"#{text}", id=f"exercises-{notebook}-more") for text in more]
    for cell in cells:
        cell.metadata.tags = [EXERCISE, *["skip-execution"] * (cell.cell_type == "code")]  # papermill skips these
    return cells


def solutions(notebook: str) -> NotebookNode:
    """The notebook of solutions. It has outputs if those in the file are of this code."""
    path, _, file = files(notebook)
    title = read(path).cells[0].source.splitlines()[0].removeprefix("# ")
    intro = f"# Solutions: {title}\n\nOf the exercises of [the notebook](../{path.name}). Try them there first."
    cells = [new_markdown_cell(intro, id="intro")]
    for item in of_notebook(notebook)[0]:
        name, solution = item.number.replace(".", "-"), item.cell(item.solution)
        cells += [new_markdown_cell(item.task, id=f"task-{name}"), new_code_cell(solution, id=f"solution-{name}")]
        cells += [new_markdown_cell(item.why, id=f"why-{name}")]
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    reads = any("e2lib.course.claims" in source for source in sources)
    state = digest([sources, *((FOLDER / name).read_text() for name in FILES.values() if reads)], 12)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    metadata = {"e2lib": {"source": state}, "kernelspec": kernel, "language_info": {"name": "python"}}
    fresh = new_notebook(cells=cells, metadata=metadata)
    if file.exists() and (old := read(file)).metadata.get("e2lib") == fresh.metadata.e2lib:
        _take_outputs(fresh, old)
    return fresh


def _take_outputs(notebook: NotebookNode, executed: NotebookNode) -> None:
    for cell, done in zip(code_cells(notebook), code_cells(executed), strict=True):
        cell.outputs = [output for output in done.outputs if not is_bar(output)]
        cell.execution_count = done.execution_count


def stale() -> dict[Path, NotebookNode]:
    """What `main` would write: notebooks and solutions. Solutions that have to run have no outputs."""
    found = {}
    for number in NUMBERS:
        path, _, other = files(number)
        for file, new in {path: with_exercises(number), other: solutions(number)}.items():
            if not file.exists() or file.read_text("utf-8") != nbformat.writes(new) + "\n":
                found[file] = new
    return found


def main() -> None:
    """Write what is stale. A solution that fails raises CellExecutionError of nbclient."""
    for path, fresh in stale().items():
        if path.parent != FOLDER and not any(cell.outputs for cell in code_cells(fresh)):
            quiet = ["--log-level=ERROR"]  # the kernel's warnings about itself
            _take_outputs(fresh, nbclient.execute(copy.deepcopy(fresh), kernel_name="python3", extra_arguments=quiet))
        write(path, nbformat.writes(fresh) + "\n")
        print(f"wrote {path.relative_to(FOLDER)}")


if __name__ == "__main__":
    with plainly():
        main()
