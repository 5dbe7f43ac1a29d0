"""The methods: how activations and gradients make a map. Each is a short function and a line in `METHODS`."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2lib.attribution.forward import Score, as_grid


def input_x_gradient(a: Tensor, g: Tensor) -> Tensor:
    """Σ_c a g: what each position adds to the score, to first order."""
    return (a * g).sum(1, keepdim=True)


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    """ReLU(Σ_c a mean_hw(g))."""
    return F.relu((g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True))


def gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Grad-CAM with a weight α at each positive gradient (Chattopadhay et al., WACV 2018, eq. 19; 0/0 is 0)."""
    denominator = 2 * g**2 + (a * g**3).sum((2, 3), keepdim=True)
    alpha = torch.where(denominator != 0, g**2 / torch.where(denominator != 0, denominator, 1), 0)
    return F.relu(((alpha * F.relu(g)).sum((2, 3), keepdim=True) * a).sum(1, keepdim=True))


def straight_line(a: Tensor, steps: int) -> Iterable[tuple[Tensor, float]]:
    """Points between zero and `a`, with the weights of Gauss-Legendre quadrature over [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    return (((float(t) + 1) / 2 * a, float(w) / 2) for t, w in zip(nodes, weights, strict=True))


def occlusion(score: Score, x: Tensor, steps: int) -> Tensor:
    """The score lost under a zero window, a quarter of the image wide, averaged over the windows that hide a pixel."""
    # A window hides all channels, so each of them holds the whole loss.
    window, stride = ((x.shape[1], *(max(1, s // part) for s in x.shape[2:])) for part in (4, 8))
    with torch.no_grad():
        return _captum().Occlusion(score).attribute(x, window, stride, baselines=0)[:, :1]


def deeplift(score: Score, x: Tensor, steps: int) -> Tensor:
    """The rescale rule against the zero input; ValueError where the map misses the score's difference by over 5 %."""
    zero, model = torch.zeros_like(x), copy.deepcopy(score.model)
    for module in model.modules():  # captum cannot hook in-place modules; ReLU's rule suits ReLU6
        if hasattr(module, "inplace"):
            module.inplace = False
        if isinstance(module, nn.ReLU6):
            module.__class__, module.forward = nn.ReLU, F.relu6
    parts = _captum().DeepLift(Score(model, score.images, score.weights, score.mode)).attribute(x, zero)
    # DeepLIFT is complete, but captum silently passes the plain gradient through layers for which it has no rule.
    with torch.no_grad():
        difference = score(x) - score(zero)
    error = (parts.sum((1, 2, 3)) - difference).abs()
    scale = torch.maximum(difference.abs(), 1e-3 * parts.abs().sum((1, 2, 3)))  # the latter bounds the rounding
    relative = (error / scale.clamp(min=1e-12)).max()
    if not relative <= 0.05:
        missed = f"the maps miss the score's difference from the zero input by up to {relative:.0%}"
        why = "captum has no DeepLIFT rule for some layers of this network (LayerNorm, attention, B-cos)"
        raise ValueError(f"method 'deeplift': {missed}; {why}")
    return parts.sum(1, keepdim=True)


def gradient_shap(score: Score, x: Tensor, steps: int) -> Tensor:
    """Expected gradients between the zero input and x with noise 0.09, the mean of `steps` samples."""
    shap, zero = _captum().GradientShap(score), torch.zeros_like(x[:1])
    # One sample a call: captum would run all of them as one batch, which takes `steps` times the memory.
    parts = sum(shap.attribute(x, baselines=zero, n_samples=1, stdevs=0.09) for _ in range(steps)) / steps
    return parts.sum(1, keepdim=True)


def _captum():
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("occlusion, deeplift and gradient_shap need captum: pip install 'e2lib[captum]'") from error
    return captum.attr


@torch.no_grad()
def attention_rollout(score: Score, x: Tensor, steps: int) -> Tensor:
    """Product of (A + I) / 2 over the blocks, read at the token(s) that the head pools, whatever the score."""
    net, attentions = copy.deepcopy(score.model), []
    for layer in net.modules():
        if hasattr(layer, "fused_attn") and hasattr(layer, "attn_drop"):
            layer.fused_attn = False  # the fused kernel never forms the attention matrix
            layer.attn_drop.register_forward_hook(lambda m, i, out: attentions.append(out.mean(1)))
    net(score.images.clone())
    if not attentions:
        raise ValueError("method 'attention_rollout' explains timm's vision transformers; the network has no attention")
    rollout = identity = torch.eye(attentions[0].shape[-1]).to(attentions[0])
    for attention in attentions:  # (B, N, N)
        rollout = (attention + identity) @ rollout / 2
    prefix = getattr(net, "prefix_tokens", 0)
    class_token = prefix and getattr(getattr(net, "net", net), "global_pool", None) == "token"
    relevance = rollout[:, 0] if class_token else rollout[:, prefix:].mean(1)  # (B, N)
    return as_grid(relevance.unsqueeze(-1), net, score.images)


@contextmanager
def reproducible() -> Iterator[None]:
    """Random numbers from seed 0, of torch and NumPy (Gradient SHAP draws from both); restored at the end."""
    state = np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())), warnings.catch_warnings():
        # captum warns of its own hooks, and of gradients that it asks for
        warnings.filterwarnings("ignore", category=UserWarning, module="captum")
        try:
            torch.manual_seed(0)
            np.random.seed(0)
            yield
        finally:
            np.random.set_state(state)


class Method(NamedTuple):
    """How `explain` makes a map."""

    # A function of (a, g), the layer's activations and the score's gradient, both (B, C, h, w), tokens on their grid.
    # If `of_score`: of (score, x, steps), with a Module from the network's input x to (B,). Gives signed (B, 1, h, w).
    map: Callable[..., Tensor]
    # (layer, steps) -> pairs (point like layer, weight). Each point has a g and a map; the maps are summed by weight.
    # The point None is the layer itself, without a further forward pass.
    path: Callable[[Tensor, int], Iterable[tuple[Tensor | None, float]]] = lambda layer, steps: [(None, 1)]
    dynamic: bool = False  # holds the dynamic weights of a B-cos network fixed
    trainable: bool = True  # allows create_graph=True; other methods draw random numbers from seed 0
    wants_layer: bool = False  # says little at the input
    of_score: bool = False  # explains Input, by the score alone


METHODS: dict[str, Method] = {
    "ixg": Method(input_x_gradient),
    "integrated_gradients": Method(input_x_gradient, path=straight_line),
    "gradcam": Method(gradcam, wants_layer=True),
    "bcos": Method(input_x_gradient, dynamic=True),
    "gradcam++": Method(gradcam_plus_plus, trainable=False, wants_layer=True),
    "occlusion": Method(occlusion, trainable=False, of_score=True),
    "deeplift": Method(deeplift, trainable=False, of_score=True),
    "gradient_shap": Method(gradient_shap, trainable=False, of_score=True),
    "attention_rollout": Method(attention_rollout, trainable=False, of_score=True),
}


def trainable() -> list[str]:
    """The names of the methods that one can train through."""
    return [name for name, method in METHODS.items() if method.trainable]
