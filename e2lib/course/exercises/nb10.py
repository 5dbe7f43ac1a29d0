"""Checks of the exercises of notebook 10."""

import torch
import torch.nn.functional as F

from e2lib.course.exercises import Hint, choose, compare


def check_2(flipped):
    maps = torch.randn(4, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    before, flags = maps.clone(), torch.tensor([True, False, False, True])
    found, where = flipped(maps, flags), flags[:, None, None, None]
    if not torch.equal(maps, before):
        raise Hint("the stored maps are changed: the next epoch would begin with flipped ones.")
    mistakes = [
        (torch.where(where, maps.flip(2), maps), "these are upside down: which dimension goes from left to right?"),
        (maps.flip(3), "images that are not flagged keep their maps."),
        (torch.where(where, maps, maps.flip(3)), "images that are not flagged keep their maps, and the others do not."),
    ]
    compare("the maps", found, torch.where(where, maps.flip(3), maps), *mistakes)


def check_3(cropped):
    maps = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def resized(part):
        return F.interpolate(part, (8, 8), mode="bilinear", align_corners=False)

    mistakes = [
        (resized(maps[..., 2:10, 5:15]), "the rows of a map go with y, the columns with x."),
        (resized(maps[..., 5:16, 2:11]), "the box is half-open."),
        (F.interpolate(maps[..., 5:15, 2:10], (8, 8), mode="nearest"), "resize the maps bilinearly."),
        (resized(maps), "that is the whole map, without the crop."),
    ]
    compare("the maps", cropped(maps, (2, 5, 10, 15), 8), resized(maps[..., 5:15, 2:10]), *mistakes)


def check_4(prediction, cosines):
    flip, crop = cosines
    measured = f"cosine {flip:.2f} for flips and {crop:.2f} for crops."
    if not (1.001 > flip > crop):
        raise Hint(f"your cell gives a {measured} Was a line changed?")
    lack = "which surroundings does an enlarged crop lack, and which details does it add?"
    kernels = "are the network's kernels mirror images of themselves?"
    choose(prediction, "a", {"b": f"{lack} Your run: {measured}", "c": f"{kernels} Your run: {measured}"})
    return measured


def check_5(pays_after):
    for teacher, once in ((0.25, 10.1), (0.5, 3.0), (2.0, 1.0), (0.125, 100.0)):
        found = pays_after(teacher, once)
        where = f"with a teacher of {teacher} s per step and {once} s for freezing, pays_after returns {found}"
        if not isinstance(found, int):
            raise Hint(f"{where}; it should be a whole number.")
        if found * teacher == once:
            raise Hint(f"{where}. Then both take the same time; it should be *less time*.")
        if found != int(once // teacher) + 1:
            raise Hint(f"{where}, but {found} live steps of the teacher take {found * teacher:g} seconds.")
