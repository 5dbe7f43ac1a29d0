"""Exercises of notebook 06."""

import torch

from e2lib.course.exercises import Hint, compare, exercise


@exercise(
    "06.1",
    "Worst-group accuracy",
    "Write a function, five minutes",
    text="""
    Write `worst_group(right, total)`: how many images of each group were answered right, and how many there are,
    both float (G,), to the accuracy of the worst group, in per cent, as a tensor (). Groups without images do not
    count.
    """,
    setup="from e2lib.course import exercises",
    start="""
    def worst_group(right, total):
        ...


    """,
    solution="""
    def worst_group(right, total):
        there = total > 0
        return 100 * (right[there] / total[there]).min()


    """,
    answer="worst_group",
    why="""
    One group that fails cannot hide behind three that do not, however large these are.
    """,
    mistakes=(
        ("(right[there] / total[there]).min()", "right.sum() / total.sum()", "all images"),
        ("(right[there] / total[there]).min()", "(right[there] / total[there]).mean()", "mean of the groups"),
        ("there = total > 0", "there = total >= 0", "NaN"),
        ("100 * ", "", "per cent"),
        ("right[there] / total[there]", "right / total.clamp(min=1)", "without images"),
    ),
)
def worst_group(worst):
    total = torch.tensor([400.0, 50, 0, 150])
    right = torch.tensor([396.0, 20, 0, 120])
    compare(
        "the accuracy of the worst group",
        worst(right, total),
        40.0,
        (100 * 536 / 600, "that is the accuracy over all images: the large groups hide the small one."),
        (100 * (0.99 + 0.4 + 0.8) / 3, "that is the mean of the groups."),
        (0.4, "per cent are wanted."),
        (0.0, "a group without images is taken for one that is always wrong."),
    )
    compare("another one", worst(torch.tensor([30.0, 9]), torch.tensor([40.0, 10])), 75.0)


@exercise(
    "06.2",
    "What a validation score sees",
    "Compute by hand, five minutes",
    text="""
    The four groups have 700, 50, 50 and 200 training images, and 100 validation images each. A network is right on
    90, 60, 50 and 80 % of them. What is its accuracy over all validation images, and what by the rule
    *in-distribution validation*, which weights groups as they are in training? In per cent.
    """,
    setup="from e2lib.course import exercises",
    start="""
    overall = ...
    in_distribution = ...
    """,
    solution="""
    overall = (90 + 60 + 50 + 80) / 4
    in_distribution = (700 * 90 + 50 * 60 + 50 * 50 + 200 * 80) / 1000
    """,
    answer="overall, in_distribution",
    why="""
    70 and 84.5, and the worst group has 50. With the groups of Waterbirds-100, two of which training lacks, the
    weights of these are 0: the rule cannot see the trap.
    """,
    mistakes=(
        ("(90 + 60 + 50 + 80) / 4", "50.0", "worst group"),
        ("(700 * 90 + 50 * 60 + 50 * 50 + 200 * 80) / 1000", "70.0", "training images"),
        ("(700 * 90 + 50 * 60 + 50 * 50 + 200 * 80) / 1000", "(90 + 80) / 2", "all four"),
    ),
)
def validation_scores(overall, in_distribution):
    compare(
        "overall",
        overall,
        70.0,
        (50.0, "that is the worst group."),
        (84.5, "that is the other one."),
        (0.7, "per cent are wanted."),
    )
    compare(
        "in_distribution",
        in_distribution,
        84.5,
        (0.845, "per cent are wanted."),
        (70.0, "the groups count as their numbers of training images, not of validation images."),
        (85.0, "training shows all four groups here, so all four count, by their sizes."),
    )


@exercise(
    "06.3",
    "A rule that chooses an epoch",
    "Write a function, ten minutes",
    text="""
    Write `choose_epoch(history, measure)`: `history` is a list with a dict of scores on validation images for each
    epoch, the first one being epoch 1. Return the number of the epoch with the highest `measure`; of equal ones the
    last; for `measure=None` the last epoch.
    """,
    setup="from e2lib.course import exercises",
    start="""
    def choose_epoch(history, measure):
        ...


    """,
    solution="""
    def choose_epoch(history, measure):
        if measure is None:
            return len(history)
        best = max(scores[measure] for scores in history)
        return max(i for i, scores in enumerate(history, 1) if scores[measure] == best)


    """,
    answer="choose_epoch",
    why="""
    In distribution the baseline reaches 100 % early and stays there: then "of equal ones the last" decides. Which
    `measure` one takes decides whose labels one needs: that is a part of the method, and belongs beside its
    numbers.
    """,
    mistakes=(
        ("enumerate(history, 1)", "enumerate(history)", "begin at 1"),
        ("return max(i for", "return min(i for", "equal"),
        ("return len(history)", "return 1", "None"),
        ("best = max(", "best = min(", "highest"),
    ),
)
def epoch_choice(choose_epoch):
    history = [{"worst group": w, "adjusted mean": a} for w, a in ((40, 91), (62, 95), (55, 99), (62, 99), (30, 97))]
    for measure, right, first in (("worst group", 4, 2), ("adjusted mean", 4, 3), (None, 5, 5)):
        found = choose_epoch(history, measure)
        if found == right:
            continue
        if found is None:
            raise Hint("choose_epoch gives None: does it return something in each case?")
        if found == right - 1 and found != first:
            raise Hint("epochs begin at 1.")
        if found == first:
            raise Hint(f"by {measure} two epochs are equal: the last one is wanted.")
        if measure is None:
            raise Hint("for measure=None the last epoch is wanted.")
        raise Hint(f"by {measure} epoch {found} has {history[found - 1][measure]}, which is not the highest.")
    if choose_epoch([{"worst group": -1.0}, {"worst group": -2.0}], "worst group") != 1:
        raise Hint("a later epoch is worse, and is chosen all the same.")


