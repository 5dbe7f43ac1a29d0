"""One forward pass that hands out a layer, and access to what `models.wrap` says of a network."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from e2lib.attribution.double_backward import Exact
from e2lib.datasets.files import check_value


def bare(model: nn.Module) -> nn.Module:
    """The network inside torch's wrappers: DataParallel, DistributedDataParallel, AveragedModel."""
    while isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
        model = model.module
    return model


def refuse_distributed(model: nn.Module) -> None:
    """ValueError for a DistributedDataParallel network: it averages gradients of a plain pass, not of a step."""
    if isinstance(model, DistributedDataParallel):
        cure = "DistributedDataParallel(training.StepModule(net, step))"
        raise ValueError(f"model is a DistributedDataParallel; it must go around network and step together: {cure}")


def module_at(model: nn.Module, at: str) -> nn.Module:
    """The module whose output is the layer `at`, a depth or path. ValueError for an unknown `at`, and the image."""
    net, path = bare(model), _path(model, at)
    if path == "":
        cure = "models.wrap(net, depths={'Input': path}) names the module that normalises it, if there is one"
        raise ValueError(f"at is {at!r}, the image itself; it must be the output of a module: {cure}")
    try:
        return net.get_submodule(path)
    except AttributeError:
        known = ", ".join(getattr(net, "depths", ["Input"]))
        cure = "" if hasattr(net, "depths") else '; models.wrap(net, depths={"Final": "layer4"}) names depths'
        raise ValueError(f"at is {at!r}; it must be one of {known}, or the path of a module{cure}") from None


def is_input(model: nn.Module, at: str) -> bool:
    """Whether the layer `at` is the image as the network sees it."""
    return _path(model, at) in ("", _path(model, "Input"))


def _path(model: nn.Module, at: str) -> str:
    return getattr(bare(model), "depths", {"Input": ""}).get(at, at)


def logits_of(output) -> Tensor:
    """Logits (B, C) in a network's output: a tensor, `.logits`, ["logits"] or the first of a tuple; else ValueError."""
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
        cure = "models.wrap(net, logits=lambda net, images: ...) says how to get them"
        raise ValueError(f"the network's output has {found}; logits (B, C) are wanted: {cure}")
    return output


def _called(model: nn.Module, images: Tensor) -> Tensor:
    try:
        return logits_of(model(images.clone()))  # a clone, as the network may change its images in place
    except TypeError as error:
        cure = "models.wrap(net, logits=lambda net, images: ...) says how"
        raise ValueError(f"the network cannot be called with images alone: {error}; {cure}") from error


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, C) of images (B, 3, H, W), with the right gradient for one image too (see `Exact`)."""
    with Exact() if len(images) == 1 else nullcontext():
        return _called(model, images)


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """At the end, also after an exception, each module of `model` is back in its mode, train or eval."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def explaining(model: nn.Module, dynamic=False, create_graph=False, keep_modes=False) -> Iterator[Exact]:
    """Gradients on and exact, eval mode unless `keep_modes`, B-cos layers explaining if `dynamic`; all restored."""
    detachable = {m: m.detach for m in model.modules() if hasattr(m, "set_explanation_mode") and hasattr(m, "detach")}
    check_value(detachable or not dynamic, "method", "bcos", "another, as the network has no B-cos layers")
    with modes_restored(model), torch.inference_mode(False), torch.enable_grad():
        try:
            for module in detachable:
                module.detach = dynamic
            if not keep_modes:
                model.eval()
            with Exact(create_graph, dynamic) as mode:
                yield mode
        finally:
            for module, detach in detachable.items():
                module.detach = detach
            for buffer in model.buffers():
                if buffer.grad_fn is not None:  # of B-cos norms, whose `.detach()` only marked: graphs would pile up
                    buffer.detach_()


