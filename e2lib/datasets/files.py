"""What the data sets on disk have in common: a list of image files, boxes known beforehand, one read an item.

Everything about the images is held in a few flat arrays, not in lists of objects: DataLoader workers share arrays,
whereas touching a Python object's reference count copies its memory page into each worker.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from e2lib.boxes import check_boxes
from e2lib.datasets.sample import Sample


def need(path: Path, layout: str) -> Path:
    """Return `path`. Raises FileNotFoundError that says what to put where when it does not exist."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; the data folder must hold {layout}")
    return path


def read_image(path: Path) -> tv_tensors.Image:
    """Decode an image: uint8 (3, H, W) RGB. Raises FileNotFoundError or ValueError naming the file."""
    try:
        with Image.open(path) as image:
            array = np.array(np.asarray(image.convert("RGB")).transpose(2, 0, 1), order="C")  # (3, H, W)
    except FileNotFoundError:
        raise FileNotFoundError(f"image {path} is missing") from None
    except (OSError, SyntaxError) as error:  # PIL reports a broken PNG as a SyntaxError
        raise ValueError(f"image {path} is truncated or not an image: {error}") from error
    return tv_tensors.Image(torch.from_numpy(array))


class FileDataset(Dataset):
    """Images under `folder`, streamed: every item is read from disk anew.

    Args:
        folder: the images' folder.
        files: their paths relative to it; a Sample's name is its path without the suffix.
        classes: class names.
        labels: the classes present in each image.
        boxes: each image's boxes, xyxy; None: the data has no boxes, and no Sample is `annotated`.
        box_labels: the class of each of them.
        groups: group names.
        group_of: one group index an image.
        multilabel: several classes may be present in one image.
        transform: Sample -> Sample.

    Raises ValueError when there are no files, FileNotFoundError naming the first file that is missing.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        classes: Sequence[str],
        labels: Sequence[Sequence[int]],
        boxes: Sequence[Sequence[Sequence[float]]] | None = None,
        box_labels: Sequence[Sequence[int]] | None = None,
        groups: Sequence[str] = (),
        group_of: Sequence[int] | None = None,
        multilabel: bool = False,
        transform: Callable[[Sample], Sample] | None = None,
    ):
        if len(files) == 0:
            raise ValueError(f"{folder}: the split is empty")
        self.folder, self.classes, self.groups, self.multilabel = folder, list(classes), list(groups), multilabel
        self.transform, self.boxed = transform, boxes is not None
        self.files = np.array([f.encode() for f in files])
        self.group_of = np.full(len(files), -1) if group_of is None else np.asarray(group_of)
        self.label_starts, labels = flatten(labels)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.starts, boxes = flatten(boxes or [()] * len(files))  # image i has the boxes starts[i] : starts[i + 1]
        self.boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        self.box_labels = torch.tensor(flatten(box_labels or ())[1], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def targets(self) -> Tensor:
        """Labels of all images: uint8 (len, C). Built when asked for: those of ImageNet take over a gigabyte."""
        targets = torch.zeros(len(self), len(self.classes), dtype=torch.uint8)
        targets[np.repeat(np.arange(len(self)), np.diff(self.label_starts)), self.labels] = 1
        return targets

    def images_with(self, c: int) -> np.ndarray:
        """Positions of the images that show class `c`: int64 (n,), increasing."""
        entries = (self.labels == c).nonzero()[:, 0].numpy()
        return np.unique(np.searchsorted(self.label_starts, entries, side="right") - 1)

    def fingerprint(self) -> str:
        """Tells these images from others by their files' names, sizes and times, labels, boxes and transform."""
        stats = [os.stat(self.folder / file.decode()) for file in self.files]
        files = [(file.decode(), s.st_size, s.st_mtime_ns) for file, s in zip(self.files, stats, strict=True)]
        parts = (self.label_starts, self.labels, self.starts, self.boxes, self.box_labels, self.group_of)
        known = [self.classes, self.groups, self.multilabel, self.boxed, *(part.tolist() for part in parts)]
        return f"{files} {known} {self.transform}"

    def masks(self, i: int, size: tuple[int, int]) -> Tensor | None:
        """Segmentation of image `i` of size (H, W), one mask a box: bool (N, H, W), or None."""
        return None

    def __getitem__(self, i: int) -> Sample:
        i = range(len(self))[i]
        file = self.files[i].decode()
        image = read_image(self.folder / file)
        size = tuple(image.shape[-2:])
        span = slice(self.starts[i], self.starts[i + 1])
        boxes, masks = check_boxes(self.boxes[span], size, str(self.folder / file)), self.masks(i, size)
        labels = torch.zeros(len(self.classes), dtype=torch.uint8)
        labels[self.labels[self.label_starts[i] : self.label_starts[i + 1]]] = 1
        sample = Sample(
            image=image,
            labels=labels,
            boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            box_labels=self.box_labels[span],
            masks=None if masks is None else tv_tensors.Mask(masks),
            group=int(self.group_of[i]),
            name=os.path.splitext(file)[0],
            annotated=self.boxed,
        )
        return sample if self.transform is None else self.transform(sample)


def check_files(folder: Path, files: Sequence[str]) -> None:
    """Raises FileNotFoundError naming the first of `files` that is not in `folder`."""
    present: dict[Path, set[str]] = {}
    for file in files:
        path = folder / file
        if path.parent not in present:
            present[path.parent] = {p.name for p in need(path.parent, f"image {file}").iterdir()}
        if path.name not in present[path.parent]:
            raise FileNotFoundError(f"image {path} is missing")


def flatten(lists: Sequence[Sequence]) -> tuple[np.ndarray, list]:
    """Lists end to end: (starts int64 (len + 1,), all entries); list i is entries[starts[i] : starts[i + 1]]."""
    return np.cumsum([0, *map(len, lists)]), [entry for one in lists for entry in one]
