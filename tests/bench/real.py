"""Real photographs: features once, then one head per setting, on VOC2007 at 224 pixels.

`python -m tests.bench.real` prints what fills do on scenes, a table of guided heads, one of guided heads on scenes with
the exact removal test, and one of distilled heads. It keeps features in runs/real, and says so where --root has no
voc2007/VOCdevkit. λ has been looked at on test images: these numbers check the road, and choose nothing.
With --bcos FILE it compares a network of data/bcosify.py with its original instead: on the validation images of
VOC2007, or, without VOC2007, on the test images of scenes.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from e2lib import Distill, datasets, features, models, training
from e2lib.guidance import Guide
from tests.bench import page

SIZE, NAME, FOLDER, HOW = 224, "efficientnet_lite0", Path("runs/real"), {"batch_size": 64, "workers": 2}
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
    return [features.extract(trunk, part, FOLDER, mirrored=part is parts[0], **HOW) for part in parts]


def trained(step, data, seed: int, channels: slice = slice(None), name: str = NAME) -> models.Head:
    """A head after six epochs with this step."""
    _, head = models.split(network(len(data.classes), seed, name), SIZE)
    head.channels = channels
    if getattr(step, "fraction", 1) < 1:
        data = datasets.with_boxes(data, step.fraction, seed)
    training.fit(head, data, 6, 1e-3, 64, seed, step)
    return head


def measured(head, test, removed=None, control=None, teacher=None) -> dict[str, float]:
    """The scores of a head; the control's share beside that of the removal test."""
    scores = training.evaluate(head, test, 64, "ixg", "Final", removed=removed, teacher=teacher)
    if control is not None:
        scores["control"] = training.evaluate(head, test, removed=control)["still named"]
    return scores


def table(title: str, seeds: int, rows: dict) -> list[float]:
    """Print the mean scores of each row, a function of the seed; returns the seconds of each."""
    found, times = {}, []
    for name, scores in tqdm(rows.items(), desc=title):
        start = time.perf_counter()
        found[name] = [scores(seed) for seed in range(seeds)]
        times.append((time.perf_counter() - start) / seeds)
    columns = [m for m in MEASURES if any(m in scores[0] for scores in found.values())]
    lines = [
        (name, *(f"{statistics.mean(one[m] for one in scores):.1f}" if m in scores[0] else "–" for m in columns))
        for name, scores in found.items()
    ]
    print(page.table((title, *columns), lines), flush=True)
    return times


def guided(title: str, settings, seeds: int, train, test, removed, control) -> list[float]:
    """Heads on features with the guidance of each setting."""

    def row(name):
        return lambda seed: measured(trained(SETTINGS[name], train, seed), test, removed, control)

    return table(title, seeds, {name: row(name) for name in settings})


def distilled(seeds: int, train, test, teachers) -> list[float]:
    """Heads of EfficientNet-Lite0 that learn from a guided one of EfficientNet-Lite2."""
    both, on_test = (features.join(*pair) for pair in zip((train, test), teachers, strict=True))
    own, other = slice(0, train.shape[2]), slice(train.shape[2], None)
    kept = [trained(SETTINGS["energy, λ = 0.3"], both, seed, other, "efficientnet_lite2") for seed in range(seeds)]
    few = next(iter(torch.utils.data.DataLoader(both, 2, collate_fn=datasets.collate))).images

    def row(**terms):
        def scores(seed):
            _, head = models.split(network(20, seed), SIZE)
            head.channels = own
            step = Distill(kept[seed], head, few, terms, method="ixg", at="Final") if terms else Guide(weight=0)
            return measured(trained(step, both, seed, own), on_test, teacher=kept[seed])

        return scores

    rows = {"teacher": lambda seed: measured(kept[seed], on_test), "no teacher": row(), "KD": row(multi_label_kd=1.0)}
    rows |= {f"KD + e²KD, λ = {weight}": row(multi_label_kd=1.0, e2kd=weight) for weight in (1.0, 5.0)}
    return table("distilled, VOC2007, half of test", seeds, rows)


def fitted(title: str, file: Path, b: float, seeds: int, size: int, train, val) -> list[float]:
    """Heads on a B-cos network of data/bcosify.py, and on its original, after twenty epochs."""

    def row(name, weights, method):
        def scores(seed):
            torch.manual_seed(seed)
            net = models.build(name, len(train.classes), weights)
            if method == "bcos":
                models.sharpen(net, b)
            trunk, head = models.split(net, size)
            on_train, on_val = (features.extract(trunk, part, FOLDER, **HOW) for part in (train, val))
            training.fit(head, on_train, 20, 3e-3, 64, seed, Guide(at="Final", weight=0))
            return training.evaluate(head, on_val, 64, method, "Final")

        return scores

    rows = {"original": row(NAME, "imagenet", "ixg"), f"B-cos, {file.name}": row(f"bcos_{NAME}", file, "bcos")}
    return table(title, seeds, rows)


def fills() -> None:
    """What fills do where the truth is known: on embedded scenes, removal is exact."""
    data = datasets.Scenes("test", 300, 128, correlation=1.0)
    net = models.build("bcos_scenes", 10, "scenes")
    kinds = {"exact": ("scene", False), "boxes": ("boxes", False), "segments": ("segments", False)}
    kinds |= {"control, boxes": ("boxes", True), "control, segments": ("segments", True)}
    rows = []
    for name, (by, elsewhere) in kinds.items():
        removed = datasets.Without(data, by, elsewhere=elsewhere)
        rows.append((name, f"{training.evaluate(net, data, removed=removed)['still named']:.1f}", f"{len(removed)}"))
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
    removed, control = (datasets.Without(test, elsewhere=elsewhere) for elsewhere in (False, True))
    clock("finding objects", None)
    seen = clock("features", extracted(train, test, removed, control))
    heads = clock("guided heads", guided("VOC2007, half of test", SETTINGS, given.seeds, *seen))
    others = clock("features of the teacher", extracted(train, test, name="efficientnet_lite2"))
    clock("distilled heads", distilled(given.seeds, *seen[:2], others))
    train, test = (
        datasets.Scenes(split, count, SIZE, correlation=1.0) for split, count in (("train", 2000), ("test", 400))
    )
    scenes = clock("features of scenes", extracted(train, test, datasets.Without(test, "scene")))
    clock("heads on scenes", guided("scenes, correlation 1.0, exact removal", ON_SCENES, given.seeds, *scenes, None))
    print(f"{len(seen[0])} training images, {len(seen[1])} test images; {len(removed)} and {len(control)} pairs filled")
    print(f"a head with its measurement: {statistics.median(heads):.0f} s; at most {max(heads):.0f} s")


if __name__ == "__main__":
    main()
