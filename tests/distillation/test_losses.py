"""Distillation losses: identities, values by hand, and gradients that are finite where a map or a feature is zero."""

import math

import pytest
import torch
from torch.nn import functional as F

from e2lib import distillation as d
from e2lib.distillation.losses import hierarchical_context

LOGITS = {"kd": d.kd, "multi_label_kd": d.multi_label_kd, "dist": d.dist}
MAPS = {
    "e2kd": d.e2kd,
    "cat_kd": d.cat_kd,
    "at": d.at,
    "fitnet": d.fitnet,
    "hierarchical_context": hierarchical_context,
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- logits


def test_kd_by_hand():
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert d.kd(student, teacher).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert d.kd(2 * student, 2 * teacher, 2).item() == pytest.approx(4 * d.kd(student, teacher).item())


def test_kd_has_the_gradient_of_cross_entropy_with_the_teachers_probabilities():
    student, teacher = normal(5, 4).requires_grad_(), normal(5, 4, seed=1)
    (found,) = torch.autograd.grad(d.kd(student, teacher, 3.0).sum(), student)
    assert torch.allclose(found, 3 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)))


def test_multi_label_kd_is_kd_of_each_class_against_nothing():
    student, teacher = normal(5, 4), normal(5, 4, seed=1)
    expected = sum(
        d.kd(*(torch.stack([z[:, c], torch.zeros(5)], 1) for z in (student, teacher)), 2.0) for c in range(4)
    )
    assert torch.allclose(d.multi_label_kd(student, teacher, 2.0), expected)


def test_dkd_with_the_weights_of_kd_is_kd():
    # Zhao et al., eq. 6: KD = TCKD + (1 - p_y) NCKD, p_y the teacher's.
    student, teacher, labels = normal(5, 4), normal(5, 4, seed=1), torch.tensor([0, 3, 1, 2, 0])
    rest = 1 - teacher.softmax(1)[torch.arange(5), labels]
    for i in range(5):
        one = slice(i, i + 1)
        found = d.dkd(student[one], teacher[one], labels[one], 1.0, 1.0, rest[i].item())
        assert torch.allclose(found, d.kd(student[one], teacher[one]))
    both = d.dkd(student, teacher, labels, 2.0, 1.0, 0.0) + d.dkd(student, teacher, labels, 2.0, 0.0, 8.0)
    assert torch.allclose(both, d.dkd(student, teacher, labels, 2.0))
    assert torch.allclose(d.dkd(student + normal(5, 1), teacher, labels), d.dkd(student, teacher, labels))
    hot = F.one_hot(labels, 4)
    assert torch.equal(d.dkd(student, teacher, hot), d.dkd(student, teacher, labels))
    with pytest.raises(ValueError, match="dkd needs exactly one label per image"):
        d.dkd(student, teacher, hot.clamp(max=0.5))


def test_dist_asks_for_correlation_alone():
    student, teacher = normal(6, 4), normal(6, 4, seed=1)
    p, q = student.softmax(1), teacher.softmax(1)

    def expected(a, b):
        return 1 - torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)]).mean()

    assert d.dist(student, teacher).item() == pytest.approx((expected(p, q) + expected(p.T, q.T)).item())
    # Probabilities that are a mixture of the teacher's and of equal ones correlate with them perfectly.
    assert d.dist((0.5 * q + 0.125).log(), teacher).item() == pytest.approx(0, abs=1e-9)
    assert d.dist(student, torch.zeros(6, 4)).item() == pytest.approx(2)  # a constant correlates with nothing


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS)
def test_losses_of_logits_are_zero_for_equal_ones_and_only_there(loss):
    teacher = normal(5, 4)
    assert loss(teacher, teacher).abs().max() < 1e-12
    assert (loss(-teacher, teacher) > 0.1).all()


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS)
def test_large_logits_are_finite_and_the_teacher_gets_no_gradient(loss):
    student, teacher = ((100 * normal(5, 4, seed=s).float()).requires_grad_() for s in (0, 1))
    value = loss(student, teacher).sum()
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all() and teacher.grad is None


