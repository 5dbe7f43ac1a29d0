"""COCO and any data set in its format."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from e2lib.boxes import check_boxes
from e2lib.datasets.files import FileDataset, Folder, Item, check_unique, need
from e2lib.datasets.sample import Transform, check_value

ID, NUMBER, TEXT, LIST = (int, str), (int, float), (str,), (list,)
LARGE = 1e9  # every size and coordinate is below; NaN is not
MUST = {ID: "a whole number or a text", NUMBER: f"a number below {LARGE:g}", TEXT: "a text", LIST: "a list"}
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "categories": {"id": ID, "name": TEXT},
    "images": {"id": ID, "file_name": TEXT, "height": NUMBER, "width": NUMBER},
    "annotations": {"id": ID, "image_id": ID, "category_id": ID, "bbox": LIST},
}
# The two boxes without height in the official train annotations: (image id, y).
EMPTY_IN_COCO = {(200365, 388.33), (550395, 188.56)}


class COCO(FileDataset):
    """COCO (Lin et al., ECCV 2014): photographs of everyday scenes with boxes and segmentation masks.

    Input: photographs of about 640 x 480 pixels. Label: which of 80 classes are present. 2014: train 82,783, val
    40,504 images; 2017: 118,287 and 5,000, the same photographs. Source: cocodataset.org; annotations CC BY 4.0, the
    photographs under Flickr's terms of use.

    By default `year` is the only one for which root has both annotations and images. ValueError for two, as train2017
    holds most of val2014. `annotations` and `images` name another JSON file and image folder, relative to root.

    Notes: a crowd annotation (iscrowd) gives its label but no box, as its region is not one object; the code of Rao et
    al., ICCV 2023, takes its box. The official file's two boxes without height give labels only. An image with an
    unsegmented box has masks None.
    """

    layout = "annotations/instances_<split>2014.json and the image folder <split>2014, or both of 2017, from "
    layout += "cocodataset.org"
    test_split = "val"  # the labels of the test images are not public
    multilabel = True

    def __init__(
        self,
        root: Folder,
        split: str,
        year: str = "",
        annotations: str = "",
        images: str = "",
        transform: Transform = None,
    ):
        root = Path(root)
        names = (path.stem.removeprefix("instances_") for path in root.glob("annotations/instances_*20??.json"))
        years = [year] if year else sorted({name[-4:] for name in names if (root / name).is_dir()})
        check_value(len(years) < 2, f"{root}: year", years, "one of these; year= chooses")
        year = (years or ["2014"])[0]
        folder = need(root / (images or f"{split}{year}"), self.layout)
        path = need(root / (annotations or f"annotations/instances_{split}{year}.json"), self.layout)
        try:
            content = json.loads(path.read_bytes(), object_pairs_hook=_object)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        categories, pictures, objects = (_by_id(path, content, section) for section in FIELDS)
        class_of, self.path = {number: c for c, number in enumerate(sorted(categories))}, path
        check_unique(names := [categories[number]["name"] for number in class_of], f"{path}: names of categories")
        items = {i: Item(p["file_name"], [], size=(p["height"], p["width"])) for i, p in sorted(pictures.items())}
        for number, a in tqdm(objects.items(), desc=f"COCO {split}", delay=5):
            image, kind = a["image_id"], a["category_id"]
            where = f"{path}: annotation {number} of image {image}"
            if image not in items:
                raise ValueError(f"{where}: {image!r} is no id of its images")
            if kind not in class_of:
                raise ValueError(f"{where}: unknown class {kind!r}; known ids: {sorted(class_of)}")
            right = len(a["bbox"]) == 4 and all(map(_is_pixel, a["bbox"]))
            check_value(right, f"{where}: bbox", a["bbox"], "x, y, width, height, in pixels")
            check_value(a.get("iscrowd", 0) in (0, 1), f"{where}: iscrowd", a.get("iscrowd"), "0 or 1")
            x, y, w, h = a["bbox"]
            items[image].labels.append(class_of[kind])
            if not a.get("iscrowd") and not (h == 0 and (image, y) in EMPTY_IN_COCO):
                items[image].boxes.append([x, y, x + w, y + h])
                items[image].box_labels.append(class_of[kind])
                items[image].shapes.append([number, a.get("segmentation")])
        for i, item in items.items():
            check_boxes(torch.tensor(item.boxes).reshape(-1, 4), item.size, f"{path}: image {i} ({item.file})")
        super().__init__(folder, [*items.values()], names, transform)

    def masks(self, i: int, size: tuple[int, int], item: Item) -> Tensor | None:
        """The decoded segmentations. Raises ImportError for polygons without pycocotools."""
        if not all(shape for _, shape in item.shapes):
            return None
        where = f"{self.path}: image {item.file}, annotation"
        found = [_decode(shape, size, f"{where} {number}: segmentation") for number, shape in item.shapes]
        return torch.from_numpy(np.array(found, dtype=bool).reshape(-1, *size))


def _is_pixel(value):
    return type(value) in NUMBER and abs(value) < LARGE


def _object(pairs):
    check_unique([key for key, _ in pairs], "a key of an object")
    return dict(pairs)


def _by_id(path: Path, content: dict, section: str) -> dict[int | str, dict]:
    entries = content.get(section) if isinstance(content, dict) else None
    check_value(isinstance(entries, list), f"{path}: section {section}", type(entries).__name__, "a list")
    found: dict[int | str, dict] = {}
    for position, entry in enumerate(entries):
        about = entry if isinstance(entry, dict) else {}
        for field, kinds in FIELDS[section].items():
            value = about.get(field)
            right = type(value) in kinds and value != "" and (kinds != NUMBER or abs(value) < LARGE)
            check_value(right, f"{path}: {section} entry {about.get('id', position)}: {field}", value, MUST[kinds])
        if found.setdefault(entry["id"], entry) is not entry:
            raise ValueError(f"{path}: two {section} with the id {entry['id']}: {found[entry['id']]} and {entry}")
    types = {type(number).__name__: number for number in found}
    check_value(len(types) < 2, f"{path}: types of the ids of {section}", types, "one type")
    return found


def _decode(shape: list | dict, size: tuple[int, int], where: str) -> np.ndarray:
    """Mask of polygons or run lengths (RLE), compressed or not: bool or uint8 (H, W)."""
    if isinstance(shape, dict):
        check_value(shape.get("size") == [*size], f"{where}: size", shape.get("size"), f"{[*size]}, as the image")
        counts = shape.get("counts")
        counts = _runs(counts) if isinstance(counts, str) else counts
        right = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
        right = right and sum(counts) == size[0] * size[1]
        check_value(right, f"{where}: counts", counts, f"runs of {size[0] * size[1]} pixels in all")
        return np.repeat(np.arange(len(counts)) % 2, counts).reshape(size[::-1]).T
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("segmentations of COCO need pycocotools: pip install 'e2lib[coco]'") from error
    right = isinstance(shape, list) and all(isinstance(part, list) and len(part) >= 6 for part in shape)
    right = right and all(len(part) % 2 == 0 and all(map(_is_pixel, part)) for part in shape)
    check_value(right, where, shape, "a list of polygons [x1, y1, x2, y2, x3, y3, ...]")
    x, y = (np.array([v for part in shape for v in part[axis::2]]) for axis in (0, 1))
    check_boxes(torch.tensor([[x.min(), y.min(), x.max(), y.max()]]), size, where)
    return mask.decode(mask.merge(mask.frPyObjects(shape, *size)))


def _runs(text: str) -> list[int]:
    """The counts of a compressed RLE: signed, 5 bits per character; from the fourth on less the count two before."""
    counts: list[int] = []
    value = shift = 0
    for code in (ord(letter) - 48 for letter in text):
        value, shift = value | (code & 31) << shift, shift + 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
