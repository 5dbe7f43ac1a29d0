"""The embedded data: scenes and birds, composed from photographic cut-outs and backgrounds (data/README.md).

A scene depends on (seed, split, index) alone. They seed NumPy's PCG64, and integer arithmetic makes the pixels. So a
scene is the same on every machine, in every order of access and, apart from its resolution, at every size.

Each background photograph is divided along its longer axis into regions for train, val and test. About a fifth of the
cut-outs of each category appear only in test_unseen, on the regions of test. The other splits share the rest.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_image

from e2lib.datasets.files import read_rows
from e2lib.datasets.sample import Sample, Samples, Transform, check_transform, check_value
from e2lib.datasets.waterbirds import GROUPS, TASKS
from e2lib.disk import DATA, digest, digest_of_files, essence

# background group -> the two categories that are at home in it
HOMES = {"water": ["bird", "sea"], "green": ["insect", "flower"], "autumn": ["furry", "fruit"]}
HOMES |= {"indoor": ["music", "tool"], "open": ["hoofed", "vehicle"]}
CATEGORIES = ["bird", "sea", "insect", "hoofed", "furry", "flower", "fruit", "music", "vehicle", "tool"]
REGIONS = {"train": (0.0, 0.38), "val": (0.38, 0.66), "test": (0.66, 1.0)}  # of a background's longer axis
SPLITS = {"train": "train", "val": "val", "test": "test", "test_unseen": "test"}  # split -> region
CROP = (0.75, 1.0)  # side of a background crop, as part of the region's shorter side
LONGEST = 0.55  # largest longest side of an object, as part of the image's side
NATIVE = 128  # image side at which no cut-out is enlarged
COVERED = 0.4  # largest part of an object's area under the boxes of later objects; in pixels it stays below half
BRIGHTNESS = (80, 121)  # of a cut-out's colours, in per cent


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene: its cut-out, its look, and its place, in fractions of the image's side."""

    cutout: int  # index into cutouts(...)
    label: int  # index into the data set's classes
    place: tuple[float, float, float, float]  # x, y, width, height
    area: float  # the opaque part, as part of the image's area
    flip: bool
    brightness: int  # in per cent

    def box(self, size: int) -> tuple[int, int, int, int]:
        """Where the whole cut-out lies in an image of size x size pixels, xyxy; later objects may hide some of it."""
        x, y, w, h = (round(value * size) for value in self.place)
        w, h = max(1, w), max(1, h)
        x, y = min(x, size - w), min(y, size - h)
        return x, y, x + w, y + h

    def overlap(self, other: "SceneObject") -> float:
        """Area that the boxes of two objects share, as part of the image's area."""
        (x, y, w, h), (x2, y2, w2, h2) = self.place, other.place
        return max(min(x + w, x2 + w2) - max(x, x2), 0) * max(min(y + h, y2 + h2) - max(y, y2), 0)


@dataclass(frozen=True)
class SceneRecord:
    """All that a scene is made of."""

    background: int  # row of backgrounds.csv
    crop: tuple[int, int, int, int]  # xyxy, in pixels of the photograph
    flip: bool
    context: str  # background group of Scenes, place of SceneBirds
    objects: tuple[SceneObject, ...]  # later ones lie on earlier ones
    group: int


@lru_cache
def cutouts(part: str = "seen") -> list[dict[str, str]]:
    """Rows of cutouts.csv of one part of the individuals: "seen", or "unseen" (in test_unseen alone)."""
    return [row for row in read_rows(DATA / "cutouts.csv") if row["split"] == part]


@lru_cache
def backgrounds() -> list[dict[str, str]]:
    """Rows of backgrounds.csv."""
    return read_rows(DATA / "backgrounds.csv")


@lru_cache
def _pool(part: str | None = None, **wanted: str) -> list[int]:
    """Positions of the rows with the wanted values: in cutouts(part), or in backgrounds() without a part."""
    return [i for i, row in enumerate(cutouts(part) if part else backgrounds()) if wanted.items() <= row.items()]


@lru_cache
def _made_of() -> str:
    """Hash of all that scenes depend on: this file's code, the lists and the photographs."""
    files = sorted([*DATA.glob("*.csv"), *DATA.rglob("*.webp")])
    return digest([essence(Path(__file__).read_text(encoding="utf-8")), digest_of_files(files)])


@lru_cache
def _photographs() -> list[Image.Image]:
    folder = DATA / "backgrounds"
    return [Image.open(folder / row["group"] / f"{row['name']}.webp").convert("RGB") for row in backgrounds()]


def _region(photograph: Image.Image, region: str) -> tuple[int, int, int, int]:
    w, h = photograph.size
    start, stop = math.ceil(REGIONS[region][0] * max(w, h)), math.floor(REGIONS[region][1] * max(w, h))
    return (start, 0, stop, h) if w > h else (0, start, w, stop)


