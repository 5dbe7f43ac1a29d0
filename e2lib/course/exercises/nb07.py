"""Exercises of notebook 07."""

import torch
import torch.nn.functional as F

from e2lib import distillation
from e2lib.course.claims import load
from e2lib.course.exercises import Hint, compare, exercise


@exercise(
    "07.1",
    "Agreement",
    "Write a function, five minutes",
    text="""
    Write `agreement(student, teacher)`: logits (B, C) of both, to the share of images on which both name the same
    class, in per cent, as a number.
    """,
    setup="from e2lib.course import exercises",
    start="""
    def agreement(student, teacher):
        ...


    """,
    solution="""
    def agreement(student, teacher):
        same = student.argmax(1) == teacher.argmax(1)
        return 100 * same.float().mean().item()


    """,
    answer="agreement",
    why="""
    Labels do not enter: a student can agree with its teacher on all images and be wrong on most of them.
    """,
    mistakes=(
        ("argmax(1)", "argmax(0)", "dimension"),
        ("100 * ", "", "per cent"),
        ("student.argmax(1) == teacher.argmax(1)", "student == teacher", "named class"),
    ),
)
def agreement_function(agreement):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        teacher = torch.randn(30, 4, generator=generator)
        student = teacher + torch.randn(30, 4, generator=generator) / 2
        share = (student.argmax(1) == teacher.argmax(1)).double().mean().item()
        compare(
            "agreement",
            agreement(student, teacher),
            100 * share,
            (share, "per cent are wanted."),
            (0.0, "the named class is compared, the one with the largest logit; logits themselves are never equal."),
            (
                100 * (student.argmax(0) == teacher.argmax(0)).double().mean().item(),
                "you compare, for each class, the images with the largest logit: mind the dimension.",
            ),
            within=1e-3,
        )


@exercise(
    "07.2",
    "Knowledge distillation",
    "Write a function, ten minutes",
    text="""
    Write `kd(student, teacher, tau)`: logits (B, C) of both, to (B,): τ² KL(softmax(z_T/τ) ‖ softmax(z_S/τ)), where
    KL(p ‖ q) = Σ p (log p − log q). The teacher gets no gradient.
    """,
    setup="from e2lib.course import exercises",
    start="""
    def kd(student, teacher, tau):
        ...


    """,
    solution="""
    def kd(student, teacher, tau):
        there = (teacher.detach() / tau).log_softmax(1)
        here = (student / tau).log_softmax(1)
        return tau**2 * (there.exp() * (there - here)).sum(1)


    """,
    answer="kd",
    why="""
    `log_softmax` is exact where `softmax(1).log()` rounds to −∞, for logits that lie far apart.
    """,
    mistakes=(
        ("tau**2 * ", "", "τ²"),
        ("tau**2 * ", "tau * ", "τ²"),
        ("there.exp() * (there - here)", "here.exp() * (here - there)", "exchanged"),
        ("teacher.detach()", "teacher", "teacher gets"),
        ("(student / tau)", "student", "student"),
        (".sum(1)", ".mean(1)", "classes"),
        ("(student / tau).log_softmax(1)", "(student / tau).softmax(1).log()", "far apart"),
        (".sum(1)", ".sum()", "shape"),
    ),
)
def kd_function(kd):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 6, generator=generator).double() * 3
    right = distillation.kd(student, teacher, 4.0)
    halved = 16 * (F.softmax(teacher / 4, 1) * (F.log_softmax(teacher / 4, 1) - F.log_softmax(student, 1))).sum(1)
    compare(
        "kd at τ = 4",
        kd(student, teacher, 4.0),
        right,
        (right / 16, "the factor τ² is missing."),
        (right / 4, "the factor is τ², not τ."),
        (distillation.kd(teacher, student, 4.0), "p and q are exchanged: the teacher is p."),
        (halved, "the student's logits are divided by τ as well."),
        (right / 6, "over the classes it is a sum, not a mean."),
    )
    compare("kd at τ = 1", kd(student, teacher, 1.0), distillation.kd(student, teacher, 1.0))
    far = torch.tensor([[0.0, -2000.0]]), torch.tensor([[0.0, 1.0]])
    if not kd(*far, 1.0).isfinite().all():
        raise Hint("of logits that lie far apart it is not finite: take log_softmax, not the logarithm of softmax.")
    teacher = teacher.clone().requires_grad_()
    if kd(student.clone().requires_grad_(), teacher, 2.0).sum().backward() or teacher.grad is not None:
        raise Hint("the teacher gets a gradient.")


@exercise(
    "07.3",
    "Why τ²?",
    "Predict, then run, five minutes",
    text="""
    Without its factor τ² the gradient of KD with respect to the student's logits becomes smaller as τ grows. By
    which factor, nearly, is it smaller at τ = 100 than at τ = 10? Make up your mind, then measure.
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    from e2lib.distillation import kd

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 8, 10)
    """,
    start="""
    factor = ...
    for tau in (10.0, 100.0):
        z = student.clone().requires_grad_()
        loss = kd(z, teacher, tau).sum() / tau**2
        print(tau, torch.autograd.grad(loss, z)[0].norm().item())
    """,
    solution="""
    factor = 100
    for tau in (10.0, 100.0):
        z = student.clone().requires_grad_()
        loss = kd(z, teacher, tau).sum() / tau**2
        print(tau, torch.autograd.grad(loss, z)[0].norm().item())
    """,
    answer="factor",
    why="""
    One 1/τ comes from dividing the student's logits, another because the two softened distributions differ by less,
    in proportion to 1/τ: together 1/τ², which is 1/100 for ten times τ. With the factor τ² the weight of KD beside
    other terms does not hang on τ.
    """,
    mistakes=(("factor = 100", "factor = 10", "two"), ("factor = 100", "factor = 1", "printed")),
)
def why_squared(factor):
    compare(
        "factor",
        factor,
        100.0,
        (
            10.0,
            "that is one 1/τ, from dividing the student's logits; there are two. How far apart are the distributions?",
        ),
        (1.0, "so it is *with* τ². Look at the norms that your cell has printed."),
        within=8.0,
    )


