"""Guidance: losses by hand and by finite differences, a λ that means the same in every batch, maps of every kind."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision import tv_tensors

from e2lib import attribution, guidance, metrics, models, training
from e2lib.attribution import explain
from e2lib.datasets import Batch, Sample, SceneBirds, Scenes, Selection, collate, with_boxes
from e2lib.guidance import LOSSES, Guide, ceiling

LEFT, NONE, ALL = [[True, False], [True, False]], [[False, False], [False, False]], [[True, True], [True, True]]

# Of each map and mask: energy, l1, ppce, rrr.
BY_HAND = [
    ([[1.0, 3.0], [-5.0, 0.0]], LEFT, 3 / 4, (2 / 3 + 1 + 1) / 4, -math.log(1e-6 / 3) / 2, 0.6**2),
    ([[4.0, 1.0], [2.0, 1.0]], LEFT, 2 / 8, 1 / 4, math.log(2) / 2, 2 / 16),
    ([[-1.0, -2.0], [-3.0, -4.0]], LEFT, 1, 1 / 2, math.log(1e6), 1 / 4 + 1),
    ([[0.0, 0.0], [0.0, 0.0]], LEFT, 1, 1 / 2, math.log(1e6), 0),
    ([[4.0, 1.0], [2.0, 1.0]], NONE, 1, 1 / 2, 0, 1 + 1 / 4 + 2 / 16),
    ([[4.0, 1.0], [2.0, 1.0]], ALL, 0, 1 / 2, math.log(32) / 4, 0),
]
MAPS = torch.tensor([row[0] for row in BY_HAND]).unsqueeze(1)
MASKS = torch.tensor([row[1] for row in BY_HAND]).unsqueeze(1)
VALUES = dict(zip(("energy", "l1", "ppce", "rrr"), torch.tensor([row[2:] for row in BY_HAND]).T, strict=True))


def gradient(name, maps, masks=MASKS):
    maps = maps.clone().requires_grad_()
    (result,) = torch.autograd.grad(LOSSES[name](maps, masks).sum(), maps)
    return result


# ---- losses


@pytest.mark.parametrize("name", LOSSES)
def test_values_by_hand(name):
    assert set(LOSSES) == set(VALUES)
    torch.testing.assert_close(LOSSES[name](MAPS, MASKS), VALUES[name])
    for dtype, result in ((torch.double, torch.double), (torch.half, torch.float), (torch.bfloat16, torch.float)):
        value = LOSSES[name](MAPS.to(dtype), MASKS)
        assert value.dtype == result
        torch.testing.assert_close(value.float(), VALUES[name])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 3.0, 1e12, 1e30])
def test_the_scale_of_a_map_does_not_matter(name, scale):
    torch.testing.assert_close(LOSSES[name](MAPS * scale, MASKS), VALUES[name])
    torch.testing.assert_close(gradient(name, MAPS * scale).double() * scale, gradient(name, MAPS).double())


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 1, 3, 3, generator=generator, dtype=torch.double).requires_grad_()
    masks = torch.rand(6, 1, 3, 3, generator=generator) < 0.5
    assert gradient(name, maps, masks).any()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, masks), maps)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-40, 1e-38, 1e-31])
def test_an_all_zero_map_has_the_documented_value_and_no_gradient(name, scale):
    value = LOSSES[name](MAPS * scale, MASKS)
    inside = MASKS.float().mean((1, 2, 3))
    expected = {"energy": torch.ones(6), "l1": inside, "ppce": math.log(1e6) * (inside > 0), "rrr": torch.zeros(6)}
    torch.testing.assert_close(value, expected[name])
    assert torch.equal(gradient(name, MAPS * scale), torch.zeros_like(MAPS))


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_finite_and_within_bounds(name):
    generator = torch.Generator().manual_seed(1)
    scale = 10.0 ** torch.randint(-44, 38, (40, 1, 1, 1), generator=generator)
    maps = torch.randn(40, 1, 5, 4, generator=generator) * scale
    maps[:8] = -maps[:8].abs()
    filled = torch.tensor([0.0, 0.3, 0.7, 1.0]).repeat(10).view(-1, 1, 1, 1)
    masks = torch.rand(40, 1, 5, 4, generator=generator) < filled
    value = LOSSES[name](maps, masks)
    assert value.shape == (40,)
    assert gradient(name, maps, masks).isfinite().all()
    highest = {"energy": 1, "l1": 1, "ppce": -math.log(1e-6), "rrr": 20}[name]
    assert value.min() >= 0 and value.max() <= highest * (1 + 1e-6)
    if name == "ppce":
        assert not value[~masks.any((1, 2, 3)).flatten()].any()
    if name == "energy":
        assert (value[:8] == 1).all()


@pytest.mark.parametrize("name", LOSSES)
def test_soft_masks_are_taken_as_they_are(name):
    """By hand, of Â = (1, 1/4, 1/2, −1/4) and M = (1/2, 1, 0, 1/2); a mask of 0 and 1 is the same as a bool one."""
    torch.testing.assert_close(LOSSES[name](MAPS, MASKS.float()), VALUES[name])
    maps = torch.tensor([[[[4.0, 1.0], [2.0, -1.0]]]])
    expected = {
        "energy": 1 - (2 + 1) / 7,
        "l1": (1 / 2 + 3 / 4 + 1 / 2 + 1 / 2) / 4,
        "ppce": (math.log(4) + math.log(1e6) / 2) / 2,
        "rrr": 1 / 2 + 1 / 4 + 1 / 2 / 16,
    }
    value = LOSSES[name](maps, torch.tensor([[[[0.5, 1.0], [0.0, 0.5]]]]))
    torch.testing.assert_close(value, torch.tensor([expected[name]]))


def test_soft_masks_of_half_precision_are_counted_exactly():
    """Their sum, 90,000, is beyond float16; bfloat16 would round sums."""
    maps, masks = torch.full((1, 1, 300, 300), 0.5), torch.ones(1, 1, 300, 300)
    maps[..., 0, 0] = 1
    expected = LOSSES["ppce"](maps, masks.bool())
    assert expected == pytest.approx(math.log(2), rel=1e-4)
    for low in (torch.half, torch.bfloat16):
        torch.testing.assert_close(LOSSES["ppce"](maps, masks.to(low)), expected)


def test_energy_is_one_minus_epg():
    maps = torch.cat([MAPS, torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(2))])
    masks = torch.cat([MASKS, MASKS])
    torch.testing.assert_close(LOSSES["energy"](maps, masks), 1 - metrics.epg(maps, masks)[:, 0])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (MAPS[0], MASKS[0], r"maps is torch.float32 \(1, 2, 2\)"),
        (MAPS.expand(-1, 2, -1, -1), MASKS.expand(-1, 2, -1, -1), r"maps is torch.float32 \(6, 2, 2, 2\)"),
        (MAPS.long(), MASKS, "maps is torch.int64"),
        (MAPS, MASKS.long(), "masks is torch.int64"),
        (MAPS, MASKS.float() * 255, r"masks lie in \[0, 255\]; soft masks must be in \[0, 1\]"),
        (MAPS, MASKS[:, 0], r"masks is torch.bool \(6, 2, 2\)"),
        (MAPS, MASKS[:1], r"it must be bool or float \(6, 1, H, W\)"),
    ],
)
def test_wrong_maps_and_masks_are_named(name, maps, masks, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name](maps, masks)


# ---- the step


def tiny(classes=2):
    """A small network whose norm layer has statistics of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 5, 4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )
    net[1].running_mean.normal_(0, 0.1)
    net[1].running_var.uniform_(0.5, 1.5)
    return net.double()


