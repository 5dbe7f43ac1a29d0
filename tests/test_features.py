"""Features of a frozen trunk: what a head makes of them is what the whole network makes of the images."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from e2lib import features, models, training
from e2lib.attribution import explain
from e2lib.datasets import Joint, SceneBirds, Selection, collate, with_boxes
from e2lib.guidance import Guide


@pytest.fixture(scope="module")
def birds():
    return SceneBirds("train", 6, size=64, correlation=0.7)


def network(name="efficientnet_lite0"):
    torch.manual_seed(0)
    model = models.build(name, 2, weights="imagenet" if name == "efficientnet_lite0" else None)
    for norm in (m for m in model.modules() if isinstance(getattr(m, "running_var", None), torch.Tensor)):
        norm.running_var.uniform_(0.5, 2)
    for x in (x for x in model.parameters() if not x.any()):  # residual branches begin as zeros, X-DNNs' heads too
        nn.init.normal_(x, std=0.1)
    return model.eval()


def whole(data):
    return next(iter(DataLoader(data, len(data), collate_fn=collate)))


def test_training_the_head_trains_the_network(birds, tmp_path):
    model = network()
    before = copy.deepcopy(model.state_dict())
    trunk, head = models.split(model, 64)
    data = features.extract(trunk, birds, tmp_path, precision="float32")
    training.fit(head, data, 2, 1e-2, 3, step=Guide("energy", "ixg", "Final", 1.0))
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {
        f"net.{n}" for n in ("conv_head.weight", "bn2.weight", "bn2.bias", "classifier.weight", "classifier.bias")
    }
    with torch.no_grad():
        assert torch.allclose(head(whole(data).images), model(whole(birds).images), atol=2e-2)


def test_samples_are_those_of_the_data_set_but_for_the_image(birds, tmp_path):
    trunk, _ = models.split(network(), 64)
    data = features.extract(trunk, birds, tmp_path)
    assert data.features.dtype == torch.float16 and data.features.shape == (6, 1, 320, 2, 2)
    assert (data.classes, data.groups, data.multilabel) == (birds.classes, birds.groups, birds.multilabel)
    assert torch.equal(data.targets, birds.targets) and data.group_of.tolist() == birds.group_of.tolist()
    assert data.images_with(1).tolist() == birds.images_with(1).tolist()
    for found, expected in zip([data[i] for i in range(6)], birds, strict=True):
        assert (found.name, found.group, found.annotated) == (expected.name, expected.group, expected.annotated)
        for field in ("labels", "boxes", "box_labels"):
            assert torch.equal(getattr(found, field), getattr(expected, field))
    found, expected = whole(data), whole(birds)
    assert found.images.shape == (6, 320, 2, 2) and found.images.dtype == torch.float32
    classes = expected.present()
    assert torch.equal(found.class_masks(classes), expected.class_masks(classes))
    with pytest.raises(IndexError):
        data[6]


def test_a_mirrored_view_is_that_of_the_mirrored_image(birds, tmp_path):
    trunk, _ = models.split(network(), 64)
    data = features.extract(trunk, birds, tmp_path, mirrored=True)
    mirrored = SceneBirds("train", 6, 64, 0.7, transform=Joint(v2.RandomHorizontalFlip(1)))
    other = features.extract(trunk, mirrored, tmp_path)
    assert data.features.shape == (6, 2, 320, 2, 2)
    assert torch.equal(data.features[:, 1], other.features[:, 0])
    assert torch.equal(data.boxes[1], other.boxes[0]) and not torch.equal(data.boxes[1], data.boxes[0])
    torch.manual_seed(0)
    drawn = [data[0].image for _ in range(20)]
    assert {view for x in drawn for view in (0, 1) if torch.equal(x, data.features[0, view])} == {0, 1}


def test_images_with_no_boxes_and_with_many(tmp_path):
    class Some(SceneBirds):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            sample.boxes = tv_tensors.wrap(sample.boxes.repeat(i % 3, 1), like=sample.boxes)
            sample.box_labels = sample.box_labels.repeat(i % 3)
            return sample

    trunk, _ = models.split(network(), 64)
    some = Some("train", 5, 64)
    some_features = features.extract(trunk, some, tmp_path)
    for found, expected in zip([some_features[i] for i in range(5)], some, strict=True):
        assert torch.equal(found.boxes, expected.boxes) and len(found.box_labels) == len(expected.box_labels)


def test_features_are_computed_once_for_each_trunk_data_set_and_transform(birds, tmp_path, monkeypatch):
    trunk, _ = models.split(network(), 64)
    first = features.extract(trunk, birds, tmp_path)
    calls = []
    handle = trunk.register_forward_hook(lambda *_: calls.append(1))
    again = features.extract(trunk, SceneBirds("train", 6, size=64, correlation=0.7), tmp_path)
    assert not calls and torch.equal(again.features, first.features) and again.fingerprint() == first.fingerprint()
    for other in (
        SceneBirds("train", 6, size=64, correlation=0.8),
        SceneBirds("val", 6, size=64, correlation=0.7),
        SceneBirds("train", 6, size=64, correlation=0.7, transform=Joint(v2.RandomHorizontalFlip(1))),
        Selection(birds, torch.arange(5).numpy()),
    ):
        features.extract(trunk, other, tmp_path)
    assert len(calls) == 4
    features.extract(trunk, birds, tmp_path, mirrored=True)
    assert len(calls) == 6
    next(trunk.parameters()).data[0, 0, 0, 0] += 1e-3
    features.extract(trunk, birds, tmp_path)
    assert len(calls) == 7 and len(list(tmp_path.glob("*.safetensors"))) == 7
    handle.remove()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "bcos_scenes"])
def test_heads_see_the_same_in_features_of_bfloat16(name, birds, tmp_path):
    model = network(name) if name != "efficientnet_lite0" else models.build(name, 2, "imagenet").eval()
    trunk, head = models.split(model, 64)
    exact, fast = (
        whole(features.extract(trunk, birds, tmp_path, precision=form)).images for form in ("float32", "bfloat16")
    )
    assert not torch.equal(exact, fast) and len(list(tmp_path.glob("*.safetensors"))) == 2
    with torch.no_grad():
        logits = head(exact), head(fast)
    assert (logits[0] - logits[1]).abs().max() < 0.1 * logits[0].abs().max()
    assert F.cosine_similarity(exact.flatten(1), fast.flatten(1)).min() > 0.99
    assert all(p.is_contiguous() for p in model.parameters())  # as they were


def test_files_of_many_sizes_hold_the_same_and_are_made_once(birds, tmp_path, monkeypatch):
    trunk, seen = small_trunk(), []
    expected = features.extract(trunk, birds, tmp_path / "one", mirrored=True)
    monkeypatch.setattr(features, "SHARD", 2)
    trunk.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    found = features.extract(trunk, birds, tmp_path / "three", mirrored=True)
    for field in ("features", "boxes", "box_labels", "targets"):
        assert torch.equal(getattr(found, field), getattr(expected, field))
    assert found.names == expected.names and found.starts == expected.starts
    second = sorted((tmp_path / "three").glob("*.safetensors"))[1]
    second.unlink()
    seen.clear()
    again = features.extract(trunk, birds, tmp_path / "three", mirrored=True)
    assert seen == [2, 2] and torch.equal(again.features, expected.features)


def test_what_wrap_says_is_part_of_the_key(birds):
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def scaled(scale):
        return models.wrap(net, {"Final": "0"}, logits=lambda net, images: scale * net(images))

    wrapped = [
        models.wrap(net, {"Final": "0"}),
        models.wrap(net, {"Final": "1"}),
        models.wrap(net, {"Final": "0"}, logits=lambda net, images: net(images) + 1),
        models.wrap(net, {"Final": "0"}, logits=lambda net, images: net(images) + 2),
        scaled(2),
        scaled(3),
    ]
    keys = [models.fingerprint(network) for network in wrapped]
    assert len(set(keys)) == 6 and models.fingerprint(scaled(3)) == keys[-1]
    assert models.fingerprint(nn.DataParallel(wrapped[0])) == keys[0]


def test_what_is_interrupted_is_not_taken_for_features(birds, tmp_path, monkeypatch):
    def half(tensors, path, about):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features, "save_file", half)
        features.extract(small_trunk(), birds, tmp_path)
    assert len(features.extract(small_trunk(), birds, tmp_path)) == 6


def test_of_several_that_want_features_at_once_one_computes_them(birds, tmp_path):
    trunk, calls = small_trunk(), []
    trunk.register_forward_pre_hook(lambda *_: calls.append(time.sleep(0.5)))
    with ThreadPoolExecutor(4) as several:
        found = list(several.map(lambda _: features.extract(trunk, birds, tmp_path), range(4)))
    assert len(calls) == 1 and all(torch.equal(one.features, found[0].features) for one in found)


def test_the_trunk_runs_in_eval_mode(birds, tmp_path):
    trunk = nn.Sequential(small_trunk(), nn.BatchNorm2d(6)).train()
    data = features.extract(trunk, birds, tmp_path)
    assert trunk.training and trunk[1].num_batches_tracked == 0
    with torch.no_grad():
        assert torch.allclose(data.features[:, 0].float(), trunk.eval()(whole(birds).images), atol=1e-2)


def test_features_beyond_float16_are_refused(birds, tmp_path):
    trunk, _ = models.split(network(), 64)
    trunk = nn.Sequential(trunk, nn.Hardtanh(1e5, 1e6))
    with pytest.raises(ValueError, match="reach 1e.05; float16 holds at most 65504"):
        features.extract(trunk, birds, tmp_path, precision="float32")


def test_boxes_of_some_images_may_be_used(birds, tmp_path):
    trunk, head = models.split(network(), 64)
    data = with_boxes(features.extract(trunk, birds, tmp_path), 0.5, seed=1)
    assert whole(data).annotated.sum() == 3
    guide = Guide("energy", "ixg", "Final", 1.0, 0.5)
    chosen = Selection(data, np.flatnonzero(data.annotated))
    expected = guide(head, whole(chosen))["guidance"].item()  # Σ over 3 images / (0.5 · 3)
    assert expected > 0 and guide(head, whole(data))["guidance"].item() == pytest.approx(expected / 2)


def test_what_was_annotated_stays_known(birds, tmp_path):
    some = features.extract(small_trunk(), with_boxes(birds, 0.5, seed=1), tmp_path)
    assert some.annotated.sum() == 3 and with_boxes(some, 1.0).annotated.mean() == 0.5


def test_the_guided_step_on_features_is_the_guided_step_on_images(birds, tmp_path):
    model = network()
    trunk, head = models.split(model, 64)
    guide = Guide("energy", "ixg", "Final", 1.0, contrast=True)
    data = features.extract(trunk, birds, tmp_path)
    for name, term in guide(head, whole(data)).items():
        assert term.item() == pytest.approx(guide(model, whole(birds))[name].item(), rel=1e-2)


class Bright(SceneBirds):
    """Bright rectangles on dark noise; images `without` have none in their lists of boxes."""

    without: tuple[int, ...] = ()

    def __getitem__(self, i):
        sample = super().__getitem__(i)
        generator = torch.Generator().manual_seed(i)
        x, y = (8 * torch.randint(0, 5, (2,), generator=generator)).tolist()
        box = (x, y, x + 16, y + 24)
        pixels = torch.randint(0, 60, (3, 64, 64), generator=generator, dtype=torch.uint8)
        pixels[:, box[1] : box[3], box[0] : box[2]] += 150
        sample.image = tv_tensors.Image(pixels)
        sample.boxes = tv_tensors.wrap(torch.tensor([box]).float()[: i not in self.without], like=sample.boxes)
        sample.box_labels = sample.box_labels[: i not in self.without]
        return sample


def small_trunk():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.AvgPool2d(8))


@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_are_learned_from_few(mirrored, tmp_path):
    data = features.extract(small_trunk(), Bright("train", 30, 64), tmp_path, mirrored)
    few, truth = with_boxes(data, 0.2, seed=3), data.boxes.clone()
    data.boxes[:, ~few.annotated] = torch.tensor([0.0, 0, 64, 64])  # not to be looked at
    predicted = features.predict_boxes(few, penalty=1e-4)
    assert len(predicted) == 30 and predicted.annotated.all() and torch.equal(predicted.features, data.features)
    boxes = predicted.boxes
    assert boxes.shape == (1 + mirrored, 30, 4)
    assert torch.equal(boxes[0][few.annotated], truth[0][few.annotated])
    assert (boxes[0] - truth[0]).abs().max() <= 4  # half a cell
    if mirrored:
        assert torch.equal(
            boxes[1], torch.stack([64 - boxes[0, :, 2], boxes[0, :, 1], 64 - boxes[0, :, 0], boxes[0, :, 3]], 1)
        )
    assert torch.equal(predicted.box_labels, data.box_labels)
    assert data.annotated.sum() == 30 and few.annotated.sum() == 6  # the given data stay as they were


def test_boxes_are_predicted_for_images_that_have_none(tmp_path):
    images = Bright("train", 10, 64)
    images.without = (2, 7)
    data = features.extract(small_trunk(), images, tmp_path)
    predicted = features.predict_boxes(with_boxes(data, 1.0), penalty=1e-4)
    assert predicted.starts == list(range(11)) and data.boxes.shape == (1, 8, 4)
    assert [len(predicted[i].boxes) for i in range(10)] == [1] * 10


@pytest.mark.parametrize("like", ["mean", "background"])
def test_a_box_is_predicted_where_nothing_is_likely(like, tmp_path):
    data = features.extract(small_trunk(), Bright("train", 6, 64), tmp_path, mirrored=True)
    few = with_boxes(data, 0.5, seed=1)
    cells = data.features[few.annotated].float().mean((0, 1, 3, 4))
    cells = cells if like == "mean" else 2 * small_trunk()(torch.full((1, 3, 64, 64), 0.1))[0, :, 0, 0] - cells
    data.features[~few.annotated] = cells.detach().half()[:, None, None]
    assert (features.predict_boxes(few).boxes[:, ~few.annotated] == torch.tensor([0.0, 0, 64, 64])).all()


def test_what_boxes_cannot_be_learned_from_is_named(birds, tmp_path):
    data = features.extract(small_trunk(), birds, tmp_path)
    for wrong in (data, with_boxes(birds, 0.5), with_boxes(data, 0.5, repeats=2)):
        with pytest.raises(ValueError, match=r"data is '\w+'; it must be with_boxes\(features, fraction\)"):
            features.predict_boxes(wrong)
    data.starts = [0] * 7
    with pytest.raises(ValueError, match="the number of annotated images with boxes is 0"):
        features.predict_boxes(with_boxes(data, 0.5))


def test_other_labels(birds, tmp_path):
    data = features.extract(small_trunk(), birds, tmp_path, mirrored=True)
    places = data.labelled(["land", "water", "air"], data.group_of % 2)
    expected = SceneBirds("train", 6, size=64, correlation=0.7, task="place")
    for i in range(6):
        assert torch.equal(places[i].labels[:2], expected[i].labels) and places[i].labels[2] == 0
        assert torch.equal(places[i].box_labels, expected[i].box_labels)
    assert data.classes == birds.classes and torch.equal(data.targets, birds.targets)
    for labels in ([0, 1, 0], [0, 1, 0, 1, 0, 2]):
        with pytest.raises(ValueError, match="one of 0 to 1 per image is wanted"):
            data.labelled(["land", "water"], labels)


def test_boxes_that_may_not_be_used_stay_unused(tmp_path):
    data = Bright("train", 10, 64)
    few = features.extract(small_trunk(), with_boxes(data, 0.2), tmp_path)
    every = features.extract(small_trunk(), with_boxes(data, 1.0), tmp_path)
    assert few.annotated.sum() == 2 and every.annotated.sum() == 10
    predicted = features.predict_boxes(with_boxes(few, 1.0), penalty=1e-4)
    few.boxes = few.boxes.clone()
    few.boxes[:, ~few.annotated] = torch.tensor([0.0, 0, 64, 64])
    again = features.predict_boxes(with_boxes(few, 1.0), penalty=1e-4)
    assert torch.equal(again.boxes, predicted.boxes)
    backwards = Selection(every, np.arange(10)[::-1], np.ones(10, bool))
    with pytest.raises(ValueError, match="data is 'Selection'; it must be with_boxes"):
        features.predict_boxes(backwards)


def test_other_labels_and_boxes_are_another_data_set(birds, tmp_path):
    data = features.extract(small_trunk(), birds, tmp_path)
    others = [data.labelled(data.classes, 1 - data.group_of // 2), features.predict_boxes(with_boxes(data, 0.4))]
    assert len({part.fingerprint() for part in (data, *others)}) == 3


class Scaled(nn.Module):
    """Multiplies by a constant that is not in the state_dict."""

    def __init__(self, by):
        super().__init__()
        self.register_buffer("by", torch.tensor(by), persistent=False)

    def forward(self, x):
        return self.by * x


def test_a_constant_outside_the_state_dict_is_part_of_the_key(birds, tmp_path):
    for by in (0.4, 0.5):
        features.extract(nn.Sequential(Scaled(by), small_trunk()), birds, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_what_is_drawn_later_does_not_depend_on_the_cache(birds, tmp_path):
    trunk, drawn = small_trunk(), []
    for _ in range(2):
        torch.manual_seed(0)
        features.extract(trunk, birds, tmp_path)
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1]


def test_two_trunks_features_of_the_same_images(birds, tmp_path):
    trunk, head = models.split(network(), 64)
    other, _ = models.split(models.build("efficientnet_lite1", 2), 64)
    found = [features.extract(network, birds, tmp_path, mirrored=True) for network in (trunk, other)]
    both, twice = features.join(*found), features.join(found[0], found[0])
    assert both.fingerprint() != twice.fingerprint() != found[0].fingerprint()
    images = whole(both).images
    assert images.shape == (6, 640, 2, 2)
    views = [[torch.equal(images[i, k], found[k // 320].features[i, v, k % 320].float()) for k in (0, 320)]
             for i in range(6) for v in (0, 1)]  # fmt: skip
    assert all(first == second for first, second in views) and sum(map(sum, views)) == 12  # one view for both
    images = whole(twice).images
    first, second = copy.deepcopy(head).eval(), head.eval()
    first.channels, second.channels = slice(0, 320), slice(320, 640)
    targets = torch.zeros(6, dtype=torch.int64)
    here, there = (explain(x, images, targets, "ixg", "Final") for x in (first, second))
    assert torch.equal(here.logits, there.logits) and torch.equal(here.maps, there.maps) and here.maps.any()


def test_features_of_other_images_are_not_joined(birds, tmp_path):
    trunk, _ = models.split(network(), 64)
    one = features.extract(trunk, birds, tmp_path)
    for other in (
        features.extract(trunk, SceneBirds("val", 6, 64), tmp_path),
        features.extract(trunk, birds, tmp_path, mirrored=True),
        features.extract(trunk, SceneBirds("train", 6, 96, 0.7), tmp_path),
    ):
        with pytest.raises(ValueError, match="must be of the same images, views and cells"):
            features.join(one, other)
