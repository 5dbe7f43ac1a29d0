"""Frozen explanations: they are the live ones, move with their images, and belong to one teacher and data set."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from e2lib import distillation, features, frozen, models, training
from e2lib.attribution import METHODS, Method
from e2lib.datasets import (
    Joint,
    Scenes,
    Selection,
    collate,
    crop_transform,
    train_transform,
    with_boxes,
    with_transform,
)
from e2lib.frozen import freeze

LENGTH = 12


@pytest.fixture(scope="module")
def scenes():
    return Scenes("train", LENGTH, 64)


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(features, "SHARD", 5)


def teacher(name="test_resnet", seed=0):
    torch.manual_seed(seed)
    model = models.build(name, 10)
    for x in (x for x in model.parameters() if not x.any()):
        nn.init.normal_(x, std=0.1)
    return model


def batch_of(data):
    return collate([data[i] for i in range(len(data))])


@pytest.mark.parametrize(
    ("name", "method", "at"),
    [("test_resnet", "gradcam", "Final"), ("test_resnet", "ixg", "Input"), ("bcos_scenes", "weights", "Input")],
)
@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("uint8", 5e-3)])
def test_they_are_the_live_ones(name, method, at, dtype, error, scenes, tmp_path):
    model = teacher(name).train()
    data = freeze(model, scenes, tmp_path, 64, method, at, dtype, batch_size=4, precision="float32")
    assert model.training and len(list(tmp_path.glob("*.safetensors"))) == 3
    batch = batch_of(data)
    logits, maps = distillation.explanation(model.eval(), batch.images, distillation.top_class(), method, at)
    assert torch.allclose(batch.logits, logits, atol=1e-5)
    expected = maps / maps.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    assert batch.maps.shape == maps.shape and (batch.maps - expected).abs().max() < error


def test_the_difference_of_classes_is_frozen_too(scenes, tmp_path):
    model = teacher().eval()
    batch = batch_of(freeze(model, scenes, tmp_path, 64, "ixg", contrast=True))
    _, maps = distillation.explanation(model, batch.images, distillation.top_class(True), "ixg", "Final")
    assert (distillation.e2kd(batch.maps, maps) < 1e-4).all()


class Local(nn.Module):
    """A network whose map at a pixel depends on that pixel alone: it moves with the image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.colours = nn.Conv2d(3, 10, 1)
        self.colours.weight.data *= 8
        self.colours.bias.data = -0.45 * self.colours.weight.data.sum((1, 2, 3))  # both signs, about equally often
        self.depths = {"Input": "colours"}

    def forward(self, x):
        return self.colours(x).tanh().mean((2, 3))


def smooth(sample):
    """The scene without what interpolation loses."""
    return replace(sample, image=v2.functional.gaussian_blur(sample.image, 21, 6.0))


@pytest.mark.parametrize(
    "transform",
    [Joint(v2.RandomHorizontalFlip(1)), crop_transform(64), Joint(v2.Resize((32, 32))), Joint(v2.CenterCrop(40))],
    ids=["flip", "random crop", "resize", "crop"],
)
def test_they_move_with_their_images(transform, scenes, tmp_path):
    def moved(sample):
        return transform(smooth(sample))

    network = Local()
    freeze(network, Smooth("train", LENGTH, 64), tmp_path, 64, "ixg", "Input")
    torch.manual_seed(3)
    batch = batch_of(with_transform(scenes, frozen.Frozen(tmp_path, moved)))
    top = batch.logits.argmax(1)
    _, maps = distillation.explanation(network, batch.images, top, "ixg", "Input")
    assert batch.maps.shape[2:] == batch.images.shape[2:]
    assert distillation.e2kd(maps, batch.maps).max() < 0.02
    assert distillation.e2kd(maps, batch.maps.flip(3)).mean() > 0.2  # which a map that stays behind would have


class Nameless(Scenes):
    def __getitem__(self, i):
        return replace(super().__getitem__(i), name="")


class Smooth(Scenes):
    """Scenes that are smooth before any transform."""

    def __getitem__(self, i):
        wanted, self.transform = self.transform, None
        try:
            sample = smooth(super().__getitem__(i))
        finally:
            self.transform = wanted
        return sample if wanted is None else wanted(sample)