@exercise(
    "07.4",
    "e²KD",
    "Write a function, ten minutes",
    text="""
    Write `e2kd(student, teacher)`: explanations of both (B, K, h, w), signed, to (B,): 1 − cos(E_T, E_S), each
    image's explanation being one long vector. The teacher gets no gradient; for a map that is zero everywhere the
    loss is 1.
    """,
    setup="""
    import torch.nn.functional as F

    from e2lib.course import exercises
    """,
    start="""
    def e2kd(student, teacher):
        ...


    """,
    solution="""
    def e2kd(student, teacher):
        return 1 - F.cosine_similarity(student.flatten(1), teacher.detach().flatten(1), dim=1)


    """,
    answer="e2kd",
    why="""
    The cosine does not ask for the map's scale, only for its pattern: 0 for three times the teacher's map, 2 for
    its opposite. `F.cosine_similarity` keeps its denominator above 0, so that zero maps have a cosine of 0.
    """,
    mistakes=(
        (".flatten(1)", "", "shape"),
        (".flatten(1)", ".flatten(2)", "shape"),
        ("1 - ", "", "1 −"),
        ("teacher.detach()", "teacher", "teacher gets"),
        ("student.flatten(1)", "student.abs().flatten(1)", "signs"),
        (
            "1 - F.cosine_similarity(student.flatten(1), teacher.detach().flatten(1), dim=1)",
            "1 - (student * teacher.detach()).sum((1, 2, 3)) / student.square().sum((1, 2, 3)).sqrt()"
            " / teacher.detach().square().sum((1, 2, 3)).sqrt()",
            "NaN",
        ),
    ),
)
def e2kd_function(e2kd):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, 5, 7, generator=generator)
    right = distillation.e2kd(student, teacher)
    compare(
        "e2kd",
        e2kd(student, teacher),
        right,
        (1 - right, "that is the cosine; the loss is 1 − cos."),
        (distillation.e2kd(student.abs(), teacher), "the signs of both maps matter: red is not blue."),
    )
    three = torch.cat([3 * teacher[:1], -teacher[:1], torch.zeros_like(teacher[:1])])
    compare("e2kd of 3 E_T, −E_T and 0", e2kd(three, teacher[:1].expand(3, -1, -1, -1)), [0.0, 2.0, 1.0])
    other = teacher.clone().requires_grad_()
    e2kd(student.clone().requires_grad_(), other).sum().backward()
    if other.grad is not None:
        raise Hint("the teacher gets a gradient.")


@exercise(
    "07.5",
    "The gain over seeds",
    "Read results.csv, ten minutes",
    text="""
    `load()` gives a row for each setting and seed. In run 07, with 50 shots on the scenes: by how many points of
    accuracy is KD + e²KD ahead of KD, on average over the seeds, and by how many in the seed where it gains least?
    (Columns `shots`, `method`, `accuracy`, `seed`.)
    """,
    setup="""
    from e2lib.course import exercises
    from e2lib.course.claims import load

    table = load()
    part = table[(table.run == "07") & (table.data == "scenes")]
    """,
    start="""
    mean = ...
    least = ...
    """,
    solution="""
    by_seed = part[part.shots == 50].pivot(index="seed", columns="method", values="accuracy")
    gains = by_seed["KD + e²KD"] - by_seed["KD"]
    mean, least = gains.mean(), gains.min()
    """,
    answer="mean, least",
    why="""
    The difference is taken within a seed, and then summed up: both students of a seed saw the same images and the
    same teacher, and much of what differs from seed to seed drops out.
    """,
    mistakes=(
        ("part.shots == 50", "part.shots == 20", "20 shots"),
        ('by_seed["KD + e²KD"] - by_seed["KD"]', 'by_seed["KD + e²KD"]', "KD"),
        ("gains.mean(), gains.min()", 'gains.mean(), by_seed["KD + e²KD"].min() - by_seed["KD"].min()', "same seed"),
    ),
)
def gain_over_seeds(mean, least):
    table = load()
    part = table[(table.run == "07") & (table.data == "scenes")]
    found = {n: part[part.shots == n].pivot(index="seed", columns="method", values="accuracy") for n in (20, 50)}
    gains = {n: rows["KD + e²KD"] - rows["KD"] for n, rows in found.items()}
    both, few = found[50], "that is the number of 20 shots."
    alone = "that is KD + e²KD's accuracy itself; KD's is to be subtracted."
    compare("mean", mean, gains[50].mean(), (gains[20].mean(), few), (both["KD + e²KD"].mean(), alone), within=0.02)
    compare(
        "least",
        least,
        gains[50].min(),
        (gains[20].min(), few),
        (
            both["KD + e²KD"].min() - both["KD"].min(),
            "those two lowest accuracies are of different seeds; subtract in the same seed.",
        ),
        (gains[50].max(), "that is the largest gain."),
        within=0.02,
    )


MORE = """
Predict, then run the notebook with other parameters: `explained={"method": "bcos", "at": "Input", "weight": 20.0}`
(contribution maps in place of W(x)); standard networks with Grad-CAM: `teacher` an `efficientnet_lite0` with
ImageNet weights and `"lr": 1e-3`, `student` a `test_resnet` with `"lr": 3e-3`, `explained={"method": "gradcam",
"at": "Mid3", "weight": 5.0}`.
"""
