"""Data sets: each item is one Sample; `collate` makes Batches of them."""

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from e2lib.datasets.coco import COCO
from e2lib.datasets.image_folder import ImageFolder
from e2lib.datasets.sample import Batch, Sample, Samples, collate
from e2lib.datasets.scenes import SceneBirds, Scenes
from e2lib.datasets.subsets import Selection, at_most, dilated, few_shot, random_order, with_boxes, with_transform
from e2lib.datasets.transforms import Joint, crop_transform, eval_transform, train_transform
from e2lib.datasets.voc import VOC, VOC_CLASSES, export_voc
from e2lib.datasets.waterbirds import Waterbirds

EMBEDDED = {"scenes": Scenes, "birds": SceneBirds}
ON_DISK = {"voc": VOC, "coco": COCO, "waterbirds": Waterbirds, "imagefolder": ImageFolder}


def load(
    data: str, root: str | Path | None, split: str, size: int, length: int | None = None, seed: int = 0, **kwargs
) -> Dataset:
    """Data set by name, all images of one size: what a notebook or a script with a parameter `data` needs.

    Args:
        data: scenes or birds, embedded; voc, coco, waterbirds or imagefolder under `root`.
        root: folder of the data on disk; None for embedded data.
        split: as the data set names it.
        size: pixels a side. Data on disk is resized, embedded data composed at this size.
        length: how many images: required for embedded data; the most that are taken, at random, of data on disk.
        seed: of the composition, or of the choice of images.
        kwargs: further arguments of the data set (`correlation`, `task`, `classes`, …).

    Raises:
        ValueError: unknown name, missing or superfluous root, missing length.
    """
    if data in EMBEDDED:
        if root is not None or length is None:
            raise ValueError(f"data {data} is embedded: it needs a length and no root; got {length=}, {root=}")
        return EMBEDDED[data](split, length=length, size=size, seed=seed, **kwargs)
    if data not in ON_DISK:
        raise ValueError(f"unknown data {data}; known: {', '.join([*EMBEDDED, *ON_DISK])}")
    if root is None:
        raise ValueError(f"data {data} needs root, a folder with {ON_DISK[data].layout}")
    dataset = ON_DISK[data](root, split, transform=eval_transform(size), **kwargs)
    return dataset if length is None else at_most(dataset, length, seed)


def load_splits(
    data: str,
    root: str | Path | None,
    size: int,
    length: int,
    held_out: int,
    seed: int = 0,
    crops: bool = False,
    **kwargs,
) -> tuple[Dataset, Dataset, Dataset]:
    """Training, validation and test images of a data set by name; no image is in two of them.

    Training images are flipped at random. Half of the embedded birds for validation and test are at the other place, as
    in Waterbirds: `correlation` is that of the training images.

    Args:
        data: as for `load`, as are root, size and kwargs.
        root: folder of the data on disk; None for embedded data.
        size: pixels a side.
        length: how many training images, at most.
        held_out: how many validation images, and how many test images, at most; always the same ones.
        seed: of the training images' composition, or choice.
        crops: train on random crops (`crop_transform`), not on whole images.
        kwargs: further arguments of the data set.

    Raises:
        ValueError: as `load`; a transform among kwargs.

    Notes:
        The labels of COCO's and ImageNet's test images are not public: of COCO and of an imagefolder the val images are
        the test images here, and a tenth of the train images, chosen by seed 0, are for validation.
    """
    if "transform" in kwargs:
        raise ValueError("load_splits sets the transforms itself; with_transform gives a data set another one")
    if data not in ("coco", "imagefolder"):
        train = load(data, root, "train", size, length, seed, **kwargs)
        others = kwargs | {"correlation": 0.5} if data == "birds" else kwargs
        val, test = (load(data, root, split, size, held_out, **others) for split in ("val", "test"))
    else:
        whole = load(data, root, "train", size, **kwargs)
        order = random_order(len(whole), 0)
        tenth = len(whole) // 10
        val, train = (Selection(whole, np.sort(part)) for part in (order[:tenth], order[tenth:]))
        train, val = at_most(train, length, seed), at_most(val, held_out)
        test = load(data, root, "val", size, held_out, **kwargs)
    return with_transform(train, (crop_transform if crops else train_transform)(size)), val, test


__all__ = [
    "COCO",
    "VOC",
    "VOC_CLASSES",
    "Batch",
    "ImageFolder",
    "Joint",
    "Sample",
    "Samples",
    "SceneBirds",
    "Scenes",
    "Selection",
    "Waterbirds",
    "at_most",
    "collate",
    "crop_transform",
    "dilated",
    "eval_transform",
    "export_voc",
    "few_shot",
    "load",
    "load_splits",
    "train_transform",
    "with_boxes",
    "with_transform",
]
