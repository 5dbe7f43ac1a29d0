import numpy as np
import pytest
import torch

from e2lib.boxes import dilate
from e2lib.datasets import (
    SceneBirds,
    Selection,
    at_most,
    collate,
    dilated,
    eval_transform,
    few_shot,
    with_boxes,
    with_transform,
)
from e2lib.datasets.files import FileDataset, Item


def marked(dataset):
    return {i for i in range(len(dataset)) if dataset[i].annotated}


def test_few_shot_has_at_least_n_of_each_class_and_is_nested(toy):
    data = toy(30)
    five, two = few_shot(data, 5, seed=1), few_shot(data, 2, seed=1)
    assert (five.targets.sum(0) >= 5).all() and (two.targets.sum(0) >= 2).all()
    assert set(two.indices) < set(five.indices) and len(two) <= 6
    assert np.array_equal(few_shot(data, 2, seed=1).indices, two.indices)
    assert not np.array_equal(few_shot(data, 2, seed=2).indices, two.indices)
    assert two.classes == data.classes and two.multilabel
    for i in range(len(two)):
        assert two[i].name == f"toy-{two.indices[i]}" and torch.equal(two[i].labels, two.targets[i])


def test_few_shot_of_single_label_data_is_exact(toy):
    data = toy(30)
    data.targets = torch.eye(3, dtype=torch.uint8)[torch.arange(30) % 3]
    assert few_shot(data, 4).targets.sum(0).tolist() == [4, 4, 4]


def test_few_shot_names_a_class_with_fewer(toy):
    with pytest.raises(ValueError, match="class cat has 4 images; 5 per class"):
        few_shot(toy(6), 5)
    with pytest.raises(ValueError, match="per_class is 0"):
        few_shot(toy(6), 0)


def test_with_boxes_marks_a_nested_fraction(toy):
    data = toy(100)
    one, ten = marked(with_boxes(data, 0.01, seed=3)), marked(with_boxes(data, 0.1, seed=3))
    assert len(one) == 1 and len(ten) == 10 and one < ten
    assert len(marked(with_boxes(toy(20), 0.001))) == 1
    assert marked(with_boxes(toy(20), 1)) == set(range(20))
    assert len(with_boxes(data, 0.1)) == 100


def test_images_with_boxes_are_repeated(toy):
    data = with_boxes(toy(20), 0.1, seed=3, repeats=4)
    assert len(data) == 26 and data.annotated.sum() == 8
    found = [data[i] for i in range(26)]
    boxed = marked(with_boxes(toy(20), 0.1, seed=3))
    assert sorted(data.indices[data.annotated]) == sorted([*boxed] * 4)
    assert [sample.annotated for sample in found] == data.annotated.tolist()
    assert torch.equal(data.targets, torch.stack([sample.labels for sample in found]))
    with pytest.raises(ValueError, match="repeats is 0"):
        with_boxes(toy(20), 0.1, repeats=0)


def test_selections_are_the_same_on_every_machine(toy):
    """PCG64's raw stream is fixed by numpy, so these numbers may never change."""
    assert sorted(marked(with_boxes(toy(50), 0.1, seed=0))) == [2, 3, 11, 13, 20]
    assert few_shot(toy(50), 2, seed=0).indices.tolist() == [3, 11, 13, 20]


def test_few_shot_builds_no_table_of_all_labels(tmp_path, monkeypatch):
    labels = {"a": [0], "b": [1, 2, 1], "c": [], "d": [2], "e": [0, 2], "f": [1]}
    for name in labels:
        (tmp_path / name).touch()
    data = FileDataset(tmp_path, [Item(name, found) for name, found in labels.items()], ["x", "y", "z"])
    targets = data.targets
    assert [data.images_with(c).tolist() for c in range(3)] == [[0, 4], [1, 5], [1, 3, 4]]
    monkeypatch.delattr(FileDataset, "targets")
    two = few_shot(data, 2)
    assert torch.equal(two.targets, targets[two.indices]) and two.targets.dtype == torch.uint8
    assert torch.equal(few_shot(two, 1).targets, two.targets[few_shot(two, 1).indices])
    assert two.targets is two.targets


