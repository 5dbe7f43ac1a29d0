"""Features of a frozen trunk: what a head makes of them is what the whole network makes of the images."""

import copy
import sys
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

from e2lib import Distill, features, frozen, groups, models, pareto, training
from e2lib.attribution import METHODS, explain
from e2lib.boxes import box_mask
from e2lib.datasets import Joint, SceneBirds, Scenes, Selection, collate, crop_transform, with_boxes, with_transform
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
    torch.manual_seed(0)
    seen = set()
    for sample in (data[0] for _ in range(20)):
        view = int(torch.equal(sample.image, data.features[0, 1]))
        assert torch.equal(sample.image, data.features[0, view])
        assert torch.equal(sample.boxes, (birds, mirrored)[view][0].boxes)
        seen.add(view)
    assert seen == {0, 1} and not torch.equal(birds[0].boxes, mirrored[0].boxes)


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
    # how far two processors round differently is theirs: through fifty layers, a tenth of the largest logit
    assert F.cosine_similarity(logits[0].flatten(), logits[1].flatten(), dim=0) > 0.98
    assert F.cosine_similarity(exact.flatten(1), fast.flatten(1)).min() > 0.98
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
    data.boxes[~few.annotated] = torch.tensor([0.0, 0, 64, 64])  # not to be looked at
    predicted = features.predict_boxes(few, penalty=1e-4)
    assert len(predicted) == 30 and predicted.annotated.all() and torch.equal(predicted.features, data.features)
    boxes = predicted.boxes
    assert boxes.shape == (30, 4)
    assert torch.equal(boxes[few.annotated], truth[few.annotated])
    assert (boxes - truth).abs().max() <= 4  # half a cell
    assert torch.equal(predicted.box_labels, data.box_labels)
    assert data.annotated.sum() == 30 and few.annotated.sum() == 6  # the given data stay as they were


def test_boxes_are_predicted_for_images_that_have_none(tmp_path):
    images = Bright("train", 10, 64)
    images.without = (2, 7)
    data = features.extract(small_trunk(), images, tmp_path)
    predicted = features.predict_boxes(with_boxes(data, 1.0), penalty=1e-4)
    assert predicted.starts == list(range(11)) and data.boxes.shape == (8, 4)
    assert [len(predicted[i].boxes) for i in range(10)] == [1] * 10


@pytest.mark.parametrize("like", ["mean", "background"])
def test_a_box_is_predicted_where_nothing_is_likely(like, tmp_path):
    data = features.extract(small_trunk(), Bright("train", 6, 64), tmp_path, mirrored=True)
    few = with_boxes(data, 0.5, seed=1)
    cells = data.features[few.annotated].float().mean((0, 1, 3, 4))
    cells = cells if like == "mean" else 2 * small_trunk()(torch.full((1, 3, 64, 64), 0.1))[0, :, 0, 0] - cells
    data.trunks[0][0][~few.annotated] = cells.detach().half()[:, None, None]
    assert (features.predict_boxes(few).boxes[~few.annotated] == torch.tensor([0.0, 0, 64, 64])).all()


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
    few.boxes[~few.annotated] = torch.tensor([0.0, 0, 64, 64])
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


