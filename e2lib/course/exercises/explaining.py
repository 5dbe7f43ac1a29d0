"""Checks of the exercises on data, methods and B-cos networks: 01, 02, 03 and 12."""

import torch

from e2lib import attribution, boxes, datasets, metrics, models
from e2lib.course.exercises import Hint, compare, random_maps, refuse


def check_01_2(dilate):
    size, name = (100, 200), "a dilated box in the middle"
    middle = torch.tensor([[40.0, 50, 60, 54], [30, 40, 50, 60]])
    half = "that is half of it: each side moves by the fraction, so at 0.5 the box becomes twice as wide."
    right, narrow = (boxes.dilate(middle, fraction, size) for fraction in (0.5, 0.25))
    compare(name, dilate(middle, 0.5, size), right, (narrow, half))
    corner = torch.tensor([[150.0, 2, 198, 98]])
    found = dilate(corner, 0.25, size)
    if (found < 0).any() or found[0, 2] > 200 or found[0, 3] > 100:
        if torch.allclose(found, boxes.dilate(corner, 0.25, size[::-1])):
            raise Hint("size is (height, width), and x goes with the width.")
        raise Hint(f"the box {corner[0].tolist()} becomes {found[0].tolist()}, which reaches outside the image.")
    compare("a dilated box at the corner", found, boxes.dilate(corner, 0.25, size))
    some = torch.rand(20, 2) * 50
    some = torch.cat([some, some + 1 + torch.rand(20, 2) * 40], 1)
    compare("a random dilated box", dilate(some, 0.1, (90, 70)), boxes.dilate(some, 0.1, (90, 70)))


def check_01_4(missing):
    birds = datasets.load("birds", None, "train", 64, 40, seed=3, correlation=1.0)
    for chosen in ([*range(40)], (birds.group_of == 0).nonzero()[0], [5], birds.group_of.argsort()):
        part = datasets.Selection(birds, chosen)
        there = [name for g, name in enumerate(part.groups) if g in part.group_of]
        found = missing(part)
        if found is None or not all(isinstance(name, str) for name in found):
            raise Hint(f"missing returns {found}; it should be a list of names.")
        refuse(sorted(found) == sorted(there), "these are the groups that are there.")
        if sorted(found) != sorted({*part.groups} - {*there}):
            raise Hint(f"for {', '.join(there)} missing returns {found}. Does it look at all the images?")


def check_01_5(few_shot):
    labels = torch.arange(120) % 4 + 3
    labels = labels[torch.randperm(120, generator=torch.Generator().manual_seed(1))]
    found = few_shot(labels, 5, 0)
    if not isinstance(found, torch.Tensor) or found.shape != (20,) or found.dtype != torch.int64:
        shape = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise Hint(f"for 4 classes and 5 shots few_shot returns {shape}; it should be 20 int64 positions.")
    counts = [(labels[found] == c).sum().item() for c in labels.unique()]
    if set(counts) != {5}:
        raise Hint(f"with 5 shots the classes come {counts} times. In which order are the positions that you select?")
    refuse(len(found.unique()) < 20, "one image comes twice.")
    again, other, more = (set(few_shot(labels, *how).tolist()) for how in ((5, 0), (5, 1), (10, 0)))
    found = set(found.tolist())
    refuse(found != again, "the same seed gives other images the second time.")
    refuse(found == other, "every seed gives the same images.")
    refuse(not found <= more, "5 shots are not part of 10: the choices are not nested. Does the order depend on shots?")


def check_02_2(epg):
    maps, masks = random_maps()
    maps = maps + 2  # so that signed sums are positive
    right = metrics.epg(maps, masks)[:, 0]
    signed, size = ((m * masks).sum((1, 2, 3)) / m.sum((1, 2, 3)) for m in (maps, maps.abs()))
    hint = "only positive attribution counts; what do negative pixels do in your sums?"
    compare("epg of random maps", epg(maps, masks), right, (signed, hint), (size, hint))
    dark = torch.stack([maps[0] * 0, -maps[0].abs()])
    compare("epg of a zero map and of a negative one", epg(dark, masks[:2]), [0, 0])
    compare("epg of tiny maps", epg(maps * 1e-6, masks), right)


def check_02_3(gradcam):
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


def check_02_4(integrated):
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
        f"the contributions miss score(x) − score(0) by {gap(found):.1e} at most, those of IxG by {gap(x * end):.1f}."
    )


