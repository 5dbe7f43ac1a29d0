"""PASCAL VOC, any folder in its format, and the export of other data sets into it."""

import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import VOCDetection
from torchvision.ops import box_iou
from tqdm.auto import tqdm

from e2lib.boxes import check_boxes, mask_box
from e2lib.datasets.files import FileDataset, check_files, need
from e2lib.datasets.sample import Sample

VOC_CLASSES = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]
VOC_CLASSES += [
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
INWARD = torch.tensor([1, 1, -1, -1])  # signs of the steps that shrink a box (x1, y1, x2, y2)
VOID = 255  # border pixels and difficult objects in the segmentation files


class VOC(FileDataset):
    """PASCAL VOC (Everingham et al., IJCV 2010): photographs with boxes, some with segmentation masks.

    Input: photographs of about 500 x 375 pixels. Label: which of 20 classes are present. 2007: train 2501, val 2510,
    test 4952 images, of which 209, 213 and 210 have masks. Source: host.robots.ox.ac.uk/pascal/VOC; the photographs
    are under Flickr's terms of use.

    Args:
        root: folder that holds VOCdevkit/VOC<year>, or itself JPEGImages, Annotations and ImageSets/Main.
        split: train, val, trainval, test, or any list in ImageSets/Main.
        year: "2007" ... "2012".
        classes: class names; for segmentation in the order of the indices 1, 2, ... in SegmentationClass. Without
            them those of a file classes.txt beside Annotations, one a line, as `export_voc` writes it, else VOC's own.
        transform: Sample -> Sample.
        download: let torchvision fetch the data when the split is not there.

    Raises FileNotFoundError naming what is missing, ValueError naming the file of an annotation that is wrong.

    Notes: objects marked difficult are kept, as box and label: the images do show them. They have no
    segmentation in VOC, so their masks are empty.
    """

    layout = (
        "VOCdevkit/VOC2007 (or another year) with JPEGImages/*.jpg, Annotations/*.xml and ImageSets/Main/<split>.txt, "
        "as the archives of host.robots.ox.ac.uk/pascal/VOC unpack; download=True fetches them"
    )

    def __init__(
        self,
        root: str | Path,
        split: str,
        year: str = "2007",
        classes: Sequence[str] | None = None,
        transform: Callable[[Sample], Sample] | None = None,
        download: bool = False,
    ):
        root = Path(root)
        base = root if (root / "Annotations").is_dir() else root / "VOCdevkit" / f"VOC{year}"
        listing = base / "ImageSets" / "Main" / f"{split}.txt"
        if download and not listing.exists():
            try:
                VOCDetection(root, year=year, image_set=split, download=True)
            except OSError as error:
                raise ConnectionError(
                    f"downloading VOC{year} failed ({error}); without network, put into {root}: {self.layout}"
                ) from error
        names = [line.strip() for line in need(listing, self.layout).read_text().splitlines() if line.strip()]
        if not names:
            raise ValueError(f"{listing}: the split is empty")
        if classes is None:
            own = base / "classes.txt"
            classes = own.read_text(encoding="utf-8").split("\n")[:-1] if own.exists() else VOC_CLASSES
        boxes, labels = [], []
        for name in tqdm(names, desc=f"VOC {split}", delay=5):
            found = read_annotation(base / "Annotations" / f"{name}.xml", classes)
            boxes.append(found[0])
            labels.append(found[1])
        files = [f"{name}.jpg" for name in names]
        check_files(base / "JPEGImages", files)
        super().__init__(
            base / "JPEGImages",
            files,
            classes,
            labels,
            boxes,
            labels,
            multilabel=True,
            transform=transform,
        )

    def masks(self, i: int, size: tuple[int, int]) -> Tensor | None:
        """Masks from SegmentationObject, empty where a box has none; None for an image without that file.

        An object's class is that of most of its pixels in SegmentationClass. The k-th object's box is the file's k-th
        where that is of this class and holds the object but for a pixel; else the free one of the class that fits best.
        """
        name = self.files[i].decode().removesuffix(".jpg")
        file = self.folder.parent / "SegmentationObject" / f"{name}.png"
        if not file.exists():
            return None
        objects = _read_indices(file, size)
        classes = _read_indices(self.folder.parent / "SegmentationClass" / f"{name}.png", size)
        span = slice(self.starts[i], self.starts[i + 1])
        boxes, labels = self.boxes[span], self.box_labels[span]
        masks, free = torch.zeros(len(boxes), *size, dtype=torch.bool), torch.ones(len(boxes), dtype=torch.bool)
        found = []
        for k in sorted({*objects.unique().tolist()} - {0, VOID}):
            mask = objects == k
            c, tight = int(classes[mask].bincount().argmax()) - 1, mask_box(mask).float()
            fit = box_iou(tight[None], boxes)[0]
            own = k <= len(boxes) and labels[k - 1] == c and ((tight - boxes[k - 1]) * INWARD >= -1).all()
            if own:
                fit[k - 1] = 2  # above any other
            found.append((not own, k, mask, c, fit))
        for _, k, mask, c, fit in sorted(found, key=lambda one: one[:2]):  # no other object takes an own box first
            fit[~free | (labels != c)] = -1
            if len(boxes) == 0 or fit.max() < 0:
                kind = self.classes[c] if 0 <= c < len(self.classes) else f"index {c + 1}, outside the range of classes"
                raise ValueError(f"{file}: object {k} ({kind}) has no box of its class in Annotations/{name}.xml")
            masks[fit.argmax()], free[fit.argmax()] = mask, False
        return masks


def read_annotation(path: Path, classes: Sequence[str]) -> tuple[list[list[float]], list[int]]:
    """Boxes (xyxy half-open; VOC's own are 1-based and inclusive) and class indices of one XML file.

    Raises FileNotFoundError, or ValueError naming the file, the object and the field, class or box that is wrong.
    """
    try:
        objects = ET.parse(need(path, "Annotations/<image>.xml for each image of the split")).findall("object")
    except ET.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from error
    boxes, labels = [], []
    for number, item in enumerate(objects, 1):
        name = item.findtext("name")
        where = f"{path}: object {number} ({name})"
        if name not in classes:
            raise ValueError(f"{where}: unknown class {name}; known: {', '.join(classes)} (classes=[...] sets others)")
        x1, y1, x2, y2 = (_number(item, field, where) for field in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append([x1 - 1, y1 - 1, x2, y2])
        check_boxes(torch.tensor(boxes[-1:]), (float("inf"), float("inf")), where)
        labels.append(classes.index(name))
    return boxes, labels


def _number(item: ET.Element, field: str, where: str) -> float:
    text = item.findtext(f"bndbox/{field}")
    try:
        return float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: <bndbox> needs a number <{field}>, found {text}") from None


def _read_indices(path: Path, size: tuple[int, int]) -> Tensor:
    """Pixel values of an index PNG: int64 (H, W). Raises ValueError naming a file of another mode or size."""
    with Image.open(need(path, "SegmentationObject and SegmentationClass for the same images")) as image:
        if image.mode not in ("P", "L") or image.size != size[::-1]:
            raise ValueError(
                f"{path}: mode {image.mode}, {image.size[0]} x {image.size[1]} pixels; need a palette or grey PNG of "
                f"indices, {size[1]} x {size[0]} as its photograph"
            )
        return torch.from_numpy(np.array(image)).long()


def export_voc(dataset: Dataset, folder: str | Path, split: str = "train") -> Path:
    """Write a data set as a split of folder/VOCdevkit/VOC2007 and return that path; several splits may share it.

    Photographs become JPEG of quality 95; boxes, labels and masks are kept exactly, read back with
    VOC(folder, split). classes.txt names the classes. The list ImageSets/Main/<split>.txt is written last: without
    it the split does not exist.

    Raises FileExistsError naming a split or an image that is there already, ValueError for a folder of other classes,
    or naming a sample that the format cannot hold: overlapping masks, more than 254 boxes or classes, a label without
    a box, equal names.
    """
    base = Path(folder) / "VOCdevkit" / "VOC2007"
    listing = base / "ImageSets" / "Main" / f"{split}.txt"
    if listing.exists():
        raise FileExistsError(f"{listing} exists; choose another split or folder")
    own, names_of_classes = base / "classes.txt", "".join(f"{name}\n" for name in dataset.classes)
    if own.exists() and own.read_text(encoding="utf-8") != names_of_classes:
        raise ValueError(f"{own} lists other classes than this data set, {', '.join(dataset.classes)}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        work = Path(temporary)
        names, segmented, targets = [], [], []
        for i in tqdm(range(len(dataset)), desc=f"export {split}", delay=5):
            sample = dataset[i]
            _export_sample(sample, dataset.classes, work)
            names.append(sample.name)
            targets.append(sample.labels)
            segmented += [sample.name] * (sample.masks is not None)
        if len(set(names)) < len(names):
            raise ValueError(f"{max(names, key=names.count)}: two samples have this name")
        written = sorted(p for p in work.rglob("*") if p.is_file())
        if not own.exists():
            written.append(work / "classes.txt")
            written[-1].write_text(names_of_classes, encoding="utf-8")
        lists = {f"Segmentation/{split}": segmented, f"Main/{split}": names}
        for c, name in enumerate(dataset.classes):  # as the official tools read them: 1 present, -1 absent
            flags = [f"{n} {1 if t[c] else -1:2d}" for n, t in zip(names, targets, strict=True)]
            lists = {f"Main/{name}_{split}": flags} | lists
        for name, lines in lists.items():
            path = _parents(work / "ImageSets" / f"{name}.txt")
            path.write_text("".join(f"{line}\n" for line in lines))
            written.append(path)
        for path in written:
            if (base / path.relative_to(work)).exists():
                raise FileExistsError(f"{base / path.relative_to(work)} exists; choose another folder")
        for path in written:
            os.replace(path, _parents(base / path.relative_to(work)))
    return base


def _export_sample(sample: Sample, classes: Sequence[str], base: Path) -> None:
    if lost := set(sample.labels.nonzero()[:, 0].tolist()) ^ set(sample.box_labels.tolist()):
        raise ValueError(f"{sample.name}: label without box, or box without label, of {classes[min(lost)]}")
    if len(sample.boxes) >= VOID or len(classes) >= VOID:
        raise ValueError(f"{sample.name}: {len(sample.boxes)} boxes, {len(classes)} classes; VOC holds 254 of each")
    height, width = sample.image.shape[-2:]
    picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    picture.save(_parents(base / "JPEGImages" / f"{sample.name}.jpg"), quality=95, subsampling=0)
    root = ET.Element("annotation")
    fields = {"folder": "VOC2007", "filename": f"{sample.name}.jpg", "segmented": int(sample.masks is not None)}
    for field, value in fields.items():
        ET.SubElement(root, field).text = str(value)
    size = ET.SubElement(root, "size")
    for field, value in {"width": width, "height": height, "depth": 3}.items():
        ET.SubElement(size, field).text = str(value)
    for (x1, y1, x2, y2), c in zip(sample.boxes.tolist(), sample.box_labels.tolist(), strict=True):
        item = ET.SubElement(root, "object")
        for field, value in {"name": classes[c], "pose": "Unspecified", "truncated": 0, "difficult": 0}.items():
            ET.SubElement(item, field).text = str(value)
        box = ET.SubElement(item, "bndbox")
        for field, value in {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}.items():
            ET.SubElement(box, field).text = str(int(value) if value == int(value) else value)
    ET.indent(root)
    ET.ElementTree(root).write(_parents(base / "Annotations" / f"{sample.name}.xml"))
    if sample.masks is not None:
        if (sample.masks.sum(0) > 1).any():
            raise ValueError(f"{sample.name}: masks overlap; SegmentationObject holds one object a pixel")
        for kind, values in (("Object", range(1, len(sample.boxes) + 1)), ("Class", (sample.box_labels + 1).tolist())):
            indices = torch.zeros(height, width, dtype=torch.uint8)
            for mask, value in zip(sample.masks, values, strict=True):
                indices[mask] = value
            png = Image.fromarray(indices.numpy(), mode="P")
            png.putpalette(_palette())
            png.save(_parents(base / f"Segmentation{kind}" / f"{sample.name}.png"))


def _palette() -> list[int]:
    """VOC's colour of each index: its bits, three at a time, from the highest bit of red, green, blue downwards."""
    return [
        sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
        for index in range(256)
        for channel in range(3)
    ]


def _parents(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
