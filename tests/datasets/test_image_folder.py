import pytest
from PIL import Image

from e2lib.datasets import ImageFolder


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
