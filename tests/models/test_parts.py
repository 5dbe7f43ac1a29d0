"""A network cut in two computes what the whole one does, and the head that trains is the network's own."""

import pytest
import torch
from torch import nn

from e2lib import explain, models
from e2lib.models import fingerprint

NETWORKS = ["efficientnet_lite0", "resnet10t", "densenet121", "convnext_atto", "mobilenetv3_small_050", "test_vit"]
NETWORKS += [
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
    "shufflenet_v2_x0_5",
    "xdnn_resnet18",
    "bcos_scenes",
    "bcos_densenet121",
    "bcos_convnext_tiny",
    "bcos_simple_vit_ti_patch16_224",
]
SIZE = 64


@pytest.mark.parametrize("at", [None, "Mid3", "Final"])
@pytest.mark.parametrize("name", NETWORKS)
def test_both_parts_make_the_network(name, at):
    torch.manual_seed(0)
    size = 70 if "patch14" in name else SIZE
    net, images = models.build(name, 4).eval(), torch.rand(2, 3, size, size)
    trunk, head = models.split(net, size, at)
    features = trunk(images)
    assert features.ndim == 4 and not features.requires_grad
    torch.testing.assert_close(head(features), net(images))
    assert list(head.depths) == (["Final"] if at == "Final" or "lite" in name and at is None else ["Mid3", "Final"])
    for depth in head.depths:
        there, here = (explain(part, x, 1, "ixg", depth).maps for part, x in ((net, images), (head, features)))
        torch.testing.assert_close(here, there)


def test_a_trained_head_is_the_networks_own():
    net, images = models.build("densenet121", 4), torch.rand(2, 3, SIZE, SIZE)
    modes = {module: module.training for module in net.modules()}
    trunk, head = models.split(net, SIZE)
    assert all(module.training == mode for module, mode in modes.items() if module not in set(trunk.modules()))
    features, before = trunk(images), fingerprint(trunk)
    trained = [p for p in head.parameters() if p.requires_grad]
    assert {*map(id, trained)} == {id(p) for p in net.parameters() if p.requires_grad}
    head.train()(features).sum().backward()
    with torch.no_grad():
        for p in trained:
            p -= 0.1 * p.grad
    assert fingerprint(trunk) == before
    torch.testing.assert_close(head.eval()(features), net.eval()(images))
    torch.testing.assert_close(trunk(images), features)


def test_the_network_stays_whole():
    net = models.build("resnet10t", 4).eval()
    images, known = torch.rand(1, 3, SIZE, SIZE), {name: type(module) for name, module in net.named_modules()}
    before = net(images)
    models.split(net, SIZE, "Mid2")
    assert {name: type(module) for name, module in net.named_modules()} == known and torch.equal(net(images), before)


class Crossing(nn.Module):
    """What comes before the cut is needed behind it as well."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        self.depths = {"Final": "second"}

    def forward(self, x):
        x = self.first(x)
        return self.head((x + self.second(x)).mean((2, 3)))


def test_a_network_that_cannot_be_cut_is_refused(monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, "crossing", lambda count: Crossing())
    with pytest.raises(ValueError, match="Crossing, which cannot be cut at Final"):
        models.split(models.build("crossing", 2), SIZE, "Final")
    with pytest.raises(ValueError, match=r"at is 'Mid9'; the depths of ResNet are Mid1, Mid2, Mid3, Final"):
        models.split(models.build("resnet10t", 2), SIZE, "Mid9")
    with pytest.raises(ValueError, match="takes networks of `models.build`"):
        models.split(nn.Linear(2, 2), SIZE)
