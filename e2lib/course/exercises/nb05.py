"""Exercises of notebook 05."""

import torch

from e2lib import metrics
from e2lib.course.claims import load
from e2lib.course.exercises import Hint, compare, exercise, random_maps


@exercise(
    "05.1",
    "How long is an epoch?",
    "Compute by hand, three minutes",
    text="""
    Of 2,000 training images 5 % have boxes, and these come six times in an epoch, the others once. By how many per
    cent is the epoch longer than without repeats? Which share of its images has boxes (the `fraction` by which
    `Guide` divides), in per cent?
    """,
    setup="from e2lib.course import exercises",
    start="""
    longer = ...
    fraction = ...
    """,
    solution="""
    longer = 100 * (100 * 5) / 2000
    fraction = 100 * (100 * 6) / (2000 + 100 * 5)
    """,
    answer="longer, fraction",
    why="""
    A hundred images come five times *more*: 2,500 in all, of which 600 have boxes. Dividing L_loc by the expected
    number of such images in a batch keeps the meaning of λ, whatever the fraction is.
    """,
    mistakes=(
        ("longer = 100 * (100 * 5) / 2000", "longer = 100 * (100 * 6) / 2000", "once anyway"),
        ("(2000 + 100 * 5)", "2000", "longer epoch"),
        ("(100 * 6) / (2000", "100 / (2000", "six times"),
    ),
)
def length_of_an_epoch(longer, fraction):
    compare("longer", longer, 25.0, (30.0, "each image with boxes comes once anyway."), (0.25, "per cent are wanted."))
    compare(
        "fraction",
        fraction,
        24.0,
        (30.0, "divide by the images of the longer epoch."),
        (4.0, "an image with boxes counts six times."),
        (5.0, "that is the share before the repeats."),
        (0.24, "per cent are wanted."),
    )


@exercise(
    "05.2",
    "On-object EPG",
    "Write a function, five minutes",
    text="""
    Write `on_object(maps, boxes, segments)`: maps (B, 1, H, W) signed float, boxes and segments (B, 1, H, W) bool,
    to (B,): which part of the positive attribution in the boxes is on the object's own pixels. What a segment
    covers outside the boxes does not count; where the boxes hold no positive attribution it is 0.
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    """,
    start="""
    def on_object(maps, boxes, segments):
        ...


    """,
    solution="""
    def on_object(maps, boxes, segments):
        in_box = maps.clamp(min=0) * boxes
        total = in_box.sum((1, 2, 3))
        return (in_box * segments).sum((1, 2, 3)) / torch.where(total > 0, total, 1)


    """,
    answer="on_object",
    why="""
    EPG asks whether attribution is in the box, on-object EPG what it falls on there. A map can be good at one and
    bad at the other: L1 with exact boxes raised EPG, and lowered on-object EPG a little.
    """,
    mistakes=(
        ("total = in_box.sum((1, 2, 3))", "total = maps.clamp(min=0).sum((1, 2, 3))", "in the boxes"),
        ("maps.clamp(min=0) * boxes", "maps.clamp(min=0)", "outside the boxes"),
        ("maps.clamp(min=0) * boxes", "maps.abs() * boxes", "positive attribution"),
        ("torch.where(total > 0, total, 1)", "total", "NaN"),
        ("(in_box * segments)", "(maps.clamp(min=0) * segments)", "segment covers"),
    ),
)
def on_object_epg(on_object):
    maps, masks = random_maps()
    segments = random_maps(seed=1)[1] | (random_maps(seed=2)[0] > 1)
    positive = maps.clamp(min=0)
    compare(
        "on-object EPG",
        on_object(maps, masks, segments),
        metrics.on_object_epg(maps, masks, segments)[:, 0],
        (
            (positive * masks * segments).sum((1, 2, 3)) / positive.sum((1, 2, 3)),
            "divide by the positive attribution in the boxes, not by all of it.",
        ),
        (
            (positive * segments).sum((1, 2, 3)) / positive.sum((1, 2, 3)),
            "attribution outside the boxes counts neither above nor below the line.",
        ),
        (
            (positive * segments).sum((1, 2, 3)) / (positive * masks).sum((1, 2, 3)).clamp(min=1e-12),
            "what a segment covers outside the boxes does not count.",
        ),
        (metrics.on_object_epg(maps.abs(), masks, segments)[:, 0], "only positive attribution counts."),
    )
    compare("on-object EPG of negative maps", on_object(-positive, masks, segments), torch.zeros(4))


