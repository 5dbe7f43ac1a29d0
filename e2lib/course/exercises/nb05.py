"""Checks of the exercises of notebook 05."""

import torch

from e2lib import metrics
from e2lib.course.claims import load
from e2lib.course.exercises import Hint, compare, random_maps


def check_2(on_object):
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


def check_4(cost, way):
    table = load()
    run = table[(table.run == "05") & (table.method == "energy")]
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


def check_5(share_with_boxes):
    def share(annotated, batch_size, seed=0):
        return share_with_boxes(annotated, batch_size, torch.Generator().manual_seed(seed))

    few = torch.arange(2000) < 20
    found = [share(few, 16, seed) for seed in range(40)]
    compare("the share", found[0], 0.5, within=float("inf"))
    if max(found) > 1:
        raise Hint(f"the function returns {max(found):.3g}; a share is in [0, 1].")
    if abs(found[0] - 0.016) < 1e-9:
        raise Hint("all images with boxes are in the first batches: did you shuffle?")
    if abs(found[0] - 0.01) < 1e-3:
        raise Hint("that is the share of images; count the batches that hold at least one.")
    mean = sum(found) / 40
    compare("the mean share over 40 shuffles", mean, 0.149, within=0.01)
    last = sum(share(torch.arange(9) == 0, 8, seed) for seed in range(10)) / 10
    compare("the share where one of 9 images has boxes, in batches of 8,", last, 0.5)
    often = share(torch.cat([few, torch.ones(180, dtype=torch.bool)]), 16)
    return f"{100 * mean:.0f} % of the steps see a box; with the 20 images ten times each {100 * often:.0f} %."
