"""Does a map show what the network uses? Its pixels are deleted and inserted, those of largest attribution first."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur
from tqdm.auto import tqdm

from e2lib.attribution import logits_of, modes_restored
from e2lib.datasets.files import check_value
from e2lib.metrics.localisation import check_maps, kind


class DeletionInsertion(NamedTuple):
    """Curves (B, steps + 1), the target's probability over the share of changed pixels 0 … 1, and their areas (B,)."""

    deletion: Tensor
    insertion: Tensor
    deletion_auc: Tensor
    insertion_auc: Tensor


@torch.no_grad()
def deletion_insertion(
    model: nn.Module, images: Tensor, maps: Tensor, targets: Tensor, steps: int = 20, multilabel: bool = False
) -> DeletionInsertion:
    """Probability of the target as pixels vanish or appear, those of largest attribution first.

    RISE, Petsiuk et al., BMVC 2018. A faithful map has a small deletion area and a large insertion area.

    The model runs in eval mode, on all images (B, 3, H, W) at once, in [0, 1] and at least 6 pixels a side. Maps are
    (B, 1, H, W) float; equal pixels go in reading order. Targets are classes, int64 (B,). The pixels change in `steps`
    equal shares. The probability is the softmax, with `multilabel` the sigmoid, of the logit. Raises ValueError for
    other input, and for NaN among logits.

    Notes: deleted pixels take the mean colour of their image; in the authors' code that of the data set. Insertion
    starts, as there, from the image blurred by an 11 x 11 Gaussian of σ = 5 pixels (here with reflected borders).
    """
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0 or min(images.shape[2:]) < 6:
        raise ValueError(f"images is {kind(images)}; it must be float (B, 3, H, W) with B >= 1 and H, W >= 6")
    b, _, h, w = images.shape
    check_maps("maps", maps, (b, 1, h, w))
    if targets.dtype != torch.int64 or targets.shape != (b,) or targets.min() < 0:
        raise ValueError(f"targets is {kind(targets)}; it must be torch.int64 ({b},), with classes of 0 or more")
    check_value(steps >= 1, "steps", steps, "at least 1")
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).view(b, 1, h, w)
    removed, blurred = images.mean((2, 3), keepdim=True), gaussian_blur(images, [11, 11], [5.0, 5.0])
    curves: list[list[Tensor]] = [[], []]
    with modes_restored(model):
        model.eval()
        counts = torch.linspace(0, h * w, steps + 1).round().tolist()
        for count in tqdm(counts, desc="deletion, insertion", delay=5, leave=False):
            for curve, before, after in zip(curves, (images, blurred), (removed, images), strict=True):
                logits = logits_of(model(torch.where(rank < count, after, before)))
                if targets.max() >= logits.shape[1]:
                    raise ValueError(f"targets has class {targets.max()}; the model has {logits.shape[1]} classes")
                if logits.isnan().any():
                    raise ValueError("logits hold NaN: the network's weights, or the images, are not finite")
                scores = logits.sigmoid() if multilabel else logits.softmax(1)
                curve.append(scores.gather(1, targets[:, None])[:, 0])
    deletion, insertion = (torch.stack(curve, 1) for curve in curves)
    return DeletionInsertion(deletion, insertion, *(torch.trapezoid(c, dx=1 / steps) for c in (deletion, insertion)))
