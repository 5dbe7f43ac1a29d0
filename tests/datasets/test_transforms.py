import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from e2lib.boxes import box_masks, mask_box
from e2lib.datasets import Joint, Sample, crop_transform, eval_transform, train_transform


@pytest.mark.parametrize("steps", [v2.RandomHorizontalFlip(p=1), v2.Resize((96, 144)), v2.Resize((16, 24))])
def test_box_of_the_moved_mask_is_the_moved_box(toy, steps):
    sample = toy()[0]  # 32 x 48
    sample.boxes[:] = torch.tensor([[4.0, 2, 20, 20], [24, 22, 40, 30]])
    sample.masks[:] = box_masks(sample.boxes, (32, 48))
    moved = Joint(steps)(sample)
    assert moved.masks.dtype == torch.bool and moved.boxes.dtype == torch.float32
    assert torch.equal(torch.stack([mask_box(m) for m in moved.masks]).float(), moved.boxes.as_subclass(torch.Tensor))
    assert moved.boxes.canvas_size == tuple(moved.image.shape[-2:]) == tuple(moved.masks.shape[-2:])
    assert moved.labels is sample.labels and moved.name == sample.name


def test_flip_by_hand(toy):
    sample = toy()[0]
    flipped = Joint(v2.RandomHorizontalFlip(p=1))(sample)
    assert torch.equal(flipped.image, sample.image.flip(-1)) and torch.equal(flipped.masks, sample.masks.flip(-1))
    x1, y1, x2, y2 = sample.boxes[0].tolist()
    assert flipped.boxes[0].tolist() == [48 - x2, y1, 48 - x1, y2]


def test_eval_transform_is_deterministic_and_keeps_every_box(toy):
    one, two = (eval_transform(8)(toy()[5]) for _ in range(2))
    assert one.image.shape == (3, 8, 8) and one.image.dtype == torch.uint8
    assert torch.equal(one.image, two.image) and torch.equal(one.boxes, two.boxes) and len(one.boxes) == 2


def test_train_transform_flips_half_of_the_images(toy):
    torch.manual_seed(0)
    sample = eval_transform(40)(toy()[0])
    moved = [train_transform(40)(toy()[0]) for _ in range(40)]
    same = sum(torch.equal(m.image, sample.image) for m in moved)
    flipped = sum(torch.equal(m.image, sample.image.flip(-1)) for m in moved)
    assert same + flipped == 40 and 10 < same < 30


def test_crop_clips_boxes_and_drops_vanished_ones_with_mask_and_label(toy):
    torch.manual_seed(0)
    counts = set()
    for i in range(60):
        sample = crop_transform(64)(toy()[i % 6])
        n = len(sample.boxes)
        counts.add(n)
        assert sample.image.shape == (3, 64, 64)
        assert len(sample.box_labels) == n and sample.masks.shape == (n, 64, 64)
        x1, y1, x2, y2 = sample.boxes.as_subclass(torch.Tensor).unbind(1)
        assert ((x1 >= 0) & (y1 >= 0) & (x2 <= 64) & (y2 <= 64) & (x1 < x2) & (y1 < y2)).all()
        for mask, box in zip(sample.masks, box_masks(sample.boxes, (64, 64)), strict=True):
            if mask.any():  # resized by nearest neighbour, so its edge is a source pixel off at most
                assert (mask & box).sum() / mask.sum() > 0.7
    assert counts == {0, 1, 2}


def test_images_without_boxes_and_without_masks(toy):
    sample = toy(segmented=False)[0]
    assert train_transform(24)(sample).masks is None
    sample = toy()[0]
    sample.boxes, sample.box_labels = sample.boxes[:0], sample.box_labels[:0]
    sample.boxes = type(toy()[0].boxes)(sample.boxes, format="XYXY", canvas_size=(32, 48))
    sample.masks = type(sample.masks)(sample.masks[:0])
    for transform in (train_transform(24), crop_transform(24)):
        moved = transform(sample)
        assert moved.boxes.shape == (0, 4) and moved.masks.shape == (0, 24, 24)


def test_plain_tensors_are_moved_with_their_boxes():
    image = torch.rand(3, 8, 8)
    maps = tv_tensors.Image(image[:1])  # as `Frozen` adds them
    boxes = torch.tensor([[0.0, 0, 2, 4]])
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :2] = 1
    for added in (None, maps, image[:1]):
        moved = Joint(v2.RandomHorizontalFlip(p=1))(Sample(image, torch.tensor(1), boxes, masks=mask, maps=added))
        assert torch.equal(moved.image, image.flip(-1)) and torch.equal(moved.masks, mask.flip(-1))
        assert moved.boxes.tolist() == [[6, 0, 8, 4]]
        assert added is None or torch.equal(moved.maps, image[:1].flip(-1))
