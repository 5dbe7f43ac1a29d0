"""PASCAL VOC, any folder in its format, and the export of any data set to it."""

import os
import re
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from tqdm.auto import tqdm

from e2lib.boxes import check_boxes, mask_box
from e2lib.datasets.files import FileDataset, Folder, Item, need, open_image, read_lines
from e2lib.datasets.sample import Samples, Transform, check_value

VOC_CLASSES = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"]
VOC_CLASSES += ["dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
VOID = 255  # border pixels and difficult objects in the segmentation files
MOST = 254  # objects of an image, and classes, that the segmentation files can number
XML = """<annotation><folder>VOC2007</folder><filename>{}.jpg</filename><segmented>{:d}</segmented>
<size><width>{}</width><height>{}</height><depth>3</depth></size>
{}</annotation>
"""
OBJECT = """<object><name>{}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>
"""


class VOC(FileDataset):
    """PASCAL VOC (Everingham et al., IJCV 2010): photographs with boxes, some with segmentation masks.

    Input: photographs of about 500 x 375 pixels. Label: which of 20 classes are present. 2007: train 2501, val 2510,
    test 4952 images, of which 209, 213 and 210 have masks. Source: host.robots.ox.ac.uk/pascal/VOC, on Flickr's terms.

    root holds VOCdevkit/VOC2007, or itself JPEGImages, Annotations and ImageSets/Main, as VOCdevkit/VOC2012 does; split
    is any list in the latter. By default `classes` are the lines of classes.txt beside Annotations, where `export_voc`
    writes it, else VOC's own. SegmentationClass numbers them from 1. Without `difficult`, the objects that VOC marks as
    difficult give no box and no label, as in VOC's own evaluation.

    Notes: by default difficult objects count like all others, as in the released code of Rao et al., ICCV 2023, which
    never reads the mark. VOC does not segment these objects; their masks are empty.
    """

    layout = "VOCdevkit/VOC2007 with JPEGImages/*.jpg, Annotations/*.xml, ImageSets/Main/<split>.txt"
    layout += ", as the archives of host.robots.ox.ac.uk/pascal/VOC unpack (`make data NAME=voc2007` downloads them)"
    multilabel = True

    def __init__(
        self, root: Folder, split: str, classes: Sequence[str] = (), difficult: bool = True, transform: Transform = None
    ):
        root = Path(root)
        base = root if (root / "Annotations").is_dir() else root / "VOCdevkit" / "VOC2007"
        listing, own = base / "ImageSets" / "Main" / f"{split}.txt", base / "classes.txt"
        if not (names := read_lines(need(listing, self.layout))):
            raise ValueError(f"{listing}: the split is empty")
        classes = classes or (read_lines(own) if own.exists() else VOC_CLASSES)
        items = [_item(base, name, classes, difficult) for name in tqdm(names, desc=f"VOC {split}", delay=5)]
        super().__init__(base / "JPEGImages", items, classes, transform)

    def sources(self, i: int) -> list[Path]:
        base, name = self.folder.parent, self.item(i).file.removesuffix(".jpg")
        return [*super().sources(i), *(base / f"Segmentation{kind}" / f"{name}.png" for kind in ("Object", "Class"))]

    def masks(self, i: int, size: tuple[int, int], item: Item) -> Tensor | None:
        """Masks from SegmentationObject, empty where a box has none; None for an image without that file.

        Most of an object's pixels in SegmentationClass give its class. The k-th object takes the file's k-th box if
        that has its class and holds it, give or take a pixel; else the free box of its class that fits best.
        """
        _, file, other = self.sources(i)
        if not file.exists():
            return None
        objects, classes = _read_indices(file, size), _read_indices(other, size)
        boxes, labels = torch.tensor(item.boxes).reshape(-1, 4), torch.tensor(item.box_labels)
        numbers = torch.tensor(item.shapes)
        masks, free = torch.zeros(len(boxes), *size, dtype=torch.bool), torch.ones(len(boxes), dtype=torch.bool)
        found = []
        for k in sorted({*objects.unique().tolist()} - {0, VOID}):
            mask = objects == k
            c, tight = int(classes[mask].bincount().argmax()) - 1, mask_box(mask).float()
            fit = box_iou(tight[None], boxes)[0].where(labels == c, -1)
            holds = (tight[:2] - boxes[:, :2] >= -1).all(1) & (boxes[:, 2:] - tight[2:] >= -1).all(1)
            fit[(numbers == k) & (labels == c) & holds] = 2  # its own box, above any other
            found.append((k, mask, c, fit))
        for k, mask, c, fit in sorted(found, key=lambda one: 2 not in one[-1]):  # no other object takes an own box
            if not (free & (fit >= 0)).any():
                kind = self.classes[c] if 0 <= c < len(self.classes) else f"index {c + 1}, outside the range of classes"
                raise ValueError(f"{file}: object {k} ({kind}) has no box of its class in Annotations/{file.stem}.xml")
            best = fit.where(free, -1).argmax()
            masks[best], free[best] = mask, False
        return masks


def _item(base: Path, name: str, classes: Sequence[str], difficult: bool) -> Item:
    """The contents of an image's XML file, whose boxes are 1-based and inclusive."""
    path = need(base / "Annotations" / f"{name}.xml", "Annotations/<image>.xml for each image of the split")
    try:
        content: bytes | str = path.read_bytes()
        if declared := re.match(rb"<\?xml[^>]*encoding=[\"']([\w.:-]+)", content):  # expat knows few encodings
            content = content.decode(declared[1].decode())
        root = ET.fromstring(content)
    except (OSError, SyntaxError, ValueError, LookupError) as error:  # the last two concern the encoding
        raise ValueError(f"{path} is not XML: {error}") from error
    check_value(root.tag == "annotation", f"{path}: the root element", root.tag, "annotation")
    boxes, labels, numbers = [], [], []
    for number, item in enumerate(root.findall("object"), 1):
        kind = item.findtext("name", "").strip()
        where = f"{path}: object {number} ({kind})"
        if kind not in classes:
            raise ValueError(f"{where}: unknown class {kind}; known: {', '.join(classes)} (classes=[...] sets others)")
        x1, y1, x2, y2 = (_number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
        check_boxes(torch.tensor([box := [x1 - 1, y1 - 1, x2, y2]]), (0, 0), where)
        if difficult or not _number(item, "difficult", where, "0"):
            boxes.append(box)
            labels.append(classes.index(kind))
            numbers.append(number)
    size = [_number(root, f"size/{side}", str(path), "0") for side in ("height", "width")]
    return Item(f"{name}.jpg", labels, boxes, labels, size, shapes=numbers)


def _number(item: ET.Element, field: str, where: str, missing: str = "nothing") -> float:
    text = item.findtext(field, missing).strip()
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", text):
        raise ValueError(f"{where}: <{field}> must be a number, found {text}")
    return float(text)


def _read_indices(path: Path, size: tuple[int, int]) -> Tensor:
    """Pixel values of an index PNG: int64 (H, W)."""
    image = open_image(need(path, "SegmentationObject and SegmentationClass for the same images"))
    if image.mode not in ("P", "L") or image.size != size[::-1]:
        found, right = f"mode {image.mode}, {image.width} x {image.height} pixels", f"{size[1]} x {size[0]}"
        raise ValueError(f"{path}: {found}; need a palette or grey PNG of indices, {right} as its photograph")
    return torch.from_numpy(np.array(image)).long()


def export_voc(dataset: Samples, folder: Folder, split: str = "train") -> Path:
    """Write a data set as a split of folder/VOCdevkit/VOC2007 and return that path; several splits may share it.

    Photographs become JPEG of quality 95. VOC(folder, split) reads boxes, labels and masks back exactly.
    FileExistsError for a split or an image that is there already. ValueError for a folder of other classes, and a
    sample that VOC cannot hold: overlapping masks, more than 254 boxes or classes, a label without a box, equal names.
    """
    base, classes, main = Path(folder) / "VOCdevkit" / "VOC2007", list(dataset.classes), f"ImageSets/Main/{split}.txt"
    if (base / main).exists():
        raise FileExistsError(f"{base / main} exists; choose another split or folder")
    if (base / "classes.txt").exists() and read_lines(base / "classes.txt") != classes:
        raise ValueError(f"{base / 'classes.txt'} lists other classes than this data set, {', '.join(classes)}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    lists = {"classes.txt": classes, f"ImageSets/Segmentation/{split}.txt": [], main: []}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        work = Path(temporary)
        for sample in map(dataset.__getitem__, tqdm(range(len(dataset)), desc=f"export {split}", delay=5)):
            photograph = f"JPEGImages/{sample.name}.jpg"
            if (base / photograph).exists():
                raise FileExistsError(f"{base / photograph} exists; choose another folder")
            if (work / photograph).exists():
                raise ValueError(f"{sample.name}: two samples have this name")
            _write(sample, classes, work)
            lists[main].append(sample.name)
            lists[f"ImageSets/Segmentation/{split}.txt"] += [sample.name] * (sample.masks is not None)
        for path, lines in lists.items():
            _parents(work / path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        # The split's list is moved last: with it, the split exists.
        for path in sorted(filter(Path.is_file, work.rglob("*")), key=(work / main).__eq__):
            os.replace(path, _parents(base / path.relative_to(work)))
    return base


def _write(sample, classes, folder):
    name, labels, masks = sample.name, sample.box_labels.tolist(), sample.masks
    for text in (name, *classes):
        right = text == text.strip().encode("utf-8", "replace").decode() and text.splitlines() == [text]
        check_value(right, "name", text, "one line of UTF-8, without spaces at either end")
    check_value(not Path(name).is_absolute() and ".." not in Path(name).parts, "name", name, "a path below JPEGImages")
    found = f"{tuple(sample.image.shape)} {sample.image.dtype}"
    right = sample.image.dtype == torch.uint8 and len(sample.image) == 3
    check_value(right, f"image {name}", found, "(3, H, W) torch.uint8")
    if lost := {*sample.present().tolist()} ^ {*labels}:
        raise ValueError(f"{name}: label without box, or box without label, of {classes[min(lost)]}")
    if max(len(labels), len(classes)) > MOST:
        raise ValueError(f"{name}: {len(labels)} boxes, {len(classes)} classes; VOC holds {MOST} of each")
    picture, objects = Image.fromarray(sample.image.permute(1, 2, 0).numpy()), ""
    for c, (x1, y1, x2, y2) in zip(labels, sample.boxes.tolist(), strict=True):
        corners = (int(v) if v == int(v) else v for v in (x1 + 1, y1 + 1, x2, y2))  # 1-based and inclusive
        objects += OBJECT.format(escape(classes[c]), *corners)
    picture.save(_parents(folder / f"JPEGImages/{name}.jpg"), quality=95, subsampling=0)
    text = XML.format(escape(name), masks is not None, *picture.size, objects)
    _parents(folder / f"Annotations/{name}.xml").write_text(text, encoding="utf-8")
    if masks is None:
        return
    check_value(masks.dtype == torch.bool, f"type of the masks of {name}", masks.dtype, "torch.bool")
    if (masks.sum(0) > 1).any():
        raise ValueError(f"{name}: masks overlap; SegmentationObject holds one object per pixel")
    for kind, values in {"Object": range(1, len(labels) + 1), "Class": [c + 1 for c in labels]}.items():
        indices = (masks * torch.tensor(values, dtype=torch.uint8)[:, None, None]).sum(0, dtype=torch.uint8)
        Image.fromarray(indices.numpy()).save(_parents(folder / f"Segmentation{kind}/{name}.png"))


def _parents(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
