"""The removal test: with networks made by hand that look at the object, at the background, or at both."""

from math import isnan

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import tv_tensors

from e2lib import training
from e2lib.datasets import Sample, SceneBirds, Scenes, Selection, Without, at_most, fill, with_boxes
from e2lib.datasets.sample import Samples
from e2lib.metrics import still_named


class Squares(Samples):
    """A red square (class 0), a green one (class 1) or both, on a blue background; the place tells the classes too."""

    classes = ("red", "green")

    def __init__(self, shown=((0,), (1,), (0, 1)), size=32):
        self.shown, self.size = shown, size

    def __len__(self):
        return len(self.shown)

    def __getitem__(self, i):
        image, boxes, masks = torch.zeros(3, self.size, self.size), [], []
        image[2] = 0.3
        labels = torch.zeros(2, dtype=torch.uint8)
        for c in self.shown[i]:
            labels[c] = 1
            x, y = 4 + 16 * c, 6
            boxes.append([x, y, x + 8, y + 10])
            mask = torch.zeros(self.size, self.size, dtype=torch.bool)
            mask[y : y + 10, x : x + 8] = True
            image[:, mask] = torch.eye(3)[c][:, None]
            image[2, -1, c] = 1  # two pixels of the background say the same
            masks.append(mask)
        boxes = tv_tensors.BoundingBoxes(torch.tensor(boxes), format="XYXY", canvas_size=(self.size, self.size))
        of = torch.tensor(self.shown[i])
        return Sample(tv_tensors.Image(image), labels, boxes, of, tv_tensors.Mask(torch.stack(masks)), name=f"{i}")


class Looks(nn.Module):
    """Logits above 0 where a class's colour is strong, or where the background says so."""

    def __init__(self, at):
        super().__init__()
        self.at, self.zero = at, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        object_ = x[:, :2].amax((2, 3)) - 0.9
        background = x[:, 2, -1, :2] - 0.9
        return self.zero + {"object": object_, "background": background}.get(
            self.at, torch.maximum(object_, background)
        )


@pytest.mark.parametrize("by", ["boxes", "segments"])
@pytest.mark.parametrize(("looks", "after"), [("object", 0.0), ("background", 100.0), ("both", 100.0)])
def test_networks_by_hand(by, looks, after):
    data = Squares()
    removed, control = (Without(data, by, elsewhere=elsewhere) for elsewhere in (False, True))
    assert removed.pairs.tolist() == control.pairs.tolist() == [[0, 0], [1, 1], [2, 0], [2, 1]]
    model = Looks(looks)
    assert training.evaluate(model, data, removed=removed)["still named"] == after
    if looks == "object":
        assert training.evaluate(model, data, removed=control)["still named"] == 100


def test_only_the_objects_of_the_class_go():
    data, removed = Squares(), Without(Squares())
    before, after = data[2], removed[2]
    assert (
        after.labels.tolist() == [0, 1]
        and after.box_labels.tolist() == [1]
        and len(after.boxes) == len(after.masks) == 1
    )
    gone = before.masks[0].as_subclass(torch.Tensor)
    assert torch.equal(before.image[:, ~gone], after.image[:, ~gone])
    assert after.image[0, gone].max() < 0.5 and torch.equal(data[2].image, before.image)
    assert torch.equal(removed.targets, torch.stack([sample.labels for sample in removed]))


@pytest.mark.parametrize("kind", [Scenes, SceneBirds])
def test_scenes_are_composed_again(kind):
    data = kind("test", 12, 64, correlation=1.0)
    removed = Without(data)  # by "scene", as it can be
    assert len(removed) == int(data.targets.sum())
    for j, (i, c) in enumerate(removed.pairs.tolist()):
        before, after = data[i], removed[j]
        assert not after.labels[c] and c not in after.box_labels
        near = torch.zeros(64, 64, dtype=torch.bool)
        for x1, y1, x2, y2 in (thing.box(64) for thing in data.record(i).objects if thing.label == c):
            near[y1:y2, x1:x2] = True
        changed = (before.image != after.image).any(0)
        assert changed.any() and not (changed & ~near).any()


