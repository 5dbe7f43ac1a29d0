"""How well explanations localise, how faithful they are, and how good the classifier is.

Maps are (B, K, H, W) signed floats: K explained classes in each of B images. Masks are bool of the same shape: the
boxes, or the segmentation, of these classes. Only positive attribution A⁺ = max(A, 0) localises, and a map's scale does
not matter. Functions give a value per pair of an image and a class, float (B, K). Classes are torchmetrics that average
over the pairs of all batches and processes. Nothing is NaN: a map without positive attribution scores 0, and so does a
metric that has seen no pair. A wrong shape or dtype, and NaN or infinity in maps, are a ValueError.
"""

from collections.abc import Callable

from torch import Tensor

from e2lib.metrics.accuracy import F1, GroupAccuracy, MeanAP, still_named
from e2lib.metrics.faithfulness import deletion_insertion, randomisation, rank_correlation, shift_similarity
from e2lib.metrics.localisation import EPG, Average, IoU, IoUCurve, OnObjectEPG, epg, iou, on_object_epg, pointing_game

# What `training.evaluate(metrics=[name, …])` knows by name.
METRICS: dict[str, Callable[..., Tensor]] = {"EPG": epg, "on-object EPG": on_object_epg, "pointing game": pointing_game}

__all__ = ["EPG", "F1", "METRICS", "Average", "GroupAccuracy", "IoU", "IoUCurve", "MeanAP", "OnObjectEPG"]
__all__ += ["deletion_insertion", "epg", "iou", "on_object_epg", "pointing_game"]
__all__ += ["randomisation", "rank_correlation", "shift_similarity", "still_named"]
