import math

import pytest
import torch
import torchmetrics
from torch import nn

from e2lib import metrics

LEFT = torch.tensor([[True, False], [True, False]])
NONE = torch.zeros(2, 2, dtype=torch.bool)


def stack(*images):
    """Lists of maps (H, W), a list an image -> (B, K, H, W)."""
    return torch.stack([torch.stack([torch.as_tensor(m) for m in maps]) for maps in images])


# Two images, three classes: positive and negative energy, a zero map, a map without positive attribution, no mask.
MAPS = stack(
    [[[1.0, 3.0], [-5.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[9.0, 1.0], [0.0, 0.0]]],
    [[[4.0, 1.0], [2.0, 1.0]], [[-1.0, -2.0], [-3.0, -4.0]], [[1.0, 1.0], [1.0, 1.0]]],
)
MASKS = stack([LEFT, LEFT, NONE], [LEFT, LEFT, LEFT])


def test_values_of_pairs_by_hand():
    torch.testing.assert_close(metrics.epg(MAPS, MASKS), torch.tensor([[1 / 4, 0, 0], [6 / 8, 0, 1 / 2]]))
    # Above half the maximum: {3}; nothing; {9} against an empty mask; {4}; nothing; everything.
    torch.testing.assert_close(metrics.iou(MAPS, MASKS, 0.5), torch.tensor([[0, 0, 0], [1 / 2, 0, 1 / 2]]))
    torch.testing.assert_close(metrics.iou(MAPS, MASKS, 0.0), torch.tensor([[1 / 3, 0, 0], [1 / 2, 0, 1 / 2]]))
    # The last map has its maximum on both sides of the mask's edge.
    assert metrics.pointing_game(MAPS, MASKS).tolist() == [[0, 0, 0], [1, 0, 0]]
    # The object is the upper left pixel, and one outside the box.
    segments = torch.tensor([[True, True], [False, False]]).expand_as(MASKS)
    torch.testing.assert_close(
        metrics.on_object_epg(MAPS, MASKS, segments), torch.tensor([[1, 0, 0], [4 / 6, 0, 1 / 2]])
    )


def test_pointing_game_accepts_ties_inside_the_mask_and_a_mask_of_all_pixels():
    assert metrics.pointing_game(stack([[[2.0, 1.0], [2.0, 0.0]]]), stack([LEFT])).item() == 1
    assert metrics.pointing_game(stack([[[2.0, 1.0], [2.0, 0.0]]]), stack([~NONE])).item() == 1


def test_maps_of_any_scale_and_precision_score_alike():
    expected = metrics.epg(MAPS, MASKS)
    for scaled in (MAPS * 1e-40, MAPS * 1e37, MAPS.half() * 6000, MAPS.bfloat16(), MAPS.double()):
        torch.testing.assert_close(metrics.epg(scaled, MASKS), expected, check_dtype=False, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            metrics.iou(scaled, MASKS, 0.3), metrics.iou(MAPS, MASKS, 0.3), check_dtype=False, atol=0, rtol=0
        )
    # The sum of this map is beyond float16.
    upper = (torch.arange(300) < 150).view(1, 1, 300, 1).expand(1, 1, 300, 300)
    assert metrics.epg(torch.ones(1, 1, 300, 300, dtype=torch.float16), upper).item() == 0.5


AVERAGED = [
    # The pairs that count: all but the one without mask.
    (metrics.EPG(), (MAPS, MASKS), (1 / 4 + 6 / 8 + 1 / 2) / 5),
    (metrics.IoU(0.5), (MAPS, MASKS), 1 / 5),
    (metrics.IoUCurve([0, 0.5]), (MAPS, MASKS), [(1 / 3 + 1) / 5, 1 / 5]),
    (metrics.PointingGame(), (MAPS, MASKS), 1 / 5),
    # Class 1 of the first image has no segmentation.
    (metrics.OnObjectEPG(), (MAPS, MASKS, stack([LEFT, NONE, LEFT], [LEFT, LEFT, NONE])), 2 / 3),
]


@pytest.mark.parametrize(("metric", "batch", "expected"), AVERAGED, ids=lambda x: type(x).__name__)
def test_averages_and_merging(metric, batch, expected):
    expected = torch.tensor(expected)
    metric.reset()
    metric.update(*batch)
    torch.testing.assert_close(metric.compute(), expected)

    metric.reset()
    other = metric.clone()
    metric(*(x[:1] for x in batch))  # forward updates too
    metric.update(*(x[1:] for x in batch))
    torch.testing.assert_close(metric.compute(), expected)

    metric.reset()
    metric.update(*(x[:1] for x in batch))
    other.update(*(x[1:] for x in batch))
    metric.merge_state(other)
    torch.testing.assert_close(metric.compute(), expected)


@pytest.mark.parametrize(("metric", "batch", "expected"), AVERAGED, ids=lambda x: type(x).__name__)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_pairs_and_given_pairs(metric, batch, expected):
    metric.reset()
    assert not metric.compute().any()
    metric.update(*batch, valid=torch.zeros(2, 3, dtype=torch.bool))
    metric.update(batch[0], *(torch.zeros_like(x) for x in batch[1:]))
    assert metric.pairs == 0
    assert not metric.compute().any()
    only = torch.zeros(2, 3, dtype=torch.bool)
    only[1, 0] = True
    metric.update(*batch, valid=only)
    assert metric.pairs == 1
    assert metric.compute().max() > 0.4


def test_metrics_of_a_collection_stay_apart_after_a_first_batch_without_pairs():
    parts = {"EPG": metrics.EPG(), "hits": metrics.PointingGame(), "high": metrics.IoU(0.5), "low": metrics.IoU(0.0)}
    both = torchmetrics.MetricCollection(parts)
    both.update(MAPS, torch.zeros_like(MASKS))
    both.update(MAPS, MASKS)
    values = {name: value.item() for name, value in both.compute().items()}
    assert values == pytest.approx({"EPG": 1.5 / 5, "hits": 1 / 5, "high": 1 / 5, "low": (4 / 3) / 5})


def test_threshold_is_chosen_by_mean_iou():
    # One row; the mask is pixels 0 and 1. IoU at the four thresholds: 2/4, 2/3, 2/2, 1/2 and 2/3, 2/3, 1/3, 1/3.
    maps = stack([[[1.0, 0.5, 0.3, 0.1]]], [[[0.3, 1.0, 0.9, 0.0]]])
    masks = torch.tensor([True, True, False, False]).expand(2, 1, 1, 4)
    curve = metrics.IoUCurve([0, 0.2, 0.4, 0.6])
    for i in range(2):
        curve.update(maps[i : i + 1], masks[i : i + 1])
    torch.testing.assert_close(curve.compute(), torch.tensor([7 / 12, 2 / 3, 2 / 3, 5 / 12]))
    maps[0, 0, 0, 0], maps[0, 0, 0, 1] = 1.0, 0.4  # now map 1 above 0.4 is 1/2
    curve.reset()
    curve.update(maps, masks)
    assert curve.best_threshold() == 0.2
    test = metrics.IoU(curve.best_threshold())
    test.update(maps, masks)
    assert test.compute() == curve.compute()[1]
    curve.reset()
    with pytest.raises(ValueError, match="no threshold can be chosen"):
        curve.best_threshold()
    assert metrics.IoUCurve().thresholds[::19] == [0, 0.95]


def test_lowest_of_equal_thresholds():
    curve = metrics.IoUCurve([0.1, 0.3, 0.2])
    curve.update(stack([[[1.0, 0.0], [1.0, 0.0]]]), stack([LEFT]))
    assert curve.best_threshold() == 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.epg(MAPS[0], MASKS[0]), r"maps is torch.float32 \(3, 2, 2\)"),
        (lambda: metrics.epg(MAPS.long(), MASKS), "maps is torch.int64"),
        (lambda: metrics.epg(MAPS, MASKS.float()), "masks is torch.float32"),
        (lambda: metrics.iou(MAPS, MASKS[:, :1], 0.5), r"masks is torch.bool \(2, 1, 2, 2\)"),
        (lambda: metrics.iou(MAPS, MASKS, 1.0), "threshold is 1.0"),
        (lambda: metrics.IoU(-0.1), "threshold is -0.1"),
        (lambda: metrics.IoUCurve([0.5, 50]), "threshold is 50"),
        (lambda: metrics.on_object_epg(MAPS, MASKS, MASKS.long()), "segments is torch.int64"),
        (lambda: metrics.pointing_game(MAPS.log(), MASKS), "maps holds NaN"),
        (lambda: metrics.EPG().update(MAPS, MASKS, valid=torch.ones(2, dtype=torch.bool)), r"valid is torch.bool \(2,\)"),
        (lambda: metrics.EPG().update(MAPS, MASKS, valid=torch.ones(2, 3)), "valid is torch.float32"),
        (lambda: metrics.rank_correlation(MAPS, MAPS[:1]), "they must be equal"),
        (lambda: metrics.rank_correlation(MAPS, MAPS / 0), "others holds NaN"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- multi-label classification

# All logits of the first batch lie in [0, 1], so torchmetrics alone would take them for probabilities.
LOGITS = [torch.tensor([[0.2, 0.4, 0.0], [0.1, 0.3, 0.9]]), torch.tensor([[-1.0, -3.0, 30.0], [2.0, -2.0, 20.0]])]
LABELS = [torch.tensor([[1, 0, 0], [0, 0, 0]]), torch.tensor([[0, 0, 1], [1, 0, 0]])]


def test_f1_by_hand():
    micro, macro = metrics.F1(3), metrics.F1(3, average="macro")
    for logits, labels in zip(LOGITS, LABELS, strict=True):
        micro.update(logits, labels.byte())
        macro(logits, labels)
    # TP, FP, FN of the classes: 2, 1, 0; 0, 2, 0; 1, 2, 0.
    assert micro.compute().item() == pytest.approx(2 * 3 / (2 * 3 + 5))
    assert macro.compute().item() == pytest.approx((4 / 5 + 0 + 2 / 4) / 3)


def test_mean_average_precision_by_hand():
    metric = metrics.MeanAP(3)
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


# ---- deletion, insertion


class Halves(nn.Module):
    """Logits 4 (mean of the upper half) - 2 (mean of the lower half), and 0."""

    def __init__(self):
        super().__init__()
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm2d(3, eps=0)
        self.norm.eval()

    def forward(self, x):
        upper, lower = (half.mean((1, 2, 3)) for half in self.norm(self.dropout(x)).chunk(2, 2))
        score = 4 * upper - 2 * lower
        return torch.stack([score, torch.zeros_like(score)], 1)


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
        (lambda m: metrics.GroupAccuracy([]), "there must be a group at least"),
        (lambda m: metrics.GroupAccuracy(["a", "b"], [3]), r"seen is \[3\]; .*a number each"),
        (lambda m: m.update(torch.zeros(2), ONE_HOT, torch.zeros(2).long()), r"logits is torch.float32 \(2,\)"),
        (lambda m: m.update(torch.zeros(1, 2), ONE_HOT[:1] * 0, torch.zeros(1).long()), "must be one-hot"),
        (lambda m: m.update(torch.zeros(2, 2), ONE_HOT, torch.tensor([0, 2])), r"groups is \[0, 2\]; each must be 0 to 1"),
        (lambda m: m.update(torch.zeros(2, 2), ONE_HOT, torch.tensor([0, -1])), r"groups is \[0, -1\]; each must be 0 to 1"),
        (lambda m: m.update(torch.zeros(2, 2), ONE_HOT, torch.tensor([0])), r"groups is \[0\]; each must be 0 to 1"),
    ],
)
def test_wrong_groups_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(metrics.GroupAccuracy(["a", "b"]))


