"""Exercises of notebook 08."""

import torch

from e2lib.course.claims import load
from e2lib.course.exercises import Hint, choose, compare, exercise


@exercise(
    "08.1",
    "Out of distribution",
    "Write a function, ten minutes",
    text="""
    Write `out_of_distribution(says, labels, groups, seen)`: predicted and right classes, int64 (B,), the group of
    each image, int64 (B,), and how many training images each group has, int64 (G,), to the accuracy, in per cent,
    on the images of groups that training does not show, as a number.
    """,
    setup="from e2lib.course import exercises",
    start="""
    def out_of_distribution(says, labels, groups, seen):
        ...


    """,
    solution="""
    def out_of_distribution(says, labels, groups, seen):
        unseen = seen[groups] == 0
        return 100 * (says == labels)[unseen].float().mean().item()


    """,
    answer="out_of_distribution",
    why="""
    `seen[groups]` looks up, for every image, how many training images its group has. With the teacher's answers in
    place of the labels it is the agreement out of distribution.
    """,
    mistakes=(
        ("seen[groups] == 0", "seen[groups] > 0", "in distribution"),
        ("[unseen]", "", "all images"),
        ("100 * ", "", "per cent"),
        ("(says == labels)[unseen].float().mean()", "((says == labels) & unseen).float().mean()", "divide"),
    ),
)
def unseen_groups(out_of_distribution):
    generator = torch.Generator().manual_seed(0)
    labels, says = torch.randint(0, 2, (2, 60), generator=generator)
    groups = torch.randint(0, 4, (60,), generator=generator)
    says = torch.where(groups % 2 == 0, labels, says)
    seen = torch.tensor([500, 0, 3, 0])
    right, unseen = (says == labels).double(), seen[groups] == 0
    compare(
        "the accuracy out of distribution",
        out_of_distribution(says, labels, groups, seen),
        100 * right[unseen].mean(),
        (100 * right[~unseen].mean(), "that is in distribution: groups that training does show."),
        (100 * right.mean(), "that is over all images."),
        (right[unseen].mean(), "per cent are wanted."),
        (100 * right[unseen].sum() / 60, "divide by the number of images out of distribution."),
    )


@exercise(
    "08.2",
    "The same answers, other reasons",
    "Compute by hand, five minutes",
    text="""
    Two numbers describe an image: bird and background. The teacher's logit is 2 · bird, the student's 2 ·
    background; what explains them are their weights, (2, 0) and (0, 2). In all training images bird = background.
    What are KD's loss and e²KD's explanation term, 1 − cos, on the training images? And which logits have teacher
    and student for a duck on a meadow, bird = 1, background = −1?
    """,
    setup="from e2lib.course import exercises",
    start="""
    kd = ...
    e2kd = ...
    teacher_logit, student_logit = ..., ...
    """,
    solution="""
    kd = 0.0
    e2kd = 1.0
    teacher_logit, student_logit = 2 * 1, 2 * -1
    """,
    answer="kd, e2kd, teacher_logit, student_logit",
    why="""
    KD has nothing left to say: on these images the answers are the teacher's. The explanations are at right angles,
    and e²KD pulls on them. That is what this notebook is about, in two numbers.
    """,
    mistakes=(
        ("kd = 0.0", "kd = 1.0", "answers"),
        ("e2kd = 1.0", "e2kd = 2.0", "opposite"),
        ("e2kd = 1.0", "e2kd = 0.0", "same direction"),
        ("2 * 1, 2 * -1", "2 * 1, 2 * 1", "background"),
    ),
)
def other_reasons(kd, e2kd, teacher_logit, student_logit):
    compare("kd", kd, 0.0, (1.0, "where bird = background, do the answers differ at all?"))
    compare(
        "e2kd",
        e2kd,
        1.0,
        (2.0, "2 is for opposite explanations; what is the cosine of (2, 0) and (0, 2)?"),
        (0.0, "0 is for explanations of the same direction; what is the cosine of (2, 0) and (0, 2)?"),
    )
    compare("teacher_logit", teacher_logit, 2.0, (-2.0, "the teacher looks at the bird."))
    compare("student_logit", student_logit, -2.0, (2.0, "the student looks at the background."))


@exercise(
    "08.3",
    "What the student becomes",
    "Predict, then run, ten minutes",
    text="""
    The same world as code: 200 training images with bird = background; the teacher has the weights (2, 0), the
    student starts at (0, 1). Where does KD bring the student's weights, and where KD with e²KD?

    - **a** both to (2, 0)
    - **b** KD to some (u, v) with u + v = 2, depending on where it starts; with e²KD to (2, 0)
    - **c** neither to a network that looks at the bird
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    from e2lib.course.exercises.nb08 import distilled
    """,
    start="""
    prediction = ...
    answers_only = distilled(start=torch.tensor([0.0, 1.0]), weight=0.0)
    with_reasons = distilled(start=torch.tensor([0.0, 1.0]), weight=1.0)
    print(answers_only, with_reasons)
    """,
    solution="""
    prediction = "b"
    answers_only = distilled(start=torch.tensor([0.0, 1.0]), weight=0.0)
    with_reasons = distilled(start=torch.tensor([0.0, 1.0]), weight=1.0)
    print(answers_only, with_reasons)
    """,
    answer="prediction, answers_only, with_reasons",
    why="""
    Whatever adds up to 2 gives the teacher's answers, and gradient descent goes to the nearest such point: the
    weights move by the same on both numbers. Which of all students with the right answers one gets is decided by
    the start, the network, the step, by anything but the teacher. Explanations decide it.
    """,
    mistakes=(('"b"', '"a"', "answers_only"), ('"b"', '"c"', "with_reasons"), ("weight=1.0", "weight=0.0", "e²KD")),
)
def becomes(prediction, answers_only, with_reasons):
    if torch.allclose(answers_only, with_reasons, atol=0.1):
        raise Hint("both students are the same: the second one is to learn by e²KD as well, with weight 1.")
    choose(
        prediction,
        "b",
        a=f"look at answers_only, {[round(w, 2) for w in answers_only.tolist()]}: what could tell it from (2, 0)?",
        c=f"look at with_reasons, {[round(w, 2) for w in with_reasons.tolist()]}.",
    )


