"""Checks of the exercises of notebook 08, and the student of one of them."""

import torch

from e2lib.course.claims import load
from e2lib.course.exercises import Hint, choose, compare
from e2lib.distillation import e2kd, kd


def check_1(out_of_distribution):
    generator = torch.Generator().manual_seed(0)
    labels, says = torch.randint(0, 2, (2, 60), generator=generator)
    groups = torch.randint(0, 4, (60,), generator=generator)
    says = torch.where(groups % 2 == 0, labels, says)
    seen = torch.tensor([500, 0, 3, 0])
    right, unseen = 100 * (says == labels).double(), seen[groups] == 0
    mistakes = [
        (right[~unseen].mean(), "that is in distribution: the groups that training does show."),
        (right.mean(), "that is over all images."),
        (right[unseen].sum() / 60, "divide by the number of images out of distribution."),
    ]
    found = out_of_distribution(says, labels, groups, seen)
    compare("the accuracy out of distribution", found, right[unseen].mean(), *mistakes, per_cent=True)


def check_3(prediction, answers_only, with_reasons):
    if torch.allclose(answers_only, with_reasons, atol=0.1):
        raise Hint("both students are the same: the second one should learn by e²KD as well, with weight 1.")
    answers, reasons = ([round(w, 2) for w in weights.tolist()] for weights in (answers_only, with_reasons))
    could = f"look at answers_only, {answers}: what could tell it from (2, 0)?"
    choose(prediction, "b", {"a": could, "c": f"look at with_reasons, {reasons}."})


def distilled(start: torch.Tensor, weight: float) -> torch.Tensor:
    """Weights (2,) of a linear student that learns from a teacher with weights (2, 0), by KD and `weight` times e²KD.

    It sees 200 toy images, each of two equal numbers. It begins at `start`, float (2,), not zero.
    """
    images = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 2)
    teacher = torch.tensor([2.0, 0.0])

    def logits(weights: torch.Tensor) -> torch.Tensor:
        return torch.stack([images @ weights, -(images @ weights)], 1) / 2

    student = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([student], lr=1.0)
    for _ in range(300):
        reasons = e2kd(student.view(1, 2, 1, 1), teacher.view(1, 2, 1, 1)).mean()
        optimiser.zero_grad()
        (kd(logits(student), logits(teacher)).mean() + weight * reasons).backward()
        optimiser.step()
    return student.detach()


def check_5(outside, inside):
    table = load()
    part = table[(table.run == "08-waterbirds") & (table.data == "waterbirds") & (table.task == "heads")]
    means = part.groupby("method")[["out of distribution", "in distribution"]].mean()
    gain, over_kd = (means.loc["KD + e²KD"] - means.loc[name] for name in ("no teacher", "KD"))
    both = {"outside": (outside, "out of distribution"), "inside": (inside, "in distribution")}
    for (name, (found, column)), other in zip(both.items(), gain[::-1], strict=True):
        mistakes = [
            (over_kd[column], "that is the gain over KD; the head without a teacher learns from labels alone."),
            (-gain[column], "mind the sign: a gain is the accuracy of e²KD minus the other accuracy."),
            (other, "the two are exchanged."),
        ]
        compare(name, found, gain[column], *mistakes, within=0.05)