@lru_cache
def _levels(part: str) -> list[tuple[list[Image.Image], float, float]]:
    """For each cut-out: premultiplied pictures of full, half and quarter size, elongation, largest longest side."""
    result = []
    for row in cutouts(part):
        picture = Image.open(DATA / "cutouts" / row["category"] / f"{row['name']}.webp").convert("RGBA")
        opaque = int(np.asarray(picture.getchannel("A"), dtype=np.int64).sum()) / 255
        full, longest = picture.convert("RGBa"), max(picture.size)
        result.append(([full, full.reduce(2), full.reduce(4)], longest / math.sqrt(opaque), longest / NATIVE))
    return result


def _resized(picture, width, height, flip):
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture


def _pick(pool, u):
    return pool[int(u * len(pool))]


def _between(bounds, u):
    return bounds[0] + u * (bounds[1] - bounds[0])


@dataclass(eq=False)
class _Composed(Samples):
    """The common part of Scenes and SceneBirds. `_choose` gives backgrounds, context, (cut-outs, label) pairs, group.

    Each class sets `kind`, the first part of every item's name; `stream`, for random numbers of its own; `area`, bounds
    of the square root of an object's opaque area, as parts of the image side; `least`, the lowest `correlation`.
    """

    split: str  # train, val, test or test_unseen
    length: int
    size: int = 128  # pixels per side, 64 to 224
    correlation: float = 0.8
    seed: int = 0
    transform: Transform = None

    def __post_init__(self):
        check_value(self.split in SPLITS, "split", self.split, f"one of {list(SPLITS)}")
        check_value(self.length >= 1, "length", self.length, "1 or more")
        check_value(self.size in range(64, 225), "size", self.size, "a whole number from 64 to 224 (pixels)")
        check_value(self.seed >= 0, "seed", self.seed, "0 or more")
        name, value = f"correlation of {type(self).__name__}", self.correlation
        check_value(self.least <= value <= 1, name, value, f"from {self.least} to 1")
        check_transform(self.transform)
        self.part, self._cache = "unseen" if self.split == "test_unseen" else "seen", {}

    def __len__(self) -> int:
        return self.length

    def _random(self, i: int) -> Callable[[], float]:
        entropy = [self.seed, self.stream, list(SPLITS).index(self.split), i]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).random

    @cached_property
    def targets(self) -> torch.Tensor:
        """Those of Samples, without composing an image."""
        targets = torch.zeros(self.length, len(self.classes), dtype=torch.uint8)
        for i in range(self.length):
            targets[i, [label for _, label in self._choose(self._random(i))[2]]] = 1
        return targets

    @cached_property
    def group_of(self) -> np.ndarray:
        return np.array([self._choose(self._random(i))[3] for i in range(self.length)])

    def fingerprint(self) -> str:
        return f"{self} {_made_of()}"

    def _place(self, objects, random) -> list[SceneObject]:
        """Draw cut-outs and places. Each object lies inside the image and stays at least half visible."""
        placed = []
        for pool, label in objects:
            cutout = _pick(pool, random())
            (picture, *_), elongation, largest = _levels(self.part)[cutout]
            longest = min(_between(self.area, random()) * elongation, largest, LONGEST)
            look = random() < 0.5, int(_between(BRIGHTNESS, random()))
            while True:
                w, h = (longest / max(picture.size) * side for side in picture.size)
                place = random() * (1 - w), random() * (1 - h), w, h
                tried = [*placed, SceneObject(cutout, label, place, (longest / elongation) ** 2, *look)]
                hidden = [sum(map(one.overlap, tried[k + 1 :])) for k, one in enumerate(tried)]
                if all(part <= COVERED * one.area for part, one in zip(hidden, tried, strict=True)):
                    break
                longest *= 0.98  # so that the search ends in a crowded scene too
            placed = tried
        return placed

    def record(self, i: int) -> SceneRecord:
        """Scene i before it is composed."""
        random = self._random(range(self.length)[i])
        pool, context, objects, group = self._choose(random)
        background = _pick(pool, random())
        left, top, right, bottom = _region(_photographs()[background], SPLITS[self.split])
        side = int(min(right - left, bottom - top) * _between(CROP, random()))
        x, y = left + int(random() * (right - left - side + 1)), top + int(random() * (bottom - top - side + 1))
        crop, flip = (x, y, x + side, y + side), random() < 0.5
        return SceneRecord(background, crop, flip, context, tuple(self._place(objects, random)), group)

    def without(self, i: int, label: int) -> Sample:
        """Scene i composed without its objects of one class; all else stays as it is."""
        record = self.record(i)
        kept = tuple(thing for thing in record.objects if thing.label != label)
        sample = self._compose(i, replace(record, objects=kept))
        sample.name += f" without {self.classes[label]}"
        return sample if self.transform is None else self.transform(sample)

    def _compose(self, i: int, record: SceneRecord) -> Sample:
        # Cropped first: resize(box=...) would also filter pixels beyond the box.
        canvas = _resized(_photographs()[record.background].crop(record.crop), self.size, self.size, record.flip)
        seen = torch.zeros(self.size, self.size, dtype=torch.uint8)  # 0 where the background is, k + 1 object k
        for k, thing in enumerate(record.objects, 1):
            x1, y1, x2, y2 = thing.box(self.size)
            pictures = _levels(self.part)[thing.cutout][0]
            picture = next((p for p in pictures[::-1] if p.width >= x2 - x1 and p.height >= y2 - y1), pictures[0])
            patch = _resized(picture, x2 - x1, y2 - y1, thing.flip).convert("RGBA")
            brighter = [min(255, (value * thing.brightness + 50) // 100) for value in range(256)]
            patch = patch.point([*brighter * 3, *range(256)])  # red, green, blue; alpha as it is
            canvas.paste(patch, (x1, y1), patch)
            seen[y1:y2, x1:x2][torch.from_numpy(np.array(patch.getchannel("A")) >= 128)] = k
        masks = tv_tensors.Mask(seen == torch.arange(1, len(record.objects) + 1)[:, None, None])
        box_labels = torch.tensor([thing.label for thing in record.objects], dtype=torch.int64)
        labels = torch.zeros(len(self.classes), dtype=torch.uint8).index_fill(0, box_labels, 1)
        image, name = to_image(canvas), f"{self.kind}-{self.split}-{i}"
        return Sample(image, labels, box_labels=box_labels, masks=masks, group=record.group, name=name)

    def __getitem__(self, i: int) -> Sample:
        i = range(self.length)[i]
        if i not in self._cache:
            self._cache[i] = self._compose(i, self.record(i))
        sample = copy.deepcopy(self._cache[i])  # a transform may write into its input
        return sample if self.transform is None else self.transform(sample)


@dataclass(eq=False)
class Scenes(_Composed):
    """Scenes: one to three objects of ten categories on a background that goes with them; multi-label data.

    The background's group g is drawn uniformly from HOMES, then each object's category: with probability `correlation`
    one of the two at home in g, else one of the other eight, uniformly. So every category is equally frequent, and
    P(g is the category's home) = correlation: 0.2 is independence, 1 a perfect shortcut, 0 its reverse. A process keeps
    composed scenes, 3 size² bytes per image and size² per object, besides 90 MB of photographs. ValueError for a value
    outside the ranges beside the fields.
    """

    classes, multilabel = CATEGORIES, True  # unless `categories` and `objects` say otherwise
    kind, stream, area, least = "scene", 0, (0.18, 0.33), 0

    objects: int = 3  # the most in a scene, 1 to 3; 1 makes single-label data
    categories: Sequence[str] = tuple(CATEGORIES)  # all ten, or five, one of each home

    def __post_init__(self):
        super().__post_init__()
        check_value(self.objects in (1, 2, 3), "objects of Scenes", self.objects, "1, 2 or 3")
        self.classes, self.multilabel = list(self.categories), self.objects > 1
        homes = [[c for c in pair if c in self.classes] for pair in HOMES.values()]
        right = sorted(self.classes) == sorted(sum(homes, [])) and len({*map(len, homes)}) == 1 and self.classes
        check_value(bool(right), "categories of Scenes", self.classes, f"all, or one of each of {[*HOMES.values()]}")

    def _choose(self, random):
        group = _pick(list(HOMES), random())
        home, objects = [c for c in HOMES[group] if c in self.classes], []
        others = [c for c in self.classes if c not in home]
        for _ in range(1 + int(self.objects * random())):
            category = _pick(home if random() < self.correlation else others, random())
            objects.append((_pool(self.part, category=category), self.classes.index(category)))
        return _pool(group=group), group, objects, -1


@dataclass(eq=False)
class SceneBirds(_Composed):
    """The recipe of Waterbirds (Sagawa et al. 2020, sec. 3) on the embedded photographs: bird type x place.

    P(place matches the bird) = correlation, so that 1.0 leaves two of the four groups empty and 0.5 makes bird and
    place independent. Every image holds one bird, its box and its mask. Memory and errors are those of Scenes.

    Notes: Waterbirds has 3.3 land birds per water bird. Here both are equally frequent, and chance is 50 %.
    """

    groups, multilabel = GROUPS, False
    kind, stream, area, least = "bird", 1, (0.20, 0.36), 0.5

    correlation: float = 1.0
    task: str = "bird"  # or "place" (classes land, water); the box is the bird's all the same, with the place's label

    def __post_init__(self):
        super().__post_init__()
        check_value(self.task in TASKS, "task", self.task, f"one of {list(TASKS)}")
        self.classes = TASKS[self.task]

    def _choose(self, random):
        kinds, bird = TASKS["place"], int(2 * random())
        place = bird if random() < self.correlation else 1 - bird
        birds, label = _pool(self.part, category="bird", bird_habitat=kinds[bird]), {"bird": bird, "place": place}
        return _pool(waterbirds_place=kinds[place]), kinds[place], [(birds, label[self.task])], 2 * bird + place
