"""Every data set gives one Sample per image. Transforms move its parts together, and `collate` makes Batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from e2lib.boxes import box_masks, check_boxes, corners, mask_box
from e2lib.disk import digest

ROUNDING = 1e-3  # resized float images may leave [0, 1] by this much


def check_value(right: bool, name: str, value: object, must: str) -> None:
    """Raises ValueError that names a parameter, its value, and what it must be, unless it is right."""
    if not right:
        raise ValueError(f"{name} is {value!r}; it must be {must}")


@dataclass
class Sample:
    """One image and what is known about it; image and labels are enough.

    Boxes of another format (XYWH, CXCYWH) become xyxy; plain tensors count as xyxy in pixels of the image. Masks
    without boxes get the boxes around them. Without `box_labels`, every box is of the image's only class.
    Raises ValueError for boxes without a class, unequal numbers of boxes and masks, and values outside the ranges.
    """

    image: Tensor  # tv_tensors.Image, uint8 (3, H, W) RGB or float in [0, 1]; or features (C, h, w) of any range
    labels: Tensor  # uint8 (C,) multi-hot, one-hot for single-label data; or the index of the only class, int64 ()
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # tv_tensors.BoundingBoxes, float32 (N, 4)
    box_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # int64 (N,)
    masks: Tensor | None = None  # (N, H, W), one per box: bool, or soft, float in [0, 1]; None without segmentation
    group: int = -1  # index into the data set's groups, -1 when it has none
    name: str = ""  # stable id of the image
    annotated: bool = True  # False: its boxes may not be used for guidance
    maps: Tensor | None = None  # float32 (K, H, W): a teacher's explanation of its top class (`e2lib.frozen`)
    logits: Tensor | None = None  # float32 (C,): a teacher's

    def __post_init__(self):
        boxes, masks, name = self.boxes, self.masks, self.name
        if masks is not None and len(masks) > len(boxes) == 0:
            boxes = torch.stack([mask_box(mask > 0) for mask in masks])
        self.boxes = boxes = _xyxy(boxes, (self.image if masks is None else masks).shape[-2:])
        if len(boxes) and not len(self.box_labels):
            only = self.present()
            if len(only) != 1:
                raise ValueError(f"image {name!r} has {len(only)} labels; give box_labels, the class of each box")
            self.box_labels = only.expand(len(boxes))
        n, classes, shapes = len(boxes), len(self.box_labels), len(boxes if masks is None else masks)
        if not n == classes == shapes:
            raise ValueError(f"image {name!r} has {n} boxes, {classes} box_labels and {shapes} masks")
        if n and self.labels.ndim and not 0 <= self.box_labels.min() <= self.box_labels.max() < len(self.labels):
            raise ValueError(f"image {name!r} has box_labels {self.box_labels.tolist()} of {len(self.labels)} classes")
        if masks is not None and masks.shape[-2:] != boxes.canvas_size:
            raise ValueError(f"image {name!r} has masks {(*masks.shape,)}; its boxes are for {boxes.canvas_size}")
        if masks is not None and masks.dtype != torch.bool and not ((masks >= 0) & (masks <= 1)).all():
            raise ValueError(f"image {name!r} has masks from {masks.min()} to {masks.max()}; need 0 to 1, or bool")

    def present(self) -> Tensor:
        """The classes in the image: int64 (K,)."""
        return self.labels.nonzero()[:, 0] if self.labels.ndim else self.labels[None]


Transform = Callable[[Sample], Sample] | None


def _xyxy(boxes: Tensor, size: Sequence[int]) -> tv_tensors.BoundingBoxes:
    """Boxes of any format, or a plain tensor of xyxy in an image of size (H, W), as xyxy BoundingBoxes."""
    size = getattr(boxes, "canvas_size", tuple(size))
    return tv_tensors.BoundingBoxes(corners(boxes).float(), format="XYXY", canvas_size=size)


@dataclass
class Joint:
    """Apply a torchvision v2 transform to image, boxes, masks and maps at once.

    The transform gets image, {boxes, labels, masks, maps}, with one label per box. A box that leaves the image is
    dropped with its mask and label. The image keeps its class labels, although a crop may no longer show the object.
    ValueError where the transform drops boxes without their labels, or returns no tv_tensors.BoundingBoxes.
    """

    steps: v2.Transform

    def __call__(self, sample: Sample) -> Sample:
        # torchvision would transform only the first of plain tensors, or none.
        parts = ((tv_tensors.Image, sample.image), (tv_tensors.Mask, sample.masks), (tv_tensors.Image, sample.maps))
        image, masks, maps = (part if part is None else kind(part) for kind, part in parts)
        target = {"boxes": sample.boxes, "labels": sample.box_labels, "masks": masks, "maps": maps}
        image, target = self.steps(image, target)
        boxes, labels, masks, maps = (target[name] for name in ("boxes", "labels", "masks", "maps"))
        found = [type(image).__name__, type(boxes).__name__]
        right = isinstance(image, Tensor) and isinstance(boxes, tv_tensors.BoundingBoxes)
        check_value(right, f"image {sample.name!r} and its boxes, transformed", found, "a Tensor and BoundingBoxes")
        counts = [len(part) for part in (boxes, labels, masks) if part is not None]
        if len({*counts}) > 1:
            left = f"image {sample.name!r}: the transform left {counts} boxes, labels and masks"
            raise ValueError(f"{left}; SanitizeBoundingBoxes must keep its labels_getter, so that labels follow")
        boxes = _xyxy(boxes, boxes.canvas_size)
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, masks = tv_tensors.wrap(boxes[kept], like=boxes), None if masks is None else tv_tensors.Mask(masks[kept])
        return replace(sample, image=image, boxes=boxes, box_labels=labels[kept], masks=masks, maps=maps)


def check_transform(transform: Transform) -> Transform:
    """Return the transform. ValueError for one of torchvision's, which would not change Samples: `Joint` applies it."""
    check_value(not isinstance(transform, v2.Transform), "transform", transform, "a function of a Sample, Joint(it)")
    return transform


