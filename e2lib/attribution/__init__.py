"""Explanations as maps one can train through.

`explain` runs a network once and returns its logits together with one attribution map per image and target. With
`create_graph=True` the maps are differentiable with respect to the network's parameters, so any function of them can be
a loss (model guidance, explanation-enhanced distillation). Methods that only serve evaluation go through the same call.

A differentiable method is one short function of a layer's activations and of the gradient of the explained score with
respect to them; which score is explained is data (`targets`), where in the network is a name (`at`).
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from bcos.modules.common import DetachableModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


class Explanation(NamedTuple):
    """What `explain` returns: `logits` (B, C) and `maps` (B, K, H, W), signed, at the size of the images."""

    logits: Tensor
    maps: Tensor


# ---- the differentiable methods: activations a (B, C, h, w), gradient g of the score (B, C, h, w) -> map (B, 1, h, w)


def _input_x_gradient(a: Tensor, g: Tensor) -> Tensor:
    return (a * g).sum(1, keepdim=True)


def _gradcam(a: Tensor, g: Tensor) -> Tensor:
    return F.relu((g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True))


def _gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    # Chattopadhay et al., WACV 2018, eq. 19: the weights of a pixel's positive gradient; 0/0 counts as 0.
    denominator = 2 * g**2 + (a * g**3).sum((2, 3), keepdim=True)
    alpha = torch.where(denominator != 0, g**2 / torch.where(denominator != 0, denominator, 1), 0)
    return F.relu(((alpha * F.relu(g)).sum((2, 3), keepdim=True) * a).sum(1, keepdim=True))


# ---- the methods of captum: score(input (B, ...), weights (B, C)) -> (B,), input -> attribution like input
# (imported where they are used: that takes half a second, and most readers never ask for them)


def _occlusion(score: nn.Module, x: Tensor, weights: Tensor, steps: int) -> Tensor:
    import captum.attr

    window = [max(1, s // 4) for s in x.shape[2:]]
    stride = [max(1, s // 8) for s in x.shape[2:]]
    channels = x.shape[1]  # hidden together, so each of them holds the whole loss
    return captum.attr.Occlusion(score).attribute(
        x, (channels, *window), (channels, *stride), baselines=0, additional_forward_args=weights
    )[:, :1]


def _deeplift(score: nn.Module, x: Tensor, weights: Tensor, steps: int) -> Tensor:
    import captum.attr

    zero = torch.zeros_like(x)
    parts = captum.attr.DeepLift(_with_plain_relus(score)).attribute(x, zero, additional_forward_args=weights)
    # Complete by definition; captum silently passes the plain gradient through layers it has no rule for.
    with torch.no_grad():
        difference = score(x, weights) - score(zero, weights)
    error = (parts.flatten(1).sum(1) - difference).abs()
    scale = torch.maximum(difference.abs(), 1e-3 * parts.flatten(1).abs().sum(1))  # the latter bounds the rounding
    relative = (error / scale.clamp(min=1e-12)).max()
    if not relative <= 0.05:
        raise ValueError(
            f"method 'deeplift': the maps miss the score's difference from the zero input by up to {relative:.0%}; "
            "captum has no DeepLIFT rule for some layers of this network (LayerNorm, attention, B-cos)"
        )
    return parts


def _gradient_shap(score: nn.Module, x: Tensor, weights: Tensor, steps: int) -> Tensor:
    import captum.attr

    # One sample a call: captum would run all of them as one batch, which takes `steps` times the memory.
    options = dict(baselines=torch.zeros_like(x[:1]), n_samples=1, stdevs=0.09, additional_forward_args=weights)
    return sum(captum.attr.GradientShap(score).attribute(x, **options) for _ in range(steps)) / steps


TRAINABLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ixg": _input_x_gradient,
    "integrated_gradients": _input_x_gradient,
    "gradcam": _gradcam,
    "bcos": _input_x_gradient,
}
LAYER_EVALUATION = {"gradcam++": _gradcam_plus_plus}
CAPTUM = {"occlusion": _occlusion, "deeplift": _deeplift, "gradient_shap": _gradient_shap}
METHODS = (*TRAINABLE, *LAYER_EVALUATION, *CAPTUM, "attention_rollout")


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | Callable[[Tensor], Tensor],
    method: str = "ixg",
    at: str = "Input",
    create_graph: bool = False,
    steps: int = 32,
    keep_modes: bool = False,
) -> Explanation:
    """Explain `targets` of `images` by `method` on the activations `at` a depth of the network.

    | method | map at layer activations a, score s | source |
    |---|---|---|
    | `ixg` | Σ_c a ∂s/∂a | Input x Gradient, Shrikumar et al. 2016 |
    | `integrated_gradients` | Σ_c a ∫₀¹ ∂s/∂a (αa) dα, by Gauss-Legendre quadrature | Sundararajan et al. 2017 |
    | `gradcam` | ReLU(Σ_c a mean_hw(∂s/∂a)) | Selvaraju et al. 2017 |
    | `bcos` | contribution map Σ_c [Wᵀ(x)]_s a of a B-cos network, its dynamic weights held fixed | Böhle et al. 2022 |
    | `gradcam++` | Grad-CAM with weights per pixel (evaluation only) | Chattopadhay et al. 2018 |
    | `occlusion` | score lost under a grey window, a quarter of the image wide (evaluation only) | Zeiler 2014 |
    | `deeplift` | rescale rule against the zero input (evaluation only) | Shrikumar et al. 2017 |
    | `gradient_shap` | expected gradients from the zero input, noise 0.09 (evaluation only) | Lundberg, Lee 2017 |
    | `attention_rollout` | mean attention of a ViT multiplied up, one for all targets (evaluation only) | Abnar 2020 |

    The network runs in eval mode, so that no image's map depends on the others of its batch; every module's mode, the
    hooks, the random number generators and the `.grad` fields are as before afterwards, also after an exception.

    Args:
        model: network from images to logits (B, C); one of `models.build` knows depth names, any other takes module
            paths.
        images: (B, 3, H, W) float, in [0, 1] for the networks of `models.build`.
        targets: what to explain. int64 (B,) or (B, K): classes, where -1 means none (a zero map). Or float (B, C) or
            (B, K, C): weights of the logits in the explained score, for example +1 and -1 for a difference. Or a
            function that makes one of these of the detached logits (B, C): `lambda z: z.argmax(1)` for the top class.
        method: one of `METHODS`.
        at: a name of `model.depths` (Input, Mid1, Mid2, Mid3, Final) or the path of a module whose output (B, C, h, w),
            or tokens (B, N, C), is explained. `captum`'s methods and attention rollout explain the input.
        create_graph: keep the graph, for training through the maps. Otherwise logits and maps are detached.
        steps: quadrature points of Integrated Gradients, samples of Gradient SHAP.
        keep_modes: leave each module in train or eval mode, as it is, while a differentiable method runs: norm layers
            in train mode use the batch's statistics, and learn them. Maps at a layer before such a norm then depend
            on all images of the batch, and dropout draws random numbers. For training networks that have not learned
            their statistics yet.

    Returns:
        `Explanation`: logits (B, C) of the one forward pass, and maps (B, K, H, W), signed, brought to the images'
        size bilinearly. K targets cost K backward passes for the batch.

    Raises:
        ValueError: an unknown method or depth, `keep_modes` or targets as a function with a method that explains the
            input for evaluation, `method="bcos"` on a network that is not B-cos, `create_graph=True` with
            a method that is for evaluation only, images or targets of a wrong shape, type or range, `steps` below 1, a
            layer (B, h, w, C), `deeplift` on layers that captum has no rule for (LayerNorm, attention, B-cos).

    Notes:
        The map of a B-cos network has the exact parameter gradient: the dynamic weights stay fixed while the
        explanation's backward pass runs, and depend on the parameters everywhere else. Detaching them in the forward
        pass, as package `bcos` does, gives the same map but another gradient. Contributions at Input add up to the
        logit less `model.logit_bias` in networks without other additive terms (position embeddings, centred norms).
        Integrated Gradients runs from the zero activation of the layer (at Input: of the normalised image), and costs
        `steps` further forward passes.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if create_graph and method not in TRAINABLE:
        raise ValueError(
            f"method {method!r} is for evaluation and cannot be trained through; "
            f"with create_graph=True use one of {', '.join(TRAINABLE)}"
        )
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    _check_images(model, images)
    if method in CAPTUM or method == "attention_rollout":
        if keep_modes or callable(targets):
            raise ValueError(f"method {method!r} is for evaluation: it takes targets as tensors, and no keep_modes")
        if at != "Input":
            raise ValueError(f"method {method!r} explains the input; at is {at!r}, it must be 'Input'")
        return _evaluate(model, images, targets, method, steps)

    with _explaining(model, method == "bcos", create_graph, keep_modes) as mode:
        logits, layer = _forward(model, images, at, mode)
        weights = _score_weights(targets, logits)
        if method == "integrated_gradients":
            gradients = _path_gradients(model, images, at, mode, layer, weights, create_graph, steps)
        else:
            gradients = mode.gradients(logits, layer, weights, create_graph)
        function = TRAINABLE.get(method) or LAYER_EVALUATION[method]
        a = as_grid(layer, model, images)
        maps = torch.cat([function(a, as_grid(g, model, images)) for g in gradients], 1)  # (B, K, h, w)
        size = getattr(model, "image_size", images.shape[2:])  # a `models.Head` is given features in place of images
        if maps.shape[2:] != size:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return Explanation(logits, maps) if create_graph else Explanation(logits.detach(), maps.detach())


