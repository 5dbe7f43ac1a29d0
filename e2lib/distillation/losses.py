"""Distillation losses: first pure functions of student and teacher, then Modules, which have parameters of their own.

Each returns one value per image, (B,) float32 or wider, unless it says otherwise. Logits z are float (B, C), features
float (B, C, h, w). The temperature τ is above 0. The teacher gets no gradient, and all-zero maps give none. Features of
two resolutions are compared at the coarser one, to which the other is average-pooled. ValueError for a wrong shape or
temperature. A Module is built from `widths`: (student's channels, teacher's channels) per depth, finest first.
"""

from collections.abc import Sequence
from functools import partial
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from e2lib.datasets.files import check_value
from e2lib.metrics.localisation import over_peak, wide

_divergence = partial(F.kl_div, reduction="none", log_target=True)  # terms of KL(second ‖ first) of log probabilities


def cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """−Σ_c y_c log softmax(z_S)_c, nats. Labels y (B, C), one-hot or mixed, add up to 1 per image."""
    if not ((sums := labels.sum(1)) - 1).abs().max() < 1e-3:
        raise ValueError(f"labels add up to {sums.tolist()} per image; cross_entropy needs 1, bce takes any sum")
    return F.cross_entropy(wide(student), wide(labels), reduction="none")


def bce(student: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of σ(z_S), nats: one value per image and class, (B, C). Labels (B, C) lie in [0, 1]."""
    return F.binary_cross_entropy_with_logits(wide(student), labels.to(wide(student)), reduction="none")


def kd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² KL(softmax(z_T/τ) ‖ softmax(z_S/τ)) ≥ 0, nats (Hinton, Vinyals, Dean 2015)."""
    student, teacher = _logits(student, teacher, temperature)
    return temperature**2 * _divergence(student.log_softmax(1), teacher.log_softmax(1)).sum(1)


def multi_label_kd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Σ_c τ² KL(σ(z_T/τ) ‖ σ(z_S/τ)) ≥ 0, nats: each class is present or absent (Yang et al.: L2D, ICCV 2023)."""
    student, teacher = _logits(student, teacher, temperature)
    here, there = (torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], 1) for z in (student, teacher))  # (B, 2, C)
    return temperature**2 * _divergence(here, there).sum(1).sum(1)


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """τ² (α TCKD + β NCKD) ≥ 0 for one label y per image, int64 (B,) or one-hot (B, C) (DKD, Zhao et al., CVPR 2022).

    TCKD is the divergence of (p_y, 1 − p_y), NCKD that of the softmax over the other classes.
    """
    student, teacher = _logits(student, teacher, temperature)
    target = F.one_hot(labels, student.shape[1]).bool() if labels.ndim == 1 else labels == 1
    if target.shape != student.shape or not (target.sum(1) == 1).all():
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; dkd needs exactly one label per image")
    outcomes, others = [], []
    for z in (student, teacher):
        log = z.log_softmax(1)
        outcomes.append(torch.stack([log[target], log.masked_fill(target, -torch.inf).logsumexp(1)], 1))  # (B, 2)
        others.append(z[~target].view(len(z), -1).log_softmax(1))
    return temperature**2 * (alpha * _divergence(*outcomes).sum(1) + beta * _divergence(*others).sum(1))


def dist(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² (inter + intra) ≥ 0, one scalar per batch (Huang et al.: DIST, NeurIPS 2022, with both weights 1).

    Both are means of 1 − Pearson's correlation of softmax(z/τ): inter over the classes, intra over the images.
    """
    check_value(len(student) > 0, "logits", "empty", "of one image or more")
    student, teacher = (z.softmax(1) for z in _logits(student, teacher, temperature))
    pairs = (student, teacher), (student.T, teacher.T)
    inter, intra = (1 - (_standard(a) * _standard(b)).sum(1).mean() for a, b in pairs)
    return temperature**2 * (inter + intra)


def e2kd(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos(E_S, E_T), in [0, 2], of maps (B, K, h, w); 1 for an all-zero map (Parchami-Araghi, section 3.2)."""
    right = student.ndim == 4 and student.shape == teacher.shape
    maps = _checked(right, "maps", student, teacher.detach(), "(B, K, h, w) of one shape")
    student, teacher = (_unit(x.flatten(1)) for x in maps)
    return 1 - (student * teacher).sum(1)


def cat_kd(student: Tensor, teacher: Tensor, cells: int = 2) -> Tensor:
    """Σ_c ‖a_S/‖a_S‖ − a_T/‖a_T‖‖² / C, in [0, 4], of `class_maps` pooled to cells x cells (Guo et al., CVPR 2023)."""
    student, teacher = (_unit(x.flatten(2)) for x in _features(student, teacher, cells, one_width=True))
    return (student - teacher).square().sum(2).mean(1)


def at(student: Tensor, teacher: Tensor) -> Tensor:
    """‖Q_S/‖Q_S‖ − Q_T/‖Q_T‖‖², in [0, 2], of Q = Σ_c F_c², flattened (AT, Zagoruyko, Komodakis, ICLR 2017)."""
    # The paper has the norm, not its square; the norm has no gradient at 0.
    student, teacher = (_unit(x.square().sum(1).flatten(1)) for x in _features(student, teacher))
    return (student - teacher).square().sum(1)


def fitnet(student: Tensor, teacher: Tensor, cells: int | None = None) -> Tensor:
    """Mean of (F_S − F_T)² ≥ 0, after pooling to cells x cells if `cells` is given (FitNets, Romero et al. 2015)."""
    student, teacher = _features(student, teacher, cells, one_width=True)
    return (student - teacher).square().mean((1, 2, 3))


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of `fitnet` at full size and at 4, 2, 1 cells, each at half the weight before (HCL of ReviewKD)."""
    student, teacher = wide(student), wide(teacher)  # gradients add up in float32 too
    sizes = [None, *(cells for cells in (4, 2, 1) if cells < min(student.shape[2:] + teacher.shape[2:]))]
    total = sum(fitnet(student, teacher, cells) / 2**k for k, cells in enumerate(sizes))
    return total / sum(0.5**k for k in range(len(sizes)))


def crd(student: Tensor, teacher: Tensor, images: int, temperature: float = 0.1) -> Tensor:
    """−log h(s_i, t_i) − Σ_j≠i log(1 − h(s_i, t_j)), and the same with s and t exchanged (CRD, Tian et al., ICLR 2020).

    h = e^(s·t/τ) / (e^(s·t/τ) + N/M) of normalised embeddings (B, D), with N = B − 1 and M = the number of training
    `images`. The teacher's embeddings get a gradient too. Notes: negatives are the batch's other images; the paper
    draws 16,384 from a memory.
    """
    right = student.ndim == 2 and student.shape == teacher.shape
    student, teacher = _checked(right, "embeddings", student, teacher, "(B, D)")
    with torch.autocast(student.device.type, enabled=False):  # autocast would multiply in half precision
        scores = _unit(student) @ _unit(teacher).T / temperature  # (B, B)
    scores = scores - torch.log(torch.tensor((len(student) - 1) / images, device=scores.device))
    same = torch.eye(len(student), dtype=torch.bool, device=scores.device)
    losses = -torch.where(same, F.logsigmoid(scores), F.logsigmoid(-scores))
    return losses.sum(1) + losses.sum(0)


class Hint(nn.Module):
    """`fitnet` at the first depth. A 1 x 1 convolution brings the student's features to the teacher's width."""

    def __init__(self, widths: Sequence[tuple[int, int]]):
        super().__init__()
        self.convolution = nn.Conv2d(*widths[0], 1)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        return fitnet(self.convolution(student[0]), teacher[0])


class Contrast(nn.Module):
    """`crd` of the mean features at the first depth. Two linear layers embed them in 128 numbers."""

    def __init__(self, widths: Sequence[tuple[int, int]]):
        super().__init__()
        self.embed = nn.ModuleList(nn.Linear(width, 128) for width in widths[0])

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], count: int) -> Tensor:
        student, teacher = (layer(x[0].mean((2, 3))) for layer, x in zip(self.embed, (student, teacher), strict=True))
        return crd(student, teacher, count)


