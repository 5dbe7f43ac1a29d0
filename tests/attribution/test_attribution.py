"""Explanations: exact parameter gradients, identities, equality with captum, and no traces left behind."""

import gc
import math
import os
from contextlib import nullcontext
from pathlib import Path

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bcos.common import explanation_mode
from torch import nn
from torchvision.ops import Permute

from e2lib import attribution, models
from e2lib.attribution import (
    METHODS,
    Exact,
    Explanation,
    Method,
    double_backward,
    dynamic_weights,
    explain,
    modes_restored,
    trainable,
)
from e2lib.datasets import Scenes
from tests.attribution.finite import assert_exact, parameter_gradient, random_direction

SIZE = 32


NAMES = {
    "resnet": "resnet18",
    "efficientnet_lite": "efficientnet_lite0",
    "convnext": "convnext_atto",
    "vit": "test_vit",
    "bcos_cnn": "bcos_resnet18",
    "bcos_vit": "bcos_simple_vit_ti_patch16_224",
}


def build(name):
    torch.manual_seed(0)
    model = models.build(NAMES.get(name, name), 3)
    # Norm statistics other than 0 and 1, so that a wrong treatment of them cannot go unseen.
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d) and not model.is_bcos:
            module.running_mean.normal_(0, 0.1)
    return model.double()


CASES = [
    (name, method, at)
    for name in NAMES
    for method in trainable()
    for at in ("Input", "Mid2", "Final")
    if (method != "bcos" or name.startswith("bcos")) and (at != "Mid2" or name in ("convnext", "bcos_cnn"))
]


def batch(seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, size, size, dtype=torch.double, generator=generator), torch.tensor([[0, 2], [1, -1]])


@pytest.mark.parametrize(("name", "method", "at"), CASES)
def test_parameter_gradient_of_the_map_equals_finite_differences(name, method, at):
    model, (images, _) = build(name), batch()
    # A logit and its negative: the rectifier of Grad-CAM cannot silence both.
    targets = torch.tensor([[[1.0, 0, 0], [-1.0, 0, 0]], [[0, 1.0, 0], [0, -1.0, 0]]])
    readout = torch.randn(2, 2, SIZE, SIZE, dtype=torch.double)

    def value(create_graph=False):
        return (explain(model, images, targets, method, at, create_graph, steps=3).maps * readout).sum()

    assert_exact(model, value, lambda: value(create_graph=True))


@pytest.mark.parametrize(
    ("name", "method", "at"), [("resnet", "gradcam", "Final"), ("bcos_cnn", "bcos", "Input"), ("resnet", "ixg", "Mid2")]
)
def test_parameter_gradients_are_exact_in_train_mode_too(name, method, at):
    model, (images, _) = build(name).train(), batch()
    targets = torch.tensor([[[1.0, 0, 0], [-1.0, 0, 0]], [[0, 1.0, 0], [0, -1.0, 0]]])
    readout = torch.randn(2, 2, SIZE, SIZE, dtype=torch.double)

    def value(create_graph=False):
        return (explain(model, images, targets, method, at, create_graph, keep_modes=True).maps * readout).sum()

    assert_exact(model, value, lambda: value(create_graph=True))
    assert model.training


def test_norms_learn_their_statistics_where_modes_are_kept():
    model, (images, targets) = build("resnet").train(), batch()
    norm, before = model.net.bn1, model.net.bn1.running_mean.clone()
    explain(model, images, targets)
    assert torch.equal(norm.running_mean, before)
    explain(model, images, targets, keep_modes=True)
    assert not torch.equal(norm.running_mean, before)
    torch.testing.assert_close(
        explain(model.eval(), images, targets, keep_modes=True).maps, explain(model, images, targets).maps
    )


def test_norms_of_bcos_networks_do_not_keep_the_graph_of_the_steps_so_far():
    model, (images, targets) = build("bcos_cnn").train(), batch()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    explain(model, images, targets, "bcos", create_graph=True, keep_modes=True)
    found = dict(model.named_buffers())
    assert any(not torch.equal(found[name], old) for name, old in before.items())
    assert all(buffer.grad_fn is None and not buffer.requires_grad for buffer in found.values())


def test_targets_may_be_a_function_of_the_logits():
    model, (images, _) = build("bcos_cnn").eval(), batch()
    with torch.no_grad():
        top = model(images).argmax(1)
    found, expected = (explain(model, images, t, "bcos") for t in (lambda z: z.argmax(1), top))
    assert torch.equal(found.maps, expected.maps)
    found, expected = (dynamic_weights(model, images, t) for t in (lambda z: z.argmax(1), top))
    assert torch.equal(found[1], expected[1])


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


