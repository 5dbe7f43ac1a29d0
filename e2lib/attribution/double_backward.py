"""Exact and fast gradients of explanations, second ones too: maps are gradients, and a loss differentiates maps."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_NORMS = {F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm}


class Exact(TorchFunctionMode):
    """While active, a network's gradients are exact, and one can train through its explanations.

    Always: batch and instance norm have the right gradient for one image. On a CPU, torch's own backward pass reads
    such a batch in the wrong memory format where a `flatten` and a `transpose` follow the norm.

    To train through maps (`twice`), `_FORMS` replace functions behind the explained layer (once it is `found`). torch's
    second derivative of conv2d convolves with kernels as large as the images, one group at a time. That of batch norm
    does the work of train mode. Hardsigmoid and fused attention have none.

    B-cos networks that explain (`dynamic`) detach the factors of their dynamic weights. Here `detach` only marks a
    tensor, and results of marked tensors alone are marked too. Where a marked tensor meets another, it passes a gate,
    which stops its gradient while `gradients` runs.
    """

    def __init__(self, twice: bool = False, dynamic: bool = False):
        super().__init__()
        self.twice, self.dynamic = twice, dynamic
        self.found = self.closed = False
        self.start = None  # where the graph behind the explained layer starts, if only maps need the layer's gradient

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.dynamic and self.twice:
            if function is torch.Tensor.detach:
                _refuse_checkpoints()
                return _mark(_Gate.apply(args[0], self))
            inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.requires_grad]
            marked = [x for x in inputs if hasattr(x, "dynamic_weight")]
            if marked and len(marked) == len(inputs):
                return _mark(function(*args, **kwargs))
            if marked:
                gates = {id(x): _Gate.apply(x, self) for x in marked}
                args, kwargs = tree_map(lambda x: gates.get(id(x), x), (args, kwargs))
        if self.found and self.twice and function in _FORMS:
            _refuse_checkpoints()
            return _FORMS[function](self, *args, **kwargs)
        return _norm(function, *args, **kwargs) if function in _NORMS else function(*args, **kwargs)

    def gradients(self, logits: Tensor, layer: Tensor, weights: Tensor, create_graph: bool) -> list[Tensor]:
        """Gradients (like layer), one per target, of the scores Σ_c weights (B, K, C) · logits (B, C)."""
        scores, last, found = (logits[:, None] * weights).sum((0, 2)), weights.shape[1] - 1, []
        self.closed = True
        try:
            for k, score in enumerate(scores):
                keep = create_graph or k < last
                found += torch.autograd.grad(score, layer, None, keep, create_graph, allow_unused=True)
        except RuntimeError as error:
            if logits.requires_grad and "use_reentrant" not in str(error):
                raise
        finally:
            self.closed = False
        if len(found) > last and not any(gradient is None for gradient in found):
            return found
        causes = "a layer that is not used, torch.no_grad, gradient checkpointing with use_reentrant=True"
        raise ValueError(f"at: no gradient leads from the logits to the explained layer ({causes})")


def _mark(result):
    for x in filter(torch.is_tensor, tree_leaves(result)):
        x.dynamic_weight = True
    return result


def _refuse_checkpoints() -> None:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint":
        cure = "checkpoint nothing of a B-cos network, or switch it off (timm: set_grad_checkpointing(False))"
        raise ValueError(f"create_graph=True: gradient checkpointing behind the explained layer saves nothing; {cure}")


def _conv2d(mode: Exact, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    if input.ndim != 4 or isinstance(padding, str):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    first = mode.start is not None and input.grad_fn is mode.start
    if torch.is_autocast_enabled(input.device.type):
        low = torch.get_autocast_dtype(input.device.type)
        input, weight, bias = input.to(low), weight.to(low), None if bias is None else bias.to(low)
    where = *(list(_pair(v)) for v in (stride, padding, dilation)), False, [0, 0], groups
    return _Inputs.apply(_Weights.apply(weight, bias, [input], where), input, weight, where, mode if first else None)


def _batch_norm(
    mode: Exact, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Tensor:
    if training or any(x is not None and not x.is_leaf for x in (weight, bias)):
        return _norm(F.batch_norm, input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    return _BatchNorm.apply(input, scale, shift, mode)


def _norm(function, input: Tensor, *args, **kwargs) -> Tensor:
    """torch's norm. Its backward pass gets the gradient in the memory format that it assumes."""
    result = function(input, *args, **kwargs)
    by_batch = function in (F.batch_norm, torch.batch_norm)
    if (len(input) == 1 or not by_batch) and result.requires_grad:  # instance norm treats any batch as one image
        layout = _layout(input) if by_batch else torch.contiguous_format
        result.register_hook(lambda grad: grad.contiguous(memory_format=layout))
    return result


