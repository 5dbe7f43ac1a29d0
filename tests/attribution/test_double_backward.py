"""Second derivatives: those of torch, in a fast form, and dynamic weights held fixed."""

from functools import partial
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from bcos.common import explanation_mode
from torch import nn

from e2lib.attribution import Exact, double_backward, explain
from tests.attribution.finite import assert_exact, parameter_gradient, random_direction
from tests.attribution.networks import SIZE, batch, build, either_sign


@pytest.mark.parametrize(
    ("name", "method", "at"), [("resnet", "gradcam", "Final"), ("bcos_cnn", "bcos", "Input"), ("resnet", "ixg", "Mid2")]
)
def test_parameter_gradients_are_exact_in_train_mode_too(name, method, at):
    model, (images, _) = build(name).train(), batch()
    readout = torch.randn(2, 2, SIZE, SIZE, dtype=torch.double)

    def value(create_graph=False):
        return (explain(model, images, either_sign(), method, at, create_graph, keep_modes=True).maps * readout).sum()

    assert_exact(model, value, lambda: value(create_graph=True))
    assert model.training


def test_detaching_in_the_forward_pass_gives_the_same_map_but_another_gradient():
    model, (images, targets) = build("bcos_cnn").eval(), batch()
    direction, readout = random_direction(model), torch.randn(2, 1, SIZE, SIZE, dtype=torch.double)
    exact = explain(model, images, targets[:, 0], "bcos", create_graph=True).maps
    encoded = model.preprocess(images).requires_grad_()
    with explanation_mode(model):
        score = model.net(encoded)[torch.arange(2), targets[:, 0]].sum()
        (w,) = torch.autograd.grad(score, encoded, create_graph=True)
    package = (encoded * w).sum(1, keepdim=True)
    torch.testing.assert_close(package, exact)
    right = parameter_gradient(model, (exact * readout).sum(), direction)
    wrong = parameter_gradient(model, (package * readout).sum(), direction)
    assert abs(wrong - right) > 0.1 * abs(right)


def test_task_loss_gradient_is_that_of_an_ordinary_forward():
    model, (images, targets) = build("bcos_cnn").eval(), batch()
    direction = random_direction(model)
    logits = explain(model, images, targets, "bcos", create_graph=True).logits
    torch.testing.assert_close(logits, model(images))
    ours = parameter_gradient(model, logits.square().sum(), direction)
    assert ours == pytest.approx(parameter_gradient(model, model(images).square().sum(), direction), rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((2, 4, 9, 7), (6, 4, 3, 3), dict(padding=1)),
        ((2, 4, 9, 8), (6, 4, 3, 2), dict(stride=(2, 3), padding=(1, 0), dilation=(1, 2))),
        ((2, 4, 8, 8), (4, 1, 3, 3), dict(stride=2, padding=1, groups=4)),
        ((2, 4, 5, 5), (6, 2, 1, 1), dict(groups=2)),
        ((2, 4, 9, 7), (6, 4, 3, 3), dict(padding="same")),
    ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_fast_convolution_has_torchs_first_and_second_derivatives(shape, weight, options, with_bias):
    inputs = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in (shape, weight, weight[:1])]
    same_derivatives(lambda x, w, b=None: F.conv2d(x, w, b, **options), inputs[: 2 + with_bias])


@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3)])
def test_the_fast_batch_norm_and_relu_have_torchs_first_and_second_derivatives(shape, affine):
    mean, var = torch.randn(3, dtype=torch.double), torch.rand(3, dtype=torch.double) + 0.1
    inputs = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in (shape, 3, 3)]
    same_derivatives(lambda x, *a: F.relu(F.batch_norm(x, mean, var, *a)), inputs[: 1 + affine])
    with Exact(twice=True) as mode:
        mode.found = True
        assert type(F.batch_norm(inputs[0], mean, var).grad_fn).__name__ == "_BatchNormBackward"
        assert type(F.relu(inputs[0].clone(), inplace=True).grad_fn).__name__ == "_ReLUBackward"


@pytest.mark.parametrize("kind", ["convolution", "batch norm"])
def test_weights_that_depend_on_the_explained_activations_are_explained_too(kind):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.double))

        def forward(self, x):
            weight = self.scale + x.mean((0, 2, 3))
            if kind == "convolution":
                return F.conv2d(x, weight.repeat(3, 1)[:, :, None, None]).mean((2, 3))
            return F.batch_norm(x, torch.zeros_like(weight), torch.ones_like(weight), weight).mean((2, 3))

    net, images = Own(), torch.rand(2, 3, 8, 8, dtype=torch.double)
    plain, trainable = (explain(net, images, torch.tensor([0, 2]), "ixg", create_graph=g).maps for g in (False, True))
    torch.testing.assert_close(trainable.detach(), plain)


