"""The form that is chosen for a network, and what a training in it gives."""

import copy
from contextlib import nullcontext

import pytest
import torch

from e2lib import models, training
from e2lib.datasets import Scenes, collate
from e2lib.guidance import Guide
from tests.training.common import GUIDED, tiny


@pytest.mark.parametrize("step", [training.classify, GUIDED], ids=["classify", "guided"])
def test_bfloat16_is_close_to_float32_and_keeps_the_parameters_type(step):
    histories = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model, inside = models.build("resnet10t", 10), []
        model.net.conv1[0].register_forward_hook(lambda _, i, output, inside=inside: inside.append(output.dtype))
        dataset = Scenes("train", 4, 64)
        histories += training.fit(model, dataset, epochs=1, lr=1e-4, batch_size=4, precision=precision, step=step)
        assert set(inside) == {torch.bfloat16 if precision == "bfloat16" else torch.float32}
        assert {p.dtype for p in model.state_dict().values() if p.is_floating_point()} == {torch.float32}
    full, low = histories
    assert low != full and low == pytest.approx(full, rel=0.03)


@pytest.mark.parametrize("precision", ["float16", "half"])
def test_other_precisions_are_refused(precision):
    with pytest.raises(ValueError, match=f"precision is '{precision}'; it must be auto, float32 or bfloat16"):
        training.fit(tiny(), Scenes("train", 2, 64), epochs=1, lr=1e-2, precision=precision)


@pytest.fixture
def able(monkeypatch):
    """A processor that computes in bfloat16."""
    monkeypatch.setattr("e2lib.training.precision.has_bfloat16", lambda device: True)


@pytest.mark.parametrize(
    ("name", "gradients", "low"),
    [
        ("resnet10t", True, True),
        ("bcos_scenes", True, True),
        ("efficientnet_lite0", True, False),  # convolves each channel alone
        ("efficientnet_lite0", False, True),
        ("test_resnet", True, False),  # small
    ],
)
def test_the_form_of_networks(able, monkeypatch, name, gradients, low):
    model = models.build(name, 10)
    expected = torch.channels_last, torch.bfloat16 if low else torch.float32
    assert training.form(model, gradients=gradients) == expected
    assert training.form(model, "float32") == (torch.channels_last, torch.float32)
    assert training.form(model, "bfloat16") == (torch.channels_last, torch.bfloat16)
    monkeypatch.setattr("e2lib.training.precision.has_bfloat16", lambda device: False)
    assert training.form(model, gradients=gradients)[1] == torch.float32


def test_heads_on_features_keep_their_form(able):
    _, head = models.split(models.build("efficientnet_lite0", 10), 64)
    assert training.form(head) == (torch.preserve_format, torch.float32)


@pytest.mark.parametrize("fails", [False, True])
def test_parameters_lie_in_channels_last_within_and_as_before_afterwards(fails):
    model = models.build("test_resnet", 10).eval()
    own = next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    before, strides = copy.deepcopy(model.state_dict()), [p.stride() for p in model.parameters()]
    with pytest.raises(KeyError) if fails else nullcontext(), training.formed(model, "bfloat16") as cast:
        assert own.is_contiguous(memory_format=torch.channels_last) and not own.is_contiguous()
        with cast():
            assert model(torch.rand(1, 3, 64, 64)).dtype == torch.bfloat16
        if fails:
            raise KeyError
    assert [p.stride() for p in model.parameters()] == strides  # also of kernels of one pixel
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("at", "method"), [("Input", "ixg"), ("Final", "gradcam")])
def test_gradients_of_a_guided_step_point_the_same_way_in_each_form(at, method):
    dataset = Scenes("train", 6, 64)
    batch, found = collate([dataset[i] for i in range(6)]), {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = models.build("resnet10t", 10)
        with training.formed(model, precision) as cast:
            with cast():
                terms = Guide(method=method, at=at)(model, batch)
            assert {term.dtype for term in terms.values()} == {torch.float32}
            terms["guidance"].backward()
        found[precision] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.isfinite(found["bfloat16"]).all()
    assert torch.cosine_similarity(*found.values(), dim=0) > 0.97


def test_methods_on_the_score_are_measured_in_float32(able):
    dataset, model = Scenes("val", 2, 64), models.build("resnet10t", 10)
    found = [training.evaluate(model, dataset, method="deeplift", precision=p) for p in ("auto", "float32")]
    assert found[0] == pytest.approx(found[1])
