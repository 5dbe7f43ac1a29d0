"""A network in two parts: a frozen trunk that runs once per image, and a head that trains in seconds."""

import copy

from torch import Tensor, nn

from e2lib.models.build import Model

# The modules before the last stage, in the order in which they run, by the name of the network's class.
_TRUNKS = {
    "EfficientNet": ("conv_stem", "bn1", "blocks"),  # all but the last 1x1 convolution
    "ResNet": ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"),
    "BcosResNet": ("conv1", "bn1", "pool", "layer1", "layer2", "layer3"),
}


class Head(nn.Module):
    """The end of a network, from features (B, C, h, w) to logits (B, num_classes); see `split`.

    Its depth "Final" and other attributes are the network's. `explain` brings maps to `explained_size`, in pixels. It
    reads the `channels` of the features, a slice, all at first; `features.join` needs it.
    """

    def __init__(self, model: Model, size: int):
        super().__init__()
        self.name, self.num_classes, self.is_bcos = model.name, model.num_classes, model.is_bcos
        self.logit_bias, self.explained_size, self.channels = model.logit_bias, (size, size), slice(None)
        self.net = copy.copy(model.net)
        self.net._modules = model.net._modules | {name: nn.Identity() for name in _TRUNKS[type(model.net).__name__]}
        self.depths = {"Final": model.depths["Final"]}

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features[:, self.channels])


def split(model: Model, size: int) -> tuple[nn.Sequential, Head]:
    """Cut a network of `build` before its last stage (EfficientNets: before their last 1x1 convolution).

    Takes an EfficientNet, ResNet, X-DNN or B-cos ResNet (else ValueError), and the pixels a side of its images. Returns
    the trunk, from images to features, now frozen, and the head. They share the network's modules, so training the head
    trains the network; `head(trunk(images))` is `model(images)` in eval mode.
    """
    kind = type(getattr(model, "net", model)).__name__
    if not isinstance(model, Model) or kind not in _TRUNKS:
        raise ValueError(f"model is a {kind}; `split` knows the {', '.join(_TRUNKS)} of `models.build`")
    head = Head(model, size)
    parts = [getattr(model.net, name) for name in _TRUNKS[kind]]
    trunk = nn.Sequential(model.preprocess, *(part for part in parts if part is not None))
    return trunk.requires_grad_(False).eval(), head
