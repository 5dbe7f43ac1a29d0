"""Localisation by hand, at any scale and precision, and averaged over batches in any cut."""

import pytest
import torch
import torchmetrics

from e2lib import metrics

LEFT = torch.tensor([[True, False], [True, False]])
NONE = torch.zeros(2, 2, dtype=torch.bool)


def stack(*images):
    """Lists of maps (H, W), one list per image -> (B, K, H, W)."""
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


HITS = metrics.Average(metrics.pointing_game, "pointing game")
AVERAGED = [
    # The pairs that count: all but the one without mask.
    (metrics.EPG(), (MAPS, MASKS), (1 / 4 + 6 / 8 + 1 / 2) / 5),
    (metrics.IoU(0.5), (MAPS, MASKS), 1 / 5),
    (metrics.IoUCurve([0, 0.5]), (MAPS, MASKS), [(1 / 3 + 1) / 5, 1 / 5]),
    (HITS.clone(), (MAPS, MASKS), 1 / 5),
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
    parts = {"EPG": metrics.EPG(), "hits": HITS.clone(), "high": metrics.IoU(0.5), "low": metrics.IoU(0.0)}
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
        (
            lambda: metrics.EPG().update(MAPS, MASKS, valid=torch.ones(2, dtype=torch.bool)),
            r"valid is torch.bool \(2,\)",
        ),
        (lambda: metrics.EPG().update(MAPS, MASKS, valid=torch.ones(2, 3)), "valid is torch.float32"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_masks_by_name_ask_for_the_pairs_that_count():
    maps, masks = torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="valid"):
        metrics.EPG().update(maps=maps, masks=masks)
