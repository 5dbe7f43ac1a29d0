import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e2lib.datasets import Waterbirds

ROWS = ["1,a/1.jpg,0,0,0,p", "2,a/2.jpg,1,0,1,p", "3,b/3.jpg,1,0,0,p", "4,b/4.jpg,0,0,1,p", "5,b/5.jpg,1,1,1,p"]


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "waterbird_1.0_x")
    return tmp_path


def write(root, variant, rows=ROWS, header="img_id,img_filename,y,split,place,place_filename"):
    for row in rows:
        path = root / variant / row.split(",")[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    (root / variant / "metadata.csv").write_text("\n".join([header, *rows, ""]))
    (root / "CUB_200_2011").mkdir(exist_ok=True)
    boxes = [f"{i} {i}.5 2.0 10.0 20.0" for i in range(1, 6)]
    (root / "CUB_200_2011" / "bounding_boxes.txt").write_text("\n".join([*boxes, ""]))


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_birds(root):
    data = Waterbirds(root, "train")
    assert data.classes == ["landbird", "waterbird"] and not data.multilabel
    assert [data.groups[s.group] for s in data] == [
        "landbird on land",
        "waterbird on water",
        "waterbird on land",
        "landbird on water",
    ]
    assert data.targets.tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]
    sample = data[1]
    assert sample.boxes.tolist() == [[2.5, 2, 12.5, 22]] and sample.box_labels.tolist() == [1]
    assert sample.labels.tolist() == [0, 1] and sample.name == "a/2" and sample.masks is None
    assert len(Waterbirds(root, "val")) == 1


def test_places_keep_the_birds_box_and_the_groups(root):
    birds, places = Waterbirds(root, "train"), Waterbirds(root, "train", task="place")
    assert places.classes == ["land", "water"]
    assert [s.labels.tolist() for s in places] == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert [s.box_labels.tolist() for s in places] == [[0], [1], [0], [1]]
    for a, b in zip(birds, places, strict=True):
        assert a.boxes.tolist() == b.boxes.tolist() and a.group == b.group


def test_two_variants_need_a_choice(root):
    write(root, "waterbird_complete95_x", ROWS[:1])
    with pytest.raises(ValueError, match="waterbird_1.0_x, waterbird_complete95_x; choose one with variant="):
        Waterbirds(root, "train")
    assert len(Waterbirds(root, "train", variant="waterbird_complete95_x")) == 1
    with pytest.raises(FileNotFoundError, match="waterbird_2"):
        Waterbirds(root, "train", variant="waterbird_2")


@pytest.mark.parametrize(
    ("file", "old", "new", "error", "message"),
    [
        (
            "waterbird_1.0_x/metadata.csv",
            "place,",
            "spot,",
            ValueError,
            "metadata.csv: the first line is .*with one place",
        ),
        ("waterbird_1.0_x/metadata.csv", "2.jpg,1", "2.jpg,2", ValueError, "metadata.csv line 3: y is '2'; .*'0', '1'"),
        ("waterbird_1.0_x/metadata.csv", "3.jpg,1,0,0", "3.jpg,1,0,", ValueError, "line 4: place is '';"),
        ("waterbird_1.0_x/metadata.csv", "3.jpg,1,0", "3.jpg,1,7", ValueError, "line 4: split is '7'"),
        ("waterbird_1.0_x/metadata.csv", "3.jpg", "9.jpg", FileNotFoundError, "b/9.jpg is missing"),
        ("waterbird_1.0_x/metadata.csv", "b/3", "c/3", FileNotFoundError, "waterbird_1.0_x/c/3.jpg is missing"),
        ("waterbird_1.0_x/metadata.csv", "5.jpg,1,1", "5.jpg,1,0", ValueError, "the split is empty"),
        ("CUB_200_2011/bounding_boxes.txt", "2 2.5", "8 2.5", ValueError, "no box of image 2"),
        (
            "CUB_200_2011/bounding_boxes.txt",
            "2 2.5 2.0",
            "2 2.5",
            ValueError,
            "need lines of img_id x y width height, found '2 2.5 10.0 20.0'",
        ),
        ("CUB_200_2011/bounding_boxes.txt", "2 2.5", "2 39.5", ValueError, "a/2.jpg: box .* reaches outside"),
        (
            "CUB_200_2011/bounding_boxes.txt",
            "2 2.5 2.0 10.0",
            "2 2.5 2.0 -3",
            ValueError,
            "bounding_boxes.txt: image 2: box .* inverted",
        ),
        (
            "CUB_200_2011/bounding_boxes.txt",
            "2 2.5 2.0 10.0",
            "2 2.5 2.0 0",
            ValueError,
            "bounding_boxes.txt: image 2: box .* empty",
        ),
    ],
)
def test_bad_data_is_named(root, file, old, new, error, message):
    edit(root / file, old, new)
    with pytest.raises(error, match=message):
        for split in ("train", "val"):
            list(Waterbirds(root, split))


