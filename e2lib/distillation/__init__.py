"""Distillation: a student learns its teacher's logits, features or explanations.

`Distill` is the training step: a sum of terms from the table `TERMS`, which anyone may extend.
e²KD: Parchami-Araghi et al.: Good Teachers Explain: Explanation-Enhanced Knowledge Distillation, ECCV 2024.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from e2lib.attribution import Targets, against_others, as_grid, dynamic_weights, explain, modes_restored
from e2lib.attribution.forward import bare, module_at, predict, refuse_distributed
from e2lib.attribution.methods import METHODS, trainable
from e2lib.datasets import Batch
from e2lib.datasets.files import check_value
from e2lib.distillation import losses
from e2lib.distillation.losses import at, bce, cat_kd, crd, cross_entropy, dist, dkd, e2kd, fitnet, kd, multi_label_kd
from e2lib.models import fingerprint, head_prefixes
from e2lib.training.precision import form

__all__ = ["TERMS", "Distill", "Term", "at", "bce", "cat_kd", "class_maps", "crd", "cross_entropy", "dist", "dkd"]
__all__ += ["e2kd", "explanation", "fitnet", "kd", "multi_label_kd", "top_class"]


@dataclasses.dataclass
class Term:
    """One term of `Distill`: the mean of the values that `function` returns for student and teacher.

    `of` says what it compares: "logits" (B, C); "explanation" (B, K, h, w) of the teacher's top class; "maps"
    (B, C, h, w), the `class_maps`; or "features" (B, C, h, w). A function gets one depth at a time, and its values are
    averaged. A Module gets the features of all depths in two lists.
    """

    function: Callable[..., Tensor] | type[nn.Module]  # of any of student, teacher, labels (B, C), temperature, count
    of: str = "logits"
    depths: Sequence[str] = ("Final",)  # finest first; depths that a network lacks are dropped; Final if none is left

    def __post_init__(self):
        self.learns = isinstance(self.function, type)
        allowed = ("features",) if self.learns else ("logits", "explanation", "maps", "features")
        check_value(self.of in allowed, "of", self.of, f"{', '.join(allowed)} for {self.function}")
        parameters = inspect.signature(self.function.forward if self.learns else self.function).parameters
        self.asks = parameters.keys() & {"student", "teacher", "labels", "temperature", "count"}
        self.deep = self.of in ("features", "maps")
        self.taught = "teacher" in self.asks or self.of == "explanation"  # explanations are of the teacher's top class


EACH = ("Mid1", "Mid2", "Mid3", "Final")
TERMS: dict[str, Term] = {
    "cross_entropy": Term(cross_entropy),
    "bce": Term(bce),
    "kd": Term(kd),
    "multi_label_kd": Term(multi_label_kd),
    "dkd": Term(dkd),
    "dist": Term(dist),
    "e2kd": Term(e2kd, "explanation"),
    "cat_kd": Term(cat_kd, "maps"),
    "at": Term(at, "features", EACH),
    "fitnet": Term(losses.Hint, "features", ["Mid2"]),
    "review_kd": Term(losses.Review, "features", EACH),
    "crd": Term(losses.Contrast, "features"),
}


class Distill(nn.Module):
    """A training step that distils: the sum of terms of `TERMS`, each times its weight λ.

    The student runs once per batch, in its own modes. `fit` also trains and saves the parameters of the terms.

    Args:
        teacher: a network, which is copied; None where the batch brings its logits and maps (`frozen.freeze`).
        student: only the width of its features is read here.
        images: float (B, 3, H, W), a few that the student takes.
        weights: λ > 0 of each term, by its name in `TERMS`.
        temperature: τ > 0 of the terms that have one.
        method, at: as for `explain`. Method "weights" compares all six channels of W(x) of B-cos networks.
        every: explanations are compared in steps 0, every, 2·every, …; their terms are 0 in the other steps.
        contrast: explain the logit of the top class less the mean of the other logits, as in `guidance.Guide`.
        teacher_size: images are resized to this height and width for the teacher; None leaves them as they are.
        count: number of training images, for `crd`.
        mixup: α ≥ 0 of the Beta distribution that mixes images and labels (Zhang et al., ICLR 2018); 0 mixes none.

    Raises ValueError for a wrong value, and for networks that a term cannot compare.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        images: Tensor,
        weights: dict[str, float],
        temperature: float = 1.0,
        method: str = "gradcam",
        at: str = "Final",
        every: int = 1,
        contrast: bool = False,
        teacher_size: int | None = None,
        count: int | None = None,
        mixup: float = 0.0,
    ):
        super().__init__()
        methods = [*trainable(), "weights"]
        check_value(method in methods, "method", method, f"one of {', '.join(methods)}")
        right = weights and weights.keys() <= TERMS.keys()
        check_value(right, "weights", weights, f"a dict of one term or more of {', '.join(TERMS)}")
        for name, weight in weights.items():
            check_value(0 < weight < inf, f"weights[{name!r}]", weight, "above 0")
        check_value(0 < temperature < inf, "temperature", temperature, "above 0")
        for name, value, least in (("every", every, 1), ("count", count, 1), ("mixup", mixup, 0)):
            check_value(value is None or least <= value < inf, name, value, f"at least {least}")
        # `extra_repr` shows these, and 2 and 2.0 give the same training.
        self.weights, self.temperature = {name: float(weight) for name, weight in weights.items()}, float(temperature)
        self.teacher_size, self.count, self.mixup = teacher_size, count, float(mixup)
        self.method, self.at, self.every, self.contrast = method, at, int(every), contrast
        self.terms = {name: TERMS[name] for name in weights}
        for name, term in self.terms.items():
            check_value(count or "count" not in term.asks, "count", count, f"the number of training images, for {name}")
            right = teacher is not None or not (term.taught and (mixup or term.deep))
            check_value(right, "teacher", teacher, f"a network, for {name}: features and mixed images are not frozen")
        explains = [term.of == "explanation" for term in self.terms.values()]
        self.explains, self.taught = any(explains), any(term.taught for term in self.terms.values())
        right = every == 1 or not all(explains)
        check_value(right, "every", every, "1 where all terms compare explanations: other steps would train nothing")
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # In a list, so that it is not a submodule: neither trained nor saved.
        self.teachers = [] if teacher is None else [copy.deepcopy(bare(teacher)).requires_grad_(False).eval()]
        self.teacher = fingerprint(self.teachers)
        for net in self.teachers:
            net.to(images.device).to(memory_format=form(net)[0])
        networks = [bare(student), *self.teachers]
        shared = set.intersection(*(set(getattr(net, "depths", ())) for net in networks))
        self.depths = {}
        for name, term in self.terms.items():
            if term.deep:
                self.depths[name] = [at for at in term.depths if at in shared] or ["Final"]
        with torch.no_grad(), modes_restored(student):
            student.eval()
            given = zip(networks, (images, self._for_teacher(images)), strict=False)
            logits, seen = zip(*(self._seen(model, x, check=True) for model, x in given), strict=True)
        self.classes, others = logits[0].shape[1], logits[-1].shape[1]
        check_value(self.classes == others, "the student's number of classes", self.classes, f"the teacher's, {others}")
        self.learned = nn.ModuleDict()
        for name, term in self.terms.items():
            if term.learns:
                pairs = zip(*seen[0][name], *seen[-1][name], strict=True)
                self.learned[name] = term.function([(mine.shape[1], other.shape[1]) for mine, other in pairs])
        self.to(images.device)

    def extra_repr(self) -> str:
        """The settings that tell trainings apart, and digests of teacher and terms."""
        names = ["teacher", "weights", "temperature", "teacher_size", "count", "mixup"]
        names += ["method", "at", "every", "contrast"] if self.explains else []
        terms = [(vars(term), getattr(term.function, "forward", None)) for term in self.terms.values()]
        settings = [f"{name}={getattr(self, name)!r}" for name in names]
        return ", ".join([*settings, f"terms={fingerprint([terms, METHODS.get(self.method)])!r}"])

    def forward(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss by name, each weighted and averaged over the batch."""
        refuse_distributed(student)
        targets = top_class(self.contrast) if self.explains and int(self.steps) % self.every == 0 else None
        self.steps += 1
        asked = any("labels" in term.asks for term in self.terms.values())  # else the images may show other classes
        labels = batch.hot(self.classes) if asked else batch.images.new_zeros(len(batch.images), 1)
        if self.mixup:
            images, labels = v2.MixUp(alpha=self.mixup)(batch.images, labels)
            batch = dataclasses.replace(batch, images=images)
        logits, there = batch.logits, {}
        if self.taught and self.teachers:
            teacher = self.teachers[0].to(batch.images.device)
            with torch.no_grad():
                logits, there = self._seen(teacher, self._for_teacher(batch.images), targets)
        elif self.taught:
            if logits is None or (targets and batch.maps is None):
                raise ValueError("teacher is None, and the batch has no logits or maps; train on data of frozen.freeze")
            frozen = {"logits": [logits], "explanation": [batch.maps]}
            there = {name: frozen[term.of] for name, term in self.terms.items() if term.taught}
        _, here = self._seen(bare(student), batch.images, targets and targets(logits))
        given = {"labels": labels, "temperature": self.temperature, "count": self.count}
        found = {}
        for name, term in self.terms.items():
            function, values = self.learned[name] if term.learns else term.function, []
            for mine, other in zip(here[name], there.get(name, repeat(None)), strict=False):
                if term.of == "explanation":
                    other = F.interpolate(other, mine.shape[2:], mode="bilinear", align_corners=False)
                known = given | {"student": mine, "teacher": other}
                values.append(function(**{argument: known[argument] for argument in term.asks}).mean())
            mean = sum(values) / len(values) if values else labels.new_zeros(())
            found[name] = self.weights[name] * mean
        return found

    def _seen(self, model: nn.Module, images: Tensor, targets: Targets | None = None, check: bool = False) -> tuple:
        """Logits, and a list of what each term compares, by its name; empty for explanations without targets."""
        layers, explained, graph = {}, [], torch.is_grad_enabled()

        def catch(at: str, module: nn.Module, inputs, output: Tensor) -> None:
            if graph and not torch.is_grad_enabled():
                raise ValueError(f"{at} is computed without a graph; checkpoint with use_reentrant=False")
            if at not in layers:  # only the first pass; a clone, as the network may go on in place
                layers[at] = as_grid((output if graph else output.detach()).clone(), model, images)

        with ExitStack() as hooks:
            for at in set().union(*self.depths.values()):
                hooks.enter_context(module_at(model, at).register_forward_hook(partial(catch, at)))
            if targets is None:
                logits = predict(model, images)
            else:
                logits, *explained = explanation(model, images, targets, self.method, self.at, graph)
        seen = {}
        for name, term in self.terms.items():
            features = [layers[at] for at in self.depths.get(name, ())]
            if term.of == "maps":
                features = [class_maps(model, features[-1], logits if check else None)]
            features = [features] if term.learns else features  # all depths at once
            seen[name] = {"logits": [logits], "explanation": explained}.get(term.of, features)
        return logits, seen

    def _for_teacher(self, images: Tensor) -> Tensor:
        if self.teacher_size is None:
            return images
        return F.interpolate(images, self.teacher_size, mode="bilinear", antialias=True).clamp(0, 1)


def top_class(contrast: bool = False) -> Callable[[Tensor], Tensor]:
    """A function from logits (B, C) to targets of `explain`: the top class, with `contrast` as in `Distill`."""
    return lambda z: against_others(z.argmax(1), z.shape[1])[:, 0] if contrast else z.argmax(1)


def explanation(model: nn.Module, images: Tensor, targets: Targets, method: str, at: str, create_graph: bool = False):
    """Logits and maps (B, K, H, W) of one target per image, by a method of `Distill`; all modules keep their modes."""
    if method == "weights":
        return dynamic_weights(model, images, targets, create_graph=create_graph, keep_modes=True)
    return explain(model, images, targets, method, at, create_graph, keep_modes=True)


def class_maps(model: nn.Module, features: Tensor, logits: Tensor | None = None) -> Tensor:
    """Class activation maps (B, C, h, w): the classifier applied to every cell of the features at Final (B, D, h, w).

    Their mean over cells is the logits without the bias (Zhou et al., CVPR 2016). ValueError for a network whose layers
    or `logits` show that it does not average its features and then apply one linear layer.
    """
    if getattr(model, "is_bcos", False):  # B-cos networks average after their classifier
        path = head_prefixes(model.net)[0].removesuffix(".").removesuffix(".linear")
        if not isinstance(classifier := model.net.get_submodule(path), nn.Sequential):  # `bcosify` makes one
            return classifier(features)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if layers and layers[-1].in_features == features.shape[1]:
        found = layers[-1](features.mean((2, 3)))
        same = logits is None or torch.allclose(found, logits, 1e-3, 1e-3 * float(logits.abs().max()))
        if same and layers[-1].weight.any():  # weights of zero would hide that tokens do not average
            return F.conv2d(features, layers[-1].weight[:, :, None, None])
    name = getattr(model, "name", type(getattr(model, "net", model)).__name__)
    raise ValueError(f"class_maps: {name!r} must average its features at Final, and then apply one nn.Linear")
