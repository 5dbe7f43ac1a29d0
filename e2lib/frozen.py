"""Frozen explanations: a teacher's logits and maps of every image, computed once, kept on disk, moved with the images.

The teacher sees each whole image once. While the student trains, the map gets the crop, resize and flip of its image;
the logits stay (Parchami-Araghi et al.: Good Teachers Explain, ECCV 2024).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    """The transform that gives Samples the `maps` and `logits` that `freeze` has written for their images.

    Maps, in [-1, 1], are brought to the image's size. Then `then` moves image, boxes and maps together; it must not
    change colours. ValueError if `folder` holds the files of several `freeze` calls and `store` does not say which.
    """

    folder: Path
    then: Callable[[Sample], Sample] | None = None
    store: str = ""  # with which the names of the files begin

    def __post_init__(self):
        paths = sorted(self.folder.glob(f"{self.store}*.safetensors"))
        if len(stores := sorted({path.name.partition("-")[0] for path in paths})) > 1:
            raise ValueError(f"{self.folder} holds explanations of several; store must be one of {', '.join(stores)}")
        self.position = {name: (path, i) for path in paths for i, name in enumerate(names_in(path))}

    def __call__(self, sample: Sample) -> Sample:
        if sample.name not in self.position:
            raise KeyError(f"{self.folder} holds no image {sample.name!r}: it was made of other data")
        path, i = self.position[sample.name]
        maps, logits = (_opened(path).get_slice(name)[i : i + 1] for name in ("maps", "logits"))
        maps = (maps.float() - 128) / 127 if maps.dtype == torch.uint8 else maps.float()
        maps = F.interpolate(maps, tuple(sample.image.shape[1:]), mode="bilinear", align_corners=False)
        sample = replace(sample, maps=tv_tensors.Image(maps[0]), logits=logits[0].float())
        return sample if self.then is None else self.then(sample)


_opened = functools.cache(lambda path: safe_open(path, "pt"))  # mapped into memory, so that a fork may go on with it


def freeze(
    teacher: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    size: int,
    method: str = "gradcam",
    at: str = "Final",
    dtype: str = "float16",
    contrast: bool = False,
    **how: Any,
) -> Dataset:
    """Explain the teacher's top class of every image of `dataset`, once; the data set with these maps and logits.

    The teacher sees `size` x `size` pixels. Maps of this size, divided by their largest absolute value, are on disk as
    float16, or uint8 with 255 levels (`dtype`). The data set's own transform is kept, and moves the maps too. `method`,
    `at` and `contrast` are as for `distillation.Distill`, `how` (batch_size, workers, precision) as for
    `features.keep`. ValueError for two images of one name, and an empty data set.
    """
    check_value(dtype in ("float16", "uint8"), "dtype", dtype, "one of float16, uint8")
    inner, positions = dataset, np.arange(len(dataset))
    while isinstance(inner, Selection):
        inner, positions = inner.dataset, inner.indices[positions]
    whole = Selection(with_transform(inner, eval_transform(size)), np.unique(positions))

    def explanations(batch: Batch) -> dict[str, Tensor]:
        logits, maps = explanation(teacher, batch.images, top_class(contrast), method, at)
        maps = over_peak(maps.float().contiguous(), (1, 2, 3))
        maps = maps.half() if dtype == "float16" else (maps * 127 + 128).round().to(torch.uint8)  # of 1 to 255
        return {"maps": maps, "logits": logits.float()}

    paths = keep(teacher, whole, folder, explanations, [method, METHODS.get(method), at, contrast, dtype], **how)
    then = inner.transform.then if isinstance(inner.transform, Frozen) else inner.transform  # not another teacher's
    frozen = Frozen(Path(folder), then, paths[0].name.partition("-")[0])
    if len(frozen.position) < len(whole):
        raise ValueError(f"dataset holds {len(whole)} images, of {len(frozen.position)} names; names must differ")
    return with_transform(dataset, frozen)
