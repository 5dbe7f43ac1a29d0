"""The distilling step: every term on every kind of network, what is refused, and terms of one's own."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.utils.checkpoint
import torchvision
from torch import nn

from e2lib import distillation as d
from e2lib import models, training
from e2lib.attribution import METHODS, against_others, dynamic_weights, explain
from e2lib.datasets import Scenes, collate


@pytest.fixture(scope="module")
def scenes():
    return Scenes("train", 8, 64, objects=1)


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
    if (term, pair[1]) in EXCEPT:
        with pytest.raises(ValueError, match="class_maps: 'test_vit' must average"):
            d.Distill(teacher, student, batch.images, **how)
        return
    step = d.Distill(teacher, student, batch.images, **how)
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
    assert not torch.equal(*(x.learned["fitnet"].convolution.weight for x in (learned, untrained)))


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
    assert step.learned["crd"].embed[1].weight.grad.any()
    one = collate([scenes[0]])
    assert step(student.eval(), one)["crd"] == 0
    white = replace(batch, images=torch.ones(8, 3, 112, 112))
    other = d.Distill(teacher, student, white.images, {"e2kd": 1.0}, teacher_size=96)
    assert other._for_teacher(white.images).max() <= 1 and other(student, white)["e2kd"].isfinite()


def test_a_training_is_known_by_its_teacher(scenes):
    images, student = batch_of(scenes).images, build("test_resnet", 1)
    names = {repr(d.Distill(build("test_resnet", seed), student, images, {"kd": 1.0})) for seed in (0, 0, 2)}
    assert len(names) == 2


def test_a_training_is_known_by_the_functions_of_its_terms(scenes, monkeypatch):
    teacher, images, names = build("test_resnet"), batch_of(scenes).images, []
    for scale in (1, 1, 2):
        monkeypatch.setitem(d.TERMS, "mine", d.Term(lambda student, scale=scale: scale * student))
        names.append(repr(d.Distill(teacher, teacher, images, {"mine": 1.0})))
    assert names[0] == names[1] != names[2]
    first, other = (repr(d.Distill(teacher, teacher, images, {"mine": 1.0, "e2kd": 1.0})) for _ in range(2))
    assert first == other
    monkeypatch.setitem(METHODS, "gradcam", METHODS["ixg"])
    assert repr(d.Distill(teacher, teacher, images, {"mine": 1.0, "e2kd": 1.0})) != first


def test_a_distributed_student_is_refused(scenes, tmp_path):
    student, batch = build("test_resnet"), batch_of(scenes)
    step = d.Distill(build("test_resnet", 1), student, batch.images, {"kd": 1.0})
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"DistributedDataParallel\(training.StepModule\(net, step\)\)"):
            step(nn.parallel.DistributedDataParallel(student), batch)
    finally:
        torch.distributed.destroy_process_group()


def test_features_of_the_image_itself_are_refused(scenes, monkeypatch):
    monkeypatch.setitem(d.TERMS, "means", d.Term(means, "features", ["Input"]))
    net = models.wrap(torchvision.models.resnet18(num_classes=10), {"Final": "layer4"})
    with pytest.raises(ValueError, match="at is 'Input', the image itself"):
        d.Distill(net, net, batch_of(scenes).images, {"means": 1.0})


def test_the_copy_of_the_teacher_takes_the_fast_memory_format(scenes):
    teacher = build("test_resnet")
    step = d.Distill(teacher, build("test_resnet", 1), batch_of(scenes).images, {"kd": 1.0})
    wide = [[p for p in net.parameters() if p.ndim == 4 and min(p.shape) > 1] for net in (teacher, *step.teachers)]
    assert all(p.is_contiguous() for p in wide[0]) and not any(p.is_contiguous() for p in wide[1]) and wide[1]


def test_class_maps_are_refused_where_more_than_an_average_follows(scenes):
    for name in ("test_convnext", "test_vit", "test_vit2"):
        model = build(name)
        with pytest.raises(ValueError, match=f"class_maps: '{name}' must average"):
            d.Distill(model, model, batch_of(scenes).images, {"cat_kd": 1.0})
    torch.nn.init.zeros_(model.net.head.weight)  # so that its logits are the bias, as an average's would be
    with pytest.raises(ValueError, match="class_maps: 'test_vit2' must average"):
        d.Distill(model, model, batch_of(scenes).images, {"cat_kd": 1.0})


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
        (
            {"weights": {"kl": 1.0}},
            "weights is {'kl': 1.0}; it must be a dict of one term or more of cross_entropy, bce",
        ),
        ({"weights": {"kd": 0}}, r"weights\['kd'\] is 0; it must be above 0"),
        ({"weights": {}}, "weights is {}; it must be a dict of one term or more of"),
        ({"method": "occlusion"}, "method is 'occlusion'; it must be one of .*, weights"),
        ({"every": 0}, "every is 0; it must be at least 1"),
        (
            {"every": 2, "weights": {"e2kd": 1.0}},
            "every is 2; it must be 1 where all terms compare explanations",
        ),
        ({"temperature": -1}, "temperature is -1; it must be above 0"),
        ({"count": 0}, "count is 0; it must be at least 1"),
        ({"mixup": -1}, "mixup is -1; it must be at least 0"),
        ({"weights": {"crd": 1.0}}, "count is None; it must be the number of training images, for crd"),
        (
            {"student": models.build("test_resnet", 3)},
            "number of classes is 3; it must be the teacher's, 10",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            step(**change)
    with pytest.raises(ValueError, match="teacher is None; it must be a network, for kd"):
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
    with pytest.raises(ValueError, match="dkd needs exactly one label per image"):
        d.Distill(teacher, student, batch.images, {"dkd": 1.0}, mixup=1)(student, batch)


def test_a_student_learns_its_teacher(scenes):
    teacher, student = build("test_resnet").eval(), build("test_resnet", 1)
    batch = batch_of(scenes)
    step = d.Distill(teacher, student, batch.images, {"kd": 1.0, "e2kd": 1.0})
    history = training.fit(student, scenes, 30, 1e-2, 8, step=step)
    assert history[-1]["kd"] < 0.5 * history[0]["kd"] and history[-1]["e2kd"] < 0.8 * history[0]["e2kd"]


class Shift(nn.Module):
    """A learned term: the distance of the mean features at the deepest depth, after a learned linear layer."""

    def __init__(self, widths):
        super().__init__()
        self.map = nn.Linear(*widths[-1])

    def forward(self, student, teacher):
        return (self.map(student[-1].mean((2, 3))) - teacher[-1].mean((2, 3))).square().mean(1)


def temperate(student, teacher, labels, temperature):
    return ((student - teacher).square() * labels).sum(1) / temperature


def means(student, teacher):
    return (student.mean((1, 2, 3)) - teacher.mean((1, 2, 3))).square()


def test_the_recipe_for_a_term(scenes, monkeypatch):
    teacher, student, batch = build("test_resnet"), build("test_efficientnet", 1).eval(), batch_of(scenes)
    monkeypatch.setitem(d.TERMS, "temperate", d.Term(temperate))
    monkeypatch.setitem(d.TERMS, "means", d.Term(means, "features", ["Mid1", "Mid3"]))
    monkeypatch.setitem(d.TERMS, "shift", d.Term(Shift, "features", ["Mid2", "Final"]))
    weights = {"temperate": 1.0, "means": 2.0, "shift": 3.0, "kd": 1.0}
    step = d.Distill(teacher, student, batch.images, weights, temperature=5.0)
    terms = step(student, batch)
    with torch.no_grad():
        here, there = student(batch.images), teacher.eval()(batch.images)
    assert terms["temperate"].item() == pytest.approx(temperate(here, there, batch.labels, 5.0).mean().item(), rel=1e-4)
    features = []
    for model in (student, teacher):
        layers = [model.get_submodule(model.depths[at]) for at in ("Mid1", "Mid3")]
        found = {}
        handles = [x.register_forward_hook(lambda m, i, o, found=found: found.setdefault(m, o)) for x in layers]
        with torch.no_grad():
            model(batch.images)
        features.append([found[x] for x in layers])
        for handle in handles:
            handle.remove()
    expected = sum(means(*pair).mean() for pair in zip(*features, strict=True))  # 2 times the mean of two depths
    assert terms["means"].item() == pytest.approx(expected.item(), rel=1e-4)
    before = copy.deepcopy(step.learned["shift"])
    training.fit(student, scenes, 1, 1e-2, 4, step=step)
    assert not torch.equal(before.map.weight, step.learned["shift"].map.weight)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="'temperate'"):
        d.Distill(teacher, student, batch.images, weights)


def test_what_a_term_compares_is_named():
    with pytest.raises(ValueError, match="of is 'pixels'; it must be logits, explanation, maps, features for"):
        d.Term(means, "pixels")
    with pytest.raises(ValueError, match="of is 'logits'; it must be features for .*Shift"):
        d.Term(Shift)


def test_networks_without_depths_are_told_of_wrap(scenes):
    torch.manual_seed(0)
    nets = [torchvision.models.resnet18(num_classes=10) for _ in range(2)]
    batch = batch_of(scenes)
    assert d.Distill(*nets, batch.images, {"kd": 1.0})(nets[1], batch)["kd"] > 0  # which asks for logits alone
    for term in ("at", "cat_kd", "crd"):
        with pytest.raises(ValueError, match=r"at is 'Final'; it must be .* models.wrap\(net, depths="):
            d.Distill(*nets, batch.images, {term: 1.0}, count=8)


class Dictionary(nn.Module):
    """A network that returns a dictionary and checkpoints its stages, as those of Hugging Face do."""

    def __init__(self, reentrant=False):
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.stage = nn.Conv2d(3, 8, 3, 4, 1), nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        features = torch.utils.checkpoint.checkpoint(self.stage, self.stem(x), use_reentrant=self.reentrant)
        return {"loss": None, "logits": self.head(features.mean((2, 3)))}


@pytest.mark.parametrize("term", d.TERMS)
def test_every_term_takes_wrapped_networks(term, scenes):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10)
    teacher = models.wrap(net, {f"Mid{k}": f"layer{k}" for k in (1, 2, 3)} | {"Final": "layer4"})
    student, batch = models.wrap(Dictionary(), {"Mid2": "stem", "Final": "stage"}), batch_of(scenes)
    values, grads = [], []
    for checkpoint in (False,) if term == "e2kd" else (True, False):  # explanations refuse checkpoints
        with pytest.MonkeyPatch.context() as patch:
            if not checkpoint:
                patch.setattr(torch.utils.checkpoint, "checkpoint", lambda stage, x, use_reentrant: stage(x))
            torch.manual_seed(1)
            step = d.Distill(teacher, student, batch.images, {term: 1.0}, method="ixg", at="Mid2", count=8)
            values.append(step(student, batch)[term])
            grads.append(torch.autograd.grad(values[-1], student.net.stem.weight)[0])
    assert values[0] > 0 and grads[0].any() and torch.equal(values[0], values[-1])
    assert torch.allclose(grads[0], grads[-1], atol=1e-7)


def test_features_without_a_graph_are_refused(scenes):
    student, batch = models.wrap(Dictionary(reentrant=True), {"Final": "stage"}), batch_of(scenes)
    step = d.Distill(build("test_resnet"), student, batch.images, {"crd": 1.0}, count=8)
    with pytest.raises(ValueError, match="Final is computed without a graph; checkpoint with use_reentrant=False"):
        step(student, batch)
    with torch.no_grad():
        assert step(student, batch)["crd"] > 0


def test_wrappers_of_torch_count_as_their_network(scenes):
    teacher, student, batch = build("test_resnet"), build("test_resnet", 1).eval(), batch_of(scenes)
    weights = {"kd": 1.0, "e2kd": 1.0, "at": 1.0, "cat_kd": 1.0}
    expected = d.Distill(teacher, student, batch.images, weights)(student, batch)
    for wrapped in (torch.optim.swa_utils.AveragedModel(teacher), nn.DataParallel(teacher)):
        found = d.Distill(wrapped, student, batch.images, weights)(nn.DataParallel(student), batch)
        assert all(found[name].item() == pytest.approx(value.item(), rel=1e-4) for name, value in expected.items())


def test_terms_are_float32_under_autocast(scenes):
    teacher, student, batch = build("test_resnet"), build("test_resnet", 1).eval(), batch_of(scenes)
    step = d.Distill(teacher, student, batch.images, {name: 1.0 for name in d.TERMS}, count=8)
    expected = step(student, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(student, batch)
    assert all(value.dtype == torch.float32 for value in found.values())
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=0.1, abs=0.02), name


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_images_of_other_classes_teach_what_asks_for_no_label(mixup, scenes):
    teacher, student = (models.build("resnet18", 7) for _ in range(2))  # scenes have ten classes
    batch = batch_of(scenes)
    step = d.Distill(teacher, student, batch.images, {"kd": 1.0, "e2kd": 1.0}, mixup=mixup)
    assert all(term.isfinite() and term > 0 for term in step(student, batch).values())
    with pytest.raises(ValueError, match="the network gives 7 logits"):
        d.Distill(teacher, student, batch.images, {"cross_entropy": 1.0}, mixup=mixup)(student, batch)
