"""Exercises of notebook 02."""

import torch
import torch.nn.functional as F

from e2lib import metrics
from e2lib.course.exercises import Hint, choose, compare, exercise, random_maps


@exercise(
    "02.1",
    "EPG by hand",
    "Compute by hand, three minutes",
    text="""
    A map of 2 × 3 pixels is [[2, -1, 4], [3, 1, -5]]. The box holds the first column. What is the EPG, in per cent?
    """,
    setup="from e2lib.course import exercises",
    start="epg = ...",
    solution="epg = 100 * (2 + 3) / (2 + 4 + 3 + 1)",
    answer="epg",
    why="""
    EPG looks at positive attribution alone, inside and in all.
    """,
    mistakes=(
        ("(2 + 4 + 3 + 1)", "(2 - 1 + 4 + 3 + 1 - 5)", "negative"),
        ("(2 + 4 + 3 + 1)", "(2 + 1 + 4 + 3 + 1 + 5)", "negative"),
        ("(2 + 4 + 3 + 1)", "(4 + 1)", "of all"),
        ("100 * ", "", "per cent"),
    ),
)
def epg_by_hand(epg):
    negative = "only positive attribution counts; what is negative is taken as 0."
    compare(
        "epg",
        epg,
        50.0,
        (125.0, negative),
        (31.25, negative),
        (100.0, "divide by the positive attribution of all pixels, not by that outside the box."),
        (0.5, "EPG is wanted in per cent."),
        (100 / 3, "that is the share of the pixels; EPG is a share of attribution."),
        within=0.01,
    )


@exercise(
    "02.2",
    "EPG as a function",
    "Write a function, five minutes",
    text="""
    Write `epg(maps, masks)`: maps (B, 1, H, W) signed float, masks (B, 1, H, W) bool, to (B,), in [0, 1]. A map
    without positive attribution has an EPG of 0.
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    """,
    start="""
    def epg(maps, masks):
        ...


    """,
    solution="""
    def epg(maps, masks):
        positive = maps.clamp(min=0)
        total = positive.sum((1, 2, 3))
        return (positive * masks).sum((1, 2, 3)) / torch.where(total > 0, total, 1)


    """,
    answer="epg",
    why="""
    Where the total is 0 it is replaced *before* the division: 0 / 0 would be NaN, and one NaN spoils the mean over
    all images and, in training, every weight of the network.
    """,
    mistakes=(
        ("maps.clamp(min=0)", "maps", "only positive attribution"),
        ("maps.clamp(min=0)", "maps.abs()", "only positive attribution"),
        ("torch.where(total > 0, total, 1)", "total", "NaN"),
        (".sum((1, 2, 3))", ".sum()", "shape"),
    ),
)
def epg_function(epg):
    maps, masks = random_maps()
    maps = maps + 2  # so that signed sums are positive
    right = metrics.epg(maps, masks)[:, 0]
    signed = (maps * masks).sum((1, 2, 3)) / maps.sum((1, 2, 3))
    size = (maps.abs() * masks).sum((1, 2, 3)) / maps.abs().sum((1, 2, 3))
    hint = "only positive attribution counts; what do negative pixels do in your sums?"
    compare("epg of maps at random", epg(maps, masks), right, (signed, hint), (size, hint))
    dark = torch.stack([maps[0] * 0, -maps[0].abs()])
    compare("epg of a zero map, and of a negative one,", epg(dark, masks[:2]), [0, 0])
    compare("epg of tiny maps", epg(maps * 1e-6, masks), right)


