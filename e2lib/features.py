"""What a frozen trunk makes of a data set's images, computed once and kept on disk: heads train on it in seconds."""

import copy
import functools
import json
from collections.abc import Sequence
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
    """Samples of features in place of images, as of `extract`. Of an image's two views, torch's generator draws one."""

    def __init__(self, paths: Sequence[Path], dataset: Dataset):
        parts, self.names = [load_file(path) for path in paths], [name for path in paths for name in names_in(path)]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.key, self.targets = paths[0].stem, dataset.targets
        self.classes, self.groups, self.multilabel = dataset.classes, dataset.groups, dataset.multilabel
        self.group_of, self.annotated = dataset.group_of, tensors["annotated"].numpy()
        self.features, self.box_labels = tensors["features"], tensors["box_labels"]  # features: float16 (N, V, C, h, w)
        self.boxes = tensors["boxes"].movedim(1, 0)  # float32 (V, all boxes, 4)
        self.starts = [0, *tensors["count"].cumsum(0).tolist()]  # image i has boxes[:, starts[i] : starts[i + 1]]
        self.size = tuple(tensors["size"][0].tolist())  # height and width in pixels, in which boxes are given

    def __len__(self) -> int:
        return len(self.features)

    def fingerprint(self) -> str:
        """Tells these features, their labels and boxes from others."""
        return fingerprint([self.key, self.targets, self.starts, self.boxes, self.box_labels, self.annotated])

    def labelled(self, classes: Sequence[str], labels: Sequence[int]) -> "Features":
        """The same features with other labels: names of classes, and one index per image, which its boxes take over."""
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


def extract(trunk: nn.Module, dataset: Dataset, folder: str | Path, mirrored: bool = False, **how: Any) -> Features:
    """What a trunk of `models.split` makes of every image, (C, h, w), kept in `folder`; `how` is as for `keep`.

    `mirrored` adds mirror images as second views, with mirrored boxes. Images have one size and no random transform;
    masks are left out. All features lie in memory: 31 kB per view of EfficientNet-Lite0 at 224 pixels. ValueError where
    float16 cannot hold them.
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

    return Features(keep(trunk, dataset, folder, features, [mirrored], gradients=False, **how), dataset)


def keep(network, dataset, folder, compute, about, gradients=True, batch_size=32, workers=0, precision="auto"):
    """Paths of the files of what `compute` makes of the images of `dataset`, made where `folder` lacks them.

    `compute` takes a Batch and returns tensors by name; a file holds those of 512 images. The network runs in eval mode
    and in its `training.form`. File names begin with a `models.fingerprint` of network, data set, the list `about` and
    dtype. Processes that call this at the same time share the work. `workers` load images.
    """
    check_value(len(dataset) > 0, "the data set's length", len(dataset), "at least 1: there is no image to compute")

    def make(part: range, path: Path) -> None:
        # A generator of its own: what is drawn later must not depend on what was in the folder.
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

    begin = fingerprint([network, dataset, about, form(network, precision, gradients).dtype])
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
    """What two trunks make of the same images, views and cells: the channels of the first, then those of the second.

    Heads find theirs by `models.Head.channels`, so that a teacher and a student see the same views.
    """
    one, other = ((x.names, x.size, x.features[:, :, 0].shape) for x in (first, second))
    shapes = " and ".join(f"{tuple(x.features.shape)} of {x.size} pixels" for x in (first, second))
    check_value(one == other, "features", shapes, "of the same images, views and cells")
    result = copy.copy(first)
    result.key, result.features = f"{first.key} {second.key}", torch.cat([first.features, second.features], 2)
    return result


def predict_boxes(data: Selection, penalty: float = 0.3) -> Features:
    """The features with a box for every image, learned from the few whose boxes may be used, which stay.

    `data` is what `datasets.with_boxes` makes of `Features` of single-label images, without repeats; else ValueError.
    Ridge regression on standardised channels learns which part of a cell the box covers; `penalty` times the squared
    weights is added to its mean squared error. An image's box is the smallest around the pixels whose predicted part,
    averaged over views and brought to the images' size, is at least half of the largest.
    """
    known = getattr(data, "dataset", None)
    single = isinstance(known, Features) and not known.multilabel
    right = single and np.array_equal(data.indices, np.arange(len(known)))
    check_value(right, "data", type(data).__name__, "with_boxes(features, fraction), of single-label images' features")
    counts = torch.tensor(known.starts).diff()
    annotated = torch.as_tensor(known.annotated & data.annotated) & (counts > 0)
    check_value(annotated.any(), "the number of annotated images with boxes", 0, "at least 1, to learn boxes from")
    boxes = list(known.boxes.split(counts.tolist(), 1))  # of each image (V, n, 4)
    masks = [box_mask(view, known.size) for i in annotated.nonzero()[:, 0].tolist() for view in boxes[i]]
    covered = F.adaptive_avg_pool2d(torch.stack(masks)[:, None].float(), known.features.shape[3:]).flatten()
    cells = known.features[annotated].float().movedim(2, -1).flatten(0, -2)  # (n·V·h·w, C)
    mean, deviation = cells.mean(0), cells.std(0) + 1e-3
    x, y = (cells - mean) / deviation, covered - covered.mean()
    weights = torch.linalg.solve(x.T @ x / len(x) + penalty * torch.eye(x.shape[1]), x.T @ y / len(x))
    for i in (~annotated).nonzero()[:, 0].tolist():
        parts = (known.features[i].float().movedim(1, -1) - mean) / deviation @ weights + covered.mean()  # (V, h, w)
        parts[1:] = parts[1:].flip(2)
        pixels = F.interpolate(parts.mean(0)[None, None], known.size, mode="bilinear", align_corners=False)[0, 0]
        pixels = pixels.clamp(min=0)  # else none would reach half of a negative maximum
        boxes[i] = _mirrored(mask_box(pixels >= pixels.max() / 2).float(), known.size[1])[: len(parts), None]
    result = copy.copy(known)
    result.boxes, result.annotated = torch.cat(boxes, 1), np.ones(len(known), bool)
    result.starts = np.cumsum([0, *(found.shape[1] for found in boxes)]).tolist()
    return result.labelled(known.classes, known.targets.argmax(1))


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes (..., 4) of an image, and of its mirror image: (2, ..., 4)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([boxes, torch.stack([width - x2, y1, width - x1, y2], -1)])
