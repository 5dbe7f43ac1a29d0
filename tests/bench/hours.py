"""GPU hours that the sweeps at paper scale will take: an estimate, by the time that their steps take here.

`python -m tests.bench.hours` measures them, as a part of `make bench`, and writes the table into docs/costs.md.

The GPU is supposed to train ResNet-50 with `GPU` images a second, and to be as many times as fast as this machine with
the other networks and steps. Measuring, frozen trunks and heads on their features are left out.
"""

import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from e2lib import datasets, models, training
from e2lib.course import parameters, sweep
from e2lib.distillation import Distill, explanation
from e2lib.guidance import Guide
from tests.bench import page
from tests.bench.guidance import SIZE, rounds, trainer

GPU = 1000  # images a second of plain ResNet-50 training
# Training images; of those without a validation split of their own a tenth is for validation
IMAGES = {"voc2007": 2501, "coco": 74_505, "waterbirds100": 4795, "imagenet": 1_153_050, "sun397": 100_000}
KD, E2KD = {"kd": 1.0}, {"kd": 1.0, "e2kd": 1.0}
BATCH = 4
Step = tuple[Any, ...]  # ("plain", network), ("guided", network, depth), ("kd", teacher, student), ...
Work = Iterator[tuple[bool, Step, float]]  # whether jobs share it, the step, and how many images take it


def count(root: Any) -> int:
    """The training images of the real data in a folder."""
    return IMAGES[Path(root).name]


def of_04(p: dict[str, Any]) -> Work:
    """A baseline, every loss and λ at the first depth, one λ at the others."""
    n, t, model = count(p["data_root"]), p["schedule"], p["model"]
    yield True, ("plain", model), n * (t["start_epochs"] + t["epochs"])
    for number, at in enumerate(p["depths"]):
        trainings = 1 if number else sum(map(len, p["lambdas"].values()))
        yield False, ("guided", model, at), n * t["epochs"] * trainings


def of_05(p: dict[str, Any]) -> Work:
    """A baseline; at Input and Final boxes for shares of the images; at Input wider boxes for all."""
    n, t, model = count(p["data_root"]), p["schedule"], p["model"]
    yield True, ("plain", model), n * (t["start_epochs"] + t["epochs"])
    energy, every = len(p["lambdas"]["energy"]), sum(map(len, p["lambdas"].values()))
    for at in ("Input", "Final"):
        for share in {1.0} | {float(share) for share in p["fractions"]}:
            images = n * t["epochs"] * energy
            yield False, ("guided", model, at), images * share
            yield False, ("plain", model), images * (1 - share)
    trainings = every * len(p["dilations"]) + every - energy
    yield False, ("guided", model, "Input"), n * t["epochs"] * trainings


def of_06(p: dict[str, Any]) -> Work:
    """Three whole networks, hardly any of whose images have boxes."""
    yield False, ("plain", p["model"]), 3 * count(p["data_root"]) * p["whole"]["epochs"]


def of_07(p: dict[str, Any]) -> Work:
    """Without a teacher, KD and e²KD for each number of shots; the rivals, and four trials, for the fewest."""
    pair, e = (p["teacher"]["model"], p["student"]["model"]), p["explained"]
    for number, (shots, epochs) in enumerate(p["shots"].items()):
        images = epochs * (count(p["source_root"]) if shots == "all" else 1000 * int(shots))
        yield True, ("plain", pair[1]), images
        yield True, ("kd", *pair), images * (1 if number else 10)
        yield False, explaining(e, *pair), images * (1 if number else 4)


def of_08(p: dict[str, Any]) -> Work:
    """Three whole networks from what is frozen, or of mixed images, and rivals; guided teachers and pupils on VOC."""
    k = p["network_schedule"]
    images, w = count(p["data_root"]) * k["epochs"], p["network"]
    teacher, student, mixed = p["guided_head"]["model"], w["model"], bool(k["mixup"])
    yield False, ("plain", student), images if mixed else 2 * images  # KD from frozen logits takes no teacher
    yield False, ("kd", teacher, student), images * (mixed + 3 * k["rivals"])
    yield False, ("e2kd", teacher, student, "ixg", "Final") if mixed else ("frozen", student, "ixg", "Final"), images
    g, s, n = p["guided"], p["pupil"], count(p["scenes"]["data_root"])
    yield True, ("guided", g["model"], "Input"), 2 * n * g["epochs"]
    yield True, ("plain", s["model"]), n * s["epochs"]
    yield True, ("kd", g["model"], s["model"]), 2 * n * s["epochs"]
    yield True, ("e2kd", g["model"], s["model"], "weights", "Input"), 2 * n * s["epochs"]


