"""What a reader can touch: a playground for guidance, and explorers of maps, fronts, students and shortcuts.

Each is a plain function that draws a state as a Figure, and a thin panel of ipywidgets that calls it again when the
reader changes something. A panel's output holds its first picture as well, so that an executed notebook shows it
wherever no kernel runs. What goes wrong in a panel is shown in the panel.
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
import seaborn as sns
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
LEAST = 4  # pixels a side of a box that one can draw; box_canvas.js has the same
FORMATS = ("JPEG", "PNG", "WEBP")
MOST_BYTES = 8_000_000  # of an uploaded file: Jupyter's server passes on messages of at most 10 MB
MOST_PIXELS = 30_000_000  # of an uploaded image, before it is decoded: 90 MB in memory
OTHERS = 12  # scenes on which the playground tells what guidance does elsewhere


# ---- what is computed


def read_image(name: str, content: bytes, size: int) -> Tensor:
    """A reader's file as an image for a network: its middle square, at size x size pixels.

    Args:
        name: of the file, for messages.
        content: of the file: JPEG, PNG or WebP of at most MOST_BYTES and MOST_PIXELS.
        size: pixels a side.

    Returns:
        uint8 (3, size, size) RGB, turned as the camera says.

    Raises:
        ValueError: a file too large, of another type, damaged, or of too many pixels; none of these is decoded.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name} has {len(content) / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f} MB can be uploaded")
    kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        pixels = image.width * image.height
        if pixels <= MOST_PIXELS:
            image = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (size, size))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}; at most {MOST_PIXELS / 1e6:.0f} million pixels can be uploaded") from error
    except (OSError, SyntaxError) as error:  # Pillow's, of files that are no images, or end too early
        raise ValueError(f"{name} cannot be read as {kinds}: {error}") from error
    if pixels > MOST_PIXELS:
        raise ValueError(f"{name} has {pixels / 1e6:.0f} million pixels; it may have {MOST_PIXELS / 1e6:.0f} million")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def with_box(sample: Sample, c: int, box: Sequence[int]) -> Sample:
    """The sample with one box (x1, y1, x2, y2), of class `c`, in place of its own; masks are dropped."""
    boxes = tv_tensors.wrap(torch.tensor([box], dtype=torch.float32), like=sample.boxes)
    return replace(sample, boxes=boxes, box_labels=torch.tensor([c]), masks=None)


def guided(
    model: Model, sample: Sample, loss: str = "energy", at: str = "Input", weight: float = 1.0, steps: int = 10
) -> Model:
    """A copy of a network, guided by the boxes of one image: Adam at 2e-4, falling to 0, with `guidance.Guide`.

    What lies behind the layer `at` learns; the layer and what is before it are frozen.

    Args:
        model: of `models.build`; it is not changed.
        sample: with the boxes that guide.
        loss: a name of `guidance.LOSSES`.
        at: the depth that is explained.
        weight: λ.
        steps: of Adam, each on this image.

    Raises ValueError as `Guide` and `training.fit`.
    """
    step = Guide(loss, method_of(model), at, weight)
    model = copy.deepcopy(model)
    names = [name for name, _ in model.named_parameters()]
    before = [i for i, name in enumerate(names) if name.startswith(model.depths[at] + ".")]
    for i, parameter in enumerate(model.parameters()):  # in the order in which the network is built, and run
        parameter.requires_grad_(i > max(before, default=-1))
    training.fit(model, [sample], steps, lr=2e-4, batch_size=1, step=step)
    return model


def method_of(model: Model) -> str:
    """The explanation that a network can be guided with: its contributions, if it is B-cos, else IxG."""
    return "bcos" if model.is_bcos else "ixg"


def at_home(scenes: Scenes, i: int) -> bool:
    """Whether the first object of a scene is one of those that are at home in its background."""
    record = scenes.record(i)
    return scenes.classes[record.objects[0].label] in HOMES[record.context]


