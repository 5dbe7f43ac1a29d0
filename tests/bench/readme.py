"""Where the README shows what was measured."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
Row = tuple[str, ...]


def table(head: Row, rows: list[Row]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ("---",) * len(head), *rows])


def place(name: str) -> re.Pattern:
    """What stands in the README's place of a name; ValueError if it has not one such place."""
    found = re.compile(f"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    if len(found.findall(README.read_text())) != 1:
        raise ValueError(f"{README.name} must have one place <!-- {name} --> ... <!-- end -->")
    return found


def write(name: str, text: str) -> None:
    """Print the text, and put it into the README's place of that name."""
    print(text)
    README.write_text(place(name).sub(lambda _: f"{text}\n", README.read_text()))
