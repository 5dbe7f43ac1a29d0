"""Checks of the exercises of notebook 03."""

import torch

from e2lib.course.exercises import Hint, compare, random_maps


def check_2(dynamic):
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
            if torch.allclose(found, wrong):
                raise Hint(hint)
    compare("W(x)", found, right)


def check_4(inside_outside):
    maps, masks = random_maps()
    found = inside_outside(maps, masks)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Hint("the function should return two tensors, inside and outside.")
    inside, outside = ((maps * m).sum((1, 2, 3)) for m in (masks, ~masks))
    for_it = [(maps.clamp(min=0) * m).sum((1, 2, 3)) for m in (masks, ~masks)]
    against = "evidence against the class belongs to the logit, too."
    mean, swapped = "that is a mean; contributions add up.", "inside and outside are exchanged."
    compare("inside", found[0], inside, (for_it[0], against), (inside / maps[0].numel(), mean), (outside, swapped))
    one = "inside and outside add up to the sum of the map, which is not 1."
    compare("outside", found[1], outside, (1 - inside, one), (for_it[1], against))