def by_home(networks: dict[str, Model], scenes: Scenes) -> pd.DataFrame:
    """Accuracy on objects at home in their background, and elsewhere.

    Args:
        networks: by name, each of the scenes' classes.
        scenes: with one object each.

    Returns:
        A row a network; columns "at home", "elsewhere" and "accuracy" (of all), in per cent, nan where there is none.

    Raises ValueError for scenes of several objects.
    """
    if scenes.multilabel:
        raise ValueError(f"scenes have up to {scenes.objects} objects; accuracy needs objects=1")
    batch = collate([scenes[i] for i in range(len(scenes))])
    labels = batch.labels.argmax(1)
    home = torch.tensor([at_home(scenes, i) for i in range(len(scenes))])
    rows = {}
    for name, model in networks.items():
        with torch.no_grad():
            right = (model(batch.images.to(_device(model))).argmax(1).cpu() == labels).float()
        parts = {"at home": right[home], "elsewhere": right[~home], "accuracy": right}
        rows[name] = {part: 100 * values.mean().item() for part, values in parts.items()}
    return pd.DataFrame(rows).T


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device


# ---- what is drawn: a state as a Figure


def draw_explanation(
    model: Model, image: Tensor, c: int, classes: Sequence[str], method: str = "ixg", at: str = "Input"
) -> Figure:
    """One image and its map, with the probability of the explained class beside the likeliest ones.

    Args:
        model: of `models.build`.
        image: uint8 (3, H, W).
        c: index of the explained class.
        classes: their names; the probabilities are a softmax.
        method: of `explain`, as `at`; 8 steps for those that take some.
        at: the depth.
    """
    x = image[None].float().to(_device(model)) / 255
    logits, maps = explain(model, x, torch.tensor([c], device=x.device), method, at, steps=8)
    q = logits[0].softmax(0).cpu()
    top = [*q.topk(min(5, len(q))).indices.tolist()]
    top = top if c in top else [*top[:-1], c]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.2), width_ratios=[1, 1, 0.9])
    photo = image.permute(1, 2, 0)
    left.imshow(photo)
    figures.show_map(middle, maps[0, 0], photo.float() / 255)
    middle.set_title(f"{figures.NAMES.get(method, method)} at {at}: {classes[c]}", fontsize=11)
    names = [classes[k] for k in top]
    colours = [figures.COLOURS[3] if k == c else "0.6" for k in top]
    right.barh(range(len(top))[::-1], (100 * q[top]).numpy(), color=colours)
    right.set(yticks=range(len(top))[::-1], yticklabels=names, xlim=(0, 100), xlabel="probability, per cent")
    _plain(left, middle)
    return figure


def draw_networks(
    networks: dict[str, Model], sample: Sample, c: int, classes: Sequence[str], at: str = "Input"
) -> Figure:
    """One image as several networks see it: map and EPG of a class, the map's likeness to the first, probabilities.

    Args:
        networks: by name, at least one.
        sample: the image, with the boxes in which EPG counts those of class `c`.
        c: index of the explained class.
        classes: their names; the probabilities are a sigmoid each, classes that no network gives 10 % are left out.
        at: the depth.
    """
    batch, photo = collate([sample]), sample.image.permute(1, 2, 0)
    target, mask = torch.tensor([c]), box_mask(sample.boxes[sample.box_labels == c], batch.size)
    found = {}
    for name, model in networks.items():
        logits, maps = explain(model, batch.images.to(_device(model)), target.to(_device(model)), method_of(model), at)
        found[name] = logits[0].sigmoid().cpu(), maps.cpu()
    shown = [k for k in range(len(classes)) if k == c or max(q[k] for q, _ in found.values()) > 0.1]
    columns, width = len(found) + 1, 3.1 if len(found) < 3 else 2.6  # inches
    height = max(width + 0.5, 1 + 0.13 * len(shown) * len(found))  # bars that can be told apart
    figure, axes = plt.subplots(
        1, columns + 1, figsize=(width * columns + 3.2, height), width_ratios=[1] * columns + [0.7]
    )
    axes[0].imshow(photo)
    axes[0].set_title("photograph and box", fontsize=11)
    first = next(iter(found))
    for axis, (name, (_, maps)) in zip(axes[1:], found.items(), strict=False):
        figures.show_map(axis, maps[0, 0], photo.float() / 255)
        axis.set_title(f"{name}: {classes[c]}", fontsize=11)
        like = f"\ncosine to {first}: {F.cosine_similarity(maps.flatten(), found[first][1].flatten(), 0):.2f}"
        axis.set_xlabel(f"EPG {100 * epg(maps, mask[None, None]).item():.0f} %" + like * (name != first), fontsize=11)
    for axis, colour in zip(axes[:columns], ["yellow"] + ["black"] * len(found), strict=True):
        for box in sample.boxes[sample.box_labels == c].tolist():
            figures.add_box(axis, box, colour)
    table = pd.DataFrame(
        {name: (100 * q[shown]).numpy() for name, (q, _) in found.items()}, [classes[k] for k in shown]
    )
    colours = figures.COLOURS[: len(found)][::-1]
    table.iloc[::-1, ::-1].plot.barh(ax=axes[-1], width=0.8, color=colours, legend=False)
    handles, names = axes[-1].get_legend_handles_labels()
    axes[-1].legend(handles[::-1], names[::-1], loc="lower center", bbox_to_anchor=(0.5, 1))
    axes[-1].set(xlabel="probability, per cent", xlim=(0, 100))
    _plain(*axes[:columns])
    return figure


