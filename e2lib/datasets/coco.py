"""COCO and any data set in its format."""

import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from e2lib.boxes import check_boxes
from e2lib.datasets.files import FileDataset, Folder, Item, Transform, check_value, need

FIELDS = {"categories": ["id", "name"], "images": ["id", "file_name", "height", "width"]}
FIELDS |= {"annotations": ["id", "image_id", "category_id", "bbox"]}
# The two boxes without height in the official train annotations: (image id, y).
EMPTY_IN_COCO = {(200365, 388.33), (550395, 188.56)}


class COCO(FileDataset):
    """COCO (Lin et al., ECCV 2014): photographs of everyday scenes with boxes and segmentation masks.

    Input: photographs of about 640 x 480 pixels. Label: which of 80 classes are present. 2014: train 82,783, val
    40,504 images. Source: cocodataset.org; annotations CC BY 4.0, the photographs under Flickr's terms of use.

    `annotations` and `images` name another JSON file of instances and another image folder, relative to root.

    Notes: a crowd annotation (iscrowd) gives its label but no box, as its region is not one object; so do the official
    file's two boxes without height. An image with an unsegmented box has masks None.
    """

    layout = "annotations/instances_<split>2014.json and the image folder <split>2014, from cocodataset.org"
    test_split = "val"  # the labels of the test images are not public
    multilabel = True

    def __init__(
        self,
        root: Folder,
        split: str,
        year: str = "2014",
        annotations: str = "",
        images: str = "",
        transform: Transform = None,
    ):
        folder = need(Path(root) / (images or f"{split}{year}"), self.layout)
        path = need(Path(root) / (annotations or f"annotations/instances_{split}{year}.json"), self.layout)
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        categories, pictures, objects = (_by_id(path, content, section) for section in FIELDS)
        class_of = {number: c for c, number in enumerate(sorted(categories))}
        items = {i: Item(p["file_name"], [], size=(p["height"], p["width"])) for i, p in sorted(pictures.items())}
        for number, a in tqdm(objects.items(), desc=f"COCO {split}", delay=5):
            image, kind = a["image_id"], a["category_id"]
            where = f"{path}: annotation {number} of image {image}"
            if image not in items:
                raise ValueError(f"{where}: no such image in its images section")
            if kind not in class_of:
                raise ValueError(f"{where}: unknown class {kind}; known ids: {sorted(class_of)}")
            check_value(len(a["bbox"]) == 4, f"{where}: bbox", a["bbox"], "x, y, width, height")
            x, y, w, h = a["bbox"]
            items[image].labels.append(class_of[kind])
            if not a.get("iscrowd") and not (h == 0 and (image, y) in EMPTY_IN_COCO):
                items[image].boxes.append([x, y, x + w, y + h])
                items[image].box_labels.append(class_of[kind])
                items[image].shapes.append(a.get("segmentation", []))
        for i, item in items.items():
            check_boxes(torch.tensor(item.boxes).reshape(-1, 4), item.size, f"{path}: image {i} ({item.file})")
        super().__init__(folder, [*items.values()], [categories[i]["name"] for i in class_of], transform)

    def masks(self, i: int, size: tuple[int, int], item: Item) -> Tensor | None:
        """The decoded segmentations. Raises ImportError without pycocotools."""
        if not all(item.shapes):
            return None
        return torch.stack([torch.zeros(size).bool(), *(_decode(shape, size, item.file) for shape in item.shapes)])[1:]


def _by_id(path: Path, content: dict, section: str) -> dict[int, dict]:
    if section not in content:
        raise ValueError(f"{path} lacks the section {section}")
    found = {}
    for entry in content[section]:
        if lacking := [field for field in FIELDS[section] if field not in entry]:
            raise ValueError(f"{path}: {section} entry {entry.get('id')} lacks the field {lacking[0]}")
        if found.setdefault(entry["id"], entry) is not entry:
            raise ValueError(f"{path}: two {section} with the id {entry['id']}: {found[entry['id']]} and {entry}")
    return found


def _decode(shape: list | dict, size: tuple[int, int], file: str) -> Tensor:
    """Mask of polygons or run lengths (RLE), compressed or not: bool (H, W)."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("segmentations of COCO need pycocotools: pip install 'e2lib[coco]'") from error
    if isinstance(shape, list) or isinstance(shape["counts"], list):  # polygons, uncompressed RLE
        shape = mask.frPyObjects(shape, *size)
    found = mask.decode(mask.merge(shape) if isinstance(shape, list) else shape)  # uint8 (H, W)
    if found.shape != size:
        raise ValueError(f"{file}: segmentation {found.shape}, image {size} (height, width)")
    return torch.from_numpy(found).bool()
