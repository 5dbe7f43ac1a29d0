import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from e2lib.datasets import ImageFolder, collate, eval_transform, load
from e2lib.datasets.files import FileDataset, Item, read_image, read_lines, read_rows

REAL = Path(__file__).parents[3] / "shared/data"


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


@pytest.mark.parametrize("name", ["imagenette2", "imagenette2-160"])
def test_folders_of_wordnet_ids_have_imagenets_words(tmp_path, name):
    ids = ["n01440764", "n02012849", "n02102040", "n03126707", "n99999999"]  # the second and fourth are both "crane"
    for path in [f"{split}/{c}/{c}_1.JPEG" for split in ("train", "val") for c in ids]:
        (tmp_path / name / path).parent.mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(tmp_path / name / path)
    (tmp_path / name / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    data = load("imagefolder", tmp_path / name, "val", 8)
    words = ["tench", "crane (n02012849)", "English springer", "crane (n03126707)", "n99999999"]
    assert data.classes == words and [s.name for s in data] == [f"{c}/{c}_1" for c in ids]
    some = ImageFolder(tmp_path / name, "val", classes=ids[::-1])
    assert some.classes == words[::-1] and some.targets.argmax(1).tolist() == [4, 3, 2, 1, 0]


@pytest.mark.skipif(not REAL.exists(), reason="the photographs of Imagenette and SUN are not here")
def test_real_folders_are_read():
    data = load("imagefolder", REAL / "imagenette", "val", 64)
    known = dict(line.split("\t") for line in (REAL / "imagenette/classes.txt").read_text().splitlines())
    assert data.classes == [known[c] for c in sorted(known)] and data.targets.sum(0).tolist() == [110] * 10
    scenes = load("imagefolder", REAL / "sun8", "train", 64, 16)
    assert len(scenes.classes) == 8 and not {*scenes.classes} & {*data.classes}
    assert collate([*scenes]).images.shape == (16, 3, 64, 64) and not any(sample.annotated for sample in scenes)


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


# ---- what other programs leave in files


@pytest.mark.parametrize(("suffix", "kind"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_sixteen_bits_of_grey_give_the_upper_eight(tmp_path, suffix, kind):
    values = np.array([[0, 255, 256, 4096, 40000, 65535]])
    Image.fromarray(values.astype(kind)).save(tmp_path / f"deep.{suffix}")
    assert read_image(tmp_path / f"deep.{suffix}").tolist() == [[[0, 0, 1, 16, 156, 255]]] * 3


@pytest.mark.parametrize(("mode", "value"), [("F", 0.25), ("I", 70000)])
def test_pixels_without_a_known_range_are_refused_with_their_mode(tmp_path, mode, value):
    Image.new(mode, (5, 4), value).save(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match=f"depth.tif has mode {mode}; save it with 8 bits"):
        read_image(tmp_path / "depth.tif")


def test_what_pillow_refuses_is_named(tmp_path, monkeypatch):
    text = PngImagePlugin.PngInfo()
    text.add_text("history", "edited " * 200_000, zip=True)
    Image.new("L", (3, 3)).save(tmp_path / "edited.png", pnginfo=text)
    with pytest.raises(ValueError, match="edited.png cannot be decoded: .*too large"):
        read_image(tmp_path / "edited.png")
    Image.new("L", (60, 50)).save(tmp_path / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="scan.png cannot be decoded: .*3000 pixels"):
        read_image(tmp_path / "scan.png")


@pytest.mark.parametrize(("link", "goal"), [("a/deep/x", "a"), ("b/x", ""), ("x", ".."), ("x", "../..")])
def test_a_link_back_is_named(folder, link, goal):
    (folder / "a/deep").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a/deep/0.png")
    os.symlink(folder / goal, folder / link)
    with pytest.raises(ValueError, match=f"{link} is a link back to "):
        ImageFolder(folder)


def test_links_to_other_folders_are_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("RGB", (4, 4)).save(elsewhere / "0.png")
    os.symlink(elsewhere, folder / "c")
    assert ImageFolder(folder).classes == ["a", "b", "c"]


def test_hidden_folders_beside_a_split_name_no_class(root):
    before = ImageFolder(root, "train").classes
    for name in (".cache/thumbs/a.png", "__MACOSX/n99/a.png"):
        (root / name).parent.mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(root / name)
    assert ImageFolder(root, "train").classes == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\ndog\n".encode("utf-16"), "in UTF-8"),
        (b"caf\xe9\n", "in UTF-8: .*byte 0xe9"),
        (b"cat\0\n", "in UTF-8: it has NUL"),
        (b"cat\ndog\n cat \n", "list.txt: 'cat' occurs twice"),
    ],
)
def test_lists_that_cannot_be_meant_are_named(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"list.txt.*{message}" if "occurs" not in message else message):
        read_lines(tmp_path / "list.txt")


def test_lines_end_at_newlines_alone(tmp_path):
    (tmp_path / "list.txt").write_text("hot\u2028dog\n a\x0bb\r\n", encoding="utf-8")
    assert read_lines(tmp_path / "list.txt") == ["hot\u2028dog", "a\x0bb"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name,id\n1,a,2\n", "first line is .*with one id"),
        ("name\na\n", "first line is .*with one id"),
        ("id,name\n1,a,b\n", r"line 2 is \['1', 'a', \['b'\]\]; it must be of 2 columns"),
        ("id,name\n1\n", "line 2: name is None; it must be a text"),
        ("id,name\n\n3,a\n", r"line 3: id is '3'; it must be one of \['1', '2'\]"),
        ('id,name\n1,"a\n', "after line 1: unexpected end"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, text, message):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=f"rows.csv:? ?.*{message}"):
        read_rows(tmp_path / "rows.csv", {"id": ["1", "2"], "name": []})


def test_one_image_twice_and_one_class_twice_are_named(folder):
    with pytest.raises(ValueError, match="'a/0.png' occurs twice"):
        FileDataset(folder, [Item("a/0.png", [0]), Item("b/0.png", [0]), Item("a/0.png", [1])], ["u", "v"])
    for classes in (["u", "v", "u"], "uv"):
        with pytest.raises(ValueError, match="classes of "):
            FileDataset(folder, [Item("a/0.png", [0])], classes)


def test_names_that_are_not_in_unicode_are_kept(folder):
    os.rename(folder / "a/0.png", os.fsencode(folder / "a") + b"/na\xefve.png")
    names = [sample.name for sample in ImageFolder(folder)]
    assert os.fsencode(names[3]) == b"a/na\xefve" and ImageFolder(folder).fingerprint()