def draw_correlation(networks: dict[str, Model], scenes: Scenes, shown: int = 6) -> Figure:
    """The first scenes, and below them the accuracy of each network at home and elsewhere; arguments as `by_home`."""
    table = by_home(networks, scenes)
    figure = plt.figure(figsize=(10.5, 5.6))
    axes = figure.subplot_mosaic([[*map(str, range(shown))], ["bars"] * shown], height_ratios=[1, 1.8])
    for i in range(shown):
        sample, where = scenes[i], "at home" if at_home(scenes, i) else "elsewhere"
        axes[str(i)].imshow(sample.image.permute(1, 2, 0))
        axes[str(i)].set_title(f"{scenes.classes[sample.box_labels[0]]}\n{where}", fontsize=10)
        _plain(axes[str(i)])
    home = sum(at_home(scenes, i) for i in range(len(scenes)))
    bars = table.rename(columns={"at home": f"at home ({home})", "elsewhere": f"elsewhere ({len(scenes) - home})"})
    bars.drop(columns="accuracy").plot.bar(ax=axes["bars"], rot=0, color=figures.COLOURS, width=0.6)
    for group in axes["bars"].containers:
        axes["bars"].bar_label(group, fmt=lambda height: "" if np.isnan(height) else f"{height:.0f}", fontsize=10)
    title = f"{len(scenes)} scenes, correlation {scenes.correlation:.1f}"
    axes["bars"].set(ylim=(0, 112), ylabel="accuracy, per cent", title=title)
    axes["bars"].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _plain(*axes) -> None:
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)


def jpeg(figure: Figure) -> bytes:
    """A figure as a JPEG file, at its own size; it is closed."""
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=72, pil_kwargs={"quality": 85})
    plt.close(figure)
    return file.getvalue()


# ---- what is touched


class BoxCanvas(anywidget.AnyWidget):
    """A photograph on which one box is drawn, with mouse, finger or keyboard.

    Attributes:
        photo: PNG file.
        width, height: of the photograph, in pixels.
        box: (x1, y1, x2, y2), whole pixels, half-open, inside, at least LEAST a side; TraitError for others.
    """

    _esm = HERE / "box_canvas.js"
    width, height = traitlets.Int().tag(sync=True), traitlets.Int().tag(sync=True)
    photo = traitlets.Bytes().tag(sync=True)
    box = traitlets.List(traitlets.Int(), minlen=4, maxlen=4).tag(sync=True)

    @traitlets.validate("box")
    def _is_a_box(self, proposal):
        x1, y1, x2, y2 = box = proposal["value"]
        if not (0 <= x1 <= x2 - LEAST <= self.width - LEAST and 0 <= y1 <= y2 - LEAST <= self.height - LEAST):
            raise traitlets.TraitError(
                f"box is {box}; it must be [x1, y1, x2, y2] within {self.width} x {self.height} pixels, "
                f"at least {LEAST} wide and high"
            )
        return box


class PictureButtons(anywidget.AnyWidget):
    """A picture with points to choose from, by click, keyboard, or a mouse that rests on one.

    Attributes:
        picture: JPEG file.
        text: what it shows, for those who do not see it.
        points: of each "x" and "y", from the upper left corner in fractions of the picture, and "label".
        chosen: index of a point.
    """

    _esm = HERE / "picture_buttons.js"
    picture, text = traitlets.Bytes().tag(sync=True), traitlets.Unicode().tag(sync=True)
    points, chosen = traitlets.List().tag(sync=True), traitlets.Int().tag(sync=True)