@pytest.mark.parametrize("loss", LOGITS.values(), ids=LOGITS)
def test_wrong_logits_are_named(loss):
    with pytest.raises(ValueError, match=r"logits are \(5, 4\) and \(5, 3\)"):
        loss(normal(5, 4), normal(5, 3))
    with pytest.raises(ValueError, match=r"logits are \(5, 1\) and \(5, 1\)"):
        loss(normal(5, 1), normal(5, 1))
    for temperature in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be above 0"):
            loss(normal(5, 4), normal(5, 4), temperature)


# ---- maps and features


def test_e2kd_by_hand():
    teacher = torch.tensor([[3.0, 0], [0, 4]]).expand(1, 1, 2, 2)
    assert d.e2kd(7 * teacher, teacher).item() == pytest.approx(0)
    assert d.e2kd(-teacher, teacher).item() == pytest.approx(2)
    assert d.e2kd(torch.tensor([[0.0, 1], [1, 0]]).expand(1, 1, 2, 2), teacher).item() == pytest.approx(1)
    assert d.e2kd(torch.tensor([[1.0, 0], [0, 0]]).expand(1, 1, 2, 2), teacher).item() == pytest.approx(1 - 3 / 5)


def test_e2kd_is_one_minus_torchs_cosine_over_all_channels():
    student, teacher = normal(4, 6, 5, 5), normal(4, 6, 5, 5, seed=1)
    expected = 1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1))
    assert torch.allclose(d.e2kd(student, teacher), expected)
    assert torch.allclose(d.e2kd(1e-20 * student.float(), teacher.float()).double(), expected, atol=1e-6)


def test_cat_kd_compares_each_class_alone():
    student, teacher = normal(3, 5, 4, 4), normal(3, 5, 8, 8, seed=1)
    assert torch.allclose(
        d.cat_kd(student * torch.tensor([1.0, 2, 3, 4, 5]).view(5, 1, 1), teacher), d.cat_kd(student, teacher)
    )
    pooled = [F.avg_pool2d(student, 2).flatten(2), F.avg_pool2d(teacher, 4).flatten(2)]
    cosines = F.cosine_similarity(*pooled, dim=2)
    assert torch.allclose(d.cat_kd(student, teacher), (2 - 2 * cosines).mean(1))


def test_attention_is_the_energy_over_channels_and_widths_may_differ():
    student, teacher = normal(3, 5, 4, 4), normal(3, 7, 8, 8, seed=1)
    pooled = F.avg_pool2d(teacher, 2)
    cosines = F.cosine_similarity(student.square().sum(1).flatten(1), pooled.square().sum(1).flatten(1))
    assert torch.allclose(d.at(student, teacher), 2 - 2 * cosines)
    assert torch.allclose(d.at(-3 * student, teacher), d.at(student, teacher))


def test_hints_by_hand():
    student = torch.tensor([[1.0, 2], [3, 4]]).expand(1, 1, 2, 2)
    assert d.fitnet(student, torch.zeros(1, 1, 2, 2)).item() == pytest.approx((1 + 4 + 9 + 16) / 4)
    assert d.fitnet(student, torch.zeros(1, 1, 1, 1)).item() == pytest.approx(2.5**2)  # at the coarser one's cell
    with pytest.raises(ValueError, match="both must be of one width"):
        d.fitnet(student, torch.zeros(1, 3, 2, 2))


