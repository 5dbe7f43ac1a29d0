# The names that `__init__.py` imports when they are first used, for editors and type checkers.
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

__version__: str
__all__ = ["Distill", "Guide", "evaluate", "explain", "fit"]
__all__ += ["attribution", "boxes", "datasets", "disk", "distillation", "features", "figures", "frozen", "groups"]
__all__ += ["guidance", "metrics", "models", "pareto", "training"]
