import pytest
from PIL import Image

from e2lib import datasets
from e2lib.datasets import export_voc, load


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
