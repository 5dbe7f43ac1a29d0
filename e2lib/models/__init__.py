"""Networks by name, with their depths; `wrap` gives any other network depths, `split` cuts one into trunk and head."""

import difflib
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import bcos.models.pretrained as bcos_nets
import timm
import torchvision
from bcos.data.transforms import AddInverse
from bcos.models.resnet import BasicBlock, BcosResNet
from bcos.models.vit import SimpleViT
from bcos.modules import BcosConv2d, LogitLayer, norms
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerScale2d
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms import v2

from e2lib.attribution.forward import logits_of
from e2lib.datasets.files import check_value
from e2lib.disk import keep_memory
from e2lib.models.bcosify import bcosify, sharpen
from e2lib.models.parts import Head, split
from e2lib.models.weights import IMAGENET, fingerprint, head_prefixes, load, save, train_head_only

__all__ = ["ARCHITECTURES", "Head", "Model", "Wrapped", "bcosify", "build", "fingerprint", "head_prefixes", "save"]
__all__ += ["sharpen", "split", "train_head_only", "wrap"]

# Class of the network -> paths of the modules whose outputs are Mid1, Mid2, Mid3 and Final.
STAGES = {
    "BcosResNet": ("layer1", "layer2", "layer3", "layer4"),
    "BcosDenseNet": ("features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"),
    "BcosConvNeXt": ("features.2", "features.4", "features.6", "features.8"),
    "ShuffleNetV2": ("maxpool", "stage2", "stage3", "conv5"),
}
# timm's feature_info lists the stages of these, but not a last 1x1 convolution, which `_FINAL` names.
_TIMM_CNNS = ("ResNet", "DenseNet", "EfficientNet", "MobileNetV3", "ConvNeXt", "RegNet", "ByobNet", "VGG")
_FINAL = {"EfficientNet": "bn2", "RegNet": "final_conv"}


class Model(nn.Module):
    """A classifier of `build`, from RGB images, float (B, 3, H, W) in [0, 1], to logits (B, num_classes)."""

    def __init__(self, name: str, num_classes: int, net: nn.Module):
        super().__init__()
        self.name, self.num_classes = name, num_classes
        # A B-cos net explains itself by its dynamic weights, and adds -log(num_classes - 1) to each logit.
        biases = [module.logit_bias for module in net.modules() if isinstance(module, LogitLayer)]
        self.is_bcos, self.logit_bias = bool(biases), biases[0] if biases else 0.0
        config = getattr(net, "pretrained_cfg", None)
        # A module, so that its output can be explained: normalised RGB, or [x, 1 - x] (B, 6, H, W).
        normalise = v2.Normalize(config["mean"], config["std"]) if config else nn.Identity()
        self.preprocess = AddInverse() if self.is_bcos else normalise
        self.net = net  # the backbone with its head; its tensors have the names of timm or bcos
        # The next three are as in `Wrapped`.
        self.depths = {"Input": "preprocess"} | {depth: f"net.{path}" for depth, path in _depths(net).items()}
        self.prefix_tokens = getattr(net, "num_prefix_tokens", getattr(net, "prefix_tokens", 0))  # of timm, or your own
        self.reshape = getattr(net, "reshape", None)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(f"images are {x.dtype} {tuple(x.shape)}; they must be float (B, 3, H, W) in [0, 1]")
        return self.net(self.preprocess(x))


