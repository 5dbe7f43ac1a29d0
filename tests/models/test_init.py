"""Networks by name: what they see, logit biases, the identities of X-DNNs, and depths of each architecture."""

import math

import pytest
import torch
import torchvision
from bcos.modules import DetachableModule, LogitLayer
from torch import nn

from e2lib import models, training
from e2lib.attribution import explain
from e2lib.datasets import SceneBirds
from e2lib.distillation import Distill
from e2lib.guidance import Guide


def build(name, num_classes=3):
    torch.manual_seed(0)
    return models.build(name, num_classes).eval()


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
    with pytest.raises(ValueError, match="num_classes is 1; it must be at least 2"):
        models.build("bcos_scenes", 1)
    with pytest.raises(ValueError, match="num_classes is 0; it must be at least 1"):
        models.build("resnet18", 0)
    assert build("test_resnet").logit_bias == 0 and not build("test_resnet").is_bcos


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
    assert not block.conv3.weight.any() and not net.fc.weight.any() and block.bn3.gamma.item() == 1
    he = math.sqrt(2 / (9 * 128))
    assert block.conv2.weight.std().item() == pytest.approx(he / 2, rel=0.02)
    assert net.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (49 * 64)), rel=0.03)


# ---- one's own


def tiny(num_classes):
    """A student in three lines; it can be explained at the input and at its last layer of maps."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    net.depths = {"Final": "1"}
    return net


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, "tiny", tiny)


def test_an_architecture_of_ones_own_is_built_by_its_name(own, tmp_path):
    model = build("tiny", 5)
    assert model.depths == {"Input": "preprocess", "Final": "net.1"} and not model.is_bcos
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images), model.net(images))  # without timm's pretrained_cfg, images as they are
    models.save(model, tmp_path / "tiny.safetensors")
    wider = models.build("tiny", 7, weights=tmp_path / "tiny.safetensors")
    assert torch.equal(wider.net[0].weight, model.net[0].weight) and wider(images).shape == (2, 7)
    with pytest.raises(ValueError, match="unknown model 'tinny'.*tiny"):
        models.build("tinny", 5)


def test_an_architecture_of_ones_own_is_explained_guided_distilled_and_evaluated(own):
    data = SceneBirds("train", 8, 64)
    student, teacher, images = build("tiny", 2), build("bcos_scenes", 2), torch.rand(2, 3, 64, 64)
    for step in (Guide("energy", "gradcam", "Final", 1.0), Distill(teacher, student, images, {"e2kd": 1.0})):
        before = student.net[0].weight.clone()
        training.fit(student, data, 1, 1e-2, batch_size=4, step=step)
        assert not torch.equal(student.net[0].weight, before)
    scores = training.evaluate(student, data, method="gradcam", at="Final")
    assert 0 <= scores["EPG"] <= 100


def test_an_architecture_that_was_taken_out_is_unknown(monkeypatch):
    monkeypatch.delitem(models.ARCHITECTURES, "bcos_scenes")
    with pytest.raises(ValueError, match="unknown model 'bcos_scenes'"):
        models.build("bcos_scenes", 2)


def test_a_network_without_feature_info_has_its_input_as_only_depth():
    net = torchvision.models.resnet18(num_classes=5)  # a ResNet, but not timm's
    assert models.Model("mine", 5, net).depths == {"Input": "preprocess"}


# ---- wrap: parameters are the network's own


def test_a_wrapped_network_shares_parameters_and_finds_modules_by_its_own_paths():
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(16, 2))
    wrapped = models.wrap(net, {"Final": "0"})
    assert wrapped.depths == {"Input": "", "Final": "net.0"} and wrapped.get_submodule("0") is net[0]
    assert wrapped.get_submodule(wrapped.depths["Final"]) is net[0] and wrapped.get_submodule("") is wrapped
    assert [id(p) for p in wrapped.parameters()] == [id(p) for p in net.parameters()]
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(wrapped(images), net(images))


def test_a_normalising_module_may_be_the_input():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten())
    assert models.wrap(net, {"Input": "0"}).depths["Input"] == "net.0"


def test_a_path_without_a_module_is_refused():
    with pytest.raises(ValueError, match=r"depths: 'Final' is 'layer4'; the network has no module at this path"):
        models.wrap(nn.Sequential(nn.Flatten()), {"Final": "layer4"})


# ---- depths: four stages of a CNN, four blocks of a transformer, none for an unknown network

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
    images, classes = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])
    for depth in model.depths:
        maps = explain(model, images, classes, "ixg", depth, create_graph=True, keep_modes=True).maps
        second = torch.autograd.grad(maps.square().mean().sqrt(), model.parameters(), allow_unused=True)
        norms = torch.stack([g.norm() for g in second if g is not None])
        assert norms.isfinite().all() and norms.sum() > 0, depth
