"""Checks of the exercises on guidance and on what holds up: 04, 05, 06 and 11."""

import numbers

import pandas as pd
import torch

from e2lib import metrics
from e2lib.course import claims
from e2lib.course.exercises import Hint, choose, compare, random_maps, refuse


def check_04_2(fifth):
    maps, masks = random_maps()
    compare("the loss of perfect maps", fifth(1.0 * masks, masks), torch.zeros(4))
    inside, outside = (fifth(maps.abs() * m, masks) for m in (masks, ~masks))
    refuse(not (outside > inside).all(), "a map outside the box should have a larger loss than a map inside it.")
    found = fifth(maps, masks)
    alone = torch.cat([fifth(*pair) for pair in zip(maps.split(1), masks.split(1), strict=True)])
    refuse(not torch.allclose(alone, found, atol=1e-5), "the loss of a map depends on the other maps of its batch.")
    if not torch.allclose(fifth(100 * maps, masks), found, atol=1e-4):
        raise Hint("the loss depends on the scale of a map: 100 times the map gives another value.")
    empty = torch.zeros_like(masks)
    cases = {"zero map": (0 * maps, masks), "map with an empty mask": (maps, empty), "full mask": (maps, ~empty)}
    for name, (m, where) in (cases | {"": (maps, masks)}).items():
        point = m.clone().requires_grad_()
        loss = fifth(point, where)
        (gradient,) = torch.autograd.grad(loss.sum(), point) if loss.requires_grad else (torch.zeros(()),)
        if name and not (loss.shape == (4,) and loss.isfinite().all() and gradient.isfinite().all()):
            raise Hint(f"the loss or the gradient of a {name} is not finite.")
    refuse(not gradient.any(), "there is no gradient where the map is wrong: nothing would be learned.")
    return "all five properties hold for your loss."


def check_04_3(pick):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        scores = (torch.rand(6, 2, generator=generator, dtype=torch.float64) * 20 + 60).round(decimals=1).tolist()
        points = [{"F1": f1, "EPG": epg} for f1, epg in scores]
        kept = [i for i in range(6) if scores[i][0] >= 69.95]
        found = pick(points, 69.95)
        if not isinstance(found, numbers.Integral):
            raise Hint(f"choose returns {found!r}; it should be the position of a point in the list, an int.")
        if kept and found not in kept and 0 <= found < 6:
            raise Hint(f"its choice has an F1 of {scores[found][0]}, below the floor of 69.95, though others keep it.")
        if kept and found != max(kept, key=lambda i: scores[i][1]):
            raise Hint(f"among points that keep the floor, choose the one with the highest EPG; {found} is not it.")
    short = pick([{"F1": 50.0, "EPG": 90.0}, {"F1": 69.0, "EPG": 40.0}], 70)
    refuse(short != 1, f"choose returns {short} where none keeps the floor; it should be the one that misses by least.")
    if pick([{"F1": 70.0, "EPG": 90.0}, {"F1": 80.0, "EPG": 40.0}], 70) != 0:
        raise Hint("an F1 that equals the floor keeps it: at least.")


def check_04_4(prediction, weights):
    refuse(not {0, 1} <= weights.keys(), "weights should hold λ = 0 and λ = 1; other λ may stand beside them.")
    found = {λ: accuracies(w) for λ, w in weights.items()}
    first, second = found[0], found[1]
    if second["like training"] < first["like training"] - 5 or second["no context"] >= first["no context"]:
        raise Hint(f"your run gives {first} without guidance and {second} with it. Was a line changed?")
    measured = "; ".join(f"λ = {λ:g}: {scores}" for λ, scores in found.items()) + "."
    left = "how well does the background alone tell the class in training?"
    blind = "the loss knows the box, and nothing of objects."
    choose(prediction, "b", {"a": f"{left} Your run: {measured}", "c": f"{blind} Your run: {measured}"})
    return measured


MASK = torch.zeros(1, 1, 4, 4, dtype=torch.bool)  # where the object of a toy image is
MASK[..., 1:3, 1:3] = True


def toy_images(background: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """500 toy images (500, 1, 4, 4) of two classes, and the signs of their classes (500, 1, 1, 1), 1 or -1.

    The object adds 0.3 times the sign to noise in the middle, the background `background` times the sign around it.
    """
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (500, 1, 1, 1), generator=generator) * 2.0 - 1
    return torch.randn(500, 1, 4, 4, generator=generator) + signs * (0.3 * MASK + background * ~MASK), signs