def batch(dataset, positions=None):
    result = collate([dataset[i] for i in (range(len(dataset)) if positions is None else positions)])
    return replace(result, images=result.images.double())


def parameter_gradient(model, loss):
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


# Each image shows one bird, so that the random choice of a class is no choice.
BIRDS = SceneBirds("train", 8, 64)
SOME = Selection(BIRDS, np.arange(8), np.array([1, 1, 0, 0, 1, 0, 0, 0], bool))  # batches of 2 hold 2, 0, 1, 0


def localisation(model, dataset, loss):
    """L_loc of each annotated image, every image alone."""
    values = []
    for i in range(len(dataset)):
        one = batch(dataset, [i])
        if one.annotated[0]:
            classes = one.box_labels[0]
            maps = explain(model, one.images, classes, create_graph=True).maps
            values.append(LOSSES[loss](maps, one.class_masks(classes)))
    return torch.cat(values)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("dataset", "fraction"), [(BIRDS, 1.0), (SOME, 3 / 8)], ids=["all", "some"])
def test_lambda_depends_on_neither_batch_size_nor_annotated_fraction(loss, dataset, fraction):
    model, guide = tiny(), Guide(loss, weight=0.3, fraction=fraction)
    values = localisation(model, dataset, loss)
    assert len(values) == 8 * fraction
    expected = parameter_gradient(model, 0.3 * values.mean())
    assert expected.abs().max() > 0
    for size in (1, 2, 4, 8):
        terms = [guide(model, batch(dataset, range(i, i + size)))["guidance"] for i in range(0, 8, size)]
        mean = torch.stack(terms).mean()
        torch.testing.assert_close(mean, 0.3 * values.mean())
        torch.testing.assert_close(parameter_gradient(model, mean), expected)


