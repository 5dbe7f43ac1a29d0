"""Depths: four stages of a CNN, four blocks of a transformer, none for an unknown network."""

import pytest
import torch

from e2lib import models
from e2lib.attribution import explain

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
