"""What every data set gives: one Sample an image, and their Batch.

A data set here is a torch Dataset of Samples with
    classes     list[str]
    groups      list[str], empty when the data has none
    group_of    int64 (len,) numpy, the group of each image, where the data has groups
    multilabel  bool: several classes may be present in one image
    targets     uint8 (len, C), multi-hot labels of all images, known without decoding one
    images_with(c)  int64 (n,), increasing positions of the images that show class c; small also where targets is not
    transform   a callable Sample -> Sample, or None
    fingerprint()  str that tells these images, as they are transformed, from others without decoding one
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors

from e2lib.boxes import box_mask


@dataclass
class Sample:
    """One image and what is known about it."""

    image: tv_tensors.Image  # uint8 (3, H, W) RGB; or what stands for it: float16 (C, h, w) features of it
    labels: Tensor  # uint8 (C,) multi-hot; one-hot for single-label data
    boxes: tv_tensors.BoundingBoxes  # float32 (N, 4) xyxy half-open, in pixels; N may be 0
    box_labels: Tensor  # int64 (N,) class of each box
    masks: tv_tensors.Mask | None  # bool (N, H, W), one a box; None when the image has no segmentation
    group: int  # index into the data set's groups, -1 when it has none
    name: str  # stable id of the image
    annotated: bool = True  # False: its boxes may not be used for guidance
    maps: tv_tensors.Image | None = None  # float32 (K, H, W): a teacher's explanation of its top class (`e2lib.frozen`)
    logits: Tensor | None = None  # float32 (C,): a teacher's


@dataclass
class Batch:
    """Samples of one size, stacked."""

    images: Tensor  # float32 (B, 3, H, W) in [0, 1]; or features (B, C, h, w) of any range
    labels: Tensor  # uint8 (B, C)
    boxes: list[Tensor]  # B x float32 (N, 4)
    box_labels: list[Tensor]  # B x int64 (N,)
    masks: list[Tensor | None] | None  # B x bool (N, H, W), None for images without; None when no image has any
    groups: Tensor  # int64 (B,)
    annotated: Tensor  # bool (B,)
    names: list[str]
    size: tuple[int, int]  # H, W of the images in pixels, in which boxes are given
    maps: Tensor | None = None  # float32 (B, K, H, W), where the Samples have some
    logits: Tensor | None = None  # float32 (B, C), where the Samples have some

    def to(self, device: torch.device | str) -> "Batch":
        """Copy with every tensor on `device`."""

        def move(value):
            if isinstance(value, list):
                return [move(v) for v in value]
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return Batch(**{name: move(value) for name, value in vars(self).items()})

    def present(self) -> Tensor:
        """The classes in each image, to be explained: int64 (B, K), filled up with -1.

        K is the number of classes in the fullest image, at least 1.
        """
        found = [labels.nonzero()[:, 0] for labels in self.labels]
        found.append(found[0].new_empty(1))  # so that K is at least 1
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1)[:-1]

    def class_masks(self, classes: Tensor, segmentation: bool = False) -> Tensor:
        """Where each class is: classes int64 (B,) or (B, K) -> bool (B, 1 or K, H, W).

        The union of the class's boxes in the image, or of its segmentation masks. All False for class -1, for a
        class without boxes and, with `segmentation`, for an image without masks. Raises ValueError when
        `segmentation` is asked of a batch in which no image has masks.
        """
        if segmentation and self.masks is None:
            raise ValueError("segmentation masks were asked for, but no image of this batch has any")
        result = []
        for i, wanted in enumerate(classes.reshape(len(self.names), -1).tolist()):
            for c in wanted:
                chosen = self.box_labels[i] == c
                if not segmentation:
                    result.append(box_mask(self.boxes[i][chosen], self.size))
                elif self.masks[i] is None:
                    result.append(torch.zeros(self.size, dtype=torch.bool, device=self.images.device))
                else:
                    result.append(self.masks[i][chosen].any(0))
        return torch.stack(result).unflatten(0, (len(self.names), -1))  # (B*K, H, W) -> (B, K, H, W)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a Batch. Raises ValueError naming two images of different sizes."""
    for s in samples:
        if s.image.shape != samples[0].image.shape:
            raise ValueError(
                f"images of one batch must have one size: {samples[0].name} is {tuple(samples[0].image.shape)}, "
                f"{s.name} is {tuple(s.image.shape)}; give the data set a transform that resizes"
            )
    masks = [None if s.masks is None else s.masks.as_subclass(Tensor) for s in samples]
    images = torch.stack([s.image.as_subclass(Tensor) for s in samples])
    pixels = images.dtype == torch.uint8
    frozen = all(s.maps is not None for s in samples)
    return Batch(
        images=images.float() / 255 if pixels else images.float(),
        labels=torch.stack([s.labels for s in samples]),
        boxes=[s.boxes.as_subclass(Tensor) for s in samples],
        box_labels=[s.box_labels for s in samples],
        masks=None if all(m is None for m in masks) else masks,
        groups=torch.tensor([s.group for s in samples]),
        annotated=torch.tensor([s.annotated for s in samples]),
        names=[s.name for s in samples],
        size=tuple(images.shape[-2:]) if pixels else samples[0].boxes.canvas_size,
        maps=torch.stack([s.maps.as_subclass(Tensor) for s in samples]) if frozen else None,
        logits=torch.stack([s.logits for s in samples]) if frozen else None,
    )