class Samples(Dataset):
    """A data set of your own: `classes`, `__len__` and `__getitem__(i) -> Sample` are enough.

    Unless a data set defines its own, the rest is derived here by reading every item once. `with_transform` replaces
    the attribute `transform`, a callable Sample -> Sample or None, which `__getitem__` applies.
    """

    classes: Sequence[str]  # names
    groups: Sequence[str] = ()  # names; none where the data has no groups
    annotated: np.ndarray | None = None  # bool (len,), whose boxes may be used; None if only Samples tell

    def __iter__(self) -> Iterator[Sample]:  # without it, an IndexError in an item would end the loop
        return (self[i] for i in range(len(self)))

    @cached_property
    def targets(self) -> Tensor:
        """Labels of all images: uint8 (len, C), multi-hot."""
        labels = torch.stack([self[i].labels for i in range(len(self))])
        return (labels if labels.ndim == 2 else F.one_hot(labels, len(self.classes))).to(torch.uint8)

    @cached_property
    def multilabel(self) -> bool:
        """Whether an image may show several classes, or none."""
        return bool((self.targets.sum(1) != 1).any())

    @cached_property
    def group_of(self) -> np.ndarray:
        """The group of each image: int64 (len,)."""
        return np.array([self[i].group for i in range(len(self))])

    def images_with(self, c: int) -> np.ndarray:
        """Positions of the images that show class `c`: int64 (n,), increasing."""
        return self.targets[:, c].nonzero()[:, 0].numpy()

    def fingerprint(self) -> str:
        """Text that changes with the transformed images and with what is known about them."""
        return digest([digest(vars(self[i])) for i in range(len(self))])


