"""Deletion and insertion by hand."""

import math

import pytest
import torch
from torch import nn

from e2lib import metrics


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


def test_deletion_and_insertion_take_each_image_alone_and_restore_modes():
    generator = torch.Generator().manual_seed(0)
    images, maps = torch.rand(3, 3, 8, 10, generator=generator), torch.randn(3, 1, 8, 10, generator=generator)
    targets = torch.tensor([0, 1, 0])
    model = Halves()
    state = {name: x.clone() for name, x in model.state_dict().items()}
    together = metrics.deletion_insertion(model, images, maps, targets, steps=7)
    assert together.deletion.shape == (3, 8)
    for i in range(3):
        one = metrics.deletion_insertion(model, images[i : i + 1], maps[i : i + 1], targets[i : i + 1], steps=7)
        for a, b in zip(one, together, strict=True):
            torch.testing.assert_close(a[0], b[i])
    assert (model.training, model.dropout.training, model.norm.training) == (True, True, False)
    with pytest.raises(ValueError, match="logits hold NaN"):
        metrics.deletion_insertion(model, images * float("nan"), maps, targets)
    with pytest.raises(ValueError, match="targets has class 5; the model has 2 classes"):
        metrics.deletion_insertion(model, images, maps, targets + 4)
    assert (model.training, model.dropout.training, model.norm.training) == (True, True, False)
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(2, 3, 4, 8)}, r"images is torch.float32 \(2, 3, 4, 8\)"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "images is torch.uint8"),
        ({"maps": torch.zeros(2, 2, 8, 8)}, r"maps is torch.float32 \(2, 2, 8, 8\); it must be float \(2, 1, 8, 8\)"),
        ({"targets": torch.tensor([0.0, 1.0])}, "targets is torch.float32"),
        ({"targets": torch.tensor([0, -1])}, "classes of 0 or more"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_deletion_names_wrong_input(change, message):
    arguments = {"images": torch.rand(2, 3, 8, 8), "maps": torch.zeros(2, 1, 8, 8), "targets": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        metrics.deletion_insertion(Halves(), **arguments | change)
