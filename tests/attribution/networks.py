"""Small networks of `models.build`'s kinds, in float64, and images for them."""

import math

import timm
import torch
from bcos.models.resnet import BasicBlock, BcosResNet
from bcos.modules import BcosConv2d, norms
from torch import nn

from e2lib import models

SIZE = 32


def bcos_cnn(num_classes):
    norm = norms.NoBias(norms.BatchNormUncentered2d)
    how = {"norm_layer": norm, "conv_layer": BcosConv2d, "inplanes": 8, "logit_temperature": 0.1}
    return BcosResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes, logit_bias=-math.log(num_classes - 1), **how)


NETWORKS = {
    "resnet": lambda: models.build("test_resnet", 3),
    "lite": lambda: models.Model(
        "lite", 3, timm.create_model("test_efficientnet", num_classes=3, act_layer=nn.ReLU6, se_layer=nn.Identity)
    ),
    "convnext": lambda: models.build("test_convnext", 3),
    "vit": lambda: models.build("test_vit", 3),
    "bcos_cnn": lambda: models.Model("bcos_cnn", 3, bcos_cnn(3)),
    "bcos_vit": lambda: models.build("bcos_simple_vit_ti_patch16_224", 3),
}


def build(name):
    """A network of `NETWORKS`, or of `models.build`."""
    torch.manual_seed(0)
    model = NETWORKS[name]() if name in NETWORKS else models.build(name, 3)
    # Norm statistics other than 0 and 1, so that a wrong treatment of them cannot go unseen.
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d) and not model.is_bcos:
            module.running_mean.normal_(0, 0.1)
    return model.double()


def batch(seed=0, size=SIZE):
    """Two images, and two targets for each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, size, size, dtype=torch.double, generator=generator), torch.tensor([[0, 2], [1, -1]])


def either_sign():
    """A logit and its negative, for two images: the rectifier of Grad-CAM cannot silence both."""
    return torch.tensor([[[1.0, 0, 0], [-1.0, 0, 0]], [[0, 1.0, 0], [0, -1.0, 0]]])