@torch.inference_mode(False)
def outside_inference(x):
    """A tensor or network `x`, or a copy that can have gradients if `x` was made in `torch.inference_mode`."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    return copy.deepcopy(x) if any(t.is_inference() for t in (*x.parameters(), *x.buffers())) else x


def forward(model: nn.Module, images: Tensor, at: str, mode: Exact, replace=None) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and the activations of the layer `at`. The tensor `replace`, if given, takes their place."""
    net, before = bare(model), _path(model, at) == ""
    found, mode.found = [], False

    def catch(module, inputs, output=None):
        outputs = inputs if before else output
        layer = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
        _check_layer(layer, net, images, at)
        layer = layer if replace is None else replace
        found.append(layer if layer.requires_grad else layer.clone().requires_grad_())
        passed = found[-1].clone()  # a clone: the network may go on in place without changing what was caught
        mode.found, mode.start = True, None if layer.requires_grad else passed.grad_fn
        return (passed, *outputs[1:]) if isinstance(outputs, tuple) else passed

    hook = net.register_forward_pre_hook if before else module_at(net, at).register_forward_hook
    with hook(catch):
        logits = _called(net if isinstance(model, DataParallel) else model, images)
    if len(found) != 1:
        cure = "it must run once (gradient checkpointing may run the modules inside it instead)"
        raise ValueError(f"at={at!r}: module {_path(net, at)!r} runs {len(found)} times in a forward pass; {cure}")
    return logits, found[0]


class Score(nn.Module):
    """Σ_c weights · logits (B,), with weights (B, C), as a function of the (normalised) image that a network sees."""

    def __init__(self, model: nn.Module, images: Tensor, weights: Tensor, mode: Exact):
        super().__init__()
        self.model, self.images, self.weights, self.mode = bare(model), images, weights, mode

    def forward(self, x: Tensor) -> Tensor:
        times = len(x) // len(self.images)  # captum joins several inputs per image to one batch
        logits, _ = forward(self.model, self.images.repeat(times, 1, 1, 1), "Input", self.mode, replace=x)
        return (logits * self.weights.repeat(times, 1)).sum(1)


def _check_layer(layer, net, images, at) -> None:
    height, width = images.shape[2:]
    what = f"at={at!r}: the output of module {_path(net, at)!r}"
    if not isinstance(layer, Tensor) or layer.ndim not in (3, 4):
        raise ValueError(f"{what} is no (B, C, h, w) or (B, N, C) tensor")
    if layer.ndim == 4 and getattr(net, "reshape", None) is None:
        shapes = layer.shape[2:], layer.shape[1:3]  # a grid has the aspect of the images, up to rounding
        first, last = (abs(h * width - w * height) <= height + width for h, w in shapes)
        if last and not first:
            cure = "(B, C, h, w) or (B, N, C) is wanted: models.wrap(net, reshape=lambda a: a.permute(0, 3, 1, 2))"
            raise ValueError(f"{what} has shape {tuple(layer.shape)}, channels last; {cure}")


def as_grid(layer: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """Any layer but the input as (B, C, h, w): by the network's `reshape`, or tokens row by row; else ValueError."""
    if (reshape := getattr(bare(model), "reshape", None)) is not None:
        grid = reshape(layer)
        if grid.ndim != 4 or len(grid) != len(layer):
            raise ValueError(f"reshape made {tuple(grid.shape)} of {tuple(layer.shape)}; (B, C, h, w) is wanted")
        return grid
    if layer.ndim == 4:
        return layer
    prefix, (height, width) = getattr(bare(model), "prefix_tokens", 0), images.shape[2:]
    count = layer.shape[1] - prefix
    h = max(round((count * height / width) ** 0.5), 1)
    w = count // h
    if h * w != count or abs(h * width - w * height) >= max(height, width):
        cure = "models.wrap(net, prefix_tokens=1) leaves out a class token, reshape=function does any other way"
        raise ValueError(f"{count} tokens (and {prefix} before them) fill no grid of {height} x {width} images; {cure}")
    return layer[:, prefix:].transpose(1, 2).unflatten(2, (h, w))  # (B, C, N) -> (B, C, h, w)


def grid_size(model: nn.Module, images: Tensor, at: str) -> tuple[int, int]:
    """Height and width of activations at the depth `at`, and so of maps before resizing, for images (B, 3, H, W)."""
    with explaining(model) as mode:
        layer = forward(model, images, at, mode)[1]
        return tuple((layer if is_input(model, at) else as_grid(layer, model, images)).shape[2:])
