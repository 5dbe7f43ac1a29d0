"""Model guidance: losses that pull attribution into bounding boxes, and the step that trains with them.

Rao, Böhle, Parchami-Araghi, Schiele: Studying How to Efficiently and Effectively Guide Models with Explanations, ICCV
2023. The losses are pure functions of maps A (B, 1, h, w), signed floats of any scale, in a layer's cells, and of masks
M (B, 1, H, W) of the explained class, bool or float in [0, 1], in pixels. They give one value per image, (B,) float.
A⁺ = max(A, 0), and Â⁺ = A⁺ / max A⁺. Maps are resized to the masks bilinearly, at the step at which the authors' code
does it. Values and gradients are finite; an all-zero map has no gradient. ValueError for wrong maps or masks, and for
NaN or infinity in them. On a GPU this check waits for the maps.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from e2lib.attribution import METHODS, against_others, explain, grid_size, modes_restored, predict, trainable
from e2lib.attribution.forward import module_at, refuse_distributed
from e2lib.datasets import Batch, collate
from e2lib.datasets.files import check_value
from e2lib.distillation.losses import bce, cross_entropy
from e2lib.metrics import EPG
from e2lib.metrics.localisation import check_maps, kind, over_peak, wide
from e2lib.models import fingerprint

FLOOR = 1e-6  # of Â⁺ in the logarithm of PPCE; attribution below it counts as this much and has no gradient
EXPECTED = 20  # images with boxes; `Guide` warns if none of them has come, by chance once in e^20 trainings


def energy(maps: Tensor, masks: Tensor) -> Tensor:
    """1 − Σ(M·A⁺) / ΣA⁺ = 1 − EPG of resized maps, in [0, 1]: the energy loss of Rao et al.; 1 for a map without A⁺."""
    maps, masks = _checked(maps, masks)
    maps = over_peak(maps, (1, 2, 3))  # as sums of the largest floats are infinite
    positive = F.relu(resize(maps, masks))
    total = positive.sum((1, 2, 3))
    return 1 - (positive * masks).sum((1, 2, 3)) / torch.where(total > 0, total, 1)


def l1(maps: Tensor, masks: Tensor) -> Tensor:
    """Mean over pixels of |M − Â⁺|, in [0, 1]; Â⁺ is resized last (GRADIA, Gao et al. 2022; RES, Gao et al. 2022)."""
    maps, masks = _checked(maps, masks)
    return (masks - resize(_normalised(F.relu(maps)), masks)).abs().mean((1, 2, 3))


def ppce(maps: Tensor, masks: Tensor) -> Tensor:
    """−1/|M| Σ M·log Â⁺, in [0, 13.8], 0 for no box; Â⁺ is resized before the logarithm (HAICS, Shen et al. 2021)."""
    maps, masks = _checked(maps, masks)
    logarithm = resize(_normalised(F.relu(maps)), masks).clamp(min=FLOOR).log()
    total = masks.sum((1, 2, 3))
    return -(logarithm * masks).sum((1, 2, 3)) / torch.where(total > 0, total, 1)


def rrr(maps: Tensor, masks: Tensor) -> Tensor:
    """Σ (1 − M)·Â² ≥ 0: attribution outside the box (RRR, Ross et al. 2017; in RRR* Â = A / max|A| is resized last)."""
    maps, masks = _checked(maps, masks)
    return (resize(_normalised(maps), masks).square() * (1 - masks)).sum((1, 2, 3))


def resize(maps: Tensor, masks: Tensor) -> Tensor:
    """Maps (B, 1, h, w) resized bilinearly to the masks (B, 1, H, W)."""
    if maps.shape == masks.shape:
        return maps
    # As two products. The backward pass of a bilinear F.interpolate takes several times as long on a CPU.
    with torch.autocast(maps.device.type, enabled=False):
        sides = zip(maps.shape[2:], masks.shape[2:], strict=True)
        rows, columns = (F.interpolate(torch.eye(n).to(maps)[None], m, mode="linear")[0] for n, m in sides)
        return rows.T @ maps @ columns


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"energy": energy, "l1": l1, "ppce": ppce, "rrr": rrr}
CLASSIFICATION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce, "cross_entropy": cross_entropy}


def _checked(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The maps, at least float32, and masks of the same type."""
    check_maps("maps", maps, (*maps.shape[:1], 1, *maps.shape[2:]))
    maps, soft = wide(maps), masks.is_floating_point()
    right = masks.ndim == 4 and masks.shape[:2] == maps.shape[:2] and 0 not in masks.shape[2:]
    if not right or not (soft or masks.dtype == torch.bool):
        raise ValueError(f"masks is {kind(masks)}; it must be bool or float ({len(maps)}, 1, H, W), one per map")
    if soft and not ((masks >= 0) & (masks <= 1)).all():
        raise ValueError(f"masks lie in [{masks.min():.3g}, {masks.max():.3g}]; soft masks must be in [0, 1]")
    return maps, masks.to(maps)