def build(name: str, num_classes: int, weights: str | Path | None = None) -> Model:
    """Build a network by its name. Without `weights`, torch's global generator initialises it.

    Args:
        name: efficientnet_lite0/1/2; bcos_efficientnet_lite0/1/2 (by `bcosify`, B = 2); bcos_scenes; bcos_<net of
            package bcos>; xdnn_resnet18/34/50/101/152 (no biases, Fixup: net(a x) = a net(x) for a > 0, Hesse et al.
            2021); shufflenet_v2_x0_5/1_0/1_5/2_0 of torchvision; any other name in `ARCHITECTURES`; any name of timm.
        num_classes: number of logits, at least 2 for B-cos networks.
        weights: "imagenet" (efficientnet_lite*), "scenes" (bcos_scenes), or a file of the net's tensors. A head for
            another number of classes is not loaded.

    The depths are "Input", "Mid1", "Mid2", "Mid3" and "Final"; an unknown architecture has "Input" only. For X-DNNs,
    IxG equals Integrated Gradients with the mean colour as baseline; untrained, their maps are zero. ValueError for a
    wrong argument, or a tensor that does not fit; FileNotFoundError; ImportError for a missing package of weights.
    """
    check_value(num_classes >= 1, "num_classes", num_classes, "at least 1")
    keep_memory()  # before anything runs: the first passes would be slow
    net = ARCHITECTURES[name](num_classes) if name in ARCHITECTURES else _timm(name, num_classes)
    if weights is not None:
        load(net, name, weights)
    return Model(name, num_classes, net)


def _depths(net: nn.Module) -> dict[str, str]:
    """Depths Mid1, Mid2, Mid3 and Final, and their paths in `net`; none for an unknown architecture."""
    kind = type(net).__name__
    if hasattr(net, "depths"):  # set by `models.wrap`, or by the network's author
        return {depth: path for depth, path in net.depths.items() if path}
    if kind in _TIMM_CNNS and hasattr(net, "feature_info"):
        stages = [info["module"] for info in net.feature_info][-4:]
        paths = [*stages[:3], _FINAL.get(kind, stages[3])]
    elif isinstance(net, VisionTransformer | Eva):
        # The class token reads the patch tokens last inside the last block. At its output they get no gradient.
        paths = [f"blocks.{k}" for k in range(len(net.blocks) - (net.global_pool == "token"))]
    elif isinstance(net, nn.Sequential) and isinstance(net[0], SimpleViT):
        paths = [f"0.transformer.encoder_{k}" for k in range(len(net[0].transformer))]
    else:
        paths = STAGES.get(kind)
    quarters = [round(len(paths) * k / 4) - 1 for k in (1, 2, 3, 4)] if paths else []
    return {depth: paths[k] for depth, k in zip(("Mid1", "Mid2", "Mid3", "Final"), quarters, strict=False)}


def _timm(name: str, num_classes: int) -> nn.Module:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*ARCHITECTURES, *timm.list_models()], n=5)
        raise ValueError(f"unknown model {name!r}; close names: {', '.join(close) or 'none'}")
    vit = timm.models.is_model_in_modules(name, ("vision_transformer", "deit", "eva"))
    return timm.create_model(name, num_classes=num_classes, **({"dynamic_img_size": True} if vit else {}))


def _lite(name: str, num_classes: int) -> nn.Module:
    """An EfficientNet-Lite, with the normalisation that its weights in `weights.IMAGENET` expect."""
    net = timm.create_model(f"tf_{name}", num_classes=num_classes)
    net.pretrained_cfg = net.pretrained_cfg | {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    return net


def _shufflenet(name: str, num_classes: int) -> nn.Module:
    net = torchvision.models.get_model(name, num_classes=num_classes)
    net.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "classifier": "fc"}
    return net


def _xdnn(name: str, num_classes: int) -> nn.Module:
    """A ResNet without biases and norms, with Fixup initialisation and multipliers (Zhang et al. 2019, section 3)."""
    net = timm.create_model(name, num_classes=num_classes, norm_layer=nn.Identity)
    blocks = [block for stage in (net.layer1, net.layer2, net.layer3, net.layer4) for block in stage]
    for block in blocks:
        convs = [module for module in block.children() if isinstance(module, nn.Conv2d)]
        for conv in convs[:-1]:
            conv.weight.data *= len(blocks) ** (-1 / (2 * len(convs) - 2))
        nn.init.zeros_(convs[-1].weight)
        setattr(block, f"bn{len(convs)}", LayerScale2d(1, 1.0))  # one scalar, 1 at the start
    net.fc = nn.Linear(net.num_features, num_classes, bias=False)
    nn.init.zeros_(net.fc.weight)
    return net