@pytest.mark.parametrize("name", ["bcos_cnn", "bcos_densenet121", "bcos_scenes"])
def test_bcos_contributions_add_up_to_the_logit_without_its_bias(name):
    model, (images, _) = build(name), batch()
    for at in ("Input", "Final"):
        logits, maps = explain(model, images, torch.tensor([[0, 1, 2]] * 2), "bcos", at)
        if at == "Final":  # up-sampling keeps the mean, not the sum
            maps = maps * 1.0 / (SIZE * SIZE)
        torch.testing.assert_close(maps.sum((2, 3)), logits - model.logit_bias, rtol=1e-6, atol=1e-9)
    assert model.logit_bias == -math.log(2)


def test_dynamic_weights_applied_to_the_input_are_the_contribution_map():
    model, (images, targets) = build("bcos_cnn"), batch()
    logits, w = dynamic_weights(model, images, targets[:, 0])
    assert w.shape == (2, 6, SIZE, SIZE)
    maps = explain(model, images, targets[:, 0], "bcos").maps
    torch.testing.assert_close((w * model.preprocess(images)).sum(1, keepdim=True), maps)
    assert not w.requires_grad and not logits.requires_grad


def test_integrated_gradients_are_complete():
    model, (images, _) = build("resnet").eval(), batch()
    target = torch.tensor([[0], [2]])
    logits, maps = explain(model, images, target, "integrated_gradients", steps=128)
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


@pytest.mark.parametrize("name", ["resnet", "efficientnet_lite", "convnext", "vit"])
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


def test_k_targets_equal_k_calls_and_minus_one_is_a_zero_map():
    model, (images, targets) = build("resnet"), batch()
    both = explain(model, images, targets).maps
    torch.testing.assert_close(both[:, :1], explain(model, images, targets[:, 0]).maps)
    torch.testing.assert_close(both[:1, 1:], explain(model, images[:1], torch.tensor([2])).maps)
    assert both[1, 1].abs().max() == 0


def test_k_targets_cost_one_forward_pass():
    model, (images, targets) = build("resnet"), batch()
    calls = []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    explain(model, images, targets, create_graph=True)
    assert len(calls) == 1


def test_weights_of_logits_explain_a_difference():
    model, (images, _) = build("resnet"), batch()
    weights = torch.tensor([[1.0, -1.0, 0.0]] * 2)
    maps = explain(model, images, torch.tensor([[0, 1]] * 2)).maps
    torch.testing.assert_close(explain(model, images, weights).maps, maps[:, :1] - maps[:, 1:])


def test_a_class_against_the_others():
    targets = attribution.against_others(torch.tensor([[0, -1], [2, 1]]), 3)
    assert targets.tolist() == [[[1, -0.5, -0.5], [0, 0, 0]], [[-0.5, -0.5, 1], [-0.5, 1, -0.5]]]
    assert attribution.against_others(torch.tensor([1]), 2).tolist() == [[[-1, 1]]]
    with pytest.raises(ValueError, match="count is 1; one class has no others"):
        attribution.against_others(torch.tensor([0]), 1)


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


@pytest.mark.parametrize(
    "targets", [2, [2, 2], np.array([2, 2]), np.array([[2], [2]], np.int32), [[0.0, 0.0, 1.0]] * 2]
)
def test_targets_may_be_numbers_lists_and_arrays(targets):
    model, (images, _) = build("resnet"), batch()
    assert torch.equal(explain(model, images, targets).maps, explain(model, images, torch.tensor([2, 2])).maps)


@pytest.mark.parametrize("shape", [(0,), (0, 2)])
@pytest.mark.parametrize("method", ["ixg", "gradcam", "integrated_gradients"])
def test_a_batch_without_images_has_maps_without_images(method, shape):
    model = build("resnet").float()
    out = explain(model, torch.rand(0, 3, SIZE, SIZE), torch.zeros(shape, dtype=torch.long), method, "Final", True, 2)
    assert out.logits.shape == (0, 3) and out.maps.shape == (0, *(shape[1:] or (1,)), SIZE, SIZE)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "attention_rollout"])
def test_every_method_gives_a_finite_map_on_a_cnn(method):
    name = "bcos_cnn" if method == "bcos" else "efficientnet_lite"
    model, (images, targets) = build(name).float(), batch()
    at = "Final" if method.startswith("gradcam") else "Input"
    out = explain(model, images.float(), targets, method, at, steps=4)
    assert isinstance(out, Explanation)
    assert out.maps.shape == (2, 2, SIZE, SIZE) and out.maps.isfinite().all() and not out.maps.requires_grad
    assert out.maps[0].abs().max() > 0 and out.maps[1, 1].abs().max() == 0


