"""How well explanations localise, how faithful they are, and how good the classifier is.

Maps are (B, K, H, W) signed floats: K explained classes in each of B images. Masks are bool of the same shape: the
boxes (or the segmentation) of these classes. Only positive attribution A⁺ = max(A, 0) localises; the scale of a map is
of no consequence. Functions give a value per (image, class) pair, (B, K) float. The classes are torchmetrics that
average over the pairs of all batches and processes; a pair counts when its mask is not empty, unless `valid` (B, K)
bool decides.

Nothing is NaN: a map without positive attribution scores 0, and so does a metric that has seen no pair (its state
`pairs` tells). A wrong shape or dtype, and NaN or infinity in maps, are a ValueError that names the argument. To
average what is given per image (`deletion_insertion`, `randomisation`) take `torchmetrics.MeanMetric`, for the accuracy
of single-label data `torchmetrics.classification.MulticlassAccuracy`.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat
from torchvision.transforms.v2.functional import gaussian_blur
from tqdm.auto import tqdm

from e2lib.attribution import modes_restored

# ---- localisation, per pair


def epg(maps: Tensor, masks: Tensor) -> Tensor:
    """Energy pointing game, the share of positive attribution inside the mask: Σ(M·A⁺) / ΣA⁺ (Rao et al., ICCV 2023).

    maps (B, K, H, W) float, masks (B, K, H, W) bool -> (B, K) in [0, 1]; 0 for a map without positive attribution.
    """
    positive = _positive(maps, masks=masks)
    # The largest pixel is 1 and the sum at least that, except in a map without positive attribution.
    return (positive * masks).sum((2, 3)) / positive.sum((2, 3)).clamp(min=1)


def on_object_epg(maps: Tensor, boxes: Tensor, segments: Tensor) -> Tensor:
    """The share of the positive attribution in the boxes M that is on the object S: Σ(S·M·A⁺) / Σ(M·A⁺) (Rao et al.).

    maps (B, K, H, W) float, boxes and segments (B, K, H, W) bool -> (B, K) in [0, 1]; 0 where the boxes hold no
    positive attribution. What the segmentation covers outside the boxes is not counted.
    """
    in_box = _positive(maps, boxes=boxes, segments=segments) * boxes
    total = in_box.sum((2, 3))
    return torch.where(total > 0, (in_box * segments).sum((2, 3)) / total, 0)


def iou(maps: Tensor, masks: Tensor, threshold: float) -> Tensor:
    """Intersection over union of the mask with the pixels where A⁺ / max A⁺ > threshold.

    maps (B, K, H, W) float, masks (B, K, H, W) bool, threshold in [0, 1) (else ValueError) -> (B, K) in [0, 1]; 0 for a
    map without positive attribution.

    Notes:
        The paper chooses the threshold on held-out data: see `IoUCurve`. A fixed 0.5 misleads at Input, where so few
        pixels reach half the maximum that the IoU is near 0 whatever the map shows.
    """
    _check_threshold(threshold)
    return _overlap(_positive(maps, masks=masks) > threshold, masks)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """1 where the maximum of the map is inside the mask, else 0 (Zhang et al., IJCV 2018, without a tolerance margin).

    maps (B, K, H, W) float, masks (B, K, H, W) bool -> (B, K). A maximum that is reached outside the mask as well, or
    that is not positive, is a miss.
    """
    positive = _positive(maps, masks=masks)
    return ((positive * masks).amax((2, 3)) > (positive * ~masks).amax((2, 3))).to(positive.dtype)


def _overlap(chosen: Tensor, masks: Tensor) -> Tensor:
    return (chosen & masks).sum((2, 3)) / (chosen | masks).sum((2, 3)).clamp(min=1)


def _positive(maps: Tensor, **masks: Tensor) -> Tensor:
    """A⁺ / max A⁺, at least float32; zeros for a map without positive attribution. Checks the arguments."""
    _check_maps("maps", maps)
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != maps.shape:
            raise ValueError(f"{name} is {_kind(mask)}; it must be torch.bool {tuple(maps.shape)}, the maps' shape")
    positive = maps.to(torch.promote_types(maps.dtype, torch.float32)).clamp(min=0)
    peak = positive.amax((2, 3), keepdim=True)
    return positive / torch.where(peak > 0, peak, 1)


def _kind(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}"


def _check_maps(name: str, maps: Tensor) -> None:
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ValueError(f"{name} is {_kind(maps)}; it must be a float tensor (B, K, H, W)")
    if not maps.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity; explain in float32 or bfloat16, not in float16")


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold is {threshold}; it must be in [0, 1), a fraction of the map's maximum")


# ---- localisation, averaged


class _PairMean(Metric):
    """Mean of values (B, K, *size) over pairs, kept as sum and count, so that the cut into batches does not matter."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    pairs: Tensor
    score: Callable[[Tensor, Tensor], Tensor]  # (maps, masks) -> (B, K, *size)

    def __init__(self, setting: object = "", size: tuple[int, ...] = ()):
        super().__init__()
        # A MetricCollection takes metrics with equal states after the first batch, be they all 0, for one and the same;
        # names of their own keep them apart.
        self.total = f"total_{type(self).__name__}_{setting}"
        self.add_state(self.total, torch.zeros(size), dist_reduce_fx="sum")
        self.add_state("pairs", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, maps: Tensor, masks: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch: maps (B, K, H, W) float, masks (B, K, H, W) bool, valid (B, K) bool or None."""
        self._add(self.score(maps, masks), masks, valid)

    def _add(self, values: Tensor, masks: Tensor, valid: Tensor | None) -> None:
        if valid is None:
            valid = masks.flatten(2).any(2)
        elif valid.dtype != torch.bool or valid.shape != masks.shape[:2]:
            raise ValueError(f"valid is {_kind(valid)}; it must be torch.bool (B, K) = {tuple(masks.shape[:2])}")
        getattr(self, self.total).add_(values[valid].sum(0))
        self.pairs += valid.sum()

    def compute(self) -> Tensor:
        """Mean over the pairs so far, 0 when there were none."""
        return getattr(self, self.total) / self.pairs.clamp(min=1)


class EPG(_PairMean):
    """Mean `epg`, in [0, 1]."""

    score = staticmethod(epg)


class PointingGame(_PairMean):
    """Mean `pointing_game`: the share of hits."""

    score = staticmethod(pointing_game)


class OnObjectEPG(_PairMean):
    """Mean `on_object_epg`, in [0, 1], over the pairs that have a segmentation inside a box."""

    def update(self, maps: Tensor, boxes: Tensor, segments: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch: maps (B, K, H, W) float, boxes and segments (B, K, H, W) bool, valid (B, K) bool or None."""
        self._add(on_object_epg(maps, boxes, segments), boxes & segments, valid)


class IoU(_PairMean):
    """Mean `iou` at one threshold in [0, 1), taken from `IoUCurve` on validation data, or fixed."""

    def __init__(self, threshold: float):
        super().__init__(threshold)
        _check_threshold(threshold)
        self.threshold = threshold

    def score(self, maps: Tensor, masks: Tensor) -> Tensor:
        """`iou` at the threshold."""
        return iou(maps, masks, self.threshold)


THRESHOLDS = tuple(t / 20 for t in range(20))


class IoUCurve(_PairMean):
    """Mean `iou` (T,) at each of T thresholds, by default 0, 0.05, …, 0.95, in one pass over the validation data."""

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS):
        super().__init__(tuple(thresholds), (len(thresholds),))
        for threshold in thresholds:
            _check_threshold(threshold)
        self.thresholds = tuple(thresholds)

    def score(self, maps: Tensor, masks: Tensor) -> Tensor:
        """`iou` at every threshold, (B, K, T)."""
        positive = _positive(maps, masks=masks)
        return torch.stack([_overlap(positive > t, masks) for t in self.thresholds], -1)

    def best_threshold(self) -> float:
        """The threshold of the largest mean IoU, the lowest of equals. Raises ValueError when no pair was seen."""
        if self.pairs == 0:
            raise ValueError("no threshold can be chosen: no pair of an image and a class with a mask has been added")
        means = self.compute().tolist()
        return self.thresholds[means.index(max(means))]


