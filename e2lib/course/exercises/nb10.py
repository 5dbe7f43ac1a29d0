"""Exercises of notebook 10."""

import torch
import torch.nn.functional as F

from e2lib.course.exercises import Hint, choose, compare, exercise


@exercise(
    "10.1",
    "How much a frozen teacher weighs",
    "Compute by hand, five minutes",
    text="""
    Maps W(x) have six numbers a pixel, contribution maps one; float16 takes two bytes a number, uint8 one. How many
    kB (1000 bytes) has the map of an image of 64 × 64 pixels as W(x) in float16, and how many as contributions in
    uint8? And how many GB (10⁹ bytes) have the W(x) of 1.28 million images of 224 × 224 pixels in float16? """,
    setup="from e2lib.course import exercises",
    start="""
    weights = ...
    contributions = ...
    imagenet = ...
    """,
    solution="""
    weights = 6 * 64 * 64 * 2 / 1e3
    contributions = 64 * 64 / 1e3
    imagenet = 1.28e6 * 6 * 224 * 224 * 2 / 1e9
    """,
    answer="weights, contributions, imagenet",
    why="""
    49.2 kB is what the notebook's table shows for an image, a dozen times the contributions. Three quarters of a
    terabyte for ImageNet tell why one may want fewer numbers: Grad-CAM at Final keeps one map.
    """,
    mistakes=(
        ("6 * 64 * 64 * 2 / 1e3", "6 * 64 * 64 / 1e3", "two bytes"),
        ("6 * 64 * 64 * 2 / 1e3", "64 * 64 * 2 / 1e3", "six"),
        ("64 * 64 / 1e3", "64 * 64 / 1024", "1000"),
        ("224 * 224", "64 * 64", "224"),
    ),
)
def frozen_sizes(weights, contributions, imagenet):
    compare(
        "weights",
        weights,
        49.152,
        (49.152 / 2, "float16 takes two bytes a number."),
        (49.152 / 6, "W(x) has six numbers a pixel."),
        (48.0, "a kB has 1000 bytes here."),
        within=0.05,
    )
    compare(
        "contributions",
        contributions,
        4.096,
        (4.0, "a kB has 1000 bytes here."),
        (8.192, "uint8 takes one byte."),
        within=0.01,
    )
    small = 1.28e6 * 6 * 64 * 64 * 2 / 1e9
    compare(
        "imagenet",
        imagenet,
        770.7,
        (small, "these images have 224 × 224 pixels."),
        (770.7 / 2, "float16 takes two bytes."),
        within=1,
    )