@pytest.mark.parametrize(("dataset", "fraction"), [(BIRDS, 1.0), (SOME, 3 / 8)], ids=["all", "some"])
@pytest.mark.parametrize("size", [4, 8])
def test_the_weight_of_a_sum_over_the_batch_is_converted_as_documented(dataset, fraction, size):
    model, weight_of_sum = tiny(), 0.02
    part = Selection(dataset, np.arange(size))
    total = weight_of_sum * localisation(model, part, "energy").sum()
    guide = Guide(weight=weight_of_sum * fraction * size, fraction=fraction)
    ours = parameter_gradient(model, guide(model, batch(part))["guidance"])
    torch.testing.assert_close(ours, parameter_gradient(model, total))


@pytest.fixture
def explained(monkeypatch):
    """The images and targets of each call of `explain`."""
    calls = []

    def spy(model, images, targets, *args, **kwargs):
        calls.append((images, targets))
        return explain(model, images, targets, *args, **kwargs)

    monkeypatch.setattr(guidance, "explain", spy)
    return calls


def test_only_annotated_images_are_explained(explained):
    model, some = tiny(), batch(SOME)
    Guide()(model, some)
    ((images, targets),) = explained
    assert torch.equal(images, some.images[some.annotated])
    assert torch.equal(targets, torch.cat(some.box_labels)[some.annotated])


def test_nothing_is_explained_with_weight_0_without_annotated_images_and_without_boxes(explained):
    model, some = tiny(), batch(SOME)
    boxless = replace(
        some, boxes=[b[:0] for b in some.boxes], box_labels=[labels[:0] for labels in some.box_labels], masks=None
    )
    for guide, images in ((Guide(weight=0), some), (Guide(), batch(SOME, [2, 3])), (Guide(), boxless)):
        terms = guide(model, images)
        assert terms["guidance"] == 0
        assert parameter_gradient(model, terms["classification"] + terms["guidance"]).abs().max() > 0
    assert not explained


@pytest.mark.parametrize("annotated", [[True] * 8, [False] * 8, [False, True] * 4, [True] * 7 + [False]])
def test_classification_is_that_of_an_ordinary_forward_in_eval_mode(annotated):
    model, images = tiny().train(), replace(batch(BIRDS), annotated=torch.tensor(annotated))
    ours = Guide()(model, images)["classification"]
    plain = F.binary_cross_entropy_with_logits(model.eval()(images.images).float(), images.labels.float())
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(parameter_gradient(model, ours), parameter_gradient(model, plain))


@pytest.mark.parametrize("dataset", [BIRDS, SOME], ids=["all", "some"])
def test_statistics_and_modes_stay(dataset):
    model = tiny().train()
    model[0].eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    terms = Guide()(model, batch(dataset))
    sum(terms.values()).backward()
    assert [m.training for m in model.modules()] == [True, False, True, True, True, True, True, True]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    model[6].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Guide()(model, batch(dataset))
    assert [m.training for m in model.modules()] == [True, False, True, True, True, True, True, True]


def labelled(*box_labels, annotated=None, classes=9):
    """A batch of grey 4 x 4 images with these labels of boxes."""
    count = len(box_labels)
    return Batch(
        images=torch.full((count, 3, 4, 4), 0.5),
        labels=torch.ones(count, classes, dtype=torch.uint8),
        boxes=[torch.tensor([[0.0, 0, 2, 2]]).repeat(len(labels), 1) for labels in box_labels],
        box_labels=[torch.tensor(labels, dtype=torch.int64) for labels in box_labels],
        masks=None,
        groups=torch.full((count,), -1),
        annotated=torch.tensor([True] * count if annotated is None else annotated),
        names=[str(i) for i in range(count)],
        size=(4, 4),
    )