def sigmoid(*values):
    return torch.tensor([1 / (1 + math.exp(-v)) for v in values])


def test_deletion_and_insertion_by_hand():
    image = torch.zeros(1, 3, 6, 6)
    image[:, :, :3] = 1
    rows = torch.arange(6.0, 0, -1).view(1, 1, 6, 1).expand(1, 1, 6, 6)
    # The image varies by rows only, so blurring it is a weighted mean of eleven rows, mirrored at the border.
    weights = [math.exp(-(k**2) / 50) for k in range(-5, 6)]
    mirrored = [[1, 1, 1, 0, 0, 0][abs(i) if i < 6 else 10 - i] for i in range(-5, 11)]
    blurred = [sum(w * x for w, x in zip(weights, mirrored[i:], strict=False)) / sum(weights) for i in range(6)]
    upper, lower = sum(blurred[:3]) / 3, sum(blurred[3:]) / 3

    result = metrics.deletion_insertion(Halves(), image, rows, torch.tensor([0]), steps=2)
    # Removed pixels become 1/2: first the upper half, then the lower.
    torch.testing.assert_close(result.deletion, sigmoid(4, 2, 1)[None])
    torch.testing.assert_close(result.insertion, sigmoid(4 * upper - 2 * lower, 4 - 2 * lower, 4)[None])
    for curve, area in ((result.deletion, result.deletion_auc), (result.insertion, result.insertion_auc)):
        a, b, c = curve[0].tolist()
        assert area.tolist() == pytest.approx([(a + 2 * b + c) / 4])

    # The other class, the lower half first (a negative map), sigmoid: its logit is 0 throughout.
    result = metrics.deletion_insertion(Halves(), image, -rows, torch.tensor([1]), steps=2)
    torch.testing.assert_close(result.deletion, 1 - sigmoid(4, 3, 1)[None])
    result = metrics.deletion_insertion(Halves(), image, rows, torch.tensor([1]), steps=2, multilabel=True)
    assert result.deletion.tolist() == [[0.5] * 3]
    # A constant map: in reading order.
    constant = metrics.deletion_insertion(Halves(), image, torch.zeros_like(rows), torch.tensor([0]), steps=2)
    torch.testing.assert_close(constant.deletion, sigmoid(4, 2, 1)[None])


