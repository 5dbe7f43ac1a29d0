"""Pictures without their objects of one class, for the removal test."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from tqdm.auto import tqdm

from e2lib.boxes import box_mask, mask_box
from e2lib.datasets.files import check_value
from e2lib.datasets.sample import Sample, Samples
from e2lib.disk import digest, essence

SHIFTS = 8  # positions along each side where the control looks for room
RIM = 2  # width, in pixels, of the rim around segmentation masks that is filled too
SMOOTHED = 32  # times that each filled pixel becomes the mean of its neighbours


class Without(Samples):
    """One Sample for each pair of an image and a class that it shows: the image without all objects of that class.

    Args:
        dataset: images with boxes; for "scene", `Scenes`, `SceneBirds` or a `Selection` of them. No random transform.
        by: "scene" composes the scene again without these objects, which is exact. "boxes" and "segments" `fill` the
            class's boxes, or its segmentation masks. A fill leaves traces, and can be evidence itself. None means
            "scene" where that can be done, else "boxes".
        limit: leave out pairs whose boxes or masks cover more than this share of the image; "scene" keeps them.
        elsewhere: as a control, fill the same shape where no object of the class is. Pairs without room are left out.

    `pairs` is int64 (len, 2): the position in `dataset`, and the class. ValueError if none is left.
    """

    groups, multilabel = (), True

    def __init__(self, dataset: Samples, by: str | None = None, limit: float = 0.5, elsewhere: bool = False):
        exact = hasattr(dataset, "without") and not elsewhere
        by = by or ("scene" if exact else "boxes")
        check_value(by in ("scene", "boxes", "segments"), "by", by, "one of scene, boxes, segments")
        check_value(by != "scene" or exact, "by", by, "boxes or segments: only Scenes and SceneBirds are composed")
        self.dataset, self.by, self.limit, self.elsewhere = dataset, by, limit, elsewhere
        self.classes = dataset.classes
        pairs = dataset.targets.nonzero()
        if by != "scene":
            found = [
                (i, c)
                for i in tqdm(range(len(dataset)), desc="finding objects", unit="image", leave=False)
                for c, mask in self._masks(dataset[i]).items()
                if mask is not None and mask.float().mean() <= limit
            ]
            pairs = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
        check_value(len(pairs), "pairs", len(pairs), f"at least 1: {by} covering at most {limit:g} of an image")
        self.pairs = pairs
        self.targets = dataset.targets[pairs[:, 0]].scatter(1, pairs[:, 1:], 0)
        self.group_of = dataset.group_of[pairs[:, 0].numpy()]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, j: int) -> Sample:
        i, c = self.pairs[j].tolist()
        if self.by == "scene":
            return self.dataset.without(i, c)
        sample = self.dataset[i]
        kept, name = sample.box_labels != c, f"{sample.name} without {self.classes[c]}"
        image = tv_tensors.wrap(fill(sample.image, self._masks(sample)[c]), like=sample.image)
        masks = None if sample.masks is None else sample.masks[kept]
        boxes = {"boxes": sample.boxes[kept], "box_labels": sample.box_labels[kept], "masks": masks}
        return replace(sample, image=image, labels=self.targets[j], name=name, **boxes)

    def fingerprint(self) -> str:
        code = essence(Path(__file__).read_text(encoding="utf-8"))  # another fill makes other pictures
        return digest([self.dataset.fingerprint(), self.by, self.limit, self.elsewhere, code])

    def _masks(self, sample: Sample) -> dict[int, Tensor | None]:
        """The pixels to fill, bool (H, W), by class of a sample; None where the control has no room."""
        size, result = sample.image.shape[-2:], {}
        for c in sample.box_labels.unique().tolist():
            own = sample.box_labels == c
            mask = boxes = box_mask(sample.boxes[own], size)
            if self.by == "segments":  # an object's edge is soft, and would give it away
                check_value(sample.masks is not None, "by", self.by, f"boxes: {sample.name} has no masks")
                part = (sample.masks[own] > 0).any(0, keepdim=True)
                mask = F.max_pool2d(part.float(), 2 * RIM + 1, 1, RIM)[0] > 0
            result[c] = _elsewhere(mask, boxes) if self.elsewhere else mask
        return result


def _elsewhere(mask: Tensor, taken: Tensor) -> Tensor | None:
    """The mask, moved as far as possible, to where it covers nothing of `taken`; None without room."""
    x1, y1, x2, y2 = mask_box(mask).tolist()
    part, (height, width) = mask[y1:y2, x1:x2], mask.shape
    tops, lefts = (torch.linspace(0, room, SHIFTS).long().tolist() for room in (height - (y2 - y1), width - (x2 - x1)))
    places = [((top - y1) ** 2 + (left - x1) ** 2, top, left) for top in tops for left in lefts]
    for _, top, left in sorted(places, reverse=True):
        here = slice(top, top + y2 - y1), slice(left, left + x2 - x1)
        if not (part & taken[here]).any():
            result = torch.zeros_like(mask)
            result[here] = part
            return result
    return None


def fill(image: Tensor, mask: Tensor) -> Tensor:
    """The image (C, H, W), of its dtype, with the pixels of `mask`, bool (H, W), filled smoothly from its surroundings.

    From coarse to fine, filled pixels repeatedly become the mean of their neighbours. ValueError for a full mask.
    """
    check_value(not mask.all(), "mask", "all of the image", "smaller: nothing is left to fill from")
    pixels, known = image.as_subclass(Tensor).float(), ~mask.as_subclass(Tensor)
    x = _spread((pixels * known)[None], known[None, None].float())[0]
    if mask.any():
        x1, y1, x2, y2 = mask_box(mask).tolist()
        near = ..., slice(max(y1 - 1, 0), y2 + 1), slice(max(x1 - 1, 0), x2 + 1)  # all that changes, and a rim
        part, fixed, stays = x[near], pixels[near], known[near]
        for _ in range(SMOOTHED):
            wide = F.pad(part, (1, 1, 1, 1), mode="replicate")
            rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]  # 4 times as fast as avg_pool2d
            part = torch.where(stays, fixed, (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9)
        x[near] = part
    return x.round().to(image.dtype) if image.dtype == torch.uint8 else x.to(image.dtype)


def _spread(x: Tensor, weight: Tensor) -> Tensor:
    """Pixels of weight 0 get the means of coarser and coarser surroundings."""
    if weight.min() > 0:
        return x / weight
    half = [F.avg_pool2d(part, 2, ceil_mode=True) for part in (x, weight)]
    coarse = F.interpolate(_spread(*half), x.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(weight > 0, x / weight.clamp(min=1e-12), coarse)
