"""Checks of the exercises of notebook 07."""

import torch

from e2lib import distillation
from e2lib.course.claims import load
from e2lib.course.exercises import Hint, compare


def check_1(agreement):
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


def check_2(kd):
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
    if teacher.grad is not None:
        raise Hint("the teacher gets a gradient.")


def check_4(e2kd):
    student, teacher = torch.randn(2, 4, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    right = distillation.e2kd(student, teacher)
    signs = "the signs of both maps matter: red is not blue."
    signed, cosine = distillation.e2kd(student.abs(), teacher), "that is the cosine; the loss is 1 − cos."
    compare("e2kd", e2kd(student, teacher), right, (1 - right, cosine), (signed, signs))
    three = torch.cat([3 * teacher[:1], -teacher[:1], torch.zeros_like(teacher[:1])])
    compare("e2kd of 3 E_T, −E_T and 0", e2kd(three, teacher[:1].expand(3, -1, -1, -1)), [0.0, 2.0, 1.0])
    refuse_gradient(e2kd, student, teacher)


def check_5(mean, least):
    table = load()
    part = table[(table.run == "07") & (table.data == "scenes")]
    few, both = (part[part.shots == n].pivot(index="seed", columns="method", values="accuracy") for n in (20, 50))
    fewer, gains = (rows["KD + e²KD"] - rows["KD"] for rows in (few, both))
    shots, alone = "that is the number of 20 shots.", "that is the accuracy of KD + e²KD itself; subtract KD's."
    compare("mean", mean, gains.mean(), (fewer.mean(), shots), (both["KD + e²KD"].mean(), alone), within=0.02)
    other = "those two lowest accuracies are of different seeds; subtract within the same seed."
    apart, largest = both["KD + e²KD"].min() - both["KD"].min(), (gains.max(), "that is the largest gain.")
    compare("least", least, gains.min(), (fewer.min(), shots), (apart, other), largest, within=0.02)
