"""Checks of the exercises on distillation: 07, 08, 09 and 10."""

import torch
import torch.nn.functional as F

from e2lib import distillation
from e2lib.course.claims import load
from e2lib.course.exercises import Hint, choose, compare, refuse
from e2lib.distillation import e2kd, kd


def check_07_1(agreement):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        teacher = torch.randn(30, 4, generator=generator)
        student = teacher + torch.randn(30, 4, generator=generator) / 2
        share, other = (100 * (student.argmax(d) == teacher.argmax(d)).double().mean().item() for d in (1, 0))
        mistakes = [
            (0.0, "compare the named class, the one with the largest logit; the logits themselves are never equal."),
            (other, "for each class you compare the images with the largest logit: mind the dimension."),
        ]
        compare("agreement", agreement(student, teacher), share, *mistakes, within=1e-3, per_cent=True)


def check_07_2(kd):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 6, generator=generator).double() * 3
    right = distillation.kd(student, teacher, 4.0)
    p, log_q = torch.softmax(teacher / 4, 1), torch.log_softmax(student, 1)
    mistakes = [
        (right / 16, "the factor τ² is missing."),
        (right / 4, "the factor is τ², not τ."),
        (distillation.kd(teacher, student, 4.0), "p and q are exchanged: the teacher is p."),
        (16 * (p * (p.log() - log_q)).sum(1), "divide the student's logits by τ, too."),
        (right / 6, "add up over the classes; do not take the mean."),
    ]
    compare("kd at τ = 4", kd(student, teacher, 4.0), right, *mistakes)
    compare("kd at τ = 1", kd(student, teacher, 1.0), distillation.kd(student, teacher, 1.0))
    far = torch.tensor([[0.0, -2000.0]]), torch.tensor([[0.0, 1.0]])
    if not kd(*far, 1.0).isfinite().all():
        raise Hint("kd is not finite for logits that lie far apart: take log_softmax, not the logarithm of softmax.")
    refuse_gradient(lambda student, teacher: kd(student, teacher, 2.0), student, teacher)


def refuse_gradient(loss, student, teacher):
    """Raise Hint if a loss of two tensors has a gradient with respect to the second, the teacher's."""
    teacher = teacher.clone().requires_grad_()
    loss(student.clone().requires_grad_(), teacher).sum().backward()
    refuse(teacher.grad is not None, "the teacher gets a gradient.")


