"""Measuring: equal to single images, by hand, by group, with a teacher."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from e2lib import metrics, models, training
from e2lib.attribution import explain
from e2lib.datasets import Joint, Sample, Samples, SceneBirds, Scenes, Selection, collate

measuring = sys.modules["e2lib.training.evaluate"]  # `training.evaluate` is the function


class Oracle(nn.Module):
    """Knows the labels of a data set, in order, and answers with a margin of `sign`."""

    def __init__(self, dataset, sign):
        super().__init__()
        self.answers, self.sign = iter(dataset.targets.float().split(4)), nn.Parameter(torch.tensor(sign))

    def forward(self, x):
        return (next(self.answers) - 0.5) * self.sign


def test_evaluate_in_per_cent():
    dataset = Scenes("test", 12, 64)
    assert training.evaluate(Oracle(dataset, 2.0), dataset, batch_size=4) == {"F1": 100.0, "mAP": 100.0}
    wrong = training.evaluate(Oracle(dataset, -2.0), dataset, batch_size=4)
    assert wrong["F1"] == 0 and wrong["mAP"] < 50


def test_evaluate_by_group_and_outside_the_boxes():
    birds = SceneBirds("test", 24, 64, correlation=0.5)
    scores = training.evaluate(Oracle(birds, 2.0), birds, batch_size=4, seen=[1, 0, 0, 1])
    assert scores["accuracy"] == scores["worst group"] == scores["out of distribution"] == 100
    assert set(birds.groups) <= scores.keys()
    network = models.build("test_resnet", 2)
    images, masks, targets = [], [], []
    for sample in birds:
        batch = collate([sample])
        images, masks = [*images, batch.images], [*masks, batch.class_masks(batch.present())]
        targets.append((2 * batch.labels - 1.0)[:, None])  # +1 for the class, -1 for the other
    maps = explain(network, torch.cat(images), torch.cat(targets), "ixg", "Final").maps
    for outside, where in ((False, torch.cat(masks)), (True, ~torch.cat(masks))):
        scores = training.evaluate(network, birds, method="ixg", at="Final", contrast=True, outside=outside)
        assert (
            scores["EPG"] == pytest.approx(100 * metrics.epg(maps, where).mean().item(), rel=1e-4) and scores["EPG"] > 0
        )


def test_agreement_with_a_teacher_by_hand():
    birds = SceneBirds("val", 40, size=64, correlation=0.5)
    torch.manual_seed(0)
    student, teacher = (models.build("test_resnet", 2) for _ in range(2))
    batch = collate([birds[i] for i in range(40)])
    for network in (student, teacher):  # both classes in the middle, so that they come about equally often
        network.net.fc.bias.data -= network.eval()(batch.images).detach().mean(0)
        network.train()
    scores = training.evaluate(student, birds, 16, seen=[5, 0, 0, 5], teacher=teacher)
    assert student.training and teacher.training
    with torch.no_grad():
        same = student.eval()(batch.images).argmax(1) == teacher.eval()(batch.images).argmax(1)
    unseen = (batch.groups == 1) | (batch.groups == 2)
    assert 0 < same.sum() < 40
    assert scores["agreement"] == pytest.approx(100 * same.float().mean().item())
    assert scores["agreement, out of distribution"] == pytest.approx(100 * same[unseen].float().mean().item())
    assert scores["agreement, in distribution"] == pytest.approx(100 * same[~unseen].float().mean().item())
    assert training.evaluate(student, birds, teacher=student)["agreement"] == 100
    with torch.no_grad():
        said = teacher.eval()(batch.images)
    scores = [training.evaluate(student, birds, 7, teacher=t) for t in (teacher, said)]
    assert scores[0] == scores[1]
    several, network = Scenes("val", 9, 64), models.build("test_resnet", 10).eval()
    with torch.no_grad():
        answers = network(collate([several[i] for i in range(9)]).images)
    said = torch.cat([answers[:4], -answers[4:]])
    how = {"method": "ixg", "at": "Final", "threshold": 0.5}  # images are explained in another order
    assert training.evaluate(network, several, 4, teacher=said, **how)["agreement"] == pytest.approx(100 * 4 / 9)
    with pytest.raises(ValueError, match="teacher holds the logits of 3 images, the data set has"):
        training.evaluate(student, birds, teacher=torch.zeros(3, 2))
    single, ten = Scenes("val", 20, 64, objects=1), models.build("test_resnet", 10).eval()
    found, top = training.evaluate(ten, single), ten(collate([single[i] for i in range(20)]).images).argmax(1)
    assert set(found) == {"F1", "mAP", "accuracy"}
    assert found["accuracy"] == pytest.approx(100 * (top == single.targets.argmax(1)).float().mean().item())
    scenes = Scenes("val", 6, 64)
    scores = training.evaluate(models.build("test_resnet", 10), scenes, teacher=models.build("test_resnet", 10))
    assert 0 <= scores["agreement"] <= 100 and set(scores) == {"F1", "mAP", "agreement"}
    explained = training.evaluate(student, birds, 16, "ixg", "Final", seen=[5, 0, 0, 5], teacher=teacher)
    assert explained["agreement"] == pytest.approx(100 * same.float().mean().item()) and "EPG" in explained
    assert "agreement, out of distribution" in explained


def test_the_committed_network_of_the_scenes_is_small_and_knows_them():
    assert (Path(__file__).parents[2] / "data" / "bcos_scenes.safetensors").stat().st_size <= 10 * 2**20
    model = models.build("bcos_scenes", 10, weights="scenes")
    assert training.evaluate(model, Scenes("test", 300))["F1"] >= 78


def test_contributions_in_the_committed_network_add_up_to_its_logits():
    model = models.build("bcos_scenes", 10, weights="scenes").double()
    images = torch.stack([Scenes("test", 2)[i].image for i in range(2)]).double() / 255
    for at in ("Input", "Final"):
        logits, maps = explain(model, images, torch.arange(10).expand(2, -1), "bcos", at)
        scale = 1 if at == "Input" else (4 / 128) ** 2  # up-sampling keeps the mean, not the sum
        torch.testing.assert_close(maps.sum((2, 3)) * scale, logits - model.logit_bias, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def network():
    return models.build("bcos_scenes", 10, weights="scenes")


def some_masks(sample):
    """Every other image loses its segmentation, and one its boxes."""
    number = int(sample.name.split("-")[-1])
    if number == 4:
        sample = replace(sample, boxes=sample.boxes[:0], box_labels=sample.box_labels[:0], masks=None)
    return replace(sample, masks=None) if number % 2 else sample


def no_masks(sample):
    return replace(sample, masks=None)


@pytest.mark.parametrize("transform", [None, some_masks, no_masks])
def test_evaluate_equals_the_metrics_of_single_images_in_any_order(network, transform):
    dataset = Scenes("val", 9, 64, transform=transform)
    thresholds = [t / 20 for t in range(20)]
    epg, iou, on_object = [], [], []
    for i in range(9):
        batch = collate([dataset[i]])
        classes = batch.labels[0].nonzero()[:, 0]
        for c in classes:
            maps, masks = explain(network, batch.images, c[None], "bcos", "Mid1").maps, batch.class_masks(c[None])
            if not masks.any():
                continue
            epg.append(metrics.epg(maps, masks).item())
            iou.append([metrics.iou(maps, masks, t).item() for t in thresholds])
            if batch.masks is not None:
                segments = batch.class_masks(c[None], segmentation=True)
                on_object.append(metrics.on_object_epg(maps, masks, segments).item())
    assert len(epg) < dataset.targets.sum() if transform is some_masks else len(epg) == dataset.targets.sum()
    means = torch.tensor(iou).mean(0).tolist()
    best = thresholds[means.index(max(means))]
    assert best != thresholds[10]
    expected = training.evaluate(network, dataset, precision="float32")
    assert set(expected) == {"F1", "mAP"}
    expected["EPG"] = 100 * sum(epg) / len(epg)
    if transform is not no_masks:
        expected["on-object EPG"] = 100 * sum(on_object) / len(on_object)

    backwards = Selection(dataset, np.arange(8, -1, -1))
    for data, size, threshold in ((dataset, 4, None), (backwards, 2, None), (backwards, 9, thresholds[10])):
        chosen = best if threshold is None else threshold
        rest = {"IoU": 100 * means[thresholds.index(chosen)], "IoU threshold": chosen}
        scores = training.evaluate(network, data, size, "bcos", "Mid1", threshold, precision="float32")
        assert scores == pytest.approx(expected | rest, rel=1e-4)
    assert not any(p.grad is not None for p in network.parameters())


def test_images_with_equally_many_classes_are_explained_together(network, monkeypatch):
    dataset, widths = Scenes("val", 24, 64), []

    def spy(model, images, targets, *args):
        widths.append((targets >= 0).sum(1).tolist())
        assert targets.shape == (len(images), max(widths[-1]))
        return explain(model, images, targets, *args)

    monkeypatch.setattr(measuring, "explain", spy)
    training.evaluate(network, dataset, batch_size=4, method="bcos")
    assert sum(widths, []) == sorted(dataset.targets.sum(1).tolist())
    assert len(widths) == 6 and sum(len(set(width)) > 1 for width in widths) <= 2
    widths.clear()
    training.evaluate(network, dataset, batch_size=4)
    assert not widths


def test_on_a_cpu_few_large_images_are_explained_at_once(monkeypatch):
    sizes, real = [], measuring.explain
    monkeypatch.setattr(measuring, "CPU_PIXELS", 3 * 64 * 64)
    monkeypatch.setattr(
        measuring,
        "explain",
        lambda model, images, *args: sizes.append(len(images)) or real(model, images, *args),
    )
    dataset, model = Scenes("val", 7, 64), models.build("resnet18", len(Scenes("val", 1, 64).classes))
    few = training.evaluate(model, dataset, 7, "ixg", "Final", threshold=0.2)
    assert sizes == [3, 3, 1]
    monkeypatch.setattr(measuring, "CPU_PIXELS", 10**9)
    assert training.evaluate(model, dataset, 7, "ixg", "Final", threshold=0.2) == pytest.approx(few, abs=1e-3)
    assert sizes[3:] == [7]


# ---- metrics of one's own


def test_a_metric_is_a_function_of_what_its_parameters_name(monkeypatch):
    """Per pair, per image and by its name in the table; equal to the function on the whole data set."""
    scenes, network = Scenes("val", 6, 64), models.build("test_resnet", 10).eval()
    whole = collate(list(scenes))
    present = whole.present()
    logits, maps = explain(network, whole.images, present, "ixg", "Final")
    masks, segments = whole.class_masks(present), whole.class_masks(present, segmentation=True)

    def spread(maps, masks):
        return (maps.abs() * masks).amax((2, 3)) / maps.abs().amax((2, 3)).clamp(min=1e-9)

    def covered(boxes, segments):
        return segments.sum((2, 3)) / boxes.sum((2, 3)).clamp(min=1)

    def brightness(images, scale=2):
        return images.mean((1, 2, 3)) * scale

    def margin(logits, targets):
        return logits.gather(1, targets.clamp(min=0)) / 100

    def sure(logits, labels, groups, model):
        assert model is network and groups.tolist() == [-1] * len(groups) and labels.shape == logits.shape
        return logits.amax(1) / 100

    pairs = present >= 0
    expected = {
        "spread": spread(maps, masks)[pairs].mean(),
        "covered": covered(masks, segments)[pairs].mean(),
        "brightness": brightness(whole.images).mean(),
        "margin": margin(logits, present)[pairs].mean(),
        "sure": sure(logits, whole.labels, whole.groups, network).mean(),
    }
    functions = {f.__name__: f for f in (spread, covered, brightness, margin, sure)}
    found = training.evaluate(network, scenes, 4, "ixg", "Final", metrics=functions)
    for name, value in expected.items():
        assert found[name] == pytest.approx(100 * value.item(), rel=1e-4), name
    monkeypatch.setitem(metrics.METRICS, "spread", spread)
    named = training.evaluate(network, scenes, 4, "ixg", "Final", metrics=["spread", "pointing game"])
    assert named["spread"] == found["spread"]
    hits = metrics.pointing_game(maps, masks)[pairs].mean().item()
    assert named["pointing game"] == pytest.approx(100 * hits)
    assert training.evaluate(network, scenes, metrics={"sure": sure})["sure"] == pytest.approx(found["sure"], rel=1e-4)
    outside = training.evaluate(network, scenes, 4, "ixg", "Final", metrics=["spread"], outside=True)
    assert outside["spread"] == pytest.approx(100 * spread(maps, ~masks)[pairs].mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["EPIC"], "metric is 'EPIC'; it must be one of EPG, "),
        ({"mine": lambda masks, heat: 0}, "metric 'mine' asks for heat; it can be given masks, "),
        (["EPG"], "metric 'EPG' asks for maps; it can be given .*, maps .by a method"),
        ({"mine": lambda logits: logits[:, 0] * float("nan")}, "mine is NaN or infinite"),
        ({"mine": lambda segments: segments.float().mean((2, 3))}, "mine finds nothing to measure"),
    ],
)
def test_metrics_that_cannot_be_measured_are_named(asked, message):
    with pytest.raises(ValueError, match=message):
        training.evaluate(models.build("test_resnet", 10), Scenes("val", 2, 64, transform=no_masks), metrics=asked)


# ---- any data set, any network


class Least(Dataset):
    """No more than Samples of an image, a class and a box."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i))
        return Sample(image, torch.tensor(i % 2), torch.tensor([[4.0, 4, 20, 24]]))


