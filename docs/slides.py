"""Slides from the lessons: `python docs/slides.py` writes docs/_build/slides/NN.html, which need no network.

Each cell tagged `slide` is one slide: a text as it stands without its folded answers, a code cell as its pictures and
tables that are not folded, below the heading before it. A code cell without pictures and tables shows its code.
"""

import re
import shutil
from base64 import b64encode
from html import escape
from pathlib import Path

import nbformat
import yaml
from docutils.utils.math.latex2mathml import tex2mathml
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from e2lib.disk import write

DOCS = Path(__file__).parent
MOST = 15  # slides of a lesson
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="reveal/reveal.css"><link rel="stylesheet" href="reveal/slides.css">
<style>{colours}</style></head>
<body><div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="reveal/reveal.js"></script>
<script>
Reveal.initialize({{hash: true, slideNumber: "c/t", width: 1280, height: 720, center: false, margin: 0.06}});
</script>
</body></html>
"""
markdown = MarkdownIt("commonmark").enable("table").render


def of_text(source: str) -> str:
    """A text without folded answers, prerequisites and links, which lead nowhere from a projector."""
    source = re.sub(r"<details>.*?</details>|^\*Prerequisite.*", "", source, flags=re.DOTALL | re.MULTILINE)
    source = re.sub(r"\$\$(.+?)\$\$|\$(.+?)\$", lambda m: _maths(m[1] or m[2], bool(m[1])), source, flags=re.DOTALL)
    return markdown(re.sub(r"(?<!!)\[([^]]+)\]\([^)]+\)", r"\1", source))


def _maths(formula: str, block: bool) -> str:
    return " ".join(tex2mathml(" ".join(formula.split()), as_block=block).split())


def of_code(cell: nbformat.NotebookNode, texts: list[str]) -> str:
    """The pictures of a code cell, or else its tables, or else its code. `texts` describe the pictures."""
    pictures, tables = [], ""
    for data in (output.get("data", {}) for output in cell.outputs):
        if kind := next((kind for kind in data if kind.startswith("image/")), None):
            content = "".join(data[kind])
            if kind == "image/svg+xml":
                content = b64encode(content.encode()).decode()
            pictures.append(f"data:{kind};base64,{''.join(content.split())}")
        elif "text/html" in data:
            html = "".join(data["text/html"])
            tables += re.sub(r"<style.*?</style>|<details>.*?</details>", "", html, flags=re.DOTALL)
    height, texts = f"max-height: {560 // max(1, len(pictures))}px", [*texts, *[""] * len(pictures)]
    shown = (
        f'<img style="{height}" src="{of}" alt="{escape(text)}">' for of, text in zip(pictures, texts, strict=False)
    )
    return "".join(shown) or tables or highlight(cell.source, PythonLexer(), HtmlFormatter())


def slides(path: Path, texts: dict[str, list[str]]) -> list[str]:
    """The slides of a lesson as HTML. ValueError for none, and for more than `MOST`."""
    heading, found = "", []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            heading = next(iter(re.findall(r"^##? .*", cell.source, re.MULTILINE)[-1:]), heading)
        if "slide" in cell.metadata.get("tags", []):
            text = cell.cell_type == "markdown"
            found.append(of_text(cell.source) if text else markdown(heading) + of_code(cell, texts.get(cell.id, [])))
    if not 0 < len(found) <= MOST:
        raise ValueError(f"{path} has {len(found)} cells tagged 'slide'; a deck has 1 to {MOST}")
    return found


def main() -> None:
    """Write the deck of every lesson."""
    folder, pictures = DOCS / "_build" / "slides", yaml.safe_load((DOCS / "pictures.yaml").read_text("utf-8"))
    shutil.copytree(DOCS / "_static" / "reveal", folder / "reveal", dirs_exist_ok=True)
    for path in sorted((DOCS.parent / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        deck = "\n".join(f"<section>{slide}</section>" for slide in slides(path, pictures.get(path.name[:2], {})))
        title = escape(path.stem.replace("_", " "))
        write(
            folder / f"{path.name[:2]}.html",
            PAGE.format(title=title, slides=deck, colours=HtmlFormatter().get_style_defs()),
        )
    print(f"slides of {len(list(folder.glob('*.html')))} lessons: {folder.relative_to(DOCS.parent)}/01.html and so on")


if __name__ == "__main__":
    main()
