"""Frozen explanations: a teacher's logits and maps, computed once per image (Parchami-Araghi et al., ECCV 2024)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors

from e2lib.attribution import METHODS
from e2lib.datasets import Batch, Sample, Selection, eval_transform, with_transform
from e2lib.datasets.files import check_value
from e2lib.distillation import explanation, top_class
from e2lib.features import keep, names_in
from e2lib.metrics.localisation import over_peak


@dataclass
class Frozen:
    """A transform that gives each Sample the `maps` and `logits` that `freeze` has written for its image.

    Maps, in [-1, 1], are resized to the image. Then `then`, which must not change colours, moves image, boxes and maps
    together. ValueError if `folder` holds several `freeze` calls and `store` chooses none; KeyError for another image.
    """

    folder: Path
    then: Callable[[Sample], Sample] | None = None
    store: str = ""  # the beginning of the files' names

    def __post_init__(self):
        paths = sorted(self.folder.glob(f"{self.store}*.safetensors"))
        if len(stores := sorted({path.name.partition("-")[0] for path in paths})) > 1:
            raise ValueError(f"{self.folder} holds several explanations; store must be one of {', '.join(stores)}")
        self.position = {name: (path, i) for path in paths for i, name in enumerate(names_in(path))}

    def __call__(self, sample: Sample) -> Sample:
        if sample.name not in self.position:
            raise KeyError(f"{self.folder} holds no image {sample.name!r}: it was made for other data")
        path, i = self.position[sample.name]
        maps, logits = (_opened(path).get_slice(name)[i : i + 1] for name in ("maps", "logits"))
        maps = (maps.float() - 128) / 127 if maps.dtype == torch.uint8 else maps.float()
        maps = F.interpolate(maps, tuple(sample.image.shape[1:]), mode="bilinear", align_corners=False)
        sample = replace(sample, maps=tv_tensors.Image(maps[0]), logits=logits[0].float())
        return sample if self.then is None else self.then(sample)


_opened = functools.cache(lambda path: safe_open(path, "pt"))  # mapped into memory, which forks may share


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
    """Explain the teacher's top class once for every image; returns `dataset` with these maps and the logits.

    The teacher sees `size` x `size` pixels. Maps of this size, divided by their largest absolute value, are kept as
    float16, or as uint8 with 255 levels (`dtype`). The data set's own transform moves the maps too. `method`, `at` and
    `contrast` are as for `distillation.Distill`. ValueError for two images of one name, and for an empty data set.
    """
    check_value(dtype in ("float16", "uint8"), "dtype", dtype, "one of float16, uint8")
    inner, positions = dataset, np.arange(len(dataset))
    while isinstance(inner, Selection):
        inner, positions = inner.dataset, inner.indices[positions]
    whole = Selection(with_transform(inner, eval_transform(size)), np.unique(positions))

    def explanations(batch: Batch) -> dict[str, Tensor]:
        logits, maps = explanation(teacher, batch.images, top_class(contrast), method, at)
        maps = over_peak(maps.float().contiguous(), (1, 2, 3))
        maps = maps.half() if dtype == "float16" else (maps * 127 + 128).round().to(torch.uint8)  # 1 to 255
        return {"maps": maps, "logits": logits.float()}

    about = [method, METHODS.get(method), at, contrast, dtype]
    paths = keep(teacher, whole, folder, explanations, about, True, batch_size, workers, precision)
    then = inner.transform.then if isinstance(inner.transform, Frozen) else inner.transform  # not another teacher's
    frozen = Frozen(Path(folder), then, paths[0].name.partition("-")[0])
    if len(frozen.position) < len(whole):
        raise ValueError(f"dataset holds {len(whole)} images, of {len(frozen.position)} names; names must differ")
    return with_transform(dataset, frozen)
