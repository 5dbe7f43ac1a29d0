"""Pretrained networks as B-cos networks: the same function at B = 1, until `sharpen` raises B.

B-cosification: Arya, Rao, Böhle, Schiele, NeurIPS 2024. They remove the biases. Here a bias b stays, and maps are still
complete: b = b |x| / |x|, and the denominator counts as constant. So a layer's strong inputs account for its bias.
"""

import copy
import math

import timm.layers
import torch
import torch.nn.functional as F
from bcos.modules import DetachableModule, LogitLayer
from timm.layers import Conv2dSame, LayerNorm2d, pad_same
from torch import Tensor, nn

from e2lib.attribution import explain, modes_restored
from e2lib.datasets.files import check_value
from e2lib.models.weights import head_prefixes


class Part(DetachableModule):
    """A layer with a weight and a bias. In explanation mode (`detach`) its factors are detached, as in package bcos."""

    detach, b = False, 1.0  # `sharpen` sets B
    channels = -3  # the dimension that holds them

    def plus(self, out: Tensor, bias: Tensor | None, squares: Tensor) -> Tensor:
        """The output plus a bias per channel. Explanation mode needs the `squares` of the inputs in all channels."""
        if bias is None:
            return out
        bias = bias.view(-1, *[1] * (-1 - self.channels))
        if self.detach:
            norm = squares.sum(self.channels, keepdim=True).clamp(min=1e-24).sqrt()
            bias = bias * (norm / norm.detach())
        return out + bias

    def scaled(self) -> Tensor:
        """v = w |w|^(1/B - 1). For u = v · x, u (|u| / |x|)^(B-1) is w · x |cos(x, w)|^(B-1)."""
        norms = torch.linalg.vector_norm(self.weight.flatten(1), dim=1).view(-1, *[1] * (self.weight.ndim - 1))
        return self.weight * norms.clamp(min=1e-12) ** (1 / self.b - 1)

    def dynamic(self, u: Tensor, squares: Tensor) -> Tensor:
        """u (|u| / |x|)^(B-1), from u and |x|²."""
        cosine = u.abs() / (squares + 1e-6).sqrt()
        factor = cosine if self.b == 2 else cosine.clamp(min=1e-6) ** (self.b - 1)  # steep at 0, where B is below 2
        return u * (factor.detach() if self.detach else factor)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, B={self.b:g}"


class Linear(Part, nn.Linear):
    """w · x |cos(x, w)|^(B-1) + bias."""

    channels = -1

    def forward(self, x: Tensor) -> Tensor:
        out, squares = F.linear(x, self.scaled()), x.square()
        out = out if self.b == 1 else self.dynamic(out, squares.sum(-1, keepdim=True))
        return self.plus(out, self.bias, squares)


