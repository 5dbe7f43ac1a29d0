import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.datasets import VOCDetection, VOCSegmentation

from e2lib.datasets import VOC, VOC_CLASSES, Sample, SceneBirds, Scenes, dilated, export_voc
from e2lib.datasets.scenes import CATEGORIES

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


def test_difficult_objects_count_unless_they_are_left_out(tmp_path, base):
    write(base, "3", [("dog", (1, 1, 10, 20), 1), ("cat", (11, 5, 40, 30), 1), ("dog", (4, 2, 20, 20), 0)])
    write(base, "4", [("dog", (1, 1, 10, 20), 1)])
    objects, classes = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    objects[1:20, 3:10], classes[1:20, 3:10] = 3, 12  # VOC numbers difficult objects, and does not segment them
    write_masks(base, "3", objects, classes)
    everything, easy = (VOC(tmp_path, "train", difficult=difficult) for difficult in (True, False))
    assert [len(s.boxes) for s in everything] == [2, 1, 3, 1] and [len(s.boxes) for s in easy] == [1, 1, 1, 0]
    dog, cat = VOC_CLASSES.index("dog"), VOC_CLASSES.index("cat")
    assert sorted(everything[2].present().tolist()) == [cat, dog] and easy[2].present().tolist() == [dog]
    assert easy[2].boxes.tolist() == [[3, 1, 20, 20]] and torch.equal(easy[2].masks[0], torch.from_numpy(objects == 3))
    assert torch.equal(everything[2].masks, torch.stack([torch.from_numpy(objects == k) for k in (1, 2, 3)]))
    assert not easy[3].labels.any() and everything.fingerprint() != easy.fingerprint()
    path = base / "Annotations/4.xml"
    path.write_text(path.read_text().replace("<difficult>1", "<difficult>very"))
    with pytest.raises(ValueError, match=r"4.xml: object 1 \(dog\): <difficult> must be a number, found very"):
        VOC(tmp_path, "train", difficult=False)


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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<bndbox>.*</bndbox>", "", r"000012.xml: object 1 \(dog\): <bndbox/xmin> must be a number, found nothing"),
        ("<xmin>1</xmin>", "<xmin>15</xmin>", r"000012.xml: object 1 \(dog\): box .* is inverted"),
        ("<xmin>1</xmin>", "<xmin>11</xmin>", r"000012.xml: object 1 \(dog\): box .* is empty"),
        ("<name>dog</name>", "<name>dgo</name>", r"000012.xml: object 1 \(dgo\): unknown class dgo"),
        ("<object>", "<size><width>30</width><height>40</height></size><object>", "EXIF orientation may be the cause"),
    ],
)
def test_bad_annotations_are_named(tmp_path, base, old, new, message):
    path = base / "Annotations/000012.xml"
    text = re.sub(old, new, path.read_text(), count=1)
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(VOC(tmp_path, "train"))


def test_a_missing_split_says_where_voc_comes_from(tmp_path, base):
    with pytest.raises(FileNotFoundError, match="Main/test.txt does not exist.*host.robots.ox.ac.uk"):
        VOC(tmp_path, "test")


# ---- export_voc


@pytest.mark.parametrize("segmented", [True, False])
def test_export_is_read_back_equal(tmp_path, toy, segmented):
    original = toy(6, segmented)
    assert export_voc(original, tmp_path, "train") == tmp_path / "VOCdevkit/VOC2007"
    assert export_voc(toy(2), tmp_path / "other", "test") == tmp_path / "other/VOCdevkit/VOC2007"
    data = VOC(tmp_path, "train")
    assert len(data) == 6 and torch.equal(data.targets, original.targets)
    for a, b in zip((original[i] for i in range(6)), data, strict=True):
        assert a.name == b.name and torch.equal(a.boxes, b.boxes) and torch.equal(a.box_labels, b.box_labels)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.masks, b.masks) if segmented else b.masks is None
        assert (a.image.float() - b.image.float()).abs().mean() < 3
    assert [p.name for p in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("scenes", [Scenes("train", 40, size=96), SceneBirds("test", 10, size=64)])
def test_exported_scenes_are_read_back_equal(tmp_path, scenes):
    export_voc(scenes, tmp_path)
    data = VOC(tmp_path, "train")
    assert len(data) == len(scenes) and torch.equal(data.targets, scenes.targets)
    for a, b in zip(scenes, data, strict=True):
        assert a.name == b.name and torch.equal(a.boxes, b.boxes) and torch.equal(a.box_labels, b.box_labels)
        assert torch.equal(a.masks, b.masks) and (a.image.float() - b.image.float()).abs().mean() < 5
    assert VOCDetection(tmp_path, year="2007", image_set="train")[3][0].size == (scenes.size, scenes.size)


@pytest.mark.parametrize("left", [0, 13])
def test_masks_of_loose_boxes_of_one_class_keep_their_order(tmp_path, toy, left):
    """By overlap the first object would go to the second box, also where (left = 13) the first box does not hold it."""
    masks = torch.zeros(3, 32, 48, dtype=torch.bool)
    masks[0, 10:20, 10:20], masks[1, 10:20, 20:21], masks[2, 25:30, 2:12] = True, True, True
    boxes = torch.tensor([[left, 0.0, 48, 32], [9, 9, 22, 21], [3, 26, 11, 29]])  # the last a pixel too tight

    def loose(sample):
        sample.masks, sample.boxes = tv_tensors.Mask(masks), tv_tensors.wrap(boxes, like=sample.boxes)
        sample.box_labels, sample.labels = torch.tensor([1, 1, 1]), torch.tensor([0, 1, 0], dtype=torch.uint8)
        return sample

    export_voc(toy(1, transform=loose), tmp_path)
    assert torch.equal(VOC(tmp_path, "train")[0].masks, masks)


def test_a_dilated_export_is_read_back_equal(tmp_path):
    original = dilated(Scenes("train", 60, size=64, correlation=1.0), 0.5)
    export_voc(original, tmp_path)
    for a, b in zip(original, VOC(tmp_path, "train"), strict=True):
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.masks, b.masks)