class Panel(ipywidgets.VBox):
    """Controls over a picture. Subclasses say in `draw` what their state looks like, and call `show` at the end.

    Args:
        controls: the widgets, top to bottom; progress, errors and the picture follow.
        text: what the picture shows, for those who do not see it.
        beside: a widget to the left of the picture.
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
        self.picture.value = (  # ipywidgets' Image has no text for those who do not see it
            f'<img alt="{html.escape(self.text)}" style="max-width: 100%" src="data:image/jpeg;base64,{source}">'
        )

    def draw(self) -> Figure:
        """The present state as a Figure."""
        raise NotImplementedError

    def when(self, changed: dict[ipywidgets.Widget, str], answer: Callable[[], Any]) -> None:
        """Call `answer`, then draw, when one of the widgets' traits changes, but not when another answer changed it.

        An error in it is shown above the picture: a callback has nobody else to tell.
        """

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
        """As every widget, and its picture: for notebooks that are read where no kernel runs."""
        bundle = super()._repr_mimebundle_(**kwargs)
        bundle["image/jpeg"] = base64.b64encode(self.still()).decode()
        bundle["text/plain"] = f"{self.text} (Run this cell to use it.)"
        return bundle

    def still(self) -> bytes:
        """The panel's present picture, a JPEG file."""
        return self.drawn


def _dropdown(options: Sequence, description: str, value: Any = None, **kwargs) -> ipywidgets.Dropdown:
    layout = ipywidgets.Layout(width="max-content", max_width="340px")
    style = {"description_width": "initial"}
    chosen = {} if value is None else {"value": value}
    return ipywidgets.Dropdown(options=options, description=description, layout=layout, style=style, **chosen, **kwargs)


def _row(*widgets: ipywidgets.Widget) -> ipywidgets.HBox:
    return ipywidgets.HBox(widgets, layout=ipywidgets.Layout(flex_flow="row wrap", grid_gap="4px 14px"))


def _png(image: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="png")
    return file.getvalue()


def _scenes(scenes: Scenes, chosen: int = 0) -> ipywidgets.Dropdown:
    names = [", ".join(name for name, _ in _present(scenes, i)) for i in range(len(scenes))]
    return _dropdown([(f"{i}: {name}", i) for i, name in enumerate(names)], "scene", chosen)


def _present(scenes: Scenes, i: int) -> list[tuple[str, int]]:
    """Name and index of each class in a scene."""
    return [(scenes.classes[c], c) for c in scenes.targets[i].nonzero()[:, 0].tolist()]


class Playground(Panel):
    """Draw a box on a scene, guide a network with it, and see what that changes: here, and on other scenes.

    Args:
        model: a network of the scenes' classes; it is not changed.
        scenes: those to choose from.
        others: scenes on which F1 and EPG tell what a guided network has become elsewhere.
        scene: the first one shown.
        steps: of Adam that one press of *Guide* takes.

    Attributes:
        networks: `model`, and what each press of *Guide* made of the one before.
    """

    def __init__(self, model: Model, scenes: Scenes, others: Scenes, scene: int = 0, steps: int = 10):
        self.networks, self.notes, self.steps = [model], [""], steps
        self.scenes, self.others, self.before = scenes, others, {}
        self.scene, self.target = _scenes(scenes, scene), _dropdown(_present(scenes, scene), "class")
        self.loss, self.at = _dropdown([*LOSSES], "loss"), _dropdown([*model.depths], "depth")
        self.weight = ipywidgets.FloatLogSlider(1.0, min=-2, max=1, step=0.25, description="λ", readout_format=".2f")
        self.guide = ipywidgets.Button(description="Guide", button_style="primary", tooltip="train with this box")
        self.undo = ipywidgets.Button(description="Undo", disabled=True, tooltip="back to before the last press")
        side = scenes.size
        layout = ipywidgets.Layout(width="300px", min_width="220px", margin="0 12px 0 4px")
        self.canvas = BoxCanvas(width=side, height=side, box=[0, 0, side, side], layout=layout)
        super().__init__(
            [_row(self.scene, self.target, self.loss, self.at, self.weight), _row(self.guide, self.undo)],
            "Playground: a photograph with a box, and a network's explanation before and after guidance with it.",
            self.canvas,
        )
        self.when({self.scene: "value"}, self._choose_scene)
        self.when({self.target: "value"}, self._take_box)
        self.when({self.canvas: "box", self.at: "value"}, lambda: None)
        self.when({self.guide: "click"}, self._guide)
        self.when({self.undo: "click"}, self._undo)
        self._choose_scene()
        self.show()

    def draw(self) -> Figure:
        networks = {"before": self.networks[0]} | ({"after": self.networks[-1]} if len(self.networks) > 1 else {})
        figure = draw_networks(networks, self._sample(), self.target.value, self.scenes.classes, self.at.value)
        figure.suptitle(self.notes[-1], fontsize=11)
        return figure

    def _sample(self) -> Sample:
        return with_box(self.scenes[self.scene.value], self.target.value, self.canvas.box)

    def _choose_scene(self) -> None:
        self.target.options = _present(self.scenes, self.scene.value)
        self.canvas.photo = _png(self.scenes[self.scene.value].image)
        self._take_box()

    def _take_box(self) -> None:
        """The first box that the scene has of the chosen class."""
        sample = self.scenes[self.scene.value]
        box = sample.boxes[sample.box_labels == self.target.value][0].int().tolist()
        self.canvas.box = _at_least(box, self.scenes.size)

    def _guide(self) -> None:
        at = self.at.value
        model = guided(self.networks[-1], self._sample(), self.loss.value, at, self.weight.value, self.steps)
        if at not in self.before:
            self.before[at] = self._elsewhere(self.networks[0], at)
        pairs = [(name, self.before[at][name], value) for name, value in self._elsewhere(model, at).items()]
        self.networks.append(model)
        changes = ", ".join(f"{name} {old:.0f} → {new:.0f}" for name, old, new in pairs)
        self.notes.append(f"On {len(self.others)} other scenes, in per cent: {changes} (at {at})")
        self.undo.disabled = False

    def _undo(self) -> None:
        self.networks.pop()
        self.notes.pop()
        self.undo.disabled = len(self.networks) == 1

    def _elsewhere(self, model: Model, at: str) -> dict[str, float]:
        scores = training.evaluate(model, self.others, 8, method_of(model), at, threshold=0.05)
        return {name: scores[name] for name in ("F1", "EPG")}


