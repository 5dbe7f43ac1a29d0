"""Passes: layers that are refused, modes and statistics that stay."""

import pytest
import torch
from torch import nn
from torchvision.ops import Permute

from e2lib import models
from e2lib.attribution import explain, modes_restored, module_at
from tests.attribution.networks import batch, build


def test_modes_are_restored_after_an_exception():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).train()
    model[0].eval()
    with pytest.raises(ZeroDivisionError), modes_restored(model):
        model.train()
        model[1].eval()
        1 / 0  # noqa: B018
    assert [m.training for m in model.modules()] == [True, False, True]


class Within(nn.Module):
    """A network whose part is called `module`, with attributes that other networks have for ends of their own."""

    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
        self.head, self.image_size, self.preprocess = nn.Linear(4, 3), 16, None

    def forward(self, x):
        return self.head(self.module(x).mean((2, 3)))


def test_networks_keep_their_own_attributes():
    """A child called `module` is not the network; `image_size` does not resize maps, `preprocess` refuses no pixels."""
    torch.manual_seed(0)
    net, images = Within(), 3 * torch.randn(2, 3, 32, 32)
    logits, maps = explain(net, images, 1)
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
    torch.testing.assert_close(logits, net(images).detach())
    torch.testing.assert_close(maps, (images * gradient).sum(1, keepdim=True))
    assert explain(net, images, 1, "gradcam", "module").maps.shape == (2, 1, 32, 32)


def test_the_image_is_no_module_s_output():
    net = Within()
    assert module_at(net, "module") is net.module
    for network in (net, models.wrap(net), models.wrap(net, {"Final": "module"})):
        with pytest.raises(ValueError, match="at is 'Input', the image itself; it must be the output of a module"):
            module_at(network, "Input")


def test_a_layer_with_channels_last_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 24, 4, 4), Permute([0, 2, 3, 1]), nn.Flatten(), nn.Linear(24 * 16 * 8, 3))
    images, targets = torch.rand(2, 3, 64, 32), torch.tensor([0, 1])
    assert explain(model, images, targets, "gradcam", "0").maps.shape == (2, 1, 64, 32)
    with pytest.raises(ValueError, match=r"module '1' has shape \(2, 16, 8, 24\), channels last"):
        explain(model, images, targets, "gradcam", "1")


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


def test_k_targets_cost_one_forward_pass():
    model, (images, targets) = build("resnet"), batch()
    calls = []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    explain(model, images, targets, create_graph=True)
    assert len(calls) == 1
