"""Figures: photographs with boxes, explanation maps, the removal test, colour explanations, Pareto fronts."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import rc_params_from_file
from matplotlib.colors import to_rgb
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from e2lib.attribution import explain
from e2lib.datasets import Sample, Samples, Without, collate

STYLE = rc_params_from_file(Path(__file__).with_suffix(".mplstyle"), use_default_template=False)
COLOURS = [to_rgb(colour) for colour in STYLE["axes.prop_cycle"].by_key()["color"]]  # a class keeps its own
MARKERS = "osD^vX"  # so that colour is not the only difference between lines
# How figures write the names of losses and methods. Other names stay as they are.
NAMES = {"l1": "L1", "ppce": "PPCE", "rrr": "RRR*", "ixg": "IxG", "bcos": "B-cos", "gradcam": "Grad-CAM"}
NAMES |= {"gradcam++": "Grad-CAM++", "integrated_gradients": "Integrated Gradients", "occlusion": "Occlusion"}
NAMES |= {"deeplift": "DeepLIFT", "gradient_shap": "Gradient SHAP", "attention_rollout": "attention rollout"}


def use_style() -> None:
    """Set the style of all figures: legible on a projector and to colour-blind readers; JPEG in notebooks."""
    plt.rcParams.update(STYLE)
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75})  # PNG takes several MB


def show_samples(
    samples: Sequence[Sample], classes: Sequence[str], columns: int = 6, titles: Sequence[str] = ()
) -> plt.Figure:
    """Photographs in a grid, titled by their classes. Boxes have the colour of their class."""
    columns = min(columns, len(samples))
    figure, axes = _grid(-(-len(samples) // columns), columns)
    for axis in axes.flat[len(samples) :]:
        axis.remove()
    for i, (axis, sample) in enumerate(zip(axes.flat, samples, strict=False)):
        axis.imshow(sample.image.permute(1, 2, 0))
        for box, label in zip(sample.boxes.tolist(), sample.box_labels.tolist(), strict=True):
            add_box(axis, box, COLOURS[label % len(COLOURS)])
        axis.set_title(titles[i] if titles else ", ".join(classes[c] for c in sample.labels.nonzero()))
    return figure


def show_maps(
    images: Tensor,
    maps: dict[str, Tensor],
    boxes: Sequence[Tensor] | None = None,
    titles: Sequence[str] | None = None,
    notes: dict[str, Sequence[str]] | None = None,
    alone: Collection[str] = (),
) -> plt.Figure:
    """One row per image (float in [0, 1]): the photograph, then each explanation, red for and blue against the class.

    `maps` are signed, (B, 1, H, W), by the name of their column. Each is divided by its sum of |map|, and the maps of a
    row share one scale, on which a diffuse map is pale. Columns named in `alone` have a scale per map instead. `boxes`
    (N, 4) xyxy and `titles` are given per image. `notes` are texts below the maps, by the name of their column.
    """
    figure, axes = _grid(len(images), 1 + len(maps))
    size = 12 * max(1, (1 + len(maps)) / 6)  # a page shrinks a wide figure
    for i, row in enumerate(axes):
        photo = images[i].permute(1, 2, 0).cpu()
        row[0].imshow(photo)
        row[0].set_title(titles[i] if titles else "", fontsize=size)
        shares = {name: values[i, 0] / values[i].abs().sum().clamp_min(1e-12) for name, values in maps.items()}
        limit = max((_strength(values) for name, values in shares.items() if name not in alone), default=None)
        for axis, (name, values) in zip(row[1:], shares.items(), strict=True):
            show_map(axis, values, photo, None if name in alone else limit)
            axis.set_title(name if i == 0 else "", fontsize=size)
            if notes and name in notes:
                axis.set_xlabel(notes[name][i], fontsize=size, labelpad=2)
        for axis in row if boxes else ():
            for box in boxes[i].tolist():
                add_box(axis, box, "black" if axis is not row[0] else "yellow")
    add_scale(figure, axes)
    return figure


def show_removal(
    networks: dict[str, nn.Module], dataset: Samples, removed: Without, which: Sequence[int], method: str, at: str
) -> plt.Figure:
    """One row per pair in `removed[which]`: the photograph and the maps of `networks`, with the object and without it.

    Maps are of the pair's class, by `method` at the depth `at`; below each is the network's probability of that class.
    The maps of a row share one scale.
    """
    figure, axes = _grid(len(which), 2 + 2 * len(networks))
    for row, j in zip(axes, which, strict=True):
        i, c = removed.pairs[j].tolist()
        batches = [collate([sample]).images for sample in (dataset[i], removed[j])]
        said = [
            [explain(net, images.to(next(net.parameters()).device), c, method, at) for net in networks.values()]
            for images in batches
        ]
        limit = max(_strength(maps[0, 0]) for answers in said for _, maps in answers)
        titles = (dataset.classes[c], "without")
        for half, images, title, answers in zip(row.reshape(2, -1), batches, titles, said, strict=True):
            photo = images[0].permute(1, 2, 0)
            half[0].imshow(photo)
            half[0].set_title(title)
            for axis, name, (logits, maps) in zip(half[1:], networks, answers, strict=True):
                chances = logits[0].float().sigmoid() if dataset.multilabel else logits[0].float().softmax(0)
                show_map(axis, maps[0, 0], photo, limit)
                axis.set_title(name if j == which[0] else "")
                axis.set_xlabel(f"{dataset.classes[c]} {chances[c]:.0%}", labelpad=2)
    add_scale(figure, axes)
    return figure


def show_map(axis: plt.Axes, values: Tensor, photo: Tensor, limit: float | None = None) -> None:
    """One signed map (H, W) over the grey photograph (H, W, 3): red for the class, blue against it.

    The value `limit` has the full colour: by default the 99.5th percentile of |map|.
    """
    values, limit = _smooth(values), limit or _strength(values)
    axis.imshow(photo.mean(2), cmap="gray", vmin=-1, vmax=1.3)
    axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=(values.abs() / limit).clamp(0, 1) * 0.8 + 0.2)


def colour_explanation(images: Tensor, weights: Tensor, smooth: int = 5) -> Tensor:
    """Dynamic weights (B, 6, H, W) of B-cos networks as colours: RGBA (B, H, W, 4), for images (B, 3, H, W) in [0, 1].

    Channel c of a pixel is w_c / (w_c + w_{1-c}), from the positive weights on (r, g, b, 1-r, 1-g, 1-b). If the pixel
    speaks for the class, its opacity is the norm of its weights, averaged over `smooth` (odd) pixels and divided by its
    99.5th percentile (Böhle et al., CVPR 2022, section 4.3).
    """
    positive = weights.clamp_min(0)
    rgb = positive[:, :3] / (positive[:, :3] + positive[:, 3:]).clamp_min(1e-12)
    contributes = (weights * torch.cat([images, 1 - images], 1)).sum(1, keepdim=True) > 0
    opacity = F.avg_pool2d(weights.norm(dim=1, keepdim=True) * contributes, smooth, 1, smooth // 2)
    scale = torch.quantile(opacity.flatten(1), 0.995, dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return torch.cat([rgb, (opacity / scale).clamp_max(1)], 1).permute(0, 2, 3, 1)


def show_front(
    points: Sequence[dict], baseline: dict[str, float], floor: float, by: str = "weight", y: str = "EPG"
) -> plt.Figure:
    """F1 against `y` for the points of one or more `ParetoArchive`s. Rings mark each archive's front.

    A line joins the epochs of a training. Its colour and marker show the setting `by`: weight (λ), loss, at, … A cross
    marks the `baseline`, in per cent. A dotted line marks the `floor`, the lowest F1 that a chosen point may have.
    """
    figure, axis = plt.subplots(figsize=(6.5, 4.2))
    values, trainings = list(dict.fromkeys(point["setting"][by] for point in points)), {}
    for point in points:
        trainings.setdefault(str(point["setting"] | {"epoch": None}), []).append(point)
    for line in trainings.values():
        value, weight = line[0]["setting"][by], line[0]["setting"]["weight"]
        colour, marker = (signs[values.index(value) % len(signs)] for signs in (COLOURS, MARKERS))
        label = f"λ = {value:g}" if by == "weight" else f"{by} = {NAMES.get(value, value)}"
        xy = np.array([[point["scores"]["F1"], point["scores"][y]] for point in line])
        axis.plot(*xy.T, marker=marker, color=colour, markersize=5, label=label)
        if by != "weight":
            axis.annotate(f"{weight:g}", xy[-1], (7, 4), textcoords="offset points")
        front = xy[[point["file"] is not None for point in line]]
        axis.plot(*front.T, "o", markersize=12, markerfacecolor="none", markeredgecolor=colour)
    axis.plot(baseline["F1"], baseline[y], "kX", markersize=10, label="baseline (λ = 0)")
    axis.axvline(floor, color="black", linestyle=":")
    axis.set(xlabel="F1, per cent", ylabel=f"{y}, per cent", title="Validation images; rings: Pareto fronts")
    once = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))  # one entry per colour
    axis.legend(once.values(), once.keys(), loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def add_box(axis: plt.Axes, box: Sequence[float], colour, linestyle: str = "-") -> None:
    """Draw a half-open box (x1, y1, x2, y2), in pixels, on an axis that shows an image."""
    x1, y1, x2, y2 = box
    patch = plt.Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec=colour, lw=2, ls=linestyle)
    outline = "black" if colour == "white" else "white"  # visible on any photograph
    axis.add_patch(patch).set_path_effects([withStroke(linewidth=3.5, foreground=outline)])


def add_scale(figure: plt.Figure, axes: np.ndarray) -> None:
    """A colour bar for the maps on `axes`."""
    scale = plt.cm.ScalarMappable(plt.Normalize(-1, 1), "RdBu_r")
    bar = figure.colorbar(scale, ax=axes, shrink=min(1, 1.5 / len(axes)), aspect=12, pad=0.01, ticks=[-0.9, 0, 0.9])
    bar.ax.set_yticklabels(["against", "0", "for"])
    bar.outline.set_visible(False)


def _smooth(values: Tensor) -> Tensor:
    window = values.shape[1] // 50 // 2 * 2 + 1  # averages over 1/50 of the width are easier to see
    return F.avg_pool2d(values.detach().cpu().float()[None], window, 1, window // 2, count_include_pad=False)[0]


def _strength(values: Tensor) -> float:
    return torch.quantile(_smooth(values).abs().flatten(), 0.995).clamp_min(1e-12).item()


def _grid(rows: int, columns: int) -> tuple[plt.Figure, np.ndarray]:
    size, bare = (1.9 * columns, 2.35 * rows), {"xticks": [], "yticks": [], "frame_on": False}
    return plt.subplots(rows, columns, figsize=size, squeeze=False, subplot_kw=bare)