# ---- multi-label classification. torchmetrics takes a batch of logits that happen to lie in [0, 1] for probabilities
# and compares its threshold with probabilities, so it must not see raw logits.


class F1(MultilabelF1Score):
    """Multi-label F1 in [0, 1]; a label is predicted when its logit is > 0. 0 before the first batch.

    `average="micro"` counts all labels together, as the code published by Rao et al. (ICCV 2023) does; `"macro"`
    averages the F1 of the classes, 0 for a class that has neither labels nor predictions.
    """

    def __init__(self, num_labels: int, average: str = "micro"):
        super().__init__(num_labels, average=average)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, C) float, labels (B, C) integer, 0 or 1; otherwise torchmetrics' error."""
        super().update((logits > 0).long(), labels)


class MeanAP(MultilabelAveragePrecision):
    """Mean average precision in [0, 1] over the classes that have a positive label: `MeanAP(num_labels)`.

    0 when no class has one (torchmetrics would count such classes as 0); ValueError before the first batch.
    """

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, C) float, labels (B, C) integer, 0 or 1; otherwise torchmetrics' error."""
        super().update(logits.double().sigmoid(), labels)  # float32 would make equals of all logits above 17

    def compute(self) -> Tensor:
        """Mean over the classes with a positive label."""
        scores, labels = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        present = labels.bool().any(0)
        if not present.any():
            return scores.new_zeros(())
        return multilabel_average_precision(
            scores[:, present], labels[:, present], int(present.sum()), validate_args=False
        )


