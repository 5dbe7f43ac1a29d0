"""Backbones: depths, logit biases, weight files and the identities of X-DNNs."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from bcos.modules import DetachableModule, LogitLayer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.transforms.v2 import functional as vision

from e2lib import models

CUTOUTS = Path(__file__).parents[2] / "data" / "cutouts"

# Small members of each family: name -> sides of the maps of Mid1, Mid2, Mid3, Final for a 64 px image.
PYRAMID = (16, 8, 4, 2)
CNNS = (
    "test_resnet",
    "densenet121",
    "efficientnet_lite0",
    "mobilenetv3_small_050",
    "shufflenet_v2_x0_5",
    "test_convnext",
    "regnetz_005",
    "test_byobnet",
    "xdnn_resnet18",
    "bcos_scenes",
    "bcos_densenet121",
    "bcos_convnext_tiny",
)
TWICE = (
    "test_resnet",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "shufflenet_v2_x0_5",
    "test_convnext",
    "test_vit",
    "bcos_scenes",
)
VITS = ("test_vit", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "bcos_vitc_ti_patch1_14")


def build(name, num_classes=3):
    torch.manual_seed(0)
    return models.build(name, num_classes).eval()


def outputs(model, images):
    """Logits and the output at each depth, with gradients to it."""
    found = {}
    hooks = []
    for depth, path in model.depths.items():

        def keep(module, args, output, depth=depth):
            # A clone, as later in-place activations would overwrite it; the image gets its gradient from here on.
            found[depth] = output if output.requires_grad else output.requires_grad_()
            return found[depth].clone()

        hooks.append(model.get_submodule(path).register_forward_hook(keep))
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return logits, found


# ---- depths


@pytest.mark.parametrize("name", CNNS)
def test_depths_of_cnns_are_the_four_stages_up_to_the_map_before_pooling(name):
    model = build(name)
    logits, found = outputs(model, torch.rand(2, 3, 64, 64))
    assert list(found) == ["Input", "Mid1", "Mid2", "Mid3", "Final"]
    assert found["Input"].shape == (2, 6 if name.startswith("bcos") else 3, 64, 64)
    assert tuple(found[d].shape[-1] for d in ("Mid1", "Mid2", "Mid3", "Final")) == PYRAMID
    assert model.prefix_tokens == 0
    # Nothing but the head comes after Final.
    if model.is_bcos:
        # Named so in the three packages' classes; ConvNeXt's head has a norm before its convolution.
        head = getattr(model.net, "fc", getattr(model.net, "classifier", None))
        again = model.net.logit_layer(head(found["Final"]).mean((2, 3)))
    elif name.startswith("shufflenet"):  # torchvision's
        again = model.net.fc(found["Final"].mean((2, 3)))
    else:
        again = model.net.forward_head(found["Final"])
    torch.testing.assert_close(again, logits)


@pytest.mark.parametrize("name", VITS)
def test_depths_of_transformers_are_tokens_that_matter(name):
    model = build(name)
    side = 56 if "patch14" in name else 64
    logits, found = outputs(model, torch.rand(2, 3, side, side))
    for depth in ("Mid1", "Mid2", "Mid3", "Final"):
        assert found[depth].shape[:2] == (2, model.prefix_tokens + 16)
    grads = torch.autograd.grad(logits[:, 0].sum(), list(found.values()))
    for grad in grads[1:]:
        assert grad[:, model.prefix_tokens :].abs().sum(2).min() > 0


def test_last_block_of_a_class_token_head_gives_no_gradient_to_patches():
    model = build("test_vit")
    assert model.depths["Final"] == "net.blocks.4" and len(model.net.blocks) == 6
    model.depths["Final"] = "net.blocks.5"
    logits, found = outputs(model, torch.rand(1, 3, 64, 64))
    assert torch.autograd.grad(logits.sum(), found["Final"])[0][:, 1:].abs().max() == 0


def test_unknown_architecture_has_input_only():
    assert build("mixer_s16_224").depths == {"Input": "preprocess"}


@pytest.mark.parametrize("name", TWICE)
def test_every_depth_can_be_trained_through(name):
    model = build(name).train()  # batch statistics: an untrained net's running ones make its maps vanish
    with sdpa_kernel(SDPBackend.MATH):
        logits, found = outputs(model, torch.rand(2, 3, 64, 64))
        for depth, layer in found.items():
            (grad,) = torch.autograd.grad(logits[:, 0].sum(), layer, create_graph=True)
            second = torch.autograd.grad((grad * layer).sum(), model.parameters(), retain_graph=True, allow_unused=True)
            norms = torch.stack([g.norm() for g in second if g is not None])
            assert norms.isfinite().all() and norms.sum() > 0, depth


def test_hardsigmoid_twin_is_equal_and_twice_differentiable():
    x = torch.tensor([-4.0, -2.5, -0.3, 0.0, 1.7, 2.9, 5.0], dtype=torch.double, requires_grad=True)
    twin = models.Hardsigmoid()
    torch.testing.assert_close(twin(x), nn.functional.hardsigmoid(x))
    assert torch.autograd.gradgradcheck(lambda x: twin(x) ** 2, x)
    assert not any(isinstance(m, nn.Hardsigmoid) for m in build("mobilenetv3_small_050").modules())


# ---- what the net sees, and its logits


def test_preprocess():
    image = torch.tensor([0.0, 127 / 255, 1.0]).view(1, 3, 1, 1)
    lite = build("efficientnet_lite0").preprocess(image).flatten()
    torch.testing.assert_close(lite, torch.tensor([-127 / 128, 0.0, 1.0]))
    resnet = build("test_resnet")
    mean, std = resnet.net.pretrained_cfg["mean"], resnet.net.pretrained_cfg["std"]
    assert resnet.preprocess(image)[0, 2].item() == pytest.approx((1 - mean[2]) / std[2])
    six = build("bcos_scenes").preprocess(image).flatten()
    torch.testing.assert_close(six, torch.tensor([0.0, 127 / 255, 1.0, 1.0, 128 / 255, 0.0]))


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8)])
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match=r"float \(B, 3, H, W\)"):
        build("test_resnet")(images)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(
    "name", ["bcos_scenes", "bcos_resnet18", "bcos_convnext_tiny", "bcos_simple_vit_ti_patch16_224"]
)
def test_bcos_logit_bias_and_explanation_mode(name, classes):
    model = build(name, classes)
    (layer,) = (m for m in model.modules() if isinstance(m, LogitLayer))
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, classes)
    ((before, after),) = seen
    bias = after - before / (layer.logit_temperature or 1)
    torch.testing.assert_close(bias, torch.full_like(bias, -math.log(classes - 1)))
    assert model.logit_bias == pytest.approx(-math.log(classes - 1)) and model.is_bcos
    with model.net.explanation_mode():
        assert all(m.is_in_explanation_mode for m in model.modules() if isinstance(m, DetachableModule))


def test_names_and_numbers_of_classes_are_checked():
    with pytest.raises(ValueError, match="unknown model 'resnet19'.*resnet18"):
        models.build("resnet19", 3)
    with pytest.raises(ValueError, match="unknown model 'xdnn_densenet121'.*xdnn_resnet"):
        models.build("xdnn_densenet121", 3)
    with pytest.raises(ValueError, match="num_classes=1 .*'bcos_scenes'"):
        models.build("bcos_scenes", 1)
    with pytest.raises(ValueError, match="num_classes=0"):
        models.build("resnet18", 0)
    assert build("test_resnet").logit_bias == 0 and not build("test_resnet").is_bcos


# ---- X-DNN


@pytest.fixture(scope="module", params=["xdnn_resnet18", "xdnn_resnet50"])
def xdnn(request):
    """An X-DNN in float64 without Fixup's zeros, so that its output is not 0."""
    model = build(request.param).double()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.kaiming_normal_(parameter)
    return model