def test_dropout_of_channels_serves_logits_and_map_and_is_gone_afterwards():
    """Of a linear head on pooled channels: without a channel, or with twice the others, by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double()
    some = batch(BIRDS, [0, 1])
    torch.manual_seed(5)
    classes = Guide.choose(some)
    kept = F.dropout2d(model[0](some.images), 0.5)
    assert 0 < (kept == 0).all(3).all(2).sum() < 8
    torch.manual_seed(5)
    terms = Guide("rrr", "ixg", "0", 1.0, dropout=0.5)(model, some)
    logits = model[3](kept.mean((2, 3)))
    plain = F.binary_cross_entropy_with_logits(logits.float(), some.labels.float())
    maps = (kept * model[3].weight[classes][:, :, None, None]).sum(1, keepdim=True)
    assert terms["classification"].item() == pytest.approx(plain.item())
    assert terms["guidance"].item() == pytest.approx(guidance.rrr(maps, some.class_masks(classes)).mean().item())
    assert not model[0]._forward_hooks


def test_dropout_of_the_image_is_refused():
    for net in (tiny(), models.wrap(tiny())):
        with pytest.raises(ValueError, match="at is 'Input', the image itself"):
            Guide(dropout=0.5)(net, batch(BIRDS))


def test_a_distributed_network_is_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"DistributedDataParallel\(training.StepModule\(net, step\)\)"):
            Guide()(nn.parallel.DistributedDataParallel(tiny()), batch(BIRDS))
    finally:
        torch.distributed.destroy_process_group()


def test_a_training_is_known_by_settings_and_functions(monkeypatch):
    def scaled(factor):
        return lambda maps, masks: factor * outside_sum(maps, masks)

    guides = [Guide(), Guide(weight=0.2), Guide(scaled(1)), Guide(scaled(2)), Guide(outside_sum)]
    guides += [Guide(classification=lambda z, y: (z - y).abs()), Guide(classification=lambda z, y: (z - y).square())]
    known = {guide.fingerprint() for guide in guides}
    assert len(known) == len(guides) and Guide(scaled(2)).fingerprint() in known
    for table, name, change in (
        (LOSSES, "energy", {}),
        (attribution.METHODS, "ixg", {}),
        (guidance.CLASSIFICATION, "bce", {}),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(table, name, {"ixg": attribution.METHODS["gradcam"]}.get(name, outside_sum))
            assert Guide(**change).fingerprint() not in known
    used = Guide()
    used(tiny(), batch(BIRDS))
    assert used.fingerprint() == Guide().fingerprint()


def test_dropout_of_tokens_is_refused():
    with pytest.raises(ValueError, match="dropout is 0.5; it must be 0 for tokens, as at 'Final'"):
        Guide("energy", "ixg", "Final", 1.0, dropout=0.5)(models.build("test_vit", 2), collate(list(BIRDS)))


def test_classes_are_chosen_among_those_with_boxes_of_annotated_images():
    classes = Guide.choose(labelled([4], [], [4], [7, 7], annotated=[True, True, False, True]))
    assert classes.dtype == torch.int64
    assert classes.tolist() == [4, -1, -1, 7]


def test_the_choice_is_uniform_over_classes_and_follows_the_global_generator():
    images = labelled(*[[3, 5, 3, 3, 8]] * 1500)
    torch.manual_seed(0)
    first = Guide.choose(images)
    counts = first.bincount(minlength=9)
    assert counts[[3, 5, 8]].sum() == 1500
    assert ((counts[[3, 5, 8]] - 500) ** 2 / 500).sum() < 13.8  # the 99.9 % quantile of chi-square with 2 degrees
    second = Guide.choose(images)
    torch.manual_seed(0)
    assert torch.equal(Guide.choose(images), first) and not torch.equal(first, second)


@pytest.mark.parametrize("outside", [False, True])
def test_the_contrast_is_explained_and_the_outside_of_boxes_guided(outside, explained):
    model, some = tiny(), batch(BIRDS)
    found = Guide(loss="rrr", weight=1, contrast=True, outside=outside)(model, some)["guidance"]
    classes = torch.cat(some.box_labels)
    difference = F.one_hot(classes, 2) - F.one_hot(1 - classes, 2)
    assert torch.equal(explained[0][1](torch.zeros(8, 2))[:, 0], difference.float())
    masks = some.class_masks(classes)
    maps = explain(model, some.images, difference.double()).maps
    expected = guidance.rrr(maps, ~masks if outside else masks).mean()
    assert found.item() == pytest.approx(expected.item())


def outside_sum(maps, masks):
    """A loss of one's own."""
    return (maps * ~masks).abs().sum((1, 2, 3))


