"""Depths of a network: the modules whose outputs are Mid1, Mid2, Mid3 and Final, by the network's class."""

from bcos.models.vit import SimpleViT
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# Paths of these modules, by the name of the class. A network's own attribute `depths` comes first.
STAGES = {
    "BcosResNet": ("layer1", "layer2", "layer3", "layer4"),
    "BcosDenseNet": ("features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"),
    "BcosConvNeXt": ("features.2", "features.4", "features.6", "features.8"),
    "ShuffleNetV2": ("maxpool", "stage2", "stage3", "conv5"),
}
# The feature_info of timm knows the stages of these, but not the last map where a 1x1 convolution makes it.
_TIMM_CNNS = ("ResNet", "DenseNet", "EfficientNet", "MobileNetV3", "ConvNeXt", "RegNet", "ByobNet", "VGG")
_FINAL = {"EfficientNet": "bn2", "RegNet": "final_conv"}


def depths(net: nn.Module) -> dict[str, str]:
    """Depth -> path in `net` of the module whose output is that layer; empty for an unknown architecture."""
    kind = type(net).__name__
    if hasattr(net, "depths"):  # a network of `models.wrap`, or one whose author has set them
        return {depth: path for depth, path in net.depths.items() if path}
    if kind in STAGES:
        paths = STAGES[kind]
    elif kind in _TIMM_CNNS and hasattr(net, "feature_info"):
        stages = [info["module"] for info in net.feature_info][-4:]
        paths = (*stages[:3], _FINAL.get(kind, stages[3]))
    elif isinstance(net, VisionTransformer | Eva):
        # A class token reads the patch tokens for the last time in the last block: they get no gradient at its output.
        paths = _quarters("blocks.{}", len(net.blocks) - (net.global_pool == "token"))
    elif isinstance(net, nn.Sequential) and isinstance(net[0], SimpleViT):
        paths = _quarters("0.transformer.encoder_{}", len(net[0].transformer))
    else:
        paths = ()
    return dict(zip(("Mid1", "Mid2", "Mid3", "Final"), paths, strict=False))


def prefix_tokens(net: nn.Module) -> int:
    """Number of tokens before the patch tokens in the outputs (B, N, D) of a transformer; 0 for other networks."""
    return net.num_prefix_tokens if isinstance(net, VisionTransformer | Eva) else getattr(net, "prefix_tokens", 0)


def _quarters(path: str, blocks: int) -> tuple[str, ...]:
    return tuple(path.format(round(blocks * k / 4) - 1) for k in (1, 2, 3, 4))
