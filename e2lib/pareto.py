"""The trade-off between accuracy and localisation: networks on the Pareto front (Rao et al., ICCV 2023, section 4)."""

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from e2lib import models, training
from e2lib.datasets.files import check_value
from e2lib.disk import digest, write
from e2lib.guidance import Guide
from e2lib.training.processes import from_first

MEASURES = ("F1", "EPG", "IoU")


class ParetoArchive:
    """A folder of settings with their validation scores, and with the network of each one that no other beats.

    A point beats another if it is at least as good in each of `measures`, and better in one. One process at a time may
    write to the folder. `points` are dicts, oldest first: "setting", "scores", "file" (None once the point is beaten).
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
        """Add a point, or replace that of its setting; True if it is on the front. KeyError for a missing measure."""
        new = {"setting": setting, "scores": scores, "file": None}
        self._beats(new, new)  # KeyError before anything is written
        points = [dict(point) for point in self.points if point["setting"] != setting]
        # A beaten point has lost its network, and does not return when its rival is replaced.
        if not any(self._beats(point, new) for point in points if point["file"]):
            for point in points:
                point["file"] = None if self._beats(new, point) else point["file"]
            new["file"] = f"{digest(new)}.safetensors"
            models.save(model, self.folder / new["file"])
        write(self.folder / "archive.json", json.dumps([*points, new], indent=1))
        self.points = [*points, new]
        for file in {*self.folder.glob("*.safetensors")} - {self.folder / point["file"] for point in self.front}:
            file.unlink()
        return new in self.front

    def choose(self, measure: str, at_least: dict[str, float]) -> dict[str, Any]:
        """The point of the front with the highest `measure` among those whose scores reach the floors `at_least`.

        If none does, the point that falls short by the fewest percentage points in all. ValueError without points.
        """
        check_value(self.points, f"the points in {self.folder}", self.points, "at least one, to choose from")

        def rank(point: dict[str, Any]) -> tuple[float, float]:
            short = sum(max(0.0, floor - point["scores"][name]) for name, floor in at_least.items())
            return -short, point["scores"][measure]

        return max(self.front, key=rank)

    def load(self, point: dict[str, Any], like: models.Model) -> models.Model:
        """A copy of `like` with the weights of a point of the front; ValueError for a beaten point."""
        check_value(point["file"], "point", point["setting"], "on the front: other networks are not kept")
        model = copy.deepcopy(like)
        model.net.load_state_dict(load_file(self.folder / point["file"]))
        return model

    def _beats(self, a: dict[str, Any], b: dict[str, Any]) -> bool:
        pairs = [(a["scores"][m], b["scores"][m]) for m in self.measures]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


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
    """Fine-tune a copy of `start` with each guide by `training.fit`, and archive it after every epoch.

    Settings are the fields of the guide and "epoch". `training.evaluate` gives the scores on `val`, always with boxes.
    "seconds" is the mean training time per epoch since the start or the last resume. An interrupted call continues
    after the last finished epoch. The archive is a subfolder of `folder`, named by a hash of network, images and
    arguments. The first of several processes writes it, and all must see it.
    """
    trained = [name for name, parameter in start.named_parameters() if parameter.requires_grad]
    with torch.random.fork_rng([]):  # random transforms draw numbers when images are read
        torch.manual_seed(seed)
        about = [guides, int(epochs), float(lr), int(batch_size), int(seed), start, trained, train, val]
        folder, rank = Path(folder, from_first(models.fingerprint(about))), training.processes()[0]
    for guide in tqdm(guides, desc="settings", unit="setting", leave=False, disable=rank > 0):
        model, times, begun = copy.deepcopy(start), [], [time.perf_counter()]

        def record(epoch: int, model=model, guide=guide, times=times, begun=begun) -> dict[str, float]:
            times.append(time.perf_counter() - begun[-1])
            how = {"workers": workers, "contrast": guide.contrast, "outside": guide.outside}
            scores = training.evaluate(model, val, batch_size, guide.method, guide.at, **how)
            scores["seconds"] = sum(times) / len(times)
            if rank == 0:
                ParetoArchive(folder).add(model, guide.settings() | {"epoch": epoch}, scores)
            begun.append(time.perf_counter())
            return scores

        how = {"workers": workers, "checkpoint": folder / "guide.pt", "after_epoch": record}
        training.fit(model, train, epochs, lr, batch_size, seed, guide, **how)
    return ParetoArchive(folder)