# ---- groups


class GroupAccuracy(Metric):
    """Accuracy by group of single-label data whose groups (bird x place, ...) differ in frequency between splits.

    Args:
        groups: their names; an image's group is an index into them.
        seen: how many training images each group has; None where it is not known.

    `compute` returns, each in [0, 1]:

    - accuracy: over all images.
    - worst group, mean of groups: over the groups that have images here.
    - adjusted mean: of the groups that have images here, weighted by `seen` (Sagawa et al., ICLR 2020), the accuracy on
      images distributed as the training images. Left out without `seen`, or when it is 0 for all of these.
    - in distribution, out of distribution: over all images of the groups that have training images, and that have
      none, pooled (Parchami-Araghi et al., ECCV 2024, section 4.2). Left out without `seen`, or without images.
    - each group that has images here, by name.

    Raises:
        ValueError: no groups, or `seen` of another length; in `update` labels, groups or logits that do not fit.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    images: Tensor

    def __init__(self, groups: Sequence[str], seen: Sequence[int] | None = None):
        super().__init__()
        if not groups or (seen is not None and len(seen) != len(groups)):
            raise ValueError(f"groups are {groups}, seen is {seen}; there must be a group at least, and a number each")
        self.groups, self.seen = list(groups), None if seen is None else torch.as_tensor(seen).double()
        self.add_state("hits", torch.zeros(len(groups), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(len(groups), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Add a batch: logits (B, C) float, labels (B, C) integer, one-hot, groups (B,) int64, indices of the names."""
        if logits.ndim != 2 or labels.shape != logits.shape or not (labels.sum(1) == 1).all():
            raise ValueError(f"logits is {_kind(logits)}, labels {_kind(labels)}; both must be (B, C), labels one-hot")
        if groups.shape != logits.shape[:1] or not ((groups >= 0) & (groups < len(self.groups))).all():
            raise ValueError(f"groups is {groups.tolist()}; one of 0 to {len(self.groups) - 1} an image is wanted")
        right = logits.argmax(1) == labels.argmax(1)
        self.hits += torch.bincount(groups[right], minlength=len(self.groups))
        self.images += torch.bincount(groups, minlength=len(self.groups))

    def compute(self) -> dict[str, Tensor]:
        """The accuracies so far; empty before the first image."""
        here = self.images > 0
        if not here.any():
            return {}
        rate = self.hits.double() / self.images.clamp(min=1)
        result = {"accuracy": self.hits.sum() / self.images.sum()}
        result |= {"worst group": rate[here].min(), "mean of groups": rate[here].mean()}
        if self.seen is not None:
            seen = self.seen.to(rate.device)
            if (weights := seen * here).any():
                result["adjusted mean"] = (weights * rate).sum() / weights.sum()
            for name, pool in (("in distribution", here & (seen > 0)), ("out of distribution", here & (seen == 0))):
                if pool.any():
                    result[name] = self.hits[pool].sum() / self.images[pool].sum()
        return result | {name: rate[g] for g, name in enumerate(self.groups) if here[g]}