def test_the_data_sets_own_transform_moves_them(scenes, tmp_path):
    own = with_transform(scenes, Joint(v2.RandomHorizontalFlip(1)))
    for data in (own, Selection(own, np.array([2, 0, 7]))):
        found = freeze(teacher(), data, tmp_path / str(len(data)), 64)
        plain = freeze(teacher(), with_transform(data, None), tmp_path / str(len(data)), 64)
        assert len(found) == len(data)
        for i in range(len(data)):
            assert torch.equal(found[i].maps, plain[i].maps.flip(2)) and torch.equal(found[i].logits, plain[i].logits)
            assert torch.equal(found[i].image, data[i].image) and found[i].name == data[i].name


def test_another_teacher_replaces_the_one_before(scenes, tmp_path):
    first = freeze(teacher(seed=1), scenes, tmp_path / "first", 64)
    found = freeze(teacher(), first, tmp_path / "second", 64)
    expected = freeze(teacher(), scenes, tmp_path / "third", 64)
    assert torch.equal(found[0].maps, expected[0].maps) and not torch.equal(found[0].logits, first[0].logits)


def test_what_is_there_is_not_computed_again(scenes, tmp_path, monkeypatch):
    model, seen = teacher(), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    write, files = features.save_file, []

    def stops(tensors, path, about):
        if len(files) == 2:
            raise KeyboardInterrupt
        files.append(path)
        write(tensors, path, about)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features, "save_file", stops)
        freeze(model, scenes, tmp_path, 64)
    assert sum(seen) == LENGTH and len(list(tmp_path.glob("*.safetensors"))) == 2
    seen.clear()
    data = freeze(model, scenes, tmp_path, 64)
    assert sum(seen) == LENGTH - 10  # two files of five are there
    seen.clear()
    again = freeze(model, scenes, tmp_path, 64)
    assert not seen and all(torch.equal(again[i].maps, data[i].maps) for i in range(LENGTH))
    expected = freeze(model, scenes, tmp_path / "other", 64)
    assert all(torch.equal(expected[i].maps, data[i].maps) for i in range(LENGTH))


def test_a_file_that_is_half_written_is_not_taken(scenes, tmp_path, monkeypatch):
    def half(tensors, path, about):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features, "save_file", half)
        freeze(teacher(), scenes, tmp_path, 64)
    assert not list(tmp_path.glob("*.safetensors"))
    assert len(freeze(teacher(), scenes, tmp_path, 64)) == LENGTH


def test_another_teacher_data_set_or_method_has_files_of_its_own(scenes, tmp_path):
    first = freeze(teacher(), scenes, tmp_path, 64)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    for change in (
        {"teacher": teacher(seed=1)},
        {"dataset": Scenes("val", LENGTH, 64)},
        {"size": 32},
        {"method": "ixg"},
        {"at": "Mid3"},
        {"contrast": True},
        {"dtype": "uint8"},
    ):
        how = {"teacher": teacher(), "dataset": scenes, "folder": tmp_path, "size": 64} | change
        together = freeze(**how)
        alone = freeze(**how | {"folder": tmp_path / str(change)[:9]})
        assert torch.equal(together[0].maps, alone[0].maps)
    assert all(path.read_bytes() == content for path, content in before.items())
    stores = {path.name.partition("-")[0] for path in tmp_path.glob("*.safetensors")}
    assert len(stores) == 8
    with pytest.raises(ValueError, match="holds several explanations; store must be one of"):
        frozen.Frozen(tmp_path)
    mine = next(iter(before)).name.partition("-")[0]
    assert torch.equal(with_transform(scenes, frozen.Frozen(tmp_path, store=mine))[0].maps, first[0].maps)


def test_what_cannot_be_frozen_is_named(scenes, tmp_path):
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of float16, uint8"):
        freeze(teacher(), scenes, tmp_path / "new", 64, dtype="int8")
    freeze(teacher(), scenes, tmp_path, 64)
    with pytest.raises(KeyError, match="holds no image"):
        with_transform(Scenes("val", 2, 64), frozen.Frozen(tmp_path))[0]
    with pytest.raises(ValueError, match="the data set's length is 0; it must be at least 1"):
        freeze(teacher(), Selection(scenes, np.array([], int)), tmp_path / "none", 64)
    with pytest.raises(ValueError, match="dataset holds 12 images, of 1 names; names must differ"):
        freeze(teacher(), Nameless("train", LENGTH, 64), tmp_path / "twice", 64)


