"""Explanations as maps one can train through.

`explain` runs a network once and returns its logits together with one attribution map per image and target. With
`create_graph=True` the maps are differentiable with respect to the network's parameters, so any function of them can be
a loss (model guidance, explanation-enhanced distillation). Methods that only serve evaluation go through the same call.

`methods` holds the methods, each a short function; `evaluation` those that one cannot train through. `forward` runs a
network and hands out a layer; `double_backward` makes second derivatives exact and fast.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2lib.attribution.double_backward import Exact
from e2lib.attribution.evaluation import Score, reproducible
from e2lib.attribution.forward import (
    as_grid,
    bare,
    explaining,
    forward,
    grid_size,
    is_input,
    logits_of,
    modes_restored,
    module_at,
    outside_inference,
)
from e2lib.attribution.methods import METHODS, Method, trainable
from e2lib.memory import keep_memory

__all__ = ["METHODS", "Exact", "Explanation", "Method", "against_others", "as_grid", "bare", "dynamic_weights"]
__all__ += ["explain", "grid_size", "logits_of", "modes_restored", "module_at", "trainable"]

Targets = Tensor | np.ndarray | Sequence | int | Callable[[Tensor], Tensor]


class Explanation(NamedTuple):
    """What `explain` returns: `logits` (B, C) and `maps` (B, K, H, W), signed, at the size of the images."""

    logits: Tensor
    maps: Tensor


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Targets,
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

    The network runs in eval mode, so that the map of one image does not depend on the other images of its batch. Modes
    of modules, hooks, random number generators and `.grad` fields are restored, also after an exception. See
    `methods.Method` for methods of your own.

    Args:
        model: network from images to logits (B, C). One of `models.build` or `models.wrap` has names of depths, any
            other takes module paths. What torch wraps around it (DataParallel, AveragedModel) makes no difference.
        images: (B, 3, H, W) float, in [0, 1] for the networks of `models.build`.
        targets: what to explain: a class for all images; or integers (B,) or (B, K), classes, where -1 means none (a
            zero map); or floats (B, C) or (B, K, C), weights of the logits in the explained score, for example +1 and
            -1 for a difference. Tensors, lists or arrays; or a function that makes one of these of the detached logits
            (B, C): `lambda z: z.argmax(1)` for the top class.
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
        ValueError: an unknown method or layer; a method that does not suit the network, `at`, `create_graph` or
            `keep_modes`; images, targets or outputs of a wrong shape, type or range; a network under torch.compile, or
            gradient checkpointing behind the explained layer, with `create_graph`; no rule of DeepLIFT for a layer.
        ImportError: a method of captum, which is not installed.

    Notes:
        The map of a B-cos network has the exact parameter gradient: the dynamic weights stay fixed while the
        explanation's backward pass runs, and depend on the parameters everywhere else. Detaching them in the forward
        pass, as package `bcos` does, gives the same map but another gradient. Contributions at Input add up to the
        logit less `model.logit_bias` in networks without other additive terms (position embeddings, centred norms).
        Integrated Gradients runs from the zero activation of the layer (at Input: of the normalised image), and costs
        `steps` further forward passes.
    """
    keep_memory()
    chosen = _checked_method(model, method, at, create_graph, steps, keep_modes)
    model, images = _checked_network(model, images)
    with (
        explaining(model, chosen.dynamic, create_graph, keep_modes) as mode,
        nullcontext() if chosen.trainable else reproducible(),
    ):
        with torch.set_grad_enabled(not chosen.of_score):
            logits, layer = forward(model, images, at, mode)
        weights = _score_weights(targets, logits)
        if chosen.of_score:
            scores = [Score(model, images, weights[:, k], mode) for k in range(weights.shape[1])]
            maps = torch.cat([chosen.map(score, layer.detach(), steps) for score in scores], 1)
        else:
            maps = _maps(chosen, model, images, at, mode, logits, layer, weights, create_graph, steps)
        size = getattr(bare(model), "image_size", images.shape[2:])  # a `models.Head` is given features for images
        if not len(maps):
            maps = maps.new_zeros((*maps.shape[:2], *size))
        elif maps.shape[2:] != size:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return Explanation(logits, maps) if create_graph else Explanation(logits.detach(), maps.detach())


def _maps(chosen, model, images, at, mode, logits, layer, weights, create_graph, steps) -> Tensor:
    """The sum over the method's points of its maps (B, K, h, w) there, each with its weight."""

    def grid(x: Tensor) -> Tensor:
        return x if is_input(model, at) else as_grid(x, model, images)

    a, total = grid(layer), 0
    points = [(None, 1)] if chosen.path is None else chosen.path(layer if create_graph else layer.detach(), steps)
    for point, weight in points:
        if point is not None:
            logits, layer = forward(model, images, at, mode, replace=point)
        gradients = mode.gradients(logits, layer, weights, create_graph)
        total = total + weight * torch.cat([chosen.map(a, grid(g)) for g in gradients], 1)
    return total


