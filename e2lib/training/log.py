"""What a training shows while it runs: a bar, and curves in TensorBoard."""

import contextlib
import itertools
import os
import platform
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

VARIABLE = "E2LIB_TENSORBOARD"  # of the environment: the folder where trainings are logged
_numbers = itertools.count(1)  # of the trainings that this process logs


class Log(contextlib.ExitStack):
    """A bar with the terms of the loss; with a folder in E2LIB_TENSORBOARD also their curves there.

    `about` is the text of the arguments. `steps` counts all of the training, `done` those of an earlier call.
    """

    def __init__(self, about: dict[str, Any], steps: int, done: int, quiet: bool):
        super().__init__()
        quiet, self.writer = quiet or done == steps, None
        self.bar = self.enter_context(tqdm(total=steps, initial=done, unit="step", leave=False, disable=quiet))
        if VARIABLE in os.environ and not quiet:
            from torch.utils.tensorboard import SummaryWriter

            folder = Path(os.environ[VARIABLE], f"{platform.node()}-{os.getpid()}", f"{next(_numbers):03}")
            self.writer = self.enter_context(SummaryWriter(folder))
            self.writer.add_text("arguments", "\n".join(f"- {name}: `{value}`" for name, value in about.items()))

    def step(self, terms: dict[str, float], lr: float) -> None:
        """One more step."""
        self.bar.update()
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()})
        self.add("training", terms | {"learning rate": lr}, self.bar.n)

    def add(self, kind: str, values: Any, at: int) -> None:
        """A point of each curve, where the values are a dict."""
        if self.writer and isinstance(values, dict):
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, at)
