"""The embedded data: scenes and birds, composed from photographic cut-outs and backgrounds (data/README.md).

Source: photographs of five Debian packages, listed with author and licence in data/cutouts.csv and
data/backgrounds.csv. Licence of the collection and of the composed images: GPL-3.0-or-later.

Input: uint8 RGB images of size x size pixels. A scene is a function of (seed, split, index) alone: its random
numbers are the doubles of NumPy's PCG64 seeded with these integers, and pixels are made by integer arithmetic, so it
is the same on every machine and in every order of access. The same index shows the same scene at every size.

Splits: each background photograph is divided along its longer axis into one region each for train, val and test, and
no crop crosses a border. About a fifth of the cut-outs of each category (`split` = unseen in cutouts.csv) appear in
test_unseen only, on the regions of test; the other splits share the other cut-outs.
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from e2lib.boxes import mask_box
from e2lib.datasets.sample import Sample
from e2lib.datasets.waterbirds import GROUPS, TASKS
from e2lib.disk import DATA

CATEGORIES = ["bird", "sea", "insect", "hoofed", "furry", "flower", "fruit", "music", "vehicle", "tool"]
HOMES = {  # background group -> the two categories that are at home in it
    "water": ["bird", "sea"],
    "green": ["insect", "flower"],
    "autumn": ["furry", "fruit"],
    "indoor": ["music", "tool"],
    "open": ["hoofed", "vehicle"],
}
REGIONS = {"train": (0.0, 0.38), "val": (0.38, 0.66), "test": (0.66, 1.0)}  # of a background's longer axis
SPLITS = {"train": "train", "val": "val", "test": "test", "test_unseen": "test"}  # split -> region
SIZES = (64, 224)  # smallest and largest image side in pixels
CROP = (0.75, 1.0)  # side of a background crop, of the region's shorter side
LONGEST = 0.55  # largest longest side of an object, of the image side
NATIVE = 128  # image side at which no cut-out is enlarged
COVERED = 0.4  # largest part of an object's area under the boxes of later objects; in pixels it stays below half
BRIGHTNESS = (80, 121)  # a cut-out's colours, in percent


@dataclass(frozen=True)
class Cutout:
    """A photograph of one individual with transparency around it."""

    name: str
    category: str  # one of CATEGORIES
    habitat: str  # birds: "land", "water", or "" where it is neither
    image: np.ndarray  # uint8 (h, w, 4) RGBA, longest side <= 192 pixels


@dataclass(frozen=True)
class Background:
    """A region of a background photograph."""

    name: str
    group: str  # one of HOMES
    place: str  # "land" or "water" where SceneBirds uses it, else ""
    image: np.ndarray  # uint8 (h, w, 3) RGB


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene: index and name of its cut-out in `cutouts(split)`, and where it lies."""

    cutout: int
    name: str
    label: int  # index into the data set's classes
    box: tuple[int, int, int, int]  # tight half-open xyxy box of its visible mask, in pixels


@dataclass(frozen=True)
class SceneRecord:
    """What a scene is made of."""

    background: str
    context: str  # background group of Scenes, place of SceneBirds
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class _Placed:
    """An object's place, in fractions of the image side, and its look."""

    cutout: int
    label: int
    x: float
    y: float
    w: float
    h: float
    flip: bool
    brightness: int  # in percent

    def box(self, size: int) -> tuple[int, int, int, int]:
        w, h = (max(1, round(side * size)) for side in (self.w, self.h))
        x, y = min(round(self.x * size), size - w), min(round(self.y * size), size - h)
        return x, y, x + w, y + h


@lru_cache
def _rows(name: str) -> list[dict[str, str]]:
    path = DATA / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: install e2lib again")
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