@dataclass
class Batch:
    """Samples of one size, stacked: by `collate` from Samples, by `Batch.of` from tensors."""

    images: Tensor  # float32 (B, 3, H, W) in [0, 1]; or features (B, C, h, w) of any range
    labels: Tensor  # uint8 (B, C), multi-hot; or class indices int64 (B,)
    boxes: list[Tensor]  # B x float32 (N, 4)
    box_labels: list[Tensor]  # B x int64 (N,)
    masks: list[Tensor | None] | None  # B x bool or float (N, H, W), or None; None where no image has any
    groups: Tensor  # int64 (B,)
    annotated: Tensor  # bool (B,)
    names: list[str]
    size: tuple[int, int]  # H, W of the images in pixels, in which boxes are given
    maps: Tensor | None = None  # float32 (B, K, H, W), where the Samples have some
    logits: Tensor | None = None  # float32 (B, C), where the Samples have some

    @classmethod
    def of(
        cls,
        images: Tensor,
        labels: Tensor | Sequence[int],
        boxes: Tensor | Sequence[Tensor | None] | None = None,
        box_labels: Sequence[Tensor | None] | None = None,
        masks: Tensor | Sequence[Tensor | None] | None = None,
        groups: Sequence[int] | Tensor | None = None,
        annotated: Sequence[bool] | Tensor | None = None,
        names: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> "Batch":
        """A Batch of tensors, for a training loop of your own; images and labels are enough.

        Each argument has one entry per image, as in a Sample, or None. Boxes may also be (B, 4), one per image, or
        (B, N, 4), and masks (B, H, W), where an empty mask means none. Images may be uint8. Features need `size`, the
        (H, W) of their images. ValueError for an argument of another length, and for what Sample and `collate` refuse.
        """
        size, count, labels = tuple(size or images.shape[-2:]), len(images), torch.as_tensor(labels)
        if isinstance(boxes, Tensor):
            if boxes.ndim not in (2, 3) or boxes.shape[-1] != 4:
                raise ValueError(f"boxes are {tuple(boxes.shape)}; a tensor of them must be (B, 4) or (B, N, 4)")
            boxes = boxes if boxes.ndim == 3 else _xyxy(boxes, size).as_subclass(Tensor)[:, None]
        if isinstance(masks, Tensor) and masks.ndim == 3:
            masks = [mask[None] if mask.any() else None for mask in masks]
        none = torch.zeros(0, 4, device=images.device)
        boxes = [_xyxy(none if one is None else one, size) for one in ([None] * count if boxes is None else boxes)]
        given = dict(image=images, labels=labels, boxes=boxes, box_labels=box_labels, masks=masks, group=groups)
        given |= dict(annotated=annotated, name=names or [str(i) for i in range(count)])
        given = {name: values for name, values in given.items() if values is not None}
        for name, values in given.items():
            if len(values) != count:
                raise ValueError(f"Batch.of has {count} images, and {name} for {len(values)}")
        fields = [{name: v[i] for name, v in given.items() if v[i] is not None} for i in range(count)]
        return collate([Sample(**one) for one in fields]).to(images.device)

    def to(self, device: torch.device | str) -> "Batch":
        """Copy with every tensor on `device`."""
        return Batch(**tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), vars(self)))

    def hot(self, count: int) -> Tensor:
        """Labels for a network of `count` classes: float32 (B, count) of 0 and 1. ValueError for other labels."""
        index = self.labels.ndim == 1
        if index and ((self.labels < 0) | (self.labels >= count)).any() or not index and self.labels.shape[1] != count:
            found = f"{self.labels.min()} to {self.labels.max()}" if index else tuple(self.labels.shape)
            raise ValueError(f"labels are {found}; the network gives {count} logits per image")
        return F.one_hot(self.labels.long(), count).float() if index else self.labels.float()

    def present(self) -> Tensor:
        """The classes in each image, filled up with -1: int64 (B, K), K of the image with most classes, at least 1."""
        if self.labels.ndim == 1:
            return self.labels[:, None]
        found = [labels.nonzero()[:, 0] for labels in self.labels]
        found.append(found[0].new_empty(1))  # so that K is at least 1
        return pad_sequence(found, batch_first=True, padding_value=-1)[:-1]

    def class_masks(self, classes: Tensor, segmentation: bool = False) -> Tensor:
        """Union of each class's boxes: classes int64 (B,) or (B, K) -> bool (B, 1 or K, H, W); empty without boxes.

        With `segmentation`, the union of its masks, of soft ones the maximum, float. ValueError where no image has any.
        """
        if segmentation and self.masks is None:
            raise ValueError("segmentation masks were asked for, but no image of this batch has any")
        wanted = classes.reshape(len(self.names), -1)
        image = torch.repeat_interleave(torch.tensor([len(labels) for labels in self.box_labels]))  # of each box
        box, k = (torch.cat(self.box_labels)[:, None] == wanted[image]).nonzero().T
        if segmentation:
            empty = [torch.zeros(len(labels), *self.size, dtype=torch.bool) for labels in self.box_labels]
            known = zip(self.masks, empty, strict=True)
            shapes = torch.cat([none.to(box.device) if masks is None else masks for masks, none in known])[box]
        else:
            shapes = box_masks(torch.cat(self.boxes)[box], self.size)
        result = shapes.new_zeros(*wanted.shape, *self.size)
        for i, j, shape in zip(image[box.cpu()].tolist(), k.tolist(), shapes, strict=True):
            result[i, j] = torch.maximum(result[i, j], shape)
        return result


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a Batch. ValueError for no sample, and for an image that does not fit: its name and why."""
    check_value(len(samples) > 0, "the number of images in a batch", len(samples), "at least 1")
    for item in samples:
        check_value(isinstance(item, Sample), "an item of the data set", type(item).__name__, "a datasets.Sample")
    shape, size = samples[0].image.shape, samples[0].boxes.canvas_size
    pixels = samples[0].image.dtype == torch.uint8
    first = [(*x.shape, x.dtype) for x in (samples[0].image, samples[0].labels)]
    for s in samples:
        if first != (other := [(*x.shape, x.dtype) for x in (s.image, s.labels)]):
            found = f"image and labels of {samples[0].name} are {first}, of {s.name} {other}"
            raise ValueError(f"images of one batch must have one size: {found}; give the data set a resizing transform")
        if s.boxes.canvas_size != (wanted := tuple(shape[-2:]) if pixels else size):
            raise ValueError(f"boxes of {s.name} are given for {s.boxes.canvas_size} pixels (H, W), not for {wanted}")
    boxes = [s.boxes.as_subclass(Tensor) for s in samples]
    every = torch.cat(boxes)
    start, end, corner = every[:, :2], every[:, 2:], every.new_tensor([side or torch.inf for side in size[::-1]])
    right = ((start < end) & (start < corner) & (end > 0)).all() and every.isfinite().all()
    if not right or (len(every) and every.max() <= 1):
        for s, own in zip(samples, boxes, strict=True):
            check_boxes(own, size, f"image {s.name}")
    images = torch.stack([s.image.as_subclass(Tensor) for s in samples]).float()
    images = images / 255 if pixels else images
    if not pixels and tuple(shape) == (3, *size):
        for s, low, high in zip(samples, *(f((1, 2, 3)).tolist() for f in (images.amin, images.amax)), strict=True):
            if not -ROUNDING <= low <= high <= 1 + ROUNDING:
                wanted = "float images must be in [0, 1]; nn.Sequential(v2.Normalize(mean, std), net) normalises them"
                raise ValueError(f"image {s.name} lies in [{low:.3g}, {high:.3g}]; {wanted}")
    masks = [None if s.masks is None else s.masks.as_subclass(Tensor) for s in samples]
    masks = masks if any(mask is not None for mask in masks) else None
    labels, box_labels = torch.stack([s.labels for s in samples]), [s.box_labels for s in samples]
    groups, annotated = (torch.tensor([getattr(s, name) for s in samples]) for name in ("group", "annotated"))
    batch = Batch(images, labels, boxes, box_labels, masks, groups, annotated, [s.name for s in samples], size)
    if all(s.maps is not None for s in samples):
        batch.maps = torch.stack([s.maps.as_subclass(Tensor) for s in samples])
        batch.logits = torch.stack([s.logits for s in samples])
    return batch