def test_crops_are_drawn_once(birds, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 4)  # the crops of an image lie in two files
    trunk, cropped = small_trunk(), with_transform(Scenes("train", 5, 64), crop_transform(64))
    names, state = [cropped[i].name for i in range(5)], torch.get_rng_state()
    data = features.extract(trunk, cropped, tmp_path, mirrored=True, crops=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert data.shape == data.features.shape == (5, 6, 6, 8, 8) and data.names == names
    other = features.extract(trunk, cropped, tmp_path / "other", mirrored=True, crops=3, workers=1)
    assert torch.equal(other.features, data.features) and torch.equal(other.boxes, data.boxes)
    for i in range(5):
        expected = []
        for k in range(3 * i, 3 * i + 3):
            torch.manual_seed(k)
            expected.append(cropped[i])
        mirrored = [Joint(v2.RandomHorizontalFlip(1))(sample) for sample in expected]
        views = [sample for pair in zip(expected, mirrored, strict=True) for sample in pair]
        found = {}
        while len(found) < 6:
            sample = data[i]
            view = next(v for v in range(6) if torch.equal(sample.image, data.features[i, v]))
            found[view] = sample
        for v, sample in found.items():
            assert torch.equal(sample.boxes, views[v].boxes) and torch.equal(sample.box_labels, views[v].box_labels)
            with torch.no_grad():
                pixels = trunk(collate([views[v]]).images)[0]
            torch.testing.assert_close(sample.image.float(), pixels, atol=2e-2, rtol=2e-2)
    with pytest.raises(ValueError, match="crops is 0; it must be at least 1"):
        features.extract(trunk, birds, tmp_path, crops=0)


def test_an_interrupted_call_goes_on(birds, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 2)
    expected = features.extract(small_trunk(), birds, tmp_path / "whole")
    trunk, seen = small_trunk(), []

    def stop(module, inputs):
        seen.append(len(inputs[0]))
        if len(seen) == 3:
            raise KeyboardInterrupt

    trunk.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        features.extract(trunk, birds, tmp_path / "parts")
    found = features.extract(trunk, birds, tmp_path / "parts")
    assert seen == [2, 2, 2, 2] and torch.equal(found.features, expected.features)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells how much memory a process has")
def test_features_may_be_larger_than_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 8)
    wide = nn.Sequential(small_trunk(), nn.Conv2d(6, 64, 1), nn.Upsample(64))  # 1 MB per image and view

    def memory():  # in MB, without the pages of files
        return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("RssAnon")) / 1024

    features.extract(wide, Bright("val", 16, 64), tmp_path, mirrored=True, batch_size=4)  # so that torch is warm
    before, most = memory(), 0
    data = features.extract(wide, Bright("train", 80, 64), tmp_path, mirrored=True, batch_size=4)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 80e6
    for batch in DataLoader(features.join(data, data), 4, collate_fn=collate):
        most = max(most, memory() - before)
        assert batch.images.any()
    assert most < 30


@pytest.mark.parametrize(
    ("name", "at"), [("efficientnet_lite0", "Mid3"), ("efficientnet_lite0", "Final"), ("bcos_scenes", "Mid3")]
)
def test_a_trained_head_put_back_explains_as_before(name, at, tmp_path):
    model = network(name)
    trunk, head = models.split(model, 64, at)
    images = SceneBirds("train", 2, 64, transform=crop_transform(64))
    data = features.extract(trunk, images, tmp_path, mirrored=True, crops=2, precision="float32")
    training.fit(head, data, 1, 1e-3, 2, step=Guide("energy", "ixg", "Final", 1.0))
    views = [_drawn(images, k) for k in range(4)]
    pixels = collate([view for pair in views for view in pair]).images
    head, model, inputs = head.eval(), model.eval(), data.features.flatten(0, 1).float()
    with torch.no_grad():
        torch.testing.assert_close(head(inputs), model(pixels), atol=3e-2, rtol=3e-2)  # float16
        inputs = trunk(pixels)
    targets = torch.arange(8) % 2
    for method in (method for method, how in METHODS.items() if not how.of_score):
        if METHODS[method].dynamic and not model.is_bcos:
            continue
        for depth in head.depths:
            here, there = (explain(*pair, targets, method, depth) for pair in ((head, inputs), (model, pixels)))
            torch.testing.assert_close(here.logits, there.logits)
            peak = there.maps.abs().max()
            torch.testing.assert_close(here.maps / peak, there.maps / peak, atol=1e-4, rtol=1e-3)