def against_others(classes: Tensor, count: int) -> Tensor:
    """Targets for `explain`: each class's logit less the mean of the other logits.

    classes int64 (B,) or (B, K), -1 for none; count, of classes, at least 2 (else ValueError) -> float32 (B, K, C).
    """
    if count < 2:
        raise ValueError(f"count is {count}; one class has no others to be set against")
    chosen = F.one_hot(classes.reshape(len(classes), -1) + 1, count + 1)[..., 1:].float()  # (B, K, C)
    return (chosen * count - chosen.sum(-1, keepdim=True)) / (count - 1)


def dynamic_weights(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | Callable[[Tensor], Tensor],
    create_graph: bool = False,
    keep_modes: bool = False,
) -> tuple[Tensor, Tensor]:
    """The rows of W(x) that a B-cos network applies to its six-channel input for `targets`.

    The explained score is s = Σ [W(x)]_s · x + bias (Böhle et al., CVPR 2022, eq. 13): `W * x` summed over channels is
    the contribution map.

    Args:
        model: a B-cos network.
        images: (B, 3, H, W) float in [0, 1].
        targets: int64 (B,) or float (B, C), or a function, as for `explain`.
        create_graph: keep the graph, as for `explain`.
        keep_modes: as for `explain`.

    Returns:
        logits (B, C) and the weights (B, 6, H, W), channels (r, g, b, 1-r, 1-g, 1-b), with the exact parameter gradient
        when `create_graph`.

    Raises:
        ValueError: the network is not B-cos, or images or targets are of a wrong shape, type or range.
    """
    _check_images(model, images)
    with _explaining(model, True, create_graph, keep_modes) as mode:
        logits, layer = _forward(model, images, "Input", mode)
        weights = _score_weights(targets, logits)
        if weights.shape[1] != 1:
            raise ValueError(f"targets are {weights.shape[1]} an image; one is wanted: (B,) or (B, C)")
        (w,) = mode.gradients(logits, layer, weights, create_graph)
    return (logits, w) if create_graph else (logits.detach(), w.detach())


