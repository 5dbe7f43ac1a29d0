"""The recipe of a metric, followed from outside the package: one function and one line in `METRICS`."""

import pytest
import torch

from e2lib import metrics, models, training
from e2lib.attribution import explain
from e2lib.datasets import Scenes, collate

SCENES = Scenes("val", 5, 64)
HOW = {"batch_size": 2, "method": "ixg", "at": "Final", "precision": "float32"}


def negative_share(maps, masks):
    """Per image and class: the share of the negative attribution that is inside the mask."""
    negative = maps.clamp(max=0).abs()
    total = negative.sum((2, 3))
    return torch.where(total > 0, (negative * masks).sum((2, 3)) / total, 0)


def all_that_is_given(maps, masks, boxes, segments, targets, logits, labels, groups, images, model):
    """Per image: 1 where everything has the shape and type that the recipe says."""
    batch, classes = targets.shape
    assert maps.shape == masks.shape == boxes.shape == segments.shape == (batch, classes, 64, 64)
    assert maps.dtype == logits.dtype == torch.float32
    assert masks.dtype == boxes.dtype == segments.dtype == torch.bool
    assert targets.dtype == torch.int64 and logits.shape == labels.shape == (batch, 10)
    assert labels.gather(1, targets.clamp(min=0))[targets >= 0].all()
    assert groups.shape == (batch,) and images.shape == (batch, 3, 64, 64)
    assert isinstance(model, torch.nn.Module)
    return torch.ones(batch)


def test_a_metric_is_added_used_and_removed():
    network = models.build("test_resnet", 10).eval()
    whole = collate(list(SCENES))
    present = whole.present()
    values = negative_share(explain(network, whole.images, present, "ixg", "Final").maps, whole.class_masks(present))
    expected = 100 * values[present >= 0].mean().item()
    assert 0 < expected < 100

    before = set(metrics.METRICS)
    metrics.METRICS["negative share"] = negative_share
    metrics.METRICS["everything"] = all_that_is_given
    scores = training.evaluate(network, SCENES, **HOW, metrics=["negative share", "everything", "pointing game"])
    assert scores["negative share"] == pytest.approx(expected, rel=1e-4)
    assert scores["everything"] == pytest.approx(100)
    assert scores.keys() >= {"F1", "EPG", "IoU", "pointing game"}
    del metrics.METRICS["negative share"], metrics.METRICS["everything"]

    assert set(metrics.METRICS) == before
    with pytest.raises(ValueError, match="metric is 'negative share'; it must be one of EPG, "):
        training.evaluate(network, SCENES, **HOW, metrics=["negative share"])


@pytest.mark.parametrize("name", metrics.METRICS)
def test_each_metric_of_the_table_is_defined_for_zero_maps_and_empty_masks(name):
    maps, empty, full = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).bool(), torch.ones(2, 3, 4, 4).bool()
    masks = metrics.METRICS[name].__code__.co_argcount - 1
    for some in (maps, maps - 1, maps + 1):
        for mask in (empty, full):
            values = metrics.METRICS[name](some, *[mask] * masks)
            assert values.shape == (2, 3) and values.isfinite().all()
