"""What a frozen trunk makes of a data set's images, computed once and kept on disk: heads train on it in seconds."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from tqdm.auto import tqdm

from e2lib.attribution import modes_restored
from e2lib.boxes import box_mask, mask_box
from e2lib.datasets import Sample, Selection, collate
from e2lib.disk import replacing
from e2lib.models import weights_key


class Features(Dataset):
    """A data set whose Samples hold features in place of images; boxes, labels and groups are as they were.

    What `extract` returns. Of an image with two views, itself and its mirror image, torch's generator draws one.

    Attributes:
        features: float16 (N, V, C, h, w), V views.
        size: height and width in pixels of the images, in which boxes are given.
        classes, groups, multilabel, targets: as in every data set.
    """

    def __init__(self, path: Path):
        self.path, tensors = path, load_file(path)
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        self.classes, self.groups, self.multilabel = about["classes"], about["groups"], about["multilabel"]
        self.size, self.names = tuple(about["size"]), about["names"]
        self.features, self.targets, self.group_of = (
            tensors["features"],
            tensors["targets"],
            tensors["group_of"].numpy(),
        )
        self.boxes, self.box_labels = tensors["boxes"], tensors["box_labels"]
        self.starts, self.boxed = tensors["starts"].tolist(), tensors["boxed"]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def annotated(self) -> np.ndarray:
        """bool (N,): which images may use their boxes."""
        return self.boxed.numpy()

    def images_with(self, c: int) -> np.ndarray:
        """Positions of the images that show class `c`: int64 (n,), increasing."""
        return self.targets[:, c].nonzero()[:, 0].numpy()

    def fingerprint(self) -> str:
        """Tells these features, their labels and boxes from others."""
        known = (self.targets, self.starts, self.boxes, self.box_labels, self.boxed)
        return f"{self.path.stem} {[torch.as_tensor(part).tolist() for part in known]}"

    def labelled(self, classes: Sequence[str], labels: Sequence[int]) -> "Features":
        """The same features with other labels: names of classes, and one index an image, which its boxes take over.

        Raises ValueError for another number of labels, or one that is no index of the classes.
        """
        labels = torch.as_tensor(labels)
        if labels.shape != (len(self),) or not ((labels >= 0) & (labels < len(classes))).all():
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; one of 0 to {len(classes) - 1} an image is wanted"
            )
        result = copy.copy(self)
        result.classes, result.multilabel = list(classes), False
        result.targets = F.one_hot(labels.long(), len(classes)).to(torch.uint8)
        result.box_labels = labels.long().repeat_interleave(torch.tensor(self.starts).diff())
        return result

    def __getitem__(self, i: int) -> Sample:
        i = range(len(self))[i]
        views = self.features.shape[1]
        view = int(torch.randint(views, ())) if views > 1 else 0
        span = slice(self.starts[i], self.starts[i + 1])
        return Sample(
            image=self.features[i, view],
            labels=self.targets[i],
            boxes=tv_tensors.BoundingBoxes(self.boxes[view, span], format="XYXY", canvas_size=self.size),
            box_labels=self.box_labels[span],
            masks=None,
            group=int(self.group_of[i]),
            name=self.names[i],
            annotated=bool(self.boxed[i]),
        )


@torch.no_grad()
def extract(
    trunk: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    mirrored: bool = False,
    batch_size: int = 32,
    workers: int = 0,
) -> Features:
    """The features of every image of `dataset`, from `folder` where they are known, else computed and kept there.

    Args:
        trunk: from images (B, 3, H, W) in [0, 1] to features (B, C, h, w), as from `models.split`; runs in eval mode.
        dataset: Samples of one size, with a transform that is not random.
        folder: holds a file for each trunk and data set, named by a hash of the trunk's weights and structure, the data
            set's `fingerprint` (what it was made from, and its transform) and `mirrored`.
        mirrored: two views of each image, itself and its mirror image with mirrored boxes.
        batch_size: images a forward pass.
        workers: processes that load images.

    Returns:
        `Features`. They are float16, and all of them in memory while they are computed: 31 kB a view for
        EfficientNet-Lite0 at 224 pixels. Segmentation masks are not kept.

    Raises:
        ValueError: features that float16 cannot hold.
    """
    folder = Path(folder)
    path = folder / f"{key(trunk, dataset, mirrored)}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # of several runs that want them the first one computes, the others wait
        if not path.exists():
            _extract(trunk, dataset, path, mirrored, batch_size, workers)
    return Features(path)


def _extract(trunk: nn.Module, dataset: Dataset, path: Path, mirrored: bool, batch_size: int, workers: int) -> None:
    device = next(trunk.parameters()).device
    # A generator of its own: otherwise what is drawn afterwards would depend on whether the features were known.
    own = torch.Generator()
    loader = DataLoader(dataset, batch_size, collate_fn=collate, num_workers=workers, generator=own)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("features", "boxes", "box_labels", "group_of", "boxed")}
    names, counts = [], []
    with modes_restored(trunk):
        trunk.eval()
        for batch in tqdm(loader, desc="features", unit="batch", leave=False):
            images = batch.images.to(device)
            views = (images, images.flip(3)) if mirrored else (images,)
            parts["boxes"].append(_mirrored(torch.cat(batch.boxes), batch.size[1])[: len(views)])
            parts["features"].append(torch.stack([_half(trunk(view)) for view in views], 1))
            parts["box_labels"] += batch.box_labels
            parts["group_of"].append(batch.groups)
            parts["boxed"].append(batch.annotated)
            counts += [len(labels) for labels in batch.box_labels]
            names += batch.names
    tensors = {name: torch.cat(values, 1 if name == "boxes" else 0) for name, values in parts.items()}
    tensors |= {"targets": dataset.targets, "starts": torch.tensor(np.cumsum([0, *counts]))}
    about = {"classes": dataset.classes, "groups": dataset.groups, "multilabel": dataset.multilabel}
    about |= {"size": batch.size, "names": names}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        save_file(tensors, part, {"about": json.dumps(about)})


def join(first: Features, second: Features) -> Features:
    """What two trunks make of the same images, in one data set: the channels of the first, then those of the second.

    Heads of either network find theirs by `models.Head.channels`: a teacher and a student can see the same views.
    Raises ValueError for other images, views, or cells.
    """
    shapes = [(x.names, x.size, (*x.features.shape[:2], *x.features.shape[3:])) for x in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"features are {tuple(first.features.shape)} and {tuple(second.features.shape)}, of images of "
            f"{first.size} and {second.size} pixels; both must be of the same images, views and cells"
        )
    result = copy.copy(first)
    result.path = first.path.with_stem(f"{first.path.stem}-{second.path.stem}")  # part of the fingerprint; no file
    result.features = torch.cat([first.features, second.features], 2)
    return result


def _half(features: Tensor) -> Tensor:
    half = features.cpu().half()
    if not half.isfinite().all():
        raise ValueError(f"features reach {features.abs().max():.3g}; float16 holds at most 65504")
    return half


def key(network: nn.Module, dataset: Dataset, *others) -> str:
    """Sixteen hex digits that tell a network (its structure and weights), a data set and whatever else from others."""
    return weights_key(network, f"{network} {' '.join(map(str, others))} {dataset.fingerprint()}")


def predict_boxes(data: Selection, penalty: float = 0.01) -> Features:
    """The features with a box for every image, learned from the few whose boxes may be used.

    Logistic regression tells each cell of the features, by its channels, whether it lies in the box: as target the part
    of the cell that the box covers, all cells of all views of the annotated images. An image's box is the smallest that
    holds the pixels whose probability, averaged over views and brought to the images' size bilinearly, is at least half
    of the image's largest. Annotated images keep their boxes.

    Args:
        data: what `datasets.with_boxes` makes of `Features` of single-label data, without repeats.
        penalty: of the squared weights (of standardised channels), nats a cell.

    Raises:
        ValueError: data of another kind, or multi-label; no annotated image has a box.
    """
    known = data.dataset if isinstance(data, Selection) else None
    whole = known is not None and np.array_equal(data.indices, np.arange(len(known)))
    if not whole or not isinstance(known, Features) or known.multilabel:
        raise ValueError("data must be with_boxes(features, fraction), features being those of single-label images")
    annotated = known.boxed & torch.as_tensor(data.annotated) & (torch.as_tensor(known.starts).diff() > 0)
    if not annotated.any():
        raise ValueError("no annotated image has a box; there is nothing to learn boxes from")
    some = annotated.nonzero()[:, 0].tolist()
    grid, views = known.features.shape[3:], range(known.features.shape[1])
    inside = [[known.boxes[v, known.starts[i] : known.starts[i + 1]] for v in views] for i in some]
    masks = torch.stack(
        [torch.stack([box_mask(boxes, known.size) for boxes in both]) for both in inside]
    )  # (n, V, H, W)
    covered = F.adaptive_avg_pool2d(masks.float(), grid).flatten()
    cells = known.features[some].float().movedim(2, -1).flatten(0, -2)  # (n·V·h·w, C)
    mean, deviation = cells.mean(0), cells.std(0) + 1e-3
    weights = torch.zeros(cells.shape[1] + 1, requires_grad=True)

    def logits(x: Tensor) -> Tensor:
        return (x - mean) / deviation @ weights[1:] + weights[0]

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(logits(cells), covered) + penalty * weights[1:].square().sum()
        value.backward()
        return value

    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")
    optimizer.step(loss)
    result, boxes, starts = copy.copy(known), [], [0]
    with torch.no_grad():
        for i, features in enumerate(known.features):
            if annotated[i]:
                found = known.boxes[:, known.starts[i] : known.starts[i + 1]]
            else:
                chances = logits(features.float().movedim(1, -1)).sigmoid()  # (V, h, w)
                found = _mirrored(_around(chances, known.size), known.size[1])[:, None][: len(views)]
            boxes.append(found)
            starts.append(starts[-1] + found.shape[1])
    result.boxes, result.starts, result.boxed = torch.cat(boxes, 1), starts, torch.ones(len(known), dtype=torch.bool)
    return result.labelled(known.classes, known.targets.argmax(1))


def _around(chances: Tensor, size: tuple[int, int]) -> Tensor:
    """The box, float32 (4,), around what is likely: chances (V, h, w) of an image and its mirror image."""
    if len(chances) == 2:
        chances = (chances[0] + chances[1].flip(1))[None] / 2
    pixels = F.interpolate(chances[None], size, mode="bilinear", align_corners=False)[0, 0]
    return mask_box(pixels >= pixels.max() / 2).float()


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes (..., 4) of an image, and of its mirror image: (2, ..., 4)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([boxes, torch.stack([width - x2, y1, width - x1, y2], -1)])