# ---- networks as explanations are differentiated through them: exactly, and fast


class _Differentiable(TorchFunctionMode):
    """While active, explanations of what the network computes have exact parameter gradients, at little cost.

    Dynamic weights (`dynamic`): the modules of package `bcos` detach exactly the factors of their dynamic weights when
    they are in explanation mode (convolution, linear, norm and attention layers alike). Here `.detach()` only marks
    them, and what is computed from them alone; where they meet anything else stands a gate, closed within `gradients`.

    After the explained layer (`found`): convolution, batch norm and relu in forms whose second derivative is fast.
    torch's own convolves with kernels as large as the images, group by group, and takes batch norm for one that is
    training.
    """

    def __init__(self, dynamic: bool):
        super().__init__()
        self.dynamic, self.found, self.closed = dynamic, False, False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.dynamic:
            if function is torch.Tensor.detach:
                return self._mark(_Gate.apply(args[0], self))
            tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.requires_grad]
            marked = [self._marked(x) for x in tensors]
            if marked and all(marked):
                return self._mark(function(*args, **kwargs))
            if any(marked):
                args, kwargs = tree_map(lambda x: _Gate.apply(x, self) if self._marked(x) else x, (args, kwargs))
        if self.found:
            fast = {F.conv2d: _conv2d, F.batch_norm: self._batch_norm, F.relu: _ReLU.apply}
            function = fast.get(function, function)
        return function(*args, **kwargs)

    def _mark(self, result):
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                x.dynamic_weight = True
        return result

    def _marked(self, x) -> bool:
        return isinstance(x, Tensor) and x.requires_grad and hasattr(x, "dynamic_weight")

    def _batch_norm(
        self, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ) -> Tensor:
        if training or any(x is not None and not x.is_leaf for x in (weight, bias)):
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        scale = (running_var + eps).rsqrt() if weight is None else (running_var + eps).rsqrt() * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
        return _BatchNorm.apply(input, scale, shift, self)

    def gradients(self, logits: Tensor, layer: Tensor, weights: Tensor, create_graph: bool) -> list[Tensor]:
        """Gradients (like layer), one per target, of the scores Σ_c weights (B, K, C) · logits (B, C)."""
        self.closed = True
        try:
            last = weights.shape[1] - 1
            return [
                torch.autograd.grad(
                    (logits * weights[:, k]).sum(),
                    layer,
                    create_graph=create_graph,
                    retain_graph=create_graph or k < last,
                )[0]
                for k in range(last + 1)
            ]
        finally:
            self.closed = False