@lru_cache
def cutouts(split: str = "seen") -> tuple[Cutout, ...]:
    """All cut-outs of one part, "seen" (all splits but test_unseen) or "unseen", decoded once a process.

    Raises ValueError for another part and FileNotFoundError naming a missing file.
    """
    if split not in ("seen", "unseen"):
        raise ValueError(f"split of the cut-outs is {split!r}; it must be 'seen' or 'unseen'")
    return tuple(
        Cutout(
            row["name"],
            row["category"],
            row["bird_habitat"],
            np.asarray(Image.open(DATA / "cutouts" / row["category"] / f"{row['name']}.webp").convert("RGBA")),
        )
        for row in _rows("cutouts.csv")
        if row["split"] == split
    )


@lru_cache
def _photographs() -> list[Image.Image]:
    """Every background photograph whole, decoded once a process."""
    return [
        Image.open(DATA / "backgrounds" / row["group"] / f"{row['name']}.webp").convert("RGB")
        for row in _rows("backgrounds.csv")
    ]


def _region(photograph: Image.Image, region: str) -> tuple[int, int, int, int]:
    """Box of a region: a piece of the longer axis, all of the shorter."""
    w, h = photograph.size
    start, stop = (fraction * max(w, h) for fraction in REGIONS[region])
    start, stop = math.ceil(start), math.floor(stop)
    return (start, 0, stop, h) if w > h else (0, start, w, stop)


def backgrounds(region: str = "train") -> list[Background]:
    """The region "train", "val" or "test" of every background photograph.

    Raises ValueError for another region and FileNotFoundError naming a missing file.
    """
    if region not in REGIONS:
        raise ValueError(f"region of the backgrounds is {region!r}; it must be one of {list(REGIONS)}")
    return [
        Background(row["name"], row["group"], row["waterbirds_place"], np.asarray(p.crop(_region(p, region))))
        for row, p in zip(_rows("backgrounds.csv"), _photographs(), strict=True)
    ]


@lru_cache
def _levels(part: str) -> list[tuple[list[Image.Image], float, float]]:
    """Of each cut-out, what placing and drawing it needs.

    Premultiplied pictures of full, half and quarter size; elongation, the longest side over the square root of the
    opaque area; the longest side, of the image side, at which it is not enlarged in an image of NATIVE pixels.
    """
    result = []
    for cutout in cutouts(part):
        full = Image.fromarray(cutout.image).convert("RGBa")
        opaque = int(cutout.image[:, :, 3].astype(np.int64).sum()) / 255
        longest = max(full.size)
        result.append(([full, full.reduce(2), full.reduce(4)], longest / math.sqrt(opaque), longest / NATIVE))
    return result


def _pick(pool: Sequence, u: float):
    """Element of `pool` for u in [0, 1)."""
    return pool[int(u * len(pool))]


