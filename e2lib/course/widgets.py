"""What a reader can touch: a playground for guidance, and explorers of maps, fronts, students and shortcuts.

A plain function draws the state of each as a Figure. A thin panel of ipywidgets calls it again after each change. The
output also holds the first picture, which a notebook shows where no kernel runs. The panel shows errors.
"""

import base64
import copy
import html
import io
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import traitlets
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors

from e2lib import figures, training
from e2lib.attribution import METHODS, explain
from e2lib.boxes import box_mask
from e2lib.datasets import Sample, Scenes, collate
from e2lib.datasets.scenes import HOMES
from e2lib.guidance import LOSSES, Guide
from e2lib.metrics import epg
from e2lib.models import Model
from e2lib.pareto import ParetoArchive

HERE = Path(__file__).parent
LEAST = 4  # pixels per side of a box that one can draw; box_canvas.js has the same
FORMATS = ("JPEG", "PNG", "WEBP")
MOST_BYTES = 8_000_000  # of an uploaded file: Jupyter's server passes on messages of at most 10 MB
MOST_PIXELS = 30_000_000  # of an uploaded image, before it is decoded: 90 MB in memory


def read_image(name: str, content: bytes, size: int) -> Tensor:
    """The middle square of a reader's image file, turned as its EXIF data say, as uint8 RGB (3, size, size).

    ValueError for a file that is too large, has too many pixels, is damaged, or has another format.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name} has {len(content) / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f} MB can be uploaded")
    most = f"at most {MOST_PIXELS / 1e6:.0f} million pixels can be uploaded"
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if (pixels := image.width * image.height) > MOST_PIXELS:
            raise ValueError(f"{name} has {pixels / 1e6:.0f} million pixels; {most}")
        image = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (size, size))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}; {most}") from error
    except (OSError, SyntaxError) as error:  # from Pillow, for files that are not images or end too early
        raise ValueError(f"{name} cannot be read as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}: {error}") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def with_box(sample: Sample, c: int, box: Sequence[int]) -> Sample:
    """The sample with one box (x1, y1, x2, y2) of class `c` instead of its own, and without masks."""
    boxes = tv_tensors.wrap(torch.tensor([box], dtype=torch.float32), like=sample.boxes)
    return replace(sample, boxes=boxes, box_labels=torch.tensor([c]), masks=None)


def guided(
    model: Model, sample: Sample, loss: str = "energy", at: str = "Input", weight: float = 1.0, steps: int = 10
) -> Model:
    """A copy of a network, guided by the boxes of one image with `steps` of Adam. The rate falls from 2e-4 to 0.

    Only what comes after the layer `at` learns. `weight` is λ.
    """
    step = Guide(loss, method_of(model), at, weight)
    model = copy.deepcopy(model)
    layer = f"{model.depths[at]}."
    before = [i for i, (name, _) in enumerate(model.named_parameters()) if name.startswith(layer)]
    for i, parameter in enumerate(model.parameters()):  # in the order in which the network is built and run
        parameter.requires_grad_(i > max(before, default=-1))
    training.fit(model, [sample], steps, lr=2e-4, batch_size=1, step=step)
    return model


def method_of(model: Model) -> str:
    """The method that guides a network: contributions for a B-cos network, IxG for others."""
    return "bcos" if model.is_bcos else "ixg"


def at_home(scenes: Scenes, i: int) -> bool:
    """Whether the first object of a scene is at home in its background."""
    record = scenes.record(i)
    return scenes.classes[record.objects[0].label] in HOMES[record.context]


def by_home(networks: dict[str, Model], scenes: Scenes) -> pd.DataFrame:
    """Accuracy of networks, by name, on scenes of one object: one row per network, in per cent.

    Columns: "at home" and "elsewhere", nan where there is no scene, and "accuracy". ValueError for several objects.
    """
    if scenes.multilabel:
        raise ValueError(f"scenes have up to {scenes.objects} objects; accuracy needs objects=1")
    batch = collate([scenes[i] for i in range(len(scenes))])
    home = torch.tensor([at_home(scenes, i) for i in range(len(scenes))])
    rows = {}
    for name, model in networks.items():
        right = 100 * (_logits(model, batch.images).argmax(1) == batch.labels.argmax(1)).float()
        parts = {"at home": right[home], "elsewhere": right[~home], "accuracy": right}
        rows[name] = {part: values.mean().item() for part, values in parts.items()}
    return pd.DataFrame(rows).T


@torch.no_grad()
def _logits(model: Model, images: Tensor) -> Tensor:
    return model(images.to(next(model.parameters()).device)).cpu()


def draw_explanation(
    model: Model, image: Tensor, c: int, classes: Sequence[str], method: str = "ixg", at: str = "Input"
) -> Figure:
    """One image, uint8 (3, H, W), its map for class `c`, and the softmax probabilities of the likeliest classes.

    `classes` are names. `method` and `at` are as in `explain`; a method that takes steps takes 8.
    """
    x = image[None].float().to(next(model.parameters()).device) / 255
    logits, maps = explain(model, x, torch.tensor([c], device=x.device), method, at, steps=8)
    q = logits[0].softmax(0).cpu()
    top = [*q.topk(min(5, len(q))).indices.tolist()]
    top = top if c in top else [*top[:-1], c]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.2), width_ratios=[1, 1, 0.9])
    photo = image.permute(1, 2, 0)
    left.imshow(photo)
    figures.show_map(middle, maps[0, 0], photo.float() / 255)
    middle.set_title(f"{figures.NAMES.get(method, method)} at {at}: {classes[c]}", fontsize=11)
    colours = [figures.COLOURS[3] if k == c else "0.6" for k in top]
    right.barh([classes[k] for k in top], (100 * q[top]).numpy(), color=colours)
    right.set(xlim=(0, 100), xlabel="probability, per cent")
    right.invert_yaxis()
    _plain(left, middle)
    return figure


def draw_networks(
    networks: dict[str, Model], sample: Sample, c: int, classes: Sequence[str], at: str = "Input"
) -> Figure:
    """One image as several networks see it at one depth: maps of class `c`, with EPG and cosine to the first map.

    EPG counts the boxes of class `c`. Bars show sigmoid probabilities: of `c`, and where a network gives 10 % or more.
    """
    batch, photo = collate([sample]), sample.image.permute(1, 2, 0)
    boxes = sample.boxes[sample.box_labels == c]
    target, mask = torch.tensor([c]), box_mask(boxes, batch.size)
    found = {}
    for name, model in networks.items():
        x = batch.images.to(next(model.parameters()).device)
        logits, maps = explain(model, x, target.to(x.device), method_of(model), at)
        found[name] = logits[0].sigmoid().cpu(), maps.cpu()
    shown = [k for k in range(len(classes)) if k == c or max(q[k] for q, _ in found.values()) > 0.1]
    columns, width = len(found) + 1, 3.1 if len(found) < 3 else 2.6  # inches
    height = max(width + 0.5, 1 + 0.13 * len(shown) * len(found))  # bars of a width that one can see
    size, ratios = (width * columns + 3.2, height), [1] * columns + [0.7]
    figure, (first, *others, bars) = plt.subplots(1, columns + 1, figsize=size, width_ratios=ratios)
    first.imshow(photo)
    first.set_title("photograph and box", fontsize=11)
    (reference, (_, compared)), *_ = found.items()
    for axis, (name, (_, maps)) in zip(others, found.items(), strict=True):
        figures.show_map(axis, maps[0, 0], photo.float() / 255)
        axis.set_title(f"{name}: {classes[c]}", fontsize=11)
        like = f"\ncosine to {reference}: {F.cosine_similarity(maps.flatten(), compared.flatten(), 0):.2f}"
        inside = f"EPG {100 * epg(maps, mask[None, None]).item():.0f} %"
        axis.set_xlabel(inside + like * (name != reference), fontsize=11)
    for axis in (first, *others):
        for box in boxes.tolist():
            figures.add_box(axis, box, "yellow" if axis is first else "black")
    shares = {name: (100 * q[shown]).numpy() for name, (q, _) in found.items()}
    table = pd.DataFrame(shares, [classes[k] for k in shown])
    table.plot.barh(ax=bars, width=0.8, color=figures.COLOURS).invert_yaxis()
    bars.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    bars.set(xlabel="probability, per cent", xlim=(0, 100))
    _plain(first, *others)
    return figure


def draw_correlation(networks: dict[str, Model], scenes: Scenes) -> Figure:
    """The first six scenes, and each network's accuracy at home and elsewhere. Arguments are as in `by_home`."""
    table = by_home(networks, scenes)
    figure = plt.figure(figsize=(10.5, 5.6))
    axes = figure.subplot_mosaic([[*range(6)], ["bars"] * 6], height_ratios=[1, 1.8])
    bars = axes.pop("bars")
    for i, axis in axes.items():
        axis.imshow(scenes[i].image.permute(1, 2, 0))
        where = "at home" if at_home(scenes, i) else "elsewhere"
        axis.set_title(f"{scenes.classes[scenes[i].box_labels[0]]}\n{where}", fontsize=10)
    _plain(*axes.values())
    home = sum(at_home(scenes, i) for i in range(len(scenes)))
    names = {"at home": f"at home ({home})", "elsewhere": f"elsewhere ({len(scenes) - home})"}
    table[[*names]].rename(columns=names).plot.bar(ax=bars, rot=0, color=figures.COLOURS, width=0.6)
    for group in bars.containers:
        bars.bar_label(group, fmt=lambda height: "" if np.isnan(height) else f"{height:.0f}", fontsize=10)
    title = f"{len(scenes)} scenes, correlation {scenes.correlation:.1f}"
    bars.set(ylim=(0, 112), ylabel="accuracy, per cent", title=title)
    bars.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _plain(*axes: plt.Axes) -> None:
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)