@exercise(
    "10.2",
    "Flip a stored map with its image",
    "Write a function, five minutes",
    text="""
    Write `flipped(maps, flags)`: stored maps (B, K, H, W) and flags bool (B,), True where the image was flipped
    from left to right, to the maps (B, K, H, W) that go with the images that the student sees.
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    """,
    start="""
    def flipped(maps, flags):
        ...


    """,
    solution="""
    def flipped(maps, flags):
        return torch.where(flags[:, None, None, None], maps.flip(3), maps)


    """,
    answer="flipped",
    why="""
    The stored map itself must stay as it is: the next epoch flips other images.
    """,
    mistakes=(
        ("flip(3)", "flip(2)", "upside down"),
        ("torch.where(flags[:, None, None, None], maps.flip(3), maps)", "maps.flip(3)", "not flagged"),
        (
            "return torch.where(flags[:, None, None, None], maps.flip(3), maps)",
            "maps[flags] = maps[flags].flip(3)\n    return maps",
            "changed",
        ),
        ("maps.flip(3), maps", "maps, maps.flip(3)", "not flagged"),
    ),
)
def flip_maps(flipped):
    maps = torch.randn(4, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    before, flags = maps.clone(), torch.tensor([True, False, False, True])
    found = flipped(maps, flags)
    if not torch.equal(maps, before):
        raise Hint("the stored maps are changed: the next epoch would begin with flipped ones.")
    where = flags[:, None, None, None]
    compare(
        "the maps",
        found,
        torch.where(where, maps.flip(3), maps),
        (torch.where(where, maps.flip(2), maps), "these are upside down: which dimension goes from left to right?"),
        (maps.flip(3), "images that are not flagged keep their maps."),
        (torch.where(where, maps, maps.flip(3)), "images that are not flagged keep their maps, and the others do not."),
    )


@exercise(
    "10.3",
    "Crop a stored map with its image",
    "Write a function, ten minutes",
    text="""
    Write `cropped(maps, box, size)`: maps (B, K, H, W), a half-open box (x1, y1, x2, y2) of whole numbers, to the
    maps of that crop, brought to `size` × `size` bilinearly (`F.interpolate`, `align_corners=False`).
    """,
    setup="""
    import torch.nn.functional as F

    from e2lib.course import exercises
    """,
    start="""
    def cropped(maps, box, size):
        x1, y1, x2, y2 = box
        ...


    """,
    solution="""
    def cropped(maps, box, size):
        x1, y1, x2, y2 = box
        part = maps[:, :, y1:y2, x1:x2]
        return F.interpolate(part, (size, size), mode="bilinear", align_corners=False)


    """,
    answer="cropped",
    why="""
    It is what happens to the image, with the same box. The teacher never saw the enlarged crop, and might have said
    something else about it: that is the approximation.
    """,
    mistakes=(
        ("y1:y2, x1:x2", "x1:x2, y1:y2", "rows"),
        ("y1:y2, x1:x2", "y1 : y2 + 1, x1 : x2 + 1", "half-open"),
        ('mode="bilinear", align_corners=False', 'mode="nearest"', "bilinear"),
        ("maps[:, :, y1:y2, x1:x2]", "maps", "whole map"),
    ),
)
def crop_maps(cropped):
    maps = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x1, y1, x2, y2 = box = (2, 5, 10, 15)

    def resized(part, **how):
        return F.interpolate(part, (8, 8), **how or {"mode": "bilinear", "align_corners": False})

    compare(
        "the maps",
        cropped(maps, box, 8),
        resized(maps[..., y1:y2, x1:x2]),
        (resized(maps[..., x1:x2, y1:y2]), "the rows of a map go with y, the columns with x."),
        (resized(maps[..., y1 : y2 + 1, x1 : x2 + 1]), "the box is half-open."),
        (resized(maps[..., y1:y2, x1:x2], mode="nearest"), "bilinear is wanted."),
        (resized(maps), "that is the whole map, without the crop."),
    )


@exercise(
    "10.4",
    "Which is closer to the live map?",
    "Predict, then run, ten minutes",
    text="""
    A stored map was computed of the whole image. It is flipped with the image, or cropped with it (here the middle
    quarter, enlarged to the whole size) and compared, by the cosine, with the live map of the image that was
    flipped or cropped. Which stored map is closer to its live one, for the B-cos network of this repository?

    - **a** the flipped one
    - **b** the cropped one
    - **c** both have a cosine of 1
    """,
    setup="""
    import torch.nn.functional as F

    from e2lib.course import exercises
    from e2lib.course.exercises.nb10 import contributions, photographs
    """,
    start="""
    prediction = ...
    (images, classes), middle = photographs(), slice(16, 48)
    stored = contributions(images, classes)
    flip = stored.flip(3), contributions(images.flip(3), classes)
    large = [F.interpolate(x[..., middle, middle], (64, 64), mode="bilinear") for x in (stored, images)]
    crop = large[0], contributions(large[1].clamp(0, 1), classes)
    cosines = [F.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item() for a, b in (flip, crop)]
    """,
    solution="""
    prediction = "a"
    (images, classes), middle = photographs(), slice(16, 48)
    stored = contributions(images, classes)
    flip = stored.flip(3), contributions(images.flip(3), classes)
    large = [F.interpolate(x[..., middle, middle], (64, 64), mode="bilinear") for x in (stored, images)]
    crop = large[0], contributions(large[1].clamp(0, 1), classes)
    cosines = [F.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item() for a, b in (flip, crop)]
    """,
    answer="prediction, cosines",
    why="""
    Training flipped images at random, so the network answers a mirror image nearly alike, but not quite: its
    kernels are no mirror images of themselves. An enlarged crop has other surroundings and other sizes of things.
    That students learn from moved crops all the same is the surprise of this notebook.
    """,
    mistakes=(('"a"', '"b"', "surroundings"), ('"a"', '"c"', "kernels")),
)
def closer(prediction, cosines):
    flip, crop = cosines
    measured = f"cosine {flip:.2f} for flips and {crop:.2f} for crops."
    if not (1.001 > flip > crop):
        raise Hint(f"your cell gives a {measured} Was a line changed?")
    choose(
        prediction,
        "a",
        b=f"which surroundings does an enlarged crop lack, and which details does it add? Your run: {measured}",
        c=f"are the network's kernels mirror images of themselves? Your run: {measured}",
    )
    return measured


def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight embedded scenes of 64 pixels, (8, 3, 64, 64) float in [0, 1], and their classes, int64 (8,)."""
    from e2lib import datasets

    scenes = datasets.load("scenes", None, "test", 64, 8, objects=1)
    batch = datasets.collate([scenes[i] for i in range(8)])
    return batch.images, batch.labels.argmax(1)


def contributions(images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Contribution maps (B, 1, H, W) of the repository's B-cos network to the logits of the classes, int64 (B,)."""
    from e2lib import models
    from e2lib.attribution import explain

    net = models.build("bcos_scenes", 10, "scenes").eval()
    return explain(net, images, classes, "bcos").maps


@exercise(
    "10.5",
    "When does freezing pay?",
    "Write a function, five minutes",
    text="""
    A student's own step takes `student` seconds, the teacher's forward and backward pass `teacher` seconds a step,
    and freezing takes `once` seconds in all. Write `pays_after(teacher, once)`: after how many steps, a whole
    number, a run with stored maps has taken less time than one with the live teacher. (Reading the maps costs
    nothing here.) Why does `student` not matter?
    """,
    setup="""
    import math

    from e2lib.course import exercises
    """,
    start="""
    def pays_after(teacher, once):
        ...


    """,
    solution="""
    def pays_after(teacher, once):
        return math.floor(once / teacher) + 1


    """,
    answer="pays_after",
    why="""
    Both runs have the student's own steps. Freezing an image costs what a live step costs for it, so that the
    second epoch is the first one that is cheaper: after *more than* one epoch it pays.
    """,
    mistakes=(
        ("math.floor(once / teacher) + 1", "once / teacher", "whole number"),
        ("math.floor(once / teacher) + 1", "math.ceil(once / teacher)", "less time"),
        ("once / teacher", "once * teacher", "seconds"),
    ),
)
def freezing_pays(pays_after):
    for teacher, once in ((0.25, 10.1), (0.5, 3.0), (2.0, 1.0), (0.125, 100.0)):
        right, found = int(once // teacher) + 1, pays_after(teacher, once)
        where = f"with a teacher of {teacher} s a step and {once} s for freezing, pays_after gives {found}"
        if not isinstance(found, int):
            raise Hint(f"{where}; a whole number is wanted.")
        if found * teacher == once:
            raise Hint(f"{where}: then both take the same time, and *less time* is wanted.")
        if found != right:
            raise Hint(f"{where}; but {found} live steps of the teacher take {found * teacher:g} seconds.")


MORE = """
Predict, then run the notebook with other parameters: `shots={5: 60}`; `explained={"method": "bcos", "at": "Input",
"weight": 20.0}`, which stores one channel in place of six.
"""
