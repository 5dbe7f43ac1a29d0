"""Samples, data sets of one's own and batches: defaults by hand, bad input by name."""

from dataclasses import replace

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from e2lib.boxes import box_mask, box_masks, mask_box
from e2lib.datasets import (
    Batch,
    Joint,
    Sample,
    Samples,
    Scenes,
    collate,
    crop_transform,
    eval_transform,
    few_shot,
    train_transform,
    with_boxes,
    with_transform,
)


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


# ---- defaults, formats and checks where data enter

IMAGE = torch.full((3, 16, 16), 0.5)
CORNERS = torch.tensor([[2.0, 4, 6, 12]])


@pytest.mark.parametrize(
    ("format", "values"), [("XYXY", [2, 4, 6, 12]), ("XYWH", [2, 4, 4, 8]), ("CXCYWH", [4, 8, 4, 8])]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_boxes_of_any_format_are_the_same_boxes(format, values, dtype):
    boxes = tv_tensors.BoundingBoxes(torch.tensor([values], dtype=dtype), format=format, canvas_size=(16, 16))
    sample = Sample(IMAGE, torch.tensor([0, 1]), boxes)
    assert sample.boxes.format is tv_tensors.BoundingBoxFormat.XYXY
    several = [collate([sample]), Batch.of(IMAGE[None], torch.tensor([1]), boxes)]
    several += [Batch.of(IMAGE[None], torch.tensor([1]), [boxes])]
    for batch in several:
        assert torch.equal(batch.boxes[0].float(), CORNERS) and batch.box_labels[0].tolist() == [1]


def test_a_batch_of_tensors_is_that_of_samples(toy):
    whole = collate([toy(transform=eval_transform(40))[i] for i in range(4)])
    made = Batch.of(
        whole.images,
        whole.labels,
        whole.boxes,
        whole.box_labels,
        whole.masks,
        names=whole.names,
        annotated=[1, 1, 0, 1],
    )
    for name, value in vars(whole).items():
        if name == "annotated":
            assert made.annotated.tolist() == [True, True, False, True]
        elif isinstance(value, list) and isinstance(value[0], torch.Tensor):
            assert all(torch.equal(a, b) for a, b in zip(value, getattr(made, name), strict=True))
        else:
            assert torch.equal(value, made.images) if name == "images" else str(value) == str(getattr(made, name))


def test_defaults_of_a_batch():
    images, labels = torch.rand(3, 3, 16, 16), torch.tensor([2, 0, 1])
    bare = Batch.of(images, labels)
    assert bare.names == ["0", "1", "2"] and bare.size == (16, 16) and bare.masks is None
    assert bare.groups.tolist() == [-1] * 3 and bare.annotated.all() and not any(map(len, bare.boxes))
    assert bare.hot(3).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]] == Batch.of(images, bare.hot(3)).hot(3).tolist()
    assert bare.present().tolist() == [[2], [0], [1]]
    assert torch.equal(Batch.of(images, labels.int()).hot(3), bare.hot(3))
    some = Batch.of(images, labels, [CORNERS, None, CORNERS.repeat(2, 1)])
    assert [x.tolist() for x in some.box_labels] == [[2], [], [1, 1]]
    features = Batch.of(torch.randn(3, 8, 4, 4) * 9, labels, CORNERS.expand(3, 4), size=(16, 16))
    assert features.size == (16, 16) and features.class_masks(labels).sum().item() == 3 * 4 * 8
    pixels = Batch.of((images * 255).byte(), labels)
    assert torch.equal(pixels.images, (images * 255).byte() / 255)


