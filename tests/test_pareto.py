"""The front by hand, what is on disk of it, and a search that is interrupted."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits

from e2lib import disk, models, training
from e2lib.datasets import Scenes
from e2lib.guidance import Guide
from e2lib.pareto import MEASURES, ParetoArchive, search
from e2lib.training.checkpoint import Checkpoint


def start(seed=0):
    torch.manual_seed(seed)
    return models.build("test_resnet", 10)


@pytest.fixture(scope="module")
def like():
    return start()


def marked(like, number):
    """The network with `number` in one of its tensors."""
    torch.nn.init.constant_(like.net.fc.bias, number)
    return like


def marks(archive):
    return [load_file(archive.folder / point["file"])["fc.bias"][0].item() for point in archive.front]


def add(archive, like, number, *scores):
    """Add point `number`, which has that number in its setting and in its network."""
    return archive.add(marked(like, number), {"number": number}, dict(zip(MEASURES, scores, strict=True)))


def numbers(points):
    return [point["setting"]["number"] for point in points]


def consistent(archive):
    """What is on disk is the front, and what a new archive reads."""
    files = {p.name for p in archive.folder.iterdir()}
    assert files == {"archive.json"} | {point["file"] for point in archive.front}
    assert len(files) == 1 + len(archive.front)
    assert ParetoArchive(archive.folder).points == archive.points
    assert marks(archive) == numbers(archive.front)


def test_domination_by_hand_and_what_is_on_disk(tmp_path, like):
    archive = ParetoArchive(tmp_path / "new" / "folder")
    assert archive.points == archive.front == []
    steps = [
        ((50, 50, 50), True, [0]),
        ((50, 50, 50), True, [0, 1]),  # equal: neither beats the other
        ((60, 40, 50), True, [0, 1, 2]),
        ((50, 50, 49), False, [0, 1, 2]),  # two ties and one worse
        ((10, 10, 90), True, [0, 1, 2, 4]),
        ((10, 9, 90), False, [0, 1, 2, 4]),
        ((60, 50, 50), True, [4, 6]),  # at least as good as 0, 1 and 2, and better in one
        ((55, 50, 50), False, [4, 6]),
        ((0, 50.5, 0), True, [4, 6, 8]),
        ((60, 51, 90), True, [9]),
    ]
    for number, (scores, on_front, front) in enumerate(steps):
        assert add(archive, like, number, *scores) == on_front
        assert numbers(archive.front) == front
        assert numbers(archive.points) == list(range(number + 1))
        consistent(archive)
        if number == 5:  # what is there from before is part of it
            archive = ParetoArchive(archive.folder)


def test_other_measures_decide_alone(tmp_path, like):
    archive = ParetoArchive(tmp_path, ["EPG"])
    assert add(archive, like, 0, 90, 50, 90) and add(archive, like, 1, 10, 51, 10)
    assert numbers(archive.front) == [1]


def test_the_network_of_a_point_is_loaded_whole(tmp_path, like):
    archive = ParetoArchive(tmp_path)
    torch.manual_seed(1)
    for number in range(3):
        model = models.build("test_resnet", 10)
        model.net.bn1.running_mean.normal_()
        archive.add(model, {"number": number}, dict(zip(MEASURES, (number, -number, 0), strict=True)))
        loaded = archive.load(archive.front[-1], like)
        assert loaded.name == "test_resnet" and loaded is not like
        assert model.state_dict().keys() == loaded.state_dict().keys()
        assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())


def test_a_measure_that_is_missing_is_named_and_nothing_is_kept(tmp_path, like):
    archive = ParetoArchive(tmp_path)
    for points in (0, 1):
        with pytest.raises(KeyError, match="EPG"):
            archive.add(like, {"number": 7}, {"F1": 99.0, "IoU": 99.0})
        assert len(archive.points) == len(archive.front) == points
        assert len(list(tmp_path.glob("*.safetensors"))) == points
        add(archive, like, points, 1, 1, 1)


def test_a_setting_that_is_there_already_is_replaced(tmp_path, like):
    archive = ParetoArchive(tmp_path)
    for number, scores in enumerate([(50, 50, 50), (60, 40, 50)]):
        add(archive, like, number, *scores)
    assert archive.add(marked(like, 1), {"number": 0}, dict.fromkeys(MEASURES, 55.0))
    assert numbers(archive.points) == [1, 0]
    assert marks(archive) == [1, 1]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    # Worse than before, and then beaten: the old network is gone too.
    assert not archive.add(marked(like, 0), {"number": 0}, dict.fromkeys(MEASURES, 40.0))
    assert numbers(archive.points) == [1, 0] and numbers(archive.front) == [1]
    consistent(archive)
    # The same scores again are no reason to be beaten by oneself.
    assert add(archive, like, 1, 60, 40, 50)
    assert numbers(archive.front) == [1]
    consistent(archive)


def test_a_front_remains_when_its_only_point_is_replaced_by_a_worse_one(tmp_path, like):
    archive = ParetoArchive(tmp_path)
    add(archive, like, 0, 50, 50, 50)
    add(archive, like, 1, 60, 60, 60)  # the network of 0 is gone
    assert add(archive, like, 1, 40, 40, 40)
    assert numbers(archive.front) == [1]
    consistent(archive)


@pytest.mark.parametrize(
    ("measure", "at_least", "expected"),
    [
        ("F1", {}, 0),
        ("EPG", {}, 1),
        ("mAP", {}, 2),
        ("EPG", {"F1": 75.0}, 1),  # a floor is reached by its own value
        ("EPG", {"F1": 75.1}, 2),
        ("F1", {"EPG": 45.0, "IoU": 36.0}, 2),
        ("IoU", {"F1": 79.0}, 0),
        # None reaches the floors: the one that misses them by least in all, not the highest measure.
        ("EPG", {"F1": 81.0}, 0),
        ("F1", {"EPG": 65.0, "IoU": 44.0}, 1),  # short by 25 + 14, 5 + 9, 15
        ("F1", {"EPG": 65.0, "IoU": 45.0}, 2),  # 25 + 15, 5 + 10, 15: the measure decides
        ("EPG", {"EPG": 65.0, "IoU": 45.0}, 1),
        ("F1", {"EPG": 65.0, "IoU": 45.0, "F1": 78.0}, 2),  # more than a floor asks makes up for nothing
        ("IoU", {"EPG": 999.0}, 1),
    ],
)
def test_choice_by_hand(tmp_path_factory, like, measure, at_least, expected):
    archive = ParetoArchive(tmp_path_factory.mktemp("archive"))
    with pytest.raises(ValueError, match=rf"the points in {archive.folder} is \[\]; it must be at least one"):
        archive.choose(measure, at_least)
    # The last two are beaten.
    for number, scores in enumerate([(80, 40, 30), (75, 60, 35), (78, 50, 45), (60, 45, 44), (75, 59, 35)]):
        named = dict(zip(MEASURES, map(float, scores), strict=True)) | {"mAP": scores[2]}
        archive.add(like, {"number": number}, named)
    assert numbers(archive.front) == [0, 1, 2]
    point = archive.choose(measure, at_least)
    assert point["setting"] == {"number": expected} and point in archive.front


@pytest.mark.parametrize("where", ["network", "index"])
def test_a_write_that_fails_leaves_the_archive_before(tmp_path, like, monkeypatch, where):
    archive = ParetoArchive(tmp_path)
    add(archive, like, 0, 50, 50, 50)
    add(archive, like, 1, 60, 40, 50)
    before = archive.points
    replace = disk.os.replace

    def fails(source, target):
        if target.suffix == (".json" if where == "index" else ".safetensors"):
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(disk.os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        add(archive, like, 2, 70, 70, 70)  # would beat both
    monkeypatch.undo()
    for found in (archive, ParetoArchive(tmp_path)):
        assert found.points == before
        assert numbers(found.front) == marks(found) == [0, 1]
    # It goes on as if nothing had been.
    archive = ParetoArchive(tmp_path)
    add(archive, like, 3, 55, 45, 50)
    add(archive, like, 2, 0, 0, 70)
    assert numbers(archive.front) == marks(archive) == [0, 1, 3, 2]
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} == {
        "archive.json",
        *(point["file"] for point in archive.front),
    }


# ---- search

GUIDES = [Guide(weight=0.0), Guide("l1", at="Mid1", weight=1.0, classification=binary_cross_entropy_with_logits)]
TRAIN, VAL = Scenes("train", 8, 64), Scenes("val", 8, 64)


def searched(folder):
    return search(start(), TRAIN, VAL, GUIDES, epochs=2, lr=1e-2, folder=folder, batch_size=4)


def without_seconds(point):
    return {name: value for name, value in point["scores"].items() if name != "seconds"}


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("search"))


def test_search_adds_a_point_per_guide_and_epoch(uninterrupted, like):
    settings = [point["setting"] for point in uninterrupted.points]
    assert [(s["weight"], s["epoch"]) for s in settings] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert Guide(**{name: value for name, value in settings[0].items() if name != "epoch"}) == GUIDES[0]
    assert settings[2]["classification"] == "binary_cross_entropy_with_logits"
    for point in uninterrupted.points:
        assert set(without_seconds(point)) == {"F1", "mAP", "EPG", "IoU", "IoU threshold", "on-object EPG"}
        assert point["scores"]["seconds"] > 0
    # The scores are those of the networks on disk, by each guide's own method and depth.
    for point in uninterrupted.front:
        guide = GUIDES[settings.index(point["setting"]) // 2]
        scores = training.evaluate(uninterrupted.load(point, like), VAL, 4, guide.method, guide.at)
        assert scores == pytest.approx(without_seconds(point))


def test_search_trains_copies_as_fit_does(uninterrupted, tmp_path):
    model, compared = start(), []
    search(model, TRAIN, VAL, GUIDES[:1], epochs=1, lr=1e-2, folder=tmp_path, batch_size=4)
    assert same(model, start())
    for guide in GUIDES:
        model = start()
        training.fit(model, TRAIN, epochs=2, lr=1e-2, batch_size=4, step=guide)
        ends = [p for p in uninterrupted.front if (p["setting"]["weight"], p["setting"]["epoch"]) == (guide.weight, 2)]
        compared += [same(model, uninterrupted.load(point, model)) for point in ends]
    assert compared and all(compared)


def test_a_finished_search_trains_nothing(uninterrupted, monkeypatch):
    index, points = (uninterrupted.folder / "archive.json").read_bytes(), uninterrupted.points
    monkeypatch.setattr(Guide, "__call__", lambda *_: 1 / 0)
    assert searched(uninterrupted.folder.parent).points == points
    assert (uninterrupted.folder / "archive.json").read_bytes() == index


def test_another_search_has_a_folder_of_its_own(uninterrupted):
    index, how = (uninterrupted.folder / "archive.json").read_bytes(), {"guides": GUIDES[:1], "epochs": 1, "lr": 1e-2}
    head, folders = training.train_head_only(start()), set()
    for change in ({}, {"lr": 0.1}, {"start": start(1)}, {"start": head}, {"val": Scenes("val", 4, 64)}):
        what = {"start": start(), "train": TRAIN, "val": VAL, "batch_size": 4} | how | change
        archive = search(folder=uninterrupted.folder.parent, **what)
        assert len(archive.points) == 1 and archive.folder != uninterrupted.folder
        folders.add(archive.folder)
    assert len(folders) == 5
    assert (uninterrupted.folder / "archive.json").read_bytes() == index


@pytest.mark.parametrize(
    ("owner", "function", "call"),
    [(training, "evaluate", 2), (Checkpoint, "save", 2), (Checkpoint, "save", 3)],
    ids=["measuring", "saving", "second guide"],
)
def test_an_interrupted_search_ends_like_one_that_was_not(
    uninterrupted, like, tmp_path, monkeypatch, owner, function, call
):
    original, calls = getattr(owner, function), []

    def stops(*args, **kwargs):
        calls.append(function)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, function, stops)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path)
    monkeypatch.undo()
    (folder,) = tmp_path.iterdir()
    assert 0 < len(ParetoArchive(folder).points) < 4
    resumed = searched(tmp_path)
    ours, theirs = (
        [(point["setting"], without_seconds(point), point["file"] is None) for point in archive.points]
        for archive in (resumed, uninterrupted)
    )
    assert ours == theirs
    for a, b in zip(resumed.front, uninterrupted.front, strict=True):
        assert same(resumed.load(a, like), uninterrupted.load(b, like))
    files = {"archive.json"} | {point["file"] for point in resumed.front}
    checkpoints = {p.name for p in folder.glob("guide-*.pt")}
    assert resumed.folder == folder and {p.name for p in folder.iterdir()} == files | checkpoints
    assert len(checkpoints) == len(GUIDES)


def test_a_beaten_point_and_another_network_are_refused(tmp_path, like):
    archive = ParetoArchive(tmp_path)
    add(archive, like, 0, 50, 50, 50)
    add(archive, like, 1, 60, 60, 60)
    with pytest.raises(ValueError, match="point is {'number': 0}; it must be on the front"):
        archive.load(archive.points[0], like)
    with pytest.raises(RuntimeError, match="size mismatch for fc.weight"):
        archive.load(archive.points[1], models.build("test_resnet", 3))