class _Gate(torch.autograd.Function):
    """Identity; its backward passes the gradient on unless an explanation's backward pass runs."""

    @staticmethod
    def forward(ctx, x: Tensor, switch: _Differentiable) -> Tensor:
        ctx.switch = switch
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None]:
        return (None if ctx.switch.closed else grad), None


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    if input.ndim != 4 or isinstance(padding, str):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    switch = getattr(input, "explained_by", None)
    if torch.is_autocast_enabled(input.device.type):
        low = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = input.to(low), weight.to(low), None if bias is None else bias.to(low)
    where = *(list(_pair(v)) for v in (stride, padding, dilation)), False, [0, 0], groups
    return _Convolution.apply(input, weight, bias, _Weights.apply(weight, bias, [input], where), where, switch)


class _Convolution(torch.autograd.Function):
    """conv2d; the gradient for the weights goes by way of `weights`, so that it is only computed where it is wanted."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor, where: tuple, switch) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.where, ctx.switch = where, switch
        return torch.convolution(x, weight, bias, *where)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        wanted = ctx.switch is None or ctx.switch.closed
        return _Transposed.apply(grad, weight, [x], ctx.where) if wanted else None, None, None, grad, None, None


class _Weights(torch.autograd.Function):
    """Zeros, like the result of the convolution, whose gradient is that for its weights."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor | None, x: list[Tensor], where: tuple) -> Tensor:
        ctx.save_for_backward(x[0], weight)
        ctx.where, ctx.sizes = where, None if bias is None else [len(bias)]
        geometry = zip(x[0].shape[2:], weight.shape[2:], *where[:3], strict=True)
        size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
        return weight.new_zeros(()).expand(len(x[0]), len(weight), *size)

    @staticmethod
    def backward(ctx, grad: Tensor):
        mask = [False, True, ctx.sizes is not None]
        _, weight, bias = torch.ops.aten.convolution_backward(grad, *ctx.saved_tensors, ctx.sizes, *ctx.where, mask)
        return weight, bias, None, None


