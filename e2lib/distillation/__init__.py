"""Distillation: a student learns what a teacher says, what it computes on the way, or why it says it.

Explanation-enhanced distillation (e²KD): Parchami-Araghi, Böhle, Rao, Schiele: Good Teachers Explain:
Explanation-Enhanced Knowledge Distillation, ECCV 2024. The losses are pure functions of what student and teacher give
for the same images; without another word they give one value an image, (B,) float32 or wider. Logits z are (B, C),
features (B, C, h, w), all float; the temperature τ is above 0. The teacher's side is data: it gets no gradient. A wrong
shape or temperature is a ValueError.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from e2lib.attribution import against_others, as_grid, dynamic_weights, explain, modes_restored
from e2lib.datasets import Batch
from e2lib.models import head_prefixes, weights_key

NOTHING = 1e-30  # a map that is nowhere larger is an all-zero map


# ---- what the teacher says


def kd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² KL(softmax(z_T/τ) ‖ softmax(z_S/τ)), nats (Hinton, Vinyals, Dean 2015)."""
    student, teacher = _logits(student, teacher, temperature)
    return temperature**2 * _divergence(teacher.log_softmax(1), student.log_softmax(1))


def multi_label_kd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Σ_c τ² KL(σ(z_T/τ) ‖ σ(z_S/τ)) of each class's two outcomes, nats, for multi-label data.

    Yang et al.: Multi-Label Knowledge Distillation, ICCV 2023.
    """
    student, teacher = _logits(student, teacher, temperature)
    there, here = (torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], 1) for z in (teacher, student))  # (B, 2, C)
    return temperature**2 * _divergence(there, here).sum(1)


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """α TCKD + β NCKD, times τ² (Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022).

    TCKD is the divergence of (p_y, 1 − p_y), NCKD that of the softmax over the classes other than y = labels, int64
    (B,). With β = 1 − p_y of the teacher, and α = 1, it is `kd`.
    """
    student, teacher = _logits(student, teacher, temperature)
    there, here = teacher.log_softmax(1), student.log_softmax(1)
    target = F.one_hot(labels, student.shape[1]).bool()

    def outcomes(log: Tensor) -> Tensor:
        return torch.stack([log[target], log.masked_fill(target, -torch.inf).logsumexp(1)], 1)  # (B, 2)

    others = [z[~target].view(len(z), -1).log_softmax(1) for z in (teacher, student)]
    tckd, nckd = _divergence(outcomes(there), outcomes(here)), _divergence(*others)
    return temperature**2 * (alpha * tckd + beta * nckd)


def dist(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² (inter + intra): 1 − Pearson's correlation, over the classes of an image and over the images of a class.

    Of softmax(z/τ); the mean over images, and over classes: a scalar (Huang et al.: Knowledge Distillation from A
    Stronger Teacher, NeurIPS 2022, with both weights 1).
    """
    student, teacher = (z.softmax(1) for z in _logits(student, teacher, temperature))
    inter, intra = (1 - _correlation(a, b).mean() for a, b in ((student, teacher), (student.T, teacher.T)))
    return temperature**2 * (inter + intra)


# ---- why it says it


