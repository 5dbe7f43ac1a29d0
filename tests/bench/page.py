"""Where docs/costs.md shows what was measured."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "costs.md"
Row = tuple[str, ...]


def table(head: Row, rows: list[Row]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ("---",) * len(head), *rows])


def place(name: str) -> re.Pattern:
    """What stands in the page's place of a name; ValueError if it has not one such place."""
    found = re.compile(f"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    if len(found.findall(PAGE.read_text())) != 1:
        raise ValueError(f"{PAGE.name} must have one place <!-- {name} --> ... <!-- end -->")
    return found


def write(name: str, text: str) -> None:
    """Print the text, and put it into the page's place of that name."""
    print(text)
    PAGE.write_text(place(name).sub(lambda _: f"{text}\n", PAGE.read_text()))
