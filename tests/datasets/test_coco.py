import json
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image

from e2lib.boxes import box_mask
from e2lib.datasets import COCO, collate

BOX = [4, 2, 10, 8]  # x, y, width, height
SUBSET = Path(__file__).parents[3] / "shared/data/coco2017_subset"
POLYGON = [[4, 2, 14, 2, 14, 10, 4, 10]]


def rectangle(h=20, w=30):
    return box_mask(torch.tensor([[4, 2, 14, 10]]), (h, w))


@pytest.fixture
def content():
    mask = rectangle().numpy()
    flat = np.diff(np.flatnonzero(np.diff(np.r_[False, mask.T.ravel(), False])))
    start = int(np.flatnonzero(mask.T.ravel())[0])
    counts = [start, *map(int, flat)]
    uncompressed = {"size": [20, 30], "counts": [*counts, 600 - sum(counts)]}
    compressed = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    compressed["counts"] = compressed["counts"].decode()

    def annotation(number, image, category, segmentation=POLYGON, **kwargs):
        fields = {"id": number, "image_id": image, "category_id": category, "bbox": BOX, "iscrowd": 0}
        return fields | {"segmentation": segmentation} | kwargs

    return {
        "images": [{"id": i, "file_name": f"COCO_{i}.jpg", "height": 20, "width": 30} for i in (9, 3, 5, 7)],
        "categories": [{"id": 44, "name": "bottle"}, {"id": 1, "name": "person"}],
        "annotations": [
            annotation(1, 9, 44),
            annotation(2, 9, 1, uncompressed),
            annotation(3, 3, 1, compressed),
            annotation(4, 3, 44, {"size": [20, 30], "counts": [0, 600]}, iscrowd=1, bbox=[0, 0, 30, 20]),
            annotation(5, 7, 1, []),
        ],
    }


def write(root, content, split="train", year="2014"):
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"{split}{year}").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}{year}.json").write_text(json.dumps(content))
    for image in content["images"]:
        Image.new("RGB", (30, 20)).save(root / f"{split}{year}" / image["file_name"])


def test_boxes_labels_and_masks(tmp_path, content):
    write(tmp_path, content)
    data = COCO(tmp_path, "train")
    assert data.classes == ["person", "bottle"] and data.multilabel and not data.groups
    assert [s.name for s in data] == ["COCO_3", "COCO_5", "COCO_7", "COCO_9"]
    assert data.targets.tolist() == [[1, 1], [0, 0], [1, 0], [1, 1]]
    crowd, empty, unsegmented, two = data
    assert two.boxes.tolist() == [[4, 2, 14, 10]] * 2 and two.box_labels.tolist() == [1, 0]
    assert two.masks.dtype == torch.bool and torch.equal(two.masks, rectangle().expand(2, -1, -1))
    assert crowd.box_labels.tolist() == [0] and torch.equal(crowd.masks[0], rectangle())
    assert empty.boxes.shape == (0, 4) and empty.masks.shape == (0, 20, 30)
    assert unsegmented.masks is None and len(unsegmented.boxes) == 1
    batch = collate([crowd, empty, unsegmented, two])
    assert batch.class_masks(torch.tensor([1, 1, 1, 1])).any((1, 2, 3)).tolist() == [False, False, False, True]
    content["annotations"][0]["segmentation"] = []
    (tmp_path / "annotations/instances_train2014.json").write_text(json.dumps(content))
    assert COCO(tmp_path, "train").fingerprint() != data.fingerprint()


def test_a_polygon_of_several_parts_is_their_union(tmp_path, content):
    content["annotations"][0]["segmentation"] = [[4, 2, 8, 2, 8, 10, 4, 10], [10, 2, 14, 2, 14, 10, 10, 10]]
    write(tmp_path, content)
    mask = COCO(tmp_path, "train")[3].masks[0]
    expected = rectangle()
    expected[:, 8:10] = False
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_the_year_is_that_of_annotations_with_images(tmp_path, content, year):
    """The archives of annotations of both years may lie in one folder, also those of captions."""
    write(tmp_path, content, "train", year)
    for name in ("instances_train2014", "instances_val2017", "captions_train2014", "captions_train2017"):
        (tmp_path / f"annotations/{name}.json").touch()
    (tmp_path / f"annotations/instances_train{year}.json").write_text(json.dumps(content))
    assert COCO(tmp_path, "train").path.stem == f"instances_train{year}"
    with pytest.raises(FileNotFoundError, match=f"val{year} does not exist"):
        COCO(tmp_path, "val")


