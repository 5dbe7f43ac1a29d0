"""Exercises of notebook 12."""

import torch

from e2lib import models
from e2lib.attribution import explain
from e2lib.boxes import box_mask
from e2lib.course.exercises import Hint, compare, exercise
from e2lib.datasets import Scenes
from e2lib.metrics import epg


@exercise(
    "12.1",
    "The number under the maps",
    "Write a function, ten minutes",
    text="""
    The playground writes the EPG of the drawn box under each map. Write `share(network, image, c, box)`: the EPG, in
    per cent, of the box [x1, y1, x2, y2] in the contributions (method `bcos`, at Input) to class `c` of one image, a
    float tensor (3, H, W) in [0, 1]. `e2lib.boxes.box_mask(boxes, size)` makes a mask (H, W) of boxes (N, 4).
    """,
    setup="""
    import torch

    from e2lib.attribution import explain
    from e2lib.boxes import box_mask
    from e2lib.course import exercises
    from e2lib.metrics import epg
    """,
    start="""
    def share(network, image, c, box):
        ...


    """,
    solution="""
    def share(network, image, c, box):
        _, maps = explain(network, image[None], torch.tensor([c]), "bcos", "Input")
        mask = box_mask(torch.tensor([box]), image.shape[1:])
        return 100 * epg(maps, mask[None, None]).item()


    """,
    answer="share",
    why="""
    Nothing else happens under the maps. The number tells where the network finds its reasons, not whether they are
    good ones: a box on the background can be filled, too.
    """,
    mistakes=(
        ("100 * ", "", "per cent"),
        ('"bcos"', '"ixg"', "method"),
        ("torch.tensor([c])", "torch.tensor([0])", "class"),
        ("mask[None, None]", "~mask[None, None]", "outside"),
        ("return 100", "_ = 100", "None"),
    ),
)
def the_number(share):
    network = models.build("bcos_scenes", 10, "scenes").eval()
    for seed, box in ((0, [10, 16, 40, 60]), (1, [0, 0, 32, 32])):
        sample = Scenes("test", 4, 64, seed=seed)[1]
        image, c = sample.image.float() / 255, int(sample.box_labels[0])
        mask = box_mask(torch.tensor([box]), (64, 64))[None, None]

        def of(method, target, image=image, mask=mask):
            return 100 * epg(explain(network, image[None], torch.tensor([target]), method, "Input")[1], mask).item()

        right = of("bcos", c)
        compare(
            "share",
            share(network, image, c, box),
            right,
            (right / 100, "that is a fraction; per cent are wanted."),
            (100 - right, "that is what lies outside of the box."),
            (of("ixg", c), "that is another method: contributions are `bcos`."),
            (of("bcos", 0), "that is the map of another class: explain c."),
            within=0.05,
        )


@exercise(
    "12.2",
    "More than chance?",
    "Compute by hand, three minutes",
    text="""
    The box of the blue car is [46, 45, 115, 64], and 16 % of the positive attribution lay in it before the first press.
    A map that knows nothing, the same everywhere, would have how many per cent in this box of the image of 128 x 128
    pixels (`chance`)? How many times as much did the network have (`times`), and at most how many times as much can any
    map have (`most`)?
    """,
    setup="from e2lib.course import exercises",
    start="""
    chance = ...
    times = ...
    most = ...
    """,
    solution="""
    chance = 100 * (115 - 46) * (64 - 45) / 128**2
    times = 16 / chance
    most = 100 / chance
    """,
    answer="chance, times, most",
    why="""
    The box is 8 % of the image: 16 % is twice as much as chance, little for an object of the class. EPG has to be read
    beside the size of the box; a box around everything has an EPG of 100 %.
    """,
    mistakes=(
        ("100 * (115", "(115", "per cent"),
        ("(115 - 46) * (64 - 45)", "(45 - 46) * (64 - 115)", "x1, y1, x2, y2"),
        ("/ 128**2", "/ 128", "square"),
        ("16 / chance", "16 - chance", "times"),
        ("100 / chance", "1 / chance", "100 %"),
    ),
)
def more_than_chance(chance, times, most):
    right = 100 * (115 - 46) * (64 - 45) / 128**2
    compare(
        "chance",
        chance,
        right,
        (right / 100, "that is a fraction; per cent are wanted."),
        (right * 128, "the image has 128 x 128 pixels: the square of its side."),
        (100 * (45 - 46) * (64 - 115) / 128**2, "the numbers of a box are x1, y1, x2, y2."),
        within=0.01,
    )
    compare("times", times, 16 / right, (16 - right, "how many times as much, not how much more?"), within=0.01)
    compare("most", most, 100 / right, (1 / right, "all of the attribution is 100 %."), within=0.05)