def test_masks_may_be_soft_and_get_the_boxes_around_them():
    soft = torch.zeros(2, 16, 16)
    soft[0, 4:12, 2:6] = 0.25
    batch = Batch.of(torch.rand(2, 3, 16, 16), torch.tensor([1, 0]), masks=soft)
    assert torch.equal(batch.boxes[0], CORNERS) and not len(batch.boxes[1])
    assert torch.equal(batch.class_masks(torch.tensor([1, 0]), segmentation=True), soft[:, None])
    both = torch.stack([soft[0], soft[0].flip(0) * 3])
    joined = Batch.of(torch.rand(1, 3, 16, 16), torch.tensor([1]), masks=[both])
    assert torch.equal(joined.class_masks(torch.tensor([1]), segmentation=True)[0, 0], both.amax(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: Batch.of(x * 255, y), r"image 0 lies in \[.*; float images must be in \[0, 1\]"),
        (lambda x, y: Batch.of(x * float("nan"), y), r"image 0 lies in \[nan, nan\]"),
        (lambda x, y: Batch.of(x, y[:1]), "2 images, and labels for 1"),
        (lambda x, y: Batch.of(x[:0], y[:0]), "number of images in a batch is 0; it must be at least 1"),
        (lambda x, y: Batch.of(x, y, CORNERS), "2 images, and boxes for 1"),
        (lambda x, y: Batch.of(x, torch.ones(2, 3), CORNERS.expand(2, 4)), "image '0' has 3 labels; give box_labels"),
        (lambda x, y: Batch.of(x, y, [None, CORNERS], [None, y]), "image '1' has 1 boxes, 2 box_labels"),
        (lambda x, y: Batch.of(x, y, CORNERS.flip(1).expand(2, 4)), "image 0: box .* is inverted"),
        (lambda x, y: Batch.of(x, y, [None, CORNERS * float("nan")]), "image 1: box .* is not finite"),
        (lambda x, y: Batch.of(x, y, [None, CORNERS + 16]), "image 1: box .* reaches outside the image"),
        (lambda x, y: collate([(x[0], y[0])]), "an item of the data set is 'tuple'; it must be a datasets.Sample"),
        (lambda x, y: Batch.of(x, y).hot(2), "labels are 0 to 2; the network gives 2 logits per image"),
        (lambda x, y: Batch.of(x, torch.ones(2, 4)).hot(2), r"labels are \(2, 4\); the network gives 2"),
    ],
)
def test_bad_tensors_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(torch.rand(2, 3, 16, 16), torch.tensor([0, 2]))


def test_boxes_of_another_size_than_the_image_are_named(toy):
    sample = toy(segmented=False, transform=eval_transform(40))[0]
    with pytest.raises(ValueError, match=r"boxes of toy-0 are given for \(32, 48\) pixels"):
        collate([replace(sample, boxes=toy()[0].boxes)])


class Own(Samples):
    """Six grey images of two classes, the last of another group."""

    classes = ["a", "b"]

    def __len__(self):
        return 6

    def __getitem__(self, i):
        i = range(6)[i]
        return Sample(IMAGE * i / 5, torch.tensor(i % 2), CORNERS, name=f"own-{i}", group=int(i == 5))


def test_what_follows_from_the_items_of_a_data_set_of_ones_own():
    own = Own()
    assert own.targets.tolist() == [[1, 0], [0, 1]] * 3 and own.targets.dtype == torch.uint8
    assert own.multilabel is False and own.group_of.tolist() == [0] * 5 + [1] and list(own.groups) == []
    assert own.images_with(1).tolist() == [1, 3, 5]
    assert len(few_shot(own, 2)) == 4 and with_boxes(own, 0.5).annotated.sum() == 3
    same, other = Own(), Own()
    other.__class__ = type("Other", (Own,), {"__getitem__": lambda s, i: replace(Own()[i], name="x")})
    assert own.fingerprint() == same.fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="Own, which has no transform"):
        with_transform(own, None)


def test_boxes_may_be_one_tensor():
    boxes = torch.tensor([[[0.0, 0, 2, 2], [1, 1, 3, 3]], [[0, 1, 2, 3], [2, 2, 4, 4]]])
    batch = Batch.of(torch.rand(2, 3, 4, 4), torch.tensor([1, 0]), boxes)
    assert torch.equal(torch.stack(batch.boxes), boxes) and batch.box_labels[0].tolist() == [1, 1]
    with pytest.raises(ValueError, match="boxes are"):
        Batch.of(torch.rand(2, 3, 4, 4), torch.tensor([1, 0]), boxes[..., :3])


# ---- transforms


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


