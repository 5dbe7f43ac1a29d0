"""Rank correlation and shifts by hand; randomisation from the logits down."""

import pytest
import torch
from torch import nn

from e2lib import metrics


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
