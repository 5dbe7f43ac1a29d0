"""Boxes to pixels: the one place that turns coordinates into masks.

A box is (x1, y1, x2, y2) in pixel units, half-open: the box (0, 0, 1, 1) is exactly the image's first pixel.
"""

import math

import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image


def corners(boxes: Tensor) -> Tensor:
    """Boxes (N, 4) or (4,) as a plain tensor (N, 4): tv_tensors.BoundingBoxes by their format, others as they are."""
    if boxes.numel() and boxes.shape[-1] != 4:
        raise ValueError(f"boxes are {tuple(boxes.shape)}; need (N, 4)")
    plain = boxes.as_subclass(Tensor).reshape(-1, 4)
    return box_convert(plain, boxes.format.value.lower(), "xyxy") if hasattr(boxes, "format") else plain


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask of each box: boxes (N, 4), size (H, W) -> bool (N, H, W).

    A pixel is inside when its centre is. A box too thin to hold a centre covers the pixels around its own middle.
    """

    def inside(lo: Tensor, hi: Tensor, length: int) -> Tensor:  # (N,), (N,) -> (N, length)
        pixel = torch.arange(length, device=boxes.device)
        middle = (((lo + hi) / 2).ceil() - 1).clamp(0, length - 1)
        return ((pixel + 0.5 >= lo[:, None]) & (pixel + 0.5 < hi[:, None])) | (pixel == middle[:, None])

    x1, y1, x2, y2 = corners(boxes).unbind(1)
    return inside(y1, y2, size[0])[:, :, None] & inside(x1, x2, size[1])[:, None, :]


def box_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Union of the boxes' masks: boxes (N, 4), size (H, W) -> bool (H, W), all False for N = 0."""
    return box_masks(boxes, size).any(0)


def dilate(boxes: Tensor, fraction: float, size: tuple[int, int]) -> Tensor:
    """Move sides out by `fraction` ≥ 0 of width or height, clipped to size (H, W). 0.5 doubles both (Rao et al.)."""
    if not fraction >= 0:
        raise ValueError(f"dilation fraction is {fraction}; it must be 0 or more (0.1 moves each side out by 10 %)")
    boxes = corners(boxes)
    wider = (boxes[:, 2:] - boxes[:, :2]) * fraction
    return clip_boxes_to_image(torch.cat([boxes[:, :2] - wider, boxes[:, 2:] + wider], 1), size)


def mask_box(mask: Tensor) -> Tensor:
    """Tight box of a mask: (H, W) -> int64 (4,). Raises ValueError when the mask is empty."""
    y, x = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if len(y) == 0:
        raise ValueError("an empty mask has no box")
    return torch.stack([x[0], y[0], x[-1] + 1, y[-1] + 1])


def check_boxes(boxes: Tensor, size: tuple[float, float], where: str) -> Tensor:
    """Return boxes (N, 4) clipped to an image of size (H, W), where 0 means unknown.

    ValueError, with `where`, for a box that is not finite, inverted or empty, in shares of the sides (0.1 to 0.9), or
    outside the image: as a whole, or by more than one pixel and more than a tenth of its side, which annotators do not
    draw (CUB: up to 8 %).
    """
    height, width = (side or math.inf for side in size)
    clipped = clip_boxes_to_image(boxes, (height, width))
    for box, inner in zip(boxes.tolist(), clipped.tolist(), strict=True):
        sides = [box[2] - box[0], box[3] - box[1]]
        outside = [abs(a - b) > max(1, 0.1 * side) for a, b, side in zip(box, inner, sides * 2, strict=True)]
        faults = {"is not finite": not all(map(math.isfinite, box)), "is inverted": min(sides) < 0}
        gone, shares = inner[2] <= inner[0] or inner[3] <= inner[1], max(box) <= 1 and any(side % 1 for side in box)
        faults |= {"is in shares of the sides, not in pixels": shares, "is empty": min(sides) == 0}
        faults |= {"reaches outside the image": any(outside) or gone}
        if found := [fault for fault, wrong in faults.items() if wrong]:
            right = f"0 <= x1 < x2 <= {width} (width) and 0 <= y1 < y2 <= {height} (height)"
            raise ValueError(f"{where}: box (x1, y1, x2, y2) = {tuple(box)} {found[0]}; need {right}")
    return clipped
