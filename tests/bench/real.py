"""Real photographs: features once, then one head per setting, on VOC2007 at 224 pixels.

`python -m tests.bench.real` prints what fills do on scenes, a table of guided heads, one of guided heads on scenes with
the exact removal test, and one of distilled heads. It keeps features in runs/real, and says so where --root has no
voc2007/VOCdevkit. λ has been looked at on test images: these numbers check the road, and choose nothing.
Heads train on several cores at a time, each on one core and in bfloat16 where the processor has it.
With --bcos FILE it compares a network of data/bcosify.py with its original instead: on the validation images of
VOC2007, or, without VOC2007, on the test images of scenes.
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from e2lib import Distill, datasets, features, models, training
from e2lib.guidance import Guide
from e2lib.training.precision import has_bfloat16
from tests.bench import page

SIZE, NAME, FOLDER = 224, "efficientnet_lite0", Path("runs/real")
PRECISION = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
MEASURES = ("F1", "mAP", "EPG", "IoU", "agreement", "still named", "control")
SETTINGS = {
    "no guidance": Guide(at="Final", weight=0),
    "energy, λ = 0.1": Guide(at="Final", weight=0.1),
    "energy, λ = 0.3": Guide(at="Final", weight=0.3),
    "energy, λ = 1": Guide(at="Final", weight=1),
    "energy on |map|, λ = 0.3": Guide(at="Final", weight=0.3, absolute=True),
    "L1, λ = 0.5": Guide("l1", at="Final", weight=0.5),
    "L1, λ = 2": Guide("l1", at="Final", weight=2),
    "energy, λ = 0.3, 10 % of the boxes": Guide(at="Final", weight=0.3, fraction=0.1),
    "energy, λ = 0.3, 1 % of the boxes": Guide(at="Final", weight=0.3, fraction=0.01),
}
ON_SCENES = ("no guidance", "energy, λ = 0.3", "energy on |map|, λ = 0.3", "L1, λ = 2")


def network(classes: int, seed: int = 0, name: str = NAME) -> models.Model:
    """A pretrained network; the seed draws its classifier."""
    torch.manual_seed(seed)
    return models.build(name, classes, "imagenet")


def extracted(*parts, name: str = NAME) -> list[features.Features]:
    """Features of data sets, of the first with mirror images."""
    trunk, _ = models.split(network(len(parts[0].classes), name=name), SIZE)
    jobs = {i: partial(features.extract, trunk, part, FOLDER, mirrored=not i) for i, part in enumerate(parts)}
    together("features", {i: lambda job=job: len(job()) for i, job in jobs.items()})
    return [job() for job in jobs.values()]  # from the folder


def trained(step, data, seed: int, channels: slice = slice(None), name: str = NAME) -> models.Head:
    """A head after six epochs with this step."""
    _, head = models.split(network(len(data.classes), seed, name), SIZE)
    head.channels = channels
    if getattr(step, "fraction", 1) < 1:
        data = datasets.with_boxes(data, step.fraction, seed)
    training.fit(head, data, 6, 1e-3, 64, seed, step, PRECISION)
    return head


def measured(head, test, removed=None, control=None, teacher=None) -> dict[str, float]:
    """The scores of a head; the control's share beside that of the removal test."""
    scores = training.evaluate(head, test, 64, "ixg", "Final", removed=removed, teacher=teacher)
    if control is not None:
        scores["control"] = training.evaluate(head, test, removed=control)["still named"]
    return scores


def together(title: str, jobs: dict[Any, Callable[[], Any]]) -> dict[Any, Any]:
    """What each job returns, by its name. As many run at a time as torch has threads, each on one thread.

    Processes are forked: jobs see what is in memory, and only their results travel. Small heads keep two threads of one
    process waiting for each other most of the time.
    """
    count, context = torch.get_num_threads(), torch.multiprocessing.get_context("fork")
    with context.Pool(count, _begin, (jobs,)) as pool:
        return dict(tqdm(pool.imap(_result, jobs), desc=title, total=len(jobs)))


def _begin(jobs) -> None:
    global JOBS
    JOBS = jobs
    torch.set_num_threads(1)


def _result(name) -> tuple[Any, Any]:
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of several processes would mix
        return name, JOBS[name]()


def by_seed(seeds: int, rows: dict[Any, Callable[[int], Any]]) -> dict[Any, Callable[[], Any]]:
    """Jobs for `together`: each row, a function of the seed, with each seed."""
    return {(name, seed): partial(row, seed) for name, row in rows.items() for seed in range(seeds)}


def table(title: str, names: Sequence[str], scores: dict[tuple[str, int], dict[str, float]]) -> None:
    """Print the mean over the seeds of each row's scores; a row's name there begins with the title."""
    found = {name: [values for (row, _), values in scores.items() if row == (title, name)] for name in names}
    columns = [m for m in MEASURES if any(m in scores[0] for scores in found.values())]
    lines = [
        (name, *(f"{statistics.mean(one[m] for one in scores):.1f}" if m in scores[0] else "–" for m in columns))
        for name, scores in found.items()
    ]
    print(page.table((title, *columns), lines), flush=True)


def guided(title: str, settings, train, test, removed, control) -> dict:
    """Rows: heads on features with the guidance of each setting."""

    def row(name, seed):
        return measured(trained(SETTINGS[name], train, seed), test, removed, control)

    return {(title, name): partial(row, name) for name in settings}