def test_the_loss_may_be_a_function_or_a_line_in_the_table(monkeypatch):
    model, some = tiny(), batch(BIRDS)
    classes = torch.cat(some.box_labels)
    expected = outside_sum(explain(model, some.images, classes).maps, some.class_masks(classes)).mean().item()
    monkeypatch.setitem(LOSSES, "mine", outside_sum)
    for loss in (outside_sum, "mine"):
        assert Guide(loss, weight=1)(model, some)["guidance"].item() == pytest.approx(expected)
    assert "loss='outside_sum'," in repr(Guide(outside_sum)) and "at='Final'" in repr(Guide(at="Final"))


def test_the_classification_may_be_cross_entropy_or_a_function():
    model, some = tiny().eval(), batch(SOME)
    logits = model(some.images).float()
    index = some.labels.argmax(1)
    expected = F.cross_entropy(logits, index)
    torch.testing.assert_close(Guide(classification="cross_entropy")(model, some)["classification"], expected)
    torch.testing.assert_close(
        Guide(classification="cross_entropy")(model, replace(some, labels=index))["classification"], expected
    )
    torch.testing.assert_close(
        Guide(classification=lambda z, y: (z * y).sum())(model, some)["classification"],
        logits.gather(1, index[:, None]).sum(),
    )
    several = replace(some, labels=torch.ones_like(some.labels))
    with pytest.raises(ValueError, match="cross_entropy needs 1"):
        Guide(classification="cross_entropy")(model, several)


def test_masks_may_be_the_segmentation_and_images_without_are_not_explained(explained):
    model, some = tiny(), batch(BIRDS)
    for soft in (False, True):
        masks = [mask.double() * 0.7 if soft else mask for mask in some.masks]
        there = replace(some, masks=[None, None, *masks[2:]])
        classes = torch.cat(some.box_labels)[2:]
        maps = explain(model, some.images[2:], classes).maps
        expected = guidance.energy(maps, torch.stack(masks[2:])).sum() / 8
        found = Guide(weight=1, masks="segmentation")(model, there)["guidance"]
        torch.testing.assert_close(found, expected)
    explained.clear()
    assert Guide(masks="segmentation")(model, replace(some, masks=None))["guidance"] == 0 and not explained


def test_with_keep_modes_norms_see_the_whole_batch_once_and_learn():
    model, some = tiny().train(), batch(SOME)
    model[3].p = 0.0
    twin = tiny().train()
    twin[3].p = 0.0
    classes = Guide.choose(some)
    logits, maps = explain(twin, some.images, classes, create_graph=True, keep_modes=True)
    values = guidance.energy(maps[some.annotated], some.class_masks(classes)[some.annotated])
    terms = Guide(weight=0.5, fraction=3 / 8, keep_modes=True)(model, some)
    torch.testing.assert_close(terms["guidance"], 0.5 * values.mean())
    expected = F.binary_cross_entropy_with_logits(logits.float(), some.labels[torch.arange(8)].float())
    torch.testing.assert_close(terms["classification"], expected)
    assert model[1].num_batches_tracked == 1 and model.training
    torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)
    Guide(keep_modes=True)(model, batch(SOME, [2, 3]))  # nothing to explain: one plain pass
    assert model[1].num_batches_tracked == 2


def test_training_without_boxes_is_said_once(recwarn):
    model, boxless = tiny(), batch(Selection(BIRDS, np.arange(8), np.zeros(8, bool)))
    few, guide = Guide(fraction=0.01), Guide()
    for _ in range(4):
        few(model, boxless)
        guide(model, boxless)
    assert [str(w.message) for w in recwarn if "Guide has found no boxes" in str(w.message)] == [
        "Guide has found no boxes, although fraction=1.0 of all images should have some: it trains without guidance"
    ]
    found = Guide()
    found(model, batch(BIRDS))
    for _ in range(4):
        found(model, boxless)
    assert len([w for w in recwarn if "Guide has found no boxes" in str(w.message)]) == 1


