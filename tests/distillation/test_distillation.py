"""Distillation losses: identities, values by hand, and gradients that are finite where a map or a feature is zero."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from e2lib import distillation as d
from e2lib import models, training
from e2lib.attribution import against_others, dynamic_weights, explain
from e2lib.datasets import Scenes, collate

LOGITS = {"kd": d.kd, "multi_label_kd": d.multi_label_kd, "dist": d.dist}
MAPS = {
    "e2kd": d.e2kd,
    "cat_kd": d.cat_kd,
    "at": d.at,
    "fitnet": d.fitnet,
    "hierarchical_context": d.hierarchical_context,
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
    with pytest.raises(ValueError, match="features have 1 and 3 channels; the same are wanted"):
        d.fitnet(student, torch.zeros(1, 3, 2, 2))


def test_hierarchical_context_by_hand():
    student = torch.tensor([[1.0, 2], [3, 4]]).expand(1, 1, 2, 2)
    expected = (7.5 * 1 + 6.25 * 0.5) / 1.5  # own cells, and 1 x 1; 4 x 4 and 2 x 2 are no fewer
    assert d.hierarchical_context(student, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(expected)
    large, zero = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    large[..., ::2] = -1  # which every average hides
    assert d.hierarchical_context(large, zero).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


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
    for wrong in (normal(6, 7), normal(6), normal(1, 8)):
        with pytest.raises(ValueError, match=r"embeddings are .*; both must be \(B, D\), B at least 2"):
            d.crd(wrong, wrong if wrong.shape[0] == 1 else teacher, 100)


# ---- the step


@pytest.fixture(scope="module")
def scenes():
    return Scenes("train", 8, 64)


def batch_of(dataset):
    return collate([dataset[i] for i in range(len(dataset))])


def build(name, seed=0):
    torch.manual_seed(seed)
    model = models.build(name, 10)
    for x in (x for x in model.parameters() if not x.any()):  # residual branches begin as zeros
        torch.nn.init.normal_(x, std=0.1)
    return model


PAIRS = [
    ("test_resnet", "test_efficientnet"),
    ("bcos_scenes", "bcos_scenes"),
    ("test_resnet", "test_vit"),
    ("bcos_scenes", "test_resnet"),
]
EXCEPT = {("cat_kd", "test_vit")}


@pytest.mark.parametrize("pair", PAIRS, ids=["-".join(pair) for pair in PAIRS])
@pytest.mark.parametrize("term", d.TERMS)
def test_every_term_trains_every_kind_of_student(term, pair, scenes):
    teacher, student = build(pair[0]), build(pair[1], seed=1)
    batch = batch_of(scenes)
    how = {"weights": {term: 2.0}, "method": "gradcam", "count": 8}
    step = d.Distill(teacher, student, batch.images, **how)
    if (term, pair[1]) in EXCEPT:
        with pytest.raises(ValueError, match="class_maps: the classifier of 'test_vit'"):
            step(student, batch)
        return
    terms = step(student, batch)
    assert list(terms) == [term] and terms[term].shape == () and terms[term].isfinite()
    terms[term].backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert any(g.any() for g in grads) and all(g.isfinite().all() for g in grads)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.any() for p in step.learned.parameters() if p.ndim > 1)


def test_weights_multiply_and_terms_share_one_pass(scenes):
    teacher, student, batch = build("test_resnet"), build("test_resnet", 1).eval(), batch_of(scenes)
    calls = []
    student.register_forward_hook(lambda *_: calls.append(1))
    alone = {t: d.Distill(teacher, student, batch.images, {t: 1.0})(student, batch)[t] for t in ("kd", "e2kd", "at")}
    calls.clear()
    step = d.Distill(teacher, student, batch.images, {"kd": 1.0, "e2kd": 5.0, "at": 3.0})
    calls.clear()
    both = step(student, batch)
    assert len(calls) == 1
    for name, weight in (("kd", 1), ("e2kd", 5), ("at", 3)):
        assert both[name].item() == pytest.approx(weight * alone[name].item(), rel=1e-4)


def test_the_teachers_top_class_is_explained_for_both(scenes):
    teacher, student, batch = build("test_resnet"), build("test_efficientnet", 1).eval(), batch_of(scenes)
    with torch.no_grad():
        top = teacher.eval()(batch.images).argmax(1)
    for contrast in (False, True):
        targets = against_others(top, 10) if contrast else top
        maps = [explain(m, batch.images, targets, "ixg", "Final").maps for m in (student, teacher)]
        step = d.Distill(teacher, student, batch.images, {"e2kd": 1.0}, method="ixg", contrast=contrast)
        assert step(student, batch)["e2kd"].item() == pytest.approx(d.e2kd(*maps).mean().item(), rel=1e-4)


def test_dynamic_weights_of_bcos_networks_are_compared_whole(scenes):
    teacher, student, batch = build("bcos_scenes"), build("bcos_scenes", 1).eval(), batch_of(scenes)
    with torch.no_grad():
        top = teacher.eval()(batch.images).argmax(1)
    maps = [dynamic_weights(m, batch.images, top)[1] for m in (student, teacher)]
    step = d.Distill(teacher, student, batch.images, {"e2kd": 1.0}, method="weights")
    found = step(student, batch)["e2kd"]
    assert maps[0].shape == (8, 6, 64, 64) and found.item() == pytest.approx(d.e2kd(*maps).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "method", "at"), [("test_resnet", "gradcam", "Final"), ("bcos_scenes", "weights", "Input")]
)
def test_a_student_of_the_teachers_weights_has_nothing_to_learn(name, method, at, scenes):
    teacher = build(name)
    student, batch = copy.deepcopy(teacher).eval(), batch_of(scenes)
    weights = {"kd": 1.0, "e2kd": 1.0, "at": 1.0, "cat_kd": 1.0, "dist": 1.0, "dkd": 1.0}
    for value in d.Distill(teacher, student, batch.images, weights, method=method, at=at)(student, batch).values():
        assert abs(value.item()) < 1e-4


def test_norms_learn_their_statistics_and_explanations_go_through_them(scenes):
    teacher, student, batch = build("test_resnet"), build("test_resnet", 1).train(), batch_of(scenes)
    norms = [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    step = d.Distill(teacher, student, batch.images, {"kd": 1.0, "e2kd": 1.0})
    assert norms and all(m.num_batches_tracked == 0 for m in norms)  # to look at the student is not to train it
    step(student, batch)
    assert all(m.num_batches_tracked == 1 for m in norms) and student.training
    assert not step.teachers[0].training


def test_the_explanation_is_asked_for_every_kth_time_also_after_a_resume(scenes, tmp_path):
    batch, student = batch_of(scenes), build("test_resnet", 1)
    step = d.Distill(build("test_resnet"), student, batch.images, {"kd": 1.0, "e2kd": 1.0}, every=3)
    assert [bool(step(student, batch)["e2kd"] > 0) for _ in range(7)] == [True, False, False] * 2 + [True]

    def run(stop=None, file=None):
        student = build("test_resnet", 1)
        step = d.Distill(build("test_resnet"), student, batch.images, {"kd": 1.0, "e2kd": 1.0, "fitnet": 1.0}, every=3)

        def after(epoch):
            if epoch == stop:
                raise KeyboardInterrupt

        try:
            training.fit(student, scenes, 4, 1e-2, 4, step=step, checkpoint=file, after_epoch=after)
        except KeyboardInterrupt:
            return None
        return student, step

    whole, learned = run()
    run(stop=3, file=tmp_path / "run.pt")
    resumed, again = run(file=tmp_path / "run.pt")
    for a, b in ((whole, resumed), (learned, again)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    untrained = d.Distill(build("test_resnet"), build("test_resnet", 1), batch.images, {"fitnet": 1.0})
    assert not torch.equal(learned.learned["fitnet"].weight, untrained.learned["fitnet"].weight)


def test_the_teacher_may_take_other_sizes(scenes):
    teacher, student, batch = build("test_resnet"), build("test_efficientnet", 1).eval(), batch_of(scenes)
    weights = {"kd": 1.0, "e2kd": 1.0, "at": 1.0, "cat_kd": 1.0}
    step = d.Distill(teacher, student, batch.images, weights, teacher_size=96)
    seen = []
    step.teachers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[2:]))
    assert all(value.isfinite() for value in step(student, batch).values()) and seen == [(96, 96)]


def test_terms_go_together_and_small_last_batches_pass(scenes):
    teacher, student, batch = build("test_resnet"), build("test_resnet", 1), batch_of(scenes)
    weights = {"crd": 1.0, "e2kd": 1.0, "kd": 1.0}
    step = d.Distill(teacher, student, batch.images, weights, method="ixg", at="Input", count=8)
    sum(step(student, batch).values()).backward()
    assert step.learned["crd"][1].weight.grad.any()
    one = collate([scenes[0]])
    assert step(student.eval(), one)["crd"] == 0
    white = replace(batch, images=torch.ones(8, 3, 112, 112))
    other = d.Distill(teacher, student, white.images, {"e2kd": 1.0}, teacher_size=96)
    assert other._for_teacher(white.images).max() <= 1 and other(student, white)["e2kd"].isfinite()


def test_a_training_is_known_by_its_teacher(scenes):
    images, student = batch_of(scenes).images, build("test_resnet", 1)
    names = {repr(d.Distill(build("test_resnet", seed), student, images, {"kd": 1.0})) for seed in (0, 0, 2)}
    assert len(names) == 2


def test_constant_probabilities_give_no_gradient_of_rounding():
    for count in (5, 10, 100):
        student = torch.zeros(8, count, requires_grad=True)
        d.dist(student, normal(8, count).float()).backward()
        assert student.grad.abs().max() < 10


def test_class_maps_are_refused_where_more_than_an_average_follows(scenes):
    for name in ("test_convnext", "test_vit", "test_vit2"):
        with pytest.raises(ValueError, match=f"class_maps: the classifier of '{name}'"):
            model = build(name)
            d.class_maps(model, torch.zeros(1, model.net.num_features, 2, 2))


def test_class_maps_add_up_to_the_logits(scenes):
    images = batch_of(scenes).images
    for name in ("test_resnet", "test_efficientnet", "shufflenet_v2_x0_5", "bcos_scenes"):
        model = build(name).eval()
        found = []
        model.get_submodule(model.depths["Final"]).register_forward_hook(lambda m, i, o, found=found: found.append(o))
        with torch.no_grad():
            logits = model(images)
            maps = d.class_maps(model, found[0])
        bias = logits - maps.mean((2, 3)) * (10 if model.is_bcos else 1)  # bcos_scenes: its logit temperature is 0.1
        assert maps.shape[:2] == (8, 10) and torch.allclose(bias, bias[:1].expand_as(bias), atol=1e-4)


def test_what_cannot_be_distilled_is_named(scenes):
    teacher, images = build("test_resnet"), batch_of(scenes).images

    def step(student=teacher, **change):
        return d.Distill(teacher, student, images, **{"weights": {"kd": 1.0}} | change)

    for change, message in (
        ({"weights": {"kl": 1.0}}, "weights name 'kl'; terms are cross_entropy, bce, kd"),
        ({"weights": {"kd": 0}}, r"weights\['kd'\] is 0; it must be above 0"),
        ({"weights": {}}, "weights are empty"),
        ({"method": "occlusion"}, "method is 'occlusion'; it must be one of gradcam, ixg, bcos, weights"),
        ({"every": 0}, "every is 0; it must be at least 1"),
        ({"every": 2, "weights": {"e2kd": 1.0}}, "every is 2, but e2kd is the only term"),
        ({"temperature": -1}, "temperature is -1; it must be above 0"),
        ({"count": 0}, "count is 0; it must be at least 1"),
        ({"mixup": -1}, "mixup is -1; it must be 0 or above"),
        ({"mixup": 1, "weights": {"dkd": 1.0}}, "mixup is 1, but dkd asks for one label an image"),
        ({"weights": {"crd": 1.0}}, "crd needs count"),
        ({"student": models.build("test_resnet", 3)}, "student and teacher have 3 and 10 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            step(**change)
    with pytest.raises(ValueError, match="mixup is 1, but what a teacher said of single images"):
        d.Distill(None, teacher, images, {"kd": 1.0}, mixup=1)


def test_mixup_shows_both_the_same_mixtures_and_mixes_the_labels(scenes):
    teacher, student, batch = build("test_resnet").eval(), build("test_resnet", 1).eval(), batch_of(scenes)
    step = d.Distill(teacher, student, batch.images, {"cross_entropy": 1.0, "kd": 1.0, "e2kd": 1.0}, mixup=0.5)
    seen = []
    for network in (student, step.teachers[0]):
        network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(5)
    terms = step(student, batch)
    torch.manual_seed(5)
    share = torch.distributions.Beta(torch.tensor([0.5]), torch.tensor([0.5])).sample().item()
    assert 0.01 < share < 0.99

    def mixed(x):
        return share * x + (1 - share) * x.roll(1, 0)

    assert len(seen) == 2 and all(torch.allclose(images, mixed(batch.images), atol=1e-6) for images in seen)
    with torch.no_grad():
        logits = student(mixed(batch.images))
    wanted = -(mixed(batch.labels.float()) * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(terms["cross_entropy"], wanted, atol=1e-5)
    assert "mixup=0.5" in step.extra_repr()
    assert "mixup" not in d.Distill(teacher, student, batch.images, {"kd": 1.0}).extra_repr()


def test_a_student_learns_its_teacher(scenes):
    teacher, student = build("test_resnet").eval(), build("test_resnet", 1)
    batch = batch_of(scenes)
    step = d.Distill(teacher, student, batch.images, {"kd": 1.0, "e2kd": 1.0})
    history = training.fit(student, scenes, 30, 1e-2, 8, step=step)
    assert history[-1]["kd"] < 0.5 * history[0]["kd"] and history[-1]["e2kd"] < 0.8 * history[0]["e2kd"]
