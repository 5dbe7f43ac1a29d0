"""Input of every kind, drawn at random: the right value, or a ValueError that names the argument; nothing is changed.

A subject has axes (what the maps are, in which form they come, in which context, …), and each axis has kinds by name.
Each kind is tried several times, with random kinds of the other axes. Values are compared with definitions in float64.
"""

import copy
import dataclasses
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from e2lib import distillation, metrics, models
from e2lib.attribution import explain
from e2lib.datasets import Batch
from e2lib.guidance import LOSSES, Guide
from e2lib.metrics.localisation import NOTHING

NAN, INF, HIGH = float("nan"), float("inf"), torch.finfo(torch.float32).max
HEIGHT, WIDTH = 8, 6


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def corner(*shape):
    values = torch.zeros(shape)
    values[..., -1:, -1:] = 2.0
    return values


# The first kind of each axis is the plain one. Values are functions of a shape, forms functions of a tensor.
VALUES = {
    "signed": random,
    "positive": lambda *s: random(*s).abs(),
    "negative": lambda *s: -random(*s).abs(),
    "zero": lambda *s: torch.zeros(s),
    "minus zero": lambda *s: -torch.zeros(s),
    "constant": lambda *s: torch.full(s, 3.0),
    "one pixel": corner,
    "large negative peak": lambda *s: random(*s) - 1000 * corner(*s),
    "denormal": lambda *s: random(*s) * 1e-41,
    "tiny": lambda *s: random(*s) * 1e-25,
    "huge": lambda *s: random(*s) * 1e37,
    "largest": lambda *s: torch.full(s, HIGH),
    "NaN": lambda *s: random(*s).where(random(*s, seed=1) < 1, NAN),
    "all NaN": lambda *s: torch.full(s, NAN),
    "infinite": lambda *s: random(*s).where(random(*s, seed=1) < 1, INF),
    "minus infinite": lambda *s: torch.full(s, -INF),
}
FORMS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "of a larger one": lambda x: torch.cat([x[:, :1] * 2, x], 1)[:, 1:],
    "expanded": lambda x: x[:1].expand_as(x),
    "wants a gradient": lambda x: x.clone().requires_grad_(),
    "within a graph": lambda x: x.clone().requires_grad_() * 1,
    "of inference mode": lambda x: torch.inference_mode()(torch.clone)(x),
    "float64": torch.Tensor.double,
    "float16": torch.Tensor.half,
    "bfloat16": torch.Tensor.bfloat16,
    "integers": lambda x: x.nan_to_num(0, 0, 0).clamp(-99, 99).long(),
    "complex": lambda x: x.to(torch.complex64),
    "bool": lambda x: x > 0,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
}
FORMS_2D = {name: form for name, form in FORMS.items() if name != "channels last"}
CONTEXTS = {
    "gradients": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
BATCHES = {"three images": 3, "one image": 1, "no image": 0}
CELLS = {"cells as pixels": (HEIGHT, WIDTH), "few": (3, 2), "one": (1, 1), "more than pixels": (12, 9), "none": (0, 2)}
MASKS = {
    "box": lambda *s: random(*s, seed=2) > 0,
    "empty": lambda *s: torch.zeros(s).bool(),
    "full": lambda *s: torch.ones(s).bool(),
    "transposed": lambda *s: (random(*s, seed=2) > 0).transpose(2, 3).contiguous().transpose(2, 3),
    "soft": lambda *s: random(*s, seed=2).sigmoid(),
    "soft in float64": lambda *s: random(*s, seed=2).sigmoid().double(),
    "soft in float16": lambda *s: random(*s, seed=2).sigmoid().half(),
    "of 0 and 255": lambda *s: (random(*s, seed=2) > 0) * 255.0,
    "below zero": lambda *s: -torch.ones(s),
    "NaN": lambda *s: torch.full(s, NAN),
    "integers": lambda *s: torch.ones(s).long(),
    "without channel": lambda *s: torch.ones(s[0], *s[2:]).bool(),
    "of another batch": lambda *s: torch.ones(s[0] + 1, *s[1:]).bool(),
    "without pixels": lambda *s: torch.ones(*s[:2], 0, s[3]).bool(),
}


@contextmanager
def nothing_changes(*tensors, network=None):
    """Tensors, random numbers to come, and a network's state, modes, hooks and gradients stay as they are."""

    def state():
        found = [x.detach().clone().nan_to_num(7) for x in tensors if x.dtype not in (torch.bool, torch.complex64)]
        found.append(torch.get_rng_state())
        if network is not None:
            found += [x.clone() for x in network.state_dict().values()]
            counts = [[m.training, len(m._forward_hooks), len(m._forward_pre_hooks)] for m in network.modules()]
            found.append(torch.tensor(counts))
            assert all(p.grad is None and p.requires_grad for p in network.parameters())
        return found

    before = state()
    yield
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


@contextmanager
def refused(wrong):
    """A ValueError that names one of the `wrong` arguments, if there is any."""
    with pytest.raises(ValueError, match="|".join(wrong)) if wrong else nullcontext():
        yield


def good(maps):
    right = maps.ndim == 4 and maps.is_floating_point() and 0 not in maps.shape[2:]
    return right and bool(maps.isfinite().all())


def assert_near(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found.detach().double(), expected, rtol=tolerance, atol=tolerance)


# ---- losses


def divided(x, above=NOTHING):
    peak = x.abs().amax((2, 3), keepdim=True)
    return torch.where(peak > above, x / peak, 0)


def loss_by_definition(loss, maps, masks):
    maps, masks = maps.detach().double(), masks.double()
    bigger = lambda x: F.interpolate(x, masks.shape[2:], mode="bilinear")  # noqa: E731
    filled, dims = bigger(divided(maps.clamp(min=0))), (1, 2, 3)
    if loss == "energy":
        positive = divided(bigger(maps).clamp(min=0))
        return 1 - (positive * masks).sum(dims) / positive.sum(dims).clamp(min=1e-9)
    if loss == "l1":
        return (masks - filled).abs().mean(dims)
    if loss == "ppce":
        return -(masks * filled.clamp(min=1e-6).log()).sum(dims) / masks.sum(dims).clamp(min=1e-9)
    return (bigger(divided(maps)) ** 2 * (1 - masks)).sum(dims)


def losses(loss, maps, form, cells, masks, batch, context):
    maps, masks = form(maps(batch, 1, *cells)), masks(batch, 1, HEIGHT, WIDTH)
    soft = masks.is_floating_point() and bool(((masks >= 0) & (masks <= 1)).all())
    wrong = [] if good(maps) else ["maps"]
    if masks.shape != (batch, 1, HEIGHT, WIDTH) or not (soft or masks.dtype == torch.bool):
        wrong.append("masks")
    with nothing_changes(maps, masks), refused(wrong):
        with context():
            value = LOSSES[loss](maps, masks)
        assert value.shape == (batch,)
        assert_near(value, loss_by_definition(loss, maps, masks))
        if value.requires_grad:
            assert torch.autograd.grad(value.sum(), maps)[0].isfinite().all()


# ---- metrics of maps


def metric_by_definition(name, maps, masks):
    positive, masks = divided(maps.detach().double().clamp(min=0), 0), masks.double()
    if name in ("epg", "on_object_epg"):
        return (positive * masks).sum((2, 3)) / positive.sum((2, 3)).clamp(min=1e-9)
    if name == "iou":
        high = positive > 0.3
        return (high * masks).sum((2, 3)) / torch.maximum(high, masks).sum((2, 3)).clamp(min=1)
    if name == "pointing_game":
        return ((positive * masks).amax((2, 3)) > (positive * (1 - masks)).amax((2, 3))).double()
    ranks = []
    for flat in (maps.detach().double().flatten(2), random(*maps.shape, seed=5).double().flatten(2)):
        lower, same = ((flat[..., None] > flat[..., None, :]).sum(-1), (flat[..., None] == flat[..., None, :]).sum(-1))
        ranks.append(lower.double() + same / 2 - flat.shape[2] / 2)
    return (ranks[0] * ranks[1]).sum(2) / (ranks[0].norm(dim=2) * ranks[1].norm(dim=2)).clamp(min=1e-9)


LOCALISING = {
    "epg": metrics.epg,
    "iou": lambda maps, masks: metrics.iou(maps, masks, 0.3),
    "pointing_game": metrics.pointing_game,
    "on_object_epg": lambda maps, masks: metrics.on_object_epg(maps, torch.ones_like(masks), masks),
    "rank_correlation": lambda maps, masks: metrics.rank_correlation(maps, random(*maps.shape, seed=5)),
}


def localisation(metric, maps, form, cells, masks, batch, context):
    maps, masks = form(maps(batch, 2, *cells)), masks(batch, 2, *cells)
    wrong = [] if good(maps) else ["maps"]
    if metric != "rank_correlation" and (masks.shape != maps.shape or masks.dtype != torch.bool):
        wrong += ["masks", "boxes", "segments"]
    with nothing_changes(maps, masks), refused(wrong):
        with context():
            value = LOCALISING[metric](maps, masks)
        assert value.shape == (batch, 2)
        assert_near(value, metric_by_definition(metric, maps, masks))
        if metric != "rank_correlation":
            average = metrics.Average(LOCALISING[metric], metric)
            with context():
                average.update(maps, masks)
            kept = value[masks.flatten(2).any(2)]
            assert_near(average.compute(), kept.double().mean() if len(kept) else torch.zeros(()).double())


# ---- metrics of logits

LOGITS = {name: VALUES[name] for name in VALUES if name not in ("one pixel", "large negative peak")}
LOGITS |= {"so large that their sigmoid is 1": lambda *s: 100 + random(*s), "few values": lambda *s: random(*s).round()}
LABELS = {
    "one-hot": lambda b, c: F.one_hot(torch.arange(b) % c, c),
    "multi-hot": lambda b, c: (random(b, c, seed=3) > 0).byte(),
    "bool": lambda b, c: F.one_hot(torch.arange(b) % c, c).bool(),
    "float": lambda b, c: F.one_hot(torch.arange(b) % c, c).float(),
    "none": lambda b, c: torch.zeros(b, c).byte(),
    "minus one": lambda b, c: -torch.ones(b, c).long(),
    "smoothed": lambda b, c: torch.full((b, c), 0.1),
    "NaN": lambda b, c: torch.full((b, c), NAN),
    "classes": lambda b, c: torch.arange(b) % c,
    "of other classes": lambda b, c: F.one_hot(torch.arange(b) % c, c + 1),
}
CLASSES = {"three classes": 3, "one class": 1}


def score_by_definition(metric, logits, labels):
    logits, labels = logits.detach().double().numpy(), labels.numpy() == 1
    if metric == "F1":
        hits = ((logits > 0) & labels).sum()
        total = (logits > 0).sum() + labels.sum()
        return 2 * hits / total if total else 0.0
    if metric == "accuracy":
        return float((logits.argmax(1) == labels.argmax(1)).mean()) if len(labels) else None
    found = []
    for score, label in zip(logits.T, labels.T, strict=True):
        gains = [(label[score == s].sum() / label.sum()) * label[score >= s].mean() for s in set(score) if label.any()]
        found += [sum(gains)] if label.any() else []
    return float(np.mean(found)) if found else 0.0


def classifier(metric, logits, form, labels, classes, batch, context):
    logits, labels = form(logits(batch, classes)), labels(batch, classes)
    fits = labels.shape == logits.shape and bool(((labels == 0) | (labels == 1)).all())
    one = fits and bool((labels.sum(1) == 1).all())
    wrong = [] if logits.is_floating_point() and not logits.isnan().any() else ["logits"]
    wrong += [] if (one if metric == "accuracy" else fits) else ["labels"]
    with nothing_changes(logits, labels), refused(wrong), context():
        if metric == "accuracy":
            measured = metrics.GroupAccuracy(["all"])
            measured.update(logits, labels, torch.zeros(batch).long())
            found = measured.compute().get("accuracy")
        else:
            measured = {"F1": metrics.F1, "mAP": metrics.MeanAP}[metric]()
            measured.update(logits, labels)
            found = measured.compute()
        expected = score_by_definition(metric, logits, labels)
        assert (found is None and expected is None) or found.item() == pytest.approx(expected, abs=1e-5)


# ---- explain


class Changing(nn.Module):
    """A network that changes its images, and what its layers give, in place; its norm is in eval mode, its dropout not.

    Two values of a channel of the norm differ by more than rounding, so that maps can be compared in any precision.
    """

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.dropout, self.head = nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Linear(4, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.norm.eval()

    def forward(self, images):
        images -= 0.5
        x = self.stem(images)
        x = self.dropout(self.relu(self.norm(x)))
        return self.head(x.flatten(2).transpose(1, 2).mean(1))


def built():
    torch.manual_seed(0)
    return models.build("test_resnet", 3).train()


def changing():
    torch.manual_seed(0)
    return Changing()


NETWORKS = {"own": changing, "built": built, "wrapped": lambda: models.wrap(changing(), {"Final": "stem"})}
PIXELS = {
    "in [0, 1]": lambda *s: random(*s).sigmoid(),
    "black": lambda *s: torch.zeros(s),
    "white": lambda *s: torch.ones(s),
    "in [0, 255]": lambda *s: random(*s).sigmoid() * 255,
    "normalised": random,
    "denormal": lambda *s: random(*s).abs() * 1e-41,
    "NaN": VALUES["NaN"],
    "infinite": VALUES["infinite"],
}
ONE, TWO = torch.eye(3)[1], torch.eye(3)[[0, 2]]  # weights of the logits
# Of a batch of b images: targets, and the weights (K, 3) of each image, or None where the targets are wrong.
TARGETS = {
    "classes": lambda b: (torch.ones(b).long(), ONE[None]),
    "a class": lambda b: (1, ONE[None]),
    "a NumPy number": lambda b: (np.int64(1), ONE[None]),
    "a tensor of one class": lambda b: (torch.tensor(1), ONE[None]),
    "a list": lambda b: ([1] * b, ONE[None]),
    "a range": lambda b: (range(1, 2) if b == 1 else [1] * b, ONE[None]),
    "an array": lambda b: (np.ones(b, np.int16), ONE[None]),
    "unsigned 8": lambda b: (torch.ones(b).byte(), ONE[None]),
    "unsigned 16": lambda b: (np.ones(b, np.uint16), ONE[None]),
    "expanded": lambda b: (torch.tensor(1).expand(b), ONE[None]),
    "of inference mode": lambda b: (torch.inference_mode()(torch.ones)(b).long(), ONE[None]),
    "two classes": lambda b: (torch.tensor([[0, 2]] * b).reshape(b, 2), TWO),
    "a function": lambda b: (lambda z: torch.ones(len(z)).long(), ONE[None]),
    "none": lambda b: (-1, torch.zeros(1, 3)),
    "weights": lambda b: (ONE.expand(b, 3), ONE[None]),
    "two weights": lambda b: (TWO.expand(b, 2, 3), TWO),
    "weights in float16": lambda b: (ONE.half().expand(b, 3), ONE[None]),
    "weights with a gradient": lambda b: (ONE.repeat(b, 1).requires_grad_(), ONE[None]),
    "too high": lambda b: (3, None),
    "too low": lambda b: (torch.full((b,), -2), None),
    "far too high": lambda b: (2**40, None),
    "None": lambda b: (None, None),
    "text": lambda b: ("cat", None),
    "a dict": lambda b: ({0: 1}, None),
    "ragged": lambda b: ([[0], [1, 2], [0]], None),
    "array of objects": lambda b: (np.array([None] * b), None),
    "array of texts": lambda b: (np.array(["a"] * b), None),
    "complex": lambda b: (torch.zeros(b).cfloat(), None),
    "bool": lambda b: (torch.ones(b).bool(), None),
    "floats for classes": lambda b: (torch.ones(b), None),
    "sparse": lambda b: (ONE.repeat(b, 1).to_sparse(), None),
    "no column": lambda b: (torch.zeros(b, 0).long(), None),
    "of another batch": lambda b: (torch.zeros(b + 1).long(), None),
    "weights of other classes": lambda b: (torch.ones(b, 4), None),
    "NaN weights": lambda b: (torch.full((max(b, 1), 3), NAN), None),
    "infinite weights": lambda b: (torch.full((max(b, 1), 3), INF), None),
    "one-hot integers": lambda b: (F.one_hot(torch.ones(max(b, 1)).long(), 3), None),
    "one-hot bytes": lambda b: (F.one_hot(torch.ones(max(b, 1)).long(), 3).byte(), None),
    "a function of None": lambda b: (lambda z: None, None),
}
METHODS = ("ixg", "gradcam", "integrated_gradients", "gradcam++", "occlusion", "gradient_shap", "bcos", "lime")
METHODS_KINDS = {name: name for name in METHODS}
HOW = {
    "detached": {},
    "create_graph": {"create_graph": True},
    "keep_modes": {"keep_modes": True},
    "cells": {"resize": False},
    "no steps": {"steps": 0},
}
PLACES = {"Input": "Input", "a module": "stem", "missing": "nowhere", "no map": "head"}


def map_by_definition(network, images, weights, at, method):
    """Logits and maps of `ixg` and `gradcam` in float64, by torch alone."""
    network, images = copy.deepcopy(network).double().eval(), images.detach().double().clone().requires_grad_()
    caught = [images]
    if at != "Input":
        network.get_submodule(at).register_forward_hook(
            lambda m, i, out: caught.append(out.clone()) or caught[-1].clone()
        )
    elif isinstance(network, models.Model):
        network.preprocess.register_forward_hook(lambda m, i, out: caught.append(out))
    logits, layer, maps = network(images.clone()), caught[-1], []
    for k in range(weights.shape[0]):
        (g,) = torch.autograd.grad((logits * weights[k]).sum(), layer, retain_graph=True)
        g = g.mean((2, 3), keepdim=True) if method == "gradcam" else g
        found = (layer * g).sum(1, keepdim=True)
        maps.append(found.relu() if method == "gradcam" else found)
    return logits.detach(), torch.cat(maps, 1).detach()


def explaining(network, images, form, batch, targets, method, how, at, context):
    network = network()
    images, (targets, weights) = form(images(batch, 3, 32, 32)), targets(batch)
    if context is CONTEXTS["autocast"] and images.is_floating_point():  # which casts from float32
        images = images.float()
    real, ours = images.is_floating_point(), isinstance(network, models.Model)
    if real and not ours:  # such a network may have any type; what it says of others is its own affair
        network.to(images.dtype)
    at = {"stem": "net.layer1", "head": "net.fc"}.get(at, at) if ours else at
    low, high = images.detach().double().aminmax() if real and batch else (torch.zeros(()),) * 2
    fits = low.isfinite() and high.isfinite() and (not ours or (low >= -1e-3 and high <= 1.001))
    same = not ours or context is CONTEXTS["autocast"] or images.dtype == torch.float32
    score = method in ("occlusion", "gradient_shap")
    graph = how.get("create_graph") and method not in ("ixg", "gradcam", "integrated_gradients", "bcos")
    wrong = [] if real and fits and same else ["images"]
    wrong += ["targets"] if weights is None else []
    wrong += (
        ["method"]
        if method in ("lime", "bcos") or graph or (score and (how.get("keep_modes") or at != "Input"))
        else []
    )
    wrong += ["method"] if "cam" in method and at == "Input" and not hasattr(network, "depths") else []
    wrong += ["at"] if at in ("nowhere", "head", "net.fc") else []
    wrong += ["steps"] if "steps" in how else []
    low_precision = context is CONTEXTS["autocast"] or images.dtype in (torch.float16, torch.bfloat16)
    if how.get("keep_modes"):
        network.eval()
    with nothing_changes(images, network=network), refused(wrong):
        with context():
            logits, maps = explain(network, images, targets, method, at, **({"steps": 2} | how))
        count = weights.shape[0]
        size = maps.shape[2:] if "resize" in how else (32, 32)
        assert logits.shape == (batch, 3) and maps.shape == (batch, count, *size)
        assert logits.isfinite().all() and maps.isfinite().all()
        assert maps.requires_grad == bool(how.get("create_graph")) and not (
            maps.is_inference() and "create_graph" in how
        )
        if how.get("create_graph") and batch:
            gradients = torch.autograd.grad(maps.double().square().sum(), list(network.parameters()), allow_unused=True)
            assert all(g is None or g.isfinite().all() for g in gradients)
        if method in ("ixg", "gradcam"):
            right, expected = map_by_definition(network, images, weights, at, method)
            if "resize" not in how:
                expected = F.interpolate(expected, size, mode="bilinear")
            assert_near(logits, right, 0.1 if low_precision else 1e-3)
            maps, scale = maps.detach().double(), expected.abs().max() if batch else 1
            if low_precision and batch and scale > 0:
                assert F.cosine_similarity(maps.flatten(), expected.flatten(), 0) > 0.9
            elif not low_precision and not (ours and images.std() < 0.01):  # equal pixels are ties of a maximum
                assert (maps - expected).abs().le(1e-3 * scale + 1e-12).all()


# ---- Guide

BOXES = {
    "one per image": lambda b: ([torch.tensor([[1.0, 1, 5, 4]])] * b, [torch.tensor([1])] * b),
    "none": lambda b: ([torch.zeros(0, 4)] * b, [torch.zeros(0).long()] * b),
    "one in all": lambda b: (
        [torch.tensor([[0.0, 0, 9, 9]])] + [torch.zeros(0, 4)] * (b - 1),
        [torch.tensor([2])] + [torch.zeros(0).long()] * (b - 1),
    ),
    "the whole image": lambda b: ([torch.tensor([[0.0, 0, 16, 16]])] * b, [torch.tensor([0])] * b),
    "a class too many": lambda b: ([torch.tensor([[1.0, 1, 5, 4]])] * b, [torch.tensor([3])] * b),
}
GUIDES = {
    "plain": {},
    "no weight": {"weight": 0.0},
    "absolute": {"absolute": True},
    "contrast": {"contrast": True},
    "outside": {"outside": True},
    "Grad-CAM": {"method": "gradcam", "at": "stem"},
    "keep_modes": {"keep_modes": True},
    "cross entropy": {"classification": "cross_entropy"},
    "segmentation": {"masks": "segmentation"},
    "a loss of batches": {"loss": lambda maps, masks: maps.mean()},
}
FLOAT_FORMS = {name: FORMS[name] for name in FORMS if name not in ("integers", "complex", "bool")}


def guiding(loss, guide, boxes, images, form, batch, context):
    network, (boxes, classes) = changing().eval(), boxes(max(batch, 1))
    network.dropout.p = 0.0
    images, labels = form(images(batch, 3, 16, 16)), F.one_hot(torch.arange(max(batch, 1)) % 3, 3).byte()
    if context is CONTEXTS["autocast"]:  # which casts from float32
        images = images.float()
    network.to(images.dtype)
    plain = Batch.of(torch.zeros(max(batch, 1), 3, 16, 16), labels, boxes, [c % 3 for c in classes])
    given = dataclasses.replace(plain, images=images, box_labels=classes)
    if not batch:
        given = dataclasses.replace(
            given, labels=labels[:0], boxes=[], box_labels=[], names=[], annotated=torch.ones(0).bool()
        )
    step, low = Guide(**({"loss": loss} | guide)), images.dtype in (torch.float16, torch.bfloat16)
    some = any(len(c) for c in classes) and "masks" not in guide and step.weight > 0
    wrong = [] if batch else ["batch"]
    wrong += ["images"] if some and not images.isfinite().all() else []
    wrong += ["targets", "classes"] if some and any((c == 3).any() for c in classes) else []
    wrong += ["loss"] if some and callable(guide.get("loss")) else []
    with nothing_changes(images, network=network), refused(wrong), torch.random.fork_rng([]):
        with context():
            terms = step(network, given)
        found = torch.stack([terms["classification"], terms["guidance"]]).detach()
        if not images.isfinite().all():  # without an explanation, the network says what it says
            return
        assert found.isfinite().all()
        twin = copy.deepcopy(network).double()
        expected = step(twin, dataclasses.replace(given, images=images.detach().double().clone()))
        tolerance = 0.05 if low or context is CONTEXTS["autocast"] else 1e-3
        assert_near(found[0], expected["classification"].detach().double(), tolerance)
        if not low and context is not CONTEXTS["autocast"]:
            assert_near(found[1], expected["guidance"].detach().double(), tolerance)


# ---- Distill's terms

TERMS = {
    name: getattr(distillation, name) for name in ("kd", "multi_label_kd", "dist", "e2kd", "at", "fitnet", "cat_kd")
}
FEATURES = {
    name: LOGITS[name] for name in LOGITS if name not in ("huge", "largest")
}  # whose squares are beyond float32
FEATURES |= {"large": lambda *s: random(*s) * 1e15}
PLAIN_FORMS = {name: FLOAT_FORMS[name] for name in FLOAT_FORMS if name != "channels last"}
SIZES = {"same": 0, "another width": 1, "another batch": 2, "another number of dimensions": 3}


def distilling(term, student, teacher, form, size, batch, context):
    maps = term in ("e2kd", "at", "fitnet", "cat_kd")
    shape = [batch, 2, 4, 4] if maps else [batch, 3]
    other = [shape, [batch, 5, *shape[2:]], [batch + 1, *shape[1:]], [*shape, 2]][size]
    student, teacher = form(student(*shape)), teacher(*other)
    finite = all(bool(x.isfinite().all()) for x in (student, teacher))
    fits = size == 0 or (size == 1 and term == "at")
    fits = fits and (batch > 0 or term != "dist")  # a mean over images
    wrong = [] if finite and fits else ["logits", "maps", "features"]
    with nothing_changes(student, teacher), refused(wrong):
        with context():
            value = TERMS[term](student, teacher)
        expected = TERMS[term](student.detach().double(), teacher.double())
        assert value.shape == expected.shape and (not batch or value.isfinite().all())


SUBJECTS = {
    "losses": (
        losses,
        dict(loss={n: n for n in LOSSES}, maps=VALUES, form=FORMS, cells=CELLS, masks=MASKS, batch=BATCHES),
    ),
    "metrics of maps": (
        localisation,
        dict(metric={n: n for n in LOCALISING}, maps=VALUES, form=FORMS, cells=CELLS, masks=MASKS, batch=BATCHES),
    ),
    "metrics of logits": (
        classifier,
        dict(metric={n: n for n in ("F1", "mAP", "accuracy")}, logits=LOGITS, form=FORMS_2D, labels=LABELS)
        | dict(classes=CLASSES, batch=BATCHES),
    ),
    "explain": (
        explaining,
        dict(network=NETWORKS, images=PIXELS, form=FORMS, batch=BATCHES, targets=TARGETS, method=METHODS_KINDS)
        | dict(how=HOW, at=PLACES),
    ),
    "Guide": (
        guiding,
        dict(loss={n: n for n in LOSSES}, guide=GUIDES, boxes=BOXES, images=PIXELS, form=FLOAT_FORMS, batch=BATCHES),
    ),
    "terms of Distill": (
        distilling,
        dict(
            term={n: n for n in TERMS}, student=FEATURES, teacher=FEATURES, form=PLAIN_FORMS, size=SIZES, batch=BATCHES
        ),
    ),
}
for _, axes in SUBJECTS.values():
    axes["context"] = CONTEXTS
EXAMPLES = 3  # of each kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_right_value_or_an_error_that_names_the_argument(subject):
    check, axes = SUBJECTS[subject]
    tried = set()
    drawn = {axis: st.just(next(iter(kinds))) | st.sampled_from(list(kinds)) for axis, kinds in axes.items()}
    for axis, kinds in axes.items():
        for kind in kinds:

            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(**(drawn | {axis: st.just(kind)}))
            def one(**names):
                check(**{axis: axes[axis][name] for axis, name in names.items()})
                tried.update(names.items())

            one()
    print(f"{subject}: {len(tried)} kinds tried")
    assert tried == {(axis, kind) for axis, kinds in axes.items() for kind in kinds}


def test_the_kinds_are_many():
    kinds = {(id(table), kind) for _, axes in SUBJECTS.values() for table in axes.values() for kind in table}
    print(f"{len(kinds)} distinct kinds in all")
    assert len(kinds) >= 150