@exercise(
    "02.3",
    "Grad-CAM in three lines",
    "Write a function, five minutes",
    text="""
    Write `gradcam(a, g)`: the activations of the last layer (B, C, h, w), and the gradient of the explained logit
    with respect to them (B, C, h, w), to maps (B, 1, h, w). (The notebook's table of methods says how, in words.)
    """,
    setup="from e2lib.course import exercises",
    start="""
    def gradcam(a, g):
        ...


    """,
    solution="""
    def gradcam(a, g):
        weights = g.mean((2, 3), keepdim=True)
        return (weights * a).sum(1, keepdim=True).clamp(min=0)


    """,
    answer="gradcam",
    why="""
    One weight a channel, the mean of its gradient over the picture; the weighted sum of the channels; the positive
    part. With the gradient pixel by pixel instead of its mean, and without the last step, this is IxG at that
    layer.
    """,
    mistakes=(
        (".mean((2, 3), keepdim=True)", "", "one weight a channel"),
        (".clamp(min=0)", "", "positive part"),
        (".mean((2, 3), keepdim=True)", ".mean((1, 2, 3), keepdim=True)", "one weight a channel"),
        (".sum(1, keepdim=True)", ".sum(1)", "shape"),
        ("weights * a", "weights * a.clamp(min=0)", "off by"),
        ("(weights * a).sum(1, keepdim=True).clamp(min=0)", "(weights * a).clamp(min=0).sum(1, keepdim=True)", "order"),
    ),
)
def gradcam_function(gradcam):
    generator = torch.Generator().manual_seed(3)
    a, g = (torch.randn(3, 5, 4, 6, generator=generator) for _ in range(2))
    weights = g.mean((2, 3), keepdim=True)
    right = F.relu((weights * a).sum(1, keepdim=True))
    one = "there is one weight a channel: over which dimensions do you average the gradient?"
    compare(
        "the map",
        gradcam(a, g),
        right,
        ((weights * a).sum(1, keepdim=True), "of the sum only the positive part is kept."),
        (F.relu((a * g).sum(1, keepdim=True)), one),
        (F.relu((g.mean((1, 2, 3), keepdim=True) * a).sum(1, keepdim=True)), one),
        (
            F.relu(weights * a).sum(1, keepdim=True),
            "mind the order: the positive part is that of the sum, not of each channel.",
        ),
        (F.relu((weights * a).mean(1, keepdim=True)), "the channels are added up, not averaged."),
    )


@exercise(
    "02.4",
    "Integrated Gradients",
    "Write a function, ten minutes",
    text="""
    Write `integrated(score, x, steps)`: `score` maps inputs (B, N) to (B,). Average the gradient of the score at
    `steps` points on the straight way from 0 to x, and multiply by x: (B, N). The contributions of an input should
    add up to score(x) − score(0), nearly.
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    """,
    start="""
    def integrated(score, x, steps):
        total = torch.zeros_like(x)
        for i in range(steps):
            point = x.clone().requires_grad_()
            total += torch.autograd.grad(score(point).sum(), point)[0]
        ...


    """,
    solution="""
    def integrated(score, x, steps):
        total = torch.zeros_like(x)
        for i in range(steps):
            point = (x * (i + 0.5) / steps).requires_grad_()
            total += torch.autograd.grad(score(point).sum(), point)[0]
        return x * total / steps


    """,
    answer="integrated",
    why="""
    The mean gradient along the way, times the way, is the difference of the ends: an integral as a sum, of middle
    points here. IxG is the same with one point, x itself, and does not add up.
    """,
    mistakes=(
        ("(x * (i + 0.5) / steps)", "x.clone()", "gradient at x alone"),
        ("x * total / steps", "total / steps", "multiply"),
        ("x * total / steps", "x * total", "times too large"),
        ("(x * (i + 0.5) / steps)", "(x * (1 + (i + 0.5) / steps))", "straight way from 0"),
    ),
)
def integrated_gradients(integrated):
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(6, 8, generator=generator) * 2, torch.randn(8, 8, generator=generator)

    def score(inputs):
        return torch.tanh(inputs @ w / 2).square().sum(1) + inputs[:, 0] ** 3

    def along(points):
        total = 0
        for share in points:
            point = (x * share).requires_grad_()
            total = total + torch.autograd.grad(score(point).sum(), point)[0]
        return total / len(points)

    middle = along([(i + 0.5) / 200 for i in range(200)])
    found = integrated(score, x, 200)
    scale = (x * middle).abs().max().item()
    compare(
        "the map",
        found,
        x * middle,
        (x * along([1.0]), "that is the gradient at x alone, IxG: the points have to move from 0 to x."),
        (middle, "that is the mean gradient: multiply it by x."),
        (x * middle * 200, "that is as many times too large as there are steps."),
        (
            x * along([1 + (i + 0.5) / 200 for i in range(200)]),
            "the straight way from 0 to x ends at x; yours does not.",
        ),
        within=0.02 * scale,  # other points of the same intervals are right as well
    )
    gap = (integrated(score, x, 200).sum(1) - score(x) + score(0 * x)).abs().max().item()
    return f"the contributions miss score(x) − score(0) by {gap:.1e} at most; IxG misses it by " + (
        f"{((x * along([1.0])).sum(1) - score(x) + score(0 * x)).abs().max().item():.1f}."
    )


