"""The project's figures: photographs with boxes, explanation maps, colour explanations of B-cos networks, curves."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor

from e2lib.datasets import Sample

# Colour-blind safe, and far apart in print; a class keeps its colour through a figure.
COLOURS = sns.color_palette("colorblind")
MARKERS = "osD^vX"  # of lines, which colour alone would tell apart
# How figures write losses and methods; others as they are called.
NAMES = {"l1": "L1", "ppce": "PPCE", "rrr": "RRR*", "ixg": "IxG", "bcos": "B-cos", "gradcam": "Grad-CAM"}
NAMES |= {"gradcam++": "Grad-CAM++", "integrated_gradients": "Integrated Gradients", "occlusion": "Occlusion"}
NAMES |= {"deeplift": "DeepLIFT", "gradient_shap": "Gradient SHAP", "attention_rollout": "attention rollout"}


def use_style() -> None:
    """Set the style of all figures: legible when projected, colour-blind safe, white background; JPEG in notebooks."""
    sns.set_theme(context="notebook", style="white", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 72, "figure.constrained_layout.use": True})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"legend.frameon": False, "legend.fontsize": 9, "legend.title_fontsize": 9})
    if get_ipython() is not None:  # photographs as PNG would make a notebook of several MB
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80})


def show_samples(
    samples: Sequence[Sample],
    classes: Sequence[str],
    columns: int = 6,
    titles: Sequence[str] | None = None,
    masks: bool = False,
) -> Figure:
    """Photographs in a grid, each with its boxes in the colour of their class.

    Args:
        samples: at least one.
        classes: names of the classes; the title of an image lists those present, unless `titles` are given.
        columns: images a row.
        titles: one a sample.
        masks: also tint the segmentation masks, where a sample has them.
    """
    columns = min(columns, len(samples))
    figure, axes = _grid(-(-len(samples) // columns), columns)
    for axis in axes.flat[len(samples) :]:
        axis.remove()
    for i, (axis, sample) in enumerate(zip(axes.flat, samples, strict=False)):
        axis.imshow(sample.image.permute(1, 2, 0))
        for n, (box, label) in enumerate(zip(sample.boxes.tolist(), sample.box_labels.tolist(), strict=True)):
            colour = COLOURS[label % len(COLOURS)]
            add_box(axis, box, colour)
            if masks and sample.masks is not None:
                tint = np.zeros((*sample.masks.shape[1:], 4))
                tint[sample.masks[n].numpy()] = (*colour, 0.5)
                axis.imshow(tint)
        present = [classes[c] for c in sample.labels.nonzero()[:, 0].tolist()]
        axis.set_title(titles[i] if titles else ", ".join(present), fontsize=10)
    return figure


def show_maps(
    images: Tensor,
    maps: dict[str, Tensor],
    boxes: Sequence[Tensor] | None = None,
    titles: Sequence[str] | None = None,
    notes: dict[str, Sequence[str]] | None = None,
) -> Figure:
    """Images in rows, explanations in columns: the photograph, then each map, red for and blue against the class.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        maps: name of the column -> (B, 1, H, W) signed maps; scaled by the 99.5th percentile of |map|.
        boxes: of each image, (N, 4) xyxy, drawn on every picture of its row.
        titles: of the rows.
        notes: name of the column -> a line below each of its maps, for example its EPG.
    """
    figure, axes = _grid(len(images), 1 + len(maps))
    size = 10 * max(1, (1 + len(maps)) / 6)  # a wide figure is made smaller on a page
    for i, row in enumerate(axes):
        photo = images[i].permute(1, 2, 0).cpu()
        row[0].imshow(photo)
        row[0].set_title(titles[i] if titles else "", fontsize=size)
        for axis, (name, values) in zip(row[1:], maps.items(), strict=True):
            show_map(axis, values[i, 0], photo)
            if i == 0:
                axis.set_title(name, fontsize=size)
            if notes and name in notes:
                axis.set_xlabel(notes[name][i], fontsize=0.9 * size, labelpad=2)
        for axis in row if boxes else ():
            for box in boxes[i].tolist():
                add_box(axis, box, "black" if axis is not row[0] else "yellow")
    return figure


def show_map(axis: Axes, values: Tensor, photo: Tensor | None = None) -> None:
    """One signed map (H, W) on `axis`, over the grey photograph (H, W, 3) if given: red for, blue against.

    For the eye only, the map is averaged over an odd number of pixels, about a fiftieth of its width.
    """
    window = values.shape[1] // 50 // 2 * 2 + 1
    values = F.avg_pool2d(values.detach().cpu().float()[None], window, 1, window // 2, count_include_pad=False)[0]
    limit = torch.quantile(values.abs().flatten(), 0.995).clamp_min(1e-12).item()
    if photo is not None:
        axis.imshow(photo.mean(2), cmap="gray", vmin=-1, vmax=1.3)
    axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=(values.abs() / limit).clamp(0, 1) * 0.8 + 0.2)


def colour_explanation(images: Tensor, weights: Tensor, smooth: int = 5) -> Tensor:
    """The dynamic weights of B-cos networks in the colours they look for: RGBA (B, H, W, 4) in [0, 1].

    A pixel's colour is that of its positive weights on (r, g, b, 1-r, 1-g, 1-b): channel c is w_c / (w_c + w_{1-c}).
    Its opacity is the length of the weight vector where the pixel speaks for the class, averaged over `smooth` pixels
    and scaled by its 99.5th percentile (Böhle et al., CVPR 2022, section 4.3).

    Args:
        images: (B, 3, H, W) float in [0, 1].
        weights: (B, 6, H, W), from `attribution.dynamic_weights`.
        smooth: odd width of the averaging window, in pixels.
    """
    positive = weights.clamp_min(0)
    rgb = positive[:, :3] / (positive[:, :3] + positive[:, 3:]).clamp_min(1e-12)
    contributes = (weights * torch.cat([images, 1 - images], 1)).sum(1, keepdim=True) > 0
    opacity = F.avg_pool2d(weights.norm(dim=1, keepdim=True) * contributes, smooth, 1, smooth // 2)
    scale = torch.quantile(opacity.flatten(1), 0.995, dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return torch.cat([rgb, (opacity / scale).clamp_max(1)], 1).permute(0, 2, 3, 1)


def show_front(
    points: Sequence[dict[str, Any]], baseline: dict[str, float], floor: float, by: str = "weight", y: str = "EPG"
) -> Figure:
    """Accuracy against localisation of the points of one or more `ParetoArchive`s, those on their own fronts ringed.

    Args:
        points: as in `ParetoArchive.points`; the epochs of one training are joined, its λ stands at the last one
            unless colour tells it.
        baseline: its scores, F1 and `y`, in per cent: a cross.
        floor: the F1 below which no point may be chosen: a dotted line.
        by: what colour and marker tell, a field of the settings: weight (λ), loss, at, ...
        y: the score on the vertical axis.
    """
    figure, axis = plt.subplots(figsize=(6.5, 4.2))
    lines: dict[tuple, list[dict[str, Any]]] = {}
    for point in points:
        setting = {name: value for name, value in point["setting"].items() if name != "epoch"}
        lines.setdefault(tuple(setting.items()), []).append(point)
    values = list(dict.fromkeys(point["setting"][by] for point in points))
    name = "λ" if by == "weight" else by
    for line in lines.values():
        value = line[0]["setting"][by]
        number = values.index(value)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        xy = np.array([[point["scores"]["F1"], point["scores"][y]] for point in line])
        known = axis.get_legend_handles_labels()[1]
        label = f"{name} = {value:g}" if by == "weight" else f"{name} = {NAMES.get(value, value)}"
        axis.plot(*xy.T, "-", marker=marker, color=colour, markersize=5, label=None if label in known else label)
        if by != "weight":
            axis.annotate(f"{line[0]['setting']['weight']:g}", xy[-1], (7, 4), textcoords="offset points", fontsize=9)
        front = xy[[point["file"] is not None for point in line]]
        axis.plot(*front.T, "o", markersize=12, markerfacecolor="none", markeredgecolor=colour)
    axis.plot(baseline["F1"], baseline[y], "kX", markersize=10, label="baseline (λ = 0)")
    axis.axvline(floor, color="black", linestyle=":")
    axis.set(xlabel="F1, per cent", ylabel=f"{y}, per cent", title="Validation images; rings: Pareto fronts")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def show_ways(table: pd.DataFrame) -> Figure:
    """How far guidance comes at each depth: bars from 0 to the ceiling, to the guided EPG, and to the baseline's.

    table: a row a depth, with columns "baseline EPG", "EPG", "ceiling" (per cent) and "seconds" (of a guided epoch).
    """
    figure, (axis, time) = plt.subplots(1, 2, figsize=(8.5, 3.4), width_ratios=[2, 1])
    names, y = table.index.tolist(), np.arange(len(table))[::-1]
    axis.barh(y, table.ceiling, color="0.8", label="ceiling")
    axis.barh(y, table.EPG, color=COLOURS[2], label="guided", hatch="//", edgecolor="white", linewidth=0)
    axis.barh(y, table["baseline EPG"], color=COLOURS[0], label="baseline")
    axis.set(yticks=y, yticklabels=names, xlabel="EPG on test images, per cent", title="How far guidance comes")
    axis.legend(loc="lower right", frameon=True, reverse=True)
    time.barh(y, table.seconds, color="0.6")
    time.set(yticks=y, yticklabels=names, xlabel="seconds", title="Time of a guided epoch")
    return figure


def show_groups(table: pd.DataFrame, groups: Sequence[str], unseen: Sequence[str] = ()) -> Figure:
    """Accuracy by group, a cluster of bars for each network.

    Args:
        table: a row a network, its name the index; columns are the groups, and "accuracy" over all images, in per cent.
        groups: the columns that become bars; the lowest of each network is written at its bar's foot.
        unseen: those of them that training does not show, hatched.
    """
    wide = min(max(6.5, 1.65 * len(table)), 11)  # inches; a wider figure is made smaller on a page
    figure, axis = plt.subplots(figsize=(wide, 4))
    x, width = np.arange(len(table)), 0.8 / len(groups)
    for k, group in enumerate(groups):
        place, hatch = x + (k - (len(groups) - 1) / 2) * width, "///" if group in unseen else None
        label = group + ", not in training" * (group in unseen)
        axis.bar(place, table[group], width, color=COLOURS[k], label=label, hatch=hatch, edgecolor="white", linewidth=0)
    worst = table[list(groups)].to_numpy()
    for i, k in enumerate(worst.argmin(1)):
        place, style = i + (k - (len(groups) - 1) / 2) * width, {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.text(place, 3, f"{worst[i, k]:.0f}", ha="center", fontsize=10, bbox=style)
    axis.hlines(table.accuracy, x - 0.4, x + 0.4, color="black", linewidth=2, label="all images")
    parts = [name.partition(",") for name in table.index]
    names = [NAMES.get(first, first) + comma + rest.replace(" %", "\xa0%") for first, comma, rest in parts]
    axis.set(xticks=x, ylim=(0, 104), ylabel="accuracy, per cent")
    axis.set_xticklabels([textwrap.fill(name, 10) for name in names], fontsize=10)
    figure.legend(loc="outside upper center", ncol=3 if wide > 8 else 2)
    return figure


def show_claims(table: pd.DataFrame) -> Figure:
    """What `claims.judge` returns: for each claim and data set our mean and its interval, and the others' numbers.

    The x axis counts points above the claim's bound, linearly up to 5 on either side and logarithmically beyond.
    """
    figure, axis = plt.subplots(figsize=(11, 0.6 + 0.32 * len(table)))
    for y, row in enumerate(table.itertuples()):
        first = y == 0 or table.claim.iloc[y - 1] != row.claim
        colour = {"holds": COLOURS[2], "does not hold": COLOURS[3]}.get(row.here, "0.4")
        low, high, mean = (value - row.above for value in (row.low, row.high, row.ours))
        axis.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.6)
        axis.plot(mean, y, "o", color=colour, label="ours" if y == 0 else None)
        if first:
            said = [value - row.above for value in row.reproductions.values()]
            axis.plot(said, [y] * len(said), "x", color="0.2", label="_")
            if pd.notna(row.paper_says):
                axis.plot(row.paper_says - row.above, y, "kD", markersize=6, markerfacecolor="none")
            axis.axhline(y - 0.5, color="0.85", linewidth=0.8)
            axis.text(1.01, y, row.verdict, transform=axis.get_yaxis_transform(), va="center", fontsize=10)
    names = table.data.where(table.claim.duplicated(), table.claim + "   " + table.data)
    axis.axvline(0, color="black", linestyle=":")
    axis.set_xscale("symlog", linthresh=5)
    ticks = [-50, -10, -2, 0, 2, 10, 50]
    axis.set(xticks=ticks, yticks=range(len(table)), ylim=(len(table) - 0.5, -0.5))
    axis.set_xticklabels([str(tick).replace("-", "−") for tick in ticks])
    axis.set_yticklabels(names, fontsize=9)
    axis.set(xlabel="points above the bound", title="● ours, 95 % interval over seeds   ◇ paper   × reproductions")
    return figure


def add_box(axis: Axes, box: Sequence[float], colour, linestyle: str = "-") -> None:
    """Draw a half-open box (x1, y1, x2, y2), in pixels, on an axis that shows an image."""
    x1, y1, x2, y2 = box
    edge = withStroke(linewidth=3.5, foreground="black" if colour == "white" else "white")  # whatever is behind
    line = {"edgecolor": colour, "linewidth": 2, "linestyle": linestyle, "path_effects": [edge]}
    axis.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, **line))


def _grid(rows: int, columns: int, side: float = 1.9) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, (side + 0.25) * rows), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    return figure, axes