def test_occlusion_finds_the_only_pixel_that_counts():
    class OnePixel(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 5, 20], -x[:, 0, 5, 20]], 1)

    images = torch.full((1, 3, SIZE, SIZE), 0.5)
    maps = explain(OnePixel(), images, torch.tensor([0]), "occlusion").maps[0, 0]
    assert maps[5, 20] == maps.max() == pytest.approx(0.5)
    assert maps[20:].abs().max() == 0


def test_deeplift_adds_up_to_the_difference_from_the_zero_input():
    model, (images, targets) = build("efficientnet_lite").eval(), batch()
    out = explain(model, images, targets[:, :1], "deeplift")
    difference = (out.logits - model.net(torch.zeros_like(images))).gather(1, targets[:, :1])[:, 0]
    torch.testing.assert_close(out.maps.sum((1, 2, 3)), difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_deeplift_is_complete_in_float32_also_where_relu6_saturates(name):
    torch.manual_seed(0)
    model = models.build(name, 1000, "imagenet" if name == "efficientnet_lite0" else None).eval()
    images = Scenes("test", 1, 224)[0].image[None] / 255
    out = explain(model, images, torch.tensor([0]), "deeplift")
    difference = (out.logits - model.net(torch.zeros_like(images)))[:, 0]
    torch.testing.assert_close(out.maps.sum((1, 2, 3)), difference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_deeplift_is_refused_where_captum_has_no_rule(name):
    images, targets = batch()
    with pytest.raises(ValueError, match=r"'deeplift': the maps miss .* by up to \d+%; captum has no DeepLIFT rule"):
        explain(build(name), images, targets, "deeplift")


def test_input_x_gradient_of_an_xdnn_is_integrated_gradients():
    model, (images, targets) = build("xdnn_resnet18"), batch()
    for parameter in model.parameters():
        if not parameter.any():  # Fixup's zeros
            nn.init.normal_(parameter, std=0.1)
    maps = explain(model, images, targets, "ixg").maps
    assert maps[0].abs().max() > 0
    torch.testing.assert_close(explain(model, images, targets, "integrated_gradients", steps=2).maps, maps)


@pytest.mark.parametrize(
    "name", ["vit_little_patch16_reg4_gap_256", "vit_tiny_patch16_224", "eva02_base_patch16_clip_224"]
)
def test_attention_rollout_reads_the_tokens_that_the_head_pools(name):
    model, (images, _) = models.build(name, 3), batch()
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
    rows = rollout[:, prefix:] if "gap" in name else rollout[:, :1]
    expected = rows.mean(1)[:, prefix:].view(2, 1, 2, 2)
    torch.testing.assert_close(maps, nn.functional.interpolate(expected, (SIZE, SIZE), mode="bilinear"))


def test_random_numbers_of_every_gpu_are_kept(monkeypatch):
    forked = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: forked.extend(devices) or nullcontext())
    explain(nn.Flatten(), torch.rand(1, 3, 1, 1), torch.tensor([0]), "occlusion")
    assert forked == [0, 1]


def test_modes_are_restored_after_an_exception():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).train()
    model[0].eval()
    with pytest.raises(ZeroDivisionError), modes_restored(model):
        model.train()
        model[1].eval()
        1 / 0  # noqa: B018
    assert [m.training for m in model.modules()] == [True, False, True]


def test_a_layer_with_channels_last_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 24, 4, 4), Permute([0, 2, 3, 1]), nn.Flatten(), nn.Linear(24 * 16 * 8, 3))
    images, targets = torch.rand(2, 3, 64, 32), torch.tensor([0, 1])
    assert explain(model, images, targets, "gradcam", "0").maps.shape == (2, 1, 64, 32)
    with pytest.raises(ValueError, match=r"module '1' has shape \(2, 16, 8, 24\), channels last"):
        explain(model, images, targets, "gradcam", "1")


def test_attention_rollout_of_uniform_attention_is_known():
    model, (images, _) = build("vit").float(), batch(size=64)
    for block in model.net.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
        nn.init.zeros_(block.attn.qkv.bias)
    maps = explain(model, images.float(), torch.tensor([0, 1]), "attention_rollout").maps
    n = 17  # with attention A = 1/n everywhere, ((A + I) / 2)^6 holds (1 - 1/64) / n off its diagonal
    torch.testing.assert_close(maps, torch.full((2, 1, 64, 64), (1 - 1 / 64) / n))


