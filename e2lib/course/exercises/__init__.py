"""Checks of the exercises: `check` says that an answer is right, or gives a hint that does not give it away.

`values.yaml` holds right numbers and letters. Functions in `MODULES` check what has to be computed: `check_04_2` takes
the answers to 04.2, raises Hint where they are wrong, and may return a remark on a right one. The tasks are text, in
notebooks/exercises; `write.py` there writes them into the notebooks.
"""

import importlib
import numbers
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

VALUES = Path(__file__).with_name("values.yaml")
KEYWORDS = ("right", "within", "per cent")  # of an answer in values.yaml; its other keys are typical mistakes
MODULES = ("explaining", "guiding", "distilling")


class Hint(Exception):
    """Why an answer is not right yet."""


def refuse(wrong: Any, hint: str) -> None:
    """Raise Hint where something is wrong."""
    if wrong:
        raise Hint(hint)


def judged(number: str, *answers: Any) -> tuple[bool, str]:
    """Whether the answers to an exercise, such as "04.2", are right, and the remark or hint.

    ValueError for an unknown number. If an answer is a function that raises an exception, it is not caught.
    """
    values = yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    functions = [item for name in MODULES for item in vars(importlib.import_module(f"{__name__}.{name}")).items()]
    checks = {name[6:].replace("_", "."): function for name, function in functions if name.startswith("check_")}
    if number not in (known := sorted({*checks, *values})):
        beside = [name for name in known if name[:2] == str(number)[:2]] or known
        raise ValueError(f"number is {number!r}; it must be one of {', '.join(beside)}")
    try:
        refuse(any(answer is ... for answer in answers), "put your answer in place of the dots.")
        if number in checks:
            return True, checks[number](*answers) or ""
        for (name, about), answer in zip(values[number].items(), answers, strict=True):
            _check_value(name, answer, about)
        return True, ""
    except Hint as hint:
        return False, str(hint)


def _check_value(name: str, answer: Any, about: dict[Any, Any]) -> None:
    right, mistakes = about["right"], {value: hint for value, hint in about.items() if value not in KEYWORDS}
    if isinstance(right, list):
        refuse(not isinstance(answer, set), f"{name} should be a set, such as {{1, 2}}.")
        for wrong in sorted(answer ^ {*right}):
            raise Hint(mistakes.get(wrong, f"{wrong!r} is none of {', '.join(map(str, mistakes))}."))
    elif str(right).isalpha():
        choose(answer, right, mistakes)
    else:
        hints = [(float(Fraction(str(value))), hint) for value, hint in mistakes.items()]
        how = {"within": about.get("within", 1e-4), "per_cent": "per cent" in about}
        compare(name, answer, float(Fraction(str(right))), *hints, **how)


def check(number: str, *answers: Any) -> None:
    """Print what `judged` says of the answers to an exercise, such as "04.2"; exceptions are the same."""
    right, message = judged(number, *answers)
    print(f"{number} {'is right' if right else 'is not right yet'}{': ' if message else '.'}{message}")


def compare(
    name: str, found: Any, right: Any, *mistakes: tuple[Any, str], within: float = 1e-4, per_cent: bool = False
) -> None:
    """Raise Hint if `found`, the answer, a number or tensor, differs from `right` by more than `within` anywhere.

    mistakes: the values of typical mistakes, each with its hint. per_cent: a hundredth of `right` is one of them.
    """
    right = torch.as_tensor(right, dtype=torch.float64)
    refuse(found is None, f"{name} is None. Does your function return its result?")
    if isinstance(found, bool) or not isinstance(found, Tensor if right.ndim else (Tensor, numbers.Real)):
        kind = f"tensor of shape {tuple(right.shape)}" if right.ndim else "number"
        raise Hint(f"{name} is a {type(found).__name__}; it should be a {kind}.")
    found = torch.as_tensor(found).detach().double()
    refuse(found.shape != right.shape, f"{name} has the shape {tuple(found.shape)}; it should be {tuple(right.shape)}.")
    refuse(not found.isfinite().all(), f"{name} holds NaN or infinity.")
    difference = (found - right).abs().max()
    if difference <= within:
        return
    for value, hint in (*mistakes, *([(right / 100, f"give {name} in per cent.")] if per_cent else [])):
        value = torch.as_tensor(value, dtype=torch.float64)
        refuse(value.shape == found.shape and (found - value).abs().max() <= within, hint)
    refuse(right.ndim, f"{name} is off by up to {difference:.2g}.")
    raise Hint(f"{name} is {found.item():.4g}; that is too {'large' if found > right else 'small'}.")


def choose(found: Any, right: Any, hints: dict[Any, str]) -> None:
    """Raise Hint if `found` is not the choice `right`. The other choices have `hints`."""
    choices = ", ".join(sorted(map(str, (right, *hints))))
    refuse(found not in (right, *hints), f"{found!r} is none of {choices}.")
    if found != right:
        raise Hint(hints[found])


def random_maps(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Signed maps, float32 (4, 1, 8, 8), of any scale, and masks of one box each, bool (4, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(4, 1, 8, 8, generator=generator) * 3
    masks = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    for mask in masks[:, 0]:
        top, left = torch.randint(0, 4, (2,), generator=generator).tolist()
        mask[top : top + 3, left : left + 4] = True
    return maps, masks