def test_fractional_boxes_survive(tmp_path, toy):
    def move(sample):
        sample.boxes += 0.3
        return sample

    original = toy(2, transform=move)
    export_voc(original, tmp_path)
    data = VOC(tmp_path, "train")
    assert torch.equal(data[1].boxes, original[1].boxes)


def test_torchvision_reads_the_export(tmp_path, toy):
    original = toy(3)
    base = export_voc(original, tmp_path, "val")
    image, target = VOCDetection(tmp_path, year="2007", image_set="val")[1]
    sample = original[1]
    assert image.size == (48, 33) and target["annotation"]["filename"] == "toy-1.jpg"
    x1, y1, x2, y2 = (int(v) for v in sample.boxes[0])
    found = target["annotation"]["object"][0]
    assert found["name"] == "dog"
    assert found["bndbox"] == {"xmin": str(x1 + 1), "ymin": str(y1 + 1), "xmax": str(x2), "ymax": str(y2)}
    image, mask = VOCSegmentation(tmp_path, year="2007", image_set="val")[1]
    assert np.unique(np.array(mask)).tolist() == [0, 2, 3]  # classes 1 and 2, counted from 1
    assert (base / "ImageSets/Main/val.txt").read_text() == "toy-0\ntoy-1\ntoy-2\n"


def test_splits_share_a_folder_and_none_is_overwritten(tmp_path, toy):
    class Other(type(toy())):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            sample.name = f"other-{i}"
            return sample

    export_voc(toy(2), tmp_path, "train")
    export_voc(Other(3), tmp_path, "test")
    assert len(VOC(tmp_path, "train")) == 2
    assert len(VOC(tmp_path, "test")) == 3
    with pytest.raises(FileExistsError, match="Main/train.txt exists"):
        export_voc(Other(3), tmp_path, "train")
    with pytest.raises(FileExistsError, match="toy-0"):
        export_voc(toy(2), tmp_path, "val")
    assert not (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/val.txt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.masks.fill_(True), "toy-0: masks overlap"),
        (lambda s: s.labels.fill_(1), "toy-0: label without box, or box without label, of zebra"),
        (lambda s: setattr(s, "name", "same"), "same: two samples have this name"),
    ],
)
def test_what_voc_cannot_hold_is_named_and_nothing_is_left(tmp_path, toy, change, message):
    def transform(sample):
        change(sample)
        return sample

    with pytest.raises(ValueError, match=message):
        export_voc(toy(3, transform=transform), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_names_its_classes_and_refuses_others(tmp_path):
    base = export_voc(Scenes("train", 2, 64), tmp_path, "train")
    assert (base / "classes.txt").read_text().split() == CATEGORIES
    assert VOC(tmp_path, "train").classes == CATEGORIES
    with pytest.raises(ValueError, match=r"classes.txt lists other classes than this data set, landbird, waterbird"):
        export_voc(SceneBirds("test", 2, 64), tmp_path, "test")
    assert not (base / "ImageSets/Main/test.txt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: setattr(s, "name", "../toy"), "name is '../toy'; it must be a path below JPEGImages"),
        (lambda s: setattr(s, "name", "/toy"), "name is '/toy'"),
        (lambda s: setattr(s, "name", "toy "), "name is 'toy '; it must be one line"),
        (lambda s: setattr(s, "name", "a\nb"), "it must be one line"),
        (lambda s: setattr(s, "name", "caf\udce9"), "it must be one line of UTF-8"),
        (lambda s: setattr(s, "image", s.image / 255), r"toy-0 is .*float32.; it must be \(3, H, W\) torch.uint8"),
        (
            lambda s: setattr(s, "masks", s.masks * 0.5),
            "type of the masks of toy-0 is torch.float32; it must be torch.bool",
        ),
    ],
)
def test_samples_that_would_not_be_read_back_are_refused(tmp_path, toy, change, message):
    def transform(sample):
        change(sample)
        return sample

    with pytest.raises(ValueError, match=message):
        export_voc(toy(2, transform=transform), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_samples_with_one_index_as_label_are_exported(tmp_path, toy):
    def only(sample):
        return Sample(sample.image, torch.tensor(1), sample.boxes[:1], name=sample.name)

    export_voc(toy(2, transform=only), tmp_path)
    assert [s.box_labels.tolist() for s in VOC(tmp_path, "train")] == [[1], [1]]
