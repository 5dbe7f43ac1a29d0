"""Checks of the exercises of notebook 12."""

import torch

from e2lib import attribution, boxes, datasets, metrics, models
from e2lib.course.exercises import compare


def check_1(share):
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


def check_3(at_input, at_final):
    from e2lib.course import widgets  # here: it is slow to import

    network = models.build("bcos_scenes", 10, "scenes").eval()
    scene, found = datasets.Scenes("test", 4, 64, seed=0)[1], {}
    for at in ("Input", "Final"):
        after = widgets.guided(network, scene, "energy", at, steps=1)
        pairs = list(zip(network.parameters(), after.parameters(), strict=True))
        found[at] = 100 * sum((a != b).sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    for name, value, at, other in (("at_input", at_input, "Input", "Final"), ("at_final", at_final, "Final", "Input")):
        swapped, stay = (found[other], "the two are exchanged."), (100 - found[at], "that many stay as they were.")
        compare(name, value, found[at], swapped, stay, within=1e-3, per_cent=True)
