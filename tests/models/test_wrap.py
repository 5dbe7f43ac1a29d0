"""wrap: any network with names of depths; its parameters are the network's own."""

import pytest
import torch
from torch import nn

from e2lib import models


def test_a_wrapped_network_shares_parameters_and_finds_modules_by_its_own_paths():
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(16, 2))
    wrapped = models.wrap(net, {"Final": "0"})
    assert wrapped.depths == {"Input": "", "Final": "net.0"} and wrapped.get_submodule("0") is net[0]
    assert wrapped.get_submodule(wrapped.depths["Final"]) is net[0] and wrapped.get_submodule("") is wrapped
    assert [id(p) for p in wrapped.parameters()] == [id(p) for p in net.parameters()]
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(wrapped(images), net(images))


def test_a_normalising_module_may_be_the_input():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten())
    assert models.wrap(net, {"Input": "0"}).depths["Input"] == "net.0"


def test_a_path_without_a_module_is_refused():
    with pytest.raises(ValueError, match=r"depths: 'Final' is 'layer4'; the network has no module at this path"):
        models.wrap(nn.Sequential(nn.Flatten()), {"Final": "layer4"})
