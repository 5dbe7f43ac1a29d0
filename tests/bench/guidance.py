"""What guidance costs: ratios to plain training and to plain evaluation, medians within one run; and memory."""

import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from e2lib import datasets, models, training
from e2lib.guidance import Guide
from tests.bench.readme import Row

SIZE, BATCH, ROUNDS = 224, 8, 7
LABELS = {1: 34, 2: 38, 3: 24}  # evaluated images with so many classes: 1.9 on average, as in VOC


def trainer(model: nn.Module, step: training.Step, batch: datasets.Batch) -> Callable[[], None]:
    """One step as in `training.fit`: forward, backward, clip, Adam."""
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.0)  # the weights stay as they are

    def once() -> None:
        model.train()
        loss = sum(step(model, batch).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return once


def rounds(name: str, jobs: dict[str, Callable[[], object]], count: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each job, `count` times in turn, after a round that does not count."""
    times: dict[str, list[float]] = {job: [] for job in jobs}
    for number in tqdm(range(count + 1), desc=name, unit="round", leave=False):
        for job, run in jobs.items():
            start = time.perf_counter()
            run()
            if number:
                times[job].append(time.perf_counter() - start)
    return times


def ratio(over: list[float], under: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def scenes(length: int) -> datasets.Scenes:
    """Composed photographs with one to three objects."""
    return datasets.Scenes("train", length, SIZE)


def step_times(name: str, depths: list[str], count: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of a plain step, and of guided ones at some depths, all images annotated."""
    dataset = scenes(BATCH)
    model, batch = models.build(name, len(dataset.classes)), datasets.collate([dataset[i] for i in range(BATCH)])
    method = "bcos" if model.is_bcos else "ixg"
    jobs = {"plain": trainer(model, training.classify, batch)}
    jobs |= {at: trainer(model, Guide(method=method, at=at), batch) for at in depths}
    return rounds(name, jobs, count)


def steps(name: str, limits: dict[str, float]) -> list[Row]:
    """Guided steps at the depths that have a limit, all images annotated."""
    times = step_times(name, list(limits))
    what = f"guided step at {{}} ÷ plain step, {name}, batch {BATCH}"
    return [
        (what.format(at), f"{ratio(times[at], times['plain']):.2f}", f"{limit:.2f}") for at, limit in limits.items()
    ]


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


def evaluation(name: str, limit: float) -> list[Row]:
    """F1, EPG and IoU of every present class against F1 alone."""
    whole = scenes(400)
    labels = whole.targets.sum(1)
    chosen = [i for count, images in LABELS.items() for i in (labels == count).nonzero()[:images, 0].tolist()]
    dataset = datasets.Selection(whole, np.sort(chosen))
    model, labels = models.build(name, len(dataset.classes)), dataset.targets.sum(1).float().mean().item()
    rows = []
    for size in (8, 32):
        jobs = {
            str(how): lambda how=how, size=size: training.evaluate(model, dataset, size, method=how)
            for how in (None, "ixg")
        }
        times = rounds(f"{name}, evaluation by {size}", jobs, 3)
        what = f"F1, EPG and IoU at Input ÷ F1 alone, {name}, {labels:.1f} labels an image, batch {size}"
        rows.append((what, f"{ratio(times['ixg'], times['None']):.2f}", f"{limit:.2f}"))
    return rows


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
