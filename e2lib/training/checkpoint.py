"""Checkpoints: everything that the next epoch of a training depends on, in a file whose name tells the training."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from e2lib.disk import digest, replacing
from e2lib.models import weights_key
from e2lib.training.processes import processes


class Checkpoint:
    """The file of one training, `path` with a key in its name; with path None nothing is kept.

    The key is a digest of what the training begins with: `about`, the data set's fingerprint, the schedule's state and
    the module's weights. `order` draws the images' order. Raises ValueError for a data set without fingerprint.
    """

    def __init__(self, path, about: dict[str, Any], dataset: Dataset, parts: dict[str, Any], order: torch.Generator):
        self.path, self.parts, self.order = None, parts, order
        if path is None:
            return
        if not hasattr(dataset, "fingerprint"):
            raise ValueError(f"dataset: {type(dataset).__name__} has no fingerprint(); derive it from datasets.Samples")
        with torch.random.fork_rng([]):  # random transforms draw where images are read
            known = [about, dataset.fingerprint(), type(parts["schedule"]).__name__, parts["schedule"].state_dict()]
        trained = [name for name, p in parts["module"].named_parameters() if p.requires_grad]
        key = [digest([*known, trained, weights_key(parts["module"])])]
        if processes()[1] > 1:  # the first one's: a repr may hold an address
            dist.broadcast_object_list(key)
        self.path = Path(path).with_stem(f"{Path(path).stem}-{key[0]}")

    def resume(self) -> list[dict[str, float]]:
        """Load the file, where there is one; the history of finished epochs."""
        if self.path is None or not self.path.exists():
            return []
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(content[name])
        self.order.set_state(content["order"])
        if processes()[1] > 1:  # the file holds the first one's random state
            torch.manual_seed(torch.initial_seed() + 1000 * len(content["history"]))
        else:
            torch.set_rng_state(content["rng"])
            torch.cuda.set_rng_state_all(content["cuda_rng"][: torch.cuda.device_count()])
        return content["history"]

    def save(self, history: list[dict[str, float]]) -> None:
        """Replace the file, in the first of several processes, while the others wait."""
        rank, world = processes()
        if self.path is not None and rank == 0:
            content = {name: part.state_dict() for name, part in self.parts.items()} | {"history": history}
            rng = {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as part:
                torch.save(content | rng | {"order": self.order.get_state()}, part)
        if world > 1:
            dist.barrier()
