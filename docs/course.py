"""What the site needs beyond Sphinx and its extensions: captions, questions, maths as MathML, docstrings as written."""

import html
import json
import posixpath
import re
from pathlib import Path

import nbformat
import yaml
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parents[1]
PICTURES = yaml.safe_load((ROOT / "docs" / "pictures.yaml").read_text())
log = logging.getLogger(__name__)
CODE = re.compile(r"(``?)(.+?)\1")
LESSON = re.compile(r"^\|\[[^]]+\]\((notebooks/\w+)\.ipynb\)\|(.+?)\|", re.M)
QUESTIONS = dict(LESSON.findall((ROOT / "README.md").read_text()))
TASKS = ("Stop and predict.", "Your task.")


def read(text: str) -> nbformat.NotebookNode:
    """The notebook without what a page cannot show: numbers for programs.

    Its parameters and the cell after them, its imports, are folded.
    """
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if code and "parameters" in code[0].metadata.get("tags", []):
        for cell, name in zip(code, ("parameters", "imports"), strict=False):
            cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
            cell.metadata.mystnb = {"code_prompt_show": f"Show the {name}", "code_prompt_hide": f"Hide the {name}"}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.e2lib.numbers+json", None)
    return notebook


def describe(app: Sphinx, doctree: nodes.document) -> None:
    """Give each picture of a notebook its text of pictures.yaml, to see and to hear; warn where the two do not fit."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb" or path.parent.name != "notebooks":  # solutions show none
        return
    texts, name = dict(PICTURES.get(path.name.partition("_")[0], {})), f"docs/pictures.yaml, {path.name}"
    cells = json.loads(path.read_text())["cells"]
    for node in doctree.findall(lambda node: isinstance(node, nodes.container) and "cell_index" in node):
        cell, pictures = cells[node["cell_index"]].get("id"), [*node.findall(nodes.image)]
        found = texts.pop(cell, [])
        if len(pictures) != len(found):
            log.warning(f"{name}, cell {cell}: {len(found)} texts, but {len(pictures)} pictures; each needs one")
        for picture, text in zip(pictures, found, strict=False):
            picture["alt"] = text
            caption = f'<p class="picture" aria-hidden="true">{html.escape(text)}</p>'
            picture.parent.insert(picture.parent.index(picture) + 1, nodes.raw("", caption, format="html"))
    for cell in texts:
        log.warning(f"{name}: no cell {cell} with pictures; its texts must go, or move")


def box(app: Sphinx, doctree: nodes.document) -> None:
    """Put what the reader is to do, a paragraph that begins with one of TASKS in bold, into a box with this title."""
    for first in [*doctree.findall(nodes.strong)]:
        paragraph = first.parent
        if first.astext() in TASKS and paragraph.astext().startswith(TASKS):
            title = nodes.title("", first.astext().removesuffix("."))
            paragraph.parent.replace(paragraph, found := nodes.admonition("", title, classes=["tip"]))
            paragraph.remove(first)
            found += paragraph


def ask(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """Add a lesson's question, as in README's table, to the links that lead to it from the page before and after."""
    for link in filter(None, (context.get("prev"), context.get("next"))):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(pagename), link["link"]))
        if question := QUESTIONS.get(path.removesuffix(".html")):
            link["title"] += f' <span class="question">{html.escape(question)}</span>'


def _visit_math(translator, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _visit_math_block(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def compose(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the playground and the README onto the first page, with links as seen from docs/; list the presets."""
    if docname == "docs/index":
        app.env.note_dependency(str(ROOT / "README.md"), docname=docname)  # an edit of README makes the page anew
        title, first = (ROOT / "README.md").read_text().split("\n", 1)
        first = f"{title}\n\n```{{raw}} html\n:file: playground.html\n```\n{first}"
        source[0] = re.sub(r"\]\((?!\w+:)", "](../", first) + source[0]
    elif docname in ("notebooks/results", "docs/photographs"):
        source[0] = source[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    elif docname == "docs/presets":
        for path in sorted((ROOT / "notebooks" / "presets" / "paper").iterdir()):
            shown = f"```{{literalinclude}} ../{path.relative_to(ROOT)}\n:language: yaml\n```"
            source[0] += f"\n## {path.name}\n{shown}\n"


def plain(app: Sphinx, what: str, name: str, found: object, options: dict, lines: list[str]) -> None:
    """Docstrings are plain text with `code` and Markdown tables: say the same in reStructuredText, in place."""
    if lines and lines[0].startswith("Alias for field number"):  # Python's word on the fields of a tuple
        lines.clear()
    table, out = [], []
    for line in [*lines, ""]:
        if line.startswith("|"):
            table.append([_inline(cell.strip()) for cell in line.strip()[1:-1].split(" | ")])
            continue
        if table:
            out += [".. list-table::", "   :header-rows: 1", ""]
            for first, *others in table[:1] + table[2:]:  # the second row is the rule below the head
                out += [f"   * - {first}", *(f"     - {other}" for other in others)]
            table = []
        out.append(_inline(line))
    lines[:] = out


def _inline(line: str) -> str:
    pieces, end = [], 0
    for code in CODE.finditer(line):
        after = "\\ " if re.match(r"\w", line[code.end() :]) else ""
        pieces += [_escaped(line[end : code.start()]), f"``{code[2]}``{after}"]
        end = code.end()
    return "".join([*pieces, _escaped(line[end:])])


def _escaped(text: str) -> str:
    return re.sub(r"([|*]|_\b|(?<=\w)_(?!\w))", r"\\\1", text)


def setup(app: Sphinx) -> dict:
    """Sphinx calls this."""
    app.connect("source-read", compose)
    app.connect("doctree-read", describe)
    app.connect("doctree-read", box)
    app.connect("html-page-context", ask)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    return {"version": "1", "env_version": 2, "parallel_read_safe": True, "parallel_write_safe": True}