def against_others(classes: Tensor, count: int) -> Tensor:
    """Targets for `explain`: each class's logit less the mean of the other logits.

    classes int64 (B,) or (B, K), -1 for none; count, of classes, at least 2 (else ValueError) -> float32 (B, K, C).
    """
    if count < 2:
        raise ValueError(f"count is {count}; one class has no others to be set against")
    chosen = F.one_hot(classes.reshape(len(classes), -1) + 1, count + 1)[..., 1:].float()  # (B, K, C)
    return (chosen * count - chosen.sum(-1, keepdim=True)) / (count - 1)


def dynamic_weights(
    model: nn.Module, images: Tensor, targets: Targets, create_graph: bool = False, keep_modes: bool = False
) -> tuple[Tensor, Tensor]:
    """The rows of W(x) that a B-cos network applies to its six-channel input for `targets`, one per image.

    The explained score is s = Σ [W(x)]_s · x + bias (Böhle et al., CVPR 2022, eq. 13): `W * x` summed over channels is
    the contribution map. Arguments are as for `explain`.

    Returns:
        logits (B, C) and the weights (B, 6, H, W), channels (r, g, b, 1-r, 1-g, 1-b), with the exact parameter gradient
        when `create_graph`.

    Raises:
        ValueError: the network is not B-cos, or what `explain` refuses.
    """
    model, images = _checked_network(model, images)
    with explaining(model, True, create_graph, keep_modes) as mode:
        logits, layer = forward(model, images, "Input", mode)
        weights = _score_weights(targets, logits)
        if weights.shape[1] != 1:
            raise ValueError(f"targets are {weights.shape[1]} an image; one is wanted: (B,) or (B, C)")
        (w,) = mode.gradients(logits, layer, weights, create_graph)
    return (logits, w) if create_graph else (logits.detach(), w.detach())


def _checked_method(model, method, at, create_graph, steps, keep_modes) -> Method:
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    chosen = METHODS[method]
    if create_graph and not chosen.trainable:
        raise ValueError(
            f"method {method!r} is for evaluation and cannot be trained through; "
            f"with create_graph=True use one of {', '.join(trainable())}"
        )
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if chosen.of_score and keep_modes:
        raise ValueError(f"method {method!r} is for evaluation: it takes no keep_modes")
    if chosen.of_score and at != "Input":
        raise ValueError(f"method {method!r} explains the input; at is {at!r}, it must be 'Input'")
    if chosen.wants_layer and at == "Input" and not hasattr(bare(model), "depths"):
        raise ValueError(
            f"method {method!r} wants a layer, and the network names no depths: give the path of a module as "
            "at='layer4', or names by models.wrap(net, depths={'Final': 'layer4'})"
        )
    return chosen


def _checked_network(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    if images.ndim != 4 or not images.is_floating_point():
        shape = tuple(images.shape)
        raise ValueError(f"images have shape {shape} and type {images.dtype}; float (B, 3, H, W) is wanted")
    # Resizing leaves [0, 1] by rounding; `datasets.collate` allows as much.
    if hasattr(bare(model), "preprocess") and images.numel() and not -1e-3 <= images.min() <= images.max() <= 1.001:
        low, high = images.min().item(), images.max().item()
        raise ValueError(
            f"images lie in [{low:.3g}, {high:.3g}]; they must be in [0, 1]: networks of models.build normalise them"
        )
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
        raise ValueError(
            "the network is compiled by torch.compile, which has no second derivatives; explain the network inside, "
            "model._orig_mod, which has the same weights (take torch.compile(model) in place of model.compile())"
        )
    with torch.inference_mode(False):
        return outside_inference(model), outside_inference(images)


def _score_weights(targets: Targets, logits: Tensor) -> Tensor:
    """Targets in any of their forms as weights (B, K, C) of the logits."""
    targets = torch.as_tensor(targets(logits.detach()) if callable(targets) else targets)
    batch, classes = logits.shape
    whole = not targets.is_floating_point() and targets.dtype != torch.bool
    targets = targets.expand(batch) if whole and targets.ndim == 0 else targets
    shape = tuple(targets.shape)
    if whole and targets.ndim in (1, 2) and shape[0] == batch:
        targets = targets.long().to(logits.device)
        if targets.numel() and not -1 <= int(targets.min()) <= int(targets.max()) < classes:
            bad = targets[(targets < -1) | (targets >= classes)][0].item()
            raise ValueError(f"targets hold class {bad}; they must lie in 0..{classes - 1}, or be -1 for none")
        if targets.ndim == 1:
            targets = targets[:, None]
        elif (
            shape[1] == classes
            and (targets.sort().values.diff() == 0).any()
            and ((targets == 0) | (targets == 1)).all()
        ):
            raise ValueError(
                f"targets {shape} hold 0 and 1 alone, and a class twice: they look like one value per class; "
                "give the classes, targets.argmax(1), or weights of the logits, targets.float()"
            )
        return F.one_hot(targets + 1, classes + 1)[..., 1:].to(logits.dtype)
    if targets.is_floating_point() and targets.ndim in (2, 3) and (shape[0], shape[-1]) == (batch, classes):
        targets = targets if targets.ndim == 3 else targets[:, None]
        return outside_inference(targets.to(logits))
    raise ValueError(
        f"targets have shape {shape} and type {targets.dtype}; for {batch} images and {classes} classes they must be "
        f"int64 ({batch},) or ({batch}, K), or float ({batch}, {classes}) or ({batch}, K, {classes})"
    )