def jpeg(figure: Figure) -> bytes:
    """The bytes of a JPEG file of a figure, which is closed."""
    plt.close(figure)
    return _file(figure.savefig, format="jpeg", dpi=72, pil_kwargs={"quality": 85})


def _file(save: Callable, **how: Any) -> bytes:
    file = io.BytesIO()
    save(file, **how)
    return file.getvalue()


class BoxCanvas(anywidget.AnyWidget):
    """A photograph on which the reader draws one box with mouse, finger or keyboard. TraitError for a wrong box."""

    _esm = HERE / "box_canvas.js"
    photo = traitlets.Bytes().tag(sync=True)  # a PNG file
    width, height = traitlets.Int().tag(sync=True), traitlets.Int().tag(sync=True)  # its pixels
    box = traitlets.List(traitlets.Int(), minlen=4, maxlen=4).tag(sync=True)  # x1, y1, x2, y2 in pixels, half-open

    @traitlets.validate("box")
    def _is_a_box(self, proposal):
        x1, y1, x2, y2 = box = proposal["value"]
        if not (0 <= x1 <= x2 - LEAST <= self.width - LEAST and 0 <= y1 <= y2 - LEAST <= self.height - LEAST):
            inside = f"within {self.width} x {self.height} pixels, at least {LEAST} wide and high"
            raise traitlets.TraitError(f"box is {box}; it must be [x1, y1, x2, y2] {inside}")
        return box


