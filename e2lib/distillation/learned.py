"""Terms with parameters of their own: built from the widths of the features they compare, trained with the student.

`widths` is a list with one pair per depth, the finest first: the student's channels and the teacher's. `forward` takes
the features (B, C, h, w) of both at these depths and returns one value per image, (B,).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2lib.distillation.losses import crd, fitnet, hierarchical_context


class Hint(nn.Module):
    """`fitnet`, after a 1 x 1 convolution that gives the student's features the teacher's width."""

    def __init__(self, widths: Sequence[tuple[int, int]]):
        super().__init__()
        self.convolution = nn.Conv2d(*widths[0], 1)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        return fitnet(self.convolution(student[0]), teacher[0])


class Contrast(nn.Module):
    """`crd` of the features' means, each embedded by a linear layer in 128 numbers. 0 for a batch of one image."""

    def __init__(self, widths: Sequence[tuple[int, int]], size: int = 128):
        super().__init__()
        self.embed = nn.ModuleList(nn.Linear(width, size) for width in widths[0])

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], count: int) -> Tensor:
        pairs = zip(self.embed, (student[0], teacher[0]), strict=True)
        embedded = [layer(features.mean((2, 3))) for layer, features in pairs]
        if len(student[0]) == 1:  # there are no negatives, but DistributedDataParallel wants every gradient
            return 0 * sum(embedded).sum(1)
        return crd(*embedded, count)


class Review(nn.Module):
    """ReviewKD (Chen et al., CVPR 2021): deeper features review finer ones; the sum of `hierarchical_context`.

    From the deepest depth on, the student's features pass a 1 x 1 convolution. Two learned attention maps mix them with
    what came from the deeper depths. The mixture passes a 3 x 3 convolution and is compared with the teacher's.
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
        total, deeper = 0, None
        for k in reversed(range(len(student))):
            x = self.reduce[k](student[k])
            if deeper is not None:
                deeper = F.interpolate(deeper, x.shape[2:])
                attention = self.attend[k](torch.cat([x, deeper], 1)).sigmoid()  # (B, 2, h, w)
                x = x * attention[:, :1] + deeper * attention[:, 1:]
            total, deeper = total + hierarchical_context(self.expand[k](x), teacher[k]), x
        return total
