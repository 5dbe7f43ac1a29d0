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

    `about` holds the training's settings, which are shown as text. `steps` counts those of the whole training, `done`
    those of an earlier call. `quiet` shows and writes nothing.
    """

    def __init__(self, about: dict[str, Any], steps: int, done: int, quiet: bool):
        super().__init__()
        quiet = quiet or done == steps
        self.bar = self.enter_context(tqdm(total=steps, initial=done, unit="step", leave=False, disable=quiet))
        self.writer = None
        if VARIABLE in os.environ and not quiet:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(f"{VARIABLE}={os.environ[VARIABLE]}: pip install tensorboard, or unset it") from error
            folder = Path(os.environ[VARIABLE], f"{platform.node()}-{os.getpid()}", f"{next(_numbers):03}")
            self.writer = self.enter_context(SummaryWriter(folder))
            self.writer.add_text("arguments", "\n".join(f"- {name}: `{value}`" for name, value in about.items()))

    def step(self, terms: dict[str, float], lr: float) -> None:
        """One more step."""
        self.bar.update()
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()})
        self._add("training", terms | {"learning rate": lr}, self.bar.n)

    def epoch(self, epoch: int, scores: Any) -> None:
        """What was measured after an epoch, where it is a dict."""
        self._add("after each epoch", scores if isinstance(scores, dict) else {}, epoch)

    def _add(self, kind: str, values: dict[str, float], at: int) -> None:
        for name, value in values.items() if self.writer else ():
            self.writer.add_scalar(f"{kind}/{name}", value, at)
