"""Sanity checks of explanations: do they depend on what the network learned, and move with the image?"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from e2lib.attribution import bare
from e2lib.datasets.files import check_value
from e2lib.metrics.localisation import check_maps


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation over the pixels of signed maps; equal pixels share their mean rank.

    maps and others (B, K, H, W) float -> (B, K) in [-1, 1]; 0 where a map is constant.
    """
    check_maps("maps", maps)
    check_maps("others", others, maps.shape)
    return F.cosine_similarity(_ranks(maps), _ranks(others), dim=2).clamp(-1, 1)


def _ranks(maps: Tensor) -> Tensor:
    """Twice the distance of pixels' mean ranks from the middle rank: integers, so exactly 0 for a constant map."""
    flat = maps.detach().flatten(2).contiguous()
    ordered = flat.sort(-1).values
    below, upto = torch.searchsorted(ordered, flat), torch.searchsorted(ordered, flat, right=True)
    return (below + upto - flat.shape[2]).float()


def shift_similarity(explain_fn: Callable[[Tensor], Tensor], images: Tensor, most: int = 16) -> Tensor:
    """Do explanations move with the image? Cosine of those before and after a diagonal shift by 0 ... most pixels.

    Windows of H - most by W - most pixels are cut from the images (B, 3, H, W), s pixels down and to the right. The
    map of each, `explain_fn(window)` (B, K, H - most, W - most), is compared with that of the first in the pixels that
    both show: float (most + 1, B) in [-1, 1], 0 for a map that is zero there. A network that sees patches of n pixels
    repeats itself every n (Parchami-Araghi et al., ECCV 2024, section 4).
    """
    height, width = (side - most for side in images.shape[2:])
    check_value(
        1 <= most < min(height, width), "most", most, "from 1 to less than half of the images' height and width"
    )
    found, first = [], None
    for s in tqdm(range(most + 1), desc="shifting", unit="pixel", leave=False):
        maps = explain_fn(images[..., s : s + height, s : s + width]).detach()
        check_maps("explain_fn(window)", maps, (len(images), maps.shape[1], height, width))
        first = maps if first is None else first
        common = first[..., s:, s:].flatten(1), maps[..., : height - s, : width - s].flatten(1)
        found.append(F.cosine_similarity(*(m / m.abs().amax(1, keepdim=True).clamp_min(1e-30) for m in common)))
    return torch.stack(found)


def randomisation(model: nn.Module, explain_fn: Callable[[nn.Module], Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Similarity of a model's maps to the maps of copies whose stages are randomised one after the other, last first.

    Cascading randomisation, Adebayo et al., NeurIPS 2018: maps that stay similar do not show what the model learned.
    The model has `depths`, or children that are registered in the order they run. It stays as it was, and so do the
    random number generators: every call of `explain_fn`, from a model to maps (B, K, H, W) of the same images and
    targets, sees the same random numbers of PyTorch. `seed` is that of the new weights.

    Returns `rank_correlation` (B, K) with the maps of `model`: "none" (nothing is randomised), then named by the stage
    that was added last: "logits" (all after the last depth), "Final" (all after Mid3), …, "Mid1" (everything).

    Notes: a parameter tensor is drawn anew from the normal distribution with its own mean and standard deviation, not
    from its layer's initialiser: that works for every layer and no signal vanishes. Buffers and constant tensors stay.
    """
    randomised = copy.deepcopy(model)
    stages = _stages(bare(randomised))
    if not stages:
        raise ValueError(f"model {type(model).__name__} has no parameters to randomise")
    generator, similarity, original = torch.Generator().manual_seed(seed), {}, None
    for stage, parameters in tqdm(({"none": []} | stages).items(), desc="randomisation", delay=5, leave=False):
        with torch.no_grad():
            for p in parameters:
                p.copy_(p.mean() + p.std(correction=0) * torch.randn(p.shape, generator=generator).to(p))
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            maps = explain_fn(randomised).detach()
        original = maps if original is None else original
        similarity[stage] = rank_correlation(original, maps)
    return similarity


def _stages(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters after each depth and up to the next, by the name of the upper one; last first, none empty."""
    modules = dict(model.named_modules())
    depths = getattr(model, "depths", None) or {name: name for name, _ in model.named_children()}
    last = {path: i for path in depths.values() for i, at in enumerate(modules) if f"{at}.".startswith(f"{path}.")}
    ends = [*sorted((last[path], depth) for depth, path in depths.items()), (len(modules), "logits")]
    stages: dict[str, list[nn.Parameter]] = {depth: [] for _, depth in reversed(ends)}
    for i, module in enumerate(modules.values()):
        stages[next(depth for end, depth in ends if i <= end)] += module.parameters(recurse=False)
    return {depth: parameters for depth, parameters in stages.items() if parameters}