def test_bad_arguments_are_named(root, tmp_path):
    with pytest.raises(ValueError, match="split is 'tset'; it must be one of .*train"):
        Waterbirds(root, "tset")
    with pytest.raises(ValueError, match="task is 'water'; it must be one of .*bird"):
        Waterbirds(root, "train", task="water")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; .* CUB_200_2011/bounding_boxes.txt"):
        Waterbirds(tmp_path / "nowhere", "train")
    (root / "CUB_200_2011" / "bounding_boxes.txt").unlink()
    with pytest.raises(FileNotFoundError, match="bounding_boxes.txt does not exist"):
        Waterbirds(root, "train")


@pytest.fixture(scope="module")
def real():
    root = Path(os.environ.get("WATERBIRDS_ROOT", Path(__file__).parents[3] / "shared/data/waterbirds100"))
    if not root.is_dir():
        pytest.skip(f"no Waterbirds-100 at {root}; set WATERBIRDS_ROOT")
    return root


@pytest.mark.parametrize(
    ("split", "counts"),
    [("train", [3694, 0, 0, 1101]), ("val", [461, 460, 139, 139]), ("test", [2255, 2255, 642, 642])],
)
def test_real_groups(real, split, counts):
    data = Waterbirds(real, split)
    assert np.bincount(data.group_of, minlength=4).tolist() == counts
    for i in range(0, len(data), len(data) // 20):
        sample = data[i]
        x1, y1, x2, y2 = sample.boxes[0].tolist()
        assert 0 <= x1 < x2 <= sample.image.shape[2] and 0 <= y1 < y2 <= sample.image.shape[1]
        assert sample.labels.argmax() == sample.group // 2


def test_real_boxes_that_reach_outside_most_are_clipped(real):
    data = Waterbirds(real, "val")
    i = [data.item(i).file for i in range(len(data))].index("086.Pacific_Loon/Pacific_Loon_0034_75438.jpg")
    sample = data[i]
    assert data.item(i).boxes[0] == pytest.approx([13.1, 12.7, 181.5, 138.0])
    assert sample.image.shape == (3, 128, 192)
    assert sample.boxes[0].tolist() == pytest.approx([13.1, 12.7, 181.5, 128])


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("waterbird_1.0_x/metadata.csv", "\n2,", "\n1,", "metadata.csv: img_id: '1' occurs twice"),
        ("waterbird_1.0_x/metadata.csv", "a/2.jpg", "a/1.jpg", "'a/1.jpg' occurs twice"),
        ("waterbird_1.0_x/metadata.csv", "a/2.jpg", "", "metadata.csv line 3: img_filename is ''"),
        ("waterbird_1.0_x/metadata.csv", "a/2.jpg", "a/2,x.jpg", "metadata.csv line 3 is .*; it must be of 6 columns"),
        ("waterbird_1.0_x/metadata.csv", ",place_filename", ",place", "metadata.csv: the first line"),
        (
            "CUB_200_2011/bounding_boxes.txt",
            "2 2.5",
            "1 2.5",
            "bounding_boxes.txt: image is '1'; it must be there once",
        ),
        ("CUB_200_2011/bounding_boxes.txt", "2 2.5", "2 nan", "bounding_boxes.txt: image 2: box .* not finite"),
    ],
)
def test_what_does_not_fit_together_is_named(root, file, old, new, message):
    edit(root / file, old, new)
    with pytest.raises(ValueError, match=message):
        Waterbirds(root, "train")


@pytest.mark.parametrize("variant", ["", "/", "x" * 3000])
def test_a_variant_that_is_no_folder_is_named(root, variant):
    with pytest.raises(FileNotFoundError, match="must hold waterbird_"):
        Waterbirds(root, "train", variant=variant)