def test_images_that_come_several_times_in_an_epoch_are_explained_once(scenes, tmp_path):
    data = with_boxes(scenes, 0.25, repeats=3)
    found, plain = freeze(teacher(), data, tmp_path, 64), freeze(teacher(), scenes, tmp_path, 64)
    assert len(found) == LENGTH + 6 and len(list(tmp_path.glob("*.safetensors"))) == 3  # of five images
    assert all(torch.equal(found[i].maps, plain[int(data.indices[i])].maps) for i in range(len(found)))
    assert [found[i].annotated for i in range(len(found))] == data.annotated.tolist()


def test_a_method_that_is_redefined_has_files_of_its_own(scenes, tmp_path, monkeypatch):
    for scale in (1, -1):
        mine = Method(lambda a, g, scale=scale: scale * (a * g).sum(1, keepdim=True))
        monkeypatch.setitem(METHODS, "mine", mine)
        found = freeze(teacher(), scenes, tmp_path, 64, "mine")[0].maps
    monkeypatch.setitem(METHODS, "mine", METHODS["ixg"])
    assert torch.equal(freeze(teacher(), scenes, tmp_path, 64, "mine")[0].maps, -found)


def test_those_who_freeze_at_the_same_time_share_the_work(scenes, tmp_path):
    teachers, seen = [teacher() for _ in range(2)], []
    for number, model in enumerate(teachers):
        model.register_forward_hook(
            lambda module, inputs, output, number=number: time.sleep(0.5) or seen.append((number, len(output)))
        )
    with ThreadPoolExecutor(2) as several:
        first, second = several.map(lambda model: freeze(model, scenes, tmp_path, 64), teachers)
    assert sum(images for _, images in seen) == LENGTH and {number for number, _ in seen} == {0, 1}
    assert all(torch.equal(first[i].maps, second[i].maps) for i in range(LENGTH))


def test_any_network_can_be_frozen(scenes, tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10)
    model = models.wrap(net, depths={"Final": "layer4"}).eval()
    batch = batch_of(freeze(model, scenes, tmp_path, 64, precision="float32"))
    logits, maps = distillation.explanation(model, batch.images, distillation.top_class(), "gradcam", "Final")
    assert torch.allclose(batch.logits, logits, atol=1e-5) and (distillation.e2kd(batch.maps, maps) < 1e-4).all()
    other = models.wrap(net, depths={"Final": "layer3"}).eval()  # the same weights, another layer
    assert not torch.equal(freeze(other, scenes, tmp_path, 64, precision="float32")[0].maps, batch.maps[0])


def test_several_processes_read_it(scenes, tmp_path):
    data = freeze(teacher(), with_transform(scenes, train_transform(64)), tmp_path, 64)
    plain = freeze(teacher(), with_transform(scenes, None), tmp_path, 64)
    _ = data[0], plain[0]  # files that are open before the processes start
    loader = DataLoader(plain, 4, collate_fn=collate, num_workers=2)
    assert torch.equal(torch.cat([batch.maps for batch in loader]), batch_of(plain).maps)
    copied = copy.deepcopy(plain)  # made by __reduce_ex__, as that of a process that is spawned
    assert torch.equal(copied[3].maps, plain[3].maps)


def test_a_student_learns_from_it_without_its_teacher(scenes, tmp_path):
    model = teacher().eval()
    data = freeze(model, scenes, tmp_path, 64)
    batch = batch_of(data)
    student = teacher(seed=1)
    weights = {"kd": 1.0, "e2kd": 2.0}
    live = distillation.Distill(model, student, batch.images, weights)(student.eval(), batch)
    step = distillation.Distill(None, student, batch.images, weights)
    for name, value in step(student, batch).items():
        assert value.item() == pytest.approx(live[name].item(), rel=1e-3)
    student.train()
    history = training.fit(student, data, 20, 1e-2, LENGTH, step=step)
    assert history[-1]["e2kd"] < 0.8 * history[0]["e2kd"]
    with pytest.raises(ValueError, match="teacher is None, and the batch has no logits or maps"):
        step(student, batch_of(scenes))
    with pytest.raises(ValueError, match="teacher is None; it must be a network"):
        distillation.Distill(None, student, batch.images, {"at": 1.0})
