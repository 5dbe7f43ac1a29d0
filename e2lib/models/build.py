"""Networks by name: timm, ShuffleNets, EfficientNet-Lite with ImageNet weights, B-cos networks, X-DNNs."""

import difflib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bcos.models.pretrained as bcos_nets
import timm
import torch
import torchvision
from bcos.data.transforms import AddInverse
from bcos.models.resnet import BasicBlock, BcosResNet
from bcos.modules import BcosConv2d, LogitLayer, norms
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from e2lib.models import weights as files
from e2lib.models.depths import depths, prefix_tokens


class Normalize(nn.Module):
    """Normalised image (x - mean) / std per channel, (B, 3, H, W); a module, so that its output is a guidance depth."""

    def __init__(self, mean, std):
        super().__init__()
        # Constants of the architecture, no weights: not in the state_dict.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Multiplier(nn.Module):
    """Scalar multiplier of a residual branch (Fixup, Zhang et al. 2019, section 3), 1 at the start."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Model(nn.Module):
    """A classifier that takes RGB images, float (B, 3, H, W) in [0, 1], and returns logits (B, num_classes).

    Attributes:
        preprocess: image -> what the net sees: normalised RGB, or [x, 1 - x] (B, 6, H, W) for B-cos nets.
        net: the backbone with its head, in the tensor names of timm or bcos.
        depths, prefix_tokens, reshape: as for `models.wrap`. Depths are "Input", "Mid1", "Mid2", "Mid3" and "Final"; of
            an unknown architecture "Input" alone.
        is_bcos: whether the net explains itself exactly by its dynamic weights.
        logit_bias: constant added to each logit: -log(num_classes - 1) for B-cos nets, else 0.
    """

    def __init__(self, name: str, num_classes: int, net: nn.Module, preprocess: nn.Module):
        super().__init__()
        self.name, self.num_classes = name, num_classes
        self.preprocess, self.net = preprocess, net
        last = _logit_layer(net)
        self.is_bcos, self.logit_bias = last is not None, 0.0 if last is None else last.logit_bias
        self.prefix_tokens, self.reshape = prefix_tokens(net), getattr(net, "reshape", None)
        self.depths = {"Input": "preprocess"} | {depth: f"net.{path}" for depth, path in depths(net).items()}

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(f"images must be float (B, 3, H, W) in [0, 1], got {x.dtype} {tuple(x.shape)}")
        return self.net(self.preprocess(x))


def build(name: str, num_classes: int, weights: str | Path | None = None) -> Model:
    """Build the network `name` with a head of `num_classes`; without weights it is initialised by torch's current RNG.

    Args:
        name: efficientnet_lite0/1/2; bcos_scenes; bcos_<net of package bcos>; xdnn_resnet18/34/50/101/152 (no biases,
            Fixup: net(a x) = a net(x) for a > 0, Hesse et al. 2021); shufflenet_v2_x0_5/1_0/1_5/2_0 of torchvision;
            any other name in `ARCHITECTURES`; any name of timm.
        num_classes: number of logits, at least 2 for B-cos nets.
        weights: None; "imagenet" (efficientnet_lite*); "scenes" (bcos_scenes); or the path of a .safetensors, .pt or
            .pth file with the net's tensors. The net keeps its new head if the file's head differs in the number of
            classes alone.

    Raises ValueError for an unknown name, number or weights, and for a file that does not fit, naming its first wrong
    tensor; FileNotFoundError without the file; ImportError without the package of the ImageNet weights.

    Notes:
        An X-DNN is homogeneous in the normalised image, so its exact Integrated Gradients have the mean colour as
        baseline. Fixup starts the head and the last layer of each branch at zero: maps vanish before the first steps.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    net = ARCHITECTURES[name](num_classes) if name in ARCHITECTURES else _timm(name, num_classes)
    if weights is not None:
        files.load(net, name, weights)
    if _logit_layer(net) is not None:
        return Model(name, num_classes, net, AddInverse())
    config = getattr(net, "pretrained_cfg", None)
    return Model(name, num_classes, net, Normalize(config["mean"], config["std"]) if config else nn.Identity())


