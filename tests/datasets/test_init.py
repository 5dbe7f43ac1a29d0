import json

import pytest
import torch
from PIL import Image

from e2lib import datasets
from e2lib.datasets import Sample, Samples, export_voc, load, load_splits
from e2lib.datasets.files import FileDataset, Item, need


def test_load_by_name(tmp_path, toy):
    export_voc(toy(3), tmp_path, "val")
    data = load("voc", tmp_path, "val", size=16, classes=["cat", "dog", "zebra"])
    assert len(data) == 3 and data[0].image.shape == (3, 16, 16)
    assert len(load("voc", tmp_path, "val", size=16, length=2, classes=["cat", "dog", "zebra"])) == 2
    (tmp_path / "folders/test/one").mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(tmp_path / "folders/test/one/x.png")
    assert load("imagefolder", tmp_path / "folders", "test", size=16).classes == ["one"]


def test_load_embedded():
    assert load("scenes", None, "val", length=3, size=64).multilabel
    assert load("birds", None, "val", length=3, size=64, task="place").classes == ["land", "water"]


def test_unknown_and_missing_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="unknown data imagenet; known: scenes, birds, voc, coco, waterbirds, imagefolder"
    ):
        load("imagenet", tmp_path, "val", size=64)
    with pytest.raises(ValueError, match="data coco needs root, a folder with annotations/instances_<split>2014.json"):
        load("coco", None, "val", size=64)
    with pytest.raises(ValueError, match="data scenes is embedded: it needs a length and no root"):
        load("scenes", None, "val", size=64)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; .*waterbird_"):
        load("waterbirds", tmp_path / "nowhere", "val", size=64)


def test_everything_public_is_there():
    assert all(hasattr(datasets, name) for name in datasets.__all__)


def names(dataset):
    return [dataset[i].name for i in range(len(dataset))]


def test_splits_of_embedded_data_differ_in_the_training_images_alone_by_seed():
    first, second = (load_splits("scenes", None, 64, 5, 3, seed) for seed in (0, 1))
    assert [len(part) for part in first] == [5, 3, 3]
    assert [part.split for part in first] == ["train", "val", "test"]
    same = [bool((a[0].image == b[0].image).all()) for a, b in zip(first, second, strict=True)]
    assert same == [False, True, True]


def test_training_images_of_splits_are_flipped_at_random_with_their_boxes_and_the_others_are_not():
    for part, seen in zip(load_splits("scenes", None, 64, 2, 2), (2, 1, 1), strict=True):
        samples = [part[0] for _ in range(20)]
        assert len({sample.image.numpy().tobytes() for sample in samples}) == seen
        assert len({sample.boxes.numpy().tobytes() for sample in samples}) == seen


def test_splits_take_no_transform():
    with pytest.raises(ValueError, match="with_transform"):
        load_splits("scenes", None, 64, 2, 2, transform=None)


def test_splits_of_coco_share_no_image(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split, count in (("train", 40), ("val", 6)):
        (tmp_path / f"{split}2014").mkdir()
        images = [{"id": i, "file_name": f"{split}_{i}.jpg", "height": 8, "width": 8} for i in range(count)]
        box = {"category_id": 1, "bbox": [1, 1, 4, 4], "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
        content = {"images": images, "categories": [{"id": 1, "name": "cat"}]}
        content["annotations"] = [{"id": i, "image_id": i} | box for i in range(count)]
        (tmp_path / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))
        for image in images:
            Image.new("RGB", (8, 8)).save(tmp_path / f"{split}2014" / image["file_name"])
    train, val, test = load_splits("coco", tmp_path, 16, 100, 100)
    assert len(train) == 36 and len(val) == 4 and not {*names(train)} & {*names(val)}
    assert all(name.startswith("train_") for name in names(train) + names(val))
    assert sorted(names(test)) == sorted(f"val_{i}" for i in range(6))
    fewer, again, fewer_test = load_splits("coco", tmp_path, 16, 10, 3, seed=5)
    assert len(fewer) == 10 and {*names(fewer)} < {*names(train)}
    assert len(again) == len(fewer_test) == 3 and {*names(again)} < {*names(val)}
    assert names(load_splits("coco", tmp_path, 16, 10, 3, seed=6)[1]) == names(again)


def test_splits_of_folders_share_no_image_and_are_cropped(tmp_path):
    for split, count in (("train", 20), ("val", 3)):
        for c in "ab":
            (tmp_path / split / c).mkdir(parents=True)
            for i in range(count):
                Image.linear_gradient("L").convert("RGB").resize((16, 16)).save(tmp_path / split / c / f"{i}.png")
    train, val, test = load_splits("imagefolder", tmp_path, 16, 100, 100, crops=True)
    assert (len(train), len(val), len(test)) == (36, 4, 6) and not {*names(train)} & {*names(val)}
    torch.manual_seed(0)
    ranges = [{int(part[i].image.max()) - int(part[i].image.min()) for i in range(6)} for part in (train, test)]
    assert len(ranges[1]) == 1 and max(ranges[1]) > min(ranges[0])  # a part of the gradient


def test_birds_for_validation_and_test_are_on_both_places():
    train, val, test = load_splits("birds", None, 64, 30, 60)
    assert set(train.group_of) == {0, 3}
    assert set(val.group_of) == set(test.group_of) == {0, 1, 2, 3}


def test_a_data_set_of_ones_own_is_a_class_and_a_line(tmp_path, monkeypatch):
    class Squares(FileDataset):
        layout, multilabel = "<split>/*.png and boxes.csv", True
        test_split = "val"

        def __init__(self, root, split, transform=None, side=4):
            files = sorted(path.name for path in need(root / split, self.layout).glob("*.png"))
            items = [Item(file, [0], [[1, 1, 1 + side, 1 + side]], [0]) for file in files]
            super().__init__(root / split, items, ["square"], transform)

    for split, count in (("train", 20), ("val", 5)):
        (tmp_path / split).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / split / f"{split}{i}.png")
    monkeypatch.setitem(datasets.DATASETS, "squares", Squares)
    assert load("squares", tmp_path, "val", size=16, side=2)[0].boxes.tolist() == [[2, 2, 6, 6]]
    with pytest.raises(ValueError, match="data squares needs root, a folder with <split>/.*boxes.csv"):
        load("squares", None, "val", size=16)
    train, val, test = load_splits("squares", tmp_path, 16, 100, 100)
    assert [len(part) for part in (train, val, test)] == [18, 2, 5] and not {*names(train)} & {*names(val)}
    assert {name[:3] for name in names(test)} == {"val"}


def test_an_embedded_data_set_of_ones_own_needs_no_folder(monkeypatch):
    class Grey(Samples):
        classes = ["dark", "light"]

        def __init__(self, split, length, size, seed, transform=None):
            self.length, self.size, self.transform = length, size, transform

        def __len__(self):
            return self.length

        def __getitem__(self, i):
            grey = torch.full((3, self.size, self.size), 255 * (i % 2), dtype=torch.uint8)
            sample = Sample(grey, torch.eye(2, dtype=torch.uint8)[i % 2], name=f"{i}")
            return sample if self.transform is None else self.transform(sample)

    monkeypatch.setitem(datasets.DATASETS, "grey", Grey)
    train, _, test = load_splits("grey", None, 16, 6, 4)
    assert train.targets.sum(0).tolist() == [3, 3] and not train.multilabel and len(test) == 4
    assert datasets.few_shot(train, 2).targets.sum(0).tolist() == [2, 2]
