"""Methods for evaluation alone: captum's, imported where they are used, and attention rollout.

Each takes `score`, a module from the network's input to the explained score (B,); `x` (B, c, H, W), that input; and
`steps`, of which Gradient SHAP alone makes use. It returns the map, float (B, 1, H, W), signed, without a graph.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2lib.attribution.double_backward import Exact
from e2lib.attribution.forward import as_grid, bare, forward


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
    """What the score loses under a zero window, a quarter of the image wide, averaged over the windows on a pixel."""
    # Channels are hidden together, so each of them holds the whole loss.
    window, stride = ((x.shape[1], *(max(1, s // part) for s in x.shape[2:])) for part in (4, 8))
    with torch.no_grad():
        return _captum().Occlusion(score).attribute(x, window, stride, baselines=0)[:, :1]


def deeplift(score: Score, x: Tensor, steps: int) -> Tensor:
    """The rescale rule against the zero input; ValueError where the map misses the score's difference by over 5 %."""
    zero = torch.zeros_like(x)
    parts = _captum().DeepLift(_hookable(score)).attribute(x, zero)
    # Complete by definition; captum silently passes the plain gradient through layers it has no rule for.
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


def _hookable(score: Score) -> Score:
    """A copy whose rectifiers DeepLIFT can hook: none in place, ReLU6 by the rule of ReLU, which suits it too."""
    model = copy.deepcopy(score.model)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
        if isinstance(module, nn.ReLU6):
            module.__class__, module.forward = nn.ReLU, F.relu6
    return Score(model, score.images, score.weights, score.mode)


@torch.no_grad()
def attention_rollout(score: Score, x: Tensor, steps: int) -> Tensor:
    """Product over blocks of (A + I) / 2, read at the token(s) that the head pools, whatever the score."""
    net, attentions = copy.deepcopy(score.model), []
    for layer in net.modules():
        if hasattr(layer, "fused_attn") and hasattr(layer, "attn_drop"):
            layer.fused_attn = False  # the fused kernel never forms the attention matrix
            layer.attn_drop.register_forward_hook(lambda m, i, out: attentions.append(out.mean(1)))
    net(score.images)
    if not attentions:
        raise ValueError(
            "method 'attention_rollout' explains timm's vision transformers; this network has no attention"
        )
    rollout = identity = torch.eye(attentions[0].shape[-1]).to(attentions[0])
    for attention in attentions:  # (B, N, N)
        rollout = (attention + identity) @ rollout / 2
    prefix = getattr(net, "prefix_tokens", 0)
    class_token = prefix and getattr(getattr(net, "net", net), "global_pool", None) == "token"
    relevance = rollout[:, 0] if class_token else rollout[:, prefix:].mean(1)  # (B, N)
    return as_grid(relevance.unsqueeze(-1), net, score.images)
