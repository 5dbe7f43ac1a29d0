"""F1, mAP and accuracy by group, by hand."""

import pytest
import torch

from e2lib import metrics

# ---- multi-label classification

# All logits of the first batch lie in [0, 1], so torchmetrics alone would take them for probabilities.
LOGITS = [torch.tensor([[0.2, 0.4, 0.0], [0.1, 0.3, 0.9]]), torch.tensor([[-1.0, -3.0, 30.0], [2.0, -2.0, 20.0]])]
LABELS = [torch.tensor([[1, 0, 0], [0, 0, 0]]), torch.tensor([[0, 0, 1], [1, 0, 0]])]


def test_f1_by_hand():
    metric = metrics.F1()
    metric.update(LOGITS[0], LABELS[0].byte())
    metric(LOGITS[1], LABELS[1])
    # TP, FP, FN of the classes: 2, 1, 0; 0, 2, 0; 1, 2, 0.
    assert metric.compute().item() == pytest.approx(2 * 3 / (2 * 3 + 5))


def test_mean_average_precision_by_hand():
    metric = metrics.MeanAP()
    for logits, labels in zip(LOGITS, LABELS, strict=True):
        metric(logits, labels)
    # Class 0: positives first and second. Class 1 has none. Class 2: positive first, before one that float32 would tie.
    assert metric.compute().item() == pytest.approx(1)
    metric.update(torch.tensor([[1.0, 0, 40]]), torch.tensor([[0, 0, 0]]))
    # Class 0: positives first and third; class 2: second.
    assert metric.compute().item() == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    metric.reset()
    metric.update(LOGITS[0], torch.zeros(2, 3, dtype=torch.long))
    assert metric.compute() == 0


# ---- groups

ONE_HOT = torch.eye(2, dtype=torch.uint8)


def group_accuracy(seen=None):
    """Groups 0, 1, 3 of four with 4, 1, 3 images, of which 3, 0, 2 are right."""
    metric = metrics.GroupAccuracy(["a", "b", "c", "d"], seen)
    labels = torch.tensor([0, 0, 1, 1, 0, 1, 1, 0])
    said = torch.tensor([0, 0, 1, 0, 1, 1, 1, 1])
    groups = torch.tensor([0, 0, 0, 0, 1, 3, 3, 3])
    for part in (slice(0, 3), slice(3, 8)):
        metric.update(ONE_HOT[said[part]] * 3.0, ONE_HOT[labels[part]], groups[part])
    return {name: pytest.approx(value.item()) for name, value in metric.compute().items()}


def test_group_accuracy_by_hand():
    plain = {
        "accuracy": 5 / 8,
        "worst group": 0,
        "mean of groups": (3 / 4 + 0 + 2 / 3) / 3,
        "a": 3 / 4,
        "b": 0,
        "d": 2 / 3,
    }
    assert group_accuracy() == plain
    # Group c has training images and none here, so it has no part in the adjusted mean.
    shares = {"adjusted mean": (60 * 3 / 4 + 20 * 2 / 3) / 80, "in distribution": 5 / 7, "out of distribution": 0}
    assert group_accuracy([60, 0, 20, 20]) == plain | shares
    assert group_accuracy([60, 5, 0, 20]).keys() == plain.keys() | {"adjusted mean", "in distribution"}
    assert group_accuracy([0, 0, 7, 0]).keys() == plain.keys() | {"out of distribution"}


def test_group_accuracy_before_the_first_image_and_merged():
    one, other = (metrics.GroupAccuracy(["a", "b"]) for _ in range(2))
    assert one.compute() == {}
    one.update(torch.tensor([[1.0, 0]]), ONE_HOT[[0]], torch.tensor([0]))
    other.update(torch.tensor([[1.0, 0], [1, 0]]), ONE_HOT[[1, 0]], torch.tensor([1, 1]))
    one.merge_state(other)
    assert one.compute() == {"accuracy": 2 / 3, "worst group": 0.5, "mean of groups": 0.75, "a": 1, "b": 0.5}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: metrics.GroupAccuracy([]), "there must be a group, and a number for each"),
        (lambda m: metrics.GroupAccuracy(["a", "b"], [3]), r"seen is \[3\]; .*a number for each"),
        (lambda m: m.update(torch.zeros(2), ONE_HOT, torch.zeros(2).long()), r"logits is torch.float32 \(2,\)"),
        (lambda m: m.update(torch.zeros(1, 2), ONE_HOT[:1] * 0, torch.zeros(1).long()), "must be one-hot"),
        (
            lambda m: m.update(torch.zeros(2, 2), ONE_HOT, torch.tensor([0, 2])),
            r"groups is \[0, 2\]; each must",
        ),
        (
            lambda m: m.update(torch.zeros(2, 2), ONE_HOT, torch.tensor([0, -1])),
            r"groups is \[0, -1\]; each must be 0 to 1",
        ),
        (lambda m: m.update(torch.zeros(2, 2), ONE_HOT, torch.tensor([0])), r"groups is \[0\]; each must be 0 to 1"),
    ],
)
def test_wrong_groups_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(metrics.GroupAccuracy(["a", "b"]))


# ---- logits of any scale, and none


def average_precision(labels, scores):
    """Σ over distinct scores of recall gained times precision, of one class."""
    total = 0.0
    for score in scores.unique():
        total += (labels[scores == score].sum() * labels[scores >= score].double().mean()).item()
    return total / labels.sum().item()


@pytest.mark.parametrize("scale", [1e-30, 1, 30, 1e30])
def test_mean_average_precision_depends_on_the_order_alone(scale):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(200, 3, generator=generator) * 3).round() / 3  # with ties
    labels = (torch.rand(200, 3, generator=generator) < 0.3).long()
    expected = sum(average_precision(labels[:, c], logits[:, c]) for c in range(3)) / 3
    metric = metrics.MeanAP()
    for part in (slice(0, 7), *(slice(i, i + 1) for i in range(7, 200))):
        metric.update(logits[part] * scale, labels[part])
    assert metric.compute().item() == pytest.approx(expected)
    assert len(metric.logits) < 64  # a tensor per batch would split the memory that images need, by gigabytes


def test_one_class_is_enough():
    logits, labels = torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([[1], [1], [0]])
    f1, ap = metrics.F1(), metrics.MeanAP()
    f1.update(logits, labels)
    ap.update(logits, labels)
    assert f1.compute().item() == pytest.approx(2 / (2 + 1 + 1))
    assert ap.compute().item() == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("metric", [metrics.F1(), metrics.MeanAP(), metrics.GroupAccuracy(["all"])])
def test_nan_among_logits_and_labels_that_are_none_are_refused(metric):
    groups = [torch.zeros(2, dtype=torch.int64)] if isinstance(metric, metrics.GroupAccuracy) else []
    with pytest.raises(ValueError, match="logits hold NaN"):
        metric.update(torch.tensor([[0.0, 1.0], [float("nan"), 2.0]]), ONE_HOT, *groups)
    with pytest.raises(ValueError, match="labels hold 0 to 2; each must be 0 or 1"):
        metric.update(torch.zeros(2, 2), ONE_HOT * 2, *groups)
    with pytest.raises(ValueError, match=r"labels torch.uint8 \(2, 1\); both must be"):
        metric.update(torch.zeros(2, 2), ONE_HOT[:, :1], *groups)