def accuracies(weights: torch.Tensor) -> dict[str, float]:
    """The accuracies, in per cent, of linear weights (1, 1, 4, 4) on new toy images, with and without background."""
    found = {}
    for name, background in (("like training", 0.5), ("no context", 0.0)):
        images, signs = toy_images(background, seed=1)
        found[name] = round(100 * ((signs * weights * images).sum((1, 2, 3)) > 0).float().mean().item(), 1)
    return found


def check_05_2(on_object):
    maps, masks = random_maps()
    segments = random_maps(seed=1)[1] | (random_maps(seed=2)[0] > 1)
    positive = maps.clamp(min=0)

    def share(part, whole):
        return (positive * part).sum((1, 2, 3)) / (positive * whole).sum((1, 2, 3)).clamp(min=1e-12)

    mistakes = [
        (share(masks & segments, 1), "divide by the positive attribution in the boxes, not by all of it."),
        (share(segments, 1), "attribution outside the boxes counts neither above nor below the line."),
        (share(segments, masks), "what a segment covers outside the boxes does not count."),
        (metrics.on_object_epg(maps.abs(), masks, segments)[:, 0], "only positive attribution counts."),
    ]
    right = metrics.on_object_epg(maps, masks, segments)[:, 0]
    compare("on-object EPG", on_object(maps, masks, segments), right, *mistakes)
    compare("on-object EPG of negative maps", on_object(-positive, masks, segments), torch.zeros(4))


def check_05_4(cost, way):
    table = claims.load()
    run = table[(table.run == "05b") & (table.method == "energy")]
    few, at_input = run.boxes == "1 %", run["at"] == "Input"
    one = run[few & at_input]
    wrong = [
        (run[few], "that is the mean of Input and Final: choose the rows of Input."),
        (run[(run.boxes == "100 %") & at_input], "that is with all boxes."),
        *((one[one.seed == seed], "that is one seed: take the mean over all of them.") for seed in one.seed),
    ]
    # First the number for which no two mistakes are nearly equal.
    compare("way", way, one["way"].mean(), *((part["way"].mean(), hint) for part, hint in wrong), within=0.05)
    itself = (one["F1"].mean(), "that is F1 itself; column Δ F1 holds its difference to the baseline.")
    mistakes = [*((part["Δ F1"].mean(), hint) for part, hint in wrong), itself]
    compare("cost", cost, one["Δ F1"].mean(), *mistakes, within=0.05)


def check_05_5(share_with_boxes):
    def share(annotated, batch_size, seed=0):
        return share_with_boxes(annotated, batch_size, torch.Generator().manual_seed(seed))

    few = torch.arange(2000) < 20
    found = [share(few, 16, seed) for seed in range(40)]
    compare("the share", found[0], 0.5, within=float("inf"))
    refuse(max(found) > 1, f"the function returns {max(found):.3g}; a share is in [0, 1].")
    refuse(abs(found[0] - 0.016) < 1e-9, "all images with boxes are in the first batches: did you shuffle?")
    refuse(abs(found[0] - 0.01) < 1e-3, "that is the share of images; count the batches that hold at least one.")
    mean = sum(found) / 40
    compare("the mean share over 40 shuffles", mean, 0.149, within=0.01)
    last = sum(share(torch.arange(9) == 0, 8, seed) for seed in range(10)) / 10
    compare("the share where one of 9 images has boxes, in batches of 8,", last, 0.5)
    often = share(torch.cat([few, torch.ones(180, dtype=torch.bool)]), 16)
    return f"{100 * mean:.0f} % of the steps see a box; with the 20 images ten times each {100 * often:.0f} %."


def check_06_1(worst):
    right, total = torch.tensor([396.0, 20, 0, 120]), torch.tensor([400.0, 50, 0, 150])
    mistakes = [
        (100 * 536 / 600, "that is the accuracy over all images: the large groups hide the small one."),
        (100 * (0.99 + 0.4 + 0.8) / 3, "that is the mean of the groups."),
        (0.0, "your function takes a group without images for one that is always wrong."),
    ]
    compare("the accuracy of the worst group", worst(right, total), 40.0, *mistakes, per_cent=True)
    compare("the accuracy in another case", worst(torch.tensor([30.0, 9]), torch.tensor([40.0, 10])), 75.0)