class _Transposed(torch.autograd.Function):
    """The gradient of conv2d for its input."""

    @staticmethod
    def forward(ctx, grad: Tensor, weight: Tensor, x: list[Tensor], where: tuple) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.where = where
        return torch.ops.aten.convolution_backward(grad, x[0], weight, None, *where, [True, False, False])[0]

    @staticmethod
    def backward(ctx, x: Tensor):
        grad, weight = ctx.saved_tensors
        weights = None
        if ctx.needs_input_grad[1]:
            mask = [False, True, False]
            weights = torch.ops.aten.convolution_backward(grad, x, weight, None, *ctx.where, mask)[1]
        return torch.convolution(x, weight, None, *ctx.where), weights, None, None


class _BatchNorm(torch.autograd.Function):
    """x · scale + shift in each channel; no explanation depends on these by way of anything but x."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, shift: Tensor, switch: _Differentiable) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.switch = switch
        return _normalise(x, scale, shift)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, scale = ctx.saved_tensors
        if ctx.switch.closed:
            return _Scaled.apply(grad, scale), None, None, None
        return *_normalise_backward(grad, x, scale, ctx.needs_input_grad[:3]), None


class _Scaled(torch.autograd.Function):
    """x · scale in each channel."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return _normalise(x, scale, torch.zeros_like(scale))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, scale = ctx.saved_tensors
        return _normalise_backward(grad, x, scale, [*ctx.needs_input_grad, False])[:2]


def _normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.batch_norm(x, scale, shift, zero, one, False, 0.0, 0.0, True)


def _normalise_backward(grad: Tensor, x: Tensor, scale: Tensor, mask) -> tuple:
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.ops.aten.native_batch_norm_backward(grad, x, scale, zero, one, None, None, False, 0.0, list(mask))


class _ReLU(torch.autograd.Function):
    """relu; its derivative has none."""

    @staticmethod
    def forward(ctx, x: Tensor, inplace: bool = False) -> Tensor:
        result = x.clamp_min(0)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _Where.apply(grad, *ctx.saved_tensors), None


class _Where(torch.autograd.Function):
    """x where `positive` is, zero elsewhere."""

    @staticmethod
    def forward(ctx, x: Tensor, positive: Tensor) -> Tensor:
        ctx.save_for_backward(positive)
        return torch.ops.aten.threshold_backward(x, positive, 0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _Where.apply(grad, *ctx.saved_tensors), None


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Put each module of `model` back into its mode, train or eval, at the end, also after an exception."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _explaining(
    model: nn.Module, bcos: bool = False, create_graph: bool = False, keep_modes: bool = False
) -> Iterator[_Differentiable]:
    """Eval mode, gradients on, attention twice differentiable, B-cos nets explaining; all restored at the end."""
    detachable = {m: m.detach for m in model.modules() if isinstance(m, DetachableModule)}
    if bcos and not detachable:
        raise ValueError(
            f"method 'bcos' explains B-cos networks; {getattr(model, 'name', type(model).__name__)!r} is none"
        )
    mode = _Differentiable(bcos)
    try:
        for module in detachable:
            module.detach = bcos
        with ExitStack() as stack:
            stack.enter_context(modes_restored(model))
            if not keep_modes:
                model.eval()
            stack.enter_context(torch.enable_grad())
            # Fused attention kernels have no second derivative.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if create_graph:
                stack.enter_context(mode)
            yield mode
    finally:
        for module, detach in detachable.items():
            module.detach = detach
        for buffer in model.buffers():  # B-cos norms update theirs with `.detach()`, which only marks: it would keep
            if buffer.grad_fn is not None:  # the graph of every step so far
                buffer.detach_()


# ---- one forward pass that also hands out a layer


