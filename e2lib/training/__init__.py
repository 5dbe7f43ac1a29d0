"""Fit a classifier to a data set, with any step, and measure it: accuracy, and where its explanations lie."""

import contextlib
import functools
import hashlib
import itertools
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from tqdm.auto import tqdm

from e2lib import models
from e2lib.attribution import modes_restored
from e2lib.datasets import Batch, collate
from e2lib.disk import replacing
from e2lib.training.evaluate import evaluate as evaluate
from e2lib.training.processes import processes as processes

LOG = "E2LIB_TENSORBOARD"  # environment variable: the folder where trainings are logged
_numbers = itertools.count(1)  # of the trainings that this process logs

Step = Callable[[nn.Module, Batch], dict[str, Tensor]]


def train_head_only(model: nn.Module) -> nn.Module:
    """Freeze every parameter of a `models.build` network but those of its classifier; returns the model."""
    head = models.head_prefixes(model.net)
    for name, parameter in model.net.named_parameters():
        parameter.requires_grad_(name.startswith(head))
    return model


def classify(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The plain step: binary cross-entropy on the multi-hot labels, nats a class."""
    return {"classification": F.binary_cross_entropy_with_logits(model(batch.images).float(), batch.labels.float())}


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
) -> list[dict[str, float]]:
    """Train the parameters of `model` that are not frozen on the sum of the terms that `step` returns.

    Adam, a cosine schedule to zero, gradients clipped at norm 1, batches shuffled by `seed`. Modules whose parameters
    are all frozen run in eval mode: norm layers keep their statistics. Modes, and torch's random number generators, are
    restored at the end.

    Several processes (`processes`) share each batch, and step by the gradient of the whole of it: that of one process,
    for losses that are means over images (GroupDRO, DIST and CRD compare images; each process compares its share). Each
    draws random numbers of its own, and norm layers that learn statistics see its share; after each epoch these are
    averaged. All processes call `after_epoch`; the first one writes the checkpoint, from which only a single process
    goes on bit for bit.

    Args:
        model: images (B, 3, H, W) in [0, 1] to logits (B, C).
        dataset: Samples of one size; with a checkpoint, one of `e2lib.datasets`, whose labels are known.
        epochs: passes over the data set.
        lr: the learning rate at the start.
        batch_size: images a step, of all processes together.
        seed: of the order of the images, and of all random numbers in steps and transforms.
        step: (model, Batch) -> terms of the loss by name: `classify`, a `guidance.Guide`, a `distillation.Distill`. Of
            one that is a Module the parameters are trained too, and saved in the checkpoint.
        precision: float32; bfloat16, for convolutions and products (the parameters stay float32); or auto, bfloat16 on
            GPUs that have it. Explanations that one trains through overflow in float16: it is refused.
        workers: processes that load images. Random transforms give other images with another number of them.
        checkpoint: file that is replaced after every epoch. Where it exists, training goes on from it, and ends as if
            it had never stopped: on a CPU, with as many threads, bit for bit. It knows its training by these arguments,
            the labels and the names of the parameters, not by the network's weights at the start or the images'
            content; the step by its name or repr, which has to be a telling one, as that of a dataclass.
        after_epoch: called after each epoch with its number, 1 for the first, for example to measure. Random numbers
            that it draws do not change the training. Scores that it returns, as a dict, are logged.

    With the environment variable E2LIB_TENSORBOARD naming a folder, TensorBoard (which pip installs) finds there, below
    a folder for each process and training, the terms of every step, the learning rate, the scores of every epoch, and
    the arguments.

    Returns:
        The mean of each term, one dict an epoch.

    Raises:
        ValueError: every parameter is frozen; an empty data set; epochs below 0; a loss or gradient that is not finite,
            naming the images of its batch; a wrong precision; a checkpoint of another training, naming what differs.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    learned = {"step": step} if isinstance(step, nn.Module) else {}
    trainable += [p for part in learned.values() for p in part.parameters()] if trainable else []
    if not trainable:
        raise ValueError("every parameter of the model is frozen; there is nothing to train")
    if len(dataset) == 0:
        raise ValueError("dataset is empty; at least one image is needed")
    if epochs < 0:
        raise ValueError(f"epochs is {epochs}; it must be 0 or more")
    # Numbers of NumPy could be written to a checkpoint, but not safely read.
    epochs, lr, batch_size, seed = int(epochs), float(lr), int(batch_size), int(seed)
    device = trainable[0].device
    low = _bfloat16(precision, device)
    order = torch.Generator().manual_seed(seed)
    rank, world = processes()
    batches = _Share(BatchSampler(RandomSampler(dataset, generator=order), batch_size, drop_last=False), rank, world)
    # The seed that workers get is the same in all processes: they are told apart.
    apart = functools.partial(_apart, rank) if world > 1 else None
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, generator=order, num_workers=workers, worker_init_fn=apart
    )
    optimizer = torch.optim.Adam(trainable, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    settings = {"images": len(dataset), "epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
    settings |= {"step": getattr(step, "__name__", repr(step)), "bfloat16": low, "workers": workers}
    if checkpoint is not None:
        annotated = getattr(dataset, "annotated", None)
        settings["labels and annotated images"] = _digest(
            [dataset.targets, torch.as_tensor(0 if annotated is None else annotated)]
        )
        settings["trained parameters"] = [name for name, p in model.named_parameters() if p.requires_grad]
    history: list[dict[str, float]] = []
    state = {"model": model, "optimizer": optimizer, "schedule": schedule} | learned
    if world > 1:  # all begin with the first one's network
        for tensor in [
            *model.state_dict().values(),
            *(t for part in learned.values() for t in part.state_dict().values()),
        ]:
            dist.broadcast(tensor, 0)
    with modes_restored(model), torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed + rank)
        if checkpoint is not None and Path(checkpoint).exists():
            history = _resume(Path(checkpoint), settings, state, order)
            if world > 1:  # the file holds the first one's random state
                torch.manual_seed(seed + rank + 1000 * len(history))
        quiet, done = not epochs or rank > 0, len(history) * len(loader)
        log = _log(settings) if LOG in os.environ and rank == 0 and len(history) < epochs else None
        bar = tqdm(total=epochs * len(loader), initial=done, unit="step", leave=False, disable=quiet)
        with bar, log or contextlib.nullcontext():
            for epoch in range(len(history) + 1, epochs + 1):
                bar.set_description(f"training, epoch {epoch}/{epochs}")
                for module in model.modules():  # parents first: a module without parameters follows its parent
                    if any(True for _ in module.parameters()):
                        module.train(any(p.requires_grad for p in module.parameters()))
                totals: dict[str, float] = {}
                for number, batch in enumerate(map(lambda b: b.to(device), loader)):
                    mine = batches.count(number, len(dataset))
                    with torch.autocast(device.type, torch.bfloat16, enabled=low):
                        terms = step(model, batch)
                    loss = sum(terms.values()) * (mine[0] * world / mine[1] if world > 1 else 1)
                    values = {name: term.item() for name, term in terms.items()}
                    _check(values, batch, lr)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    if world > 1:
                        for p in trainable:  # one process's share may leave a parameter out
                            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                        _average([p.grad for p in trainable])
                    norm = nn.utils.clip_grad_norm_(trainable, 1.0)
                    _check({"gradient's norm": norm.item()}, batch, lr)
                    optimizer.step()
                    schedule.step()
                    for name, value in values.items():
                        totals[name] = totals.get(name, 0.0) + value * mine[0]
                    bar.update()
                    bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
                    if log:
                        for name, value in (values | {"learning rate": schedule.get_last_lr()[0]}).items():
                            log.add_scalar(f"training/{name}", value, schedule.last_epoch)
                if world > 1:
                    sums = torch.tensor(list(totals.values()), dtype=torch.float64, device=device)
                    dist.all_reduce(sums)
                    totals = dict(zip(totals, sums.tolist(), strict=True))
                    _average([buffer for buffer in model.buffers() if buffer.is_floating_point()])
                history.append({name: total / len(dataset) for name, total in totals.items()})
                if after_epoch is not None:
                    with torch.random.fork_rng(range(torch.cuda.device_count())):  # to measure changes no training
                        scores = after_epoch(epoch)
                    if log and isinstance(scores, dict):
                        for name, value in scores.items():
                            log.add_scalar(f"after each epoch/{name}", value, epoch)
                if checkpoint is not None and rank == 0:
                    _save(Path(checkpoint), settings, state, order, history)
                if world > 1:
                    dist.barrier()
    return history


class _Share:
    """Of each batch of a sampler, what one of several processes takes; at least one image, which may count nothing."""

    def __init__(self, batches: BatchSampler, rank: int, world: int):
        self.batches, self.rank, self.world = batches, rank, world

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return (batch[self.rank :: self.world] or batch[:1] for batch in self.batches)

    def count(self, number: int, images: int) -> tuple[int, int]:
        """How many images of the batch of this number count here, and how many it has in all."""
        size = min(self.batches.batch_size, images - number * self.batches.batch_size)
        return len(range(self.rank, size, self.world)), size


def _apart(rank: int, worker: int) -> None:
    torch.manual_seed(torch.initial_seed() + 1000 * rank)


def _average(tensors: list[Tensor]) -> None:
    """Replace each by its mean over processes."""
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()


def _log(settings: dict[str, Any]):
    """Where TensorBoard finds this training."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f"{LOG}={os.environ[LOG]}: pip install tensorboard, or unset it") from error
    log = SummaryWriter(Path(os.environ[LOG], f"{platform.node()}-{os.getpid()}", f"{next(_numbers):03}"))
    log.add_text("arguments", "\n".join(f"- {name}: `{value}`" for name, value in settings.items()))
    return log


def _bfloat16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision not in ("float32", "bfloat16"):
        why = ": gradients of explanations overflow in it" if precision == "float16" else ""
        raise ValueError(f"precision is {precision!r}; it must be float32, bfloat16 or auto{why}")
    return precision == "bfloat16"


def _check(values: dict[str, float], batch: Batch, lr: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            what = "loss" if name == "classification" else name
            raise ValueError(f"the {what} is {value} on images {', '.join(batch.names)}; lower lr={lr}")


def _digest(tensors: list[Tensor]) -> str:
    """Twelve hex digits that tell whether tensors are the same."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _save(path: Path, settings: dict, state: dict[str, Any], order: torch.Generator, history: list) -> None:
    """Write everything that the next epoch depends on, in one step."""
    content = {name: part.state_dict() for name, part in state.items()}
    content |= {"settings": settings, "history": history, "order": order.get_state(), "rng": torch.get_rng_state()}
    device = next(state["model"].parameters()).device
    if device.type == "cuda":
        content["cuda_rng"] = torch.cuda.get_rng_state(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        torch.save(content, part)


def _resume(path: Path, settings: dict, state: dict[str, Any], order: torch.Generator) -> list[dict[str, float]]:
    """Load what `_save` wrote; returns the history."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in settings.items():
        if content["settings"].get(name) != value:
            raise ValueError(
                f"checkpoint {path} was made with {name}={content['settings'].get(name)!r}, not {value!r}; "
                "delete it, or name another file"
            )
    for name, part in state.items():
        part.load_state_dict(content[name])
    order.set_state(content["order"])
    torch.set_rng_state(content["rng"])
    device = next(state["model"].parameters()).device
    if device.type == "cuda" and "cuda_rng" in content:  # not in a file from a machine without a GPU
        torch.cuda.set_rng_state(content["cuda_rng"], device)
    return content["history"]