class Review(nn.Module):
    """ReviewKD (Chen et al., CVPR 2021): the sum of `hierarchical_context` over the depths, from the deepest on.

    A 1 x 1 convolution brings the student's features to 128 channels. Two learned attention maps mix them with the
    mixture of the next deeper depth. A 3 x 3 convolution brings this mixture to the teacher's width.
    """

    def __init__(self, widths: Sequence[tuple[int, int]]):
        super().__init__()
        convolution = partial(Conv2dNormActivation, activation_layer=None)
        self.reduce = nn.ModuleList(convolution(mine, 128, 1) for mine, _ in widths)
        self.attend = nn.ModuleList(nn.Conv2d(2 * 128, 2, 1) for _ in widths[:-1])
        self.expand = nn.ModuleList(convolution(128, others, 3) for _, others in widths)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        total, deeper = 0, None
        for k in reversed(range(len(student))):
            x = self.reduce[k](student[k])
            if deeper is not None:
                deeper = F.interpolate(deeper, x.shape[2:])
                attention = self.attend[k](torch.cat([x, deeper], 1)).sigmoid()  # (B, 2, h, w)
                x = x * attention[:, :1] + deeper * attention[:, 1:]
            total, deeper = total + hierarchical_context(self.expand[k](x), teacher[k]), x
        return total


def _checked(right, what, student, teacher, form) -> tuple[Tensor, Tensor]:
    if not right:
        raise ValueError(f"{what} are {tuple(student.shape)} and {tuple(teacher.shape)}; both must be {form}")
    if not (student.isfinite().all() and teacher.isfinite().all()):
        raise ValueError(f"{what} hold NaN or infinity: a network or its images are not finite")
    return wide(student), wide(teacher)


def _logits(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    right = student.ndim == 2 and student.shape == teacher.shape and student.shape[1] > 1
    student, teacher = _checked(right, "logits", student, teacher.detach(), "(B, C), C at least 2")
    check_value(0 < temperature < inf, "temperature", temperature, "above 0")
    return student / temperature, teacher / temperature


def _features(student: Tensor, teacher: Tensor, cells: int | None = None, one_width: bool = False) -> list[Tensor]:
    must, same = ("of one width, ", 2) if one_width else ("", 1)
    right = student.ndim == teacher.ndim == 4 and student.shape[:same] == teacher.shape[:same]
    both = _checked(right, "features", student, teacher.detach(), f"{must}(B, C, h, w), with one B")
    size = cells or tuple(map(min, student.shape[2:], teacher.shape[2:]))
    return [x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in both]


def _unit(x: Tensor) -> Tensor:
    """x divided by its norm along the last dimension; zeros stay zeros, without gradient."""
    x = over_peak(x, -1)  # the squares of small numbers would vanish
    squares = x.square().sum(-1, keepdim=True)
    return x / torch.where(squares > 0, squares, 1).sqrt()


def _standard(x: Tensor) -> Tensor:
    """`_unit` of x minus its mean along the last dimension; zeros where x is constant."""
    centred = x - x.mean(-1, keepdim=True)
    noise = 8 * torch.finfo(x.dtype).eps * x.abs().amax(-1, keepdim=True)  # equal numbers may differ by this rounding
    return _unit(torch.where(centred.abs().amax(-1, keepdim=True) > noise, centred, 0))
