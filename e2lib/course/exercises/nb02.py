"""Checks of the exercises of notebook 02."""

import torch

from e2lib import metrics
from e2lib.course.exercises import Hint, compare, random_maps


def check_2(epg):
    maps, masks = random_maps()
    maps = maps + 2  # so that signed sums are positive
    right = metrics.epg(maps, masks)[:, 0]
    signed, size = ((m * masks).sum((1, 2, 3)) / m.sum((1, 2, 3)) for m in (maps, maps.abs()))
    hint = "only positive attribution counts; what do negative pixels do in your sums?"
    compare("epg of random maps", epg(maps, masks), right, (signed, hint), (size, hint))
    dark = torch.stack([maps[0] * 0, -maps[0].abs()])
    compare("epg of a zero map and of a negative one", epg(dark, masks[:2]), [0, 0])
    compare("epg of tiny maps", epg(maps * 1e-6, masks), right)


def check_3(gradcam):
    a, g = torch.randn(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(3))
    weighted = g.mean((2, 3), keepdim=True) * a
    one = "each channel has one weight: over which dimensions do you average the gradient?"

    def positive_sum(parts):
        return torch.relu(parts.sum(1, keepdim=True))

    mistakes = [
        (weighted.sum(1, keepdim=True), "only the positive part of the sum is kept."),
        (positive_sum(a * g), one),
        (positive_sum(g.mean((1, 2, 3), keepdim=True) * a), one),
        (positive_sum(torch.relu(weighted)), "mind the order: take the positive part of the sum, not of each channel."),
        (positive_sum(weighted) / 5, "the channels are added up, not averaged."),
    ]
    compare("the map", gradcam(a, g), positive_sum(weighted), *mistakes)


def check_4(integrated):
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(6, 8, generator=generator) * 2, torch.randn(8, 8, generator=generator)

    def score(inputs):
        return torch.tanh(inputs @ w / 2).square().sum(1) + inputs[:, 0] ** 3

    def mean_gradient(shares):
        points = [(x * share).requires_grad_() for share in shares]
        return sum(torch.autograd.grad(score(point).sum(), point)[0] for point in points) / len(points)

    def gap(contributions):
        return (contributions.sum(1) - score(x) + score(0 * x)).abs().max().item()

    shares = (torch.arange(200) + 0.5) / 200
    middle, end, beyond = mean_gradient(shares), mean_gradient([1.0]), mean_gradient(1 + shares)
    found = integrated(score, x, 200)
    mistakes = [
        (x * end, "that is the gradient at x alone, IxG: the points have to move from 0 to x."),
        (middle, "that is the mean gradient: multiply it by x."),
        (x * middle * 200, "that is too large, by a factor of the number of steps."),
        (x * beyond, "the straight way from 0 to x ends at x; yours goes on."),
    ]
    within = 0.02 * (x * middle).abs().max().item()  # other points of the same intervals are right as well
    compare("the map", found, x * middle, *mistakes, within=within)
    return (
        f"the contributions miss score(x) − score(0) by {gap(found):.1e} at most; IxG misses it by {gap(x * end):.1f}."
    )


def check_6(notices):
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        x, w, v = torch.randn(3, 200, generator=generator)
        first = notices(lambda weights, x: (x - x.roll(1)).abs(), w, v, x)
        if not isinstance(first, bool):
            raise Hint(f"notices returns {first!r}; it should be True or False.")
        if first:
            raise Hint("you say that an edge detector, which does not ask the network at all, notices the other one.")
        if not notices(lambda weights, x: weights * x, w, v, x):
            raise Hint("you say that x · w does not notice when random weights replace w.")
        # Nearly the same order on another scale: almost 1 by ranks, low otherwise.
        if notices(lambda weights, x: weights, x, (8 * (x + 0.2 * w)).exp(), x):
            almost = "two maps whose pixels are in nearly the same order have a rank correlation of almost 1."
            raise Hint(f"{almost} A rank is a pixel's place in the order.")
