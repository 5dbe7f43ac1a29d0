"""Networks of other libraries: the gradients of their maps equal finite differences, one image at a time too."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from e2lib import models
from e2lib.attribution import Exact, explain, predict
from e2lib.datasets import Batch
from e2lib.guidance import Guide
from e2lib.training import StepModule, classify
from tests.attribution.finite import assert_exact

SIZE = 32


def hugging_face(config, network, **options):
    return getattr(transformers, network)(getattr(transformers, config)(num_labels=3, **options))


class Clip(nn.Module):
    """An encoder of images, and texts that are known."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.GELU())
        self.texts = nn.Parameter(torch.randn(3, 6))

    def encode_image(self, images):
        return self.visual(images).mean((2, 3))

    def forward(self, images, texts):
        raise AssertionError("only encode_image is called")


class Segmentation(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Hardswish(inplace=True))
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, images):
        return {"out": F.interpolate(self.head(self.body(images)), scale_factor=2)}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.InstanceNorm2d(6, affine=True), nn.Hardsigmoid())
        self.head = nn.Linear(7, 3)

    def forward(self, images, age):
        return self.head(torch.cat([self.body(images).square().flatten(2).transpose(1, 2).mean(1), age], 1))


class Tokens(nn.Module):
    """A norm of convolutions before tokens: where torch's own gradient is wrong for one image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.norm(self.stem(images).flatten(2).transpose(1, 2)).relu().mean(1))


class Residual(nn.Module):
    """A rectifier in place, and a sum in place on the input: both change what other branches read."""

    def __init__(self):
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(3, SIZE, SIZE) / 10)
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.sigmoid, self.head = nn.ReLU(True), nn.Hardsigmoid(True), nn.Linear(4, 3)

    def forward(self, images):
        images += self.prompt
        x = self.stem(images)
        x = self.conv(self.relu(x)) + x
        x = self.conv(self.sigmoid(x)) * x
        return self.head(x.mean((2, 3)))


def mobilenet():
    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    blocks = [block(8, 3, 16, 8, True, "RE", 2), block(8, 5, 16, 8, True, "HS", 2)]
    return MobileNetV3(blocks, 16, num_classes=3)


NETWORKS = {
    "resnet": lambda: models.wrap(ResNet(BasicBlock, [1, 1, 1, 1], 3), {"Final": "layer4"}),
    "convnext": lambda: models.wrap(
        ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.1, num_classes=3), {"Final": "features.3"}
    ),
    "densenet": lambda: models.wrap(DenseNet(4, (1, 1), 8, num_classes=3), {"Final": "features"}),
    "mobilenet": lambda: models.wrap(mobilenet(), {"Final": "features"}),
    "vit": lambda: models.wrap(
        VisionTransformer(SIZE, 8, 2, 2, 16, 32, num_classes=3),
        {"Final": "encoder.layers.encoder_layer_0"},
        prefix_tokens=1,
    ),
    "swin": lambda: models.wrap(
        SwinTransformer([4, 4], 8, [1, 2], [2, 2], [2, 2], num_classes=3),
        {"Final": "features.3"},
        reshape=lambda a: a.permute(0, 3, 1, 2),
    ),
    "hugging face vit": lambda: models.wrap(
        hugging_face(
            "ViTConfig",
            "ViTForImageClassification",
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=SIZE,
            patch_size=8,
            initializer_range=0.5,
        ),
        {"Final": "vit.layers.0"},
        prefix_tokens=1,
    ),
    "hugging face resnet": lambda: models.wrap(
        hugging_face(
            "ResNetConfig",
            "ResNetForImageClassification",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
        ),
        {"Final": "resnet.encoder.stages.1"},
    ),
    "clip": lambda: models.wrap(
        Clip(), {"Final": "visual"}, logits=lambda net, x: F.normalize(net.encode_image(x)) @ net.texts.T
    ),
    "segmentation": lambda: models.wrap(
        Segmentation(), {"Final": "body"}, logits=lambda net, x: net(x)["out"].mean((2, 3))
    ),
    "two inputs": lambda: models.wrap(
        TwoInputs(), {"Final": "body"}, logits=lambda net, x: net(x, x.new_full((len(x), 1), 0.5))
    ),
    "tokens": lambda: models.wrap(Tokens(), {"Final": "stem.0"}),
    "in place": lambda: models.wrap(Residual(), {"Final": "stem"}),
    "averaged": lambda: AveragedModel(models.build("test_efficientnet", 3)),
}


def build(name):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # a head that starts at zero
            nn.init.normal_(module.weight, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
    return model.double()


def images(count, size=SIZE):
    return torch.rand(count, 3, size, size, dtype=torch.double, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("method", "at"), [("ixg", "Input"), ("gradcam", "Final")])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_maps_and_logits_equal_finite_differences(name, method, at, count):
    model, x = build(name), images(count)
    # A logit and its negative: the rectifier of Grad-CAM cannot silence both.
    targets = torch.tensor([[[1.0, 0, 0], [-1.0, 0, 0]], [[0, 1.0, 0], [0, -1.0, 0]]])[:count]
    readout = torch.randn(count, 2, SIZE, SIZE, dtype=torch.double)
    scale = explain(model, x, targets, method, at).maps.abs().mean()

    def value(create_graph=False):
        logits, maps = explain(model, x, targets, method, at, create_graph)
        return (maps * readout).sum() + scale * logits.square().sum()

    assert_exact(model, value, lambda: value(create_graph=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_a_batch_of_one_and_logits_those_of_the_network(name):
    model, x = build(name), images(2)
    targets = torch.tensor([2, 0])
    with torch.no_grad():
        logits = model.eval()(x.clone())
    for create_graph in (False, True):
        both = explain(model, x, targets, create_graph=create_graph)
        torch.testing.assert_close(both.logits, logits)
        alone = [explain(model, x[[i]], targets[[i]], create_graph=create_graph).maps for i in (0, 1)]
        torch.testing.assert_close(torch.cat(alone), both.maps)


@pytest.mark.parametrize("wrapper", [AveragedModel, nn.DataParallel])
def test_wrappers_of_torch_count_as_the_network_inside(wrapper):
    torch.manual_seed(0)
    net, x, targets = models.build("bcos_scenes", 3), images(2).float(), torch.tensor([0, 2])
    for method, at in (("ixg", "Input"), ("bcos", "Input"), ("gradcam", "Final"), ("gradient_shap", "Input")):
        bare, wrapped = (explain(m, x, targets, method, at, steps=2).maps for m in (net, wrapper(net)))
        assert torch.equal(bare, wrapped)
    with pytest.raises(ValueError, match=r"images lie in \[.*they must be in \[0, 1\]"):
        explain(wrapper(net), 255 * x, targets)


def test_distributed_networks_count_as_the_network_inside(tmp_path):
    net, x, targets = build("tokens").float(), images(2).float(), torch.tensor([0, 2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        found = explain(nn.parallel.DistributedDataParallel(net), x, targets, at="Final", create_graph=True).maps
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, explain(net, x, targets, at="Final").maps)


@pytest.mark.parametrize("training", [False, True])
def test_one_image_has_exact_parameter_gradients_of_its_logits_too(training):
    net = build("tokens").train(training)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0

    assert_exact(net, *[lambda: predict(net, images(1))[0, 1]] * 2)


def own(model, batch):
    return {"own": model(batch.images).square().mean()}


@pytest.mark.parametrize("step", [classify, own, Guide("energy", at="Final"), Guide("energy", weight=0.0)])
def test_steps_have_exact_gradients_where_one_image_passes_alone(step):
    net, count = build("tokens").float().eval(), 2 if getattr(step, "weight", 0) else 1
    boxes = [torch.tensor([[4.0, 4.0, 20.0, 20.0]])] * count
    classes = [torch.tensor([1])] * count
    labels = torch.eye(3, dtype=torch.uint8)[:count]
    batch = Batch.of(images(count).float(), labels, boxes, classes, annotated=torch.arange(count) > 0)
    found, module = [], StepModule(net, step)
    for context in (nullcontext(), Exact()):
        with context:
            loss = sum(module(batch).values())
        found.append(torch.autograd.grad(loss, net.net.stem[0].weight)[0])
    torch.testing.assert_close(*found)


class Checkpointed(nn.Module):
    def __init__(self, reentrant=False):
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head, self.whole = nn.Linear(6, 3), False

    def forward(self, images):
        x = checkpoint(lambda x: self.stem(x).relu(), images, use_reentrant=self.reentrant)
        x = checkpoint(self.body, x, use_reentrant=self.reentrant) if self.whole else self.body(x)
        return self.head(x.relu().mean((2, 3)))


def test_gradient_checkpointing_works_before_the_explained_layer_and_is_refused_behind_it():
    net, x, targets = Checkpointed().double(), images(2), torch.tensor([0, 2])
    readout = torch.randn(2, 1, SIZE, SIZE, dtype=torch.double)

    def value(create_graph=False):
        return (explain(net, x, targets, "ixg", "body", create_graph).maps * readout).sum()

    assert_exact(net, value, lambda: value(create_graph=True))
    net.whole = True
    assert explain(net, x, targets).maps.any()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        explain(net, x, targets, create_graph=True)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_layer_that_no_gradient_reaches_is_named(create_graph):
    """In a reentrant checkpoint, before one, in torch.no_grad, or beside the path to the logits."""

    class Frozen(Checkpointed):
        def forward(self, images):
            with torch.no_grad():
                x = self.body(self.stem(images))
            self.stem(images)
            return self.head(x.mean((2, 3)))

    x, net = images(2).float(), Checkpointed(reentrant=True)
    assert explain(net, x, 1, at="body", create_graph=create_graph).maps.any()  # behind it
    for network, at in ((net, "Input"), (net, "stem"), (Frozen(), "Input"), (Frozen(), "body")):
        with pytest.raises(ValueError, match="at: no gradient leads from the logits to the explained layer"):
            explain(network, x, 1, at=at, create_graph=create_graph)


def test_compiled_networks_are_refused():
    net, (x, targets) = nn.Sequential(nn.Conv2d(3, 3, SIZE), nn.Flatten()), (images(1).float(), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"torch.compile.*model\._orig_mod"):
        explain(torch.compile(net), x, targets)
    net[0].compile()
    with pytest.raises(ValueError, match=r"torch.compile"):
        explain(net, x, targets)


@pytest.mark.parametrize("method", ["ixg", "gradient_shap"])
def test_inference_mode_is_as_no_grad(method):
    net = build("tokens")
    expected = explain(net, images(2), torch.ones(2, 3, dtype=torch.double), method, steps=2).maps
    with torch.inference_mode():
        inside = build("tokens")
        for model in (net, inside):
            found = explain(model, images(2), torch.ones(2, 3, dtype=torch.double), method, steps=2).maps
            torch.testing.assert_close(found, expected)


def same_maps(net):
    x, targets = images(2).float(), torch.tensor([0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        low = explain(net, x, targets, create_graph=True).maps
        net.to(memory_format=torch.channels_last)
        last = explain(net, x.contiguous(memory_format=torch.channels_last), targets, create_graph=True).maps
    found = []
    for maps in (explain(net, x, targets, create_graph=True).maps, low, last):
        gradients = torch.autograd.grad(
            maps.float().square().sum().sqrt(), [p for p in net.parameters() if p.ndim == 4]
        )
        found.append(torch.cat([g.flatten() for g in gradients]))
    return found


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "averaged"])
def test_channels_last_and_bfloat16_give_the_same_gradients_within_their_precision(name):
    full, low, last = same_maps(build(name).float())
    assert F.cosine_similarity(full, low, 0) > 0.97 and F.cosine_similarity(full, last, 0) > 0.97


@pytest.mark.parametrize("pack", [lambda z: {"logits": z}, lambda z: (z, z + 1), lambda z: SimpleNamespace(logits=z)])
def test_outputs_in_which_logits_are_plain_are_understood(pack):
    net, (x, targets) = (
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 3)),
        (images(2).float(), torch.tensor([0, 2])),
    )

    class Packed(nn.Module):
        def forward(self, x):
            return pack(net(x))

    assert torch.equal(explain(Packed(), x, targets).maps, explain(net, x, targets).maps)


def test_errors_name_what_wrapping_would_mend():
    x, targets = images(1).float(), torch.tensor([0])
    vit, swin = NETWORKS["vit"]().net, NETWORKS["swin"]().net
    for net, changes, message in (
        (
            vit,
            {"method": "gradcam"},
            r"at is 'Input'; it must be a layer for method 'gradcam'.*at='layer4'.*models\.wrap\(net, depths=",
        ),
        (models.wrap(vit), {"method": "gradcam"}, r"at is 'Input'; it must be a layer for method 'gradcam'"),
        (TwoInputs(), {}, r"cannot be called with images alone: .*'age'; models\.wrap\(net, logits="),
        (vit, {"at": "encoder.layers.encoder_layer_0"}, r"17 tokens.*models\.wrap\(net, prefix_tokens=1\)"),
        (vit, {"at": "Final"}, r"at is 'Final'.*models\.wrap\(net, depths="),
        (swin, {"at": "features.3"}, r"channels last.*models\.wrap\(net, reshape="),
        (Segmentation(), {}, r"output has type dict; logits .*models\.wrap\(net, logits="),
    ):
        with pytest.raises(ValueError, match=message):
            explain(net, x, targets, **changes)
    with pytest.raises(ValueError, match=r"images is 'ndarray'; it must be a float tensor"):
        explain(vit, x.numpy(), targets)
