"""Frozen explanations: a teacher's logits and maps of every image, computed once, kept on disk, moved with the images.

The teacher sees each whole image once. While the student trains, the map gets the crop, resize and flip of its image;
the logits stay (Parchami-Araghi et al.: Good Teachers Explain, ECCV 2024).
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors

from e2lib.attribution import modes_restored
from e2lib.datasets import Batch, Sample, Selection, eval_transform, with_transform
from e2lib.datasets.files import check_value
from e2lib.distillation import explanation, top_class
from e2lib.distillation.losses import NOTHING
from e2lib.features import keep, key, names_in
from e2lib.training.precision import form, formed

TYPES = ("float16", "uint8")


@dataclass
class Frozen:
    """The transform that gives Samples the `maps` and `logits` that `freeze` has written for their images.

    Maps are float32 (K, H, W) in [-1, 1], each divided by its largest absolute value, brought to the image's size
    before `then`. ValueError where the folder holds the files of several, and `store` names none of them.

    Args:
        folder: of the files.
        then: transform of the Sample, which moves image, boxes and maps together (`datasets.Joint`). It may not change
            colours: it would change those of the maps too.
        store: how the names of the files begin, where the folder holds those of more than one `freeze`.
    """

    folder: Path
    then: Callable[[Sample], Sample] | None = None
    store: str = ""

    def __post_init__(self):
        self.position = {}
        paths = sorted(self.folder.glob(f"{self.store}*.safetensors"))
        if len(stores := sorted({path.name.partition("-")[0] for path in paths})) > 1:
            raise ValueError(f"{self.folder} holds explanations of several; store must be one of {', '.join(stores)}")
        for path in paths:
            self.position |= {name: (path, i) for i, name in enumerate(names_in(path))}

    def __call__(self, sample: Sample) -> Sample:
        """KeyError for an image that the store does not hold."""
        if sample.name not in self.position:
            raise KeyError(f"{self.folder} holds no image {sample.name!r}: it was made of other data")
        path, i = self.position[sample.name]
        maps, logits = (_opened(path, os.getpid()).get_slice(name)[i : i + 1] for name in ("maps", "logits"))
        maps = (maps.float() - 128) / 127 if maps.dtype == torch.uint8 else maps.float()
        maps = F.interpolate(maps, tuple(sample.image.shape[1:]), mode="bilinear", align_corners=False)
        sample = replace(sample, maps=tv_tensors.Image(maps[0]), logits=logits[0].float())
        return sample if self.then is None else self.then(sample)


@functools.cache
def _opened(path: Path, process: int) -> safe_open:
    """The file, opened once in each process: after a fork it is not to be shared."""
    return safe_open(path, "pt")


def freeze(
    teacher: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    size: int,
    method: str = "gradcam",
    at: str = "Final",
    dtype: str = "float16",
    contrast: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    precision: str = "auto",
) -> Dataset:
    """Explain the teacher's top class of every image of `dataset`, once; the data set with these maps and logits.

    Another teacher, data set or way to explain has files of its own, each made as `features.keep` says. The teacher runs
    in eval mode. ValueError for two images of one name.

    Args:
        teacher: images (B, 3, H, W) in [0, 1] to logits (B, C).
        dataset: its own transform is kept, and moves the maps too.
        size: pixels a side, to which whole images are resized for the teacher. Its maps have this size too.
        dtype: of the maps on disk, float16, or uint8 with 255 levels.
        method, at, contrast: as for `distillation.Distill`.
        folder, batch_size, workers, precision: as for `features.extract`.
    """
    check_value(dtype in TYPES, "dtype", dtype, f"one of {', '.join(TYPES)}")
    whole = with_transform(dataset, eval_transform(size))
    store = key(teacher, whole, method, at, contrast, dtype, form(teacher, precision).dtype)

    def compute(batch: Batch) -> dict[str, Tensor]:
        images = batch.images.to(next(teacher.parameters()).device)
        with cast():
            logits, maps = explanation(teacher, images, top_class(contrast), method, at)
        maps = maps.float().contiguous()
        peak = maps.abs().amax((1, 2, 3), keepdim=True)
        maps = (maps / torch.where(peak > NOTHING, peak, torch.inf)).cpu()
        # uint8: from 1 (-1) over 128 (0) to 255
        maps = maps.half() if dtype == "float16" else (maps * 127 + 128).round().to(torch.uint8)
        return {"maps": maps, "logits": logits.float().cpu()}

    with modes_restored(teacher), formed(teacher, precision) as cast:
        teacher.eval()
        keep(folder, store, whole, compute, batch_size, workers, "explaining")
    inner = dataset
    while isinstance(inner, Selection):
        inner = inner.dataset
    then = inner.transform
    while isinstance(then, Frozen):  # of another teacher, which this one replaces
        then = then.then
    frozen = Frozen(Path(folder), then, store)
    if len(frozen.position) < len(whole):
        raise ValueError(f"dataset holds {len(whole)} images, of {len(frozen.position)} names; names must differ")
    return with_transform(dataset, frozen)
