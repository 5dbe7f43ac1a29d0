"""Checks of the exercises of notebook 04, and the toy images of one of them."""

import numbers

import torch

from e2lib.course.exercises import Hint, choose, compare, random_maps


def check_2(fifth):
    maps, masks = random_maps()
    compare("the loss of perfect maps", fifth(1.0 * masks, masks), torch.zeros(4))
    inside, outside = (fifth(maps.abs() * m, masks) for m in (masks, ~masks))
    if not (outside > inside).all():
        raise Hint("a map outside the box should have a larger loss than a map inside it.")
    found = fifth(maps, masks)
    alone = torch.cat([fifth(*pair) for pair in zip(maps.split(1), masks.split(1), strict=True)])
    if not torch.allclose(alone, found, atol=1e-5):
        raise Hint("the loss of a map depends on the other maps of its batch.")
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
    if not gradient.any():
        raise Hint("there is no gradient where the map is wrong: nothing would be learned.")
    return "all five properties hold for your loss."


def check_3(choose):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        scores = (torch.rand(6, 2, generator=generator, dtype=torch.float64) * 20 + 60).round(decimals=1).tolist()
        points = [{"F1": f1, "EPG": epg} for f1, epg in scores]
        kept = [i for i in range(6) if scores[i][0] >= 69.95]
        found = choose(points, 69.95)
        if not isinstance(found, numbers.Integral):
            raise Hint(f"choose returns {found!r}; it should be the position of a point in the list, an int.")
        if kept and found not in kept and 0 <= found < 6:
            raise Hint(f"its choice has an F1 of {scores[found][0]}, below the floor of 69.95, though others keep it.")
        if kept and found != max(kept, key=lambda i: scores[i][1]):
            raise Hint(f"among points that keep the floor, choose the one with the highest EPG; {found} is not it.")
    short = choose([{"F1": 50.0, "EPG": 90.0}, {"F1": 69.0, "EPG": 40.0}], 70)
    if short != 1:
        raise Hint(f"choose returns {short} where no point keeps the floor; it should be the one that misses by least.")
    if choose([{"F1": 70.0, "EPG": 90.0}, {"F1": 80.0, "EPG": 40.0}], 70) != 0:
        raise Hint("an F1 that equals the floor keeps it: at least.")


def check_4(prediction, weights):
    if not {0, 1} <= weights.keys():
        raise Hint("weights should hold λ = 0 and λ = 1; other λ may stand beside them.")
    found = {λ: accuracies(w) for λ, w in weights.items()}
    first, second = found[0], found[1]
    if not (first["like training"] > second["like training"] and first["no context"] < second["no context"]):
        raise Hint(f"your run gives {first} without guidance and {second} with it. Was a line changed?")
    measured = "; ".join(f"λ = {λ:g}: {scores}" for λ, scores in found.items()) + "."
    given_up = "a guided layer gives up the background's evidence, which was true in training."
    gone = "what is the background worth where it is gone?"
    choose(prediction, "b", {"a": f"{given_up} Your run: {measured}", "c": f"{gone} Your run: {measured}"})
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
    """Per cent of new toy images that linear weights (1, 1, 4, 4) get right, with and without background."""
    found = {}
    for name, background in (("like training", 0.5), ("no context", 0.0)):
        images, signs = toy_images(background, seed=1)
        found[name] = round(100 * ((signs * weights * images).sum((1, 2, 3)) > 0).float().mean().item(), 1)
    return found
