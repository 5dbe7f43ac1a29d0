"""Transforms that move a Sample's image, boxes and masks together."""

from dataclasses import dataclass, replace

from torchvision import tv_tensors
from torchvision.transforms import v2

from e2lib.datasets.sample import Sample


@dataclass
class Joint:
    """Apply a torchvision v2 transform to image, boxes, masks and maps at once.

    A box that leaves the image is dropped with its mask and box label. The image keeps its class labels, although a
    random crop may not show the object any more.
    """

    steps: v2.Transform

    def __call__(self, sample: Sample) -> Sample:
        # Of plain tensors torchvision would transform the first alone, or none.
        parts = ((tv_tensors.Image, sample.image), (tv_tensors.Mask, sample.masks), (tv_tensors.Image, sample.maps))
        image, masks, maps = (part if part is None else kind(part) for kind, part in parts)
        image, boxes, masks, maps = self.steps(image, sample.boxes, masks, maps)
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, masks = tv_tensors.wrap(boxes[kept], like=boxes), None if masks is None else tv_tensors.Mask(masks[kept])
        return replace(sample, image=image, boxes=boxes, box_labels=sample.box_labels[kept], masks=masks, maps=maps)


def eval_transform(size: int) -> Joint:
    """Resize to size x size pixels; the aspect ratio is not kept, so that every object stays in the image."""
    return Joint(v2.Resize((size, size)))


def train_transform(size: int) -> Joint:
    """Resize to size x size pixels, flip with probability 1/2."""
    return Joint(v2.Compose([v2.Resize((size, size)), v2.RandomHorizontalFlip()]))


def crop_transform(size: int) -> Joint:
    """Resize a random part of the image (8 to 100 % of its area) to size x size pixels, flip with probability 1/2."""
    return Joint(v2.Compose([v2.RandomResizedCrop((size, size)), v2.RandomHorizontalFlip()]))
