"""Write any data set of Samples in the format of PASCAL VOC."""

import os
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from PIL import Image
from tqdm.auto import tqdm

from e2lib.datasets.files import Folder, read_lines
from e2lib.datasets.sample import Samples

MOST = 254  # objects of an image, and classes, that the segmentation files can number
XML = """<annotation><folder>VOC2007</folder><filename>{}.jpg</filename><segmented>{:d}</segmented>
<size><width>{}</width><height>{}</height><depth>3</depth></size>
{}</annotation>
"""
OBJECT = """<object><name>{}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>
"""


def export_voc(dataset: Samples, folder: Folder, split: str = "train") -> Path:
    """Write a data set as a split of folder/VOCdevkit/VOC2007 and return that path; several splits may share it.

    Photographs become JPEG of quality 95. VOC(folder, split) reads boxes, labels and masks back exactly.
    Raises FileExistsError for a split or an image that is there already, ValueError for a folder of other classes or a
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
        # The list of the split is moved last, as it makes the split exist.
        for path in sorted(filter(Path.is_file, work.rglob("*")), key=(work / main).__eq__):
            os.replace(path, _parents(base / path.relative_to(work)))
    return base


def _write(sample, classes, folder):
    name, labels, masks = sample.name, sample.box_labels.tolist(), sample.masks
    if lost := set(sample.labels.nonzero()[:, 0].tolist()) ^ set(labels):
        raise ValueError(f"{name}: label without box, or box without label, of {classes[min(lost)]}")
    if max(len(labels), len(classes)) > MOST:
        raise ValueError(f"{name}: {len(labels)} boxes, {len(classes)} classes; VOC holds {MOST} of each")
    if masks is not None and (masks.sum(0) > 1).any():
        raise ValueError(f"{name}: masks overlap; SegmentationObject holds one object per pixel")
    picture, objects = Image.fromarray(sample.image.permute(1, 2, 0).numpy()), ""
    for c, (x1, y1, x2, y2) in zip(labels, sample.boxes.tolist(), strict=True):
        corners = (int(v) if v == int(v) else v for v in (x1 + 1, y1 + 1, x2, y2))  # 1-based and inclusive
        objects += OBJECT.format(escape(classes[c]), *corners)
    picture.save(_parents(folder / f"JPEGImages/{name}.jpg"), quality=95, subsampling=0)
    text = XML.format(escape(name), masks is not None, *picture.size, objects)
    _parents(folder / f"Annotations/{name}.xml").write_text(text, encoding="utf-8")
    for kind, values in {"Object": range(1, len(labels) + 1), "Class": [c + 1 for c in labels]}.items():
        if masks is not None:
            indices = (masks * torch.tensor(values, dtype=torch.uint8)[:, None, None]).sum(0, dtype=torch.uint8)
            Image.fromarray(indices.numpy()).save(_parents(folder / f"Segmentation{kind}/{name}.png"))


def _parents(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
