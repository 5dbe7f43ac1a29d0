"""Choosing an epoch by a stated rule, and the reference methods that know groups."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from e2lib import groups, models, training
from e2lib.datasets import Batch, SceneBirds, Selection, collate
from e2lib.guidance import Guide


@pytest.fixture(scope="module")
def birds():
    return SceneBirds("val", 40, size=64, correlation=0.8)


class Linear(nn.Module):
    """Two logits of the mean colour."""

    def __init__(self):
        super().__init__()
        self.frozen, self.last = nn.Linear(3, 3), nn.Linear(3, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.last(self.frozen(x.mean((2, 3))))


SCORES = [(90, 20), (95, 30), (95, 25), (80, 40)]  # adjusted mean, worst group, after each of four epochs


@pytest.mark.parametrize(
    "rule, epoch", [("last epoch", 4), ("in-distribution validation", 3), ("worst validation group", 4)]
)
def test_the_best_epoch_by_each_rule(rule, epoch, monkeypatch):
    scores = iter(SCORES)

    def evaluate(model, val, seen):
        assert (val, seen) == ("val", [3, 0, 0, 4])
        return dict(zip(("adjusted mean", "worst group"), next(scores), strict=True))

    monkeypatch.setattr(training, "evaluate", evaluate)
    model = Linear()
    frozen = model.frozen.weight.clone()
    best = groups.BestEpoch(model, "val", [3, 0, 0, 4], rule)
    for number in range(1, 5):
        nn.init.constant_(model.last.weight, number)
        best(number)
    nn.init.constant_(model.last.weight, 99)
    best.restore()
    assert best.epoch == epoch and (model.last.weight == epoch).all() and torch.equal(model.frozen.weight, frozen)


def test_the_first_epoch_may_be_the_best(monkeypatch):
    scores = [{"worst group": 50}, {"worst group": 49}]
    found = iter(scores)
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: next(found))
    best = groups.BestEpoch(Linear(), "val", [1], "worst validation group")
    best(1)
    best(2)
    assert (best.epoch, best.history) == (1, scores)
    with pytest.raises(ValueError, match="epoch is 4; it must be 3: a resumed training cannot choose among all"):
        best(4)


def test_whose_labels_are_used():
    assert groups.uses("last epoch") == groups.uses("in-distribution validation", "") == "none"
    assert groups.uses("worst validation group", "training") == "training, validation"
    assert groups.uses("worst validation group", "validation") == "validation"


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="rule is 'best'; it must be one of last epoch, in-distribution"):
        groups.BestEpoch(Linear(), None, [1], "best")


def test_rules_measure_what_evaluate_returns(birds):
    seen = [5, 0, 0, 5]
    scores = training.evaluate(Linear(), birds, seen=seen)
    assert {measure for measure in groups.RULES.values() if measure} <= scores.keys()


def test_counts(birds):
    assert groups.counts(birds) == [sum(s.group == g for s in birds) for g in range(4)]
    assert groups.counts(SceneBirds("train", 30, size=64))[1:3] == [0, 0]
    chosen = Selection(birds, np.array([3, 5, 3]))
    assert sum(groups.counts(chosen)) == 3 and chosen.group_of.tolist() == [
        birds[3].group,
        birds[5].group,
        birds[3].group,
    ]


def test_a_group_balanced_selection_has_equally_many_of_each(birds):
    fewest = min(groups.counts(birds))
    chosen = groups.group_balanced(birds, 0)
    assert groups.counts(chosen) == [fewest] * 4
    assert len(set(chosen.indices)) == 4 * fewest
    assert chosen.indices.tolist() != groups.group_balanced(birds, 1).indices.tolist()
    assert groups.counts(groups.group_balanced(SceneBirds("train", 30, size=64)))[1:3] == [0, 0]


def batch_of(birds, positions):
    return collate([birds[i] for i in positions])


def test_reweighting_makes_groups_count_alike(birds):
    model, seen = Linear(), groups.counts(birds)
    everything = batch_of(birds, range(40))
    by_group = [
        training.classify(model, batch_of(birds, np.flatnonzero(birds.group_of == g)))["classification"]
        for g in range(4)
    ]
    found = groups.Reweighted(tuple(seen))(model, everything)["classification"]
    assert found.item() == pytest.approx(sum(by_group).item() / 4, rel=1e-5)
    # groups that training does not show do not count among those that share the weight
    pair = batch_of(birds, [*np.flatnonzero(birds.group_of == 0)[:3], *np.flatnonzero(birds.group_of == 3)[:1]])
    parts = [
        training.classify(model, batch_of(birds, np.flatnonzero(birds.group_of == g)[:n])) for g, n in ((0, 3), (3, 1))
    ]
    found = groups.Reweighted((3, 0, 0, 1))(model, pair)["classification"].item()
    assert found == pytest.approx(sum(p["classification"].item() for p in parts) / 2, rel=1e-5)


def test_dfr_trains_the_last_layer_alone_on_balanced_images(birds, monkeypatch):
    torch.manual_seed(0)
    model, start = (models.build("resnet18", 2) for _ in range(2))
    trained = []
    monkeypatch.setattr(training, "fit", lambda net, data, *how: trained.append((copy.deepcopy(net), data, how)))
    result = groups.dfr(model, start, birds, 3, 0.1, 8, 1)
    net, data, how = trained[0]
    assert groups.counts(data) == [min(groups.counts(birds))] * 4 and how == (3, 0.1, 8, 1, Guide(weight=0))
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {"net.fc.weight", "net.fc.bias"}
    for name, x in result.state_dict().items():
        assert torch.equal(x, (start if name.startswith("net.fc") else model).state_dict()[name])
    assert all(p.requires_grad for p in model.parameters())


def test_group_dro_by_hand(birds):
    model, step = Linear(), groups.GroupDRO((9, 1, 2, 3), rate=1.0)
    everything = batch_of(birds, range(40))
    means = torch.stack(
        [
            training.classify(model, batch_of(birds, np.flatnonzero(birds.group_of == g)))["classification"].detach()
            for g in range(4)
        ]
    )
    q = torch.full((4,), 0.25)
    for _ in range(3):
        found = step(model, everything)["classification"]
        q = q * means.exp()
        q = q / q.sum()
        assert found.item() == pytest.approx((q * means).sum().item(), rel=1e-5)
    assert step.weights.argmax() == means.argmax()
    # a group without images in the batch keeps its weight but for the normalisation
    before = step.weights.clone()
    step(model, batch_of(birds, np.flatnonzero(birds.group_of == 0)))
    assert (step.weights[1:] / before[1:]).std() < 1e-6 < (step.weights[0] / before[0] - step.weights[1] / before[1])


def test_a_resumed_training_goes_on_with_the_weights_of_its_groups(birds, tmp_path):
    def train(step, **how):
        torch.manual_seed(0)
        model = Linear()
        training.fit(model, birds, 3, 1e-2, 10, step=step, checkpoint=tmp_path / "run.pt", **how)
        return model.last.weight, step.weights

    def stop(epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    expected = train(groups.GroupDRO((3, 1, 1, 3), rate=1.0))
    (file,) = tmp_path.iterdir()
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        train(groups.GroupDRO((3, 1, 1, 3), rate=1.0), after_epoch=stop)
    found = train(groups.GroupDRO((3, 1, 1, 3), rate=1.0))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    train(groups.GroupDRO((3, 1, 1, 3), rate=0.5))
    assert len(list(tmp_path.iterdir())) == 2


def test_steps_leave_modes_as_they_were(birds):
    model = nn.Sequential(nn.BatchNorm2d(3), Linear()).train()
    model[1].frozen.eval()
    some = batch_of(birds, range(4))
    for step in (groups.Reweighted((1, 1, 1, 1)), groups.GroupDRO((1, 1, 1, 1))):
        for _ in range(2):  # what a step remembers has no graph of the step before
            step(model, some)["classification"].backward()
        assert model[1].last.training and not model[1].frozen.training
        assert model[1].last.weight.grad is not None
        assert model[0].num_batches_tracked == 0  # in eval mode


def test_group_dro_begins_with_the_groups_that_training_shows_and_reweighting_names_others(birds):
    assert groups.GroupDRO((5, 0, 0, 1)).weights.tolist() == [0.5, 0, 0, 0.5]
    with pytest.raises(ValueError, match=r"seen is \(5, 0, 0, 1\); it must be .* also of group"):
        groups.Reweighted((5, 0, 0, 1))(Linear(), batch_of(birds, np.flatnonzero(birds.group_of == 1)))


def test_statistics_of_norm_layers_are_those_of_the_best_epoch(monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: {})
    model = nn.BatchNorm1d(2)
    best = groups.BestEpoch(model, None, [1])
    model.running_mean.fill_(3)
    best(1)
    model.running_mean.fill_(4)
    best.restore()
    assert model.running_mean.tolist() == [3, 3]


@pytest.mark.parametrize("step", [groups.Reweighted((3, 1)), groups.GroupDRO((3, 1))], ids=["reweighted", "dro"])
@pytest.mark.parametrize("group", [-1, 2])
def test_an_image_of_no_known_group_is_named(step, group):
    batch = Batch.of(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), groups=[0, group])
    with pytest.raises(ValueError, match=f"also of group {group}"):
        step(Linear(), batch)
