"""Features: outputs of a frozen trunk, computed once per image and kept on disk. Heads train on them in seconds."""

import copy
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from tqdm.auto import tqdm

from e2lib.attribution import modes_restored
from e2lib.boxes import box_mask, mask_box
from e2lib.datasets import Batch, Sample, Samples, Selection, collate
from e2lib.datasets.files import check_value
from e2lib.disk import once
from e2lib.models import fingerprint
from e2lib.training.precision import form, formed

SHARD = 512  # images in a file


class Features(Samples):
    """Samples with features in place of images, made by `extract`. Of two views, one is drawn by torch's generator."""

    def __init__(self, paths: Sequence[Path], dataset: Dataset):
        parts, self.names = [load_file(path) for path in paths], [name for path in paths for name in names_in(path)]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.key, self.targets = paths[0].stem, dataset.targets
        self.classes, self.groups, self.multilabel = dataset.classes, dataset.groups, dataset.multilabel
        self.pairs = getattr(dataset, "pairs", None)  # of `datasets.Without`
        self.group_of, self.annotated = dataset.group_of, tensors["annotated"].numpy()
        self.features, self.box_labels = tensors["features"], tensors["box_labels"]  # features: float16 (N, V, C, h, w)
        self.boxes = tensors["boxes"].movedim(1, 0)  # float32 (V, all boxes, 4)
        self.starts = [0, *tensors["count"].cumsum(0).tolist()]  # image i has boxes[:, starts[i] : starts[i + 1]]
        self.size = tuple(tensors["size"][0].tolist())  # height and width in pixels, in which boxes are given

    def __len__(self) -> int:
        return len(self.features)

    def fingerprint(self) -> str:
        """Text that changes with the features, labels and boxes."""
        return fingerprint([self.key, self.targets, self.starts, self.boxes, self.box_labels, self.annotated])

    def labelled(self, classes: Sequence[str], labels: Sequence[int]) -> "Features":
        """The same features with other classes, by their names, and with one index per image for it and its boxes."""
        labels = torch.as_tensor(labels)
        if labels.shape != (len(self),) or not ((labels >= 0) & (labels < len(classes))).all():
            raise ValueError(f"labels are {tuple(labels.shape)}; one of 0 to {len(classes) - 1} per image is wanted")
        result = copy.copy(self)
        result.classes, result.multilabel = list(classes), False
        result.targets = F.one_hot(labels.long(), len(classes)).to(torch.uint8)
        result.box_labels = labels.long().repeat_interleave(torch.tensor(self.starts).diff())
        return result

    def __getitem__(self, i: int) -> Sample:
        i = range(len(self))[i]
        view = int(torch.randint(2, ())) if self.features.shape[1] == 2 else 0
        span = slice(self.starts[i], self.starts[i + 1])
        boxes = tv_tensors.BoundingBoxes(self.boxes[view, span], format="XYXY", canvas_size=self.size)
        about = {"group": int(self.group_of[i]), "name": self.names[i], "annotated": bool(self.annotated[i])}
        return Sample(self.features[i, view], self.targets[i], boxes, self.box_labels[span], **about)


