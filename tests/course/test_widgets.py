"""Panels answer as a reader would see it: the picture changes, and what goes wrong is said."""

import base64
import html
import io
import json
import re
import struct
import subprocess
import sys
import time
import zlib
from datetime import UTC, datetime

import pytest
import torch
import traitlets
from PIL import Image

from e2lib import datasets, models
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
    return widgets.Playground(network, scenes, datasets.Scenes("test", 4, SIZE, seed=1), [1, 2, 0], steps=4)


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


def test_a_press_of_guide_moves_the_picture_and_measures(playground, monkeypatch):
    seen, start = [], time.perf_counter()
    playground.picture.observe(lambda change: seen.append(change.new), "value")
    playground.guide.click()
    assert (
        time.perf_counter() - start < 20
    )  # 3 seconds for ten steps on two idle cores at 128 pixels; tests share theirs
    assert not playground.message.value
    assert len(set(seen)) == 2  # while it learns, after the third step, and at the end
    assert len(playground.scores) == len(playground.networks) == 2 and len(playground.presses) == 1
    assert playground.scores[0].keys() == {"F1", "EPG", "still named"}
    assert playground.presses[0]["box"] == playground.canvas.box


def test_undo_takes_the_last_press_back_and_reset_all(playground):
    before = playground.picture.value
    assert playground.undo.disabled and playground.reset.disabled
    playground.guide.click()
    once = playground.picture.value
    playground.guide.click()
    playground.undo.click()
    assert playground.picture.value == once != before
    playground.guide.click()
    playground.reset.click()
    assert playground.undo.disabled and playground.reset.disabled and playground.picture.value == before
    assert len(playground.networks) == len(playground.scores) == 1 and not playground.presses


def shown(playground):
    """The photograph on the canvas."""
    return Image.open(io.BytesIO(playground.canvas.photo))


def test_the_object_is_removed_and_comes_back(playground, scenes):
    before, photo = playground.picture.value, playground.canvas.photo
    playground.remove.value = True
    gone = scenes.without(1, int(scenes[1].box_labels[0])).image
    assert torch.equal(torch.tensor(list(shown(playground).tobytes())).view(SIZE, SIZE, 3), gone.permute(1, 2, 0).int())
    assert playground.picture.value != before
    playground.remove.value = False
    assert (playground.picture.value, playground.canvas.photo) == (before, photo)


def test_guidance_brings_the_object_back(playground):
    playground.remove.value = True
    playground.guide.click()
    assert not playground.remove.value and not playground.message.value


def test_a_picture_keeps_its_shape(playground):
    sizes = {Image.open(io.BytesIO(playground.drawn)).size}
    playground.guide.click()
    sizes.add(Image.open(io.BytesIO(playground.drawn)).size)
    playground.remove.value = True
    assert {*sizes, Image.open(io.BytesIO(playground.drawn)).size} == sizes and len(sizes) == 1


def test_a_thumbnail_brings_its_class_and_its_box(playground, scenes):
    playground.thumbnails.chosen = 1
    first = scenes[2].box_labels[0].item()
    assert playground.target.value == first and not playground.message.value
    assert playground.canvas.box == scenes[2].boxes[0].int().tolist()
    before = playground.picture.value
    playground.canvas.box = [0, 0, 20, 20]
    assert playground.picture.value != before and not playground.message.value
    playground.target.value = next(c for c in range(10) if not scenes[2].labels[c])
    assert playground.canvas.box == [0, 0, 20, 20]  # no object of this class: the reader's box stays


def test_another_picture_says_that_the_network_stays_guided(playground):
    playground.guide.click()
    playground.thumbnails.chosen = 2
    assert "keeps what it has learned" in playground.message.value and len(playground.networks) == 2


def test_the_readers_image_is_guided_and_its_box_emptied(playground):
    upload(playground, "mine.png", file(kind="PNG"))
    assert playground.thumbnails.chosen == 3 and playground.thumbnails.labels[-1] == "mine.png"
    assert not playground.message.value
    playground.guide.click()
    playground.remove.value = True
    assert not playground.message.value and playground.presses[0]["picture"] == "mine.png"
    playground.canvas.box = [0, 0, SIZE, SIZE]
    assert "mask" in playground.message.value  # nothing is left to fill it from


def test_a_wrong_upload_changes_nothing(playground):
    upload(playground, "mine.txt", b"<script>")
    assert "mine.txt cannot be read as JPEG, PNG or WEBP" in playground.message.value
    assert playground.thumbnails.chosen == 0 and len(playground.samples) == 3


def test_picture_and_state_are_saved_under_a_free_name(playground, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    playground.save.click()
    playground.guide.click()
    playground.save.click()
    assert "playground-2.html" in playground.message.value
    first, second = ((tmp_path / f"playground-{number}.html").read_text() for number in (1, 2))
    state = json.loads(html.unescape(re.search("<pre>(.*)</pre>", second, re.S)[1]))
    assert state["presses"] == playground.presses and state["scores"] == playground.scores
    pictures = [base64.b64decode(re.search('base64,([^"]+)"', page)[1]) for page in (first, second)]
    assert pictures[0] != pictures[1] and Image.open(io.BytesIO(pictures[1])).format == "JPEG"


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
    def fail(*_, **__):
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


def test_pressing_makes_no_output_widget(playground):
    """Nbclient, which runs notebooks, answers an Output widget while it waits for the cell, and may wait forever."""
    playground.guide.click()
    found, waiting = set(), [playground]
    while waiting:
        widget = waiting.pop()
        found.add(type(widget).__name__)
        waiting += getattr(widget, "children", ())
    assert "HTML" in found and "Output" not in found
