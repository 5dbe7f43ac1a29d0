"""What a student can be asked to match, as pure functions of what student and teacher give for the same images.

Each function returns one value per image, (B,) float32 or wider, unless it says otherwise. Logits z are (B, C) and
features (B, C, h, w), all float; the temperature τ is above 0. The teacher's side is data: it gets no gradient. Inputs
in half precision are brought to float32 first. A wrong shape or temperature is a ValueError.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NOTHING = 1e-30  # a map that is nowhere larger is an all-zero map


def cross_entropy(student: Tensor, labels: Tensor) -> Tensor:
    """−Σ_c y_c log softmax(z_S)_c, nats, of labels (B, C) that add up to 1 per image: one-hot, or mixtures of these."""
    if not ((sums := labels.sum(1)) - 1).abs().max() < 1e-3:
        raise ValueError(f"labels add up to {sums.tolist()} per image; cross_entropy needs 1, bce takes any sum")
    return F.cross_entropy(student.to(_wide(student)), labels.to(_wide(student)), reduction="none")


def bce(student: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of σ(z_S) per class, nats, (B, C), for labels (B, C) in [0, 1] of any sum."""
    student = student.to(_wide(student))
    return F.binary_cross_entropy_with_logits(student, labels.to(student), reduction="none")


def kd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² KL(softmax(z_T/τ) ‖ softmax(z_S/τ)), nats (Hinton, Vinyals, Dean 2015)."""
    student, teacher = _logits(student, teacher, temperature)
    return temperature**2 * _divergence(teacher.log_softmax(1), student.log_softmax(1))


def multi_label_kd(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Σ_c τ² KL(σ(z_T/τ) ‖ σ(z_S/τ)) of the two outcomes of each class, nats (Yang et al.: L2D, ICCV 2023)."""
    student, teacher = _logits(student, teacher, temperature)
    there, here = (torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], 1) for z in (teacher, student))  # (B, 2, C)
    return temperature**2 * _divergence(there, here).sum(1)


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """α TCKD + β NCKD, times τ² (Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022).

    TCKD is the divergence of (p_y, 1 − p_y), NCKD that of the softmax over the classes other than y. With α = 1 and the
    teacher's 1 − p_y as β, it is `kd`. The labels y, int64 (B,) or one-hot (B, C), must be one per image.
    """
    student, teacher = _logits(student, teacher, temperature)
    target = F.one_hot(labels, student.shape[1]).bool() if labels.ndim == 1 else labels == 1
    if target.shape != student.shape or not (target.sum(1) == 1).all():
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; dkd needs exactly one label per image")
    there, here = teacher.log_softmax(1), student.log_softmax(1)

    def outcomes(log: Tensor) -> Tensor:
        return torch.stack([log[target], log.masked_fill(target, -torch.inf).logsumexp(1)], 1)  # (B, 2)

    others = [z[~target].view(len(z), -1).log_softmax(1) for z in (teacher, student)]
    tckd, nckd = _divergence(outcomes(there), outcomes(here)), _divergence(*others)
    return temperature**2 * (alpha * tckd + beta * nckd)