@exercise(
    "06.4",
    "Who has to know the groups?",
    "Design, five minutes",
    text="""
    Which of these need somebody who says, of an image, bird *and* place? Put the numbers into a set, such as {1, 2}.

    1. guidance with boxes for all training images, λ as on other data, last epoch
    2. the same, but the epoch is chosen by the worst validation group
    3. reweighting the groups of the training images
    4. GroupDRO
    5. DFR on validation images
    6. the baseline, its epoch chosen by accuracy on validation images that were collected as the training images
    7. guidance whose λ was chosen by the worst group of validation images
    """,
    setup="from e2lib.course import exercises",
    start="need_groups = ...",
    solution="need_groups = {2, 3, 4, 5, 7}",
    answer="need_groups",
    why="""
    Boxes are labels too, but of another kind: they do not say what the trap is. A rule of choice that looks at
    groups makes any method one that uses group labels, be it for the epoch or for λ.
    """,
    mistakes=(
        ("{2, 3, 4, 5, 7}", "{1, 2, 3, 4, 5, 7}", "1:"),
        ("{2, 3, 4, 5, 7}", "{3, 4, 5, 7}", "2:"),
        ("{2, 3, 4, 5, 7}", "{2, 3, 4, 5}", "7:"),
        ("{2, 3, 4, 5, 7}", "{2, 3, 4, 5, 6, 7}", "6:"),
        ("{2, 3, 4, 5, 7}", "[2, 3]", "a set"),
    ),
)
def group_labels(need_groups):
    if not isinstance(need_groups, set):
        raise Hint("a set of numbers is wanted, such as {1, 2}.")
    hints = {
        1: "1: a box says where the bird is. Does it say where the bird is standing?",
        2: "2: how would one know a worst group without knowing groups?",
        3: "3: what does reweighting weigh?",
        4: "4: GroupDRO follows the loss of each group of the training images.",
        5: "5: DFR takes equally many images of each group.",
        6: "6: such images show the groups in the shares of training, so their plain accuracy is enough.",
        7: "7: a choice by groups is a use of groups, also when it is made once.",
    }
    for wrong in sorted(need_groups ^ {2, 3, 4, 5, 7}):
        raise Hint(hints.get(wrong, f"{wrong!r} is none of the numbers 1 to 7."))


@exercise(
    "06.5",
    "This class rather than the others",
    "Write a function, five minutes",
    text="""
    Write `against_others(classes, count)`: classes int64 (B,), the number of classes `count`, to float32 (B,
    count): weights of the logits, so that the explained score is each class's logit less the mean of the other
    logits.
    """,
    setup="""
    import torch.nn.functional as F

    from e2lib.course import exercises
    """,
    start="""
    def against_others(classes, count):
        chosen = F.one_hot(classes, count).float()
        ...


    """,
    solution="""
    def against_others(classes, count):
        chosen = F.one_hot(classes, count).float()
        return chosen - (1 - chosen) / (count - 1)


    """,
    answer="against_others",
    why="""
    With two classes it is (1, −1). Each row adds up to 0: what raises all logits alike explains nothing. Guiding
    one logit alone would leave the other free to look at the background.
    """,
    mistakes=(
        ("(count - 1)", "count", "count − 1"),
        ("(1 - chosen) / (count - 1)", "(1 - chosen)", "mean"),
        ("(1 - chosen) / (count - 1)", "1 / count", "the other"),
    ),
)
def one_against_others(against_others):
    classes = torch.tensor([2, 0, 4, 1])
    chosen = torch.nn.functional.one_hot(classes, 5).float()
    compare(
        "the weights",
        against_others(classes, 5),
        chosen - (1 - chosen) / 4,
        (chosen - (1 - chosen) / 5, "how many other classes are there? One less than count: count − 1."),
        (chosen - (1 - chosen), "the mean of the other logits is wanted, not their sum."),
        (chosen - 1 / 5, "the mean is over the other classes, without the class itself."),
    )


@exercise(
    "06.6",
    "What energy does not see",
    "Compute by hand, three minutes",
    text="""
    A map has 3 inside the box, in sum, and nothing negative there; outside it has −6, in sum, and nothing positive.
    What is the energy loss of this map, and what is that of its absolute value?
    """,
    setup="from e2lib.course import exercises",
    start="""
    plain = ...
    absolute = ...
    """,
    solution="""
    plain = 1 - 3 / 3
    absolute = 1 - 3 / (3 + 6)
    """,
    answer="plain, absolute",
    why="""
    The logit is −3 because of the background, and the energy loss is content. With boxes for all images it turned
    the network round like that: birds on the background of training became the worst groups.
    """,
    mistakes=(
        ("1 - 3 / 3", "1 - 3 / -3", "positive"),
        ("3 / (3 + 6)", "3 / 3", "6"),
        ("1 - 3 / (3 + 6)", "3 / 9", "EPG"),
    ),
)
def unseen(plain, absolute):
    compare(
        "plain", plain, 0.0, (2.0, "energy is a share of the positive attribution."), (2 / 3, "that is the other one.")
    )
    compare(
        "absolute",
        absolute,
        2 / 3,
        (0.0, "the absolute value of −6 is 6, outside the box."),
        (1 / 3, "that is the EPG."),
    )


MORE = """
Predict, then run the notebook with other parameters: `rule="worst validation group"`; `lambda_of={"energy": 3.0,
"l1": 3.0}`; a B-cos network: `model="bcos_scenes"`, `weights="scenes"`, `size=128`.
"""