def check_02_6(notices):
    generator = torch.Generator().manual_seed(2)
    for _ in range(10):
        x, w, v = torch.randn(3, 200, generator=generator)
        first = notices(lambda weights, x: (x - x.roll(1)).abs(), w, v, x)
        refuse(not isinstance(first, bool), f"notices returns {first!r}; it should be True or False.")
        refuse(first, "you say that an edge detector, which does not ask the network at all, notices the other one.")
        if not notices(lambda weights, x: weights * x, w, v, x):
            raise Hint("you say that x · w does not notice when random weights replace w.")
        # Nearly the same order on another scale: almost 1 by ranks, low otherwise.
        if notices(lambda weights, x: weights, x, (8 * (x + 0.2 * w)).exp(), x):
            almost = "two maps whose pixels are in nearly the same order have a rank correlation of almost 1."
            raise Hint(f"{almost} A rank is a pixel's place in the order.")


def check_03_2(dynamic):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 5), (5,)))
    unit, point = w / w.norm(), x.clone().requires_grad_()
    cosine = (x @ unit / x.norm(dim=1))[:, None]
    right = cosine.abs() * unit
    (gradient,) = torch.autograd.grad(((point @ unit).abs() * (point @ unit) / point.norm(dim=1)).sum(), point)
    found = dynamic(x, w)
    if isinstance(found, torch.Tensor) and found.shape == x.shape and not torch.allclose(found, right):
        gap = ((found - right) * x).sum(1).abs().max()
        for wrong, hint in (
            (gradient, "that is the gradient: it adds up, but also follows how |cos| changes. W(x) holds |cos| fixed."),
            (cosine * unit, "the sign is wrong where the cosine is negative: the unit has |cos|."),
            (cosine.abs() * w, "the unit has ŵ, which is w divided by its length."),
            (unit.expand_as(x), "that is ŵ alone, which does not add up to the output: |cos| is missing."),
            (right * x, "that is W(x) times x, what each input contributes; give the weights themselves."),
            (found if gap > 1e-6 else x, f"W(x) · x does not add up to the output: it is off by up to {gap:.2g}."),
        ):
            refuse(torch.allclose(found, wrong), hint)
    compare("W(x)", found, right)


def check_03_4(inside_outside):
    maps, masks = random_maps()
    found = inside_outside(maps, masks)
    refuse(not isinstance(found, tuple | list) or len(found) != 2, "return two tensors, inside and outside.")
    inside, outside = ((maps * m).sum((1, 2, 3)) for m in (masks, ~masks))
    for_it = [(maps.clamp(min=0) * m).sum((1, 2, 3)) for m in (masks, ~masks)]
    against = "evidence against the class belongs to the logit, too."
    mean, swapped = "that is a mean; contributions add up.", "inside and outside are exchanged."
    compare("inside", found[0], inside, (for_it[0], against), (inside / maps[0].numel(), mean), (outside, swapped))
    one = "inside and outside add up to the sum of the map, which is not 1."
    compare("outside", found[1], outside, (1 - inside, one), (for_it[1], against))


def check_12_1(share):
    network = models.build("bcos_scenes", 10, "scenes").eval()
    for seed, box in ((0, [10, 16, 40, 60]), (1, [0, 0, 32, 32])):
        sample = datasets.Scenes("test", 4, 64, seed=seed)[1]
        image, c = sample.image.float() / 255, int(sample.box_labels[0])
        mask = boxes.box_mask(torch.tensor([box]), (64, 64))[None, None]
        maps = (
            attribution.explain(network, image[None], torch.tensor([target]), method, "Input").maps
            for method, target in (("bcos", c), ("ixg", c), ("bcos", 0))
        )
        right, other, first = (100 * metrics.epg(m, mask).item() for m in maps)
        mistakes = [
            (100 - right, "that is the share outside the box."),
            (other, "that is another method: contributions are `bcos`."),
            (first, "that is the map of another class: explain c."),
        ]
        compare("share", share(network, image, c, box), right, *mistakes, within=0.05, per_cent=True)


def check_12_3(at_input, at_final):
    from e2lib.course import widgets  # here, because it is slow to import

    network = models.build("bcos_scenes", 10, "scenes").eval()
    scene, found = datasets.Scenes("test", 4, 64, seed=0)[1], {}
    for at in ("Input", "Final"):
        after = widgets.guided(network, scene, "energy", at, steps=1)
        pairs = list(zip(network.parameters(), after.parameters(), strict=True))
        found[at] = 100 * sum((a != b).sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    for name, value, at, other in (("at_input", at_input, "Input", "Final"), ("at_final", at_final, "Final", "Input")):
        swapped, stay = (found[other], "the two are exchanged."), (100 - found[at], "that many stay as they were.")
        compare(name, value, found[at], swapped, stay, within=1e-3, per_cent=True)