class PictureButtons(anywidget.AnyWidget):
    """A picture with points, which the reader chooses by click, keyboard, or a mouse that rests on one."""

    _esm = HERE / "picture_buttons.js"
    picture = traitlets.Bytes().tag(sync=True)  # a JPEG file
    text = traitlets.Unicode().tag(sync=True)  # what it shows, for readers who do not see it
    points = traitlets.List().tag(sync=True)  # "x", "y" from the upper left, in fractions of the picture, and "label"
    chosen = traitlets.Int().tag(sync=True)  # index of a point


class Panel(ipywidgets.VBox):
    """Controls above progress, errors and a picture. The widget `beside` is to the left of the picture.

    `text` says what the picture shows. A subclass draws its state in `draw`, and calls `show` at the end of `__init__`.
    """

    def __init__(self, controls: Sequence[ipywidgets.Widget], text: str, beside: ipywidgets.DOMWidget | None = None):
        self.text, self.drawn, self._answering = text, b"", False
        self.picture = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 480px", min_width="0") if beside else {})
        self.message, self.console = ipywidgets.HTML(), ipywidgets.Output()
        shown = _row(beside, self.picture) if beside else self.picture
        super().__init__([*controls, self.message, self.console, shown])

    def show(self) -> None:
        """Draw the present state."""
        self.drawn = jpeg(self.draw())
        source = base64.b64encode(self.drawn).decode()
        # The Image of ipywidgets has no alternative text.
        alt, style = html.escape(self.text), "max-width: 100%"
        self.picture.value = f'<img alt="{alt}" style="{style}" src="data:image/jpeg;base64,{source}">'

    def draw(self) -> Figure:
        """The present state as a Figure."""
        raise NotImplementedError

    def when(self, changed: dict[ipywidgets.Widget, str], answer: Callable[[], Any] = lambda: None) -> None:
        """Call `answer`, then draw, after a reader, not an answer, changed a trait; show errors above the picture."""

        def call(_) -> None:
            if self._answering:
                return
            self._answering = True
            self.console.clear_output()
            with self.console:
                try:
                    self.message.value = "working …"
                    answer()
                    self.show()
                    self.message.value = ""
                except Exception as error:
                    text = str(error) if isinstance(error, ValueError) else traceback.format_exc()
                    style = "color: #b00020; white-space: pre-wrap"
                    self.message.value = f"<div role='alert' style='{style}'>{html.escape(text)}</div>"
                finally:
                    self._answering = False

        for widget, trait in changed.items():
            if trait == "click":
                widget.on_click(call)
            else:
                widget.observe(call, trait)

    def _repr_mimebundle_(self, **kwargs) -> dict[str, Any]:
        """As for every widget, and its picture, which shows where no kernel runs."""
        bundle = super()._repr_mimebundle_(**kwargs)
        bundle["image/jpeg"] = base64.b64encode(self.still()).decode()
        bundle["text/plain"] = f"{self.text} (Run this cell to use it.)"
        return bundle

    def still(self) -> bytes:
        """The panel's present picture, a JPEG file."""
        return self.drawn