def test_two_years_need_a_choice(tmp_path, content):
    write(tmp_path, content, "train", "2017")
    write(tmp_path, content, "val", "2014")
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"year is \['2014', '2017'\]; it must be one of these"):
            COCO(tmp_path, split)
    assert len(COCO(tmp_path, "train", "2017")) == len(COCO(tmp_path, "val", "2014")) == 4


@pytest.mark.skipif(not SUBSET.exists(), reason="the photographs of COCO are not here")
def test_the_real_files_of_2017_are_read():
    for split, count, bare in (("train", 341, 1), ("val", 404, 2)):
        data = COCO(SUBSET, split)
        assert len(data) == count and len(data.classes) == 80 and data.path.stem == f"instances_{split}2017"
        assert int((data.targets.sum(1) == 0).sum()) == bare  # images without objects
        known = json.loads(data.path.read_bytes())["annotations"]
        boxes = sum(len(data.item(i).boxes) for i in range(count))
        assert boxes == sum(not one["iscrowd"] for one in known) < len(known)
        sample = next(data[i] for i in range(count) if data.item(i).boxes and all(s for _, s in data.item(i).shapes))
        assert sample.masks.any((1, 2)).all()


def test_custom_folder(tmp_path, content):
    write(tmp_path, content)
    (tmp_path / "annotations/instances_train2014.json").rename(tmp_path / "mine.json")
    (tmp_path / "train2014").rename(tmp_path / "pictures")
    assert len(COCO(tmp_path, "train", annotations="mine.json", images="pictures")) == 4


def test_the_official_boxes_without_height_give_a_label_only(tmp_path, content):
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = content["annotations"][1]["image_id"] = 200365
    content["annotations"][0]["bbox"] = [10, 388.33, 1.03, 0.0]
    write(tmp_path, content)
    sample = COCO(tmp_path, "train")[3]
    assert sample.labels.tolist() == [1, 1] and sample.box_labels.tolist() == [0] and len(sample.masks) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda c: c["annotations"][1].update(category_id=2),
            ValueError,
            r"annotation 2 of image 9: unknown class 2; .*1, 44",
        ),
        (lambda c: c["images"][2].update(id=3), ValueError, "two images with the id 3: .*COCO_3.jpg.*COCO_5.jpg"),
        (lambda c: c["categories"][1].update(id=44), ValueError, "two categories with the id 44: .*bottle.*person"),
        (
            lambda c: c["annotations"][1].update(image_id=2),
            ValueError,
            "annotation 2 of image 2: 2 is no id of its images",
        ),
        (lambda c: c["annotations"][1].pop("bbox"), ValueError, "annotations entry 2: bbox is None; it must be a list"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2]), ValueError, r"annotation 2 .*bbox is \[1, 2\]"),
        (lambda c: c["annotations"][1].update(bbox=[4, 2, -3, 2]), ValueError, "image 9 .COCO_9.jpg.: box .* inverted"),
        (lambda c: c["annotations"][1].update(bbox=[4, 2, 3, 0]), ValueError, "image 9 .COCO_9.jpg.: box .* empty"),
        (lambda c: c["annotations"][1].update(bbox=[4, 2, 60, 2]), ValueError, "image 9 .COCO_9.jpg.: box .* outside"),
        (
            lambda c: c.pop("categories"),
            ValueError,
            "instances_train2014.json: section categories is .*; it must be a list",
        ),
        (lambda c: c["images"][2].pop("width"), ValueError, "images entry 5: width is None; it must be a number"),
        (lambda c: c["images"][2].update(file_name="x.jpg"), FileNotFoundError, "x.jpg is missing"),
        (lambda c: (c["images"].clear(), c["annotations"].clear()), ValueError, "the split is empty"),
        (
            lambda c: c["images"][2].update(height=30),
            ValueError,
            "image .*/COCO_5.jpg has 30 x 20 pixels, its annotations 30 x 30",
        ),
    ],
)
def test_bad_data_is_named(tmp_path, content, change, error, message):
    write(tmp_path, content)
    change(content)
    (tmp_path / "annotations/instances_train2014.json").write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        list(COCO(tmp_path, "train"))