# ---- faithfulness


class DeletionInsertion(NamedTuple):
    """Curves (B, steps + 1), the target's probability over the share of changed pixels 0 … 1, and their areas (B,)."""

    deletion: Tensor
    insertion: Tensor
    deletion_auc: Tensor
    insertion_auc: Tensor


@torch.no_grad()
def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    steps: int = 20,
    multilabel: bool = False,
    batch_size: int = 64,
) -> DeletionInsertion:
    """Probability of the target as pixels vanish or appear, those of largest attribution first.

    RISE, Petsiuk et al., BMVC 2018. A faithful map has a small deletion area and a large insertion area.

    Args:
        model: network from images to logits (B, C); runs in eval mode, its modes are restored.
        images: (B, 3, H, W) float in [0, 1], at least 6 pixels a side.
        maps: (B, 1, H, W) float; equal pixels go in reading order.
        targets: (B,) int64, classes.
        steps: equal shares of the pixels that are changed one after the other; areas follow the trapezoidal rule.
        multilabel: the probability is the sigmoid of the logit instead of the softmax.
        batch_size: images in a forward pass, but at least B; bounds the memory.

    Raises:
        ValueError: wrong shape, dtype or range, NaN or infinity in maps.

    Notes:
        Deleted pixels take the mean colour of their image; in the authors' code that of the data set. Insertion starts,
        as in their code, from the image blurred by an 11 x 11 Gaussian of σ = 5 pixels (here with reflected borders).
    """
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0 or min(images.shape[2:]) < 6:
        raise ValueError(f"images is {_kind(images)}; it must be float (B, 3, H, W) with B >= 1 and H, W >= 6")
    b, _, h, w = images.shape
    _check_maps("maps", maps)
    if maps.shape != (b, 1, h, w):
        raise ValueError(f"maps has shape {tuple(maps.shape)}; for these images it must be {(b, 1, h, w)}")
    if targets.dtype != torch.int64 or targets.shape != (b,) or targets.min() < 0:
        raise ValueError(f"targets is {_kind(targets)}; it must be torch.int64 ({b},), with classes of 0 or more")
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).view(b, 1, h, w)
    removed = images.mean((2, 3), keepdim=True)
    blurred = gaussian_blur(images, [11, 11], [5.0, 5.0])
    changes = torch.linspace(0, h * w, steps + 1, device=images.device).round().split(max(1, batch_size // b))
    curves: list[list[Tensor]] = [[], []]
    with modes_restored(model):
        model.eval()
        for some in tqdm(changes, desc="deletion, insertion", delay=5, leave=False):
            changed = rank < some.view(-1, 1, 1, 1, 1)  # (S, B, 1, H, W)
            for curve, before, after in zip(curves, (images, blurred), (removed, images), strict=True):
                logits = model(torch.where(changed, after, before).flatten(0, 1))  # (S·B, C)
                if targets.max() >= logits.shape[1]:
                    raise ValueError(f"targets has class {targets.max()}; the model has {logits.shape[1]} classes")
                scores = logits.sigmoid() if multilabel else logits.softmax(1)
                curve.append(scores.gather(1, targets.repeat(len(some))[:, None]).view(len(some), b))
    deletion, insertion = (torch.cat(curve).T for curve in curves)
    return DeletionInsertion(deletion, insertion, *(torch.trapezoid(c, dx=1 / steps) for c in (deletion, insertion)))


# ---- sanity


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation over the pixels of signed maps; equal pixels share their mean rank.

    maps and others (B, K, H, W) float -> (B, K) in [-1, 1]; 0 where a map is constant.
    """
    if maps.shape != others.shape:
        raise ValueError(f"maps has shape {tuple(maps.shape)} and others {tuple(others.shape)}; they must be equal")
    centred = []
    for name, m in (("maps", maps), ("others", others)):
        _check_maps(name, m)
        flat = m.detach().flatten(2).contiguous()
        ordered = flat.sort(-1).values
        below, upto = torch.searchsorted(ordered, flat), torch.searchsorted(ordered, flat, right=True)
        # Twice the distance of the mean rank from the middle rank: an integer, so exactly 0 for a constant map.
        centred.append((below + upto - flat.shape[2]).float())
    return F.cosine_similarity(*centred, dim=2).clamp(-1, 1)


def shift_similarity(explain_fn: Callable[[Tensor], Tensor], images: Tensor, most: int = 16) -> Tensor:
    """Do explanations move with the image? Cosine of those before and after a diagonal shift by 0 ... most pixels.

    From the images (B, 3, H, W) windows of H - most by W - most pixels are cut, s pixels down and to the right. The
    explanation of each, `explain_fn(window)` (B, K, H - most, W - most), is compared with that of the first window in
    the pixels that both show: float (most + 1, B) in [-1, 1], 0 for a map that is zero there. A network that sees
    patches of n pixels repeats itself every n (Parchami-Araghi et al., ECCV 2024, section 4).
    Raises ValueError for `most` below 1, or images that leave no window with anything in common.
    """
    height, width = (side - most for side in images.shape[2:])
    if most < 1 or min(height, width) <= most:
        raise ValueError(f"most is {most}; it must be from 1 to less than half of the images' {images.shape[2:]}")
    found, first = [], None
    for s in tqdm(range(most + 1), desc="shifting", unit="pixel", leave=False):
        maps = explain_fn(images[..., s : s + height, s : s + width]).detach()
        if maps.ndim != 4 or maps.shape[2:] != (height, width):
            raise ValueError(f"explain_fn returned {tuple(maps.shape)}; (B, K, {height}, {width}) is wanted")
        first = maps if first is None else first
        common = first[..., s:, s:].flatten(1), maps[..., : height - s, : width - s].flatten(1)
        found.append(F.cosine_similarity(*(m / m.abs().amax(1, keepdim=True).clamp_min(1e-30) for m in common)))
    return torch.stack(found)


def randomisation(model: nn.Module, explain_fn: Callable[[nn.Module], Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Similarity of a model's maps to the maps of copies whose stages are randomised one after the other, last first.

    Cascading randomisation, Adebayo et al., NeurIPS 2018: maps that stay similar do not show what the model learned.
    The given model and the random number generators are left as they were.

    Args:
        model: with `depths` as from `models.build`, or with children that are registered in the order they run.
        explain_fn: from a model to maps (B, K, H, W) of the same images and targets each time. They are compared as
            given, signed or not. Every call sees the same random numbers of PyTorch.
        seed: of the new weights.

    Returns:
        `rank_correlation` (B, K) with the maps of `model`: "none" (nothing is randomised), then named by the stage that
        was added last: "logits" (all after the last depth), "Final" (all after Mid3), …, "Mid1" (everything).

    Raises:
        ValueError: a model without parameters; maps of wrong shape or dtype, or not finite.

    Notes:
        A parameter tensor is drawn anew from the normal distribution with its own mean and standard deviation, not from
        its layer's initialiser: that works for every layer and no signal vanishes. Buffers and constant tensors stay.
    """
    randomised = copy.deepcopy(model)
    stages = _stages(randomised)
    if not stages:
        raise ValueError(f"model {type(model).__name__} has no parameters to randomise")
    generator = torch.Generator().manual_seed(seed)

    def explained() -> Tensor:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            return explain_fn(randomised).detach()

    original = explained()
    similarity = {"none": rank_correlation(original, original)}
    for stage, parameters in tqdm(stages.items(), desc="randomisation", delay=5, leave=False):
        with torch.no_grad():
            for p in parameters:
                p.copy_(p.mean() + p.std(correction=0) * torch.randn(p.shape, generator=generator).to(p))
        similarity[stage] = rank_correlation(original, explained())
    return similarity


def _stages(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters after each depth and up to the next, by the name of the upper one; last first, none empty."""
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    depths = getattr(model, "depths", None) or {name: name for name, _ in model.named_children()}
    ends = sorted(
        (max(i for name, i in order.items() if f"{name}.".startswith(f"{path}.")), depth)
        for depth, path in depths.items()
    )
    stages: dict[str, list[nn.Parameter]] = {depth: [] for depth in ["logits", *(depth for _, depth in ends[::-1])]}
    for name, parameter in model.named_parameters():
        owner = order[name.rpartition(".")[0]]
        stages[next((depth for end, depth in ends if owner <= end), "logits")].append(parameter)
    return {depth: parameters for depth, parameters in stages.items() if parameters}
