"""Panels answer as a reader would see it: the picture changes, and what goes wrong is said."""

import io
import struct
import subprocess
import sys
import time
import zlib
from datetime import UTC, datetime

import matplotlib.pyplot as plt
import pytest
import torch
import traitlets
from PIL import Image

from e2lib import datasets, models, pareto
from e2lib.attribution import explain
from e2lib.course import widgets
from e2lib.guidance import Guide
from e2lib.metrics import epg

SIZE = 64


@pytest.fixture(scope="module")
def network():
    return models.build("bcos_scenes", 10, "scenes").eval()


@pytest.fixture(scope="module")
def scenes():
    return datasets.Scenes("test", 4, SIZE)


@pytest.fixture
def playground(network, scenes):
    return widgets.Playground(network, scenes, datasets.Scenes("test", 4, SIZE, seed=1), scene=1)


def file(size=(300, 200), kind="JPEG", **options):
    content = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(content, kind, **options)
    return content.getvalue()


# ---- reading a reader's image


@pytest.mark.parametrize("kind", widgets.FORMATS)
def test_an_image_is_read_at_the_networks_size(kind):
    image = widgets.read_image("a", file(kind=kind), SIZE)
    assert (image.shape, image.dtype) == ((3, SIZE, SIZE), torch.uint8)
    assert (image.float().mean((1, 2)) - torch.tensor([200.0, 30, 30])).abs().max() < 4


def test_the_middle_square_is_read():
    image = Image.new("RGB", (300, 100), "black")
    image.paste((255, 255, 255), (100, 0, 200, 100))
    content = io.BytesIO()
    image.save(content, "PNG")
    assert widgets.read_image("a", content.getvalue(), SIZE)[:, 2:-2, 2:-2].min() == 255


def test_an_image_is_turned_as_the_camera_says():
    image = Image.new("RGB", (100, 100), "black")
    image.paste((255, 255, 255), (0, 0, 100, 50))  # the upper half
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(content, "JPEG", exif=exif)
    read = widgets.read_image("a", content.getvalue(), SIZE).float().mean((0, 2))
    assert read[0] < 10 and read[-1] > 245


def huge(width, height):
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no image", "my.jpg cannot be read as JPEG, PNG or WEBP"),
        (file()[:400], "my.jpg cannot be read as JPEG, PNG or WEBP"),
        (file(kind="GIF"), "my.jpg cannot be read as JPEG, PNG or WEBP"),
        (b"x" * (widgets.MOST_BYTES + 1), "my.jpg has 8.0 MB; at most 8 MB"),
        (huge(8000, 8000), "my.jpg has 64 million pixels; at most 30 million"),
        (huge(10**5, 10**5), "at most 30 million pixels"),
    ],
    ids=["no image", "cut off", "another type", "too large", "too many pixels", "bomb"],
)
def test_a_wrong_file_is_refused_by_name(content, said):
    with pytest.raises(ValueError, match="my.jpg") as error:
        widgets.read_image("my.jpg", content, SIZE)
    assert said in str(error.value)


# ---- guidance by one box


def inside(model, sample):
    masks = torch.zeros(1, 1, *sample.image.shape[1:], dtype=torch.bool)
    x1, y1, x2, y2 = sample.boxes[0].int().tolist()
    masks[..., y1:y2, x1:x2] = True
    images = sample.image[None].as_subclass(torch.Tensor).float() / 255
    return epg(explain(model, images, sample.box_labels[:1], "bcos", "Input").maps, masks).item()


def test_guidance_moves_the_map_into_the_box_and_leaves_the_network_alone(network):
    key, sample = models.fingerprint(network), datasets.Scenes("test", 2, 128)[1]
    sample = widgets.with_box(sample, int(sample.box_labels[0]), sample.boxes[0].int().tolist())
    after = widgets.guided(network, sample, steps=5)
    assert inside(after, sample) > inside(network, sample) + 0.05
    assert models.fingerprint(network) == key


