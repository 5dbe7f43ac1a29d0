"""What guidance costs, and how much faster the chosen form is: medians of interleaved rounds; and memory."""

import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from e2lib import datasets, models, training
from e2lib.disk import keep_memory
from e2lib.guidance import Guide
from tests.bench.page import Row

SIZE, BATCH, ROUNDS = 224, 8, 7
LABELS = {1: 34, 2: 38, 3: 24}  # evaluated images with so many classes: 1.9 on average, as in VOC
Form = Callable[..., AbstractContextManager]


@contextmanager
def plainly(model: nn.Module, precision: str = "auto", gradients: bool = True) -> Iterator[Callable]:
    """In place of `training.formed`: float32, contiguous."""
    yield nullcontext


FORMS: dict[str, Form] = {"float32, contiguous": plainly, "chosen": training.formed}


def trainer(
    model: nn.Module, step: training.Step, batch: datasets.Batch, form: Form = training.formed
) -> Callable[[], float]:
    """One step as in `training.fit`: forward, backward, clip, Adam; it tells the seconds that it took."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.0)  # the weights stay as they are

    def once() -> float:
        model.train()
        with form(model) as cast:
            start = time.perf_counter()
            with cast():
                terms = step(model, batch)
            optimizer.zero_grad(set_to_none=True)
            sum(terms.values()).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            return time.perf_counter() - start

    return once


def rounds(name: str, jobs: dict[str, Callable[[], object]], count: int | None = None) -> dict[str, list[float]]:
    """Seconds of each job, `count` times in turn, after a round that does not count; a job may tell its own time."""
    times: dict[str, list[float]] = {job: [] for job in jobs}
    count = min(count or ROUNDS, ROUNDS)
    for number in tqdm(range(count + 1), desc=name, unit="round", leave=False):
        for job, run in jobs.items():
            start = time.perf_counter()
            own = run()
            if number:
                times[job].append(own if isinstance(own, float) else time.perf_counter() - start)
    return times


def ratio(over: list[float], under: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def faster(what: str, times: dict[str, list[float]], images: int, limit: float) -> Row:
    """A row of two forms: medians in ms per image, and how many times as fast the chosen one is."""
    before, now = (times[form] for form in FORMS)
    each = " → ".join(f"{1000 * statistics.median(x) / images:.1f}" for x in (before, now))
    return what, f"{each} ms per image, {ratio(before, now):.2f} ×", f"{limit:.2f} ×"


def scenes(length: int, size: int = SIZE) -> datasets.Scenes:
    """Composed photographs with one to three objects."""
    return datasets.Scenes("train", length, size)


def steps(
    name: str, ratios: dict[str, float], speeds: dict[str, float], size: int = SIZE, batch_size: int = BATCH
) -> tuple[list[Row], list[Row]]:
    """Guided steps, all images annotated: rows of ratios to the plain step, and rows of the chosen form's speed.

    ratios, speeds: limits at depths; speeds also has one of the "plain" step.
    """
    dataset = scenes(batch_size, size)
    model = models.build(name, len(dataset.classes))
    batch = datasets.collate([dataset[i] for i in range(batch_size)])
    method = "bcos" if model.is_bcos else "ixg"
    kinds = {"plain": training.classify} | {at: Guide(method=method, at=at) for at in dict.fromkeys([*ratios, *speeds])}
    kinds["plain"] = training.classify  # speeds may name it too
    jobs = {(kind, form): trainer(model, step, batch, FORMS[form]) for kind, step in kinds.items() for form in FORMS}
    times = rounds(name, jobs)
    what = f"guided step at {{}} ÷ plain step, {name}, {size} px, batch {batch_size}"
    plain = times["plain", "chosen"]
    first = [
        (what.format(at), f"{ratio(times[at, 'chosen'], plain):.2f}", f"{at_most:.2f}")
        for at, at_most in ratios.items()
    ]
    second = [
        faster(
            f"{name}, {size} px, batch {batch_size}: {'plain step' if kind == 'plain' else f'step guided at {kind}'}",
            {form: times[kind, form] for form in FORMS},
            batch_size,
            at_least,
        )
        for kind, at_least in speeds.items()
    ]
    return first, second


def shares(name: str, at: str, count: int = 3) -> list[Row]:
    """Where the time of a plain and of a guided step goes: in convolutions with their derivatives, and in all else."""
    dataset = scenes(BATCH)
    model = models.build(name, len(dataset.classes))
    batch = datasets.collate([dataset[i] for i in range(BATCH)])
    rows = []
    for kind, step in (("plain", training.classify), (f"guided at {at}", Guide(method="bcos", at=at))):
        run = trainer(model, step, batch)
        run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(count):
                run()
        parts = {True: 0.0, False: 0.0}
        for event in profile.key_averages():
            parts["conv" in event.key.lower()] += event.self_cpu_time_total / 1000 / count / BATCH
        rows.append((f"{name}, {SIZE} px, batch {BATCH}: {kind}", f"{parts[True]:.0f} ms", f"{parts[False]:.0f} ms"))
    return rows


def features(name: str, at_least: float, batch_size: int = 16) -> list[Row]:
    """What a frozen trunk makes of images, in both forms."""
    trunk, _ = models.split(models.build(name, 10), SIZE)
    dataset = scenes(batch_size)
    images = datasets.collate([dataset[i] for i in range(batch_size)]).images

    def run(form: Form) -> float:
        with form(trunk, gradients=False) as cast, torch.no_grad(), cast():
            start = time.perf_counter()
            trunk(images)
            return time.perf_counter() - start

    times = rounds(name, {label: lambda form=form: run(form) for label, form in FORMS.items()})
    return [faster(f"features of {name}, {SIZE} px", times, batch_size, at_least)]


def without_kept_memory(name: str, kept: bool, batch_size: int = 16) -> float:
    """Seconds that the features of a batch take in this process, float32 and contiguous."""
    if kept:
        keep_memory()
    torch.set_num_threads(2)
    trunk, images = models.split(models.build(name, 10), SIZE)[0], torch.rand(batch_size, 3, SIZE, SIZE)
    with torch.no_grad():
        return statistics.median(rounds(name, {"features": lambda: trunk(images)}, 5)["features"])


def kept_memory(name: str, at_least: float) -> list[Row]:
    """What `keep_memory` saves: each in a fresh process, as it cannot be undone."""
    found = {}
    for kept in (False, True):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            found[kept] = fresh.submit(without_kept_memory, name, kept).result()
    each = " → ".join(f"{1000 * x / 16:.1f}" for x in found.values())
    what = f"features of {name}, {SIZE} px, float32: memory kept by glibc"
    return [(what, f"{each} ms per image, {found[False] / found[True]:.2f} ×", f"{at_least:.2f} ×")]


def few_boxes(name: str, limit: float, batch_size: int = 16, fraction: float = 0.01) -> list[Row]:
    """An epoch with few boxes, put together from steps without an annotated image and steps with one."""
    dataset = scenes(batch_size)
    model = models.build(name, len(dataset.classes))
    without, one = (datasets.collate([dataset[i] for i in range(batch_size)]) for _ in range(2))
    without.annotated[:], one.annotated[1:] = False, False
    guide = Guide(fraction=fraction)
    jobs = {"plain": trainer(model, training.classify, without)}
    jobs |= {"without": trainer(model, guide, without), "one": trainer(model, guide, one)}
    times = rounds(f"{name}, few boxes", jobs)
    share = fraction * batch_size  # of the steps have an annotated image
    epoch = [share * a + (1 - share) * b for a, b in zip(times["one"], times["without"], strict=True)]
    what = f"epoch guided at Input, boxes for {fraction:.0%} of the images ÷ plain epoch, {name}, batch {batch_size}"
    return [(what, f"{ratio(epoch, times['plain']):.2f}", f"{limit:.2f}")]


def evaluation(name: str, limit: float, at_least: float, size: int = 8) -> tuple[list[Row], list[Row]]:
    """F1, EPG and IoU of every present class against F1 alone, and in both forms."""
    whole = scenes(400)
    labels = whole.targets.sum(1)
    chosen = [i for count, images in LABELS.items() for i in (labels == count).nonzero()[:images, 0].tolist()]
    dataset = datasets.Selection(whole, np.sort(chosen))
    model, labels = models.build(name, len(dataset.classes)), dataset.targets.sum(1).float().mean().item()

    def run(form: Form, method: str | None) -> None:
        with mock.patch.object(sys.modules["e2lib.training.evaluate"], "formed", form):
            training.evaluate(model, dataset, size, method=method)

    jobs = {label: lambda form=form: run(form, "ixg") for label, form in FORMS.items()}
    times = rounds(f"{name}, evaluation", jobs | {"F1": lambda: run(training.formed, None)}, 3)
    what = f"F1, EPG and IoU at Input ÷ F1 alone, {name}, {labels:.1f} labels per image, batch {size}"
    first = [(what, f"{ratio(times['chosen'], times['F1']):.2f}", f"{limit:.2f}")]
    return first, [faster(f"evaluation, F1 + EPG + IoU at Input, {name}, {SIZE} px", times, len(dataset), at_least)]


def many(folder: Path, count: int, distinct: int = 50) -> datasets.VOC:
    """A VOC folder with `count` images; a few are written, the others are hard links to them."""
    base = datasets.export_voc(datasets.Scenes("test", distinct, SIZE), folder, "test")
    listing = base / "ImageSets" / "Main" / "test.txt"
    written = listing.read_text().split()
    names = [f"{i:06}" for i in range(count)]
    for i, name in enumerate(names):
        for kind in ("JPEGImages/{}.jpg", "Annotations/{}.xml"):
            os.link(base / kind.format(written[i % distinct]), base / kind.format(name))
    listing.write_text("".join(f"{name}\n" for name in names))
    return datasets.load("voc", folder, "test", SIZE)


def peak_memory(name: str, count: int, batch_size: int) -> float:
    """GB by which this process's resident memory grows, at its peak, while it evaluates `count` images from disk."""

    def held() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9

    with tempfile.TemporaryDirectory() as folder:
        dataset = many(Path(folder), count)
        model = models.build(name, len(dataset.classes))
        before, peak, done = held(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                peak[0] = max(peak[0], held())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            training.evaluate(model, dataset, batch_size, method="ixg")
        finally:
            done.set()
            watcher.join()
    return peak[0] - before


def memory(name: str, limit: float, count: int, batch_size: int = 32) -> list[Row]:
    """The peak in a fresh process: memory that others had freed before would hide it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        peak = fresh.submit(peak_memory, name, count, batch_size).result()
    what = f"peak memory of evaluating {count:,} images from disk beyond the model's, {name}, batch {batch_size}"
    return [(what, f"{peak:.2f} GB", f"{limit:.2f} GB")]