def test_xdnn_has_neither_biases_nor_norms(xdnn):
    assert not [name for name, _ in xdnn.named_parameters() if "bias" in name]
    assert not [name for name, _ in xdnn.named_buffers() if not name.startswith("preprocess")]


def test_xdnn_is_homogeneous_and_input_x_gradient_is_integrated_gradients(xdnn):
    x = torch.randn(2, 3, 32, 32, dtype=torch.double, requires_grad=True)
    logits = xdnn.net(x)
    assert logits.abs().min() > 0
    torch.testing.assert_close(xdnn.net(3.7 * x), 3.7 * logits)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    ixg = x * gradient
    torch.testing.assert_close(ixg.sum((1, 2, 3)), logits[:, 0])  # complete
    path = [torch.autograd.grad(xdnn.net(a * x)[:, 0].sum() / a, x)[0] for a in (0.01, 0.35, 0.8, 1.0)]
    torch.testing.assert_close(x * torch.stack(path).mean(0), ixg)


def test_fixup_initialisation():
    net = build("xdnn_resnet50").net  # 16 blocks of 3 layers: scale 16^(-1/4) = 1/2
    block = net.layer2[1]
    assert not block.conv3.weight.any() and not net.fc.weight.any() and block.bn3.scale.item() == 1
    he = math.sqrt(2 / (9 * 128))
    assert block.conv2.weight.std().item() == pytest.approx(he / 2, rel=0.02)
    assert net.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (49 * 64)), rel=0.03)


