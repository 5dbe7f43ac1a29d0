"""Losses, metrics and wider boxes against the papers' definitions, written again in NumPy: by loops, and otherwise.

Rao et al. clamp and divide the maps of L1 and PPCE before they resize them; RRR* is divided before, energy is resized
first. Maps of an inner layer are smaller than masks, those of the input are as large.
"""

import numpy as np
import pytest
import torch

from e2lib import boxes, guidance, metrics

SIZE = 12
FLOOR = 1e-6


def resized(cells: np.ndarray) -> np.ndarray:
    """Bilinear, pixel centres aligned, edges repeated: each new pixel weighs at most four cells."""
    count = len(cells)
    place = ((np.arange(SIZE) + 0.5) * count / SIZE - 0.5).clip(0, count - 1)
    low = np.floor(place).astype(int)
    high, share = np.minimum(low + 1, count - 1), place - low
    rows = cells[low] * (1 - share)[:, None] + cells[high] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, high] * share


def over(cells: np.ndarray, peak: float) -> np.ndarray:
    return cells / peak if peak > 0 else np.zeros_like(cells)


def by_definition(cells: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The four losses of one map (h, w) and one mask (H, W), float64."""
    positive = resized(cells).clip(0)
    share = (positive * mask).sum() / positive.sum() if positive.sum() > 0 else 0
    first = resized(over(cells.clip(0), cells.max()))
    logs = [np.log(max(value, FLOOR)) for value in first[mask]]
    both = resized(over(cells, np.abs(cells).max()))
    return {
        "energy": 1 - share,
        "l1": np.abs(mask - first).mean(),
        "ppce": -np.mean(logs) if logs else 0.0,
        "rrr": (both[~mask] ** 2).sum(),
    }


def cases(cells: int):
    """Random and degenerate maps (h, w) with masks (H, W)."""
    rng = np.random.default_rng(cells)
    peaks = np.zeros((cells, cells))
    peaks[0, 0], peaks[-1, -1] = 1, -5  # the strongest value is negative
    maps = [rng.normal(size=(cells, cells)) * 10.0 ** rng.integers(-6, 6) for _ in range(12)]
    maps += [np.zeros((cells, cells)), -np.ones((cells, cells)), np.ones((cells, cells)), peaks, -peaks]
    masks = [rng.random((SIZE, SIZE)) < chance for chance in (0.1, 0.5, 0.9)]
    left = np.zeros((SIZE, SIZE), bool)
    left[2:9, :5] = True
    masks += [left, np.zeros_like(left), np.ones_like(left)]
    return [(values, mask) for values in maps for mask in masks]


@pytest.mark.parametrize("cells", [1, 3, 7, SIZE])
@pytest.mark.parametrize("loss", guidance.LOSSES)
def test_losses(loss, cells):
    pairs = cases(cells)
    maps, masks = (torch.from_numpy(np.stack(part))[:, None] for part in zip(*pairs, strict=True))
    expected = [by_definition(*pair)[loss] for pair in pairs]
    found = guidance.LOSSES[loss](maps, masks)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_the_order_of_clamping_and_resizing_matters():
    """Otherwise the test above could not tell one order from another."""
    cells, mask = np.array([[1.0, 3.0], [-5.0, 0.0]]), np.zeros((SIZE, SIZE), bool)
    mask[:, :6] = True
    last = resized(cells).clip(0)
    l1_last = np.abs(mask - last / np.abs(resized(cells)).max()).mean()
    assert abs(by_definition(cells, mask)["l1"] - l1_last) > 0.02
    first = resized(cells.clip(0))
    assert abs(by_definition(cells, mask)["energy"] - (1 - (first * mask).sum() / first.sum())) > 0.02


def test_epg_and_iou_by_counting_pixels():
    for values, mask in cases(SIZE):
        total = inside = union = both = 0
        peak = values.max()
        for value, covered in zip(values.flat, mask.flat, strict=True):
            total, inside = total + max(value, 0), inside + max(value, 0) * covered
            marked = peak > 0 and value / peak > 0.3
            union, both = union + (marked or covered), both + (marked and covered)
        maps, masks = torch.from_numpy(values)[None, None], torch.from_numpy(mask)[None, None]
        assert metrics.epg(maps, masks).item() == pytest.approx(inside / total if total > 0 else 0)
        assert metrics.iou(maps, masks, 0.3).item() == pytest.approx(both / union if union else 0)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5])
def test_each_side_of_a_box_moves_out_by_the_fraction(fraction):
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(20, 200, 2)
        (x1, x2), (y1, y2) = np.sort(rng.integers(0, width, 2)), np.sort(rng.integers(0, height, 2))
        dx, dy = fraction * (x2 - x1), fraction * (y2 - y1)
        expected = [max(x1 - dx, 0), max(y1 - dy, 0), min(x2 + dx, width), min(y2 + dy, height)]
        box = torch.tensor([[x1, y1, x2, y2]], dtype=torch.float64)
        found = boxes.dilate(box, fraction, (int(height), int(width)))
        np.testing.assert_allclose(found[0], expected, rtol=1e-12)
    if fraction == 0.5:
        assert boxes.dilate(torch.tensor([[70.0, 80, 130, 140]]), 0.5, (300, 300)).tolist() == [[40, 50, 160, 170]]
