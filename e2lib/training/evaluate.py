"""Measure a network: accuracy, and where its explanations lie."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics import MetricCollection
from tqdm.auto import tqdm

from e2lib.attribution import against_others, explain, modes_restored
from e2lib.datasets import collate
from e2lib.metrics import EPG, F1, GroupAccuracy, IoU, IoUCurve, MeanAP, OnObjectEPG
from e2lib.training.processes import processes

CPU_PIXELS = 8 * 224 * 224  # in a batch that is explained on a CPU


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int = 64,
    method: str | None = None,
    at: str = "Input",
    threshold: float | None = None,
    workers: int = 0,
    contrast: bool = False,
    outside: bool = False,
    seen: Sequence[int] | None = None,
    teacher: nn.Module | Tensor | None = None,
) -> dict[str, float]:
    """Measure `model` in eval mode on `dataset`; everything in per cent, from one forward pass an image.

    Several processes (`processes`) share the images, and all get the scores of all.

    Args:
        model: images (B, 3, H, W) in [0, 1] to logits (B, C).
        dataset: Samples of one size.
        batch_size: images a forward pass, at most: fewer of large images are explained at once on a CPU.
        method: how to explain each class that is present (`explain`); None for accuracy alone.
        at: the depth that is explained.
        threshold: of the IoU, a fraction of the map's maximum in [0, 1); None: the best one on these data, which is
            for validation data. Take it from there for test data.
        workers: processes that load images.
        contrast: explain the class against the others, as `guidance.Guide`.
        outside: the attribution is to lie outside the boxes, as `guidance.Guide`; on-object EPG stays as it is.
        seen: how many training images each group has, for `metrics.GroupAccuracy`.
        teacher: for agreement, a network of the same classes, which runs in eval mode on the same images; or its logits
            (N, C) of these images.

    Returns:
        F1 (logit threshold 0, all classes pooled) and mAP; for single-label data "accuracy", the share of images whose
        top class is the right one; for data with groups also what `metrics.GroupAccuracy` returns; with a teacher
        "agreement", the share of images on which both have the same top class (Parchami-Araghi et al., ECCV 2024,
        section 4), and for data with groups "agreement, out of distribution" and the like; with a method also EPG, IoU
        and its "IoU threshold" (a fraction), averaged over pairs of an image and a present class with boxes, and
        "on-object EPG" where the data has segmentation masks.

    Raises:
        ValueError: an empty data set; a method and no threshold for data without boxes; teacher's logits of another
            number of images.
    """
    if len(dataset) == 0:
        raise ValueError("dataset is empty; at least one image is needed")
    said = teacher if isinstance(teacher, Tensor) else None
    if said is not None and len(said) != len(dataset):
        raise ValueError(f"teacher holds the logits of {len(said)} images, the data set has {len(dataset)}")
    device, classes = next(model.parameters()).device, len(dataset.classes)
    accuracy = MetricCollection({"F1": F1(classes), "mAP": MeanAP(classes)}).to(device)
    grouped, single = bool(dataset.groups), not dataset.multilabel
    right, alike = (
        GroupAccuracy(dataset.groups or ["all"], seen).to(device) if wanted else None
        for wanted in (grouped or single, teacher is not None)
    )
    where = {"EPG": EPG(), "IoU": IoUCurve() if threshold is None else IoU(threshold)} if method else {}
    where, on_object = {name: metric.to(device) for name, metric in where.items()}, OnObjectEPG().to(device)
    if method:
        # A batch costs as many backward passes as its fullest image has classes: images with equally many go together.
        order = dataset.targets.sum(1, dtype=torch.int64).argsort(stable=True)
        dataset, said = Subset(dataset, order.tolist()), None if said is None else said.cpu()[order]
        if device.type == "cpu":  # where a large batch's activations cost more time to allocate than the batch saves
            batch_size = max(1, min(batch_size, CPU_PIXELS // dataset[0].image[0].numel()))
    rank, world = processes()
    if world > 1:
        if len(dataset) < world:
            raise ValueError(f"dataset has {len(dataset)} images, fewer than the {world} processes that measure")
        dataset, said = Subset(dataset, range(rank, len(dataset), world)), None if said is None else said[rank::world]
    loader = DataLoader(dataset, batch_size, collate_fn=collate, num_workers=workers)
    parts = None if said is None else iter(said.to(device).split(batch_size))
    with modes_restored(model), modes_restored(teacher if parts is None and teacher else model), torch.no_grad():
        model.eval()
        if teacher is not None and parts is None:
            teacher.eval()
        for batch in tqdm(loader, desc="measuring", unit="batch", leave=False, disable=rank > 0):
            batch = batch.to(device)
            if method:
                present = batch.present()
                targets = against_others(present, classes) if contrast else present
                logits, maps = explain(model, batch.images, targets, method, at)
                masks = batch.class_masks(present)
                boxed = masks.flatten(2).any(2)
                for metric in where.values():
                    metric.update(maps, ~masks if outside else masks, valid=boxed)
                if batch.masks is not None:
                    on_object.update(maps, masks, batch.class_masks(present, segmentation=True))
            else:
                logits = model(batch.images)
            accuracy.update(logits, batch.labels)
            if right:
                right.update(logits, batch.labels, batch.groups.clamp(min=0))
            if alike:
                there = teacher(batch.images) if parts is None else next(parts)
                top = F.one_hot(there.argmax(1), classes)
                alike.update(logits, top, batch.groups.clamp(min=0))
    rates = accuracy.compute()
    if right:
        shares = right.compute()
        rates |= shares if grouped else {"accuracy": shares["accuracy"]}
    scores = {name: 100 * value.item() for name, value in rates.items()}
    if alike:
        shares = alike.compute()
        scores["agreement"] = 100 * shares.pop("accuracy").item()
        pooled = [name for name in ("in distribution", "out of distribution", "worst group") if grouped]
        scores |= {f"agreement, {name}": 100 * shares[name].item() for name in pooled if name in shares}
    if method:
        best = where["IoU"].best_threshold() if threshold is None else threshold
        scores["EPG"] = 100 * where["EPG"].compute().item()
        scores["IoU"] = 100 * where["IoU"].compute().max().item()
        scores["IoU threshold"] = best
    pairs = on_object.pairs.clone()
    if world > 1:  # one process may have none
        dist.all_reduce(pairs)
    if pairs:
        scores["on-object EPG"] = 100 * on_object.compute().item()
    return scores
