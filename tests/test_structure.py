"""The house has two parts and one arrow: the course imports the library, never the other way round."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "e2lib").rglob("*.py"))
}


def imported(path: Path, name: str, everywhere: bool = True) -> set[str]:
    """The modules of e2lib that a file imports; without `everywhere` those that it imports when it is loaded."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not everywhere:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found.update(
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in FILES else module for alias in node.names
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return {module for module in found if module.partition(".")[0] == "e2lib"} - {"e2lib", name}


def is_course(name: str) -> bool:
    return name == "e2lib.course" or name.startswith("e2lib.course.")


@pytest.mark.parametrize("name", [name for name in FILES if not is_course(name)])
def test_the_library_imports_nothing_from_the_course(name):
    assert not {module for module in imported(FILES[name], name) if is_course(module)}


def test_no_imports_run_in_a_circle():
    graph = {name: imported(path, name, everywhere=False) & FILES.keys() for name, path in FILES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def lines(course: bool) -> int:
    """Lines of Python, as `make size` counts them."""
    return sum(
        len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items() if is_course(name) == course
    )


@pytest.mark.parametrize(("course", "most"), [(False, 5780), (True, 2800)], ids=["library", "course"])
def test_each_part_keeps_its_size(course, most):
    assert lines(course) <= most