class Own(Samples, Least):
    classes = ["a", "b"]


@pytest.mark.parametrize("data", [Least(), Own(), list(Own()[i] for i in range(4))])
def test_the_least_that_a_data_set_needs(data):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=2)
    batch = collate([data[i] for i in range(4)])
    logits, maps = explain(net, batch.images, batch.labels, "gradcam", "layer4")
    for network, at in ((net, "layer4"), (models.wrap(net, depths={"Final": "layer4"}), "Final")):
        scores = training.evaluate(network, data, method="gradcam", at=at, threshold=0.3, precision="float32")
        assert set(scores) == {"F1", "mAP", "accuracy", "EPG", "IoU", "IoU threshold"}
        right = (logits.argmax(1) == batch.labels).float().mean().item()
        assert scores["accuracy"] == pytest.approx(100 * right)
        masks = batch.class_masks(batch.labels)
        assert scores["EPG"] == pytest.approx(100 * metrics.epg(maps, masks).mean().item(), rel=1e-4)
        assert scores["IoU"] == pytest.approx(100 * metrics.iou(maps, masks, 0.3).mean().item(), rel=1e-3)


class InPlace(nn.Module):
    """Changes its images in place."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 2, 32), nn.Flatten())

    def forward(self, images):
        images -= 0.5
        images *= 100
        return self.net(images)


def test_networks_that_change_their_images_change_them_for_nobody_else():
    torch.manual_seed(0)
    net = InPlace()
    pixels = collate([Least()[i] for i in range(4)]).images.mean().item()
    for method in (None, "ixg"):
        scores = training.evaluate(
            net, Least(), method=method, teacher=net, metrics={"pixels": lambda images: images.mean((1, 2, 3))}
        )
        assert scores["agreement"] == 100 and scores["pixels"] == pytest.approx(100 * pixels, rel=1e-4)


def test_the_size_of_a_batch_is_checked():
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        training.evaluate(InPlace(), Least(), batch_size=0, method="ixg")


class Linear(nn.Module):
    """The mean colour times a weight, as logits of as many classes."""

    def __init__(self, weight, classes=3):
        super().__init__()
        self.weight = nn.Parameter(torch.full((classes,), weight))

    def forward(self, images):
        return images.mean((2, 3))[:, : len(self.weight)] * self.weight


def one_class(sample):
    return replace(sample, labels=torch.ones(1, dtype=torch.uint8), box_labels=sample.box_labels * 0, group=-1)


def test_one_class():
    scores = training.evaluate(Linear(1.0, 1), [one_class(s) for s in SceneBirds("val", 3, 64)], method="ixg")
    assert scores["F1"] == scores["mAP"] == 100 and 0 < scores["EPG"] < 100


@pytest.mark.parametrize("method", [None, "ixg"])
def test_what_is_not_finite_or_not_there_is_named(method):
    birds = SceneBirds("val", 4, 64)
    with pytest.raises(ValueError, match="logits hold NaN"):
        training.evaluate(Linear(float("nan"), 2), birds, method=method)
    with pytest.raises(ValueError, match="logits hold NaN"):
        training.evaluate(Linear(1.0, 2), birds, method=method, teacher=Linear(float("nan"), 2))
    with pytest.raises(ValueError, match=r"image bird-val-0 lies in \[.*; float images must be in \[0, 1\]"):
        pixels = SceneBirds("val", 4, 64, transform=Joint(v2.ToDtype(torch.float32, scale=False)))
        training.evaluate(Linear(1.0, 2), pixels, method=method)
    with pytest.raises(ValueError, match="labels are .*; the network gives 3 logits per image"):
        training.evaluate(Linear(1.0, 3), birds, method=method)


@pytest.mark.parametrize("past", [5e-4, 5e-3])
def test_collate_and_explain_agree_on_how_far_float_images_may_leave_the_unit_interval(past):
    network, image = models.build("test_resnet", 2), torch.linspace(-past, 1 + past, 3 * 32 * 32).view(3, 32, 32)
    calls = [lambda: collate([Sample(image, torch.tensor(0))]), lambda: explain(network, image[None], 0)]
    for call in calls:
        if past < 1e-3:
            call()
        else:
            with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
                call()


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_explanations_without_boxes_cannot_be_measured(threshold):
    boxless = [replace(s, boxes=s.boxes[:0], box_labels=s.box_labels[:0], masks=None) for s in SceneBirds("val", 3, 64)]
    with pytest.raises(ValueError, match="EPG finds nothing to measure: no image has a box"):
        training.evaluate(Linear(1.0, 2), boxless, method="ixg", threshold=threshold)
    assert training.evaluate(Linear(1.0, 2), boxless)["mAP"] >= 0


@pytest.mark.parametrize("method", [None, "ixg"])
def test_measuring_in_inference_mode_and_its_random_numbers(method):
    birds = SceneBirds("val", 4, 64)
    before = torch.get_rng_state()
    expected = training.evaluate(Linear(1.0, 2), birds, method=method)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        assert training.evaluate(Linear(1.0, 2), birds, method=method) == pytest.approx(expected)


def in_groups(images, labels, groups):
    class Data(Samples):
        classes = ["a", "b"]

        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return Sample(images[i], labels[i], group=groups[i], name=str(i))

    Data.groups = ["left", "right"]
    return Data()


def test_groups_of_images_with_several_labels_are_no_obstacle_and_unknown_groups_are_named(network):
    images, several = torch.rand(2, 3, 32, 32), torch.tensor([[1, 1], [0, 1]], dtype=torch.uint8)
    network = models.build("test_resnet", 2)
    assert training.evaluate(network, in_groups(images, several, [0, 1])).keys() == {"F1", "mAP"}
    with pytest.raises(ValueError, match="groups is"):
        training.evaluate(network, in_groups(images, torch.tensor([0, 1]), [0, -1]))


def test_a_metric_may_do_without_segments_and_takes_no_name_of_ours():
    network, dataset = models.build("test_resnet", 10), Scenes("test", 2, 64, transform=no_masks)
    scores = training.evaluate(network, dataset, metrics={"one": lambda logits, segments=None: logits[:, 0] * 0 + 1})
    assert scores["one"] == 100
    with pytest.raises(ValueError, match="F1"):
        training.evaluate(network, dataset, metrics={"F1": lambda logits: logits[:, 0]})
