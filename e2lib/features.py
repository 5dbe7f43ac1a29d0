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
from torchvision.transforms.v2.functional import horizontal_flip
from tqdm.auto import tqdm

from e2lib.attribution import modes_restored
from e2lib.boxes import box_masks, mask_box
from e2lib.datasets import Batch, Sample, Samples, Selection, collate
from e2lib.datasets.files import check_value
from e2lib.disk import once
from e2lib.models import fingerprint
from e2lib.training.precision import form, formed

SHARD = 512  # images in a file


class Features(Samples):
    """Samples with features in place of images, made by `extract`. torch's generator draws one of several views.

    The features stay in their files, which the system maps into memory, and reads and forgets as needed.
    """

    def __init__(self, paths: Sequence[Path], dataset: Dataset, crops: int):
        parts, names = [load_file(path) for path in paths], [name for path in paths for name in names_in(path)]
        self.trunks = [[part.pop("features") for part in parts]]  # of each trunk and file float16 (n, 1 or 2, C, h, w)
        self.maps = [part.pop("maps") for part in parts if "maps" in part]  # of `frozen.freeze`, float16 (n, K, H, W)
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.logits = tensors.get("logits")
        self.key, self.targets, self.names, self.crops = paths[0].stem, dataset.targets, names[::crops], crops
        self.classes, self.groups, self.multilabel = dataset.classes, dataset.groups, dataset.multilabel
        self.pairs = getattr(dataset, "pairs", None)  # of `datasets.Without`
        self.group_of, self.annotated = dataset.group_of, tensors["annotated"][::crops].numpy()
        self.boxes, self.box_labels = tensors["boxes"], tensors["box_labels"]  # of all crops, float32 (all boxes, 4)
        self.starts = [0, *tensors["count"].cumsum(0).tolist()]  # crop k has boxes[starts[k] : starts[k + 1]]
        self.size = tuple(tensors["size"][0].tolist())  # height and width in pixels, in which boxes are given

    def __len__(self) -> int:
        return len(self.names)

    @property
    def features(self) -> Tensor:
        """The features of all images and views, read into memory: float16 (N, V, C, h, w)."""
        return torch.cat([torch.cat(parts) for parts in self.trunks], 2).reshape(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """N, V, C, h, w: the numbers of images, views and channels, and of rows and columns of cells."""
        firsts = [parts[0] for parts in self.trunks]
        views, channels = self.crops * firsts[0].shape[1], sum(first.shape[2] for first in firsts)
        return len(self), views, channels, *firsts[0].shape[3:]

    def crop(self, k: int) -> Tensor:
        """Features of the k-th of all crops, and of its mirror image if there is one: float16 (1 or 2, C, h, w)."""
        return torch.cat([_row(files, k) for files in self.trunks], 1)

    def fingerprint(self) -> str:
        """Text that changes with the features, labels and boxes."""
        return fingerprint([self.key, self.targets, self.starts, self.boxes, self.box_labels, self.annotated])

    def labelled(self, classes: Sequence[str], labels: Sequence[int]) -> "Features":
        """The same features with other `classes`. One index into them per image labels the image and its boxes."""
        labels = torch.as_tensor(labels)
        if labels.shape != (len(self),) or not ((labels >= 0) & (labels < len(classes))).all():
            raise ValueError(f"labels are {tuple(labels.shape)}; one of 0 to {len(classes) - 1} per image is wanted")
        result = copy.copy(self)
        result.classes, result.multilabel = list(classes), False
        result.targets = F.one_hot(labels.long(), len(classes)).to(torch.uint8)
        counts = torch.tensor(self.starts).diff().view(len(self), -1).sum(1)
        result.box_labels = labels.long().repeat_interleave(counts)
        return result

    def __getitem__(self, i: int) -> Sample:
        i = range(len(self))[i]
        views = self.shape[1]
        view = int(torch.randint(views, ())) if views > 1 else 0
        k, mirrored = divmod(i * views + view, views // self.crops)  # the crop among all, and 1 for its mirror image
        span = slice(self.starts[k], self.starts[k + 1])
        boxes = tv_tensors.BoundingBoxes(self.boxes[span], format="XYXY", canvas_size=self.size)
        boxes = horizontal_flip(boxes) if mirrored else boxes
        about = {"group": int(self.group_of[i]), "name": self.names[i], "annotated": bool(self.annotated[i])}
        if self.maps:
            maps = _row(self.maps, k).float()
            about |= {"maps": maps.flip(2) if mirrored else maps, "logits": self.logits[k]}
        return Sample(self.crop(k)[mirrored], self.targets[i], boxes, self.box_labels[span], **about)


def _row(files: Sequence[Tensor], k: int) -> Tensor:
    """Row `k` of tensors laid end to end; all but the last have one length."""
    return files[k // len(files[0])][k % len(files[0])]


class _Crops(Selection):
    """Each image several times. The position seeds torch's generator, for random transforms."""

    def __getitem__(self, i: int) -> Sample:
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(i)
            return super().__getitem__(i)


def extract(
    trunk: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    mirrored: bool = False,
    crops: int = 1,
    batch_size: int = 32,
    workers: int = 0,
    precision: str = "auto",
) -> Features:
    """Each image's features (C, h, w) by a trunk of `models.split`, kept in `folder`; see `keep` for the others.

    Each image gives `crops` views, which differ if its transform is random. With `mirrored`, their mirror images are
    views as well. Images have one size, and masks are left out. A view of EfficientNet-Lite0 at 224 pixels takes 31 kB.
    An interrupted call goes on after the last 512 views. ValueError if float16 overflows.
    """
    check_value(crops >= 1, "crops", crops, "at least 1")

    def features(batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            views = torch.stack([trunk(x) for x in (batch.images, batch.images.flip(3))[: 1 + mirrored]], 1)
        if not (half := views.half()).isfinite().all():
            raise ValueError(f"features reach {views.abs().max():.3g}; float16 holds at most 65504")
        frozen = {} if batch.maps is None else {"maps": batch.maps.half(), "logits": batch.logits}
        return frozen | {
            "features": half,
            "boxes": torch.cat(batch.boxes),
            "box_labels": torch.cat(batch.box_labels),
            "count": torch.tensor([len(boxes) for boxes in batch.boxes]),
            "annotated": batch.annotated,
            "size": torch.tensor([batch.size] * len(half)),
        }

    every = _Crops(dataset, np.repeat(np.arange(len(dataset)), crops))
    paths = keep(trunk, every, folder, features, [mirrored, crops], False, batch_size, workers, precision)
    return Features(paths, dataset, crops)


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
    """Two trunks' features of the same images and views, side by side. Each head's `channels` selects its own."""
    one, other = ((x.names, x.size, x.crops, x.shape[:2], x.shape[3:]) for x in (first, second))
    shapes = " and ".join(f"{x.shape} of {x.size} pixels" for x in (first, second))
    check_value(one == other, "features", shapes, "of the same images, views and cells")
    result = copy.copy(first)
    result.key, result.trunks = f"{first.key} {second.key}", [*first.trunks, *second.trunks]
    return result


def predict_boxes(data: Selection, penalty: float = 0.3) -> Features:
    """The features with boxes for every image. Annotated images keep their boxes; the others get predicted ones.

    `data` is made by `datasets.with_boxes` from `Features`, without repeats. Ridge regression on standardised channels
    predicts how much of a cell the class's boxes cover; `penalty` times the squared weights is added to the mean
    squared error. For single-label images, and for a class without annotated boxes, it learns from the boxes of all
    classes together. Every class that an image shows gets one box, the smallest around the pixels that reach half of
    the largest prediction, averaged over mirror images and resized to the image. ValueError for other data, without an
    annotated box, and for features with a class token, which fill no grid.
    """
    given = getattr(data, "dataset", None)
    right = isinstance(given, Features) and np.array_equal(data.indices, np.arange(len(given)))
    check_value(right, "data", type(data).__name__, "with_boxes(features, fraction), without repeats")
    check_value(given.shape[4] > 1, "the features' grid", given.shape[3:], "of cells, not a column of tokens")
    counts = torch.tensor(given.starts).diff()
    annotated = torch.as_tensor(given.annotated & data.annotated).repeat_interleave(given.crops) & (counts > 0)
    check_value(annotated.any(), "the number of annotated images with boxes", 0, "at least 1, to learn boxes from")
    boxes, labels = list(given.boxes.split(counts.tolist())), list(given.box_labels.split(counts.tolist()))
    cells, covered = [], []
    for k in annotated.nonzero()[:, 0].tolist():
        masks = box_masks(boxes[k], given.size)
        each = torch.stack([masks.any(0), *(masks[labels[k] == c].any(0) for c in range(len(given.classes)))])
        share = F.adaptive_avg_pool2d(each.float(), given.shape[3:])
        for view, there in zip(given.crop(k), (share, share.flip(2)), strict=False):
            cells.append(view.float().flatten(1).T)
            covered.append(there.flatten(1).T)
    cells, covered = torch.cat(cells), torch.cat(covered)  # (n, C), and (n, 1 + classes): by any box, by each class's
    mean, deviation = cells.mean(0), cells.std(0) + 1e-3
    x, level = (cells - mean) / deviation, covered.mean(0)
    weights = torch.linalg.solve(x.T @ x / len(x) + penalty * torch.eye(x.shape[1]), x.T @ (covered - level) / len(x))
    column = torch.where((level[1:] > 0) & given.multilabel, torch.arange(len(given.classes)) + 1, 0)
    showing = (given.targets.sum(1) > 0).repeat_interleave(given.crops)
    for k in (showing & ~annotated).nonzero()[:, 0].tolist():
        labels[k] = given.targets[k // given.crops].nonzero()[:, 0]
        views = (given.crop(k).float().movedim(1, 3) - mean) / deviation @ weights[:, column[labels[k]]]  # (V, h, w, K)
        views[1:] = views[1:].flip(2)
        parts = (views.mean(0) + level[column[labels[k]]]).movedim(2, 0)[None]
        pixels = F.interpolate(parts, given.size, mode="bilinear", align_corners=False)[0]
        pixels = pixels.clamp(min=0)  # no pixel would reach half of a negative maximum
        boxes[k] = torch.stack([mask_box(part >= part.max() / 2).float() for part in pixels])
    result = copy.copy(given)
    result.boxes, result.box_labels, result.annotated = torch.cat(boxes), torch.cat(labels), np.ones(len(given), bool)
    result.starts = np.cumsum([0, *map(len, boxes)]).tolist()
    return result