@exercise(
    "05.3",
    "Which loss forgives a wide box?",
    "Predict and compute by hand, five minutes",
    text="""
    An image has 10 × 10 pixels, and the exact box 4 × 4 of them; somebody drew it 50 % wider and higher, 6 × 6. A
    map is the same positive number in all of the exact box, and 0 elsewhere. What are the energy loss and the L1
    loss of this perfect map, with the *wide* box as mask? And what is the EPG, measured with the *exact* box, of a
    map that fills the wide box evenly, in per cent?
    """,
    setup="from e2lib.course import exercises",
    start="""
    energy = ...
    l1 = ...
    epg = ...
    """,
    solution="""
    energy = 0.0
    l1 = (6 * 6 - 4 * 4) / (10 * 10)
    epg = 100 * (4 * 4) / (6 * 6)
    """,
    answer="energy, l1, epg",
    why="""
    Nothing of the perfect map is outside the wide box, so energy leaves it alone. L1 does not: it pulls attribution
    into the margin, towards the third map, whose EPG is 44 %. That is why L1's EPG fell with wide boxes, and
    energy's did not fall as much.
    """,
    mistakes=(
        ("energy = 0.0", "energy = 1 - 16 / 36", "outside"),
        ("(6 * 6 - 4 * 4) / (10 * 10)", "(6 * 6 - 4 * 4) / (6 * 6)", "all pixels"),
        ("(6 * 6 - 4 * 4) / (10 * 10)", "0.0", "margin"),
        ("100 * (4 * 4)", "(4 * 4)", "per cent"),
    ),
)
def forgiving(energy, l1, epg):
    compare("energy", energy, 0.0, (1 - 16 / 36, "which part of the map is outside the wide box?"))
    compare(
        "l1",
        l1,
        0.2,
        (20 / 36, "the mean is over all pixels of the image."),
        (0.0, "L1 wants the margin filled as well."),
    )
    compare("epg", epg, 1600 / 36, (16 / 36, "per cent are wanted."), (100.0, "a part is in the margin."), within=0.5)


@exercise(
    "05.4",
    "What do few boxes cost?",
    "Read results.csv, ten minutes",
    text="""
    `load()` gives the numbers that `make results` has written: a row for each setting and seed, a column for each
    metric (`Δ F1` is the difference to the baseline of the same seed). Which mean Δ F1, over the seeds of run 05,
    has the energy loss at Input with boxes for 1 % of the images? And which mean way to the ceiling (column `way`)?
    (Columns that tell the rows apart: `run`, `method`, which is the loss here, `at`, `boxes`, `seed`.)
    """,
    setup="""
    from e2lib.course import exercises
    from e2lib.course.claims import load

    table = load()
    part = table[table.run == "05"]
    """,
    start="""
    cost = ...
    way = ...
    """,
    solution="""
    part = part[(part.method == "energy") & (part["at"] == "Input") & (part.boxes == "1 %")]
    cost = part["Δ F1"].mean()
    way = part["way"].mean()
    """,
    answer="cost, way",
    why="""
    A mean over seeds comes with its spread, `.std()`; whether that is small enough for a verdict is what notebook 11
    is about.
    """,
    mistakes=(
        (' & (part["at"] == "Input")', "", "Input"),
        ('"1 %"', '"100 %"', "all boxes"),
        ('part["Δ F1"].mean()', 'part["F1"].mean()', "Δ F1"),
        ('part["Δ F1"].mean()', 'part["Δ F1"].iloc[0]', "one seed"),
    ),
)
def cost_of_few_boxes(cost, way):
    table = load()
    run = table[(table.run == "05") & (table.method == "energy")]
    both = run[run.boxes == "1 %"]
    one = both[both["at"] == "Input"]
    every = run[(run.boxes == "100 %") & (run["at"] == "Input")]
    hints = [
        (both, "that is the mean of Input and Final: choose the rows of Input."),
        (every, "that is with all boxes."),
        *((one[one.seed == seed], "that is one seed: take the mean over all of them.") for seed in one.seed),
    ]
    found = {"way": (way, "way"), "cost": (cost, "Δ F1")}  # first the one in which no two mistakes are nearly equal
    for name, (value, column) in found.items():
        wrong = [(part[column].mean(), hint) for part, hint in hints]
        if column == "Δ F1":
            wrong.append((one["F1"].mean(), "that is the F1 itself; its difference to the baseline is in column Δ F1."))
        compare(name, value, one[column].mean(), *wrong, within=0.05)