def _dropdown(options: Sequence, description: str, value: Any = None) -> ipywidgets.Dropdown:
    layout = ipywidgets.Layout(width="max-content", max_width="340px")
    style, chosen = {"description_width": "initial"}, {} if value is None else {"value": value}
    return ipywidgets.Dropdown(options=options, description=description, layout=layout, style=style, **chosen)


def _row(*widgets: ipywidgets.Widget) -> ipywidgets.HBox:
    return ipywidgets.HBox(widgets, layout=ipywidgets.Layout(flex_flow="row wrap", grid_gap="4px 14px"))


def _scenes(scenes: Scenes, chosen: int) -> ipywidgets.Dropdown:
    names = [", ".join(name for name, _ in _present(scenes, i)) for i in range(len(scenes))]
    return _dropdown([(f"{i}: {name}", i) for i, name in enumerate(names)], "scene", chosen)


def _present(scenes: Scenes, i: int) -> list[tuple[str, int]]:
    """Name and index of each class in a scene."""
    return [(scenes.classes[c], c) for c in scenes.targets[i].nonzero()[:, 0].tolist()]


class Playground(Panel):
    """Draw a box on one of the scenes, guide a network with it, and see what that changes, here and on other scenes.

    `model` knows the classes of the scenes, and stays as it is. Each press of *Guide* takes `steps` of Adam and appends
    a network to `networks`. F1 and EPG on `others` show what changed there. Scene number `scene` comes first.
    """

    def __init__(self, model: Model, scenes: Scenes, others: Scenes, scene: int = 0, steps: int = 10):
        self.networks, self.notes, self.steps = [model], [""], steps
        self.scenes, self.others, self.before = scenes, others, {}
        self.scene, self.target = _scenes(scenes, scene), _dropdown(_present(scenes, scene), "class")
        self.loss, self.at = _dropdown([*LOSSES], "loss"), _dropdown([*model.depths], "depth")
        self.weight = ipywidgets.FloatLogSlider(1.0, min=-2, max=1, step=0.25, description="λ", readout_format=".2f")
        self.guide = ipywidgets.Button(description="Guide", button_style="primary", tooltip="train with this box")
        self.undo = ipywidgets.Button(description="Undo", tooltip="back to before the last press")
        side = scenes.size
        layout = ipywidgets.Layout(width="300px", min_width="220px", margin="0 12px 0 4px")
        self.canvas = BoxCanvas(width=side, height=side, box=[0, 0, side, side], layout=layout)
        rows = [_row(self.scene, self.target, self.loss, self.at, self.weight), _row(self.guide, self.undo)]
        text = "Playground: a photograph with a box, and a network's explanation before and after guidance with it."
        super().__init__(rows, text, self.canvas)
        self.when({self.scene: "value"}, self._choose_scene)
        self.when({self.target: "value"}, self._take_box)
        self.when({self.canvas: "box", self.at: "value"})
        self.when({self.guide: "click"}, self._guide)
        self.when({self.undo: "click"}, self._undo)
        self._choose_scene()
        self.show()

    def draw(self) -> Figure:
        networks = {"before": self.networks[0]} | ({"after": self.networks[-1]} if len(self.networks) > 1 else {})
        figure = draw_networks(networks, self._sample(), self.target.value, self.scenes.classes, self.at.value)
        figure.suptitle(self.notes[-1], fontsize=11)
        self.undo.disabled = len(self.networks) == 1
        return figure

    def _sample(self) -> Sample:
        return with_box(self.scenes[self.scene.value], self.target.value, self.canvas.box)

    def _choose_scene(self) -> None:
        self.target.options = _present(self.scenes, self.scene.value)
        photo = Image.fromarray(self.scenes[self.scene.value].image.permute(1, 2, 0).numpy())
        self.canvas.photo = _file(photo.save, format="png")
        self._take_box()

    def _take_box(self) -> None:
        """Take the scene's first box of the chosen class."""
        sample = self.scenes[self.scene.value]
        box = sample.boxes[sample.box_labels == self.target.value][0].int().tolist()
        self.canvas.box = _at_least(box, self.scenes.size)

    def _guide(self) -> None:
        at = self.at.value
        model = guided(self.networks[-1], self._sample(), self.loss.value, at, self.weight.value, self.steps)
        if at not in self.before:
            self.before[at] = self._elsewhere(self.networks[0], at)
        after = self._elsewhere(model, at)
        changes = ", ".join(f"{name} {old:.0f} → {after[name]:.0f}" for name, old in self.before[at].items())
        self.networks.append(model)
        self.notes.append(f"On {len(self.others)} other scenes, in per cent: {changes} (at {at})")

    def _undo(self) -> None:
        self.networks.pop()
        self.notes.pop()

    def _elsewhere(self, model: Model, at: str) -> dict[str, float]:
        scores = training.evaluate(model, self.others, 8, method_of(model), at, threshold=0.05)
        return {name: scores[name] for name in ("F1", "EPG")}