def dist(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² (inter + intra), a scalar, of p = softmax(z/τ) (Huang et al.: DIST, NeurIPS 2022, both weights 1).

    Inter is 1 − Pearson's correlation over the classes of an image, averaged over images. Intra is the same over the
    images of a class, averaged over classes.
    """
    student, teacher = (z.softmax(1) for z in _logits(student, teacher, temperature))
    inter, intra = (1 - _correlation(a, b).mean() for a, b in ((student, teacher), (student.T, teacher.T)))
    return temperature**2 * (inter + intra)


def e2kd(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos(E_S, E_T) of flattened explanations, in [0, 2] (Parchami-Araghi et al., section 3.2).

    Maps (B, K, h, w), signed, of any scale. Where either is zero everywhere, it is 1 and has no gradient. It is added,
    times λ, to any other loss.
    """
    _check(student.ndim == 4 and student.shape == teacher.shape, "maps", student, teacher, "(B, K, h, w) of one shape")
    student, teacher = (_unit(x.flatten(1)) for x in (student, teacher.detach()))
    return 1 - (student * teacher).sum(1)


def cat_kd(student: Tensor, teacher: Tensor, cells: int = 2) -> Tensor:
    """Σ_c ‖a_S/‖a_S‖ − a_T/‖a_T‖‖² / C of class activation maps (Guo et al.: CAT-KD, CVPR 2023).

    Maps (B, C, h, w) of all classes, averaged to `cells` x `cells`. Their heights and widths may differ.
    """
    student, teacher = (F.adaptive_avg_pool2d(x, cells).flatten(2) for x in _features(student, teacher))
    return (_unit(student) - _unit(teacher)).square().sum(2).mean(1)


def at(student: Tensor, teacher: Tensor) -> Tensor:
    """‖Q_S/‖Q_S‖ − Q_T/‖Q_T‖‖², Q = Σ_c F_c² flattened: attention transfer (Zagoruyko, Komodakis, ICLR 2017).

    Widths may differ; the finer one is averaged to the cells of the other. Notes: the paper has the norm, not its
    square. The norm has no gradient at 0.
    """
    student, teacher = (x.square().sum(1).flatten(1) for x in _same_cells(*_features(student, teacher)))
    return (_unit(student) - _unit(teacher)).square().sum(1)


def fitnet(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (F_S − F_T)², the finer averaged to the cells of the other, of one width (FitNets, Romero 2015)."""
    student, teacher = _same_cells(*_features(student, teacher))
    if student.shape != teacher.shape:
        raise ValueError(
            f"features have {student.shape[1]} and {teacher.shape[1]} channels; they must have the same number"
        )
    return (student - teacher).square().mean((1, 2, 3))


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of (F_S − F_T)² at several resolutions: HCL of ReviewKD (Chen et al., CVPR 2021).

    The resolutions are the features' own, and 4, 2 and 1 cells a side where these are fewer. Each is weighted half as
    much as the one before; the weights add up to 1.
    """
    student, teacher = _features(student, teacher)
    losses, weights = [fitnet(student, teacher)], [1.0]
    for cells in (4, 2, 1):
        if cells < min(student.shape[-2:] + teacher.shape[-2:]):
            losses.append(fitnet(*(F.adaptive_avg_pool2d(x, cells) for x in (student, teacher))))
            weights.append(weights[-1] / 2)
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def crd(student: Tensor, teacher: Tensor, images: int, temperature: float = 0.1) -> Tensor:
    """Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020): which pairs are of one image?

    −log h(s_i, t_i) − Σ_j≠i log(1 − h(s_i, t_j)), and the same with s and t exchanged. Here
    h = e^(s·t/τ) / (e^(s·t/τ) + N/M) of embeddings (B, D) over their norms, N = B − 1, and M = `images` in the training
    data. The embeddings of both are learned, so the teacher's get a gradient too. Notes: negatives are the other images
    of the batch. The paper draws 16,384 from a memory.
    """
    right = student.ndim == 2 and student.shape == teacher.shape and len(student) > 1
    _check(right, "embeddings", student, teacher, "(B, D), B at least 2")
    with torch.autocast(student.device.type, enabled=False):  # which would multiply in half precision
        scores = _unit(student) @ _unit(teacher).T / temperature  # (B, B)
    scores = scores - torch.log(torch.tensor((len(student) - 1) / images, device=scores.device))
    same = torch.eye(len(student), dtype=torch.bool, device=scores.device)
    losses = -torch.where(same, F.logsigmoid(scores), F.logsigmoid(-scores))
    return losses.sum(1) + losses.sum(0)


def _check(right: bool, what: str, student: Tensor, teacher: Tensor, form: str) -> None:
    if not right:
        raise ValueError(f"{what} are {tuple(student.shape)} and {tuple(teacher.shape)}; both must be {form}")


def _logits(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both over τ, in float32 or wider; the teacher's detached."""
    right = student.ndim == 2 and student.shape == teacher.shape and student.shape[1] > 1
    _check(right, "logits", student, teacher, "(B, C), C at least 2")
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
    return (_unit(_centred(a)) * _unit(_centred(b))).sum(-1)


def _centred(x: Tensor) -> Tensor:
    c = x - x.mean(-1, keepdim=True)
    noise = 8 * torch.finfo(x.dtype).eps * x.abs().amax(-1, keepdim=True)  # what rounding leaves of equal numbers
    return torch.where(c.abs().amax(-1, keepdim=True) > noise, c, 0)


def _unit(x: Tensor) -> Tensor:
    """x over its norm in the last dimension; zeros stay zeros, without gradient."""
    x = x.to(_wide(x))
    peak = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(peak > NOTHING, peak, torch.inf)  # else squares of small numbers vanish
    return x / torch.where(peak > NOTHING, x.square().sum(-1, keepdim=True), 1).sqrt()


def _features(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or wider; the teacher's detached."""
    right = student.ndim == teacher.ndim == 4 and len(student) == len(teacher)
    _check(right, "features", student, teacher, "(B, C, h, w), with one B")
    return student.to(_wide(student)), teacher.detach().to(_wide(teacher))


def _same_cells(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    cells = tuple(map(min, student.shape[2:], teacher.shape[2:]))
    return tuple(x if x.shape[2:] == cells else F.adaptive_avg_pool2d(x, cells) for x in (student, teacher))