def of_09(p: dict[str, Any]) -> Work:
    """A ViT in three ways, other families in two, and a student of unrelated images in two."""
    n, e, t = count(p["source_root"]), p["explained"], p["teacher"]["model"]
    images, pair = n * p["vit"]["epochs"], (t, p["vit"]["model"])
    yield True, ("plain", pair[1]), images
    yield True, ("kd", *pair), images
    yield from parts(e, pair, images)
    for student in p["students"]:
        images, pair = n * p["family_schedule"]["epochs"], (p["cnn"]["model"], student)
        yield True, ("kd", *pair), images
        yield True, ("e2kd", *pair, "gradcam", "Final"), images
    u = p["unrelated"]
    images, pair = min(p["images"], count(u["root"])) * u["epochs"], (t, u["model"])
    yield True, ("kd", *pair), images
    yield False, explaining(e, *pair), images


def of_10(p: dict[str, Any]) -> Work:
    """Without a teacher; KD and e²KD from a live teacher, from a frozen one, and the latter with crops."""
    pair, e = (p["teacher"]["model"], p["student"]["model"]), p["explained"]
    for shots, epochs in p["shots"].items():
        images = epochs * (count(p["source_root"]) if shots == "all" else 1000 * int(shots))
        yield True, ("plain", pair[1]), 3 * images
        yield True, ("kd", *pair), images
        yield False, explaining(e, *pair), images
        yield False, ("frozen", pair[1], e["method"], e["at"]), 2 * images


def explaining(e: dict[str, Any], teacher: str, student: str) -> Step:
    """The step of e²KD."""
    return "e2kd", teacher, student, e["method"], e["at"]


def parts(e: dict[str, Any], pair: tuple[str, str], images: float) -> Work:
    """e²KD in every so many-th step, and KD in the others."""
    share = 1 / e["every"]
    yield False, explaining(e, *pair), images * share
    yield True, ("kd", *pair), images * (1 - share)


OF = {"04b": of_04, "05b": of_05, "06b": of_06, "07b": of_07, "08b": of_08, "09b": of_09, "10b": of_10}


def total(path: Path) -> tuple[int, Counter[Step]]:
    """The jobs of a sweep, and how many images take each step; what jobs share is counted once."""
    jobs, images, done = sweep.plan(path), Counter(), set()
    schemas = {notebook: parameters.of(notebook) for notebook in {job.notebook for job in jobs}}
    sharing = Counter(start for job in jobs for start in job.starts)
    for job in jobs:
        values = {name: parameter.default for name, parameter in schemas[job.notebook].items()} | job.given
        # of several folders that are shared, the one that the fewest jobs share
        start = min(job.starts, key=sharing.__getitem__, default=job.key)
        for shared, step, times in OF[job.notebook.name.partition("_")[0]](values):
            if not shared or start not in done:
                images[step] += times
        done.add(start)
    return len(jobs), images


def network(name: str) -> nn.Module:
    """Untrained, of the scenes' categories."""
    return models.build(name, 10)


def seconds(step: Step, repeats: int = 2) -> float:
    """Of one image in this step, on this machine."""
    kind, name, *rest = step
    dataset = datasets.Scenes("train", BATCH, SIZE, objects=1)
    batch = datasets.collate([dataset[i] for i in range(BATCH)])
    if kind in ("plain", "guided"):
        model = network(name)
        how = {} if kind == "plain" else {"method": "bcos" if model.is_bcos else "ixg", "at": rest[0]}
        job = trainer(model, Guide(**how) if how else training.classify, batch)
    elif kind == "frozen":
        model = network(name)
        with torch.no_grad():
            _, maps = explanation(model.eval(), batch.images, torch.zeros(BATCH, dtype=torch.int64), *rest)
        batch = datasets.Batch(**{**vars(batch), "maps": maps, "logits": torch.randn(BATCH, 10)})
        job = trainer(model, Distill(None, model, batch.images, E2KD, method=rest[0], at=rest[1]), batch)
    else:
        student, *how = rest
        model = network(student)
        more = dict(zip(("method", "at"), how, strict=False))
        job = trainer(model, Distill(network(name), model, batch.images, E2KD if how else KD, **more), batch)
    [times] = rounds(" ".join(step), {"step": job}, repeats).values()
    return statistics.median(times) / BATCH


def table() -> list[page.Row]:
    """A row for each sweep at paper scale."""
    found = {path.stem: total(path) for path in sorted(Path("notebooks", "sweeps").glob("paper-*.yaml"))}
    steps = dict.fromkeys(step for _, images in found.values() for step in images)
    times = {step: seconds(step) for step in tqdm(steps, desc="steps", unit="step", leave=False)}
    slower = GPU * seconds(("plain", "resnet50"))
    rows = []
    for name, (jobs, images) in found.items():
        hours = sum(times[step] * taken for step, taken in images.items()) / slower / 3600
        rows.append((name, str(jobs), f"{float(f'{hours:.2g}'):,g}"))
    return rows


def main() -> None:
    """Measure the steps, print the table and write it into docs/costs.md."""
    page.place("GPU hours")  # before all is measured
    torch.set_num_threads(2)
    torch.manual_seed(0)
    text = page.table(("sweep", "jobs", "GPU hours, estimated"), table())
    text += "\n\nThe times of steps on two threads are scaled to a GPU that trains ResNet-50 with "
    page.write("GPU hours", f"{text}{GPU} images per second. Measuring is not included.")


if __name__ == "__main__":
    main()
