"""Deletion, insertion, rank correlation and shifts by hand; randomisation from the logits down."""

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
    with pytest.raises(ValueError, match="images lie in .*nan.*; they must be finite"):
        metrics.deletion_insertion(model, images * float("nan"), maps, targets)
    handle = model.register_forward_hook(lambda module, inputs, logits: logits + torch.inf)
    with pytest.raises(ValueError, match="logits hold NaN or infinity"):
        metrics.deletion_insertion(model, images, maps, targets)
    handle.remove()
    with pytest.raises(ValueError, match="targets has class 5; the model has 2 classes"):
        metrics.deletion_insertion(model, images, maps, targets + 4)
    assert (model.training, model.dropout.training, model.norm.training) == (True, True, False)
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(2, 3, 4, 8)}, r"images is torch.float32 \(2, 3, 4, 8\)"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "type torch.uint8; float"),
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


# ---- sanity checks


def stack(*images):
    """Lists of maps (H, W), one list per image -> (B, K, H, W)."""
    return torch.stack([torch.stack([torch.as_tensor(m) for m in maps]) for maps in images])


def test_wrong_maps_are_named():
    maps = torch.ones(2, 3, 2, 2)
    with pytest.raises(ValueError, match=r"others is torch.float32 \(1, 3, 2, 2\); it must be float \(2, 3, 2, 2\)"):
        metrics.rank_correlation(maps, maps[:1])
    with pytest.raises(ValueError, match="others holds NaN"):
        metrics.rank_correlation(maps, maps / 0)


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
    with pytest.raises(
        ValueError, match=r"explain_fn.* is torch.float32 \(1, 3, 1, 1\); it must be float \(1, 3, 3, 3\)"
    ):
        metrics.shift_similarity(lambda x: x[..., :1, :1], torch.rand(1, 3, 4, 4), 1)
