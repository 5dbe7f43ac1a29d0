"""What a reader can touch: a playground for guidance, and an explorer of explanations.

A panel of ipywidgets draws its state as a Figure after each change. The output also holds the first picture, which a
notebook shows where no kernel runs. The panel shows errors.
"""

import base64
import copy
import html
import io
import itertools
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
import traitlets
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors

from e2lib import figures, training
from e2lib.attribution import METHODS, explain
from e2lib.boxes import box_mask
from e2lib.datasets import Sample, Scenes, Without, collate
from e2lib.datasets.removal import fill
from e2lib.disk import write
from e2lib.guidance import LOSSES, Guide
from e2lib.metrics import epg
from e2lib.models import Model

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
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise ValueError(f"{name} cannot be read as {kinds}: it has another format or is damaged") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def with_box(sample: Sample, c: int, box: Sequence[int]) -> Sample:
    """The sample with one box (x1, y1, x2, y2) of class `c` instead of its own, the label `c` too, and no masks."""
    boxes = tv_tensors.wrap(torch.tensor([box], dtype=torch.float32), like=sample.boxes)
    labels = sample.labels.clone()
    labels[c] = 1
    return replace(sample, labels=labels, boxes=boxes, box_labels=torch.tensor([c]), masks=None)


def guided(
    model: Model,
    sample: Sample,
    loss: str = "energy",
    at: str = "Input",
    weight: float = 1.0,
    steps: int = 10,
    each: Callable[[int, Model], Any] = lambda number, learner: None,
) -> Model:
    """A copy of a network, guided by the boxes of one image with `steps` of Adam, at rate 1e-4.

    Only what comes after the layer `at` learns. `weight` is λ. `each` is called after each step with its number.
    """
    guide, model = Guide(loss, method_of(model), at, weight), copy.deepcopy(model).eval()
    batch = collate([sample]).to(next(model.parameters()).device)
    layer = f"{model.depths[at]}."
    before = [i for i, (name, _) in enumerate(model.named_parameters()) if name.startswith(layer)]
    learning = [*model.parameters()][
        max(before, default=-1) + 1 :
    ]  # in the order in which the network is built and run
    optimizer = torch.optim.Adam(learning, lr=1e-4)
    for number in range(1, steps + 1):
        optimizer.zero_grad()
        sum(guide(model, batch).values()).backward(inputs=learning)
        optimizer.step()
        each(number, model)
    return model


def method_of(model: Model) -> str:
    """The method that guides a network: contributions for a B-cos network, IxG for others."""
    return "bcos" if model.is_bcos else "ixg"


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


def _plain(*axes: plt.Axes) -> None:
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)


def jpeg(figure: Figure, dpi: int = 144) -> bytes:
    """The bytes of a JPEG file of a figure, which is closed."""
    plt.close(figure)
    return _file(figure.savefig, format="jpeg", dpi=dpi, pil_kwargs={"quality": 85})


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


class Thumbnails(anywidget.AnyWidget):
    """A row of small pictures, of which the reader chooses one by click or keyboard."""

    _esm = HERE / "thumbnails.js"
    pictures = traitlets.List(traitlets.Bytes()).tag(sync=True)  # JPEG files
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)  # what each shows
    chosen = traitlets.Int().tag(sync=True)  # index of a picture