@lru_cache
def _brighter(percent: int) -> list[int]:
    """Lookup table of an RGBA picture: colours times percent / 100, alpha as it is."""
    return [min(255, (value * percent + 50) // 100) for value in range(256)] * 3 + list(range(256))


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + u * (bounds[1] - bounds[0])


class _Composed(Dataset):
    """What Scenes and SceneBirds share: placing, composing, caching.

    They add their labels and `_choose(random)`: the backgrounds to draw from, their context, of each object the
    cut-outs to draw from and its label, and the group.
    """

    groups: list[str] = []
    kind: str  # first part of every item's name
    stream: int  # apart for each data set, so that none repeats another's random numbers
    area: tuple[float, float]  # square root of an object's opaque area, of the image side

    def __init__(
        self, split: str, length: int, size: int, seed: int, transform: Callable[[Sample], Sample] | None
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; it must be one of {list(SPLITS)}")
        if length < 1:
            raise ValueError(f"length is {length}; it must be 1 or more")
        if size not in range(SIZES[0], SIZES[1] + 1):
            raise ValueError(f"size is {size}; it must be a whole number from {SIZES[0]} to {SIZES[1]} (pixels)")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be 0 or more")
        self.split, self.length, self.size, self.seed, self.transform = split, length, size, seed, transform
        self.part = "unseen" if split == "test_unseen" else "seen"
        self._cache: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]] = {}

    def __len__(self) -> int:
        return self.length

    def _random(self, i: int) -> Callable[[], float]:
        entropy = [self.seed, self.stream, list(SPLITS).index(self.split), i]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).random

    @cached_property
    def targets(self) -> torch.Tensor:
        """uint8 (len, C) multi-hot labels of all items, without composing one."""
        targets = torch.zeros(self.length, len(self.classes), dtype=torch.uint8)
        for i in range(self.length):
            for _, label in self._choose(self._random(i))[2]:
                targets[i, label] = 1
        return targets

    @cached_property
    def group_of(self) -> np.ndarray:
        """int64 (len,) group of each item, -1 without groups, without composing one."""
        return np.array([self._choose(self._random(i))[3] for i in range(self.length)])

    def images_with(self, c: int) -> np.ndarray:
        """Positions of the images that show class `c`: int64 (n,), increasing."""
        return self.targets[:, c].nonzero()[:, 0].numpy()

    def _place(self, objects: list[tuple[list[int], int]], random: Callable[[], float]) -> list[_Placed]:
        """Draw cut-outs and places so that each object lies inside the image and stays at least half visible."""
        levels, placed, hidden, areas = _levels(self.part), [], [], []
        for pool, label in objects:
            cutout = _pick(pool, random())
            pictures, elongation, largest = levels[cutout]
            w, h = pictures[0].size
            longest = min(_between(self.area, random()) * elongation, largest, LONGEST)
            flip, brightness = random() < 0.5, int(_between(BRIGHTNESS, random()))
            while True:
                scale = longest / max(w, h)
                x, y = random() * (1 - scale * w), random() * (1 - scale * h)
                new = _Placed(cutout, label, x, y, scale * w, scale * h, flip, brightness)
                covered = [before + _overlap(new, old) for before, old in zip(hidden, placed, strict=True)]
                if all(c <= COVERED * area for c, area in zip(covered, areas, strict=True)):
                    break
                longest *= 0.98  # so that the search ends also in a crowded scene
            placed.append(new)
            hidden = [*covered, 0.0]
            areas.append((longest / elongation) ** 2)
        return placed

    def _plan(self, i: int) -> tuple[int, tuple[int, int, int, int], bool, str, list[_Placed], int]:
        """Scene i but for its pixels: background, its crop (xyxy) and flip, context, objects, group."""
        random = self._random(i)
        pool, context, objects, group = self._choose(random)
        background = _pick(pool, random())
        left, top, right, bottom = _region(_photographs()[background], SPLITS[self.split])
        side = int(min(right - left, bottom - top) * _between(CROP, random()))
        x, y = left + int(random() * (right - left - side + 1)), top + int(random() * (bottom - top - side + 1))
        crop, flip = (x, y, x + side, y + side), random() < 0.5
        return background, crop, flip, context, self._place(objects, random), group

    def _compose(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Scene i, from the cache if it has been asked for before.

        uint8 (4, size, size): RGB and instance map (0 background, k + 1 object k); float32 (N, 4) boxes of the
        visible masks; int64 (N,) labels; group.
        """
        if i not in self._cache:
            size = (self.size, self.size)
            background, crop, flip, _, objects, group = self._plan(i)
            canvas = _photographs()[background].crop(crop)  # first, as resize(box=...) filters pixels beyond the box
            canvas = canvas.resize(size, Image.Resampling.BILINEAR)
            if flip:
                canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            instances = np.zeros(size, np.uint8)
            for k, placed in enumerate(objects):
                x1, y1, x2, y2 = placed.box(self.size)
                pictures = _levels(self.part)[placed.cutout][0]
                picture = next((p for p in pictures[::-1] if p.width >= x2 - x1 and p.height >= y2 - y1), pictures[0])
                patch = picture.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR).convert("RGBA")
                if placed.flip:
                    patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                patch = patch.point(_brighter(placed.brightness))
                canvas.paste(patch, (x1, y1), patch)
                instances[y1:y2, x1:x2][np.asarray(patch.getchannel("A")) >= 128] = k + 1
            pixels = torch.from_numpy(np.concatenate([np.asarray(canvas).transpose(2, 0, 1), instances[None]]))
            boxes = torch.stack([mask_box(pixels[3] == k + 1) for k in range(len(objects))]).float()
            labels = torch.tensor([placed.label for placed in objects])
            self._cache[i] = pixels, boxes, labels, group
        return self._cache[i]

    def fingerprint(self) -> str:
        """Tells these images from others: how they are composed, and the photographs' lists and sizes."""
        settings = {k: v for k, v in vars(self).items() if k[0] != "_" and k not in ("targets", "group_of")}
        pictures = [(path.name, path.stat().st_size) for path in sorted(DATA.rglob("*.webp"))]
        return f"{self.kind} {settings} {_rows('cutouts.csv')} {_rows('backgrounds.csv')} {pictures}"

    def record(self, i: int) -> SceneRecord:
        """What scene i is made of. Raises IndexError outside the data set."""
        i = range(self.length)[i]
        background, _, _, context, placed, _ = self._plan(i)
        boxes = self._compose(i)[1].int().tolist()
        names = [row["name"] for row in _rows("cutouts.csv") if row["split"] == self.part]
        return SceneRecord(
            _rows("backgrounds.csv")[background]["name"],
            context,
            tuple(
                SceneObject(p.cutout, names[p.cutout], p.label, tuple(box))
                for p, box in zip(placed, boxes, strict=True)
            ),
        )

    def __getitem__(self, i: int) -> Sample:
        """Item i. Raises IndexError outside the data set."""
        i = range(self.length)[i]
        pixels, boxes, box_labels, group = self._compose(i)
        labels = torch.zeros(len(self.classes), dtype=torch.uint8)
        labels[box_labels] = 1
        sample = Sample(
            image=tv_tensors.Image(pixels[:3].clone()),  # cloned, as a transform may write into what it is given
            labels=labels,
            boxes=tv_tensors.BoundingBoxes(boxes.clone(), format="XYXY", canvas_size=(self.size, self.size)),
            box_labels=box_labels.clone(),
            masks=tv_tensors.Mask(pixels[3] == torch.arange(1, len(boxes) + 1)[:, None, None]),
            group=group,
            name=f"{self.kind}-{self.split}-{i}",
        )
        return sample if self.transform is None else self.transform(sample)


def _overlap(a: _Placed, b: _Placed) -> float:
    """Area common to two objects' boxes, of the image's area."""
    w = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    h = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    return max(w, 0) * max(h, 0)


class Scenes(_Composed):
    """Scenes: one to three objects of ten categories on a background that goes with them; multi-label data.

    The background's group g is drawn uniformly from the five of HOMES, then each object's category: with probability
    `correlation` one of the two at home in g, else one of the other eight, uniformly. Hence every category is equally
    frequent, and P(g is the category's home) = correlation: 0.2 is independence, 1 a perfect shortcut, 0 its reverse.
    Two objects may be of one category. Later objects lie on earlier ones; each stays at least half visible. Composed
    images are kept as uint8: 4 size^2 bytes each (64 KiB at 128 pixels, 200 KiB at 224) in every process that asks for
    them, besides 90 MB of decoded photographs.

    split: train, val, test or test_unseen; size: 64 to 224 pixels; correlation: 0 to 1; objects: at most so many in a
    scene, 1 to 3 (1: single-label data); categories: all ten, or five, one of each home.
    Raises ValueError for anything else, a length below 1 or a negative seed.
    """

    classes, multilabel = CATEGORIES, True  # unless `categories` and `objects` say otherwise
    kind, stream = "scene", 0
    area = (0.18, 0.33)

    def __init__(
        self,
        split: str,
        length: int,
        size: int = 128,
        correlation: float = 0.8,
        seed: int = 0,
        transform: Callable[[Sample], Sample] | None = None,
        objects: int = 3,
        categories: Sequence[str] = CATEGORIES,
    ) -> None:
        super().__init__(split, length, size, seed, transform)
        if not 0 <= correlation <= 1:
            raise ValueError(f"correlation of Scenes is {correlation}; it must be from 0 to 1 (0.2: independent)")
        if objects not in (1, 2, 3):
            raise ValueError(f"objects of Scenes is {objects}; it must be 1, 2 or 3")
        homes = [[c for c in pair if c in categories] for pair in HOMES.values()]
        if len(set(categories)) != len(categories) or sorted(categories) != sorted(sum(homes, [])):
            raise ValueError(f"categories of Scenes are {list(categories)}; known are {', '.join(CATEGORIES)}")
        if len({len(home) for home in homes}) > 1 or not homes[0]:
            raise ValueError(f"categories of Scenes are {list(categories)}; take all, or one of each of {HOMES}")
        self.correlation, self.objects = correlation, objects
        self.classes, self.multilabel = list(categories), objects > 1

    def _choose(self, random: Callable[[], float]) -> tuple[list[int], str, list[tuple[list[int], int]], int]:
        group = _pick(list(HOMES), random())
        home = [c for c in HOMES[group] if c in self.classes]
        others = [c for c in self.classes if c not in home]
        objects = []
        for _ in range(1 + int(self.objects * random())):
            category = _pick(home if random() < self.correlation else others, random())
            objects.append((_pool(self.part, category), self.classes.index(category)))
        return _pool_backgrounds(group), group, objects, -1


class SceneBirds(_Composed):
    """The recipe of Waterbirds (Sagawa et al. 2020, sec. 3) on the embedded photographs: bird type x place.

    Land birds and water birds are equally frequent, and P(place matches the bird) = correlation, so that 1.0 leaves
    two of the four groups empty and 0.5 makes bird and place independent. Group = 2 * (bird is a water bird) + (place
    is water). Every image holds one bird, its box and its mask. Memory as for Scenes.

    task: "bird" (classes landbird, waterbird) or "place" (classes land, water; the box is the bird's all the same and
    carries the place's label). correlation: 0.5 to 1. The rest as for Scenes. Raises ValueError for anything else.

    Notes: Waterbirds has 3.3 land birds to one water bird; here both are equally frequent, so that accuracy needs no
    reweighting and chance is 50 %.
    """

    groups = GROUPS
    multilabel = False
    kind, stream = "bird", 1
    area = (0.20, 0.36)

    def __init__(
        self,
        split: str,
        length: int,
        size: int = 128,
        correlation: float = 1.0,
        task: str = "bird",
        seed: int = 0,
        transform: Callable[[Sample], Sample] | None = None,
    ) -> None:
        super().__init__(split, length, size, seed, transform)
        if not 0.5 <= correlation <= 1:
            raise ValueError(f"correlation of SceneBirds is {correlation}; it must be from 0.5 to 1")
        if task not in TASKS:
            raise ValueError(f"task is {task!r}; it must be one of {list(TASKS)}")
        self.correlation, self.task = correlation, task
        self.classes = TASKS[task]

    def _choose(self, random: Callable[[], float]) -> tuple[list[int], str, list[tuple[list[int], int]], int]:
        bird = int(2 * random())
        place = bird if random() < self.correlation else 1 - bird
        kinds = TASKS["place"]
        objects = [(_pool(self.part, "bird", kinds[bird]), bird if self.task == "bird" else place)]
        return _pool_backgrounds("", kinds[place]), kinds[place], objects, 2 * bird + place


@lru_cache
def _pool(part: str, category: str, habitat: str = "") -> list[int]:
    """Indices into cutouts(part) of a category and, for birds, a habitat."""
    rows = [row for row in _rows("cutouts.csv") if row["split"] == part]
    return [
        i
        for i, row in enumerate(rows)
        if row["category"] == category and (not habitat or row["bird_habitat"] == habitat)
    ]


@lru_cache
def _pool_backgrounds(group: str, place: str = "") -> list[int]:
    """Indices into backgrounds(...) of a group, or of a place."""
    column, value = ("waterbirds_place", place) if place else ("group", group)
    return [i for i, row in enumerate(_rows("backgrounds.csv")) if row[column] == value]
