"""Every notebook keeps the rules: small cells, one parameters cell, a card, fresh outputs, presets that fit."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from e2lib.course import notebook as files
from e2lib.course import parameters, run

ROOT = Path(__file__).parents[2]
EVERY = [p for p in sorted((ROOT / "notebooks").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
SOLUTIONS = [path for path in EVERY if path.parent == ROOT / "notebooks" / "solutions"]  # of exercises
NOTEBOOKS = [path for path in EVERY if path not in SOLUTIONS]
OUTPUT_WIDGETS = {f"ipywidgets.{name}" for name in ("Output", "interact", "interact_manual", "interactive")}
LESSONS = [path for path in EVERY if re.match(r"\d\d_", path.name)]  # with solutions, without the notebooks behind


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    found = problems(path)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_notebook_of_solutions_keeps_the_rules(path):
    """Those that fit one without parameters or presets; tests/test_exercises.py compares it with its source."""
    found = [*file_problems(path), *code_problems(files.read(path)), *output_problems(files.read(path))]
    assert not found + [*style_problems(path)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_a_head_and_an_end(path):
    first, *_, last = files.read(path).cells
    assert first.source.startswith(f"# {path.name.partition('_')[0]} · ") and "**You will**" in first.source
    assert re.search(r"\*Prerequisites?: .*(minute|hour|[Ss]econds)", first.source, re.DOTALL)
    assert last.source.startswith("## References\n")
    assert sum("## Recap\n" in cell.source for cell in files.read(path).cells) == 1


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_spreads_over_seeds_stand_in_tables(path):
    """A text holds for any run. What several seeds say stands in results.md, and in tables of the papers."""
    texts = [cell.source for cell in files.read(path).cells if cell.cell_type == "markdown"]
    assert not re.findall(r"^[^|].*\d ± \d.*$", "\n".join(texts), re.MULTILINE)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.relative_to(ROOT / "notebooks").as_posix())
def test_the_site_shows_whole_lines_of_code(path):
    """It cuts off longer ones in a window of 1280 pixels. Cells to fill and hidden ones count as well."""
    cells = [(i, cell.source.splitlines()) for i, cell in enumerate(files.read(path).cells) if cell.cell_type == "code"]
    long = [f"cells[{i}], {len(line)} columns: {line}" for i, lines in cells for line in lines if len(line) > 88]
    assert not long, "\n".join(long)


@pytest.mark.alone
def test_imports_take_seconds():
    """Those of all notebooks in one process: six seconds on two idle cores; slower ones may take 15."""
    lines = [
        line
        for path in NOTEBOOKS
        for cell in files.code_cells(files.read(path))
        for line in cell.source.splitlines()
        if re.match(r"(import|from) \w", line)
    ]
    source = "import time; start = time.perf_counter()\n" + "\n".join(dict.fromkeys(lines))
    source += "\nprint(time.perf_counter() - start)"

    def seconds() -> float:
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
        return float(done.stdout.splitlines()[-1])

    assert (first := seconds()) < 15 or seconds() < 15, first  # the second time from the system's cache


def test_each_preset_belongs_to_a_notebook():
    numbers = {path.name.partition("_")[0] for path in NOTEBOOKS}
    presets = list((ROOT / "notebooks" / "presets").glob("*/*.yaml"))
    assert presets and {path.stem.partition("-")[0] for path in presets} <= numbers


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_picture_has_a_text_that_says_what_it_shows(path):
    pictures = {}
    for cell in files.code_cells(files.read(path)):
        kinds = [output.get("data", {}) for output in cell.outputs]
        if count := sum(any(kind.startswith("image/") for kind in data) for data in kinds):
            pictures[cell.id] = count
    texts = yaml.safe_load((ROOT / "docs" / "pictures.yaml").read_text()).get(path.name.partition("_")[0], {})
    assert {cell: len(found) for cell, found in texts.items()} == pictures
    assert all(len(text) >= 30 for found in texts.values() for text in found)


def test_papermill_can_note_down_each_preset():
    for path in (ROOT / "notebooks" / "presets").glob("*/*.yaml"):
        json.dumps(yaml.safe_load(path.read_text()), sort_keys=True)  # a TypeError for keys of several types


def problems(path: Path) -> list[str]:
    """What is wrong with the notebook in file `path`, one line each."""
    notebook = files.read(path)
    return [
        *file_problems(path),
        *code_problems(notebook),
        *card_problems(notebook),
        *output_problems(notebook),
        *preset_problems(path),
        *style_problems(path),
    ]


def file_problems(path):
    if not re.fullmatch(r"\d\d[b-z]?_\w+", path.stem):
        yield "its name is not NN_name.ipynb"
    if path.stat().st_size > 2_000_000:
        yield "larger than 2 MB"


def code_problems(notebook):
    for number, cell in enumerate(files.code_cells(notebook), 1):
        lines = sum(bool(line.strip()) for line in cell.source.splitlines())
        if lines > 15:
            yield f"cell {number} has {lines} lines; 15 are allowed"
        for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 10:
                yield f"cell {number} defines {node.name}, longer than 10 lines"
            # nbclient answers an Output widget while it waits for the cell, and may then wait forever.
            if ast.unparse(node) in OUTPUT_WIDGETS:
                yield f"cell {number} uses {ast.unparse(node)}, which can hang a run: observe a slider instead"


def card_problems(notebook):
    card = notebook.metadata.get("e2lib", {})
    if not (isinstance(card.get("minutes"), int | float) and card["minutes"] > 0):
        yield "metadata e2lib: minutes must be a positive number"
    for field in "hardware", "question":
        if not (isinstance(card.get(field), str) and card[field].strip()):
            yield f"metadata e2lib: {field} must be a text"
    if card.get("source") != files.source_hash(notebook):
        yield "its outputs are not those of its present code: make notebooks"


def output_problems(notebook):
    cells = files.code_cells(notebook)
    outputs = [(number, output) for number, cell in enumerate(cells, 1) for output in cell.outputs]
    if not outputs:
        yield "has no outputs"
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "its cells were not executed in order"
    if len(files.own_cells(notebook)) < len(notebook.cells):
        yield "holds cells that papermill added"
    for number, output in outputs:
        if output.output_type == "error":
            yield f"cell {number} ends in an error: {output.ename}"
        pictures = {kind: None for kind in output.get("data", {}) if kind.startswith("image/")}
        if found := absolute_path(output | {"data": output.get("data", {}) | pictures}):
            yield f"cell {number} shows the path {found}"
    if found := absolute_path(notebook.metadata):
        yield f"the metadata holds the path {found}"


def absolute_path(content) -> str | None:
    """A path in a place that some machine has and others have not."""
    tops = {"home", "Users", "root", "tmp", "private", "mnt", "opt", "srv", "var", "usr"}
    tops |= {folder.parts[1] for folder in (ROOT, Path.home()) if len(folder.parts) > 1}
    found = re.search(rf"(?<![\w.:/<-])/(?:{'|'.join(tops)})/\w[^\s\"]*|\b[A-Z]:\\+\w[^\s\"]*", json.dumps(content))
    return found and found[0]


def preset_problems(path):
    try:
        schema = parameters.of(path)
    except ValueError as error:
        yield str(error)
        return
    found = {}
    for preset in run.PRESETS:
        number = path.name.partition("_")[0]
        file = path.parent / "presets" / preset / f"{number}.yaml"
        if not file.is_file() and preset not in ("paper", "real"):  # not every notebook takes photographs
            yield f"presets/{preset}/{file.name} is missing"
        found |= {other: preset for other in file.parent.glob(f"{number}[-.]*")}
    for file, preset in found.items():
        values = run.mapping(file)
        try:
            parameters.check(schema, values)
        except ValueError as error:
            yield f"presets/{preset}/{file.name}: {error}"
            continue
        if preset == "laptop" and any(schema[name].default != value for name, value in values.items()):
            yield f"presets/laptop/{file.name} differs from the parameters cell"


def style_problems(path):
    notebook = files.read(path)
    # Elsewhere than in notebooks/, all rules hold: those that cells to fill may break as well.
    lessons = [cell for cell in notebook.cells if files.EXERCISE not in cell.metadata.get("tags", [])]
    name = str(path) if len(lessons) == len(notebook.cells) else path.name
    notebook.cells = lessons
    for command in ["check"], ["format", "--check"]:
        ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "--config", str(ROOT / "pyproject.toml")]
        ruff += ["--stdin-filename", name, "-"]
        if subprocess.run(ruff, input=nbformat.writes(notebook), text=True, capture_output=True, cwd=ROOT).returncode:
            yield f"ruff {' '.join(command)} finds faults"


@pytest.fixture
def good(tmp_path) -> Path:
    """A notebook without a fault, and its presets."""
    parameters = new_code_cell("# Parameters: a\nsize = 64\nseed = 0", metadata={"tags": ["parameters"]})
    output = new_output("execute_result", {"text/plain": "64"}, execution_count=2)
    cells = [new_markdown_cell("# T"), parameters, new_code_cell("size", outputs=[output], execution_count=2)]
    parameters.execution_count = 1
    notebook = new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    notebook.metadata["e2lib"] = {
        "minutes": 1,
        "hardware": "CPU",
        "question": "?",
        "source": files.source_hash(notebook),
    }
    path = tmp_path / "01_good.ipynb"
    nbformat.write(notebook, path)
    for preset in run.PRESETS:
        file = tmp_path / "presets" / preset / "01.yaml"
        file.parent.mkdir(parents=True)
        file.write_text("{}" if preset == "laptop" else "size: 96")
    return path


def test_a_good_notebook_has_no_problems(good):
    assert problems(good) == []


def _code(source):
    """A change to a notebook: the last cell has this source, and outputs that belong to it."""

    def change(notebook):
        notebook.cells[2].source = source
        notebook.metadata["e2lib"]["source"] = files.source_hash(notebook)

    return change


def _output(text):
    return lambda notebook: notebook.cells[2].outputs.append(new_output("stream", text=text))


LONG_FUNCTION = "def long():\n" + "    a = 1\n" * 10
ERROR = new_output("error", ename="KeyError", evalue="1", traceback=[])
FAULTS = [
    (_code("a = 1\n" * 15 + "a"), "cell 2 has 16 lines"),
    (_code(LONG_FUNCTION), "cell 2 defines long"),
    (_code("ipywidgets.interact(print, x=3)"), "cell 2 uses ipywidgets.interact"),
    (_code("import os"), "ruff check finds faults"),
    (_code("size==1"), "ruff format --check finds faults"),
    (lambda n: n.cells[2].update(source="size + 1"), "not those of its present code"),
    (lambda n: n.cells[2].outputs.clear(), "has no outputs"),
    (lambda n: n.cells[2].outputs.append(ERROR), "cell 2 ends in an error: KeyError"),
    (lambda n: n.cells[2].update(execution_count=7), "not executed in order"),
    (_output(f"wrote {ROOT / 'x'}"), "cell 2 shows the path"),
    (_output(f"{Path.home() / 'x'}"), "cell 2 shows the path"),
    (_output("see '/home/ada/x'"), "cell 2 shows the path /home/ada/x"),
    (_output("C:\\Users\\ada"), "cell 2 shows the path C:"),
    (lambda n: n.metadata.update(papermill={"input_path": "/home/a"}), "metadata holds the path /home/a"),
    (_output("x" * 2_000_000), "larger than 2 MB"),
    (lambda n: n.cells[1].metadata.tags.clear(), "0 cells tagged parameters"),
    (lambda n: n.cells[2].metadata.update(tags=["parameters"]), "2 cells tagged parameters"),
    (lambda n: n.cells[2].metadata.update(tags=["injected-parameters"]), "papermill added"),
    (lambda n: n.metadata.pop("e2lib"), "hardware must be a text"),
    (lambda n: n.metadata["e2lib"].update(minutes=0), "minutes must be"),
    (lambda n: n.metadata["e2lib"].update(question=" "), "question must be"),
]


@pytest.mark.parametrize(("change", "complaint"), FAULTS, ids=[complaint for _, complaint in FAULTS])
def test_each_fault_is_found(good, change, complaint):
    notebook = files.read(good)
    change(notebook)
    nbformat.write(notebook, good)
    assert any(complaint in problem for problem in problems(good))


@pytest.mark.parametrize("text", ["1/2", "size/seed/data", "<b>a</b>", "see docs/home/x", "a.org/home/x"])
def test_other_slashes_are_no_paths(text):
    assert absolute_path([text]) is None


@pytest.mark.parametrize(
    ("preset", "text", "complaint"),
    [
        ("smoke", "sise: 96", "presets/smoke/01.yaml: unknown parameter 'sise'"),
        ("smoke", "size: '97'", "presets/smoke/01.yaml: parameter size='97'"),
        ("laptop", "size: 96", "presets/laptop/01.yaml differs"),
        ("full", None, "presets/full/01.yaml is missing"),
    ],
)
def test_each_wrong_preset_is_found(good, preset, text, complaint):
    file = good.parent / "presets" / preset / "01.yaml"
    file.unlink() if text is None else file.write_text(text)
    assert any(complaint in problem for problem in problems(good))


def test_another_name_is_found(good):
    assert "its name is not NN_name.ipynb" in problems(good.rename(good.parent / "good.ipynb"))
