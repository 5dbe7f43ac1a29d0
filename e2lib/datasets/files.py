"""The common part of data sets on disk: image files with boxes known beforehand. The simplest is ImageFolder."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from tqdm.auto import tqdm

from e2lib.boxes import check_boxes
from e2lib.datasets.sample import Sample, Samples, Transform, check_transform, check_value
from e2lib.disk import digest

Folder = str | Path
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def need(path: Path, layout: str) -> Path:
    """Return `path`; FileNotFoundError, with what the data folder must hold, if it does not exist."""
    if not os.path.exists(path):  # Path.exists would raise OSError for a name too long for the disk
        raise FileNotFoundError(f"{path} does not exist; the data folder must hold {layout}")
    return path


def check_unique(names: Sequence[str], where: str) -> None:
    """ValueError, with `where`, if a name occurs twice."""
    check_value(not isinstance(names, str), where, names, "a list of names")
    if len({*names}) < len(names):
        raise ValueError(f"{where}: {Counter(names).most_common(1)[0][0]!r} occurs twice; once is right")


def read_text(path: Path) -> str:
    """A text file's content without a byte order mark. ValueError, with the path, for a file that is not UTF-8."""
    try:
        if "\0" not in (text := path.read_text(encoding="utf-8-sig")):
            return text
        raise UnicodeError("it has NUL characters")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path} cannot be read as a text in UTF-8: {error}") from error


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, without blank lines and spaces at either end. Raises ValueError for a line that recurs."""
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    check_unique(lines, str(path))
    return lines


def read_rows(path: Path, columns: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, str]]:
    """Rows of a CSV file. Each of `columns` must be there once, with the values listed, or with any text for none."""
    reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    try:
        rows = [(f"{path} line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} after line {reader.line_num}: {error}") from error
    found = reader.fieldnames or []
    for column, known in (columns or {}).items():
        check_value(found.count(column) == 1, f"{path}: the first line", found, f"names of columns, with one {column}")
        for where, row in rows:
            right, must = row[column] in known if known else row[column], f"one of {known}" if known else "a text"
            check_value(bool(right), f"{where}: {column}", row[column], must)
            check_value(None not in row, where, [*row.values()], f"of {len(found)} columns, as the first line")
    return [row for _, row in rows]


def open_image(path: Path) -> Image.Image:
    """Decode an image file. Raises FileNotFoundError or ValueError naming it."""
    try:
        with Image.open(path) as image:
            image.load()
        return image
    except FileNotFoundError:
        raise FileNotFoundError(f"image {path} is missing") from None
    except Exception as error:  # PIL raises many kinds, such as SyntaxError for a broken PNG
        raise ValueError(f"image {path} cannot be decoded: {error}") from error


def read_image(path: Path) -> tv_tensors.Image:
    """Pixels as the file stores them: uint8 (3, H, W) RGB. Raises FileNotFoundError or ValueError naming the file.

    EXIF orientation and transparency are ignored. 16-bit grey values give their upper 8 bits.
    """
    image = open_image(path)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"image {path} has mode {image.mode}; save it with 8 bits per colour")
    return tv_tensors.Image(torch.from_numpy(np.array(image.convert("RGB"))).movedim(2, 0).contiguous())


@dataclass
class Item:
    """What is known about an image before it is read."""

    file: str  # path relative to the images' folder; without the suffix it is the Sample's name
    labels: list[int]  # classes in the image
    boxes: list[Sequence[float]] = field(default_factory=list)  # xyxy
    box_labels: list[int] = field(default_factory=list)
    size: Sequence[int] = (0, 0)  # height and width according to the annotations, 0 where they do not say
    group: int = -1
    shapes: list = field(default_factory=list)  # what `FileDataset.masks` reads the mask of each box from


class FileDataset(Samples):
    """Images under `folder`, read at each access. FileNotFoundError names a missing file, ValueError a wrong entry."""

    layout: str  # what the data folder must hold
    multilabel = False
    boxed = True  # False: the data has no boxes, and no Sample is `annotated`

    def __init__(self, folder: Path, items: Sequence[Item], classes: Sequence[str], transform: Transform = None):
        if not items:
            raise ValueError(f"{folder}: the split is empty")
        check_unique([item.file for item in items], f"images in {folder}")
        check_unique(classes, f"classes of {folder}")
        present: dict[Path, set[str]] = {}  # the names in each folder; on some disks asking for each file is slow
        for path in (folder / item.file for item in items):
            if path.parent not in present:
                present[path.parent] = {*os.listdir(path.parent)} if os.path.isdir(path.parent) else set()
            if path.name not in present[path.parent]:
                raise FileNotFoundError(f"image {path} is missing")
        self.folder, self.classes, self.transform = folder, list(classes), check_transform(transform)
        # All is kept in arrays, which DataLoader workers share. They would copy Python objects as they read them.
        self.group_of = np.array([item.group for item in items])
        # Labels of all images end to end, and the position of the image that each belongs to.
        self.labels = np.array([label for item in items for label in item.labels], dtype=np.int64)
        self.label_of = np.repeat(np.arange(len(items)), [len(item.labels) for item in items])
        texts = [json.dumps(vars(item), default=lambda value: value.tolist()).encode() for item in items]
        self.ends, self.texts = np.cumsum([0, *map(len, texts)]), np.frombuffer(b"".join(texts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.group_of)

    def item(self, i: int) -> Item:
        """What is known about image `i`."""
        return Item(**json.loads(self.texts[self.ends[i] : self.ends[i + 1]].tobytes()))

    @property
    def targets(self) -> Tensor:  # not kept: those of ImageNet take over a gigabyte
        targets = torch.zeros(len(self), len(self.classes), dtype=torch.uint8)
        targets[self.label_of, self.labels] = 1
        return targets

    def images_with(self, c: int) -> np.ndarray:
        return np.unique(self.label_of[self.labels == c])

    def sources(self, i: int) -> list[Path]:
        """The files that image `i` and its masks are read from. Those of masks need not exist."""
        return [self.folder / self.item(i).file]

    def fingerprint(self) -> str:
        """Like that of Samples, but with names, sizes and times of files in place of pixels."""
        found = [path.stat() if path.exists() else None for i in range(len(self)) for path in self.sources(i)]
        stats = np.array([(s.st_size, s.st_mtime_ns) if s else (-1, -1) for s in found])
        about = [self.classes, self.groups, self.multilabel, self.boxed, self.transform]
        return digest([*about, self.ends, self.texts, stats])

    def masks(self, i: int, size: tuple[int, int], item: Item) -> Tensor | None:
        """Segmentation of image `i` of size (H, W), one mask for each box of its `item`: bool (N, H, W), or None."""
        return None

    def __getitem__(self, i: int) -> Sample:
        i = range(len(self))[i]
        item = self.item(i)
        image = read_image(self.folder / item.file)
        size, known = tuple(image.shape[-2:]), tuple(item.size)
        if all(known) and known != size:
            found = f"{size[1]} x {size[0]} pixels, its annotations {known[1]:g} x {known[0]:g}"
            turned = "; an EXIF orientation may be the cause" if size[::-1] == known else ""
            raise ValueError(f"image {self.folder / item.file} has {found}{turned}")
        boxes = check_boxes(torch.tensor(item.boxes).float().reshape(-1, 4), size, str(self.folder / item.file))
        box_labels, masks = torch.tensor(item.box_labels, dtype=torch.int64), self.masks(i, size, item)
        labels = torch.zeros(len(self.classes), dtype=torch.uint8)
        labels[item.labels] = 1
        masks, name = None if masks is None else tv_tensors.Mask(masks), os.path.splitext(item.file)[0]
        sample = Sample(image, labels, boxes, box_labels, masks, item.group, name, self.boxed)
        return sample if self.transform is None else self.transform(sample)


class ImageFolder(FileDataset):
    """Images sorted into class folders, as ImageNet, Imagenette and SUN397 are; no boxes, no groups.

    A class is a folder with images, named by its path: b/balcony/exterior (SUN397). A WordNet id of ImageNet becomes
    ImageNet's first word for it: n01440764 is tench. Files of other types, and what is hidden or in __MACOSX, are
    ignored. `classes` are the folders in order, by default those of all splits (the folders beside `split`), sorted.
    ValueError for an unknown class, a class folder without images, and an image outside a class folder.
    """

    layout = "<split>/<class>/*.jpg, or <class>/*.jpg without a split"
    test_split = "val"  # the labels of ImageNet's test images are not public
    boxed = False

    def __init__(self, root: Folder, split: str = "", classes: Sequence[str] = (), transform: Transform = None):
        folder = need(Path(root) / split, self.layout)
        found = _list(folder)
        if stray := found.pop(".", None):
            raise ValueError(f"{folder / stray[0]} is in no class folder; expected {folder}/<class>/{stray[0]}")
        if empty := [name for name in found if not found[name]]:
            raise ValueError(f"class folder {folder / empty[0]} has no images")
        if not classes:
            beside = [p for p in folder.parent.iterdir() if p.is_dir() and not _hidden(p.name)] if split else []
            others = [_list(path) for path in beside if path != folder]
            named = {name for other in others for name, images in other.items() if images}
            classes = sorted((named | {*found}) - {"."})
        if unknown := sorted({*found} - {*classes}):
            raise ValueError(f"{folder / unknown[0]}: unknown class {unknown[0]}; known: {', '.join(classes)}")
        number = {name: [c] for c, name in enumerate(classes)}
        items = [Item(f"{name}/{image}", number[name]) for name in sorted(found) for image in found[name]]
        super().__init__(folder, items, classes, transform)
        self.classes = _words(self.classes)


def _words(folders: list[str]) -> list[str]:
    """ImageNet's words for WordNet ids. Two classes are "crane", and two "maillot"; ids tell them apart."""
    from timm.data import ImageNetInfo  # takes a second

    known = ImageNetInfo().label_descriptions(as_dict=True)
    words = [known[f].partition(",")[0] if f in known else f for f in folders]
    return [f"{word} ({f})" if words.count(word) > 1 else word for word, f in zip(words, folders, strict=True)]


def _list(folder: Path) -> dict[str, list[str]]:
    """Images of each folder below `folder` that has images or no folders; "." is `folder` itself."""
    found = {}
    for path, below, names in tqdm(os.walk(folder, followlinks=True), desc=f"listing {folder.name}", delay=5):
        below[:] = [name for name in below if not _hidden(name)]
        for link in (Path(path, name).absolute() for name in below if os.path.islink(os.path.join(path, name))):
            if link.resolve() in [parent.resolve() for parent in link.parents]:
                raise ValueError(f"{link} is a link back to {link.resolve()}, a folder that it is in; remove it")
        images = sorted(name for name in names if not _hidden(name) and name.lower().endswith(SUFFIXES))
        if images or not below:
            found[Path(path).relative_to(folder).as_posix()] = images
    return found


def _hidden(name):
    return name.startswith(".") or name == "__MACOSX"