def distilled(start: torch.Tensor, weight: float) -> torch.Tensor:
    """Weights (2,) of a linear student that learns from a teacher with weights (2, 0), by KD and `weight` times e²KD.

    On 200 toy images, each two equal numbers; start is float (2,), not zero.
    """
    from e2lib.distillation import e2kd, kd

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


@exercise(
    "08.4",
    "One softmax or many sigmoids?",
    "Predict, then run, five minutes",
    text="""
    An image shows a cat *and* a dog. The teacher's logits for (cat, dog, car) are (6, 6, −6), the student's (0, 0,
    −12): the student sees neither cat nor dog. Which loss is (nearly) 0 all the same?

    - **a** KD, with one softmax over the classes
    - **b** multi-label KD, with one sigmoid a class
    - **c** neither
    """,
    setup="""
    import torch

    from e2lib.course import exercises
    from e2lib.distillation import kd, multi_label_kd
    """,
    start="""
    prediction = ...
    teacher, student = torch.tensor([[6.0, 6, -6]]), torch.tensor([[0.0, 0, -12]])
    print(kd(student, teacher).item(), multi_label_kd(student, teacher).item())
    """,
    solution="""
    prediction = "a"
    teacher, student = torch.tensor([[6.0, 6, -6]]), torch.tensor([[0.0, 0, -12]])
    print(kd(student, teacher).item(), multi_label_kd(student, teacher).item())
    """,
    answer="prediction",
    why="""
    Softmax sees differences of logits only, and a constant of 6 is lost. Where several classes can be present each
    has to be compared by itself: each logit against 0.
    """,
    mistakes=(('"a"', '"b"', "same number"), ('"a"', '"c"', "same number")),
)
def softmax_or_sigmoids(prediction):
    hint = "what does softmax make of logits to which the same number is added?"
    choose(prediction, "a", b=hint, c=hint)


@exercise(
    "08.5",
    "The price in distribution",
    "Read results.csv, ten minutes",
    text="""
    On the real Waterbirds-100 (run 08-waterbirds, data waterbirds, task heads): how many points does the head with
    KD + e²KD gain *out of distribution* over the head without a teacher, and how many does it gain *in
    distribution*? Means over the seeds; a loss is a negative gain.
    """,
    setup="""
    from e2lib.course import exercises
    from e2lib.course.claims import load

    table = load()
    part = table[(table.run == "08-waterbirds") & (table.data == "waterbirds") & (table.task == "heads")]
    """,
    start="""
    outside = ...
    inside = ...
    """,
    solution="""
    means = part.groupby("method")[["out of distribution", "in distribution"]].mean()
    gain = means.loc["KD + e²KD"] - means.loc["no teacher"]
    outside, inside = gain["out of distribution"], gain["in distribution"]
    """,
    answer="outside, inside",
    why="""
    What the background tells in distribution is true there, and a student that looks away from it gives that up. A
    table that shows the first number alone tells half of it.
    """,
    mistakes=(
        ('means.loc["no teacher"]', 'means.loc["KD"]', "without a teacher"),
        (
            'means.loc["KD + e²KD"] - means.loc["no teacher"]',
            'means.loc["no teacher"] - means.loc["KD + e²KD"]',
            "sign",
        ),
        (
            'gain["out of distribution"], gain["in distribution"]',
            'gain["in distribution"], gain["out of distribution"]',
            "exchanged",
        ),
    ),
)
def price(outside, inside):
    table = load()
    part = table[(table.run == "08-waterbirds") & (table.data == "waterbirds") & (table.task == "heads")]
    means = part.groupby("method")[["out of distribution", "in distribution"]].mean()
    gain, over_kd = (means.loc["KD + e²KD"] - means.loc[name] for name in ("no teacher", "KD"))
    for name, found, column in (("outside", outside, "out of distribution"), ("inside", inside, "in distribution")):
        (other,) = {"out of distribution", "in distribution"} - {column}
        compare(
            name,
            found,
            gain[column],
            (over_kd[column], "that is the gain over KD; the head without a teacher learns from labels alone."),
            (-gain[column], "mind the sign: a gain is e²KD's accuracy less the other one's."),
            (gain[other], "the two are exchanged."),
            within=0.05,
        )


MORE = """
Predict, then run the notebook with other parameters: `guided_head` with `"energy": 30.0` (a teacher that turned too
far: which groups does its student miss?); `head` with `"weight": 1.0`.
"""
