"""Fit a classifier to a data set, and measure it."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection
from tqdm.auto import tqdm

from e2lib import models
from e2lib.attribution import modes_restored
from e2lib.datasets import collate
from e2lib.metrics import F1, MeanAP


def train_head_only(model: nn.Module) -> nn.Module:
    """Freeze every parameter of a `models.build` network but those of its classifier; returns the model."""
    head = models.head_prefixes(model.net)
    for name, parameter in model.net.named_parameters():
        parameter.requires_grad_(name.startswith(head))
    return model


def fit(model: nn.Module, dataset: Dataset, epochs: int, lr: float, batch_size: int = 64, seed: int = 0) -> list[float]:
    """Train the parameters of `model` that are not frozen with binary cross-entropy on the multi-hot labels.

    Adam, a cosine schedule to zero, gradients clipped at norm 1, batches shuffled by `seed`. Modules whose parameters
    are all frozen run in eval mode: norm layers keep their statistics. Modes are restored at the end.

    Args:
        model: images (B, 3, H, W) in [0, 1] to logits (B, C).
        dataset: Samples of one size.
        epochs: passes over the data set.
        lr: the learning rate at the start.
        batch_size: images a step.
        seed: of the order of the images.

    Returns:
        The mean loss of each epoch (nats a class).

    Raises:
        ValueError: every parameter is frozen, or a loss that is not finite, naming the images of its batch.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("every parameter of the model is frozen; there is nothing to train")
    device = trainable[0].device
    loader = DataLoader(
        dataset, batch_size, shuffle=True, collate_fn=collate, generator=torch.Generator().manual_seed(seed)
    )
    optimizer = torch.optim.Adam(trainable, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    history = []
    with modes_restored(model), tqdm(total=epochs * len(loader), desc="training", unit="step", leave=False) as bar:
        for module in model.modules():  # parents first: a module without parameters follows its parent
            if any(True for _ in module.parameters()):
                module.train(any(p.requires_grad for p in module.parameters()))
        for _ in range(epochs):
            total = 0.0
            for batch in map(lambda b: b.to(device), loader):
                loss = F.binary_cross_entropy_with_logits(model(batch.images), batch.labels.float())
                if not loss.isfinite():
                    raise ValueError(f"the loss is {loss.item()} on images {', '.join(batch.names)}; lower lr={lr}")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trainable, 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(batch.names)
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
            history.append(total / len(dataset))
    return history


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 64) -> dict[str, float]:
    """F1 (logit threshold 0, all classes pooled) and mAP, in per cent, of `model` in eval mode on `dataset`."""
    device = next(model.parameters()).device
    metrics = MetricCollection({"F1": F1(len(dataset.classes)), "mAP": MeanAP(len(dataset.classes))}).to(device)
    loader = DataLoader(dataset, batch_size, collate_fn=collate)
    with modes_restored(model):
        model.eval()
        for batch in tqdm(loader, desc="measuring", unit="batch", leave=False):
            batch = batch.to(device)
            metrics.update(model(batch.images), batch.labels)
    return {name: 100 * value.item() for name, value in metrics.compute().items()}