@pytest.mark.parametrize(("at", "first"), [("Input", "conv1"), ("Mid2", "layer3"), ("Mid3", "layer4"), ("Final", "fc")])
def test_what_lies_behind_the_depth_learns(network, scenes, at, first):
    sample = widgets.with_box(scenes[0], int(scenes[0].box_labels[0]), [10, 10, 40, 30])
    after = widgets.guided(network, sample, at=at, steps=1, weight=10.0)
    names = [name for name, _ in network.net.named_parameters()]
    changed = {
        name.split(".")[0]
        for (name, old), new in zip(network.net.named_parameters(), after.net.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    parts = list(dict.fromkeys(name.split(".")[0] for name in names))
    assert changed <= set(parts[parts.index(first) :]) and first in changed


# ---- the playground


def test_a_press_of_guide_answers_soon(playground):
    before, start = playground.picture.value, time.perf_counter()
    playground.guide.click()
    assert time.perf_counter() - start < 20  # five seconds on two idle cores at 128 pixels; tests share theirs
    assert not playground.message.value
    assert playground.picture.value != before
    assert "other scenes" in playground.notes[-1]


def test_undo_takes_the_last_press_back(playground):
    before = playground.picture.value
    assert playground.undo.disabled
    playground.guide.click()
    assert not playground.undo.disabled
    playground.undo.click()
    assert playground.undo.disabled and playground.picture.value == before


def test_a_scene_brings_its_classes_and_its_box(playground, scenes):
    playground.scene.value = 2
    c = scenes[2].box_labels[0].item()
    assert [value for _, value in playground.target.options] == scenes.targets[2].nonzero()[:, 0].tolist()
    playground.target.value = c
    assert playground.canvas.box == scenes[2].boxes[0].int().tolist()
    before = playground.picture.value
    playground.canvas.box = [0, 0, 20, 20]
    assert playground.picture.value != before and not playground.message.value


@pytest.mark.parametrize("box", [[0, 0, 3, 30], [0, 0, 10, 65], [-1, 0, 10, 10], [20, 0, 10, 10], [0, 0, 10]])
def test_a_wrong_box_is_refused(playground, box):
    with pytest.raises(traitlets.TraitError, match="box"):
        playground.canvas.box = box


@pytest.mark.parametrize(
    ("box", "widened"),
    [([5, 6, 20, 30], [5, 6, 20, 30]), ([5, 6, 6, 30], [5, 6, 9, 30]), ([63, 62, 64, 64], [60, 60, 64, 64])],
)
def test_a_thin_box_is_widened(box, widened):
    assert widgets._at_least(box, SIZE) == widened


def test_an_error_is_shown_where_the_reader_looks(playground, monkeypatch):
    def fail(*_):
        raise RuntimeError("<out of luck>")

    monkeypatch.setattr(widgets, "guided", fail)
    playground.guide.click()
    assert "role='alert'" in playground.message.value
    assert "RuntimeError: &lt;out of luck&gt;" in playground.message.value and "in fail" in playground.message.value
    playground.canvas.box = [0, 0, 20, 20]  # and it goes on
    assert not playground.message.value


# ---- the explorers


@pytest.fixture
def explorer(network, scenes):
    return widgets.Explanations(network, {"first": scenes[0].image, "second": scenes[1].image}, scenes.classes)


def test_each_choice_changes_the_map(explorer):
    seen = {explorer.picture.value}
    for control, value in [
        (explorer.method, "gradcam"),
        (explorer.at, "Mid3"),
        (explorer.image, "second"),
        (explorer.target, 0),
    ]:
        control.value = value
        assert not explorer.message.value
        assert explorer.picture.value not in seen
        seen.add(explorer.picture.value)


def test_methods_of_the_input_are_shown_there(explorer):
    explorer.at.value = "Final"
    explorer.method.value = "occlusion"
    assert (explorer.at.value, explorer.at.disabled, explorer.message.value) == ("Input", True, "")
    explorer.method.value = "ixg"
    assert not explorer.at.disabled


def upload(explorer, name, content):
    now = datetime.now(UTC)
    about = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": now}
    explorer.upload.value = (about,)


def test_the_readers_image_is_explained(explorer):
    upload(explorer, "mine.png", file(kind="PNG"))
    assert explorer.image.value == "mine.png" and not explorer.message.value


def test_a_wrong_upload_is_said_and_changes_nothing(explorer):
    before = explorer.picture.value
    upload(explorer, "mine.txt", b"<script>")
    assert "mine.txt cannot be read as JPEG, PNG or WEBP" in explorer.message.value
    assert "Traceback" not in explorer.message.value
    assert explorer.image.value == "first" and explorer.picture.value == before


def test_networks_are_compared(network, scenes):
    after = models.build("bcos_scenes", 10).eval()
    panel = widgets.Comparison({"teacher": network, "student": after}, scenes, at="Final")
    before = panel.picture.value
    panel.scene.value = 2
    assert panel.picture.value != before and not panel.message.value
    figure = widgets.draw_networks({"a": network, "b": network}, scenes[0], 9, scenes.classes)
    assert "cosine to a: 1.00" in figure.axes[2].get_xlabel()
    plt.close(figure)


def test_points_of_a_front_show_their_networks(network, scenes, tmp_path):
    archive = pareto.ParetoArchive(tmp_path)
    for epoch, (f1, where) in enumerate([(80.0, 60.0), (70.0, 70.0), (60.0, 65.0)], 1):
        setting = {"weight": 1.0, "epoch": epoch}
        archive.add(network, setting, {"F1": f1, "EPG": where, "IoU": 10.0})
    panel = widgets.Front(archive, network, {"F1": 80.0, "EPG": 50.0}, scenes, "Input")
    assert panel.names == ["λ = 1, epoch 2", "λ = 1, epoch 1"]  # the third is beaten, and its network gone
    assert all(0 < point[side] < 1 for point in panel.buttons.points for side in "xy")
    left, right = panel.buttons.points
    assert left["x"] < right["x"] and left["y"] < right["y"]  # a picture's y runs downwards
    before = panel.picture.value
    panel.buttons.chosen = 1
    assert panel.picture.value != before and not panel.message.value
    assert Image.open(io.BytesIO(panel.still())).height > Image.open(io.BytesIO(panel.drawn)).height + 200


def test_a_ring_marks_where_the_button_is(network, scenes, tmp_path):
    archive = pareto.ParetoArchive(tmp_path)
    archive.add(network, {"weight": 1.0, "epoch": 1}, {"F1": 80.0, "EPG": 60.0, "IoU": 10.0})
    panel = widgets.Front(archive, network, {"F1": 70.0, "EPG": 40.0}, scenes, "Input")
    picture = Image.open(io.BytesIO(panel.buttons.picture)).convert("RGB")
    (point,) = panel.buttons.points
    red, green, blue = picture.getpixel((round(point["x"] * picture.width), round(point["y"] * picture.height)))
    assert blue > red + 80  # the first of the colours


def test_accuracy_at_home_and_elsewhere(scenes):
    class Name(torch.nn.Module):
        """Says the class whose index the first pixel's red is."""

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return torch.nn.functional.one_hot((255 * x[:, 0, 0, 0]).round().long(), 10).float()

    class Marked(datasets.Scenes):
        """Whose first pixel tells the label, or the wrong one away from home."""

        def __getitem__(self, i):
            sample = super().__getitem__(i)
            right = sample.box_labels[0].item()
            sample.image[0, 0, 0] = right if widgets.at_home(self, i) else (right + 1) % 10
            return sample

    marked = Marked("test", 12, SIZE, 0.5, objects=1)
    table = widgets.by_home({"one": Name()}, marked)
    count = sum(widgets.at_home(marked, i) for i in range(12))
    assert 0 < count < 12
    assert table.loc["one"].tolist() == pytest.approx([100, 0, 100 * count / 12])
    with pytest.raises(ValueError, match="objects=1"):
        widgets.by_home({"one": Name()}, scenes)


def test_the_slider_composes_other_scenes(network):
    panel = widgets.Shortcut({"network": network}, SIZE, images=8)
    seen = {panel.picture.value}
    for value in (0.0, 1.0):  # in both one group is empty
        panel.correlation.value = value
        assert not panel.message.value
        seen.add(panel.picture.value)
    assert len(seen) == 3


# ---- where no kernel runs, and at the start


def test_a_panel_brings_its_picture(explorer):
    bundle = explorer._repr_mimebundle_()
    assert bundle["image/jpeg"].startswith("/9j/")
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"].startswith("Explorer of explanations")


def test_what_is_not_needed_at_the_start_is_not_imported():
    modules = "e2lib.course.widgets, e2lib.course.run"
    code = f"import sys, {modules}; print([n in sys.modules for n in ('nbformat', 'captum', 'bcos')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False, True]"


def test_guides_know_every_loss_of_the_playground(playground):
    for loss in playground.loss.options:
        Guide(loss)
