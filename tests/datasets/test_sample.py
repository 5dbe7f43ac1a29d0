import pytest
import torch

from e2lib.boxes import box_mask
from e2lib.datasets import collate, eval_transform


def test_collate_stacks(toy):
    samples = [toy(transform=eval_transform(40))[i] for i in range(4)]
    batch = collate(samples)
    assert batch.images.shape == (4, 3, 40, 40) and batch.images.dtype == torch.float32
    assert torch.equal(batch.images[1] * 255, samples[1].image.float())
    assert batch.labels.tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert batch.labels.dtype == torch.uint8
    assert batch.groups.tolist() == [-1] * 4 and batch.annotated.tolist() == [True] * 4
    assert batch.names == [f"toy-{i}" for i in range(4)]
    assert all(type(t) is torch.Tensor for t in (batch.images, batch.boxes[0], batch.masks[0], batch.labels))


def test_class_masks_are_boxes_or_segmentation_of_the_class(toy):
    samples = [toy(transform=eval_transform(40))[i] for i in range(3)]
    batch = collate(samples)
    masks = batch.class_masks(torch.tensor([[0, 1, 2], [1, -1, 0], [2, 2, 2]]))
    assert masks.shape == (3, 3, 40, 40) and masks.dtype == torch.bool
    assert torch.equal(masks[0, 0], box_mask(samples[0].boxes[:1], (40, 40)))
    assert torch.equal(masks[0, 1], box_mask(samples[0].boxes[1:], (40, 40)))
    assert not masks[0, 2].any() and not masks[1, 1].any() and not masks[1, 2].any()
    assert torch.equal(masks[2, 0], masks[2, 2]) and masks[2, 0].any()
    shapes = batch.class_masks(torch.tensor([0, -1, 2]), segmentation=True)
    assert shapes.shape == (3, 1, 40, 40)
    assert torch.equal(shapes[0, 0], samples[0].masks[0].as_subclass(torch.Tensor))
    assert not shapes[1].any()
    assert (shapes[0] & ~masks[0, :1]).sum() == 0 and shapes[0].sum() < masks[0, 0].sum()


def test_class_masks_join_several_boxes_of_a_class(toy):
    sample = toy()[0]
    sample.box_labels = torch.tensor([2, 2])
    mask = collate([sample]).class_masks(torch.tensor([2]))
    assert torch.equal(mask[0, 0], box_mask(sample.boxes, (32, 48)))


def test_images_without_masks_mix_with_others(toy):
    to = eval_transform(40)
    batch = collate([toy(transform=to)[0], toy(segmented=False, transform=to)[1]])
    assert batch.masks[0] is not None and batch.masks[1] is None
    masks = batch.class_masks(torch.tensor([0, 1]), segmentation=True)
    assert masks[0].any() and not masks[1].any()
    batch = collate([toy(segmented=False, transform=to)[1]])
    assert batch.masks is None
    with pytest.raises(ValueError, match="no image of this batch"):
        batch.class_masks(torch.tensor([1]), segmentation=True)


def test_collate_names_images_of_different_sizes(toy):
    with pytest.raises(ValueError, match="toy-0 .*32, 48.*toy-3 .*35, 48"):
        collate([toy()[0], toy()[3]])


def test_batch_to_moves_every_tensor(toy):
    to = eval_transform(40)
    moved = collate([toy(transform=to)[0], toy(segmented=False, transform=to)[1]]).to("meta")
    tensors = [moved.images, moved.labels, moved.groups, moved.annotated, *moved.boxes, *moved.box_labels]
    assert {t.device.type for t in [*tensors, moved.masks[0]]} == {"meta"}
    assert moved.masks[1] is None and moved.names == ["toy-0", "toy-1"]


def test_present_lists_the_classes_of_each_image_filled_up_with_minus_one(toy):
    batch = collate([toy(2)[0], toy(2)[0]])
    batch.labels = torch.tensor([[0, 1, 0], [1, 0, 1]], dtype=torch.uint8)
    assert batch.present().tolist() == [[1, -1], [0, 2]]
    batch.labels.zero_()
    assert batch.present().tolist() == [[-1], [-1]] and batch.present().dtype == torch.int64
