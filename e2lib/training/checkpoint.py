"""Checkpoints: files with everything that the next epoch of a training depends on."""

import io
from pathlib import Path

import torch
from torch.utils.data import Dataset

from e2lib.datasets.files import check_value
from e2lib.disk import replacing
from e2lib.models import fingerprint
from e2lib.training.processes import from_first, processes


class Checkpoint:
    """The file of one training: `path` with a key added to its name. With path None nothing is kept.

    The key is a digest of the start of the training: `about`, the data set, and the `parts` (module, optimizer and
    schedule). `order` draws the order of the images. ValueError for a data set without fingerprint().
    """

    def __init__(self, path: str | Path | None, about: dict, dataset: Dataset, parts: dict, order: torch.Generator):
        self.path, self.parts, self.order = None, parts, order
        if path is None:
            return
        must = "a datasets.Samples, or have a fingerprint()"
        check_value(hasattr(dataset, "fingerprint"), "dataset", type(dataset).__name__, must)
        with torch.random.fork_rng([]):  # random transforms draw numbers when images are read
            start = [about, dataset.fingerprint(), parts["module"], parts["optimizer"].state_dict()]
        # Not the schedule's state_dict, which leaves out functions.
        schedule = {name: value for name, value in vars(parts["schedule"]).items() if name != "optimizer"}
        trained = [name for name, p in parts["module"].named_parameters() if p.requires_grad]
        key = from_first(fingerprint([*start, trained, type(parts["schedule"]), schedule]))
        self.path = Path(path).with_stem(f"{Path(path).stem}-{key}")

    def resume(self) -> list[dict[str, float]]:
        """Load the file of the first process, if there is one; returns the history of the finished epochs."""
        found = self.path is not None and processes()[0] == 0 and self.path.exists()
        if not (file := from_first(self.path.read_bytes() if found else None)):
            return []
        content = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(content[name])
        self.order.set_state(content["order"])
        if processes()[1] > 1:  # the file holds the random state of the first process only
            torch.manual_seed(torch.initial_seed() + 1000 * len(content["history"]))
        else:
            torch.set_rng_state(content["rng"])
            torch.cuda.set_rng_state_all(content["cuda_rng"][: torch.cuda.device_count()])
        return content["history"]

    def save(self, history: list[dict[str, float]]) -> None:
        """The first process replaces the file, while the others wait."""
        if self.path is not None and processes()[0] == 0:
            content = {name: part.state_dict() for name, part in self.parts.items()} | {"history": history}
            content |= {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as file:
                torch.save(content | {"order": self.order.get_state()}, file)
        from_first(None)
