"""Exercises of the notebooks: `check` says that an answer is right, or gives a hint that does not give it away.

`nbNN.py` holds those of notebook NN: text, starting code, solution, explanation, typical mistakes, and the function
that checks an answer. `python -m e2lib.course.exercises` writes them into the notebooks, and their solutions into
notebooks/solutions.
"""

import importlib
import inspect
import numbers
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NUMBERS = tuple(sorted(path.stem[2:] for path in Path(__file__).parent.glob("nb[0-9][0-9].py")))  # of notebooks


class Hint(Exception):
    """Why an answer is not right yet."""


@dataclass(frozen=True)
class Exercise:
    """One exercise; texts are Markdown, code is what a cell holds."""

    number: str  # "04.2": the second one of notebook 04
    title: str
    kind: str  # what to do, and how long it takes
    text: str
    setup: str  # imports and data, of the starting code and of the solution
    start: str  # with dots where the answer belongs
    solution: str
    answer: str  # the names that are passed to `check`
    why: str  # what the solution shows
    mistakes: tuple[tuple[str, str, str], ...]  # what to replace in the solution, by what, and what the hint says then
    judge: Callable[..., str | None]  # raises Hint; returns what there is to say of a right answer

    def code(self, body: str) -> str:
        """A whole cell: the setup, `body` (start, solution or a wrong one), the check."""
        found = f"{self.setup}\n\n{body}"
        found = re.sub(r"\n+(?=def )", "\n\n\n", found)
        gap = "\n\n\n" if found.splitlines()[-1].startswith(" ") else "\n"  # after a function
        return f'{found}{gap}exercises.check("{self.number}", {self.answer})'


_known: dict[str, Exercise] = {}


def exercise(
    number: str,
    title: str,
    kind: str,
    *,
    text: str,
    setup: str,
    start: str,
    solution: str,
    answer: str,
    why: str,
    mistakes: tuple[tuple[str, str, str], ...] = (),
) -> Callable[[Callable[..., str | None]], Callable[..., str | None]]:
    """Makes the decorated function the check of an exercise, whose fields are those of `Exercise`."""

    def add(judge: Callable[..., str | None]) -> Callable[..., str | None]:
        texts = [inspect.cleandoc(part) for part in (text, setup, start, solution)]
        _known[number] = Exercise(number, title, kind, *texts, answer, inspect.cleandoc(why), mistakes, judge)
        return judge

    return add


def of_notebook(notebook: str) -> list[Exercise]:
    """The exercises of notebook "01" to "12", in order. ValueError for another one."""
    if notebook not in NUMBERS:
        raise ValueError(f"notebook is {notebook!r}; it must be one of {', '.join(NUMBERS)}")
    importlib.import_module(f"{__name__}.nb{notebook}")
    return [item for number, item in sorted(_known.items()) if number.startswith(f"{notebook}.")]


def judged(number: str, *answers: Any) -> tuple[bool, str]:
    """Whether the answers to an exercise are right, and what there is to say. ValueError for an unknown number."""
    number = str(number)
    items = {item.number: item for item in of_notebook(number.partition(".")[0])}
    if number not in items:
        raise ValueError(f"number is {number!r}; it must be one of {', '.join(items)}")
    try:
        if any(answer is ... for answer in answers):
            raise Hint("put your answer in place of the dots.")
        return True, items[number].judge(*answers) or ""
    except Hint as hint:
        return False, str(hint)


def check(number: str, *answers: Any) -> None:
    """Prints whether the answers to exercise `number`, "04.2", are right, with an explanation or a hint.

    ValueError for a number that no exercise has. An exception of a function that is handed in is not caught.
    """
    right, message = judged(number, *answers)
    print(f"{number} {'is right' if right else 'is not right yet'}{': ' if message else '.'}{message}")


# ---- for the checks


def compare(name: str, found: Any, right: Any, *mistakes: tuple[Any, str], within: float = 1e-4) -> None:
    """Hint, if the number or tensor `found` differs from `right` by more than `within` anywhere.

    mistakes: values that come of a typical mistake, each with its hint.
    """
    right = torch.as_tensor(right, dtype=torch.float64)
    if found is None:
        raise Hint(f"{name} is None: does your function return what it has computed?")
    if isinstance(found, bool) or not isinstance(found, Tensor if right.ndim else (Tensor, numbers.Real)):
        kind = f"tensor of shape {tuple(right.shape)}" if right.ndim else "number"
        raise Hint(f"{name} is a {type(found).__name__}; a {kind} is wanted.")
    found = torch.as_tensor(found).detach().double()
    if found.shape != right.shape:
        raise Hint(f"{name} has the shape {tuple(found.shape)}; {tuple(right.shape)} is wanted.")
    if not found.isfinite().all():
        raise Hint(f"{name} holds NaN or infinity.")
    difference = (found - right).abs().max() if found.numel() else 0.0
    if difference <= within:
        return
    for value, hint in mistakes:
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.shape == found.shape and (found - value).abs().max() <= within:
            raise Hint(hint)
    if right.ndim:
        raise Hint(f"{name} is off by up to {difference:.2g}.")
    raise Hint(f"{name} is {found.item():.4g}; that is too {'large' if found > right else 'small'}.")


def choose(found: Any, right: str, **hints: str) -> None:
    """Hint, if the letter `found` is not `right`; `hints` are those of the other letters."""
    if found not in (right, *hints):
        raise Hint(f"{found!r} is none of the letters {', '.join(sorted((right, *hints)))}.")
    if found != right:
        raise Hint(hints[found])


def random_maps(batch: int = 4, side: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Signed maps float32 (batch, 1, side, side), of no particular scale, and masks of a box each, bool."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, 1, side, side, generator=generator) * 3
    masks = torch.zeros(batch, 1, side, side, dtype=torch.bool)
    for mask in masks[:, 0]:
        top, left = torch.randint(0, side // 2, (2,), generator=generator).tolist()
        mask[top : top + side // 3 + 1, left : left + side // 2] = True
    return maps, masks
