"""Frozen explanations: a teacher's logits and maps of every image, computed once, kept on disk, moved with the images.

The teacher sees each whole image once. While the student trains, the map gets the crop, resize and flip of its image;
the logits stay (Parchami-Araghi et al.: Good Teachers Explain, ECCV 2024).
"""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from tqdm.auto import tqdm

from e2lib.attribution import modes_restored
from e2lib.datasets import Sample, Selection, collate, eval_transform, with_transform
from e2lib.disk import replacing
from e2lib.distillation import NOTHING, explanation, top_class
from e2lib.features import key
from e2lib.training import processes

TYPES = ("float16", "uint8")
CARD = "store.json"
SHARD = 512  # images in a file


@dataclass
class Frozen:
    """The transform that gives Samples the `maps` and `logits` that `freeze` has written for their images.

    Maps are float32 (K, H, W) in [-1, 1], each divided by its largest absolute value, brought to the image's size
    before `then`. Files are opened when they are first asked for, by each process for itself.

    Args:
        folder: of the store.
        then: transform of the Sample, which moves image, boxes and maps together (`datasets.Joint`). Its steps may move
            pixels, not change colours: they would change the maps too.
    """

    folder: Path
    then: Callable[[Sample], Sample] | None = None
    files: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        self.position = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                names = json.loads(file.metadata()["names"])
            self.position |= {name: (path, i) for i, name in enumerate(names)}

    def __call__(self, sample: Sample) -> Sample:
        """KeyError for an image that the store does not hold."""
        if sample.name not in self.position:
            raise KeyError(f"{self.folder} holds no image {sample.name!r}: it was made of other data")
        path, i = self.position[sample.name]
        opened = os.getpid(), path  # a file that was opened before a fork is not to be shared
        if opened not in self.files:
            self.files[opened] = safe_open(path, "pt")
        maps, logits = (self.files[opened].get_slice(name)[i : i + 1] for name in ("maps", "logits"))
        maps = (maps.float() - 128) / 127 if maps.dtype == torch.uint8 else maps.float()
        size = tuple(sample.image.shape[1:])
        if maps.shape[2:] != size:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        sample = replace(sample, maps=tv_tensors.Image(maps[0]), logits=logits[0].float())
        return sample if self.then is None else self.then(sample)

    def __getstate__(self) -> dict:
        return vars(self) | {"files": {}}


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
) -> Dataset:
    """Explain the teacher's top class of every image of `dataset`, once; the data set with these maps and logits.

    What an interrupted call has left in the folder is not computed again. Several processes (`training.processes`) that
    see the same folder share the work.

    Args:
        teacher: images (B, 3, H, W) in [0, 1] to logits (B, C); runs in eval mode.
        dataset: Samples whose images' names differ. Its own transform is kept, and moves the maps too.
        folder: for this teacher, these images and this way to explain alone.
        size: pixels a side, to which whole images are resized for the teacher, and so are its maps.
        method: as for `distillation.Distill`, as is contrast.
        at: where `explain` explains.
        dtype: of the maps on disk, float16, or uint8: 255 levels.
        contrast: explain the difference of the top class and the others.
        batch_size: images a forward pass.
        workers: processes that load images.

    Raises:
        ValueError: the folder belongs to another teacher, data set or way to explain, naming what differs; two images
            of one name; an unknown dtype.
    """
    if dtype not in TYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(TYPES)}")
    folder, whole = Path(folder), with_transform(dataset, eval_transform(size))
    about = {"teacher and images": key(teacher, whole), "method": method, "at": at, "contrast": contrast}
    _claim(folder, about | {"dtype": dtype})
    device = next(teacher.parameters()).device
    parts = [range(i, min(i + SHARD, len(whole))) for i in range(0, len(whole), SHARD)]
    paths = [folder / f"{number:06d}.safetensors" for number in range(len(parts))]
    rank, world = processes() if _common(folder) else (0, 1)
    missing = [(path, part) for path, part in zip(paths, parts, strict=True) if not path.exists()][rank::world]
    bar = tqdm(total=sum(len(part) for _, part in missing), desc="explaining", unit="image", leave=False)
    with modes_restored(teacher), bar:
        teacher.eval()
        for path, part in missing:
            # A generator of its own: what is drawn later must not depend on what was in the folder.
            loader = DataLoader(
                Subset(whole, part), batch_size, collate_fn=collate, num_workers=workers, generator=torch.Generator()
            )
            found, names = [], []
            for batch in loader:
                logits, maps = explanation(teacher, batch.images.to(device), top_class(contrast), method, at)
                found.append((_stored(maps, dtype), logits.float().cpu()))
                names += batch.names
                bar.update(len(batch.names))
            _write(path, *map(torch.cat, zip(*found, strict=True)), names)
    if world > 1:
        dist.barrier()
    inner = dataset
    while isinstance(inner, Selection):
        inner = inner.dataset
    then = inner.transform
    while isinstance(then, Frozen):  # of another teacher, which this one replaces
        then = then.then
    frozen = Frozen(folder, then)
    if len(frozen.position) < len(whole):
        raise ValueError(f"dataset holds {len(whole)} images, of {len(frozen.position)} names; names must differ")
    return with_transform(dataset, frozen)


def _common(folder: Path) -> bool:
    """Whether several processes were given the same folder."""
    if processes()[1] == 1:
        return False
    low = torch.tensor([zlib.crc32(str(folder.resolve()).encode())])
    high = low.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    return bool(low == high)


def _stored(maps: Tensor, dtype: str) -> Tensor:
    """Maps over their largest absolute value, as they are kept: float16, or uint8 from 1 (-1) over 128 (0) to 255."""
    peak = maps.abs().amax((1, 2, 3), keepdim=True)
    maps = (maps / torch.where(peak > NOTHING, peak, torch.inf)).cpu()
    return maps.half() if dtype == "float16" else (maps * 127 + 128).round().to(torch.uint8)


def _write(path: Path, maps: Tensor, logits: Tensor, names: list[str]) -> None:
    tensors = {"maps": maps.contiguous(), "logits": logits.contiguous()}
    with replacing(path) as part:
        save_file(tensors, part, {"names": json.dumps(names)})


def _claim(folder: Path, about: dict) -> None:
    """Say on the folder's card what it is for. ValueError where it says something else."""
    card = folder / CARD
    if card.exists():
        for name, value in json.loads(card.read_text()).items():
            if about[name] != value:
                raise ValueError(
                    f"{folder} holds explanations with {name}={value!r}, not {about[name]!r}; name another"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(card) as part:
        part.write_text(json.dumps(about, indent=1))