class Panel(ipywidgets.VBox):
    """Controls above progress, errors and a picture. The widget `beside` is to the left of the picture.

    `text` says what the picture shows. A subclass draws its state in `draw`, and calls `show` at the end of `__init__`.
    No widget here is an Output: nbclient answers it while it waits for the cell, and may then wait forever.
    """

    def __init__(self, controls: Sequence[ipywidgets.Widget], text: str, beside: ipywidgets.DOMWidget | None = None):
        self.text, self.drawn, self._answering = text, b"", False
        self.picture = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 480px", min_width="0") if beside else {})
        self.message = ipywidgets.HTML()
        shown = _row(beside, self.picture) if beside else self.picture
        super().__init__([*controls, self.message, shown])

    def show(self) -> None:
        """Draw the present state."""
        self.put(jpeg(self.draw()))

    def put(self, drawn: bytes) -> None:
        """Show a JPEG file as wide as there is room."""
        self.drawn = drawn
        # The Image of ipywidgets has no alternative text.
        alt, style = html.escape(self.text), "width: 100%; max-width: 900px"
        source = base64.b64encode(drawn).decode()
        self.picture.value = f'<img alt="{alt}" style="{style}" src="data:image/jpeg;base64,{source}">'

    def draw(self) -> Figure:
        """The present state as a Figure."""
        raise NotImplementedError

    def when(self, changed: dict[ipywidgets.Widget, str], answer: Callable[[], str | None] = lambda: None) -> None:
        """Call `answer`, draw, and show its text, after a reader, not an answer, changed a trait; also show errors."""

        def call(_) -> None:
            if self._answering:
                return
            self._answering = True
            try:
                self.message.value = "working …"
                said = answer()
                self.show()
                self.message.value = html.escape(said or "")
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


