import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e2lib.datasets import ImageFolder, collate, eval_transform
from e2lib.datasets.files import FileDataset, Item, read_image, read_lines


@pytest.fixture
def folder(tmp_path):
    for c in "ab":
        (tmp_path / c).mkdir()
        for i in range(4):
            Image.new("RGB", (20 + i, 10), (10 * i, 0, 255)).save(tmp_path / c / f"{i}.png")
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 3, 5) and image.dtype == torch.uint8 and (image == 255).all()


@pytest.mark.parametrize("text", ["a b\nc\n", "a b\nc", "\ufeffa b \r\n\r\n c\r\n"])
def test_lines_end_in_any_way(tmp_path, text):
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert read_lines(tmp_path / "list.txt") == ["a b", "c"]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_and_foreign_images_are_named(tmp_path, suffix):
    path = tmp_path / f"bad.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    truncate(path)
    with pytest.raises(ValueError, match=f"bad.{suffix} cannot be decoded: .*truncated"):
        read_image(path)
    path.write_text("no image")
    with pytest.raises(ValueError, match=f"bad.{suffix} cannot be decoded: cannot identify"):
        read_image(path)


def test_a_missing_image_is_named(folder):
    with pytest.raises(FileNotFoundError, match="x.png is missing"):
        read_image(folder / "x.png")


def test_items_and_names(folder):
    items = [Item("a/0.png", [2]), Item("b/3.png", [0, 1], [[0, 0, 5, 5], [1, 2, 23.5, 4]], [0, 1])]
    data = FileDataset(folder, items, ["u", "v", "w"])
    assert len(data) == 2 and data.targets.tolist() == [[0, 0, 1], [1, 1, 0]] and data.targets.dtype == torch.uint8
    first, last = data[0], data[-1]
    assert first.boxes.shape == (0, 4) and first.labels.tolist() == [0, 0, 1] and first.name == "a/0"
    assert last.boxes.tolist() == [[0, 0, 5, 5], [1, 2, 23, 4]]  # half a pixel outside is clipped
    assert last.box_labels.tolist() == [0, 1] and last.image.shape == (3, 10, 23) and last.boxes.canvas_size == (10, 23)
    assert last.annotated and last.group == -1 and last.masks is None
    assert [s.name for s in data] == ["a/0", "b/3"]
    with pytest.raises(IndexError):
        data[2]


def test_a_box_outside_the_image_names_the_image(folder):
    data = FileDataset(folder, [Item("a/0.png", [0], [[0, 0, 5, 50]], [0])], ["u"])
    with pytest.raises(ValueError, match=r"a/0.png: box .* = \(0.0, 0.0, 5.0, 50.0\) reaches outside"):
        data[0]


def test_an_empty_split_is_named(folder):
    with pytest.raises(ValueError, match=f"{folder}: the split is empty"):
        FileDataset(folder, [], ["u"])


def test_annotations_of_another_size_are_named(folder):
    for size, cause in (((10, 30), ""), ((20, 10), "; an EXIF orientation may be the cause")):
        [h, w] = size
        with pytest.raises(ValueError, match=f"a/0.png has 20 x 10 pixels, its annotations {w} x {h}{cause}$"):
            FileDataset(folder, [Item("a/0.png", [0], size=size)], ["u"])[0]
    for unknown in ((0, 0), (0, 30), (10, 20)):
        assert FileDataset(folder, [Item("a/0.png", [0], size=unknown)], ["u"])[0].name == "a/0"


def test_errors_keep_their_message_through_a_worker(folder):
    truncate(folder / "b" / "2.png")
    data = ImageFolder(folder, transform=eval_transform(8))
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1, collate_fn=collate)
    with pytest.raises(ValueError, match="b/2.png cannot be decoded"):
        list(loader)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
