"""Checks of the exercises: `check` says that an answer is right, or gives a hint that does not give it away.

`values.yaml` holds right numbers and letters. `nbNN.py` checks what has to be computed: its function `check_2` takes
the answers to NN.2, raises Hint where they are wrong, and may return a remark on a right one. The tasks are text, in
notebooks/exercises; `python -m e2lib.course.exercises` writes them into the notebooks.
"""

import importlib
import numbers
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

HERE = Path(__file__).parent
NUMBERS = tuple(sorted(path.stem[2:] for path in HERE.glob("nb[0-9][0-9].py")))  # of notebooks


class Hint(Exception):
    """Why an answer is not right yet."""


def judged(number: str, *answers: Any) -> tuple[bool, str]:
    """Whether the answers to an exercise, "04.2", are right, and the remark or hint.

    ValueError for an unknown number. An exception that an answer raises, a function, is not caught.
    """
    notebook = str(number).partition(".")[0]
    if notebook not in NUMBERS:
        raise ValueError(f"number is {number!r}; it must begin with a notebook's, one of {', '.join(NUMBERS)}")
    values = yaml.safe_load((HERE / "values.yaml").read_text(encoding="utf-8"))
    module = vars(importlib.import_module(f"{__name__}.nb{notebook}"))
    checks = {f"{notebook}.{name[6:]}": function for name, function in module.items() if name.startswith("check_")}
    if number not in (known := sorted({*checks, *(name for name in values if name.startswith(notebook))})):
        raise ValueError(f"number is {number!r}; it must be one of {', '.join(known)}")
    try:
        if any(answer is ... for answer in answers):
            raise Hint("put your answer in place of the dots.")
        if number in checks:
            return True, checks[number](*answers) or ""
        for (name, about), answer in zip(values[number].items(), answers, strict=True):
            _check_value(name, answer, about)
        return True, ""
    except Hint as hint:
        return False, str(hint)


def _check_value(name: str, answer: Any, about: dict[Any, Any]) -> None:
    mistakes = {value: hint for value, hint in about.items() if value not in ("right", "within", "per cent")}
    if isinstance(about["right"], list):
        if not isinstance(answer, set):
            raise Hint(f"{name} should be a set, such as {{1, 2}}.")
        for wrong in sorted(answer ^ {*about["right"]}):
            raise Hint(mistakes.get(wrong, f"{wrong!r} is none of {', '.join(map(str, mistakes))}."))
        return
    if str(about["right"]).isalpha():
        choose(answer, about["right"], mistakes)
        return
    right, *wrong = (float(Fraction(str(value))) for value in (about["right"], *mistakes))
    hints = zip(wrong, mistakes.values(), strict=True)
    compare(name, answer, right, *hints, within=about.get("within", 1e-4), per_cent="per cent" in about)


def check(number: str, *answers: Any) -> None:
    """Print what `judged` says of the answers to an exercise, "04.2"; exceptions are the same."""
    right, message = judged(number, *answers)
    print(f"{number} {'is right' if right else 'is not right yet'}{': ' if message else '.'}{message}")


def compare(
    name: str, found: Any, right: Any, *mistakes: tuple[Any, str], within: float = 1e-4, per_cent: bool = False
) -> None:
    """Raise Hint if the number or tensor `found`, the answer, differs from `right` by more than `within` anywhere.

    mistakes: values that typical mistakes lead to, each with its hint. per_cent: a hundredth of `right` is one of them.
    """
    right = torch.as_tensor(right, dtype=torch.float64)
    if found is None:
        raise Hint(f"{name} is None. Does your function return its result?")
    if isinstance(found, bool) or not isinstance(found, Tensor if right.ndim else (Tensor, numbers.Real)):
        kind = f"tensor of shape {tuple(right.shape)}" if right.ndim else "number"
        raise Hint(f"{name} is a {type(found).__name__}; it should be a {kind}.")
    found = torch.as_tensor(found).detach().double()
    if found.shape != right.shape:
        raise Hint(f"{name} has the shape {tuple(found.shape)}; it should be {tuple(right.shape)}.")
    if not found.isfinite().all():
        raise Hint(f"{name} holds NaN or infinity.")
    difference = (found - right).abs().max()
    if difference <= within:
        return
    for value, hint in (*mistakes, *([(right / 100, f"give {name} in per cent.")] if per_cent else [])):
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.shape == found.shape and (found - value).abs().max() <= within:
            raise Hint(hint)
    if right.ndim:
        raise Hint(f"{name} is off by up to {difference:.2g}.")
    raise Hint(f"{name} is {found.item():.4g}; that is too {'large' if found > right else 'small'}.")


def choose(found: Any, right: Any, hints: dict[Any, str]) -> None:
    """Raise Hint if `found` is not the choice `right`; `hints` are those of the other choices."""
    if found not in (right, *hints):
        raise Hint(f"{found!r} is none of {', '.join(sorted(map(str, (right, *hints))))}.")
    if found != right:
        raise Hint(hints[found])


def random_maps(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Signed maps, float32 (4, 1, 8, 8), of no particular scale, and masks of a box each, bool (4, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(4, 1, 8, 8, generator=generator) * 3
    masks = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    for mask in masks[:, 0]:
        top, left = torch.randint(0, 4, (2,), generator=generator).tolist()
        mask[top : top + 3, left : left + 4] = True
    return maps, masks
