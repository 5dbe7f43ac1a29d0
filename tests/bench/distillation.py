"""What explanation-enhanced distillation costs: ratios to distilling the logits alone, medians within one run."""

import sys
import tempfile

from torch import nn

from e2lib import datasets, models, training
from e2lib.distillation import Distill
from e2lib.frozen import freeze
from tests.bench.guidance import BATCH, SIZE, ratio, rounds, trainer
from tests.bench.page import Row

KD, E2KD = {"kd": 1.0}, {"kd": 1.0, "e2kd": 1.0}


def networks(teacher: str, student: str) -> tuple[nn.Module, nn.Module, datasets.Scenes]:
    """Both, untrained, and a batch of photographs with one object."""
    dataset = datasets.Scenes("train", BATCH, SIZE, objects=1)
    return *(models.build(name, len(dataset.classes)) for name in (teacher, student)), dataset


def steps(teacher: str, student: str, method: str, at: str, limits: dict[int, float]) -> list[Row]:
    """Steps that explain each so many-th time, put together from one that explains and one that does not."""
    there, model, dataset = networks(teacher, student)
    batch = datasets.collate([dataset[i] for i in range(BATCH)])
    always, never = (
        Distill(there, model, batch.images, E2KD, method=method, at=at, every=every) for every in (1, sys.maxsize)
    )
    never.steps += 1  # its first step would explain
    jobs = {"kd": Distill(there, model, batch.images, KD), "with": always, "without": never}
    jobs = {job: trainer(model, step, batch) for job, step in jobs.items()}
    times = rounds(f"{student}, {method}", jobs)
    rows = []
    for every, limit in limits.items():
        mixed = [(a + (every - 1) * b) / every for a, b in zip(times["with"], times["without"], strict=True)]
        often = "each step" if every == 1 else f"each {every}th step"
        what = f"KD and e²KD, {method} at {at} in {often} ÷ KD, {teacher} → {student}, batch {BATCH}"
        rows.append((what, f"{ratio(mixed, times['kd']):.2f}", f"{limit:.2f}"))
    return rows


def loading(step: training.Step, dataset: datasets.Scenes) -> training.Step:
    """The step on images that it loads, crops and flips first, whatever batch it is given."""
    return lambda model, _: step(model, datasets.collate([dataset[i] for i in range(len(dataset))]))


def frozen(teacher: str, student: str, limit: float) -> list[Row]:
    """e²KD on logits and maps from a disk against KD with a live teacher, images loaded and cropped in both."""
    there, model, dataset = networks(teacher, student)
    images = datasets.collate([dataset[i] for i in range(BATCH)]).images
    cropped = datasets.with_transform(dataset, datasets.crop_transform(SIZE))
    with tempfile.TemporaryDirectory() as folder:
        jobs = {
            "kd": loading(Distill(there, model, images, KD), cropped),
            "frozen": loading(Distill(None, model, images, E2KD), freeze(there, cropped, folder, SIZE)),
        }
        times = rounds(f"{student}, frozen", {job: trainer(model, step, None) for job, step in jobs.items()})
    what = f"KD and e²KD, gradcam at Final, frozen on a disk ÷ KD, {teacher} → {student}, batch {BATCH}, with loading"
    return [(what, f"{ratio(times['frozen'], times['kd']):.2f}", f"{limit:.2f}")]
