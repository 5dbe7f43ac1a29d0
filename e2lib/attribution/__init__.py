"""Explanations as maps that one can train through.

`methods` lists the methods; `forward` hands out a layer; `double_backward` makes second derivatives exact and fast.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2lib.attribution import forward as passes
from e2lib.attribution.double_backward import Exact
from e2lib.attribution.forward import as_grid, bare, grid_size, logits_of, modes_restored, module_at, predict
from e2lib.attribution.methods import METHODS, Method, reproducible, trainable
from e2lib.datasets.files import check_value
from e2lib.datasets.sample import ROUNDING
from e2lib.disk import keep_memory

__all__ = ["METHODS", "Exact", "Explanation", "Method", "against_others", "as_grid", "bare", "check_images"]
__all__ += ["dynamic_weights", "explain", "grid_size", "logits_of", "modes_restored", "module_at", "predict"]
__all__ += ["trainable"]

Targets = Tensor | np.ndarray | Sequence | int | Callable[[Tensor], Tensor]


class Explanation(NamedTuple):
    """What `explain` returns: `logits` (B, C) and `maps` (B, K, H, W), signed, by default at the size of the images."""

    logits: Tensor
    maps: Tensor


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Targets,
    method: str | Method = "ixg",
    at: str = "Input",
    create_graph: bool = False,
    steps: int = 32,
    keep_modes: bool = False,
    resize: bool = True,
) -> Explanation:
    """Logits of `images`, and maps that explain `targets` by `method` on the activations `at` a depth of the network.

    | method | map at layer activations a, score s | source |
    |---|---|---|
    | `ixg` | Σ_c a ∂s/∂a | Input x Gradient, Shrikumar et al. 2016 |
    | `integrated_gradients` | Σ_c a ∫₀¹ ∂s/∂a (αa) dα, by Gauss-Legendre quadrature | Sundararajan et al. 2017 |
    | `gradcam` | ReLU(Σ_c a mean_hw(∂s/∂a)) | Selvaraju et al. 2017 |
    | `bcos` | contribution map Σ_c [Wᵀ(x)]_s a of a B-cos network, its dynamic weights held fixed | Böhle et al. 2022 |
    | `gradcam++` | Grad-CAM with a weight per position (evaluation only) | Chattopadhay et al. 2018 |
    | `occlusion` | score lost under a zero window, a quarter of the image wide (evaluation only) | Zeiler 2014 |
    | `deeplift` | rescale rule against the zero input (evaluation only) | Shrikumar et al. 2017 |
    | `gradient_shap` | expected gradients from the zero input, noise 0.09 (evaluation only) | Lundberg, Lee 2017 |
    | `attention_rollout` | product of a ViT's mean attentions, whatever the target (evaluation only) | Abnar 2020 |

    The network runs in eval mode, so that a map depends on its image alone. Modes, hooks and `.grad` fields are
    restored, also after an exception. Methods marked "evaluation only" use seed 0, and restore the generators.

    Args:
        model: a network from images to logits (B, C). `models.build` and `models.wrap` name its depths.
        images: float (B, 3, H, W). Networks of `models.build` want the type of their parameters, and values in [0, 1].
        targets: a class for all images; classes (B,) or (B, K), where -1 gives a zero map; or floats (B, C) or
            (B, K, C), the weights of the logits in the explained score. A tensor, a list, an array, or a function of
            the detached logits that returns one: `lambda z: z.argmax(1)` gives the top class.
        method: one of `METHODS`, or a `Method` of your own.
        at: a name of `model.depths` (Input, Mid1, Mid2, Mid3, Final), or the path of a module whose output is
            (B, C, h, w), or tokens (B, N, C). Methods `of_score`, such as the last four, explain Input only.
        create_graph: keep the graph, to train through the maps. Otherwise logits and maps are detached.
        steps: quadrature points of Integrated Gradients, samples of Gradient SHAP.
        keep_modes: leave each module in its mode. Training norms use and learn the batch's statistics.
        resize: bring maps bilinearly to the images' size. Otherwise they have one value per cell of the layer.

    K targets cost K backward passes; with Integrated Gradients, each step costs a forward and K backward passes.
    Raises ValueError for a wrong argument, torch.compile, reentrant gradient checkpointing, and with create_graph any
    checkpointing behind the explained layer; ImportError where captum is needed and missing.

    Notes:
        The map of a B-cos network has the exact parameter gradient: the dynamic weights stay fixed only while the
        explanation's backward pass runs; package `bcos` detaches them in the forward pass, which gives another one.
        Contributions at Input add up to the logit less `model.logit_bias` in networks without other additive terms
        (position embeddings, centred norms). Zero inputs and windows are zero after normalisation.
    """
    keep_memory()
    chosen = _checked_method(model, method, at, create_graph, steps, keep_modes)
    check_images(model, images)
    model, images = passes.outside_inference(model), passes.outside_inference(images)
    drawing = nullcontext() if chosen.trainable else reproducible()
    with passes.explaining(model, chosen.dynamic, create_graph, keep_modes) as mode, drawing:
        with torch.set_grad_enabled(not chosen.of_score):
            logits, layer = passes.forward(model, images, at, mode)
        weights = _score_weights(targets, logits)
        if chosen.of_score:
            scores = [passes.Score(model, images, weights[:, k], mode) for k in range(weights.shape[1])]
            maps = [chosen.map(score, layer.detach(), steps) for score in scores if len(images)]
            maps = torch.cat(maps, 1) if maps else layer.new_zeros(0, len(scores), *layer.shape[2:])
        else:
            on_grid = (lambda x: x) if passes.is_input(model, at) else partial(as_grid, model=model, images=images)
            a, output, maps = on_grid(layer), logits, 0
            for point, weight in chosen.path(layer if create_graph else layer.detach(), steps):
                if point is not None:
                    output, layer = passes.forward(model, images, at, mode, replace=point)
                gradients = mode.gradients(output, layer, weights, create_graph)
                maps = maps + weight * torch.cat([chosen.map(a, on_grid(g)) for g in gradients], 1)
        size = getattr(bare(model), "explained_size", images.shape[2:])  # a `models.Head` is given features
        if resize and maps.shape[2:] != size:
            maps = F.interpolate(maps, size, mode="bilinear")
    return Explanation(logits, maps) if create_graph else Explanation(logits.detach(), maps.detach())


def against_others(classes: Tensor, count: int) -> Tensor:
    """Targets for `explain`, float32 (B, K, C): each class's logit less the mean of the other logits.

    `classes` are int64 (B,) or (B, K), -1 for none; `count`, at least 2, is the number of all classes. Else ValueError.
    """
    check_value(count >= 2, "count", count, "at least 2; one class has no others to be set against")
    wrong = classes[(classes < -1) | (classes >= count)]
    check_value(not len(wrong), "classes", wrong.tolist(), f"in 0..{count - 1}, or -1 for none")
    chosen = F.one_hot(classes.reshape(len(classes), -1) + 1, count + 1)[..., 1:].float()  # (B, K, C)
    return (chosen * count - chosen.sum(-1, keepdim=True)) / (count - 1)


def dynamic_weights(model: nn.Module, images: Tensor, targets: Targets, **how: bool) -> tuple[Tensor, Tensor]:
    """Logits (B, C), and the rows (B, 6, H, W) of W(x) that a B-cos network applies to its input for `targets`.

    The explained score is s = Σ [W(x)]_s · x + bias (Böhle et al., CVPR 2022, eq. 13), where x has the channels (r, g,
    b, 1-r, 1-g, 1-b). `W * x` summed over channels is the contribution map. ValueError for several targets per image.
    The rest, and `how` (create_graph, keep_modes), are as in `explain`.
    """
    logits, w = explain(model, images, targets, Method(lambda a, g: g, dynamic=True), **how)
    if w.shape[1] != 6:
        raise ValueError(f"targets are {w.shape[1] // 6} per image; one is wanted: (B,) or (B, C)")
    return logits, w


def _checked_method(model, method, at, create_graph, steps, keep_modes) -> Method:
    chosen = method if isinstance(method, Method) else METHODS.get(method)
    check_value(chosen is not None, "method", method, f"one of {', '.join(METHODS)}")
    check_value(steps >= 1, "steps", steps, "at least 1")
    right, name = chosen.trainable or not create_graph, f"method {method!r}"
    check_value(right, "method", method, f"one of {', '.join(trainable())} with create_graph=True")
    check_value(not (keep_modes and chosen.of_score), "keep_modes", keep_modes, f"False for {name}")
    check_value(at == "Input" or not chosen.of_score, "at", at, f"'Input' for {name}, which explains the input")
    cure = "the path of a module as at='layer4', or a name by models.wrap(net, depths={'Final': 'layer4'})"
    right = at != "Input" or not chosen.wants_layer or {*getattr(bare(model), "depths", ())} - {"Input"}
    check_value(right, "at", at, f"a layer for {name}: {cure}")
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
        cure = "explain the network inside, model._orig_mod, which torch.compile(model) has and model.compile() has not"
        raise ValueError(f"the network is compiled by torch.compile, which has no second derivatives; {cure}")
    return chosen


def check_images(model: nn.Module, images: Tensor) -> None:
    """Raises ValueError unless `explain` takes these images. Under autocast, any float type will do."""
    check_value(isinstance(images, Tensor), "images", type(images).__name__, "a float tensor (B, 3, H, W)")
    ours = hasattr(bare(model), "preprocess") and hasattr(bare(model), "is_bcos")  # a `models.Model`
    types = {p.dtype for p in model.parameters()} if ours and not torch.is_autocast_enabled(images.device.type) else ()
    if images.ndim != 4 or not images.is_floating_point() or (types and images.dtype not in types):
        found, kinds = f"shape {tuple(images.shape)} and type {images.dtype}", " or ".join(map(str, types)) or "float"
        raise ValueError(f"images have {found}; {kinds} (B, 3, H, W) is wanted")
    low, high = (x.item() for x in images.detach().aminmax()) if images.numel() else (0, 0)
    if not (-ROUNDING <= low <= high <= 1 + ROUNDING if ours else -math.inf < low <= high < math.inf):
        wanted = "in [0, 1]: networks of models.build normalise them" if ours else "finite"
        raise ValueError(f"images lie in [{low:.3g}, {high:.3g}]; they must be {wanted}")


def _score_weights(targets: Targets, logits: Tensor) -> Tensor:
    """Targets in any of their forms as weights (B, K, C) of the logits."""
    given, (batch, classes) = targets(logits.detach()) if callable(targets) else targets, logits.shape
    wanted = f"int64 ({batch},) or ({batch}, K), or float ({batch}, {classes}) or ({batch}, K, {classes})"
    wanted = f"for {batch} images and {classes} classes they must be {wanted}"
    try:
        targets = torch.as_tensor(given).to(logits.device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"targets are {given!r:.60}; {wanted}") from error
    real, shape, dtype = targets.is_floating_point(), tuple(targets.shape) or (batch,), targets.dtype
    plain = dtype != torch.bool and not dtype.is_complex and targets.layout == torch.strided
    fits = shape[0] == batch and len(shape) in (1 + real, 2 + real) and (not real or shape[-1] == classes)
    if not (plain and fits) or 0 in shape[1:]:
        raise ValueError(f"targets have shape {shape} and type {dtype}; {wanted}")
    targets = targets.expand(shape).to(logits.dtype if real else torch.int64)
    targets = targets if len(shape) == 2 + real else targets[:, None]  # (B, K, C) or (B, K)
    if real:
        check_value(bool(targets.isfinite().all()), "targets", "NaN or infinite", "finite weights of the logits")
        return passes.outside_inference(targets)
    wrong = targets[(targets < -1) | (targets >= classes)]
    if len(wrong):
        raise ValueError(f"targets hold class {wrong[0]}; they must lie in 0..{classes - 1}, or be -1 for none")
    if shape[1:] == (classes,) and ((targets == 0) | (targets == 1)).all() and (targets.diff() <= 0).any():
        # Valid as classes if one comes twice, or as [1, 0] of two; far more often such rows are one-hot.
        cure = "give the classes, targets.argmax(1), or weights of the logits, targets.float()"
        raise ValueError(f"targets {shape} of 0 and 1 look like one value per class; {cure}")
    return F.one_hot(targets + 1, classes + 1)[..., 1:].to(logits.dtype)