def test_deletion_and_insertion_do_not_depend_on_batches_and_restore_modes():
    generator = torch.Generator().manual_seed(0)
    images, maps = torch.rand(3, 3, 8, 10, generator=generator), torch.randn(3, 1, 8, 10, generator=generator)
    targets = torch.tensor([0, 1, 0])
    model = Halves()
    state = {name: x.clone() for name, x in model.state_dict().items()}
    together = metrics.deletion_insertion(model, images, maps, targets, steps=7)
    assert together.deletion.shape == (3, 8)
    for chunk in (1, 7):
        for i in range(3):
            one = metrics.deletion_insertion(
                model, images[i : i + 1], maps[i : i + 1], targets[i : i + 1], steps=7, batch_size=chunk
            )
            for a, b in zip(one, together, strict=True):
                torch.testing.assert_close(a[0], b[i])
    assert (model.training, model.dropout.training, model.norm.training) == (True, True, False)
    with pytest.raises(ValueError, match="targets has class 5; the model has 2 classes"):
        metrics.deletion_insertion(model, images, maps, targets + 4)
    assert (model.training, model.dropout.training, model.norm.training) == (True, True, False)
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(2, 3, 4, 8)}, r"images is torch.float32 \(2, 3, 4, 8\)"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "images is torch.uint8"),
        ({"maps": torch.zeros(2, 2, 8, 8)}, r"maps has shape \(2, 2, 8, 8\)"),
        ({"targets": torch.tensor([0.0, 1.0])}, "targets is torch.float32"),
        ({"targets": torch.tensor([0, -1])}, "classes of 0 or more"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_deletion_names_wrong_input(change, message):
    arguments = {"images": torch.rand(2, 3, 8, 8), "maps": torch.zeros(2, 1, 8, 8), "targets": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        metrics.deletion_insertion(Halves(), **arguments | change)


# ---- sanity


def test_rank_correlation_by_hand():
    a = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(metrics.rank_correlation(a, a.exp()), torch.ones(2, 3))
    torch.testing.assert_close(metrics.rank_correlation(a, -(a**3)), -torch.ones(2, 3))
    # Ranks 1.5, 1.5, 3, 4 and 1, 2.5, 2.5, 4.
    ties = metrics.rank_correlation(stack([[[1.0, 1.0, 2.0, 3.0]]]), stack([[[1.0, 2.0, 2.0, 4.0]]]))
    assert ties.item() == pytest.approx(3.75 / 4.5)
    assert metrics.rank_correlation(a, torch.full_like(a, 0.1)).tolist() == [[0] * 3] * 2


class Staged(nn.Module):
    """Like the models of `e2lib.models`: preprocessing without parameters, layers between stages, own parameters."""

    depths = {"Input": "preprocess", "Mid1": "net.layer1", "Mid2": "net.pool", "Final": "net.layer4"}

    def __init__(self):
        super().__init__()
        self.preprocess, self.net = nn.Identity(), nn.Module()
        self.net.scale = nn.Parameter(torch.tensor([1.0, 1.2, 0.7]).view(3, 1, 1))
        self.net.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.net.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.net.layer10 = nn.Conv2d(4, 4, 3, padding=1)
        self.net.pool = nn.AvgPool2d(2)
        self.net.layer4 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.net.fc = nn.Linear(4, 2)

    def forward(self, x):
        net = self.net
        x = net.layer1(net.stem(self.preprocess(x) * net.scale))
        return net.fc(net.layer4(net.pool(net.layer10(x))).mean((2, 3)))


def ixg(model):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    return (images * gradient).sum(1, keepdim=True)


def test_randomisation_goes_from_the_logits_down_and_leaves_the_model():
    torch.manual_seed(0)
    model = Staged()
    given = {name: p.detach().clone() for name, p in model.named_parameters()}
    changed = []

    def explain(randomised):
        assert randomised is not model
        changed.append({name for name, p in randomised.named_parameters() if not torch.equal(p, given[name])})
        return ixg(randomised)

    random_state = torch.get_rng_state()
    similarity = metrics.randomisation(model, explain)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(p, given[name]) and p.grad is None for name, p in model.named_parameters())

    assert list(similarity) == ["none", "logits", "Final", "Mid2", "Mid1"]
    new = [
        {name.removeprefix("net.").split(".")[0] for name in b - a} for a, b in zip(changed, changed[1:], strict=False)
    ]
    assert new == [{"fc"}, {"layer4"}, {"layer10"}, {"scale", "stem", "layer1"}]
    assert changed[0] == set() and changed[-1] == set(given)

    torch.testing.assert_close(similarity.pop("none"), torch.ones(2, 1))
    assert all(x.shape == (2, 1) and (x < 0.99).all() for x in similarity.values())
    again = metrics.randomisation(model, ixg)
    assert all(torch.equal(x, again[name]) for name, x in similarity.items())
    assert not torch.equal(metrics.randomisation(model, ixg, seed=1)["Mid1"], again["Mid1"])


def test_randomisation_of_any_model_by_its_children():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert list(metrics.randomisation(model, ixg)) == ["none", "3", "0"]
    with pytest.raises(ValueError, match="Identity has no parameters"):
        metrics.randomisation(nn.Identity(), ixg)


def test_randomisation_fixes_the_explanations_random_numbers_and_defines_constant_maps():
    model = nn.Sequential(nn.Linear(3, 3))
    noise = metrics.randomisation(model, lambda m: torch.randn(1, 1, 4, 4))
    assert noise["none"].item() == pytest.approx(1) and noise["0"].item() == pytest.approx(1)
    assert metrics.randomisation(model, lambda m: torch.zeros(1, 1, 4, 4)) == {"none": 0, "0": 0}


def test_explanations_that_move_with_the_image_and_by_patches():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 24, 24)
    same = metrics.shift_similarity(lambda x: x, images, 8)
    assert same.shape == (9, 2) and torch.allclose(same, torch.ones(9, 2), atol=1e-5)

    def patches(x):  # each of 4 pixels is explained by its mean
        return nn.functional.avg_pool2d(x, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)

    found = metrics.shift_similarity(patches, images, 8).mean(1)
    assert torch.allclose(found[::4], torch.ones(3), atol=1e-5) and found[[1, 2, 3, 5, 6, 7]].max() < 0.995


def test_shifts_by_hand():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    found = metrics.shift_similarity(lambda x: x * torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, -9]]), images, 1)
    first, then = torch.tensor([5.0 * 5, 6 * 6, 9 * 8, -10 * 9]), torch.tensor([5.0, 6 * 2, 9 * 4, 10 * 5])
    assert found[1].item() == pytest.approx((first @ then / first.norm() / then.norm()).item(), abs=1e-6)
    assert metrics.shift_similarity(torch.zeros_like, images, 1).abs().max() == 0


@pytest.mark.parametrize("most", [0, 2])
def test_shifts_without_anything_in_common_are_refused(most):
    with pytest.raises(ValueError, match=f"most is {most}; it must be from 1 to less than half"):
        metrics.shift_similarity(lambda x: x, torch.rand(1, 3, 4, 4), most)
    with pytest.raises(ValueError, match=r"explain_fn returned \(1, 3, 1, 1\); \(B, K, 3, 3\) is wanted"):
        metrics.shift_similarity(lambda x: x[..., :1, :1], torch.rand(1, 3, 4, 4), 1)
