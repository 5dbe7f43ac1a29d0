"""What a training shows while it runs: a bar, and curves in TensorBoard."""

import contextlib
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

VARIABLE = "E2LIB_TENSORBOARD"  # of the environment: a folder, where TensorBoard finds the curves of all trainings


class Log(contextlib.ExitStack):
    """A bar with the terms of the loss, `done` of `steps` from an earlier call; curves in the folder of `VARIABLE`."""

    def __init__(self, about: dict[str, Any], steps: int, done: int, quiet: bool):
        super().__init__()
        quiet, self.writer = quiet or done == steps, None
        self.bar = self.enter_context(tqdm(total=steps, initial=done, unit="step", leave=False, disable=quiet))
        if VARIABLE in os.environ and not quiet:
            from torch.utils.tensorboard import SummaryWriter

            folder = Path(os.environ[VARIABLE], f"{datetime.now():%Y-%m-%d %H-%M-%S.%f}")
            self.writer = self.enter_context(SummaryWriter(folder))
            self.writer.add_text("arguments", "\n".join(f"- {name}: `{value}`" for name, value in about.items()))

    def step(self, terms: dict[str, float], lr: float) -> None:
        self.bar.update()
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()})
        self.add("training", terms | {"learning rate": lr}, self.bar.n)

    def add(self, kind: str, values: Any, at: int) -> None:
        """A point of each curve, where the values are a dict."""
        if self.writer and isinstance(values, dict):
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, at)