@exercise(
    "12.3",
    "What a press can move",
    "Compute, five minutes",
    text="""
    *Depth* in the playground decides what is explained, and what learns: the layers behind it. How many per cent of
    the network's numbers does one step of a press change at Input, and how many at Final? Count the elements of
    `network.parameters()` that differ after `steps=1`.
    """,
    setup="""
    from e2lib import datasets, models
    from e2lib.course import exercises, widgets

    network = models.build("bcos_scenes", 10, "scenes").eval()
    scene = datasets.Scenes("test", 4, 64, seed=0)[1]
    """,
    start="""
    at_input = ...
    at_final = ...
    """,
    solution="""
    def moved(at):
        after = widgets.guided(network, scene, "energy", at, steps=1)
        pairs = list(zip(network.parameters(), after.parameters(), strict=True))
        return 100 * sum((a != b).sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)


    at_input, at_final = moved("Input"), moved("Final")
    """,
    answer="at_input, at_final",
    why="""
    All, and one in a thousand. That is why a press at Final is quick, and why it hardly moves the map: the features of
    its cells stay as they are, and only the last layer's weights change.
    """,
    mistakes=(
        ("100 * ", "", "per cent"),
        ('moved("Input"), moved("Final")', 'moved("Final"), moved("Input")', "exchanged"),
        ("(a != b).sum().item()", "(a == b).sum().item()", "stay"),
    ),
)
def what_moves(at_input, at_final):
    network = models.build("bcos_scenes", 10, "scenes").eval()
    scene, found = Scenes("test", 4, 64, seed=0)[1], {}
    from e2lib.course import widgets  # here: it is slow to import

    for at in ("Input", "Final"):
        after = widgets.guided(network, scene, "energy", at, steps=1)
        pairs = list(zip(network.parameters(), after.parameters(), strict=True))
        total = sum(a.numel() for a, _ in pairs)
        found[at] = 100 * sum((a != b).sum().item() for a, b in pairs) / total
    for name, value, at in (("at_input", at_input, "Input"), ("at_final", at_final, "Final")):
        other = found["Final" if at == "Input" else "Input"]
        compare(
            name,
            value,
            found[at],
            (found[at] / 100, "that is a fraction; per cent are wanted."),
            (other, "the two are exchanged."),
            (100 - found[at], "that many stay as they were."),
            within=1e-3,
        )


@exercise(
    "12.4",
    "How sure is a bar?",
    "Compute by hand, five minutes",
    text="""
    At correlation 0.8, of 64 scenes 13 show an object away from home, and a student is right on 46 % of them. How many
    points is the standard error of that bar, 100 · √(p (1 − p) / n)? And how many scenes in all, at this correlation,
    make it at most 5 points? (One of five is away from home.)
    """,
    setup="from e2lib.course import exercises",
    start="""
    error = ...
    scenes = ...
    """,
    solution="""
    error = 100 * (0.46 * 0.54 / 13) ** 0.5
    scenes = 5 * 100  # 0.46 · 0.54 / 0.05² is 99.4: a hundred of them away from home
    """,
    answer="error, scenes",
    why="""
    Fourteen points: two bars that differ by a step or two say nothing. The slider shows what to look for; the notebooks
    that measure have hundreds of images in each group, and several seeds.
    """,
    mistakes=(
        ("100 * (0.46", "(0.46", "points"),
        ("0.46 * 0.54 / 13) ** 0.5", "0.46 * 0.54) ** 0.5 / 13", "root"),
        ("0.54 / 13", "0.54 / 64", "13"),
        ("scenes = 5 * 100", "scenes = 100", "in all"),
        ("scenes = 5 * 100", "scenes = 5 * 4", "eight times"),
        ("scenes = 5 * 100", "scenes = round(64 * 100 / 13)", "one of five"),
    ),
)
def how_sure(error, scenes):
    p = 0.46
    compare(
        "error",
        error,
        100 * (p * (1 - p) / 13) ** 0.5,
        ((p * (1 - p) / 13) ** 0.5, "that is a fraction; points are wanted."),
        (100 * (p * (1 - p)) ** 0.5 / 13, "n belongs under the root."),
        (100 * (p * (1 - p) / 64) ** 0.5, "the bar is that of the 13 scenes away from home."),
        within=0.05,
    )
    least = p * (1 - p) / 0.05**2
    if isinstance(scenes, int | float) and abs(scenes - least) < 1:
        raise Hint("that many away from home; they are one of five, and the question is how many in all.")
    if isinstance(scenes, int | float) and scenes < 100:
        raise Hint("too few: the error of 13 is nearly three times as large, so that it takes eight times as many.")
    if isinstance(scenes, int | float) and 485 <= scenes < 5 * least:
        raise Hint("nearly: one of five is away from home, not 13 of 64, and the number has to be rounded up.")
    compare("scenes", scenes, 500, within=3.5)


MORE = """
Give the playground your own scenes: `datasets.Scenes("test", 24, 128, seed=…)`, with a seed of yours. Draw a box
where no object is, and press *Guide* until its EPG has doubled: what has become of the map, and of F1 elsewhere?
"""