def check_06_3(choose_epoch):
    history = [{"worst group": w, "adjusted mean": a} for w, a in ((40, 91), (62, 95), (55, 99), (62, 99), (30, 97))]
    for measure, right, first in (("worst group", 4, 2), ("adjusted mean", 4, 3), (None, 5, 5)):
        found = choose_epoch(history, measure)
        if found == right:
            continue
        refuse(found is None, "choose_epoch returns None. Does it return something in each case?")
        refuse(found == right - 1 and found != first, "epochs begin at 1.")
        refuse(found == first, f"two epochs are equal by {measure}: choose the last one.")
        refuse(measure is None, "choose the last epoch for measure=None.")
        raise Hint(f"epoch {found} has {history[found - 1][measure]} by {measure}, which is not the highest.")
    if choose_epoch([{"worst group": -1.0}, {"worst group": -2.0}], "worst group") != 1:
        raise Hint("a later epoch is worse, but it is chosen.")


def check_06_5(against_others):
    classes = torch.tensor([2, 0, 4, 1])
    chosen = torch.nn.functional.one_hot(classes, 5).float()
    mistakes = [
        (chosen - (1 - chosen) / 5, "how many other classes are there? One less than count: count − 1."),
        (chosen - (1 - chosen), "take the mean of the other logits, not their sum."),
        (chosen - 1 / 5, "the mean is over the other classes, without the class itself."),
    ]
    compare("the weights", against_others(classes, 5), chosen - (1 - chosen) / 4, *mistakes)


def check_11_1(interval):
    for seed in range(3):
        values = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double() * 2 + 5
        found = interval(values)
        refuse(not isinstance(found, tuple | list) or len(found) != 2, "return two numbers, (low, high).")
        mean, s, of_all = values.mean(), values.std(), values.std(correction=0)
        low, high = claims.interval(pd.Series(values.tolist()))
        mistakes = [
            (mean - 1.96 * s / 3**0.5, "1.96 is for very many seeds; there are three."),
            (mean - 4.303 * of_all / 3**0.5, "the standard deviation of a sample divides by n − 1."),
            (mean - 4.303 * s, "divide the standard deviation by √n."),
            (high, "that is the upper end: low comes first."),
        ]
        compare("low", found[0], low, *mistakes, within=1e-3)
        compare("high", found[1], high, within=1e-3)


def check_11_2(verdict):
    cases = ((1, 3, 0), (-3, -1, 0), (-1, 3, 0), (-0.5, 2, -1), (1, 3, 2), (0.5, 0.9, 1), (-2, 1, 0))
    for low, high, above in cases:
        found, right = verdict(low, high, above), claims.verdict(low, high, above)
        where = f"verdict returns {found!r} for the interval {low} to {high} and the bound {above}"
        refuse(found not in (claims.HOLDS, claims.NOT, claims.OPEN), f"{where}, which is none of the three texts.")
        if found == right:
            continue
        refuse(above, f"{where}. What is the bound there?")
        if right == claims.OPEN and found == claims.HOLDS:
            raise Hint(f"{where}, but the whole interval has to be above the bound, not its mean or one end.")
        refuse(right == claims.OPEN, f"{where}, but part of the interval is above the bound: that is undecided.")
        raise Hint(f"{where}. Look at the rule again.")


def check_11_4(now, higher):
    found, table = claims.read(), claims.load()

    def count(change, once=True):
        rows = claims.judge([c.model_copy(update={"above": change(c.above)}) for c in found], table)
        return ((rows.drop_duplicates("claim") if once else rows).verdict == claims.HOLDS).sum().item()

    rows = "count claims, not rows: a claim that is tested on two data sets has two."
    compare("now", now, count(lambda b: b), (count(lambda b: b, once=False), rows))
    mistakes = [
        (count(lambda b: b + 3, once=False), rows),
        (count(lambda b: 3.0), "some claims have another bound than 0: raise each from its own bound."),
        *((count(lambda b, d=d: b + d), "unchanged or lower bounds give this number: raise them.") for d in (0, -3)),
    ]
    compare("higher", higher, count(lambda b: b + 3), *mistakes)