def test_memory_does_not_grow_with_the_images_read(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    (tmp_path / "a").mkdir()
    for i in range(200):
        Image.new("RGB", (160, 160), (i, 0, 0)).save(tmp_path / "a" / f"{i}.jpg")
    data = ImageFolder(tmp_path)
    for i in range(50):
        data[i]
    before = resident()
    for _ in range(2):
        for i in range(len(data)):
            data[i]
    assert resident() - before < 10  # MB; the 400 images read take 30


def test_the_fingerprint_tells_files_boxes_labels_and_transforms(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)

    def of(files=("a.png", "b.png"), labels=((0,), (1,)), boxes=(((1, 1, 5, 5),), ()), transform=None, folder=tmp_path):
        items = [Item(f, [*a], [*b], [0] * len(b)) for f, a, b in zip(files, labels, boxes, strict=True)]
        return FileDataset(folder, items, ["x", "y"], transform).fingerprint()

    first = of()
    assert first == of()
    others = [
        of(labels=((0, 1), ())),
        of(files=("b.png", "a.png")),
        of(labels=((0,), (0,))),
        of(boxes=((), ((1, 1, 5, 5),))),
        of(boxes=(((1, 1, 5, 6),), ())),
        of(transform=eval_transform(32)),
        of(transform=eval_transform(64)),
    ]
    Image.new("RGB", (41, 30)).save(tmp_path / "a.png")
    assert len({first, *others, of()}) == 9
    moved = shutil.copytree(tmp_path, tmp_path / "moved")  # keeps the files' times
    assert of() == of(folder=moved)


# ---- ImageFolder


@pytest.fixture
def root(tmp_path):
    for name in ("train/n02/x.JPEG", "train/n01/b.jpg", "train/n01/a.png", "train/deep/er/z.jpg", "val/n02/v.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    (tmp_path / "train/n01/notes.txt").write_text("not data")
    return tmp_path


def test_classes_are_folders(root):
    data = ImageFolder(root, "train")
    assert data.classes == ["deep/er", "n01", "n02"] and not data.multilabel and not data.groups
    assert [s.name for s in data] == ["deep/er/z", "n01/a", "n01/b", "n02/x"]
    assert data.targets.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert [s.labels.tolist() for s in data] == data.targets.tolist()
    sample = data[1]
    assert sample.boxes.shape == (0, 4) and sample.masks is None and not sample.annotated


def test_without_split(root):
    assert ImageFolder(root / "train").classes == ["deep/er", "n01", "n02"]


def test_a_class_has_one_index_in_every_split(root):
    (root / "devkit/empty").mkdir(parents=True)  # neither this nor a test split without classes adds any
    (root / "test").mkdir()
    Image.new("RGB", (6, 4)).save(root / "test/t.jpg")
    Image.new("RGB", (6, 4)).save(root / "loose.jpg")
    data = ImageFolder(root, "val")
    assert data.classes == ImageFolder(root, "train").classes == ["deep/er", "n01", "n02"]
    assert data.targets.tolist() == [[0, 0, 1]]


def test_given_classes_fix_the_indices(root):
    assert ImageFolder(root, "val", classes=["n01", "n02"]).targets.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="unknown class n02; known: n01, n03"):
        ImageFolder(root, "val", classes=["n01", "n03"])


def test_bad_folders_are_named(root):
    with pytest.raises(FileNotFoundError, match="test does not exist.*<split>/<class>"):
        ImageFolder(root, "test")
    (root / "val/empty").mkdir()
    with pytest.raises(ValueError, match="val/empty has no images"):
        ImageFolder(root, "val")
    Image.new("RGB", (6, 4)).save(root / "val/stray.jpg")
    with pytest.raises(ValueError, match="stray.jpg is in no class folder"):
        ImageFolder(root, "val")
    (root / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing: the split is empty"):
        ImageFolder(root, "nothing")


def test_what_is_hidden_is_no_data(root):
    before = [s.name for s in ImageFolder(root, "train")]
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/n01/a.png", "n01/._a.png", ".DS_Store.png"):
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(root / "train" / name)
    assert [s.name for s in ImageFolder(root, "train")] == before