# ---- weights


@pytest.mark.parametrize("name", list(models._IMAGENET))
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
    sha256 = models._IMAGENET["efficientnet_lite0"]
    with pytest.raises(ValueError, match=f"altered.pth: SHA-256 is .* expected {sha256}"):
        models._read(path, sha256)
    monkeypatch.setitem(models._IMAGENET, "efficientnet_lite0", sha256[:-1] + "0")
    with pytest.raises(ValueError, match=f"SHA-256 is {sha256}, expected"):
        models.build("efficientnet_lite0", 4, weights="imagenet")
    with pytest.raises(ValueError, match="efficientnet_lite0.*not for 'resnet18'.*path"):
        models.build("resnet18", 4, weights="imagenet")
    with pytest.raises(ValueError, match="bcos_scenes, not for 'resnet18'"):
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
    with pytest.raises(ValueError, match="must end in .safetensors"):
        models.save(model, tmp_path / "net.pth")


def test_scenes_weights_come_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_DATA", tmp_path)
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
        (
            lambda s: s.pop("layer1.0.bn1.weight"),
            r"test_resnet needs tensor 'layer1.0.bn1.weight' \(\d+,\), the file has",
        ),
        (lambda s: s.update(extra=torch.ones(2)), r"tensor 'extra' \(2,\) is unknown"),
        (
            lambda s: s.update({"bn1.weight": torch.ones(5)}),
            r"'bn1.weight' has shape \(5,\), test_resnet needs \(\d+,\)",
        ),
        (
            lambda s: s.update({"fc.weight": torch.ones(3, 7)}),
            r"'fc.weight' has shape \(3, 7\), test_resnet needs \(3,",
        ),
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
    with pytest.raises(ValueError, match="evil.pth: cannot be read") as refusal:
        models.build("test_resnet", 3, weights=tmp_path / "evil.pth")
    assert isinstance(refusal.value.__cause__, pickle.UnpicklingError) and not (tmp_path / "executed").exists()
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match="nested.pt: must hold a state_dict"):
        models.build("test_resnet", 3, weights=tmp_path / "nested.pt")
    models.save(build("test_resnet"), tmp_path / "cut.safetensors")
    assert load_file(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut.safetensors: cannot be read"):
        models.build("test_resnet", 3, weights=tmp_path / "cut.safetensors")
    (tmp_path / "net.bin").touch()
    with pytest.raises(ValueError, match="net.bin must end in"):
        models.build("test_resnet", 3, weights=tmp_path / "net.bin")