@pytest.mark.parametrize("layout", ["XYWH", "CXCYWH"])
def test_a_transform_may_change_the_format_of_boxes(toy, layout):
    moved = Joint(v2.Compose([v2.RandomHorizontalFlip(p=1), v2.ConvertBoundingBoxFormat(layout)]))(toy()[0])
    expected = Joint(v2.RandomHorizontalFlip(p=1))(toy()[0])
    assert torch.allclose(moved.boxes, expected.boxes) and torch.equal(moved.box_labels, expected.box_labels)


def test_labels_follow_boxes_that_a_transform_drops(toy):
    sample = toy()[0]  # classes 0 and 1; the second box is 15 x 8
    moved = Joint(v2.SanitizeBoundingBoxes(min_size=10))(sample)
    assert moved.box_labels.tolist() == [0] and torch.equal(moved.boxes, sample.boxes[:1]) and len(moved.masks) == 1
    with pytest.raises(ValueError, match=r"image 'toy-0': the transform left \[1, 2, 1\].*labels_getter"):
        Joint(v2.SanitizeBoundingBoxes(min_size=10, labels_getter=None))(sample)


@pytest.mark.parametrize("step", [v2.ToPureTensor(), v2.ToPILImage()])
def test_a_transform_that_leaves_no_boxes_or_tensor_is_refused(toy, step):
    with pytest.raises(ValueError, match="image 'toy-0' and its boxes, transformed"):
        Joint(step)(toy()[0])


def test_a_transform_of_torchvision_is_refused_where_a_sample_is_given(tmp_path):
    scenes = Scenes("train", 2, 64)
    for give in (lambda t: with_transform(scenes, t), lambda t: Scenes("train", 2, 64, transform=t)):
        with pytest.raises(ValueError, match=r"transform is Resize.*Joint"):
            give(v2.Resize(32))


def test_an_index_error_in_an_item_does_not_end_a_loop():
    class Broken(Own):
        def __getitem__(self, i):
            return [Own()[i]][i // 3]

    with pytest.raises(IndexError):
        list(Broken())
    assert len(list(Own())) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"box_labels": torch.tensor([2])}, r"has box_labels \[2\] of 2 classes"),
        ({"box_labels": torch.tensor([-1])}, r"has box_labels \[-1\] of 2 classes"),
        ({"masks": torch.ones(1, 16, 16) * 255}, "has masks from 255.0 to 255.0"),
        ({"masks": torch.full((1, 16, 16), float("nan"))}, "has masks from nan"),
        ({"masks": torch.ones(1, 8, 8)}, r"has masks \(1, 8, 8\); its boxes are for \(16, 16\)"),
    ],
)
def test_values_outside_their_range_name_the_image(fields, message):
    boxes = tv_tensors.BoundingBoxes(CORNERS, format="XYXY", canvas_size=(16, 16))
    with pytest.raises(ValueError, match=f"image 'it' {message}"):
        Sample(IMAGE, torch.tensor([0, 1]), **{"boxes": boxes, "name": "it"} | fields)


def test_samples_of_two_types_are_not_stacked():
    light, dark = torch.full((3, 4, 4), 255, dtype=torch.uint8), torch.zeros(3, 4, 4)
    for one, other in ((Sample(light, torch.tensor(0)), Sample(dark, torch.tensor(0), name="dark")),):
        with pytest.raises(ValueError, match="uint8.*of dark .*float32"):
            collate([one, other])
    with pytest.raises(ValueError, match="image and labels of one are"):
        collate([Sample(dark, torch.tensor(0), name="one"), Sample(dark, torch.tensor([1, 0]), name="two")])


def test_batch_of_takes_labels_in_a_list_and_refuses_boxes_in_shares_of_the_sides():
    images = torch.rand(2, 3, 8, 8)
    assert Batch.of(images, [1, 0]).labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"image 0: box .* is in shares of the sides, not in pixels; need .* 8"):
        Batch.of(images, [1, 0], torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.0, 0.25, 1.0, 1.0]]))
    corner = Batch.of(images, [1, 0], torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]))
    assert corner.class_masks(corner.labels).sum((1, 2, 3)).tolist() == [1, 1]  # one pixel