def test_missing_and_broken_files_are_named(tmp_path, content):
    with pytest.raises(FileNotFoundError, match="train2014 does not exist.*cocodataset.org"):
        COCO(tmp_path, "train")
    write(tmp_path, content)
    path = tmp_path / "annotations/instances_train2014.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match="instances_train2014.json is not JSON"):
        COCO(tmp_path, "train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="instances_train2014.json does not exist"):
        COCO(tmp_path, "train")


def test_masks_without_pycocotools_name_the_extra(tmp_path, content, monkeypatch):
    write(tmp_path, content)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(ImportError, match=r"pip install 'e2lib\[coco\]'"):
        COCO(tmp_path, "train")[3]


def test_without_pycocotools_a_segmentation_names_the_extra(tmp_path, content, monkeypatch):
    write(tmp_path, content)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    data = COCO(tmp_path, "train")
    assert data[0].masks.any() and data[1].masks.shape == (0, 20, 30) and data[2].masks is None
    with pytest.raises(ImportError, match=r"pip install 'e2lib\[coco\]'"):
        data[3]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[4, 2]],
        [[4, 2, 8, 2, 14, 2]],
        [POLYGON[0], [[4, 2]]],
        {"size": [20, 30], "counts": [50, 30, 519]},
        {"size": [20, 30], "counts": "PPYo0"},
        {"size": [20, 30]},
    ],
)
def test_a_segmentation_that_does_not_add_up_names_file_and_annotation(tmp_path, content, segmentation):
    content["annotations"][0]["segmentation"] = segmentation
    write(tmp_path, content)
    with pytest.raises(ValueError, match=r"instances_train2014.json: image COCO_9.jpg, annotation 1: segmentation"):
        list(COCO(tmp_path, "train"))


@pytest.mark.parametrize("seed", range(5))
def test_compressed_runs_are_those_of_pycocotools(tmp_path, content, seed):
    mask = np.random.default_rng(seed).random((20, 30)) < [0, 0.1, 0.5, 0.9, 1][seed]
    runs = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    content["annotations"][2]["segmentation"] = {"size": [20, 30], "counts": runs["counts"].decode()}
    write(tmp_path, content)
    assert np.array_equal(COCO(tmp_path, "train")[0].masks[0].numpy(), mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(bbox=["4", "2", "10", "8"]), "annotation 2 of image 9: bbox is .*'4'"),
        (lambda c: c["annotations"][1].update(iscrowd="0"), "annotation 2 of image 9: iscrowd is '0'"),
        (lambda c: c["annotations"][1].update(image_id="9"), "annotation 2 of image 9: '9' is no id"),
        (lambda c: c["annotations"].append(7), "annotations entry 5: id is None"),
        (lambda c: c["images"][1].update(id="nine"), "ids of images is .*nine.*; it must be one type"),
        (lambda c: c["images"][1].update(width=float("nan")), "images entry 3: width is nan"),
        (lambda c: c["categories"][1].update(name="bottle"), "names of categories: 'bottle' occurs twice"),
    ],
)
def test_entries_of_another_kind_are_named(tmp_path, content, change, message):
    write(tmp_path, content)
    change(content)
    (tmp_path / "annotations/instances_train2014.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        list(COCO(tmp_path, "train"))


def test_a_size_of_zero_is_unknown(tmp_path, content):
    content["images"][0].update(height=0, width=0)
    write(tmp_path, content)
    assert COCO(tmp_path, "train")[3].boxes.tolist() == [[4, 2, 14, 10]] * 2