class Conv2d(Part, nn.Conv2d):
    """w · x |cos(x, w)|^(B-1) + bias for each patch x, of the channels of a group."""

    same = False  # True: it pads as TensorFlow does

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.kernel_size, self.stride, self.dilation) if self.same else x
        where = self.stride, self.padding, self.dilation, self.groups
        if self.b == 1 and not self.detach:
            return F.conv2d(x, self.weight, self.bias, *where)
        u, squares = F.conv2d(x, self.scaled(), None, *where), x.square()
        if self.groups < self.in_channels:
            squares = squares.unflatten(1, (self.groups, -1)).sum(2)
        squares = F.conv2d(squares, x.new_ones(self.groups, 1, *self.kernel_size), None, *where)
        if self.b == 1:
            return self.plus(u, self.bias, squares)
        wide = squares
        if 1 < self.groups < self.out_channels:
            wide = squares.repeat_interleave(self.out_channels // self.groups, 1)
        return self.plus(self.dynamic(u, wide), self.bias, squares)


class BatchNorm2d(Part, nn.BatchNorm2d):
    """(x - mean) / σ · weight + bias, in training mode with mean and σ of the batch. Both count as factors."""

    def forward(self, x: Tensor) -> Tensor:
        if self.detach:
            mean, var = self.running_mean, self.running_var
            if self.training:
                found, axes = x.detach(), (0, 2, 3)
                mean, var = found.mean(axes), found.var(axes, correction=0)
                for kept, new in ((self.running_mean, mean), (self.running_var, found.var(axes))):
                    kept.lerp_(new.detach().to(kept), self.momentum)
            scale = self.weight * (var + self.eps).rsqrt()
            out = self.plus(x * scale.view(-1, 1, 1), self.bias - mean * scale, x.square())
        else:
            out = nn.BatchNorm2d.forward(self, x)
        return self.act(out) if hasattr(self, "act") else out  # timm's norms hold the activation


class LayerNorm(Part, nn.LayerNorm):
    """(x - mean) / σ · weight + bias. Subtracting the mean is linear, and only 1 / σ is a factor."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(self.channels, keepdim=True)
        var = x.square().mean(self.channels, keepdim=True)
        x = x * ((var.detach() if self.detach else var) + self.eps).rsqrt()
        return self.plus(x * self.weight.view(-1, *[1] * (-1 - self.channels)), self.bias, x.square())


class Activation(DetachableModule):
    """f(x), in explanation mode x · f(x)/x with the factor detached. A gate, with f(0) ≠ 0, is a factor as a whole."""

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function = function
        self.gates = bool(function(torch.zeros(1, 1, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(x)
        if not self.detach:
            return y
        return y.detach() if self.gates else x * (y / torch.where(x == 0, 1, x)).detach()


def sharpen(model: nn.Module, b: float) -> nn.Module:
    """Set B, at least 1, of all layers in a network of `bcosify`; returns the network."""
    check_value(b >= 1, "b", b, "at least 1")
    for part in model.modules():
        if isinstance(part, Part):
            part.b = float(b)
    return model


def bcosify(model: nn.Module, b: float = 1.0) -> nn.Module:
    """A copy of a CNN of `models.build` as a B-cos network, which computes the same in eval mode at B = 1.

    The stem w · (x - m) / s of normalised RGB gets the weights w (1 - m) / s for x and -w m / s for 1 - x. Convolutions
    and linear layers gain |cos|^(B-1). The classifier's bias gains log(num_classes - 1), which the logits lose. At
    every B and depth, contributions add up to the logit less `logit_bias`. ValueError for a network of one class, of
    several classifiers, of parts other than convolutions, linear layers, batch and layer norms, activations and gates
    such as SE's, and for one that gives no equal B-cos network.
    """
    right = hasattr(model, "preprocess") and not model.is_bcos and model.num_classes > 1
    check_value(right, "model", type(model).__name__, "of models.build, with two classes or more, and no B-cos network")
    net, heads = copy.deepcopy(model.net), head_prefixes(model.net)
    check_value(len(heads) == 1, "model", model.name, "of one classifier")
    stems = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    check_value(len(stems) == 1, "model", model.name, "of one convolution of RGB images")
    for name, module in [*net.named_modules()]:
        _convert(net, name, module)
    [stem], seen = stems, model.preprocess
    mean, std = (stem.weight.new_tensor(getattr(seen, k, d)).view(-1, 1, 1) for k, d in (("mean", [0]), ("std", [1])))
    w = stem.weight.data / std
    stem.weight, stem.in_channels = nn.Parameter(torch.cat([w * (1 - mean), -w * mean], 1)), 6
    classifier, bias = net.get_submodule(heads[0][:-1]), -math.log(model.num_classes - 1)
    before = classifier.weight.new_zeros(model.num_classes) if classifier.bias is None else classifier.bias.data
    classifier.bias = nn.Parameter(before - bias)
    net.set_submodule(heads[0][:-1], nn.Sequential(classifier, LogitLayer(logit_bias=bias)))
    result = type(model)(f"bcos_{model.name}", model.num_classes, net)
    _check(model, result)
    return sharpen(result, b)


def _convert(net: nn.Module, name: str, module: nn.Module) -> None:
    """Turn the layer of this name into its B-cos twin; ValueError for a layer of an unknown kind."""
    kind, above = type(module), [net.get_submodule(name[:k]) for k, c in enumerate(name) if c == "."]
    gates = any(hasattr(parent, "gate") for parent in above)  # layers that compute a gate stay as they are
    affine = getattr(module, "weight", None) is not None and getattr(module, "bias", None) is not None
    if kind in (nn.Conv2d, Conv2dSame) and module.padding_mode == "zeros":
        module.__class__, module.same = (kind if gates else Conv2d), kind is Conv2dSame
    elif kind in (nn.Linear, timm.layers.Linear):
        module.__class__ = kind if gates else Linear
    elif isinstance(module, nn.BatchNorm2d) and affine and module.track_running_stats:
        if not gates:  # B > 1 makes small outputs, which must not drown in an eps such as 1e-3
            var = module.running_var
            module.weight.data *= ((var + 1e-12) / (var + module.eps)).sqrt()
            module.__class__, module.eps = BatchNorm2d, 1e-12
    elif isinstance(module, nn.LayerNorm) and affine and module.weight.ndim == 1:
        module.__class__, module.channels = LayerNorm, -3 if isinstance(module, LayerNorm2d) else -1
    elif kind.__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations")) and not affine:
        if not isinstance(module, nn.ReLU | nn.MultiheadAttention):  # a rectifier is linear for a given image
            module.inplace = False
            net.set_submodule(name, Activation(module))
    elif "Attention" in kind.__name__ or "weight" in dict(module.named_parameters(recurse=False)):
        known = "convolutions, linear layers, batch and layer norms with weight and bias, activations, and gates"
        raise ValueError(f"model: {name!r} is a {kind.__name__}; bcosify knows {known}")


def _check(model: nn.Module, result: nn.Module) -> None:
    """ValueError unless the result equals the model at B = 1, and its contributions add up to the logit."""
    weight = next(model.parameters())
    image = torch.linspace(0, 1, 3 * 64**2, device=weight.device, dtype=weight.dtype).view(1, 3, 64, 64)
    with torch.no_grad(), modes_restored(model), modes_restored(result):
        old, new = model.eval()(image), result.eval()(image)
    right = torch.allclose(old, new, 1e-3, 1e-3 * old.abs().max().item())
    what = f"one that computes the same at B = 1; logits differ by {(old - new).abs().max():.3g}"
    check_value(right, "model", model.name, what)
    logits, maps = explain(result, image, 0, method="bcos")
    missing = (maps.sum() + result.logit_bias - logits[0, 0]).abs()
    what = f"linear for a given image; its contributions miss the logit by {missing:.3g}"
    check_value(bool(missing <= 1e-3 * maps.abs().sum()), "model", model.name, what)
