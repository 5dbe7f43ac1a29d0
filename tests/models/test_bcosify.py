"""Pretrained networks as B-cos networks: equal at B = 1, complete at every B, with exact gradients of maps."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from e2lib import explain, models
from e2lib.attribution import dynamic_weights
from e2lib.models.bcosify import Activation, BatchNorm2d, Conv2d, Linear
from tests.attribution.finite import assert_exact

SIZE = 64
NETWORKS = ["efficientnet_lite0", "test_efficientnet", "test_resnet", "densenet121", "mobilenetv3_small_050"]
NETWORKS += ["test_convnext", "shufflenet_v2_x0_5", "regnetz_005", "own"]


def own(num_classes):
    """Groups that widen, a padding of three, no norm behind one convolution, and no bias before the logits."""
    body = [nn.Conv2d(3, 4, 7, 2, 3), nn.Hardswish(True), nn.Conv2d(4, 8, 3, groups=2, dilation=2), nn.BatchNorm2d(8)]
    return nn.Sequential(*body, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes, bias=False))


@pytest.fixture(autouse=True)
def with_own(monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, "own", own)


def build(name, num_classes=3):
    """The network in float64, with norms that have learned something, and two images."""
    torch.manual_seed(0)
    model = models.build(name, num_classes).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.5)
            nn.init.normal_(module.bias)
    return model, torch.rand(2, 3, SIZE, SIZE, dtype=torch.double)


def sharp(name, b=2):
    """The B-cos network with norms that are used to its b, so that its logits are no zeros; and two images."""
    model, images = build(name)
    model = models.sharpen(models.bcosify(model), b)
    for norm in model.modules():
        if isinstance(norm, BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm in model.modules():
        if isinstance(norm, BatchNorm2d):
            norm.running_var.clamp_(min=1e-4)  # two images leave channels without any, which make rounding large
    return model.eval(), images


@pytest.mark.parametrize("name", NETWORKS)
def test_at_b_1_the_network_is_what_it_was(name):
    model, images = build(name)
    twin = models.bcosify(model)
    assert twin.is_bcos and twin.logit_bias == -math.log(2) and twin.depths == model.depths
    assert [*twin.preprocess(images).shape] == [2, 6, SIZE, SIZE]
    torch.testing.assert_close(twin(images), model(images))
    assert not torch.allclose(models.sharpen(twin, 1.5)(images), model(images))


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_contributions_are_complete_with_biases(name, b):
    model, images = sharp(name, b)
    logits, w = dynamic_weights(model, images, [0, 2])
    chosen = logits.gather(1, torch.tensor([[0], [2]]))[:, 0] - model.logit_bias
    torch.testing.assert_close((w * model.preprocess(images)).sum((1, 2, 3)), chosen)
    maps = explain(model, images, [0, 2], "bcos").maps
    torch.testing.assert_close(maps.sum((1, 2, 3)), chosen)
    assert chosen.abs().min() > 0


@pytest.mark.parametrize("at", ["Mid2", "Final"])
def test_contributions_are_complete_at_every_depth(at):
    model, images = sharp("test_efficientnet")
    logits, maps = explain(model, images, [0, 2], "bcos", at, resize=False)
    torch.testing.assert_close(maps.sum((1, 2, 3)) + model.logit_bias, logits[[0, 1], [0, 2]])


@pytest.mark.parametrize("b", [1, 2])
def test_inputs_account_for_a_bias_by_their_squares(b):
    layer = nn.Conv2d(2, 3, (1, 2)).double()
    nn.init.zeros_(layer.weight)
    layer.__class__, layer.b, layer.detach = Conv2d, b, True
    x = torch.tensor([3.0, 4.0, 0.0, 12.0], dtype=torch.double).view(1, 2, 1, 2).requires_grad_()
    out = layer(x)
    torch.testing.assert_close(out[0, :, 0, 0], layer.bias)
    (gradient,) = torch.autograd.grad(out[0, 1, 0, 0], x)
    torch.testing.assert_close((x * gradient).flatten(), layer.bias[1] * torch.tensor([9, 16, 0, 144]).double() / 169)
    assert layer(0 * x).isfinite().all()


@pytest.mark.parametrize("at", ["Input", "Final"])
@pytest.mark.parametrize("b", [2, 1.5])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_resnet"])
def test_maps_have_exact_gradients(name, b, at):
    model, images = sharp(name, b)
    for method in ("bcos", "ixg"):

        def value(create_graph=False, method=method):
            return explain(model, images, [0, 2], method, at, create_graph).maps.square().sum().sqrt()

        assert_exact(model, value, lambda: value(True))


def test_a_network_in_training_mode_learns_the_same_while_it_explains():
    model, images = sharp("test_efficientnet")
    found = []
    for explained in (False, True):
        net = copy.deepcopy(model).train()
        how = {"create_graph": True, "keep_modes": True}
        logits = explain(net, images, [0, 2], "bcos", **how).logits if explained else net(images)
        logits.square().sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers()))
    for name in (name for name in found[0] if not name.endswith("num_batches_tracked")):
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "test_convnext", "densenet121"])
def test_split_makes_the_network(name):
    model, images = sharp(name)
    trunk, head = models.split(model, SIZE)
    torch.testing.assert_close(head(trunk(images)), model(images))
    here, there = explain(head, trunk(images), 1, "bcos", "Final").maps, explain(model, images, 1, "bcos", "Final").maps
    torch.testing.assert_close(here, there)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (2, 2, 1), (4, 2, 2)])
@pytest.mark.parametrize("b", [1, 1.5, 2, 3])
def test_a_convolution_is_the_formula(b, groups, stride, dilation, same):
    layer = nn.Conv2d(4, 8, 3, stride, 0 if same else 1, dilation, groups).double()
    layer.__class__, layer.same, layer.b = Conv2d, same, b
    x = torch.randn(2, 4, 9, 9, dtype=torch.double)
    out = layer(x)
    missing = max((out.shape[2] - 1) * stride + 2 * dilation + 1 - 9, 0)
    padded = F.pad(x, (missing // 2, missing - missing // 2) * 2) if same else x
    patches = F.unfold(padded, 3, dilation, 0 if same else 1, stride).unflatten(1, (groups, -1))  # (2, G, n, cells)
    w = layer.weight.flatten(1).unflatten(0, (groups, -1))  # (G, 8 / G, n)
    linear = torch.einsum("gon,bgnc->bgoc", w, patches)
    cosine = linear / w.norm(dim=2)[None, :, :, None] / (patches.square().sum(2, keepdim=True) + 1e-6).sqrt()
    expected = (linear * cosine.abs() ** (b - 1)).flatten(1, 2) + layer.bias[:, None]
    torch.testing.assert_close(out.flatten(2), expected)


def test_a_linear_layer_by_hand():
    layer = nn.Linear(2, 1)
    layer.weight.data, layer.bias.data = torch.tensor([[3.0, 4.0]]), torch.tensor([2.0])
    layer.__class__, layer.b = Linear, 2
    x = torch.tensor([[5.0, 12.0], [4.0, -3.0]])
    expected = 63 * 63 / (5 * 13) + 2  # w · x = 63, |w| = 5, |x| = 13; the other x is orthogonal to w
    torch.testing.assert_close(layer(x), torch.tensor([[expected], [2.0]]))


@pytest.mark.parametrize("training", [False, True])
def test_a_norm_that_explains_computes_the_same(training):
    plain, x = nn.BatchNorm2d(2).double(), torch.randn(3, 2, 4, 4, dtype=torch.double) + 1
    nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    norm = copy.deepcopy(plain).train(training)
    norm.__class__, norm.detach = BatchNorm2d, True
    torch.testing.assert_close(norm(x), plain.train(training)(x))
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


@pytest.mark.parametrize("function", [nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish])
def test_an_activation_is_a_weight_times_its_input(function):
    layer = Activation(function())
    x = torch.tensor([-7.0, -1.0, 0.0, 2.0, 9.0], requires_grad=True)
    plain = layer(x)
    layer.detach = True
    torch.testing.assert_close(layer(x), plain)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(x * gradient, plain)


def test_a_file_of_the_fitted_network_is_built_by_its_name(tmp_path):
    torch.manual_seed(0)
    fitted = models.bcosify(models.build("efficientnet_lite0", 7), 2).half()
    models.save(fitted, tmp_path / "fitted.safetensors")
    model = models.build("bcos_efficientnet_lite0", 7, tmp_path / "fitted.safetensors")
    for name, tensor in fitted.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, check_dtype=False)
    other = models.build("bcos_efficientnet_lite0", 4, tmp_path / "fitted.safetensors")
    assert torch.equal(other.net.conv_head.weight, model.net.conv_head.weight) and other(
        torch.rand(1, 3, 64, 64)
    ).shape == (1, 4)
    model = models.train_head_only(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "net.classifier.0.weight",
        "net.classifier.0.bias",
    ]


class Wrong(nn.Sequential):
    """It adds something to what its layers compute."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.build("test_vit", 3), "'blocks.0.attn' is a Attention; bcosify knows convolutions"),
        (lambda: models.build("convnextv2_atto", 3), "'stages.0.blocks.0.mlp.grn' is a GlobalResponseNorm"),
        (lambda: models.build("resnetv2_50d_gn", 3), "'stem.norm1' is a GroupNormAct"),
        (lambda: models.build("deit_tiny_distilled_patch16_224", 3), "it must be of one classifier"),
        (lambda: models.build("bcos_scenes", 3), "no B-cos network"),
        (lambda: models.build("resnet10t", 1), "two classes or more"),
        (lambda: nn.Linear(2, 2), "model is 'Linear'; it must be of models.build"),
        (lambda: models.Model("wrong", 3, Wrong(*own(3))), "linear for a given image; its contributions miss"),
        (lambda: models.Model("two", 3, nn.Sequential(nn.Conv2d(3, 3, 1), *own(3))), "of one convolution of RGB"),
    ],
)
def test_other_networks_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        models.bcosify(make())


def test_b_is_checked():
    with pytest.raises(ValueError, match="b is 0.5; it must be at least 1"):
        models.sharpen(models.bcosify(models.build("own", 3)), 0.5)