def extract(
    trunk: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    mirrored: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    precision: str = "auto",
) -> Features:
    """The features (C, h, w) of each image by a trunk of `models.split`, kept in `folder`; see `keep` for the others.

    With `mirrored`, mirror images are second views. Images have one size and no random transform; masks are left out.
    All features lie in memory: 31 kB per view of EfficientNet-Lite0 at 224 pixels. ValueError if float16 overflows.
    """

    def features(batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            views = torch.stack([trunk(x) for x in (batch.images, batch.images.flip(3))[: 1 + mirrored]], 1)
        if not (half := views.half()).isfinite().all():
            raise ValueError(f"features reach {views.abs().max():.3g}; float16 holds at most 65504")
        return {
            "features": half,
            "boxes": _mirrored(torch.cat(batch.boxes), batch.size[1])[: 1 + mirrored].movedim(0, 1),
            "box_labels": torch.cat(batch.box_labels),
            "count": torch.tensor([len(boxes) for boxes in batch.boxes]),
            "annotated": batch.annotated,
            "size": torch.tensor([batch.size] * len(half)),
        }

    return Features(keep(trunk, dataset, folder, features, mirrored, False, batch_size, workers, precision), dataset)


def keep(
    network: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    compute: Callable[[Batch], dict[str, Tensor]],
    about: Any,
    gradients: bool,
    batch_size: int,
    workers: int,
    precision: str,
) -> list[Path]:
    """Compute tensors for all images of `dataset`, unless `folder` has them; returns the paths of their files.

    `compute` takes a Batch and returns tensors by name. The network runs in eval mode and in its `training.form`. The
    names of the files begin with a `models.fingerprint` of network, data set, `about` and dtype. Processes that call
    this at the same time share the work. `workers` are processes that load images.
    """
    check_value(len(dataset) > 0, "the data set's length", len(dataset), "at least 1: there is no image to compute")

    def make(part: range, path: Path) -> None:
        # A generator of its own, so that later random numbers do not depend on what the folder holds.
        own = torch.Generator()
        loader = DataLoader(Subset(dataset, part), batch_size, collate_fn=collate, num_workers=workers, generator=own)
        found, names = [], []
        for batch in loader:
            with cast():
                values = compute(batch.to(next(network.parameters()).device))
            found.append({name: value.cpu() for name, value in values.items()})
            names += batch.names
            bar.update(len(batch.names))
        tensors = {name: torch.cat([values[name] for values in found]).contiguous() for name in found[0]}
        save_file(tensors, path, {"names": json.dumps(names)})

    begin = fingerprint([network, dataset, about, form(network, precision, gradients)[1]])
    whole = range(len(dataset))
    parts = {Path(folder, f"{begin}-{i // SHARD:06d}.safetensors"): whole[i : i + SHARD] for i in whole[::SHARD]}
    bar = tqdm(total=len(dataset), desc=compute.__name__, unit="image", leave=False)
    with bar, modes_restored(network), formed(network, precision, gradients) as cast:
        network.eval()
        for wait in (False, True):
            for path, part in parts.items():
                once(path, functools.partial(make, part), wait)
    return [*parts]


def names_in(path: Path) -> list[str]:
    """The names of the images in a file of `keep`."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["names"])


def join(first: Features, second: Features) -> Features:
    """Two trunks' features of the same images and views, side by side; `models.Head.channels` tells heads theirs."""
    one, other = ((x.names, x.size, x.features[:, :, 0].shape) for x in (first, second))
    shapes = " and ".join(f"{tuple(x.features.shape)} of {x.size} pixels" for x in (first, second))
    check_value(one == other, "features", shapes, "of the same images, views and cells")
    result = copy.copy(first)
    result.key, result.features = f"{first.key} {second.key}", torch.cat([first.features, second.features], 2)
    return result


def predict_boxes(data: Selection, penalty: float = 0.3) -> Features:
    """The features with a box for every image. Annotated images keep their boxes; the others get predicted ones.

    `data` is made by `datasets.with_boxes` from `Features` of single-label images, without repeats; else ValueError.
    Ridge regression on standardised channels predicts how much of a cell the box covers; `penalty` times the squared
    weights is added to the mean squared error. Predictions are averaged over views and resized to the image. The box
    is the smallest around the pixels that reach half of the largest prediction.
    """
    given = getattr(data, "dataset", None)
    single = isinstance(given, Features) and not given.multilabel
    right = single and np.array_equal(data.indices, np.arange(len(given)))
    check_value(right, "data", type(data).__name__, "with_boxes(features, fraction), of single-label images' features")
    counts = torch.tensor(given.starts).diff()
    annotated = torch.as_tensor(given.annotated & data.annotated) & (counts > 0)
    check_value(annotated.any(), "the number of annotated images with boxes", 0, "at least 1, to learn boxes from")
    boxes = list(given.boxes.split(counts.tolist(), 1))  # of each image (V, n, 4)
    masks = [box_mask(view, given.size) for i in annotated.nonzero()[:, 0].tolist() for view in boxes[i]]
    covered = F.adaptive_avg_pool2d(torch.stack(masks)[:, None].float(), given.features.shape[3:]).flatten()
    cells = given.features[annotated].float().movedim(2, -1).flatten(0, -2)  # (n·V·h·w, C)
    mean, deviation = cells.mean(0), cells.std(0) + 1e-3
    x, y = (cells - mean) / deviation, covered - covered.mean()
    weights = torch.linalg.solve(x.T @ x / len(x) + penalty * torch.eye(x.shape[1]), x.T @ y / len(x))
    for i in (~annotated).nonzero()[:, 0].tolist():
        parts = (given.features[i].float().movedim(1, -1) - mean) / deviation @ weights + covered.mean()  # (V, h, w)
        parts[1:] = parts[1:].flip(2)
        pixels = F.interpolate(parts.mean(0)[None, None], given.size, mode="bilinear", align_corners=False)[0, 0]
        pixels = pixels.clamp(min=0)  # no pixel would reach half of a negative maximum
        boxes[i] = _mirrored(mask_box(pixels >= pixels.max() / 2).float(), given.size[1])[: len(parts), None]
    result = copy.copy(given)
    result.boxes, result.annotated = torch.cat(boxes, 1), np.ones(len(given), bool)
    result.starts = np.cumsum([0, *(found.shape[1] for found in boxes)]).tolist()
    return result.labelled(given.classes, given.targets.argmax(1))


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes (..., 4) in an image and in its mirror image: (2, ..., 4)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([boxes, torch.stack([width - x2, y1, width - x1, y2], -1)])