def _forward(
    model: nn.Module, images: Tensor, at: str, mode: _Differentiable, replace: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and the activations of the layer `at`, which are `replace` instead where it is given."""
    path = getattr(model, "depths", {"Input": ""}).get(at, at)
    found, mode.found = [], False

    def fits(h: int, w: int) -> bool:
        """Whether (h, w) can be the grid of a layer: no larger than the images, their aspect up to rounding."""
        height, width = images.shape[2:]
        return h <= height and w <= width and abs(h * width - w * height) <= height + width

    def catch(module, inputs, output=None):
        layer = output if output is not None else inputs[0]
        if not isinstance(layer, Tensor) or layer.ndim not in (3, 4):
            raise ValueError(f"at={at!r}: the output of module {path!r} is no (B, C, h, w) or (B, N, C) tensor")
        if layer.ndim == 4 and not fits(*layer.shape[2:]) and fits(*layer.shape[1:3]):
            raise ValueError(
                f"at={at!r}: the output of module {path!r} has shape {tuple(layer.shape)}, channels last; "
                "(B, C, h, w) or (B, N, C) is wanted"
            )
        layer = layer if replace is None else replace
        found.append(layer if layer.requires_grad else layer.clone().requires_grad_())
        mode.found = True
        passed = found[-1].clone()  # a clone: the network may go on in place without changing what was caught
        if not layer.requires_grad:
            passed.explained_by = mode  # its gradient is wanted by the explanation alone
        return passed

    try:
        module = model.get_submodule(path)
    except AttributeError:
        known = ", ".join(getattr(model, "depths", {"Input": ""}))
        raise ValueError(f"at is {at!r}; it must be one of {known}, or the path of a module of the network") from None
    handle = module.register_forward_hook(catch) if path else module.register_forward_pre_hook(catch)
    try:
        logits = model(images)
    finally:
        handle.remove()
    if len(found) != 1:
        raise ValueError(f"at={at!r}: module {path!r} runs {len(found)} times in a forward pass; it must run once")
    if logits.ndim != 2:
        raise ValueError(f"the network's output has shape {tuple(logits.shape)}; logits (B, C) are wanted")
    return logits, found[0]


def grid_size(model: nn.Module, images: Tensor, at: str) -> tuple[int, int]:
    """Height and width of the activations at depth `at` for `images` (B, 3, H, W): of the maps before resizing."""
    with _explaining(model) as mode:
        _, layer = _forward(model, images, at, mode)
        return tuple(as_grid(layer, model, images).shape[2:])


def _path_gradients(model, images, at, mode, layer, weights, create_graph, steps) -> list[Tensor]:
    """Mean gradient on the straight path from zero to `layer`, one per target."""
    nodes, node_weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    total = None
    for node, weight in zip((nodes + 1) / 2, node_weights / 2, strict=True):
        point = (layer if create_graph else layer.detach()) * float(node)
        logits, point = _forward(model, images, at, mode, replace=point)
        gradients = mode.gradients(logits, point, weights, create_graph)
        scaled = [float(weight) * g for g in gradients]
        total = scaled if total is None else [t + s for t, s in zip(total, scaled, strict=True)]
    return total


def as_grid(tokens: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """Patch tokens (B, N, C) on their grid (B, C, h, w); feature maps pass through."""
    if tokens.ndim == 4:
        return tokens
    tokens = tokens[:, getattr(model, "prefix_tokens", 0) :]
    height = round((tokens.shape[1] * images.shape[2] / images.shape[3]) ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (height, -1))  # (B, C, N) -> (B, C, h, w)


def _score_weights(targets: Tensor | Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Targets in any of their forms as weights (B, K, C) of the logits."""
    targets = targets(logits.detach()) if callable(targets) else targets
    (batch, classes), shape = logits.shape, tuple(targets.shape)
    if targets.dtype == torch.int64 and targets.ndim in (1, 2) and shape[0] == batch:
        if targets.numel() and not -1 <= int(targets.min()) <= int(targets.max()) < classes:
            bad = targets[(targets < -1) | (targets >= classes)][0].item()
            raise ValueError(f"targets hold class {bad}; they must lie in 0..{classes - 1}, or be -1 for none")
        targets = targets.reshape(batch, -1).to(logits.device)
        return F.one_hot(targets + 1, classes + 1)[..., 1:].to(logits.dtype)
    if targets.is_floating_point() and targets.ndim in (2, 3) and (shape[0], shape[-1]) == (batch, classes):
        return targets.reshape(batch, -1, classes).to(logits)
    raise ValueError(
        f"targets have shape {shape} and type {targets.dtype}; for {batch} images and {classes} classes they must be "
        f"int64 ({batch},) or ({batch}, K), or float ({batch}, {classes}) or ({batch}, K, {classes})"
    )


def _check_images(model: nn.Module, images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}; float (B, 3, H, W) is wanted"
        )
    if hasattr(model, "preprocess") and images.numel() and not 0 <= images.min() <= images.max() <= 1:
        low, high = images.min().item(), images.max().item()
        raise ValueError(
            f"images lie in [{low:.3g}, {high:.3g}]; they must be in [0, 1]: networks of models.build normalise them"
        )