def test_any_network_is_guided_also_in_a_wrapper_and_in_bfloat16():
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=2)
    some = collate(list(BIRDS))
    terms = {}
    for model in (net, torch.optim.swa_utils.AveragedModel(net), models.wrap(net, depths={"Final": "layer4"})):
        at = "Final" if hasattr(model, "depths") else "layer4"
        terms[type(model).__name__] = Guide(method="gradcam", at=at, weight=1, absolute=True)(model, some)
    for found in terms.values():
        torch.testing.assert_close(found, terms["ResNet"])
    with torch.autocast("cpu", torch.bfloat16):
        low = Guide(method="ixg", at="layer4", weight=1)(net, some)
    high = Guide(method="ixg", at="layer4", weight=1)(net, some)
    assert {term.dtype for term in low.values()} == {torch.float32}
    torch.testing.assert_close(low, high, rtol=0.02, atol=0.02)


def silent():
    """A network with positive activations (module 1), none of which speaks for class 0."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net[4].weight.data = torch.tensor([[-1.0], [1.0]]) * torch.rand(2, 4)
    return net.double()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_map_that_died_has_a_gradient_only_before_the_rectifier_of_gradcam(loss):
    model, images = silent(), labelled([0], [0], classes=2)
    images.images = torch.rand(2, 3, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))

    def size(**options):
        guide = Guide(loss, at="1", weight=1.0, **options)
        return parameter_gradient(model, guide(model, images)["guidance"]).abs().max().item()

    assert not explain(model, images.images, torch.tensor([0, 0]), "gradcam", "1").maps.any()
    assert size(method="gradcam") == 0
    assert size(method="gradcam", absolute=True) == 0
    assert (size(method="ixg") > 0) == (loss == "rrr")  # which takes negative attribution too
    assert size(method="ixg", absolute=True) > 0
    # The sign does not matter to |A|: with the other class, whose map is alive, it is the plain map.
    images.box_labels = [torch.tensor([1]), torch.tensor([1])]
    assert size(method="ixg") == pytest.approx(size(method="ixg", absolute=True))
    assert size(method="gradcam") > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "l2"}, "loss is 'l2'; it must be one of energy, l1, ppce, rrr"),
        ({"method": "occlusion"}, "method is 'occlusion'; it must be one of ixg, "),
        ({"method": "gradcam++"}, r"method is 'gradcam\+\+'"),
        ({"weight": -0.1}, "weight is -0.1; it must be 0 or more"),
        ({"weight": math.inf}, "weight is inf"),
        ({"weight": math.nan}, "weight is nan"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"fraction": 0.0}, r"fraction is 0.0; it must be in \(0, 1\]"),
        ({"fraction": 1.1}, "fraction is 1.1"),
        ({"fraction": math.nan}, "fraction is nan"),
        ({"classification": "ce"}, "classification is 'ce'; it must be one of bce, cross_entropy"),
        ({"masks": len}, "masks is .*; it must be one of boxes"),
        ({"method": len}, "method is .*; it must be one of ixg"),
        ({"masks": "circles"}, "masks is 'circles'; it must be one of boxes, segmentation"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Guide(**change)


# ---- networks of every kind

KINDS = [
    *(
        ("resnet10t", method, at)
        for method in ("ixg", "integrated_gradients", "gradcam")
        for at in ("Input", "Mid1", "Mid2", "Mid3", "Final")
    ),
    ("xdnn_resnet18", "ixg", "Input"),
    ("vit_tiny_patch16_224", "ixg", "Input"),
    ("vit_tiny_patch16_224", "ixg", "Final"),
    ("bcos_scenes", "bcos", "Input"),
    ("bcos_simple_vit_ti_patch16_224", "bcos", "Input"),
]


@pytest.mark.parametrize(("name", "method", "at"), KINDS)
def test_guidance_trains_every_kind_of_network(name, method, at, monkeypatch):
    monkeypatch.setattr(guidance, "explain", partial(explain, steps=3))
    torch.manual_seed(0)
    model = models.build(name, 10).train()
    with torch.no_grad():
        for p in model.parameters():  # some begin at zero, where maps vanish
            p.add_(0.02 * torch.randn_like(p))
    images = collate([Scenes("train", 4, 64)[i] for i in range(4)])
    optimizer, guide = torch.optim.Adam(model.parameters(), 1e-4), Guide("energy", method, at, weight=1.0)
    terms = guide(model, images)
    gradients = torch.autograd.grad(terms["guidance"], list(model.parameters()), retain_graph=True, allow_unused=True)
    sizes = torch.stack([g.abs().max() for g in gradients if g is not None])
    assert sizes.isfinite().all() and sizes.max() > 0
    sum(terms.values()).backward()
    optimizer.step()
    with torch.no_grad():
        assert all(p.isfinite().all() for p in model.parameters())
        assert model.eval()(images.images).isfinite().all()


def test_guided_training_moves_attribution_into_the_boxes():
    dataset = Scenes("train", 32, 64)
    scores = []
    for weight in (0.0, 1.0):
        model = models.build("bcos_scenes", 10, weights="scenes")
        guide = Guide(method="bcos", weight=weight)
        history = training.fit(model, dataset, epochs=3, lr=1e-3, batch_size=8, step=guide)
        assert history[-1]["classification"] < history[0]["classification"]
        scores.append(training.evaluate(model, dataset, method="bcos")["EPG"])
    assert history[-1]["guidance"] < history[0]["guidance"]
    assert scores[1] > scores[0] + 5


def test_few_annotated_images_train_too():
    dataset = with_boxes(Scenes("train", 16, 64), 1 / 16)
    history = training.fit(tiny(10).float(), dataset, epochs=2, lr=1e-3, batch_size=4, step=Guide(fraction=1 / 16))
    assert all(0 < epoch["guidance"] <= 0.1 for epoch in history)  # λ times a mean of energies, each at most 1


# ---- the resolution's own limit


def test_ceiling_by_hand():
    box = torch.tensor([[0.0, 0, 3, 2]])  # three columns, two rows
    sample = Sample(
        image=tv_tensors.Image(torch.zeros(3, 4, 4, dtype=torch.uint8)),
        labels=torch.tensor([0, 1], dtype=torch.uint8),
        boxes=tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(4, 4)),
        box_labels=torch.tensor([1]),
        masks=None,
        group=-1,
        name="square",
    )
    model = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    # Cells (1, 1/2) above (0, 0). At 4 x 4 the columns are 1, 7/8, 5/8, 1/2, times 1, 3/4, 1/4, 0 down the rows.
    expected = (1 + 7 / 8 + 5 / 8) * (1 + 3 / 4) / (3 * 2)
    assert ceiling(model, [sample], "0") == pytest.approx(100 * expected)
    # The other image's box is everything, and the one without label and box does not count.
    full = replace(sample, boxes=tv_tensors.wrap(torch.tensor([[0.0, 0, 4, 4]]), like=sample.boxes))
    without = replace(sample, labels=sample.labels * 0, boxes=sample.boxes[:0], box_labels=sample.box_labels[:0])
    for size in (1, 2, 64):
        assert ceiling(model, [sample, full, without], "0", size) == pytest.approx(100 * (expected + 1) / 2)
    assert ceiling(nn.Sequential(nn.Identity(), model), [sample], "0") == 100


def test_ceiling_changes_no_random_numbers_and_works_in_inference_mode():
    def noisy(sample):
        return replace(sample, image=(sample.image + torch.randint(0, 9, sample.image.shape)).byte())

    model, dataset, state = tiny().float(), Scenes("val", 3, 64, transform=noisy), torch.get_rng_state()
    with torch.inference_mode():
        assert ceiling(model, dataset, "0") == ceiling(model, dataset, "0")
    assert torch.equal(torch.get_rng_state(), state)


def test_ceiling_falls_with_resolution():
    model, dataset = models.build("resnet10t", 10).train(), Scenes("val", 8, 64)
    values = [ceiling(model, dataset, at, batch_size=3) for at in ("Input", "Mid1", "Mid2", "Mid3", "Final")]
    assert values[0] == pytest.approx(100)
    assert values == sorted(values, reverse=True) and len(set(values)) == 5 and values[-1] > 0
    assert all(m.training for m in model.modules())
    # The patches of this transformer are as large as the cells of Mid3.
    assert ceiling(models.build("vit_tiny_patch16_224", 10), dataset, "Final") == pytest.approx(values[3])