def _at_least(box: list[int], side: int) -> list[int]:
    """A box inside an image of `side` pixels a side, widened to LEAST."""
    low = [min(value, side - LEAST) for value in box[:2]]
    return [*low, *(max(high, start + LEAST) for high, start in zip(box[2:], low, strict=True))]


class Explanations(Panel):
    """Any method at any depth for any class of any image, also the reader's own.

    Args:
        model: of `models.build`.
        images: name -> uint8 (3, H, W), square, at least one.
        classes: names of the network's classes.
    """

    def __init__(self, model: Model, images: dict[str, Tensor], classes: Sequence[str]):
        self.model, self.images, self.classes = model, dict(images), classes
        methods = [m for m in METHODS if m != "attention_rollout" and (m != "bcos" or model.is_bcos)]
        self.image, self.target = _dropdown([*images], "image"), _dropdown(self._ranked(next(iter(images))), "class")
        self.method, self.at = _dropdown(methods, "method", method_of(model)), _dropdown([*model.depths], "depth")
        self.upload = ipywidgets.FileUpload(accept=".jpg,.jpeg,.png,.webp", description="Your image")
        super().__init__(
            [_row(self.image, self.upload, self.target, self.method, self.at)],
            "Explorer of explanations: a photograph, a method's map of it for a class, and the network's answer.",
        )
        self.when({self.image: "value"}, self._choose_image)
        self.when({self.upload: "value"}, self._add_image)
        self.when({self.method: "value"}, self._choose_depth)
        self.when({self.target: "value", self.at: "value"}, lambda: None)
        self.show()

    def draw(self) -> Figure:
        image = self.images[self.image.value]
        return draw_explanation(self.model, image, self.target.value, self.classes, self.method.value, self.at.value)

    def _ranked(self, name: str) -> list[tuple[str, int]]:
        """Name and index of each class, the likeliest first."""
        image = self.images[name][None].float().to(_device(self.model)) / 255
        with torch.no_grad():
            order = self.model(image)[0].argsort(descending=True).tolist()
        return [(self.classes[c], c) for c in order]

    def _choose_image(self) -> None:
        self.target.options = self._ranked(self.image.value)

    def _choose_depth(self) -> None:
        """Methods of the input are shown there."""
        self.at.disabled = METHODS[self.method.value].of_score
        if self.at.disabled:
            self.at.value = "Input"

    def _add_image(self) -> None:
        (file,) = self.upload.value
        side = next(iter(self.images.values())).shape[1]
        self.images[file["name"]] = read_image(file["name"], bytes(file["content"]), side)
        self.image.options = [*self.images]
        self.image.value = file["name"]
        self._choose_image()