def test_chosen_scenes_are_composed_again():
    whole = Scenes("test", 30, 64)
    some = with_boxes(at_most(whole, 8), 0.5, repeats=2)
    removed = Without(some, "scene")
    assert len(removed) == int(some.targets.sum())
    for j, (i, c) in enumerate(removed.pairs.tolist()):
        place = int(some.dataset.indices[some.indices[i]])
        assert torch.equal(removed[j].image, whole.without(place, c).image)
    with pytest.raises(ValueError, match="by is 'scene'; it must be boxes or segments"):
        Without(Selection(Squares(), np.array([0])), "scene")


def test_single_label_data_name_the_top_class():
    data = SceneBirds("test", 20, 64)
    removed = Without(data, "scene")

    class Place(nn.Module):  # one place, whatever the bird is
        def __init__(self):
            super().__init__()
            self.zero, self.known = nn.Parameter(torch.zeros(1)), {}

        def forward(self, x):
            return self.zero + torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 2)

    assert training.evaluate(Place(), data, removed=removed)["still named"] == 100


def test_pairs_by_hand():
    before = torch.tensor([[True, False], [True, True]])
    after = torch.tensor([[True, False], [False, False], [False, False], [False, True]])
    pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert still_named(before, after, pairs) == pytest.approx(2 / 3)  # the second pair was not named before
    assert isnan(still_named(torch.zeros(2, 2, dtype=torch.bool), after, pairs))  # there is nothing to name again


def test_fill_is_smooth_and_exact_for_a_ramp():
    """A linear ramp is its own mean of neighbours."""
    ramp = torch.linspace(0, 1, 24).expand(3, 24, 24).clone()
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[8:14, 7:13] = True
    broken = ramp.clone()
    broken[:, mask] = 9.0
    filled = fill(broken, mask)
    assert torch.equal(filled[:, ~mask], ramp[:, ~mask])
    assert (filled - ramp).abs().max() < 0.05
    pixels = (255 * broken.clamp(0, 1)).to(torch.uint8)
    assert fill(pixels, mask).dtype == torch.uint8
    with pytest.raises(ValueError, match="nothing is left"):
        fill(ramp, torch.ones(24, 24, dtype=torch.bool))


def test_large_objects_and_crowded_images_are_left_out():
    data = Squares()
    with pytest.raises(ValueError, match="at least 1: boxes covering at most 0.01"):
        Without(data, limit=0.01)
    assert len(Without(data, limit=0.08)) == 4
    crowded = Squares(size=20)
    assert len(Without(crowded, limit=1.0)) > 0 and len(Without(data, elsewhere=True)) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "mask"}, "by is 'mask'; it must be one of scene, boxes, segments"),
        ({"by": "scene"}, "by is 'scene'; it must be boxes or segments"),
    ],
)
def test_errors(given, message):
    with pytest.raises(ValueError, match=message):
        Without(Squares(), **given)


def test_another_way_is_another_fingerprint():
    data = Scenes("test", 4, 64)
    kinds = [{"by": "scene"}, {"by": "boxes"}, {"by": "segments"}, {"elsewhere": True}, {"limit": 0.3}]
    assert len({Without(data, **kind).fingerprint() for kind in kinds}) == len(kinds)


def test_heads_on_features_are_tested_alike(tmp_path):
    from e2lib import features, models

    data = Scenes("test", 10, 64, correlation=1.0)
    net = models.build("bcos_scenes", 10, "scenes").eval()
    trunk, head = models.split(net, 64)
    removed = Without(data, "scene")
    seen, without = (features.extract(trunk, part, tmp_path, precision="float32") for part in (data, removed))
    assert np.array_equal(without.pairs, removed.pairs)
    how = {"precision": "float32"}
    whole = training.evaluate(net, data, removed=removed, **how)["still named"]
    assert training.evaluate(head, seen, removed=without, **how)["still named"] == pytest.approx(whole, abs=8)