# ---- evaluation only


class _Score(nn.Module):
    """The explained score (B,) as a module, the form captum wants."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return (self.net(x) * weights).sum(1)


class _ReLU6(nn.Module):
    """ReLU6 out of two ReLUs, for which DeepLIFT has a rule."""

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        # A clone: captum sets the gradient of what a rectifier is given, which must not be what the other one reads.
        return self.low(x.clone()) - self.high(x - 6)


def _with_plain_relus(net: nn.Module) -> nn.Module:
    """A copy whose rectifiers DeepLIFT can hook: none in place, no ReLU6."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        if hasattr(module, "inplace"):
            module.inplace = False
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, _ReLU6())
    return net


def _evaluate(model: nn.Module, images: Tensor, targets: Tensor, method: str, steps: int) -> Explanation:
    encode, net = getattr(model, "preprocess", nn.Identity()), getattr(model, "net", model)
    numpy_state = np.random.get_state()
    with _explaining(model), torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            torch.manual_seed(0)
            np.random.seed(0)  # Gradient SHAP draws from NumPy too
            with torch.no_grad():
                logits = model(images)
                weights = _score_weights(targets, logits)
                x = encode(images).clone()
            if method == "attention_rollout":
                rollout = _attention_rollout(model, images)
                maps = rollout.expand(-1, weights.shape[1], -1, -1)
            else:
                with warnings.catch_warnings():  # captum tells of the hooks it sets, and of gradients it asks for
                    warnings.filterwarnings("ignore", category=UserWarning, module="captum")
                    parts = [CAPTUM[method](_Score(net), x, weights[:, k], steps) for k in range(weights.shape[1])]
                maps = torch.stack([part.sum(1) for part in parts], 1)
        finally:
            np.random.set_state(numpy_state)
    return Explanation(logits, maps.detach())


@torch.no_grad()
def _attention_rollout(model: nn.Module, images: Tensor) -> Tensor:
    """Product over blocks of (A + I) / 2, read at the token(s) that the head pools: (B, 1, H, W)."""
    layers = [m for m in model.modules() if hasattr(m, "fused_attn") and hasattr(m, "attn_drop")]
    if not layers:
        raise ValueError(
            "method 'attention_rollout' explains timm's vision transformers; this network has no attention"
        )
    attentions, fused = [], [m.fused_attn for m in layers]
    handles = [m.attn_drop.register_forward_hook(lambda m, i, out: attentions.append(out.mean(1))) for m in layers]
    try:
        for layer in layers:
            layer.fused_attn = False  # the fused kernel never forms the attention matrix
        model(images)
    finally:
        for handle, layer, value in zip(handles, layers, fused, strict=True):
            handle.remove()
            layer.fused_attn = value
    rollout = torch.eye(attentions[0].shape[-1], device=images.device, dtype=attentions[0].dtype)
    for attention in attentions:  # (B, N, N)
        rollout = (attention + torch.eye(attention.shape[-1]).to(attention)) @ rollout / 2
    prefix = getattr(model, "prefix_tokens", 0)
    class_token = prefix and getattr(getattr(model, "net", model), "global_pool", None) == "token"
    relevance = rollout[:, 0] if class_token else rollout[:, prefix:].mean(1)  # (B, N)
    maps = as_grid(relevance.unsqueeze(-1), model, images)
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