@pytest.mark.parametrize("method", ["bcos", "gradient_shap", "deeplift"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(method, fails):
    model, (images, targets) = build("bcos_cnn" if method == "bcos" else "resnet").float(), batch()
    model.net.layer2.eval()
    model.net.layer1[0].conv1.detach = True
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    images = images.float()
    modes = [m.training for m in model.modules()]
    detach = [getattr(m, "detach", None) for m in model.modules() if hasattr(m, "set_explanation_mode")]
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.get_rng_state(), np.random.get_state()[1].copy()
    if fails:
        handle = model.net.layer4.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            explain(model, images, targets, method)
        handle.remove()
    else:
        explain(model, images, targets, method)
    assert modes == [m.training for m in model.modules()]
    assert detach == [getattr(m, "detach", None) for m in model.modules() if hasattr(m, "set_explanation_mode")]
    assert all(not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks for m in model.modules())
    assert all((p.grad == 1).all() for p in model.parameters())
    assert images.grad is None and not images.requires_grad
    assert torch.equal(torch.get_rng_state(), expected[0]) and (np.random.get_state()[1] == expected[1]).all()


def test_memory_does_not_grow_over_200_calls():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images, targets = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])

    def tensors_alive():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    def calls(n):
        for _ in range(n):
            explain(model, images, targets, create_graph=True).maps.sum().backward()
            explain(model, images, targets, "gradcam", "0")

    calls(5)
    before = tensors_alive()
    calls(200)
    assert tensors_alive() <= before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
def test_memory_does_not_grow_over_200_calls_of_a_bcos_network():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    model, (images, targets) = build("bcos_scenes").float(), batch()
    images = images.float()

    def calls(n):
        for _ in range(n):
            maps = explain(model, images, targets[:, 0], "bcos", create_graph=True).maps
            maps.square().mean().backward()

    calls(20)
    before = resident()
    calls(200)
    assert resident() - before < 50  # MB; the graphs of 200 calls take 2600


def test_maps_are_the_same_alone_and_in_a_batch_although_the_model_is_in_train_mode():
    model, (images, targets) = build("resnet").train(), batch()
    together = explain(model, images, targets).maps
    torch.testing.assert_close(explain(model, images[:1], targets[:1]).maps, together[:1])


def test_explaining_a_frozen_trunk_trains_the_head():
    model, (images, targets) = build("resnet"), batch()
    for p in model.parameters():
        p.requires_grad_(False)
    model.net.fc.weight.requires_grad_()
    explain(model, images, targets, "gradcam", "Final", create_graph=True).maps.sum().backward()
    assert model.net.fc.weight.grad.abs().max() > 0
    assert model.net.conv1.weight.grad is None


@pytest.mark.parametrize("method", [m for m in METHODS if m not in trainable()])
def test_training_through_evaluation_methods_is_refused(method):
    model, (images, targets) = build("resnet"), batch()
    with pytest.raises(ValueError, match=r"for evaluation.*create_graph=True use one of ixg"):
        explain(model, images, targets, method, create_graph=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lime"}, r"method is 'lime'; it must be one of ixg"),
        ({"at": "Middle"}, r"at is 'Middle'; it must be one of Input, Mid1"),
        ({"at": "net.fc"}, r"module 'net.fc' is no \(B, C, h, w\)"),
        ({"method": "bcos"}, r"explains B-cos networks; 'resnet18' is none"),
        ({"method": "occlusion", "at": "Final"}, r"explains the input; at is 'Final'"),
        ({"method": "attention_rollout"}, r"no attention"),
        ({"method": "integrated_gradients", "steps": 0}, r"steps is 0; it must be at least 1"),
        ({"targets": torch.tensor([0, 3])}, r"targets hold class 3; they must lie in 0\.\.2"),
        ({"targets": torch.tensor([0, -2])}, r"targets hold class -2"),
        ({"targets": torch.tensor([0])}, r"targets have shape \(1,\)"),
        ({"targets": torch.tensor([True, False])}, r"bool.*must be int64"),
        ({"method": "occlusion", "keep_modes": True}, "'occlusion' is for evaluation: it takes no keep_modes"),
        ({"targets": torch.tensor([[0, 0, 1], [0, 1, 0]])}, r"look like one value per class; .*targets.argmax\(1\)"),
        ({"targets": torch.zeros(2, 4)}, r"targets have shape \(2, 4\)"),
        ({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, r"type torch.uint8; float"),
        ({"images": torch.zeros(3, 32, 32)}, r"images have shape \(3, 32, 32\)"),
        ({"images": torch.full((2, 3, 32, 32), 1.5, dtype=torch.double)}, r"images lie in \[1.5, 1.5\].*in \[0, 1\]"),
    ],
)
def test_wrong_input_is_refused(changes, message):
    images, targets = batch()
    with pytest.raises(ValueError, match=message):
        explain(build("resnet"), **({"images": images, "targets": targets} | changes))


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
    ("name", "at", "fewer"), [("resnet18", "Input", 0), ("resnet18", "Mid2", 10), ("bcos_resnet18", "Input", 0)]
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
