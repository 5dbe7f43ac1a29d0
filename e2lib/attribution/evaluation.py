"""Methods for evaluation alone: captum's, imported where they are used, and attention rollout.

Each takes the explained score as a module, its input x (B, c, H, W) and a number of steps, and returns a map
(B, 1, H, W).
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from e2lib.attribution.double_backward import Exact
from e2lib.attribution.forward import as_grid, bare, forward, logits_of


class Score(nn.Module):
    """Σ_c weights · logits (B,) as a function of the network's input as it sees it; weights (B, C)."""

    def __init__(self, model: nn.Module, images: Tensor, weights: Tensor, mode: Exact):
        super().__init__()
        self.model, self.images, self.weights, self.mode = bare(model), images, weights, mode

    def forward(self, x: Tensor) -> Tensor:
        times = len(x) // len(self.images)  # captum joins several inputs per image to one batch
        logits, _ = forward(self.model, self.images.repeat(times, 1, 1, 1), "Input", self.mode, replace=x)
        return (logits * self.weights.repeat(times, 1)).sum(1)


def _captum():
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("occlusion, deeplift and gradient_shap need captum: pip install 'e2lib[captum]'") from error
    return captum.attr


@contextmanager
def reproducible() -> Iterator[None]:
    """Random numbers from seed 0, those of torch and NumPy (Gradient SHAP draws from both); restored at the end."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())), warnings.catch_warnings():
        # captum tells of the hooks it sets, and of gradients it asks for
        warnings.filterwarnings("ignore", category=UserWarning, module="captum")
        try:
            torch.manual_seed(0)
            np.random.seed(0)
            yield
        finally:
            np.random.set_state(numpy_state)


def occlusion(score: Score, x: Tensor, steps: int) -> Tensor:
    window = [max(1, s // 4) for s in x.shape[2:]]
    stride = [max(1, s // 8) for s in x.shape[2:]]
    channels = x.shape[1]  # hidden together, so each of them holds the whole loss
    with torch.no_grad():
        parts = _captum().Occlusion(score).attribute(x, (channels, *window), (channels, *stride), baselines=0)
    return parts[:, :1]


def deeplift(score: Score, x: Tensor, steps: int) -> Tensor:
    zero = torch.zeros_like(x)
    parts = _captum().DeepLift(_with_plain_relus(score)).attribute(x, zero)
    # Complete by definition; captum silently passes the plain gradient through layers it has no rule for.
    with torch.no_grad():
        difference = score(x) - score(zero)
    error = (parts.flatten(1).sum(1) - difference).abs()
    scale = torch.maximum(difference.abs(), 1e-3 * parts.flatten(1).abs().sum(1))  # the latter bounds the rounding
    relative = (error / scale.clamp(min=1e-12)).max()
    if not relative <= 0.05:
        raise ValueError(
            f"method 'deeplift': the maps miss the score's difference from the zero input by up to {relative:.0%}; "
            "captum has no DeepLIFT rule for some layers of this network (LayerNorm, attention, B-cos)"
        )
    return parts.sum(1, keepdim=True)


def gradient_shap(score: Score, x: Tensor, steps: int) -> Tensor:
    shap, zero = _captum().GradientShap(score), torch.zeros_like(x[:1])
    # One sample a call: captum would run all of them as one batch, which takes `steps` times the memory.
    parts = sum(shap.attribute(x, baselines=zero, n_samples=1, stdevs=0.09) for _ in range(steps)) / steps
    return parts.sum(1, keepdim=True)


class _ReLU6(nn.Module):
    """ReLU6 out of two ReLUs, for which DeepLIFT has a rule."""

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        # A clone: captum sets the gradient of what a rectifier is given, which must not be what the other one reads.
        return self.low(x.clone()) - self.high(x - 6)


def _with_plain_relus(score: Score) -> Score:
    """A copy whose rectifiers DeepLIFT can hook: none in place, no ReLU6."""
    score = Score(copy.deepcopy(score.model), score.images, score.weights, score.mode)
    for module in list(score.model.modules()):
        if hasattr(module, "inplace"):
            module.inplace = False
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, _ReLU6())
    return score


@torch.no_grad()
def attention_rollout(score: Score, x: Tensor, steps: int) -> Tensor:
    """Product over blocks of (A + I) / 2, read at the token(s) that the head pools, whatever the score."""
    net, images = bare(score.model), score.images
    layers = [m for m in net.modules() if hasattr(m, "fused_attn") and hasattr(m, "attn_drop")]
    if not layers:
        raise ValueError(
            "method 'attention_rollout' explains timm's vision transformers; this network has no attention"
        )
    attentions, fused = [], [m.fused_attn for m in layers]
    handles = [m.attn_drop.register_forward_hook(lambda m, i, out: attentions.append(out.mean(1))) for m in layers]
    try:
        for layer in layers:
            layer.fused_attn = False  # the fused kernel never forms the attention matrix
        logits_of(net(images))
    finally:
        for handle, layer, value in zip(handles, layers, fused, strict=True):
            handle.remove()
            layer.fused_attn = value
    rollout = torch.eye(attentions[0].shape[-1], device=images.device, dtype=attentions[0].dtype)
    for attention in attentions:  # (B, N, N)
        rollout = (attention + torch.eye(attention.shape[-1]).to(attention)) @ rollout / 2
    prefix = getattr(net, "prefix_tokens", 0)
    class_token = prefix and getattr(getattr(net, "net", net), "global_pool", None) == "token"
    relevance = rollout[:, 0] if class_token else rollout[:, prefix:].mean(1)  # (B, N)
    return as_grid(relevance.unsqueeze(-1), net, images)
