import pytest
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from e2lib.boxes import mask_box
from e2lib.datasets import Sample


class Toy(Dataset):
    """Smooth pictures with a triangle and a rectangle, objects of classes i % 3 and (i + 1) % 3; sizes differ."""

    classes, groups, multilabel = ["cat", "dog", "zebra"], [], True

    def __init__(self, length=6, segmented=True, transform=None):
        self.length, self.segmented, self.transform = length, segmented, transform
        self.targets = torch.zeros(length, 3, dtype=torch.uint8)
        for i in range(length):
            self.targets[i, [i % 3, (i + 1) % 3]] = 1

    def __len__(self):
        return self.length

    def images_with(self, c):
        return self.targets[:, c].nonzero()[:, 0].numpy()

    def __getitem__(self, i):
        h, w = 32 + i % 6, 48
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        image = torch.stack([4 * y, 3 * x, 100 + y + x]).to(torch.uint8)
        masks = torch.stack([(x < y) & (x > 2) & (y < 20), (x >= 25 + i % 6) & (x < 40) & (y >= 22) & (y < 30)])
        boxes = torch.stack([mask_box(m) for m in masks]).float()
        sample = Sample(
            image=tv_tensors.Image(image),
            labels=self.targets[i],
            boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(h, w)),
            box_labels=torch.tensor([i % 3, (i + 1) % 3]),
            masks=tv_tensors.Mask(masks) if self.segmented else None,
            group=-1,
            name=f"toy-{i}",
        )
        return sample if self.transform is None else self.transform(sample)


@pytest.fixture
def toy():
    return Toy