def check_07_4(e2kd):
    student, teacher = torch.randn(2, 4, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    right = distillation.e2kd(student, teacher)
    signs = "the signs of both maps matter: red is not blue."
    signed, cosine = distillation.e2kd(student.abs(), teacher), "that is the cosine; the loss is 1 − cos."
    compare("e2kd", e2kd(student, teacher), right, (1 - right, cosine), (signed, signs))
    three = torch.cat([3 * teacher[:1], -teacher[:1], torch.zeros_like(teacher[:1])])
    compare("e2kd of 3 E_T, −E_T and 0", e2kd(three, teacher[:1].expand(3, -1, -1, -1)), [0.0, 2.0, 1.0])
    refuse_gradient(e2kd, student, teacher)


def check_07_5(mean, least):
    table = load()
    part = table[(table.run == "07b") & (table.data == "scenes")]
    few, both = (part[part.shots == n].pivot(index="seed", columns="method", values="accuracy") for n in (20, 50))
    fewer, gains = (rows["KD + e²KD"] - rows["KD"] for rows in (few, both))
    shots, alone = "that is the number of 20 shots.", "that is the accuracy of KD + e²KD itself; subtract KD's."
    compare("mean", mean, gains.mean(), (fewer.mean(), shots), (both["KD + e²KD"].mean(), alone), within=0.02)
    other = "those two lowest accuracies are of different seeds; subtract within the same seed."
    apart, largest = both["KD + e²KD"].min() - both["KD"].min(), (gains.max(), "that is the largest gain.")
    compare("least", least, gains.min(), (fewer.min(), shots), (apart, other), largest, within=0.02)


def check_08_1(out_of_distribution):
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


def check_08_3(prediction, answers_only, with_reasons):
    if torch.allclose(answers_only, with_reasons, atol=0.1):
        raise Hint("both students are the same: the second one should learn by e²KD as well, with weight 1.")
    answers, reasons = ([round(w, 2) for w in weights.tolist()] for weights in (answers_only, with_reasons))
    could = f"look at answers_only, {answers}: what could tell it from (2, 0)?"
    choose(prediction, "b", {"a": could, "c": f"look at with_reasons, {reasons}."})


def distilled(start: torch.Tensor, weight: float) -> torch.Tensor:
    """Weights (2,) of a linear student that learns by KD and `weight` times e²KD from a teacher of weights (2, 0).

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


def check_08_5(outside, inside):
    table = load()
    part = table[(table.run == "08b-waterbirds") & (table.data == "waterbirds") & (table.task == "heads")]
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


def check_09_2(alike):
    def cosine(first, second):
        return torch.cosine_similarity(first.flatten(1), second.flatten(1), dim=1)

    wide = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    first = wide[..., :16, :16]
    round_ = "the other way round: what was at (y + s, x + s) of the first window, where is it in the moved one?"
    for s in (4, 1, 15):
        moved = wide[..., s : s + 16, s : s + 16]
        mistakes = [
            (cosine(first, moved), "compare only the pixels that both windows show: cut both maps."),
            (cosine(moved[..., s:, s:], first[..., : 16 - s, : 16 - s]), round_),
        ]
        name = f"the cosine of maps that move with the image, s = {s},"
        compare(name, alike(first, moved, s), torch.ones(3), *mistakes)
    refuse(alike(first, first, 0).sub(1).abs().max() > 1e-4, "for s = 0 the windows are the same: compare all of them.")
    noise = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    right = cosine(first[..., 3:, 3:], noise[..., :13, :13])
    compare("the cosine of other maps", alike(first, noise, 3), right)


def check_09_5(always):
    table = load()
    names = ["test_convnext", "mobilenetv3_small_050", "shufflenet_v2_x0_5", "test_efficientnet"]
    part = table[(table.run == "09b") & table.task.isin(names) & (table.method == "KD + e²KD")]
    gains = part.groupby("task")["gain over KD, accuracy"].agg(["min", "mean", "max"])
    if not isinstance(always, set) or not always <= set(names):
        raise Hint(f"always should be a set of some of the names {', '.join(names)}; it may be empty: set().")
    right = set(gains[gains["min"] > 0].index)
    for name in sorted(always - right):
        where = "gains in some seed, but not in each" if gains.loc[name, "max"] > 0 else "does not gain in any seed"
        raise Hint(f"{name} {where}.")
    refuse(right - always, "one that gains in each seed is missing.")
    means = ", ".join(f"{name} {row['mean']:+.1f}" for name, row in gains.iterrows())
    return f"mean gains over the seeds: {means}."


def check_10_2(flipped):
    maps = torch.randn(4, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    before, flags = maps.clone(), torch.tensor([True, False, False, True])
    found, where = flipped(maps, flags), flags[:, None, None, None]
    refuse(not torch.equal(maps, before), "the stored maps are changed: the next epoch would begin with flipped ones.")
    mistakes = [
        (torch.where(where, maps.flip(2), maps), "these are upside down: which dimension goes from left to right?"),
        (maps.flip(3), "images that are not flagged keep their maps."),
        (torch.where(where, maps, maps.flip(3)), "images that are not flagged keep their maps, and the others do not."),
    ]
    compare("the maps", found, torch.where(where, maps.flip(3), maps), *mistakes)


def check_10_3(cropped):
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


def alike(maps: torch.Tensor, others: torch.Tensor) -> float:
    """The mean cosine of maps (B, 1, H, W) and others."""
    return F.cosine_similarity(maps.flatten(1), others.flatten(1)).mean().item()


def check_10_4(prediction, cosines):
    flip, crop = cosines
    measured = f"cosine {flip:.2f} for flips and {crop:.2f} for crops."
    refuse(not (1.001 > flip > crop), f"your cell gives a {measured} Was a line changed?")
    lack = "which surroundings does an enlarged crop lack, and which details does it add?"
    kernels = "are the network's kernels mirror images of themselves?"
    choose(prediction, "a", {"b": f"{lack} Your run: {measured}", "c": f"{kernels} Your run: {measured}"})
    return measured


def check_10_5(pays_after):
    for teacher, once in ((0.25, 10.1), (0.5, 3.0), (2.0, 1.0), (0.125, 100.0)):
        found = pays_after(teacher, once)
        where = f"with a teacher of {teacher} s per step and {once} s for freezing, pays_after returns {found}"
        refuse(not isinstance(found, int), f"{where}; it should be a whole number.")
        refuse(found * teacher == once, f"{where}. Then both take the same time; it should be *less time*.")
        if found != int(once // teacher) + 1:
            raise Hint(f"{where}, but {found} live steps of the teacher take {found * teacher:g} seconds.")
