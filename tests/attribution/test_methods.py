"""Methods: exact parameter gradients of each, identities, known maps, equality with captum, what is refused."""

from contextlib import nullcontext

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from e2lib import models
from e2lib.attribution import METHODS, Explanation, Method, explain, trainable
from e2lib.datasets import Scenes
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


# ---- for evaluation alone


def test_occlusion_finds_the_only_pixel_that_counts():
    class OnePixel(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 5, 20], -x[:, 0, 5, 20]], 1)

    images = torch.full((1, 3, SIZE, SIZE), 0.5)
    maps = explain(OnePixel(), images, torch.tensor([0]), "occlusion").maps[0, 0]
    assert maps[5, 20] == maps.max() == pytest.approx(0.5)
    assert maps[20:].abs().max() == 0


def test_deeplift_adds_up_to_the_difference_from_the_zero_input():
    model, (images, targets) = build("lite").eval(), batch()
    out = explain(model, images, targets[:, :1], "deeplift")
    difference = (out.logits - model.net(torch.zeros_like(images))).gather(1, targets[:, :1])[:, 0]
    torch.testing.assert_close(out.maps.sum((1, 2, 3)), difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_deeplift_is_complete_in_float32_also_where_relu6_saturates(name):
    torch.manual_seed(0)
    model = models.build(name, 1000, "imagenet" if name == "efficientnet_lite0" else None).eval()
    images = Scenes("test", 1, 96)[0].image[None] / 255
    out = explain(model, images, torch.tensor([0]), "deeplift")
    difference = (out.logits - model.net(torch.zeros_like(images)))[:, 0]
    torch.testing.assert_close(out.maps.sum((1, 2, 3)), difference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_deeplift_is_refused_where_captum_has_no_rule(name):
    images, targets = batch()
    with pytest.raises(ValueError, match=r"'deeplift': the maps miss .* by up to \d+%; captum has no DeepLIFT rule"):
        explain(build(name), images, targets, "deeplift")


@pytest.mark.parametrize("name", ["test_vit4", "test_vit", "eva02_tiny_patch14_224"])
def test_attention_rollout_reads_the_tokens_that_the_head_pools(name):
    model, (images, _) = models.build(name, 3), batch(size=28 if "patch14" in name else SIZE)
    prefix, attentions = model.prefix_tokens, []

    def attend(module, inputs, output):
        attention = torch.rand(2, 1, *output.shape[2:], generator=torch.Generator().manual_seed(len(attentions)))
        attentions.append(attention.softmax(-1))
        return attentions[-1].expand_as(output)

    for block in model.net.blocks:
        block.attn.attn_drop.register_forward_hook(attend)
    maps = explain(model, images.float(), torch.tensor([0, 1]), "attention_rollout").maps
    rollout = torch.eye(prefix + 4)
    for attention in attentions[-len(model.net.blocks) :]:
        rollout = (attention[:, 0] + torch.eye(prefix + 4)) / 2 @ rollout
    rows = rollout[:, prefix:] if model.net.global_pool == "avg" else rollout[:, :1]
    expected = rows.mean(1)[:, prefix:].view(2, 1, 2, 2)
    torch.testing.assert_close(maps, nn.functional.interpolate(expected, images.shape[2:], mode="bilinear"))


def test_attention_rollout_of_uniform_attention_is_known():
    model, (images, _) = build("vit").float(), batch(size=64)
    for block in model.net.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
        nn.init.zeros_(block.attn.qkv.bias)
    maps = explain(model, images.float(), torch.tensor([0, 1]), "attention_rollout").maps
    n = 17  # with attention A = 1/n everywhere, ((A + I) / 2)^6 holds (1 - 1/64) / n off its diagonal
    torch.testing.assert_close(maps, torch.full((2, 1, 64, 64), (1 - 1 / 64) / n))


def test_random_numbers_of_every_gpu_are_kept(monkeypatch):
    forked = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: forked.extend(devices) or nullcontext())
    explain(nn.Flatten(), torch.rand(1, 3, 1, 1), torch.tensor([0]), "occlusion")
    assert forked == [0, 1]


@pytest.mark.parametrize("method", [m for m in METHODS if m not in trainable()])
def test_training_through_evaluation_methods_is_refused(method):
    model, (images, targets) = build("resnet"), batch()
    with pytest.raises(ValueError, match=r"it must be one of ixg, .* with create_graph=True"):
        explain(model, images, targets, method, create_graph=True)
