"""The training loop, and `Log`, which shows its progress."""

import math
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from e2lib.attribution import modes_restored, predict
from e2lib.datasets.sample import Batch, check_value, collate
from e2lib.models import fingerprint
from e2lib.training.checkpoint import Checkpoint
from e2lib.training.precision import form, formed
from e2lib.training.processes import Batches, StepModule, processes, summed

Step = Callable[[nn.Module, Batch], dict[str, Tensor]]


def classify(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The plain step: binary cross-entropy of the multi-hot labels, nats per class."""
    logits = predict(model, batch.images).float()
    return {"classification": F.binary_cross_entropy_with_logits(logits, batch.hot(logits.shape[1]))}


def fit(
    model: nn.Module,
    dataset: Dataset,
    epochs: int,
    lr: float,
    batch_size: int = 64,
    seed: int = 0,
    step: Step = classify,
    precision: str = "auto",
    workers: int = 0,
    checkpoint: str | Path | None = None,
    after_epoch: Callable[[int], Any] | None = None,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | Optimizer | None = None,
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
) -> list[dict[str, float]]:
    """Train the parameters of `model` that are not frozen on the sum of the terms that `step` returns.

    Gradients are clipped at norm 1. Modules whose parameters are all frozen run in eval mode, so that their norm layers
    keep their statistics. Modes, memory formats and torch's random number generators are restored at the end.

    Several processes (`processes`) share each batch, and step as one does if the loss is a mean over images. GroupDRO,
    DIST and CRD compare only the images of each share; norm layers learn from the first. All call `after_epoch`.

    Args:
        model: from images (B, 3, H, W) in [0, 1] to logits (B, C).
        dataset: a `datasets.Samples`, with images of one size.
        epochs: passes over the data set.
        lr: learning rate of the default optimizer at the start.
        batch_size: images per step, over all processes. A last batch of one image joins the one before.
        seed: for the order of the images, and for all random numbers in steps and transforms.
        step: (model, Batch) -> terms of the loss by name, such as a `guidance.Guide`. A Module is trained too.
        precision: float32; bfloat16, for convolutions and products; or auto, see `form`.
        workers: processes that load images. Random transforms depend on their number.
        checkpoint: for `folder/name.pt`, the file `folder/name-KEY.pt` is replaced after every epoch. A training with
            the same KEY continues from it, bit for bit in one process on a CPU. KEY is a digest of the network at the
            start, of `dataset.fingerprint()` and of these arguments; see `models.fingerprint` for steps.
        after_epoch: called with the number of each finished epoch, from 1. A dict that it returns is logged.
        optimizer: a torch optimizer, or a function from parameters to one; None for Adam. Its settings are restored.
        schedule: (optimizer, number of steps) -> scheduler, which steps once per batch; None for a cosine to 0.

    Returns the mean of each term, one dict per epoch. Raises ValueError if there is nothing to train, for a wrong
    value, and for a loss or gradient that is not finite, with the names of the images in its batch.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("every parameter of the model is frozen; there is nothing to train")
    for name, value, least in (("len(dataset)", len(dataset), 1), ("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        check_value(value >= least, name, value, f"at least {least}")
    epochs, lr, batch_size, seed = int(epochs), float(lr), int(batch_size), int(seed)  # torch.load refuses NumPy's
    (rank, world), device = processes(), next(model.parameters()).device
    fork = partial(torch.random.fork_rng, range(torch.cuda.device_count()))
    order = torch.Generator().manual_seed(seed)
    batches = Batches(len(dataset), batch_size, order)
    how = {"collate_fn": collate, "num_workers": workers, "worker_init_fn": batches.apart}
    loader = DataLoader(dataset, batch_sampler=batches, generator=order, **how)
    with modes_restored(model), fork(), formed(model, precision) as cast:
        torch.manual_seed(seed + rank)
        whole = module = StepModule(model, step)
        if world > 1:  # A share may not use every parameter.
            whole = DistributedDataParallel(module, find_unused_parameters=True)
        trained = [p for p in module.parameters() if p.requires_grad]
        if not isinstance(optimizer, Optimizer):
            optimizer = torch.optim.Adam(trained, lr) if optimizer is None else optimizer(trained)
        given = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = module.named_parameters()  # the model's may be left out on purpose
        if left := [n for n, p in named if n.startswith("step.") and p.requires_grad and id(p) not in given]:
            raise ValueError(f"optimizer lacks {', '.join(left)}; a function from parameters to an optimizer gets all")
        before = [dict(group) for group in optimizer.param_groups]
        about = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed, "workers": workers}
        about |= {"step": getattr(step, "__name__", repr(step)), "optimizer": " ".join(repr(optimizer).split())}
        about["bfloat16"] = form(model, precision)[1] == torch.bfloat16
        steps = epochs * len(batches.counts)
        scheduler = (schedule or CosineAnnealingLR)(optimizer, steps)
        parts = {"module": module, "optimizer": optimizer, "schedule": scheduler}
        kept = Checkpoint(checkpoint, about | {"step's": fingerprint(step)}, dataset, parts, order)
        history = kept.resume()
        with Log(about, steps, len(history) * len(batches.counts), quiet=rank > 0) as log:
            # The schedule ends at a learning rate of 0, but another training may use the same optimizer.
            log.callback(lambda: [now.update(then) for now, then in zip(optimizer.param_groups, before, strict=True)])
            for epoch in range(len(history) + 1, epochs + 1):
                for part in model.modules():  # parents come first: a module without parameters follows its parent
                    if learns := [p.requires_grad for p in part.parameters()]:
                        part.train(any(learns))
                totals: Counter[str] = Counter()
                for (mine, size), batch in zip(batches.counts, loader, strict=True):
                    batch = batch.to(device)
                    with cast():
                        terms = whole(batch)
                    values = {name: term.item() for name, term in terms.items()}
                    optimizer.zero_grad(set_to_none=True)
                    (sum(terms.values()) * (mine * world / size)).backward()
                    norm = nn.utils.clip_grad_norm_(trained, 1.0).item()
                    for name, value in (values | {"gradient's norm": norm}).items():
                        if not math.isfinite(value):
                            raise ValueError(f"{name} is {value} on images {', '.join(batch.names)}; lower lr={lr}")
                    optimizer.step()
                    scheduler.step()
                    totals.update({name: value * mine for name, value in values.items()})
                    log.step(values, scheduler.get_last_lr()[0])
                history.append({name: total / len(dataset) for name, total in summed(totals, device).items()})
                if after_epoch is not None:
                    with fork():  # so that a measurement's random numbers do not change the training
                        log.add("after each epoch", after_epoch(epoch), epoch)
                kept.save(history)
    return history


class Log(ExitStack):
    """A progress bar with the terms of the loss, and curves for TensorBoard in the folder E2LIB_TENSORBOARD."""

    def __init__(self, about: dict[str, Any], steps: int, done: int, quiet: bool):
        super().__init__()
        quiet, self.writer = quiet or done == steps, None
        self.bar = self.enter_context(tqdm(total=steps, initial=done, unit="step", leave=False, disable=quiet))
        if (folder := os.environ.get("E2LIB_TENSORBOARD")) is not None and not quiet:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = self.enter_context(SummaryWriter(Path(folder, f"{datetime.now():%Y-%m-%d %H-%M-%S.%f}")))
            self.writer.add_text("arguments", "\n".join(f"- {name}: `{value}`" for name, value in about.items()))

    def step(self, terms: dict[str, float], lr: float) -> None:
        self.bar.update()
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()})
        self.add("training", terms | {"learning rate": lr}, self.bar.n)

    def add(self, kind: str, values: Any, at: int) -> None:
        if self.writer and isinstance(values, dict):  # `after_epoch` may return anything
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, at)
