"""Methods for evaluation: known maps, completeness, what is refused."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from e2lib import models
from e2lib.attribution import METHODS, explain, trainable
from e2lib.datasets import Scenes
from tests.attribution.networks import SIZE, batch, build


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
    with pytest.raises(ValueError, match=r"for evaluation.*create_graph=True use one of ixg"):
        explain(model, images, targets, method, create_graph=True)
