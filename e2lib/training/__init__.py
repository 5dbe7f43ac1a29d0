"""Train a network with any step, and measure its accuracy and its explanations."""

from e2lib.models import train_head_only
from e2lib.training.evaluate import evaluate
from e2lib.training.loop import Step, classify, fit
from e2lib.training.precision import form, formed
from e2lib.training.processes import StepModule, processes

__all__ = ["Step", "StepModule", "classify", "evaluate", "fit", "form", "formed", "processes", "train_head_only"]
