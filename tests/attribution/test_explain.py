"""explain: targets of every form, identities of its maps, wrong input, and no traces left behind."""

import gc
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from e2lib import attribution
from e2lib.attribution import dynamic_weights, explain
from tests.attribution.networks import SIZE, batch, build, either_sign


def test_targets_may_be_a_function_of_the_logits():
    model, (images, _) = build("bcos_cnn").eval(), batch()
    with torch.no_grad():
        top = model(images).argmax(1)
    found, expected = (explain(model, images, t, "bcos") for t in (lambda z: z.argmax(1), top))
    assert torch.equal(found.maps, expected.maps)
    found, expected = (dynamic_weights(model, images, t) for t in (lambda z: z.argmax(1), top))
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("name", ["bcos_cnn", "bcos_densenet121"])
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


def test_k_targets_equal_k_calls_and_minus_one_is_a_zero_map():
    model, (images, targets) = build("resnet"), batch()
    both = explain(model, images, targets).maps
    torch.testing.assert_close(both[:, :1], explain(model, images, targets[:, 0]).maps)
    torch.testing.assert_close(both[:1, 1:], explain(model, images[:1], torch.tensor([2])).maps)
    assert both[1, 1].abs().max() == 0


def test_weights_of_logits_explain_a_difference():
    model, (images, _) = build("resnet"), batch()
    weights = torch.tensor([[1.0, -1.0, 0.0]] * 2)
    maps = explain(model, images, torch.tensor([[0, 1]] * 2)).maps
    torch.testing.assert_close(explain(model, images, weights).maps, maps[:, :1] - maps[:, 1:])


def test_a_class_against_the_others():
    targets = attribution.against_others(torch.tensor([[0, -1], [2, 1]]), 3)
    assert targets.tolist() == [[[1, -0.5, -0.5], [0, 0, 0]], [[-0.5, -0.5, 1], [-0.5, 1, -0.5]]]
    assert attribution.against_others(torch.tensor([1]), 2).tolist() == [[[-1, 1]]]
    with pytest.raises(ValueError, match="count is 1; .* one class has no others"):
        attribution.against_others(torch.tensor([0]), 1)


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


def test_one_value_per_class_is_no_class_of_a_network_of_two_either():
    net, images = nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten()), torch.rand(2, 3, 8, 8)
    assert explain(net, images, [[0, 1]] * 2).maps.shape[1] == 2  # both classes of each image
    for labels in (torch.tensor([[1, 0], [0, 1]]), torch.tensor([[1, 1], [0, 1]]).byte()):
        with pytest.raises(ValueError, match="look like one value per class; .*targets.float()"):
            explain(net, images, labels)
    assert explain(net, images, torch.tensor([[1.0, 0], [0, 1]])).maps.shape[1] == 1


def test_maps_are_the_same_alone_and_in_a_batch_although_the_model_is_in_train_mode():
    model, (images, targets) = build("resnet").train(), batch()
    together = explain(model, images, targets).maps
    torch.testing.assert_close(explain(model, images[:1], targets[:1]).maps, together[:1])


def test_explaining_a_frozen_trunk_trains_the_head():
    model, (images, _) = build("resnet"), batch()
    for p in model.parameters():
        p.requires_grad_(False)
    model.net.fc.weight.requires_grad_()
    explain(model, images, either_sign(), "gradcam", "Final", create_graph=True).maps.sum().backward()
    assert model.net.fc.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model.net.conv1.parameters())


@pytest.mark.parametrize("method", ["bcos", "gradient_shap", "deeplift"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(method, fails):
    name = {"bcos": "bcos_cnn", "deeplift": "resnet18"}.get(method, "resnet")
    model, (images, targets) = build(name).float(), batch()
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
            explain(model, images, targets, method, steps=2)
        handle.remove()
    else:
        explain(model, images, targets, method, steps=2)
    assert modes == [m.training for m in model.modules()]
    assert detach == [getattr(m, "detach", None) for m in model.modules() if hasattr(m, "set_explanation_mode")]
    assert all(not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks for m in model.modules())
    assert all((p.grad == 1).all() for p in model.parameters())
    assert images.grad is None and not images.requires_grad
    assert torch.equal(torch.get_rng_state(), expected[0]) and (np.random.get_state()[1] == expected[1]).all()


def test_memory_does_not_grow():
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
    calls(50)
    assert tensors_alive() <= before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
def test_memory_does_not_grow_over_calls_of_a_bcos_network():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    model, (images, targets) = build("bcos_cnn").float(), batch(size=64)
    images = images.float()

    def calls(n):
        for _ in range(n):
            maps = explain(model, images, targets[:, 0], "bcos", create_graph=True).maps
            maps.square().mean().backward()

    calls(10)
    before = resident()
    calls(30)
    assert resident() - before < 40  # MB; the graphs of all calls take 80


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lime"}, r"method is 'lime'; it must be one of ixg"),
        ({"at": "Middle"}, r"at is 'Middle'; it must be one of Input, Mid1"),
        ({"at": "net.fc"}, r"module 'net.fc' is no \(B, C, h, w\)"),
        ({"method": "bcos"}, "method is 'bcos'; it must be another, as the network has no B-cos layers"),
        (
            {"method": "occlusion", "at": "Final"},
            r"at is 'Final'; it must be 'Input' for method 'occlusion', which explains the input",
        ),
        ({"method": "attention_rollout"}, r"no attention"),
        ({"method": "integrated_gradients", "steps": 0}, r"steps is 0; it must be at least 1"),
        ({"targets": torch.tensor([0, 3])}, r"targets hold class 3; they must lie in 0\.\.2"),
        ({"targets": torch.tensor([0, -2])}, r"targets hold class -2"),
        ({"targets": torch.tensor([0])}, r"targets have shape \(1,\)"),
        ({"targets": torch.tensor([True, False])}, r"bool.*must be int64"),
        ({"method": "occlusion", "keep_modes": True}, "keep_modes is True; it must be False for method 'occlusion'"),
        ({"targets": torch.tensor([[0, 0, 1], [0, 1, 0]])}, r"look like one value per class; .*targets.argmax\(1\)"),
        ({"targets": torch.zeros(2, 4)}, r"targets have shape \(2, 4\)"),
        ({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, r"type torch.uint8; torch.float64 \(B"),
        ({"images": torch.zeros(3, 32, 32)}, r"images have shape \(3, 32, 32\)"),
        ({"images": torch.full((2, 3, 32, 32), 1.5, dtype=torch.double)}, r"images lie in \[1.5, 1.5\].*in \[0, 1\]"),
    ],
)
def test_wrong_input_is_refused(changes, message):
    images, targets = batch()
    with pytest.raises(ValueError, match=message):
        explain(build("resnet"), **({"images": images, "targets": targets} | changes))
