"""COCO and any data set in its format."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from e2lib.boxes import check_boxes
from e2lib.datasets.files import FileDataset, check_files, flatten, need
from e2lib.datasets.sample import Sample

FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
# The two boxes without height in the official train annotations: (image id, y).
EMPTY_IN_COCO = {(200365, 388.33), (550395, 188.56)}


class COCO(FileDataset):
    """COCO (Lin et al., ECCV 2014): photographs of everyday scenes with boxes and segmentation masks.

    Input: photographs of about 640 x 480 pixels. Label: which of 80 classes are present. 2014: train 82,783, val
    40,504 images. Source: cocodataset.org; annotations CC BY 4.0, the photographs under Flickr's terms of use.

    Args:
        root: the folder everything is in.
        split: train or val.
        year: "2014" or "2017".
        annotations: instances JSON relative to root; None: annotations/instances_<split><year>.json.
        images: image folder relative to root; None: <split><year>.
        transform: Sample -> Sample.

    Raises FileNotFoundError naming what is missing, ValueError naming the file and the annotation that is wrong.

    Notes: a crowd annotation (iscrowd) gives its label but no box, as its region is not one object; so do the
    official file's two boxes without height. Images without any object stay, with no label. Masks are None for
    an image with an annotation that has no segmentation.
    """

    layout = (
        "annotations/instances_<split>2014.json and the image folder <split>2014, from cocodataset.org; annotations= "
        "and images= name another file and folder"
    )

    def __init__(
        self,
        root: str | Path,
        split: str,
        year: str = "2014",
        annotations: str | None = None,
        images: str | None = None,
        transform: Callable[[Sample], Sample] | None = None,
    ):
        root = Path(root)
        path = root / (annotations or f"annotations/instances_{split}{year}.json")
        folder = root / (images or f"{split}{year}")
        need(folder, self.layout)
        try:
            content = json.loads(need(path, self.layout).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        for section, fields in FIELDS.items():
            if section not in content:
                raise ValueError(f"{path} lacks the section {section}")
            for entry in content[section]:
                for field in fields:
                    if field not in entry:
                        raise ValueError(f"{path}: {section} entry {entry.get('id')} lacks the field {field}")
        categories = sorted(content["categories"], key=lambda c: c["id"])
        class_of = {c["id"]: k for k, c in enumerate(categories)}
        entries = sorted(content["images"], key=lambda image: image["id"])
        row_of = {image["id"]: row for row, image in enumerate(entries)}
        boxes, box_labels, labels, shapes = ([[] for _ in entries] for _ in range(4))
        for a in tqdm(content["annotations"], desc=f"COCO {split}", delay=5):
            where = f"{path}: annotation {a['id']} of image {a['image_id']}"
            if a["image_id"] not in row_of:
                raise ValueError(f"{where}: no such image in its images section")
            if a["category_id"] not in class_of:
                raise ValueError(f"{where}: unknown class {a['category_id']}; known ids: {sorted(class_of)}")
            row, c = row_of[a["image_id"]], class_of[a["category_id"]]
            labels[row].append(c)
            if len(a["bbox"]) != 4:
                raise ValueError(f"{where}: bbox is {a['bbox']}; need x, y, width, height")
            x, y, w, h = a["bbox"]
            if a.get("iscrowd") or (h == 0 and (a["image_id"], y) in EMPTY_IN_COCO):
                continue
            boxes[row].append([x, y, x + w, y + h])
            box_labels[row].append(c)
            shapes[row].append(json.dumps(a.get("segmentation", [])).encode())
        for entry, found in zip(entries, boxes, strict=True):
            where = f"{path}: image {entry['id']} ({entry['file_name']})"
            check_boxes(torch.tensor(found).reshape(-1, 4), (entry["height"], entry["width"]), where)
        files = [image["file_name"] for image in entries]
        check_files(folder, files)
        super().__init__(
            folder,
            files,
            [c["name"] for c in categories],
            labels,
            boxes,
            box_labels,
            multilabel=True,
            transform=transform,
        )
        self.sizes = np.array([(image["height"], image["width"]) for image in entries])
        shapes = flatten(shapes)[1]  # JSON of each box's segmentation
        self.shape_starts, self.shapes = (
            np.cumsum([0, *map(len, shapes)]),
            np.frombuffer(b"".join(shapes), dtype=np.uint8),
        )

    def masks(self, i: int, size: tuple[int, int]) -> Tensor | None:
        if tuple(self.sizes[i]) != size:
            h, w = self.sizes[i]
            raise ValueError(
                f"image {self.files[i].decode()} has {size[1]} x {size[0]} pixels, its annotations {w} x {h}"
            )
        try:
            import pycocotools.mask
        except ImportError as error:
            raise ImportError("masks of COCO need pycocotools: pip install 'e2lib[coco]'") from error
        masks = []
        for box in range(self.starts[i], self.starts[i + 1]):
            shape = json.loads(self.shapes[self.shape_starts[box] : self.shape_starts[box + 1]].tobytes())
            if not shape:
                return None
            if isinstance(shape, list) or isinstance(shape["counts"], list):  # polygons, uncompressed RLE
                shape = pycocotools.mask.frPyObjects(shape, *size)
            if isinstance(shape, list):
                shape = pycocotools.mask.merge(shape)
            mask = pycocotools.mask.decode(shape)  # uint8 (H, W)
            if mask.shape != size:
                raise ValueError(f"{self.files[i].decode()}: segmentation {mask.shape}, image {size} (height, width)")
            masks.append(torch.from_numpy(mask).bool())
        return torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