@exercise(
    "02.5",
    "A difference of two logits",
    "Predict, five minutes",
    text="""
    `explain` explains any weighted sum of logits: for class 0 rather than class 1, `targets` is [[1, -1, 0, …]]. Is
    that map the map of class 0 minus the map of class 1?

    - **a** yes, for IxG and for Grad-CAM
    - **b** for IxG, but not for Grad-CAM
    - **c** for neither
    """,
    setup="""
    import torch

    from e2lib import models
    from e2lib.attribution import explain
    from e2lib.course import exercises

    torch.manual_seed(0)
    net = models.build("test_resnet", 3, None).eval()
    images = torch.rand(2, 3, 64, 64)
    """,
    start="""
    prediction = ...
    for method in ("ixg", "gradcam"):
        first, second = (explain(net, images, torch.full((2,), c), method, "Final").maps for c in (0, 1))
        both = explain(net, images, torch.tensor([[1.0, -1.0, 0.0]]).expand(2, 3), method, "Final").maps
        print(method, (both - (first - second)).abs().max().item())
    """,
    solution="""
    prediction = "b"
    for method in ("ixg", "gradcam"):
        first, second = (explain(net, images, torch.full((2,), c), method, "Final").maps for c in (0, 1))
        both = explain(net, images, torch.tensor([[1.0, -1.0, 0.0]]).expand(2, 3), method, "Final").maps
        print(method, (both - (first - second)).abs().max().item())
    """,
    answer="prediction",
    why="""
    The gradient of a difference is the difference of the gradients, and IxG is linear in the gradient. Grad-CAM
    takes the positive part at the end, which is not linear: the positive part of a difference is never negative, a
    difference of positive parts can be. Notebook 06 guides such differences.
    """,
    mistakes=(('"b"', '"a"', "linear"), ('"b"', '"c"', "gradient of a difference")),
)
def difference_of_logits(prediction):
    choose(
        prediction,
        "b",
        a="one of the two takes a step that is not linear in the gradient; look at the numbers.",
        c="what is the gradient of a difference of logits? Look at the numbers.",
    )


@exercise(
    "02.6",
    "A sanity check of one's own",
    "Write a function, ten minutes",
    text="""
    Write `notices(method, score, other, x)`: does a map depend on the network? `method(score, x)` gives a map of
    the input x, a tensor (N,), and `score` and `other` are two networks, one with random weights. Return True if
    the rank correlation of the two maps is below 0.5. Spearman's rank correlation is Pearson's of the ranks; there
    are no ties.
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    """,
    start="""
    def notices(method, score, other, x):
        ranks = ...
        ...


    """,
    solution="""
    def notices(method, score, other, x):
        maps = torch.stack([method(score, x), method(other, x)])
        ranks = maps.argsort(1).argsort(1).float()
        return bool(torch.corrcoef(ranks)[0, 1] < 0.5)


    """,
    answer="notices",
    why="""
    Sorting twice gives ranks: first the positions in order, then each position's place in it. An edge detector
    passes every look by eye and fails this check, as it never asks the network.
    """,
    mistakes=(
        ("maps.argsort(1).argsort(1).float()", "maps", "almost 1"),
        ("maps.argsort(1).argsort(1).float()", "maps.argsort(1).float()", "place in the order"),
        ("< 0.5", "> 0.5", "does not ask the network"),
    ),
)
def sanity(notices):
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        x, w, v = torch.randn(3, 200, generator=generator)

        def product(weights, x):
            return weights * x

        def edges(weights, x):
            return (x - x.roll(1)).abs()

        first = notices(edges, w, v, x)
        if not isinstance(first, bool):
            raise Hint(f"notices gives {first!r}; True or False is wanted.")
        if first:
            raise Hint(
                "a method that does not ask the network at all, an edge detector, is said to notice the other one."
            )
        if not notices(product, w, v, x):
            raise Hint("x · w is said not to notice that w is replaced by random weights.")
        # Nearly the same order, on another scale: almost 1 by ranks, low otherwise.
        if notices(lambda weights, x: weights, x, (8 * (x + 0.2 * w)).exp(), x):
            raise Hint(
                "two maps whose pixels are in nearly the same order, on different scales, have a rank correlation of "
                "almost 1. A rank is a pixel's place in the order."
            )


MORE = """
Explain a class that is *not* in the picture. Grad-CAM++ looks plausible and fails at the first step of the sanity
check: what do deletion and insertion say of it?
"""