def _at_least(box: list[int], side: int) -> list[int]:
    """A box in an image of `side` pixels per side, made at least LEAST pixels wide and high."""
    low = [min(value, side - LEAST) for value in box[:2]]
    return [*low, *(max(high, start + LEAST) for high, start in zip(box[2:], low, strict=True))]


class Explanations(Panel):
    """Any method at any depth, for any class of any image, also of the reader's own images.

    `images` are square, uint8 (3, H, W), by name; there is at least one. `classes` are names.
    """

    def __init__(self, model: Model, images: dict[str, Tensor], classes: Sequence[str]):
        self.model, self.images, self.classes = model, dict(images), classes
        methods = [m for m in METHODS if m != "attention_rollout" and (m != "bcos" or model.is_bcos)]
        self.image, self.target = _dropdown([*images], "image"), _dropdown(self._ranked(next(iter(images))), "class")
        self.method, self.at = _dropdown(methods, "method", method_of(model)), _dropdown([*model.depths], "depth")
        self.upload = ipywidgets.FileUpload(accept=".jpg,.jpeg,.png,.webp", description="Your image")
        text = "Explorer of explanations: a photograph, a method's map of it for a class, and the network's answer."
        super().__init__([_row(self.image, self.upload, self.target, self.method, self.at)], text)
        self.when({self.image: "value"}, self._choose_image)
        self.when({self.upload: "value"}, self._add_image)
        self.when({self.method: "value"}, self._choose_depth)
        self.when({self.target: "value", self.at: "value"})
        self.show()

    def draw(self) -> Figure:
        image = self.images[self.image.value]
        return draw_explanation(self.model, image, self.target.value, self.classes, self.method.value, self.at.value)

    def _ranked(self, name: str) -> list[tuple[str, int]]:
        """Name and index of each class, likeliest first."""
        order = _logits(self.model, self.images[name][None].float() / 255)[0].argsort(descending=True)
        return [(self.classes[c], c) for c in order.tolist()]

    def _choose_image(self) -> None:
        self.target.options = self._ranked(self.image.value)

    def _choose_depth(self) -> None:
        """Show methods of the input at the input."""
        self.at.disabled = METHODS[self.method.value].of_score
        self.at.value = "Input" if self.at.disabled else self.at.value

    def _add_image(self) -> None:
        (file,) = self.upload.value
        side = next(iter(self.images.values())).shape[1]
        self.images[file["name"]] = read_image(file["name"], bytes(file["content"]), side)
        self.image.options = [*self.images]
        self.image.value = file["name"]
        self._choose_image()