def e2kd(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos(E_S, E_T) of explanations, flattened, in [0, 2] (Parchami-Araghi et al., section 3.2).

    Maps (B, K, h, w), signed, of any scale; 1, without gradient, where either is zero everywhere. Add it, times λ, to
    any other loss.
    """
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"maps are {tuple(student.shape)} and {tuple(teacher.shape)}; both must be (B, K, h, w) of one shape"
        )
    student, teacher = (_unit(x.flatten(1)) for x in (student, teacher.detach()))
    return 1 - (student * teacher).sum(1)


def cat_kd(student: Tensor, teacher: Tensor, cells: int = 2) -> Tensor:
    """Σ_c ‖a_S/‖a_S‖ − a_T/‖a_T‖‖² / C of class activation maps (Guo et al.: CAT-KD, CVPR 2023).

    Maps (B, C, h, w) of all classes, averaged to `cells` x `cells`; heights and widths may differ.
    """
    student, teacher = (F.adaptive_avg_pool2d(x, cells).flatten(2) for x in _features(student, teacher))
    return (_unit(student) - _unit(teacher)).square().sum(2).mean(1)


# ---- what it computes on the way


def at(student: Tensor, teacher: Tensor) -> Tensor:
    """‖Q_S/‖Q_S‖ − Q_T/‖Q_T‖‖², Q = Σ_c F_c² flattened: attention transfer (Zagoruyko, Komodakis, ICLR 2017).

    Features may differ in width and size: the finer one is averaged to the other's cells. Notes: the paper has the
    norm, not its square; it has no gradient at 0.
    """
    student, teacher = (x.square().sum(1).flatten(1) for x in _same_cells(*_features(student, teacher)))
    return (_unit(student) - _unit(teacher)).square().sum(1)


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (F_S − F_T)²: hints (Romero et al.: FitNets, ICLR 2015), of features of one width.

    The finer one is averaged to the other's cells.
    """
    student, teacher = _same_cells(*_features(student, teacher))
    if student.shape != teacher.shape:
        raise ValueError(f"features have {student.shape[1]} and {teacher.shape[1]} channels; the same are wanted")
    return (student - teacher).square().mean((1, 2, 3))


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (F_S − F_T)² at several resolutions: HCL of ReviewKD (Chen et al., CVPR 2021).

    At the features' own cells and averaged to 4, 2 and 1 a side, where these are fewer, each weighted half as much as
    the one before, the weights adding up to 1.
    """
    losses, weights = [fitnet(student, teacher)], [1.0]
    for cells in (4, 2, 1):
        if cells < min(student.shape[-2:] + teacher.shape[-2:]):
            losses.append(fitnet(*(F.adaptive_avg_pool2d(x, cells) for x in (student, teacher))))
            weights.append(weights[-1] / 2)
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def crd(student: Tensor, teacher: Tensor, images: int, temperature: float = 0.1) -> Tensor:
    """Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020): which pairs are of one image?

    −log h(s_i, t_i) − Σ_j≠i log(1 − h(s_i, t_j)), and the same with s and t exchanged, where
    h = e^(s·t/τ) / (e^(s·t/τ) + N/M), of embeddings (B, D) divided by their norms, N = B − 1 and M = `images` in the
    training data. The embeddings are learned projections of features, the teacher's too: here it gets a gradient.
    Notes: negatives are the other images of the batch; the paper draws 16,384 from a memory.
    """
    if student.ndim != 2 or student.shape != teacher.shape or len(student) < 2:
        raise ValueError(
            f"embeddings are {tuple(student.shape)} and {tuple(teacher.shape)}; both must be (B, D), B at least 2"
        )
    scores = _unit(student) @ _unit(teacher).T / temperature  # (B, B)
    scores = scores - torch.log(torch.tensor((len(student) - 1) / images, device=scores.device))
    same = torch.eye(len(student), dtype=torch.bool, device=scores.device)
    losses = -torch.where(same, F.logsigmoid(scores), F.logsigmoid(-scores))
    return losses.sum(1) + losses.sum(0)


# ---- helpers of these


def _logits(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both over τ, in float32 or wider; the teacher's detached."""
    if student.ndim != 2 or student.shape != teacher.shape or student.shape[1] < 2:
        raise ValueError(
            f"logits are {tuple(student.shape)} and {tuple(teacher.shape)}; both must be (B, C), C at least 2"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return student.to(_wide(student)) / temperature, teacher.detach().to(_wide(teacher)) / temperature


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL over dimension 1 of log probabilities."""
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, over the last dimension; 0 where either is constant."""

    def centred(x: Tensor) -> Tensor:
        c = x - x.mean(-1, keepdim=True)
        noise = 8 * torch.finfo(x.dtype).eps * x.abs().amax(-1, keepdim=True)  # what rounding leaves of equal numbers
        return _unit(torch.where(c.abs().amax(-1, keepdim=True) > noise, c, 0))

    return (centred(a) * centred(b)).sum(-1)


def _unit(x: Tensor) -> Tensor:
    """x over its norm in the last dimension; zeros, without gradient, stay zeros."""
    x = x.to(_wide(x))
    peak = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(peak > NOTHING, peak, torch.inf)  # else squares of small numbers vanish
    return x / torch.where(peak > NOTHING, x.square().sum(-1, keepdim=True), 1).sqrt()


def _features(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise ValueError(
            f"features are {tuple(student.shape)} and {tuple(teacher.shape)}; both must be (B, C, h, w), with one B"
        )
    return student, teacher.detach()


def _same_cells(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    cells = tuple(map(min, student.shape[2:], teacher.shape[2:]))
    return tuple(x if x.shape[2:] == cells else F.adaptive_avg_pool2d(x, cells) for x in (student, teacher))


# ---- the step

WITHOUT_TEACHER = ("cross_entropy", "bce")
LAYERS = {  # the depths whose features a term compares, if both networks have them; else Final
    "at": ("Mid1", "Mid2", "Mid3", "Final"),
    "fitnet": ("Mid2",),
    "review_kd": ("Mid1", "Mid2", "Mid3", "Final"),
    "crd": ("Final",),
    "cat_kd": ("Final",),
}
TERMS = (*WITHOUT_TEACHER, "kd", "multi_label_kd", "dkd", "dist", "e2kd", *LAYERS)
METHODS = ("gradcam", "ixg", "bcos", "weights")


class Distill(nn.Module):
    """A training step that distils: the sum of terms, each with its weight; e²KD is one of them, added to any other.

    | term | of | source |
    |---|---|---|
    | `cross_entropy`, `bce` | labels alone: single-label (softmax), and any (one sigmoid a class) | |
    | `kd`, `multi_label_kd`, `dkd`, `dist` | logits | see these functions; `dkd` asks for the label |
    | `e2kd` | explanations of the teacher's top class | `e2kd` |
    | `cat_kd` | class activation maps: the classifier applied to every cell at Final | `cat_kd` |
    | `at` | features at Mid1, Mid2, Mid3 and Final, mean over these | `at` |
    | `fitnet` | features at Mid2, the student's after a learned 1 x 1 convolution | `fitnet` |
    | `review_kd` | features at all four, each fused with the deeper ones | `Review` |
    | `crd` | features at Final, averaged, in learned embeddings of 128 numbers | `crd` |

    The student is trained as `fit` sets it, norm layers learning their statistics, and one forward pass serves all
    terms. What a term learns besides the student is part of this module, and `fit` trains and saves it too.

    Args:
        teacher: a network of `models.build`, or a `models.Head`, of the student's classes. It is copied, and runs in
            eval mode without a graph. None: its logits and maps come with the batch (`frozen.freeze`).
        student: the network to be trained, looked at for the width of its features.
        images: (B, 3, H, W) float, some that both can take, for the same purpose.
        weights: λ of each term, above 0, by its name.
        temperature: τ of `kd`, `multi_label_kd`, `dkd` and `dist`.
        method: of the explanations: `gradcam`, `ixg` or `bcos` (contributions) of `explain`, or `weights`, the dynamic
            weights W(x) of B-cos networks at Input (all six channels).
        at: where `explain` explains.
        every: the explanation term is that of each `every`-th step, from the first on, and 0 in the others.
        contrast: explain the difference of the teacher's top class and the others, as `guidance.Guide`.
        teacher_size: pixels a side to which the teacher's images are brought; None: as the student's.
        count: of images in the training data, for `crd`.
        mixup: α of the Beta distribution that mixes each batch's images with one another, and their labels, before
            student and teacher see them (Zhang et al., ICLR 2018); 0: not at all.

    Raises:
        ValueError: unknown terms, methods or values; networks that a term cannot compare; mixup of images whose maps or
            logits come with the batch, or for `dkd`, which asks for one label an image.
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
        for name, weight in weights.items():
            if name not in TERMS:
                raise ValueError(f"weights name {name!r}; terms are {', '.join(TERMS)}")
            if not 0 < weight < float("inf"):
                raise ValueError(f"weights[{name!r}] is {weight}; it must be above 0")
        if not weights:
            raise ValueError(f"weights are empty; at least one is wanted of {', '.join(TERMS)}")
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        if "crd" in weights and count is None:
            raise ValueError("crd needs count, the number of images in the training data")
        if count is not None and count < 1:
            raise ValueError(f"count is {count}; it must be at least 1")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        if not 0 <= mixup < float("inf"):
            raise ValueError(f"mixup is {mixup}; it must be 0 or above")
        if mixup and "dkd" in weights:
            raise ValueError(f"mixup is {mixup}, but dkd asks for one label an image")
        if mixup and teacher is None and weights.keys() - set(WITHOUT_TEACHER):
            raise ValueError(f"mixup is {mixup}, but what a teacher said of single images tells nothing of mixed ones")
        if every > 1 and list(weights) == ["e2kd"]:
            raise ValueError(f"every is {every}, but e2kd is the only term: the other steps would have none")
        self.weights, self.temperature = {name: float(weight) for name, weight in weights.items()}, float(temperature)
        self.method, self.at, self.every, self.contrast = method, at, int(every), contrast
        self.teacher_size, self.count, self.mixup = teacher_size, count, float(mixup)
        # In a list, so that it is no part of this module: neither trained nor saved.
        self.teachers = (
            [] if teacher is None else [copy.deepcopy(teacher).to(images.device).requires_grad_(False).eval()]
        )
        self.known = None if teacher is None else weights_key(teacher)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if teacher is None:
            if compared := [name for name in weights if name in LAYERS]:
                raise ValueError(f"teacher is None, but {', '.join(compared)} compare features: a teacher is wanted")
            self.layers, self.learned = [], nn.ModuleDict()
            self.to(images.device)
            return
        self.layers = self._common(student)
        self.learned = nn.ModuleDict()
        with torch.no_grad(), modes_restored(student):
            student.eval()
            with _caught(student, self.layers) as here, _caught(self.teachers[0], self.layers) as there:
                logits = student(images), self.teachers[0](self._for_teacher(images))
        if logits[0].shape != logits[1].shape:
            raise ValueError(f"student and teacher have {logits[0].shape[1]} and {logits[1].shape[1]} classes")
        widths = {at: (here[at].shape[1], there[at].shape[1]) for at in here}
        if "fitnet" in weights:
            self.learned["fitnet"] = nn.Conv2d(*widths[self._of("fitnet")[0]], 1)
        if "review_kd" in weights:
            self.learned["review_kd"] = Review([widths[at] for at in self._of("review_kd")])
        if "crd" in weights:
            mine, others = widths[self._of("crd")[0]]
            self.learned["crd"] = nn.ModuleList([nn.Linear(mine, 128), nn.Linear(others, 128)])
        self.to(images.device)

    def extra_repr(self) -> str:
        """What `fit` knows a training by."""
        known = ["weights", "temperature", "teacher_size", "count"]
        if "e2kd" in self.weights:  # without it these make no difference
            known += ["method", "at", "every", "contrast"]
        known += ["mixup"] if self.mixup else []
        return ", ".join([f"teacher={self.known!r}", *(f"{name}={getattr(self, name)!r}" for name in known)])

    def forward(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss by name, weighted, each the mean over the batch."""
        explaining = "e2kd" in self.weights and int(self.steps) % self.every == 0
        self.steps += 1
        if self.mixup:
            images, labels = v2.MixUp(alpha=self.mixup)(batch.images, batch.labels.float())
            batch = dataclasses.replace(batch, images=images, labels=labels)
        there, wanted, others = batch.logits, batch.maps, {}
        if self.teachers and self.weights.keys() - set(WITHOUT_TEACHER):
            teacher, images = self.teachers[0].to(batch.images.device), self._for_teacher(batch.images)
            with torch.no_grad(), _caught(teacher, self.layers) as others:
                if explaining:
                    there, wanted = explanation(teacher, images, top_class(self.contrast), self.method, self.at)
                else:
                    there = teacher(images)
            others = {at: features.detach() for at, features in others.items()}
        if there is None and self.weights.keys() - set(WITHOUT_TEACHER):
            raise ValueError(
                "teacher is None, and the batch holds no logits and maps; train on what frozen.freeze returns"
            )
        with _caught(student, self.layers) as mine:
            if explaining:
                targets = top_class(self.contrast)(there)
                logits, explained = explanation(student, batch.images, targets, self.method, self.at, True)
            else:
                logits = student(batch.images)
        terms = {}
        for name, weight in self.weights.items():
            if name == "e2kd":
                value = e2kd(explained, _resized(wanted, explained)) if explaining else logits.new_zeros(1)
            elif name in LAYERS:
                value = self._compare(name, mine, others, student)
            else:
                value = self._say(name, logits, there, batch.labels)
            terms[name] = weight * value.mean()
        return terms

    def _say(self, name: str, logits: Tensor, there: Tensor | None, labels: Tensor) -> Tensor:
        if name == "cross_entropy":
            return F.cross_entropy(logits.float(), labels if self.mixup else labels.argmax(1), reduction="none")
        if name == "bce":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        if name == "dkd":
            return dkd(logits, there, labels.argmax(1), self.temperature)
        return {"kd": kd, "multi_label_kd": multi_label_kd, "dist": dist}[name](logits, there, self.temperature)

    def _compare(self, name: str, mine: dict, others: dict, student: nn.Module) -> Tensor:
        ours, theirs = ([found[at] for at in self._of(name)] for found in (mine, others))
        if name == "at":
            return sum(at(a, b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
        if name == "fitnet":
            return fitnet(self.learned["fitnet"](ours[0]), theirs[0])
        if name == "review_kd":
            return self.learned["review_kd"](ours, theirs)
        if name == "crd":
            if len(ours[0]) == 1:  # a last batch of one image has no negatives
                return 0 * ours[0].mean()
            embedded = [f(x.mean((2, 3))) for f, x in zip(self.learned["crd"], (ours[0], theirs[0]), strict=True)]
            return crd(*embedded, self.count)
        return cat_kd(class_maps(student, ours[0]), class_maps(self.teachers[0], theirs[0]))

    def _for_teacher(self, images: Tensor) -> Tensor:
        if self.teacher_size is None:
            return images
        # Clamped, as rounding can leave [0, 1].
        return F.interpolate(images, (self.teacher_size,) * 2, mode="bilinear", antialias=True).clamp(0, 1)

    def _of(self, name: str) -> list[str]:
        found = [at for at in LAYERS[name] if at in self.layers]
        return found or ["Final"]

    def _common(self, student: nn.Module) -> list[str]:
        wanted = {at for name in self.weights for at in LAYERS.get(name, ())}
        both = [at for at in student.depths if at in self.teachers[0].depths]
        found = [at for at in both if at in wanted]
        if wanted and not found:
            if "Final" not in both:
                raise ValueError(f"{', '.join(self.weights)}: the networks have no depth in common but {both}")
            found = ["Final"]
        return found


def top_class(contrast: bool = False) -> Callable[[Tensor], Tensor]:
    """Logits (B, C) -> targets for `explain`: the top class, or with `contrast` how it differs from the others."""

    def targets(logits: Tensor) -> Tensor:
        top = logits.argmax(1)
        return against_others(top, logits.shape[1])[:, 0] if contrast else top

    return targets


def explanation(
    model: nn.Module, images: Tensor, targets, method: str, at: str, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits and maps (B, K, H, W) of one target an image by a method of `Distill`, in the modes the modules are in."""
    if method == "weights":
        return dynamic_weights(model, images, targets, create_graph, keep_modes=True)
    return explain(model, images, targets, method, at, create_graph, keep_modes=True)


class Review(nn.Module):
    """ReviewKD (Chen et al.: Distilling Knowledge via Knowledge Review, CVPR 2021): deeper features review finer ones.

    From the deepest depth on, the student's features pass a 1 x 1 convolution, are mixed with what came from the deeper
    depths by two learned attention maps, pass a 3 x 3 convolution, and are compared with the teacher's.

    widths: (student's, teacher's) channels at each depth, the finest first.
    """

    def __init__(self, widths: Sequence[tuple[int, int]], middle: int = 128):
        super().__init__()
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(mine, middle, 1, bias=False), nn.BatchNorm2d(middle)) for mine, _ in widths
        )
        self.attend = nn.ModuleList(nn.Conv2d(2 * middle, 2, 1) for _ in widths[:-1])
        self.expand = nn.ModuleList(
            nn.Sequential(nn.Conv2d(middle, others, 3, padding=1, bias=False), nn.BatchNorm2d(others))
            for _, others in widths
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The sum of `hierarchical_context` over depths, (B,): features (B, C, h, w), the finest first."""
        total, deeper = 0, None
        for k in reversed(range(len(student))):
            x = self.reduce[k](student[k])
            if deeper is not None:
                deeper = F.interpolate(deeper, x.shape[2:])
                attention = self.attend[k](torch.cat([x, deeper], 1)).sigmoid()  # (B, 2, h, w)
                x = x * attention[:, :1] + deeper * attention[:, 1:]
            total, deeper = total + hierarchical_context(self.expand[k](x), teacher[k]), x
        return total


def class_maps(model: nn.Module, features: Tensor) -> Tensor:
    """Class activation maps (B, C, h, w): the classifier applied to every cell of the features at Final (B, D, h, w).

    Their mean over cells is the logits less the bias, for networks that average features before one linear layer
    (Zhou et al., CVPR 2016) and for B-cos networks that average after it. ValueError for other networks.
    """
    path = head_prefixes(model.net)[0].removesuffix(".weight").removesuffix(".").removesuffix(".linear")
    classifier = model.net.get_submodule(path)
    if _averages(model.net) and isinstance(classifier, nn.Linear) and classifier.in_features == features.shape[1]:
        return F.conv2d(features, classifier.weight[:, :, None, None])
    if model.is_bcos and features.ndim == 4:
        return classifier(features)
    raise ValueError(f"class_maps: the classifier of {model.name!r}, {path}, is no linear layer on averaged features")


def _averages(net: nn.Module) -> bool:
    """Whether nothing but an average stands between the features at Final and a timm network's classifier."""
    pool = getattr(net, "global_pool", getattr(getattr(net, "head", None), "global_pool", ""))
    kind = pool if isinstance(pool, str) else getattr(pool, "pool_type", "")
    norms = [getattr(net, "fc_norm", None), getattr(getattr(net, "head", None), "norm", None)]
    return kind == "avg" and all(norm is None or isinstance(norm, nn.Identity) for norm in norms)


@contextmanager
def _caught(model: nn.Module, depths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The features (B, C, h, w) at these depths, by name, of a forward pass within."""
    found: dict[str, Tensor] = {}

    def catch(at: str):
        def hook(module, inputs, output):
            # A clone: the network may go on in place.
            found[at] = output.clone() if output.ndim == 4 else as_grid(output, model, seen[0])

        return hook

    seen: list[Tensor] = []
    handles = [model.register_forward_pre_hook(lambda module, inputs: seen.insert(0, inputs[0]))]
    handles += [model.get_submodule(model.depths[at]).register_forward_hook(catch(at)) for at in depths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    size = like.shape[2:]
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)