def distilled(title: str, train, test, own: slice, kept: dict[int, models.Head]) -> dict:
    """Rows: heads of EfficientNet-Lite0 that learn from a guided one of EfficientNet-Lite2, `kept` by seed."""
    few = next(iter(torch.utils.data.DataLoader(train, 2, collate_fn=datasets.collate))).images

    def row(terms, seed):
        _, head = models.split(network(20, seed), SIZE)
        head.channels = own
        step = Distill(kept[seed], head, few, terms, method="ixg", at="Final") if terms else Guide(weight=0)
        return measured(trained(step, train, seed, own), test, teacher=kept[seed])

    rows = {"teacher": lambda seed: measured(kept[seed], test), "no teacher": partial(row, {})}
    rows |= {"KD": partial(row, {"multi_label_kd": 1.0})}
    rows |= {f"KD + e²KD, λ = {x}": partial(row, {"multi_label_kd": 1.0, "e2kd": x}) for x in (1.0, 5.0)}
    return {(title, name): row for name, row in rows.items()}


def fitted(title: str, file: Path, b: float, seeds: int, size: int, train, val) -> None:
    """Heads on a B-cos network of data/bcosify.py, and on its original, after twenty epochs."""

    def row(name, weights, method):
        def scores(seed):
            torch.manual_seed(seed)
            net = models.build(name, len(train.classes), weights)
            if method == "bcos":
                models.sharpen(net, b)
            trunk, head = models.split(net, size)
            on_train, on_val = (features.extract(trunk, part, FOLDER) for part in (train, val))
            training.fit(head, on_train, 20, 3e-3, 64, seed, Guide(at="Final", weight=0))
            return training.evaluate(head, on_val, 64, method, "Final")

        return scores

    rows = {"original": row(NAME, "imagenet", "ixg"), f"B-cos, {file.name}": row(f"bcos_{NAME}", file, "bcos")}
    table(title, rows, together(title, by_seed(seeds, {(title, name): scores for name, scores in rows.items()})))


def fills() -> None:
    """What fills do where the truth is known: on embedded scenes, removal is exact."""
    data = datasets.Scenes("test", 300, 128, correlation=1.0)
    net = models.build("bcos_scenes", 10, "scenes")
    kinds = {"exact": ("scene", False), "boxes": ("boxes", False), "segments": ("segments", False)}
    kinds |= {"control, boxes": ("boxes", True), "control, segments": ("segments", True)}

    def row(by, elsewhere):
        removed = datasets.Without(data, by, elsewhere=elsewhere)
        return f"{training.evaluate(net, data, removed=removed)['still named']:.1f}", f"{len(removed)}"

    found = together("fills", {name: partial(row, *kind) for name, kind in kinds.items()})
    rows = [(name, *cells) for name, cells in found.items()]
    print(page.table(("removal on 300 embedded scenes, B-cos network", "still named", "pairs"), rows), flush=True)


def main() -> None:
    """Extract, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"), help="holds voc2007/VOCdevkit")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--bcos", type=Path, help="a file of data/bcosify.py")
    parser.add_argument("--b", type=float, default=2.0, help="the B for which data/bcosify.py has fitted the file")
    given, begin, times = parser.parse_args(), time.perf_counter(), {}

    def clock(name: str, found):
        times[name] = time.perf_counter() - begin - sum(times.values())
        print(f"{name}: {times[name]:.0f} s, {sum(times.values()):.0f} s so far", flush=True)
        return found

    place = given.root / "voc2007"
    if given.bcos:
        if place.exists():
            parts = (datasets.load("voc", place, part, SIZE) for part in ("train", "val"))
        else:
            parts = (datasets.Scenes(part, count, 128) for part, count in (("train", 4000), ("test", 1000)))
        title, size = ("VOC2007, validation", SIZE) if place.exists() else ("scenes, test", 128)
        clock("heads on both networks", fitted(title, given.bcos, given.b, given.seeds, size, *parts))
        return
    if not (place / "VOCdevkit").exists():
        print(f"skipped: {place} holds no VOCdevkit")
        return
    clock("fills on scenes", fills())
    train, test = (datasets.load("voc", place, split, SIZE) for split in ("train", "test"))
    find = {name: partial(datasets.Without, test, elsewhere=name == "control") for name in ("removed", "control")}
    removed, control = clock("finding objects", together("finding objects", find)).values()
    seen = clock("features", extracted(train, test, removed, control))
    joined = zip(seen[:2], extracted(train, test, name="efficientnet_lite2"), strict=True)
    joined = clock("features of the teacher", [features.join(*pair) for pair in joined])
    own, other = slice(0, seen[0].shape[2]), slice(seen[0].shape[2], None)
    train, test = (
        datasets.Scenes(split, count, SIZE, correlation=1.0) for split, count in (("train", 2000), ("test", 400))
    )
    scenes = clock("features of scenes", extracted(train, test, datasets.Without(test, "scene")))
    on_photographs, on_scenes = "VOC2007, half of test", "scenes, correlation 1.0, exact removal"
    teach = partial(trained, SETTINGS["energy, λ = 0.3"], joined[0], channels=other, name="efficientnet_lite2")
    rows = {"teacher": teach} | guided(on_photographs, SETTINGS, *seen)
    rows |= guided(on_scenes, ON_SCENES, *scenes, None)
    found = clock("guided heads", together("guided heads", by_seed(given.seeds, rows)))
    heads = len(found)
    table(on_photographs, SETTINGS, found)
    table(on_scenes, ON_SCENES, found)
    title, kept = "distilled, VOC2007, half of test", {seed: found["teacher", seed] for seed in range(given.seeds)}
    rows = distilled(title, *joined, own, kept)
    found = clock("distilled heads", together("distilled heads", by_seed(given.seeds, rows)))
    table(title, [name for _, name in rows], found)
    print(f"{len(seen[0])} training images, {len(seen[1])} test images; {len(removed)} and {len(control)} pairs filled")
    print(f"{heads} guided heads, measured: {times['guided heads']:.0f} s, {torch.get_num_threads()} at a time")


if __name__ == "__main__":
    main()
