import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.datasets import VOCDetection, VOCSegmentation

from e2lib.datasets import VOC, SceneBirds, Scenes, dilated, export_voc
from e2lib.datasets.scenes import CATEGORIES


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