class Comparison(Panel):
    """Several networks on one scene: their maps of a class, how similar these are, and the networks' answers.

    `networks` are by name; the others are compared with the first. The depth `at` and scene number `scene` come first.
    """

    def __init__(self, networks: dict[str, Model], scenes: Scenes, at: str = "Input", scene: int = 0):
        self.networks, self.scenes = networks, scenes
        self.scene, self.target = _scenes(scenes, scene), _dropdown(_present(scenes, scene), "class")
        self.at = _dropdown([*next(iter(networks.values())).depths], "depth", at)
        super().__init__([_row(self.scene, self.target, self.at)], "One scene, as several networks explain it.")
        self.when({self.scene: "value"}, self._choose_scene)
        self.when({self.target: "value", self.at: "value"})
        self.show()

    def draw(self) -> Figure:
        sample = self.scenes[self.scene.value]
        return draw_networks(self.networks, sample, self.target.value, self.scenes.classes, self.at.value)

    def _choose_scene(self) -> None:
        self.target.options = _present(self.scenes, self.scene.value)


class Front(Comparison):
    """A Pareto front with at least one point. The chosen point shows the explanations of its network.

    `start` is the network with which the search began, `baseline` its F1 and EPG, in per cent, on the images that the
    archive was measured on; `scenes`, `at` and `scene` are as in `Comparison`.
    """

    def __init__(
        self, archive: ParetoArchive, start: Model, baseline: dict, scenes: Scenes, at: str = "Input", scene: int = 0
    ):
        self.points = sorted(archive.front, key=lambda point: point["scores"]["F1"])
        self.names = ["λ = {weight:g}, epoch {epoch}".format(**point["setting"]) for point in self.points]
        self.archive, self.start = archive, start
        figure = figures.show_front(archive.points, baseline, floor=baseline["F1"] - 1)
        figure.canvas.draw()  # places the axes
        area, buttons = figure.bbox, []
        for name, point in zip(self.names, self.points, strict=True):
            f1, inside = point["scores"]["F1"], point["scores"]["EPG"]
            x, y = (figure.axes[0].transData.transform((f1, inside)) / area.size).tolist()
            buttons.append({"x": x, "y": 1 - y, "label": f"{name}: F1 {f1:.1f}, EPG {inside:.1f}"})
        text = "F1 against EPG of networks."
        self.buttons = PictureButtons(picture=jpeg(figure), text=text, points=buttons, chosen=0)
        self.buttons.layout.max_width = f"{area.width:.0f}px"
        super().__init__({"λ = 0": start}, scenes, at, scene)
        self.children = [self.buttons, *self.children]
        self.when({self.buttons: "chosen"})

    def draw(self) -> Figure:
        chosen = self.buttons.chosen
        self.networks = {"λ = 0": self.start, self.names[chosen]: self.archive.load(self.points[chosen], self.start)}
        return super().draw()

    def still(self) -> bytes:
        """The front above the chosen point's maps, on white."""
        front, maps = (Image.open(io.BytesIO(file)) for file in (self.buttons.picture, self.drawn))
        sheet = Image.new("RGB", (max(front.width, maps.width), front.height + maps.height), "white")
        sheet.paste(front)
        sheet.paste(maps, (0, front.height))
        return _file(sheet.save, format="jpeg", quality=85)


class Shortcut(Panel):
    """Accuracy at home and elsewhere, on scenes that are composed anew after each change of the correlation.

    `networks`, by name, know the ten classes of Scenes. `images` is the number of scenes, `size` their pixels per side.
    """

    def __init__(self, networks: dict[str, Model], size: int, images: int, seed: int = 0):
        self.networks, self.size, self.images, self.seed = networks, size, images, seed
        how = {"description": "correlation", "continuous_update": False, "readout_format": ".1f"}
        self.correlation = ipywidgets.FloatSlider(0.8, min=0, max=1, step=0.1, **how)
        text = "Accuracy of networks on objects at home in their background, and elsewhere."
        super().__init__([self.correlation], text)
        self.when({self.correlation: "value"})
        self.show()

    def draw(self) -> Figure:
        scenes = Scenes("test", self.images, self.size, self.correlation.value, self.seed, objects=1)
        return draw_correlation(self.networks, scenes)
