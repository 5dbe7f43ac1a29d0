"""A network in two parts: a frozen trunk, whose features are computed once, and a head that trains on them."""

import copy
import math
from types import MethodType

import torch
from bcos.models.vit import SimpleViT
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from e2lib.attribution.forward import modes_restored


class _Reached(Exception):
    """Carries the features out of a trunk."""


class _Same(nn.Identity):
    """Replaces a removed module. An Eva also passes rotations to its blocks."""

    def forward(self, x: Tensor, **_) -> Tensor:
        return x


class Trunk(nn.Module):
    """A network from images (B, 3, H, W) up to the module at `path` of its `net`; made by `split`."""

    def __init__(self, model: nn.Module, path: str):
        super().__init__()
        self.preprocess, self.net, self.path = model.preprocess, _part(model.net, path, before=True), path

    def forward(self, images: Tensor) -> Tensor:
        def stop(module, inputs, features):
            raise _Reached(features)

        with self.net.get_submodule(self.path).register_forward_hook(stop):
            try:
                self.net(self.preprocess(images))
            except _Reached as reached:
                found = reached.args[0]
        if found.ndim == 4:
            return found
        side = math.isqrt(found.shape[1])  # tokens fill no square if some are no patches
        return found.transpose(1, 2).unflatten(2, (side, side) if side**2 == found.shape[1] else (-1, 1))


class Head(nn.Module):
    """The end of a network, from features (B, C, h, w) to logits, with the depths that it holds; made by `split`.

    `explain` resizes maps to `explained_size`, in pixels. The head reads only the slice `channels` of the features.
    """

    def __init__(self, model: nn.Module, path: str, size: int):
        super().__init__()
        self.name, self.num_classes, self.is_bcos = model.name, model.num_classes, model.is_bcos
        self.logit_bias, self.explained_size, self.channels = model.logit_bias, (size, size), slice(None)
        self.net, self.prefix_tokens = _part(model.net, path, before=False), model.prefix_tokens
        names, there = [name for name, _ in model.net.named_modules()], dict(self.net.named_modules())
        later = {f"net.{name}" for name in names[names.index(path) :] if name in there}
        self.depths = {depth: at for depth, at in model.depths.items() if at in later}
        self.tokens = any(isinstance(module, VisionTransformer | SimpleViT | Eva) for module in model.modules())

    def forward(self, features: Tensor) -> Tensor:
        features = features[:, self.channels]
        return self.net(features.flatten(2).transpose(1, 2) if self.tokens else features)

    def reshape(self, layer: Tensor) -> Tensor:
        """A layer on its grid (B, C, h, w); the patch tokens of a square image fill a square."""
        if layer.ndim == 4:
            return layer
        patches = layer[:, self.prefix_tokens :].transpose(1, 2)
        return patches.unflatten(2, (math.isqrt(patches.shape[2]), -1))


def split(model: nn.Module, size: int, at: str | None = None) -> tuple[Trunk, Head]:
    """Cut a network of `build` into a frozen trunk and a head: head(trunk(images)) = model(images) in eval mode.

    Images have `size` x `size` pixels. Features are the output at the depth `at`, Mid1 to Final; by default at Mid3, in
    EfficientNets before the last 1x1 convolution. The head explains depths from there on. Training it trains the
    network, whose modules it shares. ValueError for a network that does not run these parts one after the other.
    """
    net = getattr(model, "net", None)
    places = {depth: path[4:] for depth, path in getattr(model, "depths", {}).items() if path.startswith("net.")}
    if at is None and type(net).__name__ == "EfficientNet":
        places |= {"Mid3": "blocks"}
    if (at or "Mid3") not in places or not hasattr(model, "num_classes"):
        known = ", ".join(places) or "none: `split` takes networks of `models.build`"
        raise ValueError(f"at is {at!r}; the depths of {type(net or model).__name__} are {known}")
    trunk, head = Trunk(model, places[at or "Mid3"]), Head(model, places[at or "Mid3"], size)
    parameter = next(model.parameters())
    image = torch.linspace(0, 1, 3 * size**2, device=parameter.device, dtype=parameter.dtype).view(1, 3, size, size)
    with torch.no_grad(), modes_restored(model):
        whole, found = model.eval()(image), head.eval()(trunk.eval()(image))
    if not torch.allclose(whole, found, 1e-3, 1e-4):
        raise ValueError(f"model is a {type(net).__name__}, which cannot be cut at {at or 'Mid3'}: give another depth")
    return trunk.requires_grad_(False).eval(), head


def _part(module: nn.Module, path: str, before: bool) -> nn.Module:
    """A shallow copy of the module: up to and including the one at `path` if `before`, else all behind that one."""
    name, _, inner = path.partition(".")
    result, names = copy.copy(module), list(module._modules)
    position = names.index(name)
    gone = names[position + 1 :] if before else [other for other in names[:position] if other != "rope"]
    result._modules = module._modules | {other: _Same() for other in gone if module._modules[other] is not None}
    if inner:
        result._modules[name] = _part(module._modules[name], inner, before)
    elif not before:
        result._modules[name] = _Same()
    if not before and isinstance(module, VisionTransformer | SimpleViT | Eva):  # the features contain positions
        placed = MethodType(_rotated, result) if isinstance(module, Eva) else nn.Identity()
        result.__dict__["_pos_embed"] = placed  # hides timm's method
        result.__dict__["positional_embedding"] = lambda tokens: 0
        result._modules.pop("positional_embedding", None)
    return result


def _rotated(net: Eva, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """The tokens, unchanged, and the rotations by their places, which each block gets."""
    side = math.isqrt(tokens.shape[1] - net.num_prefix_tokens)
    return tokens, None if net.rope is None else net.rope.get_embed(shape=(side, side))