@exercise(
    "05.5",
    "How many steps see a box?",
    "Write a function, ten minutes",
    text="""
    Write `share_with_boxes(annotated, batch_size, generator)`: `annotated` is bool (N,), one entry an image of an
    epoch. Shuffle the images by `generator` (torch), cut them into batches of `batch_size` (the last one may be
    smaller), and return the share of batches that hold at least one image with boxes, in [0, 1]. Then try it: 20 of
    2,000 images, batches of 16; once, and ten times each.
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    """,
    start="""
    def share_with_boxes(annotated, batch_size, generator):
        ...


    """,
    solution="""
    def share_with_boxes(annotated, batch_size, generator):
        order = torch.randperm(len(annotated), generator=generator)
        batches = annotated[order].split(batch_size)
        return sum(part.any().item() for part in batches) / len(batches)


    """,
    answer="share_with_boxes",
    why="""
    With 20 boxes once an epoch one step of seven explains anything. Ten times each, more than three of four do:
    repeats do not add knowledge, but steps in which it is used.
    """,
    mistakes=(
        ("annotated[order]", "annotated", "shuffle"),
        ("part.any().item()", "part.float().mean().item()", "at least one"),
        (" / len(batches)", "", "share"),
    ),
)
def steps_with_boxes(share_with_boxes):
    few = torch.arange(2000) < 20
    found = [share_with_boxes(few, 16, torch.Generator().manual_seed(seed)) for seed in range(40)]
    if any(value is None for value in found):
        raise Hint("it gives None: does your function return what it has computed?")
    if max(found) > 1:
        raise Hint(f"it gives {max(found):.3g}; a share is in [0, 1].")
    if abs(found[0] - 0.016) < 1e-9:
        raise Hint("all images with boxes are in the first batches: did you shuffle?")
    if abs(found[0] - 0.01) < 1e-3:
        raise Hint("that is the share of images; of batches those with at least one are wanted.")
    compare("the mean share over 40 shuffles", sum(found) / 40, 0.149, within=0.01)
    last = [share_with_boxes(torch.arange(9) == 0, 8, torch.Generator().manual_seed(seed)) for seed in range(10)]
    compare("the share where one of 9 images has boxes, in batches of 8,", sum(last) / 10, 0.5)
    often = torch.cat([few, torch.ones(180, dtype=torch.bool)])
    many = share_with_boxes(often, 16, torch.Generator().manual_seed(0))
    return (
        f"{100 * sum(found) / 40:.0f} % of the steps see a box; with the 20 images ten times each {100 * many:.0f} %."
    )


MORE = """
Predict, then run the notebook with other parameters: `fractions={0.01: 1, 0.1: 1}`, each box once an epoch;
`dilations=[0.1, 0.25, 0.5]`; `lambdas={"energy": [2.0]}`, for all fractions.
"""
