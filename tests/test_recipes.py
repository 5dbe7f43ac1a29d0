"""The recipes of CONTRIBUTING, executed word for word from outside the package, used everywhere, and removed."""

import re
from pathlib import Path

import pytest
import torch

from e2lib import Distill, Guide, datasets, evaluate, explain, fit, models
from e2lib.attribution import METHODS
from e2lib.course import parameters
from e2lib.datasets import DATASETS
from e2lib.distillation import TERMS
from e2lib.guidance import LOSSES
from e2lib.metrics import METRICS
from e2lib.models import ARCHITECTURES

TABLES = (METHODS, LOSSES, TERMS, DATASETS, METRICS, ARCHITECTURES)
TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def added():
    """Every example, executed; afterwards the tables are as before."""
    before = [dict(table) for table in TABLES]
    torch.manual_seed(0)
    exec(compile("\n".join(EXAMPLES), "CONTRIBUTING.md", "exec"), {"__name__": "recipes"})
    new = [set(table) - set(old) for table, old in zip(TABLES, before, strict=True)]
    yield new
    for table, names in zip(TABLES, new, strict=True):
        for name in names:
            del table[name]
    assert [dict(table) for table in TABLES] == before


@pytest.fixture
def data():
    train, _, test = datasets.load_splits("stripes", None, 32, 8, 4)
    return train, test


def network(name="tiny", seed=0):
    torch.manual_seed(seed)
    return models.build(name, 2)


def test_each_recipe_adds_a_line(added):
    assert all(added) and sum(map(len, added)) >= 9


@pytest.mark.parametrize("method", ["positive", "smoothgrad"])
@pytest.mark.parametrize("at", ["Input", "Mid2"])
def test_an_attribution_is_explained_guided_distilled_and_measured(data, method, at):
    train, test = data
    model, batch = network(), datasets.collate([data[0][i] for i in range(4)])
    logits, maps = explain(model, batch.images, batch.labels, method, at, create_graph=True, steps=4)
    assert maps.shape == (4, 1, 32, 32)
    assert torch.allclose(logits, model(batch.images), atol=1e-6)
    (gradient,) = torch.autograd.grad(maps.square().mean(), model.net[0].weight)
    assert gradient.isfinite().all() and gradient.any()
    before = model.net[0].weight.clone()
    fit(model, train, 1, 1e-2, 4, step=Guide("energy", method, at, 1.0))
    assert not torch.equal(before, model.net[0].weight)
    fit(
        model,
        train,
        1,
        1e-2,
        4,
        step=Distill(network(seed=1), model, batch.images, {"e2kd": 1.0}, method=method, at=at),
    )
    assert 0 <= evaluate(model, test, method=method, at=at)["EPG"] <= 100


def test_smoothgrad_without_noise_would_be_input_x_gradient():
    """Its mean over many noisy points comes near, on a network that is linear but for ReLUs."""
    model, images, classes = network(), torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    smooth = explain(model, images, classes, "smoothgrad", "Mid2", steps=64).maps.flatten(1)
    plain = explain(model, images, classes, "ixg", "Mid2").maps.flatten(1)
    assert torch.nn.functional.cosine_similarity(smooth, plain).min() > 0.9


def test_a_loss_guides(data):
    train, _ = data
    model, whole = network(), datasets.collate([data[0][i] for i in range(8)])
    masks = whole.class_masks(whole.labels)
    assert LOSSES["dice"](masks.float(), masks).abs().max() == 0
    before = Guide("dice", "ixg", "Mid2", 1.0)(model, whole)["guidance"].item()
    fit(model, train, 20, 1e-2, 8, step=Guide("dice", "ixg", "Mid2", 10.0))
    assert Guide("dice", "ixg", "Mid2", 1.0)(model, whole)["guidance"].item() < before


def test_terms_distil(data):
    train, _ = data
    model, images = network(), torch.rand(2, 3, 32, 32)
    weights = {"squares": 1.0, "brightness": 1.0, "projected": 1.0, "kd": 1.0}
    step = Distill(network(seed=1), model, images, weights, temperature=2.0)
    history = fit(model, train, 10, 1e-2, 4, step=step)
    assert all(history[-1][name] < history[0][name] for name in weights)


def test_a_metric_is_measured(data):
    model, test = network(), data[1]
    scores = evaluate(model, test, method="ixg", at="Mid2", metrics=["half inside", "EPG"])
    assert 0 <= scores["half inside"] <= 100
    assert scores == evaluate(
        model, test, method="ixg", at="Mid2", metrics={n: METRICS[n] for n in ("half inside", "EPG")}
    )


def test_a_notebook_takes_the_new_names(data):
    """What a parameters cell says goes to those who look the names up."""
    cell = "# Parameters: all of them new\n"
    cell += 'data = "scenes"\nmodel = "bcos_scenes"\nguide = {"loss": "energy", "method": "ixg"}\nterms = {"kd": 1.0}\n'
    injected = '# Parameters\ndata = "stripes"\nmodel = "tiny"\n'
    injected += 'guide = {"loss": "dice", "method": "smoothgrad"}\nterms = {"squares": 1.0}\n'
    namespace = {"In": ["", cell.replace("terms =", "terms: dict[str, float] ="), injected.rstrip("\n")]}
    exec(injected, namespace)
    p = parameters.read(namespace)
    train, _, test = datasets.load_splits(p.data, None, 32, 8, 4)
    model = models.build(p.model, len(train.classes))
    fit(model, train, 1, 1e-2, 4, step=Guide(p.guide.loss, p.guide.method, "Mid2"))
    fit(model, train, 1, 1e-2, 4, step=Distill(network(seed=1), model, torch.rand(2, 3, 32, 32), vars(p)["terms"]))
    assert evaluate(model, test, method=p.guide.method, at="Mid2")["accuracy"] >= 0


def test_what_was_removed_is_unknown(data, added):
    taken = {name: METHODS.pop(name) for name in added[0]}
    try:
        with pytest.raises(ValueError, match="smoothgrad"):
            explain(network(), torch.rand(1, 3, 32, 32), 0, "smoothgrad")
    finally:
        METHODS.update(taken)