def _logit_layer(net: nn.Module) -> LogitLayer | None:
    """The layer that adds the logit bias in a B-cos network."""
    return next((module for module in net.modules() if isinstance(module, LogitLayer)), None)


def _timm(name: str, num_classes: int) -> nn.Module:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*ARCHITECTURES, *timm.list_models()], n=5)
        raise ValueError(f"unknown model {name!r}; close names: {', '.join(close) or 'none'}")
    # Transformers then take any multiple of the patch size, as CNNs do.
    anysize = timm.models.is_model_in_modules(name, ("vision_transformer", "deit", "eva"))
    return timm.create_model(name, num_classes=num_classes, **({"dynamic_img_size": True} if anysize else {}))


def _lite(name: str, num_classes: int) -> nn.Module:
    """An EfficientNet-Lite, with the normalisation that its weights in `weights.IMAGENET` expect."""
    net = timm.create_model(f"tf_{name}", num_classes=num_classes)
    net.pretrained_cfg = net.pretrained_cfg | {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    return net


def _shufflenet(name: str, num_classes: int) -> nn.Module:
    """A ShuffleNet (Ma et al., ECCV 2018) with the attributes that timm's networks have."""
    net = torchvision.models.get_model(name, num_classes=num_classes)
    net.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "classifier": "fc"}
    net.num_features, net.global_pool = net.fc.in_features, "avg"
    return net


def _xdnn(name: str, num_classes: int) -> nn.Module:
    """ResNet without biases and norms, with Fixup initialisation and multipliers (Zhang et al. 2019, section 3)."""
    net = timm.create_model(name, num_classes=num_classes, norm_layer=nn.Identity)
    blocks = [block for stage in (net.layer1, net.layer2, net.layer3, net.layer4) for block in stage]
    for block in blocks:
        convs = [module for module in block.children() if isinstance(module, nn.Conv2d)]
        for conv in convs[:-1]:
            conv.weight.data *= len(blocks) ** (-1 / (2 * len(convs) - 2))
        nn.init.zeros_(convs[-1].weight)
        setattr(block, f"bn{len(convs)}", Multiplier())
    net.fc = nn.Linear(net.num_features, num_classes, bias=False)
    nn.init.zeros_(net.fc.weight)
    return net


def _bcos(network: Callable[..., nn.Module], num_classes: int) -> nn.Module:
    """A B-cos network whose logit bias follows the number of classes."""
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be at least 2: a B-cos net adds -log(num_classes - 1)")
    net = network(num_classes=num_classes)
    _logit_layer(net).logit_bias = -math.log(num_classes - 1)  # bcos keeps -log 999 whatever num_classes is
    return net


# The small B-cos network that data/train_bcos.py trains.
_no_bias = norms.NoBias(norms.BatchNormUncentered2d)
_scenes = partial(
    BcosResNet, BasicBlock, [2, 2, 2, 2], inplanes=32, norm_layer=_no_bias, conv_layer=BcosConv2d, logit_temperature=0.1
)

# Name -> function of the number of classes that returns a network, images -> logits. Add your own: `build` then knows
# its name. Images come as float (B, 3, H, W) in [0, 1], normalised if the network has `pretrained_cfg`, as timm's have;
# B-cos networks get [x, 1 - x]. An attribute `depths`, name -> module path, tells where it can be explained.
ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    **{name: partial(_lite, name) for name in files.IMAGENET},
    **{f"bcos_{n}": partial(_bcos, getattr(bcos_nets, n)) for n in bcos_nets.list_available() if "standard_" not in n},
    "bcos_scenes": partial(_bcos, _scenes),
    **{f"xdnn_resnet{n}": partial(_xdnn, f"resnet{n}") for n in (18, 34, 50, 101, 152)},
    **{n: partial(_shufflenet, n) for n in (f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0"))},
}