class Playground(Panel):
    """Choose a picture, draw a box, guide a network with it, take the object away, and see what that changes.

    `model` knows the classes of the scenes, and stays as it is. Readers choose from the scenes numbered `shown`; the
    first comes first. Each press of *Guide* takes `steps` of Adam, and appends to `networks`, `presses` and `scores`:
    F1, EPG and the removal test on `others`, in per cent.
    """

    def __init__(self, model: Model, scenes: Scenes, others: Scenes, shown: Sequence[int], steps: int = 10):
        self.scenes, self.others, self.removed, self.steps = scenes, others, Without(others, by="scene"), steps
        self.shown, self.samples = [*shown], [scenes[i] for i in shown]
        self.networks, self.presses, self.scores = [model], [], [self._elsewhere(model)]
        labels = [", ".join(scenes.classes[c] for c in sample.present()) for sample in self.samples]
        self.thumbnails = Thumbnails(pictures=[_photo(sample.image) for sample in self.samples], labels=labels)
        self.upload = ipywidgets.FileUpload(accept=".jpg,.jpeg,.png,.webp", description="Your image")
        self.target = _dropdown([(name, c) for c, name in enumerate(scenes.classes)], "class")
        self.loss, self.at = _dropdown([*LOSSES], "loss"), _dropdown([*model.depths], "depth")
        self.weight = ipywidgets.FloatLogSlider(1.0, min=-2, max=1, step=0.25, description="λ", readout_format=".2f")
        self.guide = ipywidgets.Button(description="Guide", button_style="primary", tooltip="train with this box")
        self.remove = ipywidgets.ToggleButton(description="Remove the object", tooltip="and ask the network again")
        self.undo = ipywidgets.Button(description="Undo", tooltip="back to before the last press")
        self.reset = ipywidgets.Button(description="Reset", tooltip="back to the network without guidance")
        self.save = ipywidgets.Button(description="Save", tooltip="picture and state, as a file to hand in")
        side, layout = scenes.size, ipywidgets.Layout(width="300px", min_width="220px", margin="0 12px 0 4px")
        self.canvas = BoxCanvas(width=side, height=side, box=[0, 0, side, side], layout=layout)
        buttons = _row(self.guide, self.remove, self.undo, self.reset, self.save, self.upload)
        text = (
            "Playground: a picture with a box, a network's evidence before and after guidance, its answers and scores."
        )
        controls = [self.thumbnails, _row(self.target, self.loss, self.at, self.weight), buttons]
        super().__init__(controls, text, self.canvas)
        self._choose()
        self.when({self.thumbnails: "chosen"}, self._choose)
        self.when({self.target: "value"}, self._take_box)
        self.when({self.canvas: "box", self.at: "value", self.remove: "value"})
        presses = {self.guide: self._guide, self.undo: self._undo, self.reset: self._reset, self.save: self._save}
        for button, answer in presses.items():
            self.when({button: "click"}, answer)
        self.when({self.upload: "value"}, self._add_image)
        self.show()

    def show(self) -> None:
        self.canvas.photo = _photo(self._image(self.remove.value), "png")
        self.undo.disabled = self.reset.disabled = not self.presses
        super().show()

    def draw(self, learner: Model | None = None, whole: bool = False) -> Figure:
        """Evidence and answers of the first network and of the last, or of one that learns, and the scores elsewhere.

        The `whole` also has the picture with its box.
        """
        c, names, box = self.target.value, self.scenes.classes, self.canvas.box
        images = torch.stack([self._image(False), self._image(self.remove.value)]).float() / 255
        shown, mask, photo = {}, box_mask(torch.tensor([box]), images.shape[2:]), images[1].permute(1, 2, 0)
        for name, model in {"before": self.networks[0], "now": learner or self.networks[-1]}.items():
            x = images.to(next(model.parameters()).device)
            logits, maps = explain(model, x, c, method_of(model), self.at.value)
            shown[name] = 100 * logits[1].detach().sigmoid().cpu(), maps.detach().cpu()
        limit = shown["before"][1][0].abs().quantile(0.995).item()  # one scale, also without the object
        rows = [["photo"] * whole + ["before", "now"], ["answers"] * (1 + whole) + ["scores"]]
        room = {"left": 0.08 if whole else 0.11, "right": 0.98, "bottom": 0.08, "top": 0.95, "wspace": 0.15}
        figure = plt.figure(figsize=(12.2 if whole else 8.6, 7.4), layout="none")
        axes = figure.subplot_mosaic(rows, height_ratios=[1.3, 1], gridspec_kw=room)
        if whole:
            axes["photo"].imshow(photo, interpolation="bicubic")
            axes["photo"].set_title("object removed" if self.remove.value else "picture and box", fontsize=16)
        for name, (chances, maps) in shown.items():
            figures.show_map(axes[name], maps[1, 0], photo, limit)
            axes[name].set_title(f"{name}: {names[c]} {chances[c]:.0f} %", fontsize=16)
            share = f"{100 * epg(maps[1:], mask[None, None]).item():.0f} % of the evidence in the box"
            axes[name].set_xlabel("" if self.remove.value else share)
        pictures = [axis for name, axis in axes.items() if name not in ("answers", "scores")]
        for axis in pictures:
            figures.add_box(axis, box, "yellow" if axis is axes.get("photo") else "black")
        _plain(*pictures)
        figures.add_scale(figure, np.array(pictures))
        top = shown["now"][0].topk(4).indices.tolist()  # always four, so that the picture keeps its shape
        top = top if c in top else [c, *top[:3]]
        for shift, (name, (chances, _)) in zip((-0.2, 0.2), shown.items(), strict=True):
            places = [place + shift for place in range(4)]
            axes["answers"].barh(places, chances[top], 0.36, label=name, color="0.65" if name == "before" else "C0")
        axes["answers"].set(
            xlim=(0, 100), xlabel="answer, per cent", yticks=range(4), yticklabels=[names[k] for k in top]
        )
        axes["answers"].invert_yaxis()
        axes["answers"].legend(loc="lower right")
        for name in self.scores[0]:
            axes["scores"].plot([scores[name] for scores in self.scores], "o-", label=name)
        count, last = len(self.others), max(4, len(self.presses))
        axes["scores"].set(
            xlim=(-0.2, last + 0.2), ylim=(0, 125), yticks=range(0, 101, 25), xticks=range(0, last + 1, 1 + last // 8)
        )
        axes["scores"].set(xlabel="presses of Guide", title=f"on {count} other scenes, per cent")
        axes["scores"].legend(loc="upper center", ncols=3, fontsize=10, columnspacing=1)
        return figure

    def still(self) -> bytes:
        return jpeg(self.draw(whole=True))

    def _image(self, removed: bool) -> Tensor:
        """The chosen picture, uint8 (3, H, W). What is removed from a reader's own is what the box holds."""
        sample, number = self.samples[self.thumbnails.chosen], self.thumbnails.chosen
        if removed and number < len(self.shown):
            sample = self.scenes.without(self.shown[number], self._object(sample))
        elif removed:
            return fill(sample.image, box_mask(torch.tensor([self.canvas.box]), sample.image.shape[1:]))
        return sample.image.as_subclass(Tensor)

    def _object(self, sample: Sample) -> int:
        """The chosen class if the sample shows it, else the first that it shows."""
        return self.target.value if sample.labels[self.target.value] else int(sample.box_labels[0])

    def _choose(self) -> str | None:
        """Take the picture's first class, or the likeliest; say that the network is still the guided one."""
        sample, self.remove.value = self.samples[self.thumbnails.chosen], False
        likeliest = _logits(self.networks[-1], sample.image[None].float() / 255)[0].argmax()
        self.target.value = int(sample.box_labels[0] if len(sample.boxes) else likeliest)
        self._take_box()
        kept = "The network keeps what it has learned. Reset brings back the one without guidance."
        return kept if self.presses else None

    def _take_box(self) -> None:
        """Take the picture's first box of the chosen class. Without one, the reader's box stays."""
        sample = self.samples[self.thumbnails.chosen]
        if len(boxes := sample.boxes[sample.box_labels == self.target.value]):
            self.canvas.box = _at_least(boxes[0].int().tolist(), self.scenes.size)

    def _guide(self) -> None:
        self.remove.value = False

        def each(number: int, learner: Model) -> None:
            if number % 3 == 0:
                self.message.value = f"step {number} of {self.steps} …"
                self.put(jpeg(self.draw(learner), dpi=72))

        settings = {"loss": self.loss.value, "at": self.at.value, "weight": self.weight.value}
        sample = with_box(self.samples[self.thumbnails.chosen], self.target.value, self.canvas.box)
        model = guided(self.networks[-1], sample, **settings, steps=self.steps, each=each)
        self.message.value = f"measuring on {len(self.others)} other scenes …"
        self.scores.append(self._elsewhere(model))
        self.presses.append({**self._state(), **settings})
        self.networks.append(model)

    def _state(self) -> dict[str, Any]:
        """What the reader has chosen."""
        name, names = self.samples[self.thumbnails.chosen].name, self.scenes.classes
        return {"picture": name, "class": names[self.target.value], "box": self.canvas.box}

    def _undo(self) -> None:
        for steps in (self.networks, self.presses, self.scores):
            steps.pop()

    def _reset(self) -> None:
        while self.presses:
            self._undo()

    def _save(self) -> str:
        """Write a page with the picture and the state, under a name that is free."""
        state = self._state() | {"removed": self.remove.value, "presses": self.presses, "scores": self.scores}
        names = (f"playground-{number}.html" for number in itertools.count(1))
        path = next(path for name in names if not (path := Path(name)).exists())
        source = base64.b64encode(self.still()).decode()
        image = f'<img alt="{self.text}" width="1200" src="data:image/jpeg;base64,{source}">'
        text = html.escape(json.dumps(state, indent=1))
        write(path, f'<!doctype html><meta charset="utf-8"><title>Playground</title>{image}<pre>{text}</pre>\n')
        return f"Saved as {path}, beside this notebook."

    def _add_image(self) -> None:
        (file,) = self.upload.value
        image = read_image(file["name"], bytes(file["content"]), side := self.scenes.size)
        sample = Sample(image, torch.zeros(len(self.scenes.classes), dtype=torch.uint8), name=file["name"])
        self.samples.append(sample)
        self.thumbnails.labels = [*self.thumbnails.labels, file["name"]]
        self.thumbnails.pictures = [*self.thumbnails.pictures, _photo(image)]
        self.canvas.box = [side // 4, side // 4, 3 * side // 4, 3 * side // 4]
        self.thumbnails.chosen = len(self.samples) - 1
        self._choose()

    def _elsewhere(self, model: Model) -> dict[str, float]:
        how = {"method": method_of(model), "threshold": 0.05, "removed": self.removed}
        scores = training.evaluate(model, self.others, 8, **how)
        return {name: scores[name] for name in ("F1", "EPG", "still named")}


def _photo(image: Tensor, kind: str = "jpeg") -> bytes:
    """An image file of an image, uint8 (3, H, W)."""
    return _file(Image.fromarray(image.permute(1, 2, 0).numpy()).save, format=kind)


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
