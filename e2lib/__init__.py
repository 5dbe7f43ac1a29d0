"""Explanation-enhanced learning: guide models by their explanations, and distil explanations into small models."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers
    from e2lib import (
        attribution,
        boxes,
        datasets,
        disk,
        distillation,
        features,
        figures,
        frozen,
        groups,
        guidance,
        memory,
        metrics,
        models,
        pareto,
        training,
    )
    from e2lib.attribution import explain
    from e2lib.distillation import Distill
    from e2lib.guidance import Guide
    from e2lib.training import fit
    from e2lib.training.evaluate import evaluate
else:

    def __getattr__(name):
        """A function or module of `__all__`, imported when it is first used."""
        if name in _HOMES:
            return getattr(importlib.import_module(f"e2lib.{_HOMES[name]}"), name)
        if name in __all__:
            return importlib.import_module(f"e2lib.{name}")
        raise AttributeError(f"module 'e2lib' has no attribute {name!r}")


__version__ = "0.1.0"
__all__ = ["Distill", "Guide", "evaluate", "explain", "fit"]
__all__ += ["attribution", "boxes", "datasets", "disk", "distillation", "features", "figures", "frozen", "groups"]
__all__ += ["guidance", "memory", "metrics", "models", "pareto", "training"]
_HOMES = dict(Distill="distillation", Guide="guidance", evaluate="training", explain="attribution", fit="training")


def __dir__() -> list[str]:
    return sorted(__all__)