def test_hierarchical_context_by_hand():
    student = torch.tensor([[1.0, 2], [3, 4]]).expand(1, 1, 2, 2)
    expected = (7.5 * 1 + 6.25 * 0.5) / 1.5  # own cells, and 1 x 1; 4 x 4 and 2 x 2 are no fewer
    assert hierarchical_context(student, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(expected)
    large, zero = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    large[..., ::2] = -1  # which every average hides
    assert hierarchical_context(large, zero).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


@pytest.mark.parametrize("loss", MAPS.values(), ids=MAPS)
def test_features_that_are_zero_give_finite_values_and_gradients(loss):
    for zero in ((True, True), (True, False), (False, True)):
        student, teacher = (normal(2, 3, 4, 4, seed=k) for k in (0, 1))
        for x, empty in zip((student, teacher), zero, strict=True):
            if empty:
                x[0] = 0
        student.requires_grad_()
        teacher.requires_grad_()
        value = loss(student, teacher)
        value.sum().backward()
        assert value.shape == (2,) and value.isfinite().all() and student.grad.isfinite().all()
        assert student.grad[1].any() and teacher.grad is None
    if loss is d.e2kd:
        assert value[0] == 1 and not student.grad[0].any()


@pytest.mark.parametrize("loss", MAPS.values(), ids=MAPS)
def test_losses_of_features_are_zero_for_equal_ones_and_refuse_others(loss):
    teacher = normal(2, 3, 4, 4)
    assert loss(teacher, teacher).abs().max() < 1e-12
    with pytest.raises(ValueError, match=r"are \(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        loss(teacher, teacher[:1])
    with pytest.raises(ValueError, match=r"are \(2, 3, 4\) and \(2, 3, 4\)"):
        loss(teacher[..., 0], teacher[..., 0])


def test_crd_by_hand():
    same = torch.eye(2)
    h = math.exp(1) / (math.exp(1) + 1 / 8)  # cosine 1, tau 1, N = 1, M = 8
    other = 1 / (1 + 1 / 8)  # cosine 0
    expected = -2 * (math.log(h) + math.log(1 - other))
    assert d.crd(same, 5 * same, 8, 1.0).tolist() == pytest.approx([expected] * 2)


def test_crd_prefers_pairs_of_one_image():
    teacher = normal(6, 8)
    assert d.crd(teacher, teacher, 100).sum() < d.crd(teacher.roll(1, 0), teacher, 100).sum()
    student = normal(6, 8, seed=1).requires_grad_()
    d.crd(student, teacher.requires_grad_(), 100).sum().backward()  # both are learned projections
    assert all(x.grad.isfinite().all() and x.grad.any() for x in (student, teacher))
    for wrong in (normal(6, 7), normal(6)):
        with pytest.raises(ValueError, match=r"embeddings are .*; both must be \(B, D\)"):
            d.crd(wrong, teacher, 100)


def test_crd_of_one_image_asks_for_nothing():
    student, teacher = normal(1, 8).requires_grad_(), normal(1, 8, seed=1).requires_grad_()
    d.crd(student, teacher, 100).sum().backward()
    assert d.crd(student, teacher, 100).tolist() == [0]
    assert all(torch.equal(x.grad, torch.zeros(1, 8)) for x in (student, teacher))


def test_constant_probabilities_give_no_gradient_of_rounding():
    for count in (5, 10, 100):
        student = torch.zeros(8, count, requires_grad=True)
        d.dist(student, normal(8, count).float()).backward()
        assert student.grad.abs().max() < 10


def test_losses_of_labels_by_hand():
    student, hot = normal(5, 4), F.one_hot(torch.tensor([0, 3, 1, 2, 0]), 4)
    assert torch.allclose(d.cross_entropy(student, hot), -student.log_softmax(1)[hot.bool()])
    mixed = 0.3 * hot + 0.7 * hot.roll(1, 0)
    expected = 0.3 * d.cross_entropy(student, hot) + 0.7 * d.cross_entropy(student, hot.roll(1, 0))
    assert torch.allclose(d.cross_entropy(student, mixed), expected)
    with pytest.raises(ValueError, match="cross_entropy needs 1, bce takes any sum"):
        d.cross_entropy(student, hot + hot.roll(1, 1))
    both = d.bce(student, hot)
    assert both.shape == (5, 4) and torch.allclose(both, -torch.where(hot.bool(), student, -student).sigmoid().log())


@pytest.mark.parametrize("loss", [*LOGITS.values(), *MAPS.values()])
def test_losses_of_bfloat16_are_those_of_float32(loss):
    shape = (6, 4) if loss in LOGITS.values() else (2, 3, 8, 8)
    student, teacher = (normal(*shape, seed=k).bfloat16() for k in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student, teacher)
    assert found.dtype == torch.float32 and torch.equal(found, loss(student.float(), teacher.float()))


def test_contrast_is_computed_in_float32_under_autocast():
    student, teacher = normal(6, 8).float(), normal(6, 8, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = d.crd(student, teacher, 100)
    assert torch.equal(found, d.crd(student, teacher, 100))
