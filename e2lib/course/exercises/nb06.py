"""Checks of the exercises of notebook 06."""

import torch

from e2lib.course.exercises import Hint, compare


def check_1(worst):
    right, total = torch.tensor([396.0, 20, 0, 120]), torch.tensor([400.0, 50, 0, 150])
    mistakes = [
        (100 * 536 / 600, "that is the accuracy over all images: the large groups hide the small one."),
        (100 * (0.99 + 0.4 + 0.8) / 3, "that is the mean of the groups."),
        (0.0, "your function takes a group without images for one that is always wrong."),
    ]
    compare("the accuracy of the worst group", worst(right, total), 40.0, *mistakes, per_cent=True)
    compare("the accuracy in another case", worst(torch.tensor([30.0, 9]), torch.tensor([40.0, 10])), 75.0)


def check_3(choose_epoch):
    history = [{"worst group": w, "adjusted mean": a} for w, a in ((40, 91), (62, 95), (55, 99), (62, 99), (30, 97))]
    for measure, right, first in (("worst group", 4, 2), ("adjusted mean", 4, 3), (None, 5, 5)):
        found = choose_epoch(history, measure)
        if found == right:
            continue
        if found is None:
            raise Hint("choose_epoch returns None. Does it return something in each case?")
        if found == right - 1 and found != first:
            raise Hint("epochs begin at 1.")
        if found == first:
            raise Hint(f"two epochs are equal by {measure}: choose the last one.")
        if measure is None:
            raise Hint("choose the last epoch for measure=None.")
        raise Hint(f"epoch {found} has {history[found - 1][measure]} by {measure}, which is not the highest.")
    if choose_epoch([{"worst group": -1.0}, {"worst group": -2.0}], "worst group") != 1:
        raise Hint("a later epoch is worse, but it is chosen.")


def check_5(against_others):
    classes = torch.tensor([2, 0, 4, 1])
    chosen = torch.nn.functional.one_hot(classes, 5).float()
    mistakes = [
        (chosen - (1 - chosen) / 5, "how many other classes are there? One less than count: count − 1."),
        (chosen - (1 - chosen), "take the mean of the other logits, not their sum."),
        (chosen - 1 / 5, "the mean is over the other classes, without the class itself."),
    ]
    compare("the weights", against_others(classes, 5), chosen - (1 - chosen) / 4, *mistakes)
