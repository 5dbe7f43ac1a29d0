"""The methods: how a map comes from a layer's activations and from gradients of the explained score.

A method is one short function and one line in `METHODS`, which may be extended from outside.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e2lib.attribution.evaluation import attention_rollout, deeplift, gradient_shap, occlusion


def input_x_gradient(a: Tensor, g: Tensor) -> Tensor:
    """Σ_c a g: what each position adds to the score, to first order."""
    return (a * g).sum(1, keepdim=True)


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    """ReLU(Σ_c a mean_hw(g))."""
    return F.relu((g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True))


def gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Grad-CAM with a weight per position with positive gradient (Chattopadhay et al., WACV 2018, eq. 19; 0/0 is 0)."""
    denominator = 2 * g**2 + (a * g**3).sum((2, 3), keepdim=True)
    alpha = torch.where(denominator != 0, g**2 / torch.where(denominator != 0, denominator, 1), 0)
    return F.relu(((alpha * F.relu(g)).sum((2, 3), keepdim=True) * a).sum(1, keepdim=True))


def straight_line(a: Tensor, steps: int) -> Iterable[tuple[Tensor, float]]:
    """Points between zero and `a`, with the weights of Gauss-Legendre quadrature over [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    return (((float(t) + 1) / 2 * a, float(w) / 2) for t, w in zip(nodes, weights, strict=True))


class Method(NamedTuple):
    """How `explain` makes a map.

    `map` takes the layer's activations a and the gradient g of the score, both (B, C, h, w), tokens on their grid, and
    returns (B, 1, h, w). Where `of_score` it takes (score, x, steps): `score` is a module from the network's input x
    (B, c, H, W) to the explained score (B,).
    """

    map: Callable[..., Tensor]
    # (layer, steps) -> pairs (point like layer, weight). g is taken at each point, and the maps' weighted sum is the
    # map. The point None is the layer, without a further forward pass.
    path: Callable[[Tensor, int], Iterable[tuple[Tensor | None, float]]] = lambda layer, steps: [(None, 1)]
    dynamic: bool = False  # hold the dynamic weights of a B-cos network fixed
    trainable: bool = True  # allow create_graph=True; other methods draw random numbers from seed 0
    wants_layer: bool = False  # says little at the input
    of_score: bool = False  # explains the input by the score alone


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
