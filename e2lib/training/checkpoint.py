"""Checkpoints: everything that the next epoch of a training depends on, in one file."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from e2lib.disk import digest, replacing
from e2lib.models import weights_key
from e2lib.training.processes import processes

History = list[dict[str, float]]


class Checkpoint:
    """The file of one training; with path None nothing is kept.

    `about` (name -> plain value) tells this training from others. The schedule, the data set's fingerprint and the
    network's weights, as they are at the start, are added to it. `parts` is what else the next epoch depends on; parts
    without `state_dict` have nothing to keep. `order` draws the images' order.
    Raises ValueError for a data set without fingerprint.
    """

    def __init__(
        self, path, about: dict[str, Any], dataset: Dataset, model: nn.Module, parts: dict, order: torch.Generator
    ):
        self.path, self.about, self.order = path and Path(path), dict(about), order
        if self.path is None:
            return
        self.parts = {"model": model} | {name: part for name, part in parts.items() if hasattr(part, "state_dict")}
        if not hasattr(dataset, "fingerprint"):
            raise ValueError(
                f"dataset is a {type(dataset).__name__} without fingerprint(), so that a checkpoint cannot know it; "
                "derive it from datasets.Samples, or train without checkpoint"
            )
        schedule = {name: value for name, value in parts["schedule"].state_dict().items() if name[0] != "_"}
        self.about |= {
            "images": len(dataset),
            "data": digest(dataset.fingerprint()),
            "schedule": f"{type(parts['schedule']).__name__} {schedule}",
            "trained parameters": [name for name, p in model.named_parameters() if p.requires_grad],
            "weights at the start": weights_key(model),
        }

    def resume(self) -> History:
        """Load the file, where there is one; the history of finished epochs. ValueError for another training's."""
        if self.path is None or not self.path.exists():
            return []
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, value in self.about.items():
            if (found := content.get("about", {}).get(name)) != value:
                raise ValueError(
                    f"checkpoint {self.path} was made with {name}={found!r}, not {value!r}; "
                    "delete it, or name another file"
                )
        for name, part in self.parts.items():
            part.load_state_dict(content[name])
        self.order.set_state(content["order"])
        (rank, world), done = processes(), len(content["history"])
        if world > 1:  # the file holds the first one's random state
            torch.manual_seed(self.about["seed"] + rank + 1000 * done)
        else:
            torch.set_rng_state(content["rng"])
            for device, state in enumerate(content["cuda_rng"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state, device)
        return content["history"]

    def save(self, history: History) -> None:
        """Replace the file, in the first of several processes, while the others wait."""
        rank, world = processes()
        if self.path is not None and rank == 0:
            content = {name: part.state_dict() for name, part in self.parts.items()}
            content |= {"about": self.about, "history": history, "order": self.order.get_state()}
            content |= {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as part:
                torch.save(content, part)
        if world > 1:
            dist.barrier()