def _bcos(network: Callable[..., nn.Module], num_classes: int) -> nn.Module:
    """A B-cos network with the logit bias -log(num_classes - 1)."""
    check_value(num_classes >= 2, "num_classes", num_classes, "at least 2: B-cos networks add -log(num_classes - 1)")
    net = network(num_classes=num_classes)
    [layer] = (module for module in net.modules() if isinstance(module, LogitLayer))
    layer.logit_bias = -math.log(num_classes - 1)  # bcos always sets -log 999
    return net


def _bcosified(name: str, num_classes: int) -> nn.Module:
    """A B-cos network with B = 2, whose weights data/bcosify.py fits."""
    return bcosify(Model(name, num_classes, _lite(name, num_classes)), 2).net


# The small B-cos network that data/train_bcos.py trains.
_no_bias = norms.NoBias(norms.BatchNormUncentered2d)
_scenes = partial(
    BcosResNet, BasicBlock, [2, 2, 2, 2], inplanes=32, norm_layer=_no_bias, conv_layer=BcosConv2d, logit_temperature=0.1
)

# Name -> function from the number of classes to a network, which gets images, float (B, 3, H, W) in [0, 1]; normalised
# if it has a `pretrained_cfg`, as networks of timm have; as [x, 1 - x] if it is B-cos. Add your own.
ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    **{name: partial(_lite, name) for name in IMAGENET},
    **{f"bcos_{n}": partial(_bcos, getattr(bcos_nets, n)) for n in bcos_nets.list_available() if "standard_" not in n},
    **{f"bcos_{name}": partial(_bcos, partial(_bcosified, name)) for name in IMAGENET},
    "bcos_scenes": partial(_bcos, _scenes),
    **{f"xdnn_resnet{n}": partial(_xdnn, f"resnet{n}") for n in (18, 34, 50, 101, 152)},
    **{n: partial(_shufflenet, n) for n in (f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0"))},
}


class Wrapped(nn.Module):
    """Any network, with the attributes that `explain`, `Guide`, `Distill` and `evaluate` read; it shares parameters.

    Args:
        net: a network that takes images (B, 3, H, W).
        depths: {name: path of a module of `net`}, for example {"Final": "layer4"}; ValueError for a wrong path.
            "Input" is the image that `net` gets. If a module in `net` normalises it, give that module's path.
        prefix_tokens: number of tokens before the patch tokens in outputs (B, N, C); 1 for a class token.
        reshape: a function from a layer's output to (B, C, h, w), needed unless the output has this shape or is patch
            tokens row by row. For channels last: `lambda a: a.permute(0, 3, 1, 2)`. It applies to all layers but Input.
        logits: a function (net, images) -> logits (B, C), for a network with a second input or a text encoder, or for
            segmentation. A second input must be a constant, or follow from the images, which may come in any batches.
            A tensor, `.logits`, ["logits"] and the first of a tuple are understood without it.
    """

    def __init__(
        self,
        net: nn.Module,
        depths: Mapping[str, str] | None = None,
        prefix_tokens: int = 0,
        reshape: Callable[[Tensor], Tensor] | None = None,
        logits: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        depths, modules = {"Input": ""} | dict(depths or {}), dict(net.named_modules())
        for name, path in depths.items():
            if path not in modules:
                raise ValueError(f"depths: {name!r} is {path!r}; the network has no module at this path")
        self.net, self.depths = net, {name: path and f"net.{path}" for name, path in depths.items()}  # paths from here
        self.prefix_tokens, self.reshape, self.logits = prefix_tokens, reshape, logits

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.net(images) if self.logits is None else self.logits(self.net, images))

    def get_submodule(self, target: str) -> nn.Module:  # a path may also begin inside `net`
        try:
            return super().get_submodule(target)
        except AttributeError:
            return self.net.get_submodule(target)


wrap = Wrapped
