"""Data sets: each item is one Sample; `collate` makes Batches of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torchvision.transforms import v2

from e2lib.datasets.coco import COCO
from e2lib.datasets.files import Folder, ImageFolder, check_value
from e2lib.datasets.removal import Without, fill
from e2lib.datasets.sample import Batch, Joint, Sample, Samples, collate
from e2lib.datasets.scenes import SceneBirds, Scenes
from e2lib.datasets.subsets import Selection, at_most, dilated, few_shot, random_order, with_boxes, with_transform
from e2lib.datasets.voc import VOC, VOC_CLASSES, export_voc
from e2lib.datasets.waterbirds import Waterbirds

# Data sets by name; you may add your own. A class with a `layout`, which says what its folder holds, is called as
# kind(root, split, transform=…, …). A class without it is embedded: kind(split, length=…, size=…, seed=…, …).
DATASETS: dict[str, Callable[..., Samples]] = {"scenes": Scenes, "birds": SceneBirds}
DATASETS |= {"voc": VOC, "coco": COCO, "waterbirds": Waterbirds, "imagefolder": ImageFolder}


def eval_transform(size: int) -> Joint:
    """Resize to size x size pixels; the aspect ratio is not kept, so that every object stays in the image."""
    return Joint(v2.Resize((size, size)))


def train_transform(size: int) -> Joint:
    """Resize to size x size pixels, flip with probability 1/2."""
    return Joint(v2.Compose([v2.Resize((size, size)), v2.RandomHorizontalFlip()]))


def crop_transform(size: int) -> Joint:
    """Resize a random part of the image (8 to 100 % of its area) to size x size pixels, flip with probability 1/2."""
    return Joint(v2.Compose([v2.RandomResizedCrop((size, size)), v2.RandomHorizontalFlip()]))


def load(
    data: str, root: Folder | None, split: str, size: int, length: int | None = None, seed: int = 0, **kwargs
) -> Samples:
    """Data set by name, with images of `size` x `size` pixels.

    Data on disk is resized, and at most `length` of its images are drawn at random. Of embedded data, whose root is
    None, `length` images are composed. `seed` is for this choice or composition. kwargs go to the data set.
    ValueError for an unknown name, a missing or superfluous root, a missing length.
    """
    if data not in DATASETS:
        raise ValueError(f"unknown data {data}; known: {', '.join(DATASETS)}")
    kind, root = DATASETS[data], None if root is None else Path(root).expanduser()
    if not (layout := getattr(kind, "layout", None)):
        if root is not None or length is None:
            raise ValueError(f"data {data} is embedded: it needs a length and no root; got {length=}, {root=}")
        return kind(split, length=length, size=size, seed=seed, **kwargs)
    if root is None:
        raise ValueError(f"data {data} needs root, a folder with {layout}")
    dataset = kind(root, split, transform=eval_transform(size), **kwargs)
    return dataset if length is None else at_most(dataset, length, seed)


def load_splits(
    data: str, root: Folder | None, size: int, length: int, held_out: int, seed: int = 0, crops: bool = False, **kwargs
) -> tuple[Samples, Samples, Samples]:
    """Training, validation and test images of a data set by name; no image is in two of them.

    Arguments are those of `load`. There are at most `length` training images, which `seed` composes or chooses, and at
    most `held_out` images each for validation and test, always the same ones. Training images are flipped at random,
    and with `crops` cropped too. `correlation` of the embedded birds is that of the training images; half of the birds
    for validation and test are at the other place, as in Waterbirds. Where the labels of the test images are not public
    (`test_split` of the class is "val"), the val images are for the test, and a tenth of the train images, chosen by
    seed 0, for validation.
    """
    check_value("transform" not in kwargs, "transform", kwargs.get("transform"), "set later, by with_transform")
    if getattr(DATASETS.get(data), "test_split", "test") == "test":
        train = load(data, root, "train", size, length, seed, **kwargs)
        others = kwargs | {"correlation": 0.5} if data == "birds" else kwargs
        val, test = (load(data, root, split, size, held_out, **others) for split in ("val", "test"))
    else:
        whole = load(data, root, "train", size, **kwargs)
        order, tenth = random_order(len(whole), 0), len(whole) // 10
        val, train = (Selection(whole, np.sort(part)) for part in (order[:tenth], order[tenth:]))
        train, val = at_most(train, length, seed), at_most(val, held_out)
        test = load(data, root, "val", size, held_out, **kwargs)
    return with_transform(train, (crop_transform if crops else train_transform)(size)), val, test


__all__ = ["COCO", "DATASETS", "VOC", "VOC_CLASSES", "Batch", "ImageFolder", "Joint", "Sample", "Samples", "Without"]
__all__ += ["SceneBirds", "Scenes", "Selection", "Waterbirds", "at_most", "collate", "crop_transform", "dilated"]
__all__ += ["eval_transform", "export_voc", "few_shot", "load", "load_splits", "random_order", "train_transform"]
__all__ += ["fill", "with_boxes", "with_transform"]