def _drawn(images, k):
    """Crop k of `images`, two per image, and its mirror image."""
    torch.manual_seed(k)
    sample = images[k // 2]
    return sample, Joint(v2.RandomHorizontalFlip(1))(sample)


def test_boxes_of_several_classes_are_predicted(tmp_path):
    net = models.build("bcos_scenes", 10, "scenes")
    trunk, _ = models.split(net, 96)
    data = features.extract(trunk, Scenes("train", 240, 96), tmp_path, mirrored=True)
    few = with_boxes(data, 0.25)
    predicted = features.predict_boxes(few)
    truth, found = ([part[i] for i in range(240) if not few.annotated[i]] for part in (data, predicted))
    whole, overlaps, chance = torch.ones(96, 96, dtype=torch.bool), [], []
    for one, other in zip(truth, found, strict=True):
        assert other.box_labels.tolist() == one.present().tolist() and other.annotated
        for c in one.present():
            masks = [box_mask(sample.boxes[sample.box_labels == c], (96, 96)) for sample in (one, other)]
            overlaps.append(_iou(*masks))
            chance.append(_iou(masks[0], whole))
    assert torch.tensor(overlaps).mean() > 2 * torch.tensor(chance).mean()
    kept = torch.tensor(data.starts).diff()[few.annotated]
    assert torch.equal(torch.tensor(predicted.starts).diff()[few.annotated], kept)


def _iou(one, other):
    return ((one & other).sum() / (one | other).sum()).item()


def test_tokens_that_fill_no_grid_have_no_boxes(birds, tmp_path):
    trunk, _ = models.split(network("test_vit"), 64)
    data = features.extract(trunk, birds, tmp_path)
    with pytest.raises(ValueError, match=r"the features' grid is \(17, 1\); it must be of cells"):
        features.predict_boxes(with_boxes(data, 0.5))


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Scenes with several classes per image, and a network that knows them."""
    net = models.build("bcos_scenes", 10, "scenes")
    trunk, head = models.split(net, 64)
    images = Scenes("train", 12, 64)
    return images, trunk, head, features.extract(trunk, images, tmp_path_factory.mktemp("shown"), mirrored=True)


def test_networks_are_distilled_on_features_of_several_labels(shown, tmp_path):
    images, trunk, head, data = shown
    other, teacher = models.split(models.build("bcos_scenes", 10, "scenes"), 64)
    both = features.join(data, features.extract(other, images, tmp_path, mirrored=True))
    student = copy.deepcopy(head)
    student.channels, teacher.channels = slice(0, 128), slice(128, 256)
    terms = {"multi_label_kd": 1.0, "e2kd": 5.0}
    step = Distill(teacher, student, whole(both).images[:2], terms, method="bcos", at="Final")
    training.fit(student, both, 1, 1e-3, 4, step=step)
    scores = training.evaluate(student, both, 4, "bcos", "Final", teacher=teacher, metrics=["pointing game"])
    assert {"F1", "mAP", "EPG", "IoU", "agreement", "pointing game"} <= scores.keys() and scores["agreement"] > 50


def test_frozen_explanations_move_with_the_views(shown, tmp_path):
    images, trunk, head, _ = shown
    teacher = models.build("bcos_scenes", 10, "scenes")
    turned = with_transform(images, Joint(v2.Resize((64, 64))))
    kept = frozen.freeze(teacher, turned, tmp_path / "frozen", 64, "ixg", "Final")
    data = features.extract(trunk, kept, tmp_path, mirrored=True)
    for i in range(3):
        sample, expected = data[i], kept[i]
        maps = expected.maps if torch.equal(sample.image, data.features[i, 0]) else expected.maps.flip(2)
        torch.testing.assert_close(sample.maps, maps.half().float().as_subclass(torch.Tensor))
        assert torch.equal(sample.logits, expected.logits)
    student = copy.deepcopy(head)
    step = Distill(
        None, student, whole(data).images[:2], {"multi_label_kd": 1.0, "e2kd": 5.0}, method="ixg", at="Final"
    )
    assert training.fit(student, data, 1, 1e-3, 4, step=step)[0]["e2kd"] > 0


def test_pareto_search_on_features(shown, tmp_path):
    images, trunk, head, _ = shown
    data = features.extract(trunk, images, tmp_path)
    guides = [Guide("energy", "ixg", "Final", weight) for weight in (0.1, 1.0)]
    archive = pareto.search(head, data, data, guides, 1, 1e-3, tmp_path, 4)
    assert len(archive.points) == 2
    point = archive.choose("EPG", {"F1": 0})
    loaded = archive.load(point, head).eval()
    found = training.evaluate(loaded, data, 4, "ixg", "Final")
    assert found["F1"] == pytest.approx(point["scores"]["F1"]) and found["EPG"] == pytest.approx(point["scores"]["EPG"])


def test_groups_on_features(birds, tmp_path):
    trunk, head = models.split(network(), 64)
    data = features.extract(trunk, birds, tmp_path, mirrored=True)
    seen = groups.counts(data)
    assert seen == groups.counts(birds)
    best = groups.BestEpoch(head, data, seen, "worst validation group")
    for step in (groups.Reweighted(tuple(seen)), groups.GroupDRO(seen)):
        training.fit(copy.deepcopy(head), data, 1, 1e-3, 3, step=step)
    training.fit(head, data, 2, 1e-3, 3, after_epoch=best)
    best.restore()
    again = groups.dfr(head, head, data, 1, 1e-3)
    assert training.evaluate(again, data, seen=seen)["worst group"] >= 0
