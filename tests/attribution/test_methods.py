"""Methods: exact parameter gradients of each, identities, equality with captum."""

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from e2lib.attribution import METHODS, Explanation, Method, explain, trainable
from tests.attribution.finite import assert_exact
from tests.attribution.networks import NETWORKS, SIZE, batch, build, either_sign

CASES = [
    (name, method, at)
    for name in NETWORKS
    for method in trainable()
    for at in ("Input", "Mid2", "Final")
    if (method != "bcos" or name.startswith("bcos")) and (at != "Mid2" or name in ("convnext", "bcos_cnn"))
    if name != "bcos_vit" or (at == "Input" and method in ("ixg", "bcos")) or (at == "Final" and method == "gradcam")
]


@pytest.mark.parametrize(("name", "method", "at"), CASES)
def test_parameter_gradient_of_the_map_equals_finite_differences(name, method, at):
    model, (images, _) = build(name), batch()
    readout = torch.randn(2, 2, SIZE, SIZE, dtype=torch.double)

    def value(create_graph=False):
        return (explain(model, images, either_sign(), method, at, create_graph, steps=2).maps * readout).sum()

    assert_exact(model, value, lambda: value(create_graph=True))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "attention_rollout"])
def test_every_method_gives_a_finite_map_on_a_cnn(method):
    name = "bcos_cnn" if method == "bcos" else "lite"
    model, (images, targets) = build(name).float(), batch(2)
    at = "Final" if method.startswith("gradcam") else "Input"
    out = explain(model, images.float(), targets, method, at, steps=2)
    assert isinstance(out, Explanation)
    assert out.maps.shape == (2, 2, SIZE, SIZE) and out.maps.isfinite().all() and not out.maps.requires_grad
    assert out.maps[0].abs().max() > 0 and out.maps[1, 1].abs().max() == 0


def test_integrated_gradients_are_complete():
    model, (images, _) = build("resnet").eval(), batch()
    target = torch.tensor([[0], [2]])
    logits, maps = explain(model, images, target, "integrated_gradients", steps=64)
    difference = (logits - model.net(torch.zeros_like(images))).gather(1, target)
    # The error left is that of the quadrature: rectifiers make the integrand jump.
    torch.testing.assert_close(maps.sum((2, 3)), difference, rtol=1e-2, atol=1e-3)


def test_one_step_of_integrated_gradients_is_the_gradient_at_half_way_times_the_input():
    model, (images, _) = build("convnext").eval(), batch()
    seen = model.preprocess(images)
    half = (seen / 2).requires_grad_()
    (gradient,) = torch.autograd.grad(model.net(half)[:, 2].sum(), half)
    maps = explain(model, images, torch.full((2,), 2), "integrated_gradients", steps=1).maps
    torch.testing.assert_close(maps, (gradient * seen).sum(1, keepdim=True))


@pytest.mark.parametrize("name", ["resnet", "lite", "convnext", "vit"])
def test_equality_with_captum(name):
    model, (images, _) = build(name).eval(), batch()
    target, seen = torch.tensor([2, 1]), model.preprocess(images)
    ixg = captum.attr.InputXGradient(model.net).attribute(seen.clone(), target=target)
    torch.testing.assert_close(explain(model, images, target, "ixg").maps, ixg.sum(1, keepdim=True))
    ig = captum.attr.IntegratedGradients(model.net).attribute(seen.clone(), target=target, n_steps=5)
    ours = explain(model, images, target, "integrated_gradients", steps=5).maps
    torch.testing.assert_close(ours, ig.sum(1, keepdim=True))
    if name != "vit":
        layer = captum.attr.LayerGradCam(model, model.get_submodule(model.depths["Final"]))
        cam = layer.attribute(images.clone(), target=target, relu_attributions=True)
        cam = nn.functional.interpolate(cam, (SIZE, SIZE), mode="bilinear")
        torch.testing.assert_close(explain(model, images, target, "gradcam", "Final").maps, cam)


def test_gradcam_on_a_vision_transformer_is_that_of_its_patch_grid():
    model, (images, _) = build("vit").eval(), batch(size=64)
    stored = []
    handle = model.net.blocks[4].register_forward_hook(lambda m, i, out: stored.append(out))
    score = model(images)[:, 0].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, stored[0])
    a, g = (t[:, 1:].reshape(2, 4, 4, -1).detach() for t in (stored[0], gradient))  # 16 patches, row by row
    cam = torch.relu((a * g.mean((1, 2), keepdim=True)).sum(3))[:, None]
    cam = nn.functional.interpolate(cam, (64, 64), mode="bilinear")
    torch.testing.assert_close(explain(model, images, torch.zeros(2, dtype=torch.long), "gradcam", "Final").maps, cam)


def test_input_x_gradient_of_an_xdnn_is_integrated_gradients():
    model, (images, targets) = build("xdnn_resnet18"), batch()
    for parameter in model.parameters():
        if not parameter.any():  # Fixup's zeros
            nn.init.normal_(parameter, std=0.1)
    maps = explain(model, images, targets, "ixg").maps
    assert maps[0].abs().max() > 0
    torch.testing.assert_close(explain(model, images, targets, "integrated_gradients", steps=2).maps, maps)


def test_a_method_of_several_gradients_is_a_function_and_a_line(monkeypatch):
    def noisy(a, steps):
        return [(a + 0.1 * torch.randn_like(a), 1 / steps) for _ in range(steps)]

    monkeypatch.setitem(METHODS, "smoothgrad", Method(lambda a, g: (a * g).sum(1, keepdim=True), path=noisy))
    model, (images, targets) = build("resnet"), batch()
    torch.manual_seed(1)
    found = explain(model, images, targets, "smoothgrad", "Mid2", steps=2).maps
    torch.manual_seed(1)
    a = model.get_submodule(model.depths["Mid2"])
    kept = []
    a.register_forward_hook(lambda *args: kept.append(args[2]))
    model.eval()(images)
    rest = nn.Sequential(model.net.layer3, model.net.layer4, model.net.global_pool, model.net.fc)
    expected = 0
    for _ in range(2):
        point = (kept[0] + 0.1 * torch.randn_like(kept[0])).detach().requires_grad_()
        (g,) = torch.autograd.grad(rest(point)[torch.arange(2), targets[:, 0]].sum(), point)
        expected = expected + (kept[0] * g).sum(1, keepdim=True) / 2
    expected = F.interpolate(expected, (SIZE, SIZE), mode="bilinear")
    torch.testing.assert_close(found[:, :1], expected.detach())
    readout = torch.randn(2, 1, SIZE, SIZE, dtype=torch.double)

    def value(create_graph=False):
        torch.manual_seed(1)
        return (explain(model, images, targets[:, 0], "smoothgrad", "Mid2", create_graph, steps=2).maps * readout).sum()

    assert_exact(model, value, lambda: value(create_graph=True))