def test_scenes_are_selected_without_composing_one():
    scenes = SceneBirds("train", 40, size=64)
    data = dilated(with_boxes(few_shot(scenes, 5), 0.2), 0.25)
    assert data.targets.sum(0).tolist() == [5, 5] and scenes._cache == {} and data.groups == scenes.groups
    assert marked(data) and len(marked(data)) == 2


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_named(toy, fraction):
    with pytest.raises(ValueError, match=f"{fraction}"):
        with_boxes(toy(), fraction)
    with pytest.raises(ValueError, match=f"{fraction}"):
        dilated(toy(), fraction)


def test_selections_combine(toy):
    data = few_shot(with_boxes(toy(30), 0.5), 4)
    half = marked(with_boxes(toy(30), 0.5))
    assert [data[i].annotated for i in range(len(data))] == [j in half for j in data.indices.tolist()]
    assert marked(with_boxes(with_boxes(toy(30), 0.5), 0.1)) < half
    assert few_shot(data, 2).targets.sum(0).min() >= 2


@pytest.mark.parametrize("select", [lambda d: d, lambda d: with_boxes(d, 0.5), lambda d: few_shot(d, 1)])
def test_dilated_widens_boxes_before_the_transform(toy, select):
    plain, wide = select(toy()), dilated(select(toy()), 0.5)
    for i in range(len(plain)):
        a, b = plain[i], wide[i]
        assert torch.equal(b.boxes.as_subclass(torch.Tensor), dilate(a.boxes, 0.5, tuple(a.image.shape[-2:])))
        assert (
            a.annotated == b.annotated and torch.equal(a.masks, b.masks) and b.boxes.canvas_size == a.boxes.canvas_size
        )
    small = dilated(select(toy(transform=eval_transform(16))), 0.5)[0]
    expected = eval_transform(16)(dilated(select(toy()), 0.5)[0])
    assert torch.equal(small.boxes, expected.boxes) and small.image.shape == (3, 16, 16)


def test_a_selection_of_a_selection_knows_which_images_are_annotated(toy):
    inner = with_boxes(toy(20), 0.5, seed=0)
    for outer in (with_boxes(inner, 0.5, seed=1, repeats=3), at_most(inner, 7), few_shot(inner, 2)):
        assert outer.annotated.tolist() == [outer[i].annotated for i in range(len(outer))]


def test_a_data_set_without_a_transform_is_refused(toy):
    bare = torch.utils.data.Subset(toy(8), [0])
    bare.classes, bare.groups, bare.multilabel = toy().classes, [], True
    for dataset in (bare, Selection(bare, np.array([0]))):
        with pytest.raises(ValueError, match="Subset"):
            with_transform(dataset, eval_transform(16))
        with pytest.raises(ValueError, match="Subset"):
            dilated(dataset, 0.5)


def test_another_transform_leaves_the_data_set_as_it_was(toy):
    plain = with_boxes(toy(8), 0.5)
    small = with_transform(plain, eval_transform(16))
    assert small[0].image.shape == (3, 16, 16) != plain[0].image.shape
    assert marked(small) == marked(plain)


def test_a_loader_reads_selections_in_workers(toy):
    data = dilated(with_boxes(toy(8, transform=eval_transform(16)), 0.5), 0.25)
    loader = torch.utils.data.DataLoader(data, batch_size=4, collate_fn=collate, num_workers=1)
    assert torch.cat([batch.annotated for batch in loader]).sum() == 4


def test_at_most_keeps_the_order_and_the_whole_of_a_small_set(toy):
    data = toy(30)
    some = at_most(data, 7, seed=2)
    assert len(some) == 7 and list(some.indices) == sorted(some.indices) and some[3].name == f"toy-{some.indices[3]}"
    assert set(some.indices) < set(at_most(data, 12, seed=2).indices)
    assert at_most(data, 30) is data
    with pytest.raises(ValueError, match="length is 0"):
        at_most(data, 0)
