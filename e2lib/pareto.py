"""The trade-off between accuracy and localisation: every network on its front is kept, and one chosen by a stated rule.

Rao et al. (ICCV 2023, section 4): train with several λ, keep each checkpoint that no other one beats in F1, EPG and IoU
on validation data, and report those on test data.
"""

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from e2lib import models, training
from e2lib.disk import replacing
from e2lib.guidance import Guide

MEASURES = ("F1", "EPG", "IoU")


class ParetoArchive:
    """Points in a folder: each a setting with its validation scores, and the network where no other point beats it.

    A point beats another when it is at least as good in every one of `measures`, and better in one. What is in the
    folder from before is part of the archive; one process at a time may write to it.

    Attributes:
        points: dicts with "setting" (dict), "scores" (dict) and "file" (None once the point is beaten), in the
            order they were added.
    """

    def __init__(self, folder: str | Path, measures: Sequence[str] = MEASURES):
        self.folder, self.measures = Path(folder), tuple(measures)
        self.folder.mkdir(parents=True, exist_ok=True)
        index = self.folder / "archive.json"
        self.points: list[dict[str, Any]] = json.loads(index.read_text()) if index.exists() else []

    @property
    def front(self) -> list[dict[str, Any]]:
        """The points that none beats."""
        return [point for point in self.points if point["file"]]

    def add(self, model: models.Model, setting: dict[str, Any], scores: dict[str, float]) -> bool:
        """Add a point; a setting that is there already is replaced. Returns whether it is on the front.

        Raises KeyError naming a measure that `scores` lacks.
        """
        for measure in self.measures:
            if measure not in scores:
                raise KeyError(measure)
        new = {"setting": setting, "scores": scores, "file": None}
        points = [dict(p) for p in self.points if p["setting"] != setting]
        if any(self._beats(p, new) for p in points if p["file"]):  # one beaten by the replaced point has no network
            self._write([*points, new])
            return False
        for point in points:
            if self._beats(new, point):
                point["file"] = None
        used = {point["file"] for point in self.points}
        new["file"] = next(name for n in range(len(used) + 1) if (name := f"{n}.safetensors") not in used)
        models.save(model, self.folder / new["file"])
        self._write([*points, new])
        return True

    def choose(self, measure: str, at_least: dict[str, float]) -> dict[str, Any]:
        """The point of the front with the highest `measure` among those whose scores reach the floors `at_least`.

        Where none does, the one that falls short of them by least (in all, percentage points). Raises ValueError for an
        empty archive.
        """
        if not self.points:
            raise ValueError(f"the archive in {self.folder} holds no points; there is nothing to choose from")

        def rank(point: dict[str, Any]) -> tuple[float, float]:
            scores = point["scores"]
            return -sum(max(0.0, floor - scores[name]) for name, floor in at_least.items()), scores[measure]

        return max(self.front, key=rank)

    def load(self, point: dict[str, Any], like: models.Model) -> models.Model:
        """The network of a point of the front, with the architecture and on the device of `like`.

        Raises ValueError for a point that is beaten, RuntimeError naming the tensors where `like` is another network.
        """
        if point["file"] is None:
            raise ValueError(f"the point {point['setting']} is not on the front: its network was not kept")
        model = copy.deepcopy(like)
        model.net.load_state_dict(load_file(self.folder / point["file"]))
        return model

    def _beats(self, a: dict[str, Any], b: dict[str, Any]) -> bool:
        pairs = [(a["scores"][m], b["scores"][m]) for m in self.measures]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    def _write(self, points: list[dict[str, Any]]) -> None:
        """Replace the index in one step, then delete the networks that it no longer names."""
        _replace(self.folder / "archive.json", points)
        self.points = points
        for file in self.folder.glob("*.safetensors"):
            if file.name not in {point["file"] for point in points}:
                file.unlink()


def _replace(path: Path, content: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1))


def search(
    start: models.Model,
    train: Dataset,
    val: Dataset,
    guides: Sequence[Guide],
    epochs: int,
    lr: float,
    folder: str | Path,
    batch_size: int = 64,
    seed: int = 0,
    workers: int = 0,
) -> ParetoArchive:
    """Fine-tune a copy of `start` with each guide, and put it into an archive after every epoch.

    Interrupted, the same call goes on after the last finished epoch. Of several processes (`training.processes`) the
    first one writes; all need to see the folder.

    Args:
        start: the network to begin with; it is not changed.
        train: Samples of one size.
        val: Samples that each epoch is measured on: `training.evaluate` by the guide's method, at its depth.
        guides: what to train with; they differ in λ, loss, depth, ...
        epochs: as for `training.fit`, as are lr, batch_size, seed and workers.
        lr: the learning rate at the start.
        folder: where the networks and checkpoints lie; its own for each search.
        batch_size: images a step.
        seed: of the order of images and the choice of classes.
        workers: processes that load images.

    Returns:
        An archive whose settings are the fields of the guides and "epoch"; "seconds" among the scores is the mean time
        of the training epochs since the start, or the last resume.

    Raises:
        ValueError: the folder belongs to a search with other guides, epochs, lr, batch_size or seed. Other networks and
            data are not recognised.
    """
    archive = ParetoArchive(folder)
    about = {"guides": [asdict(guide) for guide in guides], "epochs": int(epochs), "lr": float(lr)}
    about |= {"batch_size": int(batch_size), "seed": int(seed)}
    card = archive.folder / "search.json"
    if card.exists():
        for name, value in json.loads(card.read_text()).items():
            if value != about[name]:
                found = f"{folder} holds a search with {name}={value!r}"
                raise ValueError(f"{found}, not {about[name]!r}; name another folder")
    if training.processes()[0] == 0:
        _replace(card, about)
    rank, world = training.processes()
    bar = tqdm(guides, desc="settings", unit="setting", leave=False, disable=rank > 0)
    for number, guide in enumerate(bar):
        bar.set_postfix_str(f"{guide.loss}, λ = {guide.weight:g}, {guide.at}")
        model, archive = copy.deepcopy(start), ParetoArchive(folder)  # read anew: another process may have written
        record = _Recorder(archive, model, guide, val, batch_size, workers)
        checkpoint = archive.folder / f"{number}.pt"
        training.fit(model, train, epochs, lr, batch_size, seed, guide, "auto", workers, checkpoint, record)
    return ParetoArchive(folder) if world > 1 else archive


@dataclass
class _Recorder:
    """After an epoch: measures the network on validation data and adds it to the archive."""

    archive: ParetoArchive
    model: models.Model
    guide: Guide
    val: Dataset
    batch_size: int
    workers: int

    def __post_init__(self):
        self.times, self.begun = [], time.perf_counter()

    def __call__(self, epoch: int) -> dict[str, float]:
        self.times.append(time.perf_counter() - self.begun)
        guide = self.guide
        scores = training.evaluate(self.model, self.val, self.batch_size, guide.method, guide.at, workers=self.workers)
        scores["seconds"] = sum(self.times) / len(self.times)
        rank, world = training.processes()
        if rank == 0:
            self.archive.add(self.model, asdict(guide) | {"epoch": epoch}, scores)
        if world > 1:
            dist.barrier()
            self.archive = ParetoArchive(self.archive.folder, self.archive.measures)
        self.begun = time.perf_counter()
        return scores
