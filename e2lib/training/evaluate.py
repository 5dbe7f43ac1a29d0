"""Measure a network: accuracy, and where its explanations lie."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics import MetricCollection
from tqdm.auto import tqdm

from e2lib.attribution import METHODS, against_others, explain, modes_restored, predict
from e2lib.datasets.sample import check_value, collate
from e2lib.metrics import EPG, F1, METRICS, Average, GroupAccuracy, IoUCurve, MeanAP, OnObjectEPG, still_named
from e2lib.metrics.accuracy import check_logits
from e2lib.metrics.localisation import wide
from e2lib.training.precision import formed
from e2lib.training.processes import processes

CPU_PIXELS = 8 * 224 * 224  # in a batch that is explained on a CPU
# A metric gets these, by the names of its parameters; maps only if a method explains.
GIVEN = ("masks", "boxes", "segments", "targets", "logits", "labels", "groups", "images", "model", "maps")
SCORES = {"F1", "mAP", "accuracy", "agreement", "IoU", "IoU threshold", "worst group", "mean of groups"}
POOLS = ("in distribution", "out of distribution", "worst group")  # images on which agreement is reported too


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
    metrics: Mapping[str, Callable[..., Tensor]] | Iterable[str] = (),
    precision: str = "auto",
    removed: Dataset | None = None,
) -> dict[str, float]:
    """Scores of `model`, in eval mode, on a `datasets.Samples`: per cent. Logits and maps are of one forward pass.

    With a `method` of `explain`, each class that is present is explained at the depth `at`. The threshold of the IoU,
    in [0, 1), is by default the best on `dataset`; for test data give the one chosen on validation data. The teacher is
    a network of the same classes, or its logits (N, C) in the order of `dataset`. `contrast` and `outside` are those of
    `guidance.Guide`, `seen` that of `metrics.GroupAccuracy`, `precision` that of `fit`, but float32 for methods
    `of_score`. Several processes share the images, and all get all scores. torch's generator stays as it was.

    `metrics` are names in `metrics.METRICS`, or functions by name. A function gets what its parameters name: maps
    (B, K, H, W) of the K classes explained per image; masks, where maps should lie; boxes and segments of these
    classes, all bool like maps; targets int64 (B, K), the classes, -1 for none; logits and labels (B, C); groups (B,);
    images; model. A parameter with a default may be missing, as segments are in a batch without any. The function
    returns a value per image, (B,), or per image and class, (B, K), which count where the masks are not empty.

    Returns F1 and mAP; for single-label data "accuracy", of the top class; with groups the scores of `GroupAccuracy`;
    with a teacher "agreement", the share of images on which both have the same top class (Parchami-Araghi et al., ECCV
    2024, section 4), and with groups "agreement, out of distribution" and the like. With a method EPG, IoU and its "IoU
    threshold" (a fraction), averaged over pairs of an image and a present class with boxes, and "on-object EPG" where
    there are segmentation masks, soft ones from 0.5 on. With `removed`, a `datasets.Without` of `dataset` or features
    of it, "still named" of `metrics.still_named`: the top class of single-label data is named, else logits above 0.
    Raises ValueError for wrong arguments, and if there is nothing to measure.
    """
    check_value(batch_size >= 1, "batch_size", batch_size, "at least 1")
    rank, world = processes()
    if len(dataset) < world:
        raise ValueError(f"dataset is empty or too small: it has {len(dataset)} images for {world} processes")
    if isinstance(teacher, Tensor) and len(teacher) != len(dataset):
        raise ValueError(f"teacher holds the logits of {len(teacher)} images, the data set has {len(dataset)}")
    device, groups = next(model.parameters()).device, list(getattr(dataset, "groups", ()))
    networks = [model, teacher] if isinstance(teacher, nn.Module) else [model]
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng([]), ExitStack() as stack:
        first, order = collate([dataset[0]]), torch.arange(len(dataset))
        single = not getattr(dataset, "multilabel", first.labels.ndim > 1)
        averages = {name: metric.to(device) for name, metric in _averages(method, threshold, metrics).items()}
        whole = MetricCollection({"F1": F1(), "mAP": MeanAP()}).to(device)
        tops = {"accuracy": single, "agreement": teacher is not None}  # comparisons of the top class
        tops = {name: GroupAccuracy(groups or ["all"], seen).to(device) for name, there in tops.items() if there}
        if method and hasattr(dataset, "targets"):
            # A batch needs as many backward passes as its fullest image has classes: equally full ones go together.
            order = dataset.targets.sum(1, dtype=torch.int64).argsort(stable=True)
        if method in METHODS and METHODS[method].of_score:  # they compare scores, or replace gradients between modules
            precision = "float32"
        if method and device.type == "cpu":  # where a large batch takes longer to allocate than it saves
            batch_size = max(1, min(batch_size, CPU_PIXELS // first.images[0, 0].numel()))
        order = order[rank::world]
        how = {"collate_fn": collate, "num_workers": workers, "generator": torch.Generator()}
        loader = DataLoader(Subset(dataset, order.tolist()), batch_size, **how)
        stack.enter_context(modes_restored(nn.ModuleList(networks)))
        forms = [stack.enter_context(formed(network.eval(), precision, bool(method))) for network in networks]
        bar, named = tqdm(loader, desc="measuring", unit="batch", leave=False, disable=rank > 0), []
        for places, batch in zip(order.split(batch_size), bar, strict=True):
            batch = batch.to(device)
            given = {"images": batch.images, "groups": batch.groups, "model": model}
            if averages:
                given["targets"] = targets = batch.present()
                given["boxes"] = boxes = batch.class_masks(targets)
                given["masks"] = ~boxes if outside else boxes
                if batch.masks is not None:
                    given["segments"] = batch.class_masks(targets, segmentation=True) >= 0.5
            with forms[0]():
                if method:
                    wanted = (lambda z, c=targets: against_others(c, z.shape[1])) if contrast else targets
                    logits, given["maps"] = map(wide, explain(model, batch.images, wanted, method, at))
                else:
                    logits = wide(predict(model, batch.images))
            given |= {"logits": logits, "labels": (labels := batch.hot(logits.shape[1]))}
            whole.update(logits, labels)
            named += [] if removed is None else [_named(logits, single)]
            answers = {"accuracy": labels}
            if teacher is not None:
                with forms[-1]():
                    said = teacher[places].to(device) if isinstance(teacher, Tensor) else predict(teacher, batch.images)
                check_logits(said, labels)
                answers["agreement"] = F.one_hot(said.argmax(1), labels.shape[1])
            for name, metric in tops.items():
                metric.update(logits, answers[name], batch.groups if groups else torch.zeros_like(batch.groups))
            for metric in averages.values():
                _add(metric, given)
        if removed is not None:
            before = _together(named, order, len(dataset), logits.shape[1])
            asked, named = before[*removed.pairs.T].nonzero()[rank::world, 0], []
            loader = DataLoader(Subset(removed, asked.tolist()), batch_size, **how)
            for batch in tqdm(loader, desc="naming", unit="batch", leave=False, disable=rank > 0):
                with forms[0]():
                    named.append(_named(predict(model, batch.to(device).images), single))
            after = _together(named, asked, len(removed), logits.shape[1])
    shares = whole.compute()
    for name, metric in tops.items():
        found = metric.compute()
        shares[name] = found.pop("accuracy")
        if groups:
            shares |= found if name == "accuracy" else {f"{name}, {p}": found[p] for p in POOLS if p in found}
    for name, metric in averages.items():
        if metric.count():
            shares[name] = metric.compute().max()  # of the IoU at each threshold
        elif name != "on-object EPG" or name in metrics:
            raise ValueError(f"{name} finds nothing to measure: no image has a box (or segmentation) of its classes")
    scores = {name: 100 * share.item() for name, share in shares.items()}
    if removed is not None:
        scores["still named"] = 100 * still_named(before, after, removed.pairs)
    return scores | ({"IoU threshold": averages["IoU"].best_threshold()} if method else {})


def _named(logits: Tensor, single: bool) -> Tensor:
    """1 for each class that is named, uint8 (B, C)."""
    return (F.one_hot(logits.argmax(1), logits.shape[1]) if single else logits > 0).to("cpu", torch.uint8)


def _together(parts: Sequence[Tensor], order: Tensor, length: int, width: int) -> Tensor:
    """The rows of all processes, bool (length, width), each at its place in `order`; False where none looked."""
    whole = torch.zeros(length, width, dtype=torch.uint8)
    whole[order] = torch.cat([whole[:0], *parts])
    if processes()[1] > 1:
        dist.all_reduce(whole)
    return whole > 0


def _averages(method: str | None, threshold: float | None, metrics) -> dict[str, Average]:
    """Averages over the data, by name: with a method EPG, IoU and on-object EPG, and the further `metrics`."""
    given, curve = GIVEN if method else GIVEN[:-1], IoUCurve() if threshold is None else IoUCurve([threshold])
    found = {"EPG": EPG(), "IoU": curve, "on-object EPG": OnObjectEPG()} if method else {}
    functions = metrics if isinstance(metrics, Mapping) else {name: METRICS.get(name) for name in metrics}
    for name, function in functions.items():
        check_value(name not in SCORES, "metric", name, "another name: evaluate reports a score of this one")
        check_value(callable(function), "metric", name, f"one of {', '.join(METRICS)}, or {{name: function}}")
        for p in inspect.signature(function).parameters.values():
            if p.default is p.empty and p.name not in given:
                raise ValueError(f"metric {name!r} asks for {p.name}; it can be given {', '.join(GIVEN)} (by a method)")
        found[name] = Average(function, name)
    return found


def _add(metric: Average, given: dict[str, Tensor]) -> None:
    """Add a batch. A pair counts if the masks that the metric asks for share a pixel, or if it asks for none."""
    parameters = inspect.signature(metric.function).parameters
    asked = {name for name, p in parameters.items() if name in given or (name in GIVEN and p.default is p.empty)}
    if asked <= given.keys():  # else no image of this batch has a segmentation
        masks = [given["boxes" if name == "masks" else name] for name in asked & {"masks", "boxes", "segments"}]
        valid = torch.stack(masks).all(0).flatten(2).any(2) if masks else given["targets"] >= 0
        metric.update(valid=valid, **{name: given[name] for name in asked})
