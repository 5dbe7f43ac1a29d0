"""Where attribution lies: values (B, K) of float maps and bool masks (B, K, H, W), and torchmetrics that average."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric

from e2lib.datasets.files import check_value

THRESHOLDS = tuple(t / 20 for t in range(20))  # of `IoUCurve`
NOTHING = 1e-30  # a map whose largest |value| is at most this counts as zero


def epg(maps: Tensor, masks: Tensor) -> Tensor:
    """Energy pointing game: the share of positive attribution in the mask, Σ(M·A⁺) / ΣA⁺ (Rao et al., ICCV 2023)."""
    positive = _positive(maps, masks=masks)  # unless it is zero, its largest pixel is 1, and its sum at least 1
    return (positive * masks).sum((2, 3)) / positive.sum((2, 3)).clamp(min=1)


def on_object_epg(maps: Tensor, boxes: Tensor, segments: Tensor) -> Tensor:
    """The share of the positive attribution in the boxes M that is on the object S: Σ(S·M·A⁺) / Σ(M·A⁺) (ibid.)."""
    return epg(_positive(maps, boxes=boxes, segments=segments) * boxes, segments)


def iou(maps: Tensor, masks: Tensor, threshold: float | Sequence[float]) -> Tensor:
    """Intersection over union, in [0, 1], of the mask and the pixels where A⁺ / max A⁺ > threshold, in [0, 1).

    T increasing thresholds give (B, K, T). Notes: the paper chooses the threshold on held-out data, see `IoUCurve`. A
    fixed 0.5 misleads at Input: so few pixels reach half the maximum that the IoU is near 0 whatever the map shows.
    """
    thresholds = _increasing(threshold if isinstance(threshold, Sequence) else [threshold])
    positive, inside = _positive(maps, masks=masks).flatten(2), masks.flatten(2).float()
    exceeded = torch.bucketize(positive, positive.new_tensor(thresholds))  # thresholds below each pixel, 0 to T
    none = inside.new_zeros(*inside.shape[:2], len(thresholds) + 1)
    counts = (none.scatter_add(2, exceeded, pixels) for pixels in (inside, 1 - inside))
    hits, misses = (count.flip(2).cumsum(2).flip(2)[..., 1:] for count in counts)  # above each threshold
    found = hits / (misses + inside.sum(2, keepdim=True)).clamp(min=1)
    return found if isinstance(threshold, Sequence) else found[..., 0]


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """1 if the map's maximum is positive and inside the mask only, else 0 (Zhang et al., IJCV 2018; no margin)."""
    positive = _positive(maps, masks=masks)
    return ((positive * masks).amax((2, 3)) > (positive * ~masks).amax((2, 3))).to(positive.dtype)


def _increasing(thresholds: Sequence[float]) -> list[float]:
    for threshold in thresholds:
        check_value(0 <= threshold < 1, "threshold", threshold, "in [0, 1), a fraction of the map's maximum")
    return sorted(thresholds)


def _positive(maps: Tensor, **masks: Tensor) -> Tensor:
    """A⁺ / max A⁺, at least float32; zeros for a map without positive attribution. Checks the arguments."""
    check_maps("maps", maps)
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != maps.shape:
            raise ValueError(f"{name} is {kind(mask)}; it must be torch.bool {tuple(maps.shape)}, the maps' shape")
    return over_peak(wide(maps).clamp(min=0), (2, 3), above=0)


def wide(x: Tensor) -> Tensor:
    """A float tensor in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def over_peak(x: Tensor, dims: int | tuple[int, ...], above: float = NOTHING) -> Tensor:
    """`x` over the maximum of |x| in `dims`, which counts as a constant; zeros where that is at most `above`."""
    peak = x.detach().abs().amax(dims, keepdim=True)
    return x / torch.where(peak > above, peak, torch.inf)


def kind(x: Tensor) -> str:
    """Type and shape of a tensor, for messages."""
    return f"{x.dtype} {tuple(x.shape)}"


def check_maps(name: str, maps: Tensor, shape: Sequence[int] = ()) -> None:
    """Raises ValueError unless `maps` is float (B, K, H, W), of `shape` where one is given, and finite."""
    right = maps.ndim == 4 and maps.is_floating_point() and 0 not in maps.shape[2:]
    if not right or (shape and maps.shape != shape):
        raise ValueError(f"{name} is {kind(maps)}; it must be float {tuple(shape) or '(B, K, H, W), H and W above 0'}")
    if not maps.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity: weights or images are not finite, or float16 has overflowed")


class Average(Metric):
    """Mean of `function` over pairs of an image and a class, (B, K, *size), or over images, (B,), in all processes.

    Names must differ in a MetricCollection, which shares states that seem equal.
    """

    full_state_update = False

    def __init__(self, function: Callable[..., Tensor], name: str, size: Sequence[int] = ()):
        super().__init__()
        self.function, self.name = function, name
        self.add_state(f"total {name}", torch.zeros(size), dist_reduce_fx="sum")
        self.add_state("pairs", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, *inputs: Tensor, valid: Tensor | None = None, **named) -> None:
        """Add a batch. Pairs count where `valid`, bool (B, K), says so; by default if all its masks share a pixel."""
        values = self.function(*inputs, **named)
        if values.ndim == 1:
            valid = torch.ones_like(values, dtype=torch.bool)
        elif valid is None:
            check_value(len(inputs) > 1, "valid", valid, "given, bool (B, K), where masks are given by name")
            valid = torch.stack(inputs[1:]).all(0).flatten(2).any(2)
        if valid.dtype != torch.bool or valid.shape != values.shape[:2]:
            raise ValueError(f"valid is {kind(valid)}; it must be torch.bool (B, K) = {tuple(values.shape[:2])}")
        if not values[valid].isfinite().all():
            raise ValueError(f"{self.name} is NaN or infinite")
        getattr(self, f"total {self.name}").add_(values[valid].sum(0))
        self.pairs += valid.sum()

    def count(self) -> int:
        """The number of values that have counted so far, in all processes."""
        with self.sync_context():
            return int(self.pairs)

    def compute(self) -> Tensor:
        """Mean of the values that have counted so far, 0 if there were none."""
        return getattr(self, f"total {self.name}") / self.pairs.clamp(min=1)


EPG = partial(Average, epg, "EPG")
OnObjectEPG = partial(Average, on_object_epg, "on-object EPG")


def IoU(threshold: float) -> Average:
    """Mean `iou` at one threshold in [0, 1)."""
    return Average(partial(iou, threshold=_increasing([threshold])[0]), f"IoU {threshold}")


class IoUCurve(Average):
    """Mean `iou` (T,) at each of T increasing thresholds, by default 0, 0.05, …, 0.95, in one pass over the data."""

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS):
        self.thresholds = _increasing(thresholds)
        super().__init__(partial(iou, threshold=self.thresholds), f"IoU {self.thresholds}", [len(self.thresholds)])

    def best_threshold(self) -> float:
        """The threshold of the largest mean IoU, the lowest of equals. ValueError if no pair was seen."""
        if self.count() == 0:
            raise ValueError("no threshold can be chosen: no pair of an image and a class with a mask has been added")
        return self.thresholds[self.compute().argmax().item()]
