"""Explanation-enhanced learning: guide models by their explanations, and distil explanations into small models."""

import importlib

__version__ = "0.1.0"
_HOMES = dict(Distill="distillation", Guide="guidance", evaluate="training", explain="attribution", fit="training")
__all__ = [*_HOMES, "attribution", "boxes", "datasets", "disk", "distillation", "features", "figures", "frozen"]
__all__ += ["groups", "guidance", "metrics", "models", "pareto", "training"]


def __getattr__(name):
    """A function or module of `__all__`, imported at first use; `__init__.pyi` has their types."""
    if name not in __all__:
        raise AttributeError(f"module 'e2lib' has no attribute {name!r}")
    home = importlib.import_module(f"e2lib.{_HOMES.get(name, name)}")
    return getattr(home, name) if name in _HOMES else home


def __dir__() -> list[str]:
    return sorted(__all__)