class Comparison(Panel):
    """Several networks on one scene: their maps of a class, how alike these are, and what the networks answer.

    Args:
        networks: by name, each of the scenes' classes; that named first is what the others are compared with.
        scenes: those to choose from.
        at: the depth shown first.
        scene: the one shown first.
    """

    def __init__(self, networks: dict[str, Model], scenes: Scenes, at: str = "Input", scene: int = 0):
        self.networks, self.scenes = networks, scenes
        self.scene, self.target = _scenes(scenes, scene), _dropdown(_present(scenes, scene), "class")
        self.at = _dropdown([*next(iter(networks.values())).depths], "depth", at)
        super().__init__([_row(self.scene, self.target, self.at)], "One scene, as several networks explain it.")
        self.when({self.scene: "value"}, self._choose_scene)
        self.when({self.target: "value", self.at: "value"}, lambda: None)
        self.show()

    def draw(self) -> Figure:
        sample = self.scenes[self.scene.value]
        return draw_networks(self.networks, sample, self.target.value, self.scenes.classes, self.at.value)

    def _choose_scene(self) -> None:
        self.target.options = _present(self.scenes, self.scene.value)


class Front(Comparison):
    """A Pareto front whose points show their networks' explanations: choose one.

    Args:
        archive: with at least one point.
        start: the network with which the search began.
        baseline: its F1 and EPG, in per cent, on the images that the archive was measured on.
        scenes: those to choose from.
        at: the depth shown first.
        scene: the one shown first.
    """

    def __init__(
        self,
        archive: ParetoArchive,
        start: Model,
        baseline: dict[str, float],
        scenes: Scenes,
        at: str = "Input",
        scene: int = 0,
    ):
        self.points = sorted(archive.front, key=lambda point: point["scores"]["F1"])
        self.names = ["λ = {weight:g}, epoch {epoch}".format(**point["setting"]) for point in self.points]
        self.archive, self.start = archive, start
        figure = figures.show_front(archive.points, baseline, floor=baseline["F1"] - 1)
        figure.canvas.draw()  # places the axes
        axis, area = figure.axes[0], figure.bbox
        places = [axis.transData.transform((point["scores"]["F1"], point["scores"]["EPG"])) for point in self.points]
        buttons = [
            {"x": x / area.width, "y": 1 - y / area.height, "label": f"{name}: F1 {p['F1']:.1f}, EPG {p['EPG']:.1f}"}
            for name, (x, y), p in zip(self.names, places, (point["scores"] for point in self.points), strict=True)
        ]
        self.buttons = PictureButtons(
            picture=jpeg(figure), text="F1 against EPG of networks.", points=buttons, chosen=0
        )
        self.buttons.layout.max_width = f"{area.width:.0f}px"
        super().__init__({"λ = 0": start}, scenes, at, scene)
        self.children = [self.buttons, *self.children]
        self.when({self.buttons: "chosen"}, lambda: None)

    def draw(self) -> Figure:
        chosen = self.buttons.chosen
        self.networks = {"λ = 0": self.start, self.names[chosen]: self.archive.load(self.points[chosen], self.start)}
        return super().draw()

    def still(self) -> bytes:
        """The front above the chosen point's maps."""
        return _stacked([self.buttons.picture, self.drawn])


def _stacked(files: Sequence[bytes]) -> bytes:
    """JPEG files, one below the other on white."""
    parts = [Image.open(io.BytesIO(file)) for file in files]
    sheet = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    file = io.BytesIO()
    sheet.save(file, format="jpeg", quality=85)
    return file.getvalue()


class Shortcut(Panel):
    """Accuracy at home and elsewhere, on scenes that are composed anew when the correlation changes.

    Args:
        networks: by name, each of the ten classes of Scenes.
        size: pixels a side.
        images: how many scenes.
        seed: of their composition.
    """

    def __init__(self, networks: dict[str, Model], size: int, images: int, seed: int = 0):
        self.networks, self.size, self.images, self.seed = networks, size, images, seed
        self.correlation = ipywidgets.FloatSlider(
            0.8, min=0, max=1, step=0.1, description="correlation", continuous_update=False, readout_format=".1f"
        )
        text = "Accuracy of networks on objects at home in their background, and elsewhere."
        super().__init__([self.correlation], text)
        self.when({self.correlation: "value"}, lambda: None)
        self.show()

    def draw(self) -> Figure:
        scenes = Scenes("test", self.images, self.size, self.correlation.value, self.seed, objects=1)
        return draw_correlation(self.networks, scenes)
