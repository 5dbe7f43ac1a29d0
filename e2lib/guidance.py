"""Model guidance: losses that pull attribution into bounding boxes, and the step that trains with them.

Rao, Böhle, Parchami-Araghi, Schiele: Studying How to Efficiently and Effectively Guide Models with Explanations, ICCV
2023. The losses are pure functions of maps A (B, 1, H, W), signed floats of any scale, and masks M (B, 1, H, W), bool,
the boxes of the explained class; they give one value an image, (B,) float32 or wider. With A⁺ = max(A, 0) and
Â = A / max|A| of each map. Values and gradients are finite for every finite map and every mask; an all-zero map has no
gradient. A wrong shape or type is a ValueError.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from e2lib.attribution import against_others, explain, grid_size, modes_restored, trainable
from e2lib.datasets import Batch, collate
from e2lib.metrics import EPG

FLOOR = 1e-6  # of Â⁺ in the logarithm of PPCE; attribution below it counts as this much and has no gradient
NOTHING = 1e-30  # a map that is nowhere larger is an all-zero map


def energy(maps: Tensor, masks: Tensor) -> Tensor:
    """1 − Σ(M·A⁺) / ΣA⁺, which is 1 − EPG, in [0, 1]: the energy loss of Rao et al.; 1 for a map without A⁺."""
    positive = F.relu(_scaled(maps, masks, by=F.relu))
    total = positive.sum((1, 2, 3))
    return 1 - (positive * masks).sum((1, 2, 3)) / torch.where(total > 0, total, 1)


def l1(maps: Tensor, masks: Tensor) -> Tensor:
    """Mean over pixels of |M − Â⁺| in [0, 1]: A⁺ is to fill the box (GRADIA, Gao et al. 2022; RES, Gao et al. 2022)."""
    return (masks.float() - F.relu(_normalised(maps, masks))).abs().mean((1, 2, 3))


def ppce(maps: Tensor, masks: Tensor) -> Tensor:
    """−1/|M| Σ M·log Â⁺, in [0, 13.8]: per-pixel cross entropy in the box (HAICS, Shen et al. 2021); 0 for no box.

    Notes: the logarithm is taken of at least 1e-6, so the loss is finite where the box holds negative attribution.
    """
    logarithm = _normalised(maps, masks).clamp(min=FLOOR).log()
    return -(logarithm * masks).sum((1, 2, 3)) / masks.sum((1, 2, 3)).clamp(min=1)


def rrr(maps: Tensor, masks: Tensor) -> Tensor:
    """Σ (1 − M)·Â² ≥ 0: attribution of either sign outside the box (RRR, Ross et al. 2017; RRR* normalises it)."""
    return (_normalised(maps, masks).square() * ~masks).sum((1, 2, 3))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"energy": energy, "l1": l1, "ppce": ppce, "rrr": rrr}


def _scaled(maps: Tensor, masks: Tensor, by: Callable[[Tensor], Tensor]) -> Tensor:
    """The maps over the maximum of `by(maps)`, which counts as a constant; zeros for an all-zero map."""
    if maps.ndim != 4 or maps.shape[1] != 1 or not maps.is_floating_point():
        raise ValueError(f"maps is {maps.dtype} {tuple(maps.shape)}; it must be a float tensor (B, 1, H, W)")
    if masks.dtype != torch.bool or masks.shape != maps.shape:
        raise ValueError(
            f"masks is {masks.dtype} {tuple(masks.shape)}; it must be torch.bool {tuple(maps.shape)}, the maps' shape"
        )
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    peak = by(maps.detach()).amax((1, 2, 3), keepdim=True)
    # The losses do not depend on a map's scale, so this changes no gradient; it keeps tiny maps from vanishing.
    return maps / torch.where(peak > NOTHING, peak, torch.inf)


def _normalised(maps: Tensor, masks: Tensor) -> Tensor:
    """Â = A / max|A|, with the gradient of the maximum."""
    maps = _scaled(maps, masks, by=torch.abs)
    peak = maps.abs().amax((1, 2, 3), keepdim=True)
    return maps / torch.where(peak > NOTHING, peak, 1)


@dataclass(frozen=True)
class Guide:
    """A training step: BCE(logits, labels) + λ · L_loc(A_c, M_c) (Rao et al., section 3).

    In every image that is `annotated`, one class c is drawn uniformly (by torch's global generator) from those that
    have boxes; only these images are explained. The network runs in eval mode, so that an image's map depends on that
    image alone and one forward pass serves logits and map: norm layers use, and keep, their running statistics, for
    images with and without boxes alike, and dropout is off.

    Args:
        loss: a name of `LOSSES`.
        method: a differentiable method of `explain`.
        at: where it explains, a depth of the model or a module path.
        weight: λ. L_loc is averaged over annotated images, so λ does not depend on the size of the batch. 0 trains
            in the same way without explaining: the baseline.
        fraction: the part of an epoch's images that are annotated, `dataset.annotated.mean()`. L_loc of a batch is
            its sum over annotated images divided by their expected number, fraction · B: its mean over batches of one
            size is the mean over annotated images, whatever the fraction is, also when a batch holds one or none. In a
            last batch that is smaller, an image counts more, as it does for the classification.
        absolute: explain with |A| instead of A in the loss. Grad-CAM's maps can escape a strong energy loss by becoming
            zero everywhere, where there is no gradient; the absolute value of IxG at Final, which is Grad-CAM before
            its ReLU where average pooling and a linear layer follow, cannot. `evaluate` measures A all the same.
        contrast: explain the difference of the class's logit and the mean of the others instead of the logit: what
            speaks for this class rather than another.
        outside: M is the complement of the boxes: for classes that are told by what surrounds the object in the box.
        dropout: the share of the explained layer's channels that a step sets to zero, drawn anew for each image,
            annotated or not, the others being scaled up: the map then has to hold with any of them. Not for tokens
            (B, N, C).

    Raises:
        ValueError: an unknown loss or method, a weight below 0, a fraction outside (0, 1], dropout outside [0, 1).

    Notes:
        The authors' code sums L_loc over the batch with a weight λ_sum. The same gradient is had with
        λ = λ_sum · fraction · B: 5e-4 ... 5e-3 at B = 64 with all boxes are λ = 0.032 ... 0.32.
    """

    loss: str = "energy"
    method: str = "ixg"
    at: str = "Input"
    weight: float = 0.1
    fraction: float = 1.0
    absolute: bool = False
    contrast: bool = False
    outside: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("weight", "fraction", "dropout"):  # a number of NumPy would change the repr, and fail in operators
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")
        if self.method not in trainable():
            raise ValueError(f"method is {self.method!r}; one can train through {', '.join(trainable())}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight is {self.weight}; it must be 0 or more")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}; it must be in (0, 1]")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, scalars: classification (nats a class) and guidance (weighted by λ)."""
        classes = self.choose(batch)
        guided = (classes >= 0) & (self.weight > 0)
        logits, localisation = [], batch.images.new_zeros(())
        with modes_restored(model), self._dropping(model):
            model.eval()
            if guided.any():
                chosen, masks = classes[guided], batch.class_masks(classes)[guided]
                targets = against_others(chosen, batch.labels.shape[1]) if self.contrast else chosen
                explanation = explain(model, batch.images[guided], targets, self.method, self.at, create_graph=True)
                masks = ~masks if self.outside else masks
                maps = explanation.maps.abs() if self.absolute else explanation.maps
                localisation = LOSSES[self.loss](maps, masks).sum() / (self.fraction * len(classes))
                logits.append(explanation.logits)
            if not guided.all():
                logits.append(model(batch.images[~guided]))
        labels = torch.cat([batch.labels[guided], batch.labels[~guided]]).float()
        classification = F.binary_cross_entropy_with_logits(torch.cat(logits).float(), labels)
        return {"classification": classification, "guidance": self.weight * localisation}

    @contextmanager
    def _dropping(self, model: nn.Module) -> Iterator[None]:
        """Dropout of channels at the explained layer, before `explain` catches it: by a hook, because of eval mode."""
        if not self.dropout:
            yield
            return
        layer = model.get_submodule(getattr(model, "depths", {}).get(self.at, self.at))
        handle = layer.register_forward_hook(lambda module, inputs, output: self._dropped(output))
        try:
            yield
        finally:
            handle.remove()

    def _dropped(self, layer: Tensor) -> Tensor:
        if layer.ndim != 4:
            raise ValueError(f"dropout is {self.dropout}; at {self.at!r} are tokens {tuple(layer.shape)}, it must be 0")
        return F.dropout2d(layer, self.dropout)

    @staticmethod
    def choose(batch: Batch) -> Tensor:
        """A class with boxes, drawn at random, of each annotated image: int64 (B,), -1 where there is none."""
        classes = torch.full((len(batch.names),), -1)
        for i, labels in enumerate(batch.box_labels):
            candidates = labels.unique().cpu()
            if batch.annotated[i] and len(candidates):
                classes[i] = candidates[torch.randint(len(candidates), ())]
        return classes.to(batch.images.device)


@torch.no_grad()
def ceiling(model: nn.Module, dataset: Dataset, at: str = "Input", batch_size: int = 64) -> float:
    """EPG, in per cent, of maps that fill the boxes as well as a layer's resolution allows, on `dataset`.

    Such a map is the box mask, averaged over each cell of the layer's grid and brought back to the images' size as
    `explain` does. At Input it is 100. A map that keeps to the middle of large boxes can score higher.
    """
    device, metric = next(model.parameters()).device, EPG()
    grid = None
    for batch in DataLoader(dataset, batch_size, collate_fn=collate):
        if grid is None:
            grid = grid_size(model, batch.images[:1].to(device), at)
        masks = batch.class_masks(batch.present())
        cells = F.adaptive_avg_pool2d(masks.float(), grid)
        if cells.shape != masks.shape:
            cells = F.interpolate(cells, masks.shape[2:], mode="bilinear", align_corners=False)
        metric.update(cells, masks)
    return 100 * metric.compute().item()
