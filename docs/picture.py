"""`python docs/picture.py` brings README.md up to date with the executed notebooks and results.csv.

It writes the three pictures, the lines of results, the table of lessons, and links that launch the lessons elsewhere.
"""

import base64
import math
import re
import tomllib
from pathlib import Path

import nbformat
import pandas as pd

from e2lib.course import claims
from e2lib.disk import replacing

ROOT = Path(__file__).parents[1]
# lesson and kind of an output, in a cell tagged readme -> its file in docs/
PICTURES = {("01", "image/jpeg"): "car.jpg", ("01", "image/gif"): "map.gif", ("08", "image/jpeg"): "students.jpg"}
BIRDS = {"run": "06-waterbirds", "where": {"task": "bird", "method": "baseline"}, "value": "worst group"}
PAIRS = {"run": "08b-waterbirds", "where": {"task": "heads", "method": "KD"}, "value": "out of distribution"}
VOC = {"run": "04c-voc", "where": {"method": "none", "selection rule": "last epoch"}}
TAUGHT = {"run": "07c-voc", "where": {"task": "125 shots", "method": "KD"}, "value": "EPG"}
PREDICTED = "energy, 1 %, others predicted"
ALL = {"method": "best of all", "boxes": "100 %"}
# What README says of results.csv: what is measured, the plain method, how another row differs, what that is.
RESULTS = [
    ("VOC2007, EPG", VOC | {"value": "EPG"}, ALL | {"selection rule": "F1"}, "guidance, all boxes"),
    ("VOC2007, still named", VOC | {"value": "still named"}, ALL | {"selection rule": "F1"}, "guidance, all boxes"),
    ("VOC2007, student's EPG", TAUGHT, {"method": "KD + e²KD"}, "KD + e²KD"),
    ("Waterbirds-100, worst group", BIRDS, {"method": PREDICTED}, "guidance, 1 % of boxes drawn, rest predicted"),
    ("Waterbirds-100, unseen groups", PAIRS, {"method": "KD + e²KD"}, "KD + e²KD"),
]


def pictures(folder: Path) -> dict[str, bytes]:
    """The pictures of the lessons' cells tagged `readme`, by file. ValueError unless there is one of each."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        cells = [cell for cell in nbformat.read(path, 4).cells if "readme" in cell.metadata.get("tags", [])]
        for data in (output.get("data", {}) for cell in cells for output in cell.get("outputs", [])):
            keys = [(path.name[:2], kind) for kind in data if (path.name[:2], kind) in PICTURES]
            found += [(PICTURES[key], base64.b64decode(data[key[1]])) for key in keys]
    if sorted(name for name, _ in found) != sorted(PICTURES.values()):
        wanted = ", ".join(f"{kind} of lesson {lesson}" for lesson, kind in PICTURES)
        raise ValueError(f"{folder}: cells tagged 'readme' must show one {wanted}; run `make notebooks`")
    return dict(found)


def results(table: pd.DataFrame) -> str:
    """The lines of results: means over seeds, in whole per cent. ValueError where a method has no numbers."""
    rows = ["|measure, per cent|without|with explanations|", "|---|---|---|"]
    for what, plain, other, how in RESULTS:
        ours = [claims.Ours(**plain), claims.Ours(**plain | {"where": plain["where"] | other})]
        without, with_it = (claims.values(table, one).mean() for one in ours)
        rows.append(f"|{what}|{without:.0f}|{with_it:.0f}: {how}|")
    return "\n".join(rows)


def lessons(folder: Path) -> str:
    """The table of the lessons in a folder: title, question, and minutes, rounded up."""
    rows = ["|lesson|question|minutes|", "|---|---|---|"]
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, 4)
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ").replace(" · ", " ")
        card = notebook.metadata["e2lib"]
        rows.append(f"|[{title}](notebooks/{path.name})|{card['question']}|{math.ceil(card['minutes'])}|")
    return "\n".join(rows)


def repository() -> str:
    """OWNER/NAME on GitHub, from `Repository` among the links in pyproject.toml; empty where there is none."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    return urls.get("Repository", "").removeprefix("https://github.com/").strip("/")


def launch(name: str) -> str:
    """The line that opens the first lesson on machines of others; empty without a repository."""
    lesson = "notebooks/01_meet_the_data.ipynb"
    binder = f"https://mybinder.org/v2/gh/{name}/main?labpath={lesson}"
    colab = f"https://colab.research.google.com/github/{name}/blob/main/{lesson}"
    line = f"On other machines: lesson 01 in [Binder]({binder}) or [Colab]({colab}) ([how](docs/colab.md))."
    return line if name else ""


def filled(text: str) -> str:
    """README's text with the present results, lessons and links between its marks."""
    found = {"results": results(claims.load())}
    found |= {"lessons": lessons(ROOT / "notebooks"), "launch": launch(repository())}
    for name, part in found.items():
        block = f"\n{part}\n" if part else ""
        text = re.sub(f"(?s)(?<=<!-- {name} -->).*?(?=<!-- end -->)", lambda _, block=block: block, text, count=1)
    return text


def main() -> None:
    """Write the pictures and README."""
    for name, content in pictures(ROOT / "notebooks").items():
        with replacing(ROOT / "docs" / name) as part:
            part.write_bytes(content)
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