def same_derivatives(function, inputs):
    """Those of `function` with and without the mode, for its first input, and of functions of these for all inputs."""

    def derivatives(mode):
        with mode:
            result = function(*inputs)
            mode.closed = True
            (first,) = torch.autograd.grad(result.pow(3).sum(), inputs[0], create_graph=True)
            mode.closed = False
        return result, first, *torch.autograd.grad(first.square().sum() + result.sin().sum(), inputs)

    fast, plain = Exact(twice=True), Exact(twice=True)
    fast.found = True
    for ours, theirs in zip(derivatives(fast), derivatives(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "at", "fewer"), [("resnet", "Input", 0), ("resnet", "Mid2", 8), ("bcos_cnn", "Input", 0)]
)
def test_what_follows_the_explained_layer_is_computed_the_fast_way(monkeypatch, name, at, fewer):
    fast, calls = double_backward._FORMS[F.conv2d], []
    monkeypatch.setitem(double_backward._FORMS, F.conv2d, lambda *args, **kw: calls.append(1) or fast(*args, **kw))
    model, (images, targets) = build(name), batch()
    images = images.float()
    model.float()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    explain(model, images, targets[:, 0], "bcos" if model.is_bcos else "ixg", at, create_graph=True)
    assert len(calls) == convolutions - fewer
    calls.clear()
    explain(model, images, targets[:, 0], "bcos" if model.is_bcos else "ixg", at)
    assert not calls


def test_bfloat16_gradients_of_maps_are_those_of_float32_within_its_precision():
    model, (images, targets) = build("resnet").float(), batch()
    weights = [p for p in model.parameters() if p.ndim == 4]
    found = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            maps = explain(model, images.float(), targets[:, 0], "ixg", create_graph=True).maps
        gradients = torch.autograd.grad(maps.float().square().sum().sqrt(), weights)
        found.append(torch.cat([g.flatten() for g in gradients]))
    assert F.cosine_similarity(*found, dim=0) > 0.98


# ---- what changes a tensor in place, and norms

IN_PLACE = {name: partial(getattr(F, name), inplace=True) for name in ("relu", "relu6", "hardsigmoid", "hardswish")}
IN_PLACE |= {
    name: partial(getattr(F, name), inplace=True) for name in ("silu", "mish", "elu", "leaky_relu", "hardtanh")
}
IN_PLACE |= {"relu_": torch.Tensor.relu_, "torch.relu_": torch.relu_, "sigmoid_": torch.Tensor.sigmoid_}
IN_PLACE |= {"module": nn.ReLU(inplace=True), "soft module": nn.Hardswish(inplace=True)}
IN_PLACE |= {
    "part": lambda x: F.relu(x[:, :2], inplace=True),
    "soft part": lambda x: F.hardswish(x[:, :2], inplace=True),
}
IN_PLACE |= {"sum": lambda x: x.add_(1), "product": lambda x: x.mul_(2)}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operations_change_what_other_branches_read_too(name):
    """Two branches read what the operation has changed; logits, maps and their gradients are those of torch alone."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, images):
            x = self.stem(images).clone()
            changed = IN_PLACE[name](x)
            return (self.conv(changed) + x).mean((2, 3)) if changed.shape == x.shape else self.conv(x).mean((2, 3))

    torch.manual_seed(0)
    net, images = Branches().double(), torch.rand(2, 3, 8, 8, dtype=torch.double).requires_grad_()
    logits = net(images)
    (gradient,) = torch.autograd.grad(logits[0, 1] + logits[1, 3], images, create_graph=True)
    maps = (images * gradient).sum(1, keepdim=True)
    for create_graph in (False, True):
        found = explain(net, images.detach(), [1, 3], create_graph=create_graph)
        torch.testing.assert_close(found.logits, logits)
        torch.testing.assert_close(found.maps, maps, rtol=1e-6, atol=1e-9)
    if "hardsigmoid" not in name:  # torch has no second derivative of it
        both = [torch.autograd.grad(x.square().sum(), net.stem.weight)[0] for x in (found.maps, maps)]
        torch.testing.assert_close(*both)


def normalised(x, dims, mean=None, var=None):
    mean = x.mean(dims, keepdim=True) if mean is None else mean
    var = x.var(dims, keepdim=True, unbiased=False) if var is None else var
    return (x - mean) / (var + 1e-5) ** 0.5


NORMS = {
    "batch, train": (lambda x: F.batch_norm(x, None, None, training=True), lambda x: normalised(x, (0, 2, 3))),
    "batch, eval": (
        lambda x: F.batch_norm(x, *[torch.full((x.shape[1],), v, dtype=torch.double) for v in (0.3, 2.0)]),
        lambda x: normalised(x, None, 0.3, 2.0),
    ),
    "instance": (F.instance_norm, lambda x: normalised(x, (2, 3))),
    "group": (lambda x: F.group_norm(x, 1), lambda x: normalised(x, (1, 2, 3))),
    "layer": (lambda x: F.layer_norm(x, x.shape[1:]), lambda x: normalised(x, (1, 2, 3))),
}


@pytest.mark.parametrize("shape", [(1, 4, 5, 3), (2, 1, 4, 3), (1, 1, 1, 5), (2, 4, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize("name", NORMS)
def test_norms_are_exact_whatever_follows_them(name, shape):
    if name == "instance" and shape[2:] == (1, 1) or name == "batch, train" and shape[0] * shape[2] * shape[3] == 1:
        pytest.skip("torch refuses one value per channel")
    own, by_hand = NORMS[name]
    for order in permutations(range(4)):
        for twice in (False, True):
            x, found = torch.randn(shape, dtype=torch.double, requires_grad=True), []
            weights = torch.randn([shape[d] for d in order], dtype=torch.double)
            for function in (own, by_hand):
                with Exact(twice=twice) as mode:
                    mode.found = twice
                    y = function(x).permute(order)
                    (first,) = torch.autograd.grad((y * weights + y**3).sum(), x, create_graph=True)
                found.append((first, *torch.autograd.grad(first.cos().sum(), x)))
            torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)
