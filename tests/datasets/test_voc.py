import re

import numpy as np
import pytest
import torch
from PIL import Image

from e2lib.datasets import VOC, VOC_CLASSES

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write(base, name, objects, split="train"):
    """An image of 40 x 30 pixels with (class, (xmin, ymin, xmax, ymax), difficult) objects."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(base / f"JPEGImages/{name}.jpg")
    items = "".join(OBJECT.format(name=n, box=b, difficult=d) for n, b, d in objects)
    (base / f"Annotations/{name}.xml").write_text(f"<annotation><filename>{name}.jpg</filename>{items}</annotation>")
    with open(base / f"ImageSets/Main/{split}.txt", "a") as listing:
        listing.write(f"{name}\n")


def write_masks(base, name, objects, classes):
    for kind, indices in (("Object", objects), ("Class", classes)):
        (base / f"Segmentation{kind}").mkdir(exist_ok=True)
        image = Image.fromarray(indices, mode="P")
        image.putpalette(list(range(256)) * 3)
        image.save(base / f"Segmentation{kind}/{name}.png")


@pytest.fixture
def base(tmp_path):
    base = tmp_path / "VOCdevkit/VOC2007"
    write(base, "000012", [("dog", (1, 1, 10, 20), 0), ("person", (11, 5, 40, 30), 1)])
    write(base, "000017", [("dog", (3, 3, 3, 3), 0)])
    return base


def test_boxes_are_one_based_and_inclusive(tmp_path, base):
    data = VOC(tmp_path, "train")
    assert data.classes == VOC_CLASSES and len(VOC_CLASSES) == 20 and sorted(VOC_CLASSES) == VOC_CLASSES
    assert data.multilabel and not data.groups
    sample = data[0]
    assert sample.boxes.tolist() == [[0, 0, 10, 20], [10, 4, 40, 30]]
    assert [VOC_CLASSES[c] for c in sample.box_labels] == ["dog", "person"]  # the difficult one too
    assert sample.labels.nonzero()[:, 0].tolist() == [VOC_CLASSES.index("dog"), VOC_CLASSES.index("person")]
    assert sample.name == "000012" and sample.masks is None and sample.annotated
    assert data[1].boxes.tolist() == [[2, 2, 3, 3]]
    assert torch.equal(data.targets, torch.stack([s.labels for s in data]))


def test_a_folder_without_devkit_and_with_other_classes(tmp_path, base):
    write(tmp_path / "mine", "a b", [("zebra", (1, 1, 10, 20), 0)], split="all")
    data = VOC(tmp_path / "mine", "all", classes=["yak", "zebra"])
    assert data[0].labels.tolist() == [0, 1] and data[0].name == "a b"
    with pytest.raises(
        ValueError, match=r"a b.xml: object 1 \(zebra\): unknown class zebra; known: aeroplane, .*tvmonitor"
    ):
        VOC(tmp_path / "mine", "all")


def test_masks_come_from_both_segmentation_files(tmp_path, base):
    objects, classes = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    objects[0:20, 0:10], objects[4:30, 10:40], objects[:, 9] = 1, 2, 255
    classes[0:20, 0:10], classes[4:30, 10:40], classes[:, 9] = 12, 15, 255  # dog, person
    without = VOC(tmp_path, "train").fingerprint()
    write_masks(base, "000012", objects, classes)
    data = VOC(tmp_path, "train")
    assert data[1].masks is None and data.fingerprint() != without
    assert torch.equal(data[0].masks, torch.from_numpy(np.stack([objects == 1, objects == 2])))
    write_masks(base, "000012", np.where(objects == 1, 2, np.where(objects == 2, 1, objects)).astype(np.uint8), classes)
    assert torch.equal(data[0].masks, torch.from_numpy(np.stack([objects == 1, objects == 2])))  # in another order
    objects[objects == 2] = 255
    write_masks(base, "000012", objects, classes)
    assert data[0].masks.any((1, 2)).tolist() == [True, False]  # a difficult object


def test_two_objects_of_one_class_go_to_their_boxes(tmp_path, base):
    write(base, "2", [("dog", (1, 1, 10, 20), 0), ("dog", (21, 5, 40, 30), 0)])
    objects, classes = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    objects[4:30, 20:40], objects[0:20, 0:10] = 1, 2  # against the order of the boxes
    classes[objects > 0] = 12
    write_masks(base, "2", objects, classes)
    assert torch.equal(VOC(tmp_path, "train")[2].masks, torch.from_numpy(np.stack([objects == 2, objects == 1])))


def test_bad_masks_are_named(tmp_path, base):
    data = VOC(tmp_path, "train")
    objects = np.zeros((30, 40), np.uint8)
    objects[5:9, 5:9] = 1
    write_masks(base, "000012", objects, objects * 8)
    with pytest.raises(ValueError, match=r"SegmentationObject/000012.png: object 1 \(cat\) has no box of its class"):
        data[0]
    write_masks(base, "000012", objects, objects * 99)
    with pytest.raises(ValueError, match="object 1 .index 99, outside the range"):
        data[0]
    write_masks(base, "000012", objects[:20], objects[:20])
    with pytest.raises(ValueError, match="000012.png: mode P, 40 x 20 pixels; need .*40 x 30"):
        data[0]
    Image.new("RGB", (40, 30)).save(base / "SegmentationObject/000012.png")
    with pytest.raises(ValueError, match="000012.png: mode RGB"):
        data[0]
    write_masks(base, "000012", objects, objects * 12)
    (base / "SegmentationClass/000012.png").unlink()
    with pytest.raises(FileNotFoundError, match="SegmentationClass/000012.png"):
        data[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<bndbox>.*</bndbox>", "", r"000012.xml: object 1 \(dog\): <bndbox/xmin> must be a number, found nothing"),
        ("<ymax>20</ymax>", "", r"000012.xml: object 1 \(dog\): <bndbox/ymax> must be a number, found nothing"),
        ("<ymax>20</ymax>", "<ymax>tall</ymax>", "<bndbox/ymax> must be a number, found tall"),
        ("<ymax>20</ymax>", "<ymax>nan</ymax>", r"000012.xml: object 1 \(dog\): box .* is not finite"),
        ("<xmin>1</xmin>", "<xmin>15</xmin>", r"000012.xml: object 1 \(dog\): box .* is inverted"),
        ("<xmin>1</xmin>", "<xmin>11</xmin>", r"000012.xml: object 1 \(dog\): box .* is empty"),
        ("<xmax>40</xmax>", "<xmax>80</xmax>", "000012.jpg: box .* reaches outside"),
        ("<name>dog</name>", "<name>dgo</name>", r"000012.xml: object 1 \(dgo\): unknown class dgo"),
        ("<name>dog</name>", "", r"000012.xml: object 1 \(None\): unknown class None"),
        ("</annotation>", "", "000012.xml is not XML"),
        ("^", '<?xml version="1.0" encoding="nonsense"?>', "000012.xml is not XML: unknown encoding"),
        ("<object>", "<size><width>30</width><height>40</height></size><object>", "EXIF orientation may be the cause"),
        ("<object>", "<size><width>30</width><height>tall</height></size><object>", "size/height> must be a number"),
    ],
)
def test_bad_annotations_are_named(tmp_path, base, old, new, message):
    path = base / "Annotations/000012.xml"
    text = re.sub(old, new, path.read_text(), count=1)
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(VOC(tmp_path, "train"))


def test_missing_files_are_named(tmp_path, base):
    with pytest.raises(FileNotFoundError, match="Main/test.txt does not exist.*host.robots.ox.ac.uk"):
        VOC(tmp_path, "test")
    (base / "ImageSets/Main/val.txt").write_text("\n")
    with pytest.raises(ValueError, match="val.txt: the split is empty"):
        VOC(tmp_path, "val")
    (base / "JPEGImages/000017.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="000017.jpg is missing"):
        VOC(tmp_path, "train")
    (base / "Annotations/000017.xml").unlink()
    with pytest.raises(FileNotFoundError, match="000017.xml does not exist"):
        VOC(tmp_path, "train")