def _layout(x: Tensor) -> torch.memory_format:
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _hardsigmoid(mode: Exact, input: Tensor, inplace: bool = False) -> Tensor:
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def _unfused(attention, mode: Exact, *args, **kwargs):
    with sdpa_kernel(SDPBackend.MATH):
        return attention(*args, **kwargs)


_FORMS = {
    F.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.relu: lambda mode, input, inplace=False: _ReLU.apply(input, inplace),
    F.hardsigmoid: _hardsigmoid,
    **{f: partial(_unfused, f) for f in (F.scaled_dot_product_attention, F.multi_head_attention_forward)},
}


class _Gate(torch.autograd.Function):
    """Identity; its backward passes the gradient on unless an explanation's backward pass runs."""

    @staticmethod
    def forward(ctx, x: Tensor, switch: Exact) -> Tensor:
        ctx.switch = switch
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None]:
        return (None if ctx.switch.closed else grad), None


class _Inputs(torch.autograd.Function):
    """The result of `_Weights`, which also has a gradient for conv2d's input."""

    @staticmethod
    def forward(ctx, result: Tensor, x: Tensor, weight: Tensor, where: tuple, switch: Exact | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.where, ctx.switch = where, switch
        ctx.mark_dirty(result)  # it is returned as it is
        return result

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        wanted = ctx.switch is None or ctx.switch.closed
        return grad, _Transposed.apply(grad, weight, [x], ctx.where) if wanted else None, None, None, None


class _Weights(torch.autograd.Function):
    """conv2d with gradients for its weights and bias alone, which are computed only where they are wanted."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor | None, x: list[Tensor], where: tuple) -> Tensor:
        ctx.save_for_backward(x[0], weight)
        ctx.where, ctx.sizes = where, None if bias is None else [len(bias)]
        return torch.convolution(x[0], weight, bias, *where)

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
        mask = [False, ctx.needs_input_grad[1], False]
        weights = torch.ops.aten.convolution_backward(grad, x, weight, None, *ctx.where, mask)[1]
        return torch.convolution(x, weight, None, *ctx.where), weights, None, None


class _BatchNorm(torch.autograd.Function):
    """x · scale + shift in each channel. An explanation treats scale and shift as constants."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, shift: Tensor, switch: Exact) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.switch = switch
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        return torch.batch_norm(x, scale, shift, zero, one, False, 0.0, 0.0, True)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, scale = ctx.saved_tensors
        zero, one, grad = torch.zeros_like(scale), torch.ones_like(scale), grad.contiguous(memory_format=_layout(x))
        if ctx.switch.closed:
            return _norm(torch.batch_norm, grad, scale, zero, zero, one, False, 0.0, 0.0, True), None, None, None
        rest = zero, one, None, None, False, 0.0, list(ctx.needs_input_grad[:3])
        return *torch.ops.aten.native_batch_norm_backward(grad, x, scale, *rest), None


class _ReLU(torch.autograd.Function):
    """relu, whose derivative counts as a constant."""

    @staticmethod
    def forward(ctx, x: Tensor, inplace: bool) -> Tensor:
        result = x.clamp_min_(0) if inplace else x.clamp_min(0)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, result.detach(), 0), None