def _normalised(maps: Tensor) -> Tensor:
    """Maps over their largest absolute value, with the gradient of the maximum."""
    maps = over_peak(maps, (1, 2, 3))  # changes no gradient, and keeps tiny maps from vanishing
    peak = maps.abs().amax((1, 2, 3), keepdim=True)  # 1, or 0 for an all-zero map
    return maps / torch.where(peak > 0, peak, 1)


@dataclass(frozen=True, repr=False)
class Guide:
    """A training step: classification(logits, labels) + λ · L_loc(A_c, M_c) (Rao et al., section 3).

    In every image that is `annotated`, one class c is drawn uniformly (by torch's global generator) from those that
    have boxes. Only these images are explained. The network runs in eval mode, so that a map depends on its image
    alone, and one forward pass serves logits and map. `Guide` warns if no box has come where `fraction` promised 20.
    Raises ValueError for a value out of range, and for a network in DistributedDataParallel: see `training.StepModule`.

    Notes: L_loc of a batch is its sum over annotated images divided by their expected number, fraction · B. Averaged
    over batches this is unbiased, even if some hold no annotated image; λ does not depend on B. The authors' code sums
    L_loc with a weight λ_sum. λ = λ_sum · fraction · B gives the same gradient: 5e-4 ... 5e-3 at B = 64 with all boxes
    are λ = 0.032 ... 0.32.
    """

    # A name of `LOSSES`, or such a function: its maps lie in the explained layer's cells, see `resize`.
    loss: str | Callable[[Tensor, Tensor], Tensor] = "energy"
    method: str = "ixg"  # of `explain`, one of `attribution.trainable()`
    at: str = "Input"  # the depth, or path of a module, that is explained
    weight: float = 0.1  # λ, 0 or more; 0 trains the baseline, in the same way without explaining
    fraction: float = 1.0  # share of the data's images that are annotated, in (0, 1]
    # Take |A| for A: Grad-CAM can escape a strong energy loss by a zero map without gradient; |IxG| at Final cannot.
    absolute: bool = False
    contrast: bool = False  # explain the class's logit less the mean of the others: why this class rather than another
    outside: bool = False  # take the complement of M, for classes told by what surrounds the object in the box
    dropout: float = 0.0  # share, in [0, 1), of the layer's channels set to zero, anew for each image; 0 for tokens
    # A name of `CLASSIFICATION`, or a function of logits and multi-hot labels, both float32 (B, C).
    classification: str | Callable[[Tensor, Tensor], Tensor] = "bce"
    masks: str = "boxes"  # or "segmentation", the union of the class's masks; images without masks are not explained
    # Leave each module in its mode, for norm layers that still learn statistics. One pass then takes the whole batch,
    # and maps before such a layer depend on all of its images.
    keep_modes: bool = False

    def __post_init__(self):
        object.__setattr__(self, "missing", [0.0])  # the expected number of annotated images while none has come
        for name in ("weight", "fraction", "dropout"):  # a NumPy number would change the repr, and fail in operators
            object.__setattr__(self, name, float(getattr(self, name)))
        tables = {"loss": LOSSES, "classification": CLASSIFICATION, "masks": ("boxes", "segmentation")}
        for name, table in (tables | {"method": trainable()}).items():
            value = getattr(self, name)
            right = value in table or (callable(value) and name in ("loss", "classification"))
            check_value(right, name, value, f"one of {', '.join(table)}")
        check_value(0 <= self.weight < math.inf, "weight", self.weight, "0 or more")
        check_value(0 < self.fraction <= 1, "fraction", self.fraction, "in (0, 1]")
        check_value(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    def settings(self) -> dict[str, str | float | bool]:
        """The values of the fields, with functions by their names."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: getattr(value, "__qualname__", value) for name, value in values.items()}

    def __repr__(self) -> str:
        return f"Guide({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

    def fingerprint(self) -> str:
        """Identifies trainings with this step: by its settings, and the code of the functions that they name."""
        named = ((LOSSES, self.loss), (METHODS, self.method), (CLASSIFICATION, self.classification))
        return fingerprint([self.settings(), *(table.get(name, name) for table, name in named)])

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, scalars: classification, and guidance (weighted by λ)."""
        refuse_distributed(model)
        check_value(len(batch.images) > 0, "batch", "empty", "of one image or more")
        segmentation = self.masks == "segmentation"
        classes = self.choose(batch, segmentation)
        guided = (classes >= 0) & (self.weight > 0)
        some = bool(guided.any())
        self.missing[0] = -math.inf if some or self.weight == 0 else self.missing[0] + self.fraction * len(guided)
        if self.missing[0] >= EXPECTED:
            self.missing[0] = -math.inf  # says it once
            expected = f"although fraction={self.fraction} of all images should have some"
            warnings.warn(f"Guide has found no {self.masks}, {expected}: it trains without guidance", stacklevel=2)
        explained = guided | (self.keep_modes and some)  # in train mode norm layers have to see the whole batch at once
        logits, localisation = [], batch.images.new_zeros(())
        with modes_restored(model), self._dropping(model):
            if not self.keep_modes:
                model.eval()
            if some:
                chosen = torch.where(guided, classes, -1)[explained]
                targets = (lambda z: against_others(chosen, z.shape[1])) if self.contrast else chosen
                how = {"create_graph": True, "keep_modes": self.keep_modes, "resize": False}
                found, maps = explain(model, batch.images[explained], targets, self.method, self.at, **how)
                logits.append(found)
                maps, masks = wide(maps[guided[explained]]), batch.class_masks(classes, segmentation)[guided]
                maps = maps.abs() if self.absolute else maps
                if self.outside:
                    masks = ~masks if masks.dtype == torch.bool else 1 - masks
                values = LOSSES.get(self.loss, self.loss)(maps, masks)
                check_value(values.shape == maps.shape[:1], "loss", self.loss, "a function that gives a value per map")
                localisation = values.sum() / (self.fraction * len(classes))
            if not explained.all():
                logits.append(predict(model, batch.images[~explained]))
        found = torch.cat(logits).float()
        labels = batch.hot(found.shape[1])
        labels = torch.cat([labels[explained], labels[~explained]])
        classification = CLASSIFICATION.get(self.classification, self.classification)(found, labels).mean()
        return {"classification": classification, "guidance": self.weight * localisation}

    def _dropping(self, model: nn.Module) -> AbstractContextManager:
        """Dropout of channels at the explained layer, before `explain` catches it; a hook works in eval mode too."""

        def drop(module, inputs, layer):
            check_value(layer.ndim == 4, "dropout", self.dropout, f"0 for tokens, as at {self.at!r}")
            return F.dropout2d(layer, self.dropout)

        return module_at(model, self.at).register_forward_hook(drop) if self.dropout else nullcontext()

    @staticmethod
    def choose(batch: Batch, segmentation: bool = False) -> Tensor:
        """One random class of each annotated image, with boxes (and with masks, if asked): int64 (B,), -1 for none."""
        classes = torch.full((len(batch.names),), -1)
        for i, labels in enumerate(batch.box_labels):
            candidates = labels.unique().cpu()
            known = not segmentation or (batch.masks is not None and batch.masks[i] is not None)
            if batch.annotated[i] and known and len(candidates):
                classes[i] = candidates[torch.randint(len(candidates), ())]
        return classes.to(batch.images.device)


@torch.random.fork_rng([])
@torch.no_grad()
def ceiling(model: nn.Module, dataset: Dataset, at: str = "Input", batch_size: int = 64) -> float:
    """EPG, in per cent, of maps that fill the boxes as well as a layer's cells allow; 100 at Input.

    Such a map is the box mask, averaged over each cell and resized. One in the middle of large boxes can score higher.
    """
    metric = EPG()
    grid = grid_size(model, collate([dataset[0]]).images.to(next(model.parameters()).device), at)
    for batch in DataLoader(dataset, batch_size, collate_fn=collate):
        masks = batch.class_masks(batch.present())
        metric.update(resize(F.adaptive_avg_pool2d(masks.float(), grid), masks), masks)
    return 100 * metric.compute().item()
