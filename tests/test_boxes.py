import pytest
import torch
from torchvision import tv_tensors

from e2lib.boxes import box_mask, box_masks, check_boxes, corners, dilate, mask_box


def test_box_masks_are_half_open():
    mask = box_masks(torch.tensor([[1, 0, 3, 2]]), (3, 4))
    assert mask.int().tolist() == [[[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("lo", "hi", "columns"),
    [
        (0.0, 0.5, [0]),  # no centre inside: the pixel around the middle
        (0.4, 1.6, [0, 1]),
        (0.5, 1.5, [0]),  # the centre at 1.5 is outside: half-open
        (0.6, 1.4, [0]),
        (1.6, 1.9, [1]),
        (2.9, 3.0, [2]),
        (2.0, 3.0, [2]),
    ],
)
def test_a_pixel_is_inside_when_its_centre_is(lo, hi, columns):
    for box, axis in (([lo, 0, hi, 1], 2), ([0, lo, 1, hi], 1)):
        mask = box_masks(torch.tensor([box]), (3, 3))
        assert mask.any(3 - axis)[0].nonzero()[:, 0].tolist() == columns


def test_thin_boxes_never_add_a_pixel_to_boxes_with_centres():
    edges = torch.arange(0, 6.01, 0.25)
    for lo in edges:
        for hi in edges[edges > lo]:
            mask = box_masks(torch.stack([lo, torch.tensor(0), hi, torch.tensor(1)])[None], (1, 6))[0, 0]
            centres = [i for i in range(6) if lo <= i + 0.5 < hi]
            assert mask.nonzero()[:, 0].tolist() == (centres or [min(int(torch.ceil((lo + hi) / 2)) - 1, 5)])


def test_box_mask_is_the_union_and_empty_without_boxes():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]])
    assert box_mask(boxes, (3, 3)).sum() == 7
    assert not box_mask(torch.zeros(0, 4), (3, 3)).any()
    assert box_masks(torch.zeros(0, 4), (3, 5)).shape == (0, 3, 5)


def test_mask_box_inverts_box_masks():
    boxes = torch.tensor([[0, 0, 1, 1], [2, 1, 7, 5], [0, 4, 8, 6]])
    assert torch.stack([mask_box(m) for m in box_masks(boxes, (6, 8))]).equal(boxes)
    with pytest.raises(ValueError, match="empty mask"):
        mask_box(torch.zeros(3, 3, dtype=torch.bool))


def test_dilate_widens_around_the_centre_and_clips():
    boxes = torch.tensor([[10.0, 20, 30, 60], [0, 0, 10, 10]])
    assert dilate(boxes, 0.5, (100, 100)).tolist() == [[0, 0, 40, 80], [0, 0, 15, 15]]
    with pytest.raises(ValueError, match="-0.1"):
        dilate(boxes, -0.1, (100, 100))


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ([5, 0, 3, 2], "inverted"),
        ([3, 0, 3, 2], "empty"),
        ([0, 0, 12, 5], "outside"),
        ([-4, 0, 5, 5], "outside"),
        ([10, 0, 10.5, 5], "outside"),
        ([0, float("nan"), 5, 5], "not finite"),
        ([0, 0, float("inf"), 5], "not finite"),
    ],
)
def test_check_boxes_names_place_box_and_fault(box, fault):
    with pytest.raises(ValueError, match=fault) as error:
        check_boxes(torch.tensor([[0.0, 0, 1, 1], box]), (8, 10), "here.xml")
    assert "here.xml" in str(error.value)
    assert str(tuple(float(v) for v in box)) in str(error.value)


def test_check_boxes_clips_an_annotators_inaccuracy():
    boxes = torch.tensor([[-0.9, 0, 11, 8], [0, 0, 3, 8.5]])
    assert check_boxes(boxes, (8, 10), "").tolist() == [[0, 0, 10, 8], [0, 0, 3, 8]]
    wide = torch.tensor([[0.0, 0, 109, 8]])  # 9 of 109 pixels outside: less than a tenth
    assert check_boxes(wide, (8, 100), "").tolist() == [[0, 0, 100, 8]]


@pytest.mark.parametrize(("layout", "box"), [("XYXY", [4, 2, 10, 8]), ("XYWH", [4, 2, 6, 6]), ("CXCYWH", [7, 5, 6, 6])])
def test_boxes_are_read_by_their_format_everywhere(layout, box):
    boxes = tv_tensors.BoundingBoxes(torch.tensor([box]).float(), format=layout, canvas_size=(20, 20))
    plain = torch.tensor([[4.0, 2, 10, 8]])
    assert torch.equal(corners(boxes), plain)
    assert torch.equal(box_masks(boxes, (20, 20)), box_masks(plain, (20, 20)))
    assert torch.equal(dilate(boxes, 0.5, (20, 20)), dilate(plain, 0.5, (20, 20)))


@pytest.mark.parametrize("shape", [(2, 8), (4, 5), (3, 2, 1)])
def test_boxes_of_other_than_four_numbers_are_refused(shape):
    with pytest.raises(ValueError, match=r"boxes are .*; need \(N, 4\)"):
        box_mask(torch.ones(shape), (8, 8))


def test_an_unknown_side_bounds_no_box():
    far = torch.tensor([[3.0, 3, 5000, 6]])
    assert torch.equal(check_boxes(far, (8, 0), ""), far)
    with pytest.raises(ValueError, match="outside"):
        check_boxes(far, (0, 100), "")
