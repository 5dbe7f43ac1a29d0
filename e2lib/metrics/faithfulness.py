"""Does a map show what the network uses? Deletion and insertion of pixels, and sanity checks of explanations."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur
from tqdm.auto import tqdm

from e2lib.attribution import bare, check_images, logits_of, modes_restored
from e2lib.datasets.files import check_value
from e2lib.metrics.localisation import check_maps, kind, over_peak


class DeletionInsertion(NamedTuple):
    """Curves (B, steps + 1) of the target's probability over the share, 0 to 1, of changed pixels; their areas (B,)."""

    deletion: Tensor
    insertion: Tensor
    deletion_auc: Tensor
    insertion_auc: Tensor


@torch.no_grad()
def deletion_insertion(
    model: nn.Module, images: Tensor, maps: Tensor, targets: Tensor, steps: int = 20, multilabel: bool = False
) -> DeletionInsertion:
    """Probability of the target as pixels vanish or appear, those of largest attribution first (RISE, Petsiuk 2018).

    A faithful map has a small deletion area and a large insertion area. Images are (B, 3, H, W) in [0, 1], of at least
    6 pixels a side; the model runs on all of them at once, in eval mode. Maps are (B, 1, H, W); equal pixels go in
    reading order. Targets are classes, int64 (B,). The pixels change in `steps` equal shares. The probability is the
    softmax of the logits, with `multilabel` their sigmoid. ValueError for other input, and for NaN probabilities.

    Notes: deleted pixels take the mean colour of their image; in the authors' code that of the data set. As in that
    code, insertion starts from the image blurred by an 11 x 11 Gaussian of σ = 5 pixels (here with reflected borders).
    """
    check_images(model, images)
    if len(images) == 0 or min(images.shape[2:]) < 6:
        raise ValueError(f"images is {kind(images)}; it must be float (B, 3, H, W) with B >= 1 and H, W >= 6")
    b, _, h, w = images.shape
    check_maps("maps", maps, (b, 1, h, w))
    if targets.dtype != torch.int64 or targets.shape != (b,) or targets.min() < 0:
        raise ValueError(f"targets is {kind(targets)}; it must be torch.int64 ({b},), with classes of 0 or more")
    check_value(steps >= 1, "steps", steps, "at least 1")
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).view(b, 1, h, w)
    removed, blurred = images.mean((2, 3), keepdim=True), gaussian_blur(images, [11, 11], [5.0, 5.0])
    counts = torch.linspace(0, h * w, steps + 1).round().tolist()
    curves: tuple[list[Tensor], list[Tensor]] = [], []
    with modes_restored(model):
        model.eval()
        for count in tqdm(counts, desc="deletion, insertion", delay=5, leave=False):
            for curve, before, after in zip(curves, (images, blurred), (removed, images), strict=True):
                logits = logits_of(model(torch.where(rank < count, after, before)))
                if targets.max() >= logits.shape[1]:
                    raise ValueError(f"targets has class {targets.max()}; the model has {logits.shape[1]} classes")
                scores = logits.sigmoid() if multilabel else logits.softmax(1)
                if scores.isnan().any():
                    raise ValueError("logits hold NaN or infinity: the network's weights are not finite")
                curve.append(scores.gather(1, targets[:, None])[:, 0])
    deletion, insertion = (torch.stack(curve, 1) for curve in curves)
    return DeletionInsertion(deletion, insertion, *(torch.trapezoid(c, dx=1 / steps) for c in (deletion, insertion)))


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation, (B, K) in [-1, 1], of signed maps (B, K, H, W). Ties share a rank; constant maps: 0."""
    check_maps("maps", maps)
    check_maps("others", others, maps.shape)
    ranks = []
    for flat in (x.detach().flatten(2).contiguous() for x in (maps, others)):
        ordered = flat.sort(-1).values
        below, upto = torch.searchsorted(ordered, flat), torch.searchsorted(ordered, flat, right=True)
        ranks.append((below + upto - flat.shape[2]).float())  # twice the distance from the middle, an exact integer
    return F.cosine_similarity(*ranks, dim=2).clamp(-1, 1)


def shift_similarity(explain_fn: Callable[[Tensor], Tensor], images: Tensor, most: int = 16) -> Tensor:
    """Do explanations move with the image? Cosines of those before and after a diagonal shift by 0 to `most` pixels.

    Windows of H - most by W - most pixels are cut from the images (B, 3, H, W), s pixels down and to the right. Their
    maps `explain_fn(window)`, (B, K, H - most, W - most), are compared with the first in the pixels that both show:
    float (most + 1, B) in [-1, 1], 0 for a zero map. For a network of n-pixel patches, similarity returns every n
    pixels (Parchami-Araghi et al., ECCV 2024, section 4).
    """
    check_maps("images", images)
    height, width = (side - most for side in images.shape[2:])
    wanted = "from 1 to less than half of the images' height and width"
    check_value(1 <= most < min(height, width), "most", most, wanted)
    found, first = [], None
    for s in tqdm(range(most + 1), desc="shifting", unit="pixel", leave=False):
        maps = explain_fn(images[..., s : s + height, s : s + width]).detach()
        check_maps("explain_fn(window)", maps, (len(images), *maps.shape[1:2], height, width))
        first = maps if first is None else first
        common = first[..., s:, s:].flatten(1), maps[..., : height - s, : width - s].flatten(1)
        found.append(F.cosine_similarity(*(over_peak(m, 1) for m in common)))
    return torch.stack(found)


def randomisation(model: nn.Module, explain_fn: Callable[[nn.Module], Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Similarity of a model's maps to those of copies whose stages are randomised one after the other, last first.

    Cascading randomisation, Adebayo et al., NeurIPS 2018: maps that stay similar do not show what the model learned.
    The model has `depths`, or children in the order they run; it is not changed. `explain_fn` takes a model and makes
    maps (B, K, H, W), of the same images and targets, with the same random numbers. `seed` is for new weights.

    Returns `rank_correlation` (B, K) with the maps of `model`: "none" (nothing is randomised), then by the name of the
    stage added last: "logits" (all after the last depth), "Final" (all after Mid3), …, "Mid1" (everything).

    Notes: a tensor is drawn from the normal distribution with its own mean and standard deviation, which lets no signal
    vanish. Buffers and constant tensors stay.
    """
    randomised = copy.deepcopy(model)
    stages = _stages(bare(randomised))
    if not stages:
        raise ValueError(f"model {type(model).__name__} has no parameters to randomise")
    generator, similarity, original = torch.Generator().manual_seed(seed), {}, None
    for stage, parameters in tqdm(({"none": []} | stages).items(), desc="randomisation", delay=5, leave=False):
        for p in parameters:
            p.data.copy_(p.data.mean() + p.data.std(correction=0) * torch.randn(p.shape, generator=generator).to(p))
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            maps = explain_fn(randomised).detach()
        original = maps if original is None else original
        similarity[stage] = rank_correlation(original, maps)
    return similarity


def _stages(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters behind one depth and up to the next, by the name of the latter; last first, none empty."""
    modules = dict(model.named_modules())
    depths = getattr(model, "depths", None) or {name: name for name, _ in model.named_children()}
    last = {path: i for path in depths.values() for i, at in enumerate(modules) if f"{at}.".startswith(f"{path}.")}
    ends = [*sorted((last[path], depth) for depth, path in depths.items()), (len(modules), "logits")]
    stages: dict[str, list[nn.Parameter]] = {depth: [] for _, depth in reversed(ends)}
    for i, module in enumerate(modules.values()):
        stages[next(depth for end, depth in ends if i <= end)] += module.parameters(recurse=False)
    return {depth: parameters for depth, parameters in stages.items() if parameters}
