"""Real photographs: features once, then one head per setting, on VOC2007 at 224 pixels.

`python -m tests.bench.real` prints F1, mAP, EPG, IoU and the removal test of each setting, means over --seeds. It
keeps features in runs/real, and says so where --root has no voc2007/VOCdevkit. λ has been looked at on test images:
these numbers check the road, and choose nothing.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from e2lib import datasets, features, models, training
from e2lib.guidance import Guide
from tests.bench import page

SIZE, NAME = 224, "efficientnet_lite0"
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
MEASURES = ("F1", "mAP", "EPG", "IoU", "still named", "control")


def network(seed: int = 0) -> models.Model:
    """The pretrained network; the seed draws its classifier."""
    torch.manual_seed(seed)
    return models.build(NAME, 20, "imagenet")


def scores(guide: Guide, seed: int, train, test, removed, control) -> dict[str, float]:
    """Of a head that is trained with this step."""
    _, head = models.split(network(seed), SIZE)
    data = train if guide.fraction == 1 else datasets.with_boxes(train, guide.fraction, seed)
    training.fit(head, data, 6, 1e-3, 64, seed, guide)
    found = training.evaluate(head, test, method="ixg", at="Final", removed=removed)
    return found | {"control": training.evaluate(head, test, removed=control)["still named"]}


def fills() -> str:
    """What fills do where the truth is known: on embedded scenes, removal is exact."""
    data = datasets.Scenes("test", 300, 128, correlation=1.0)
    net = models.build("bcos_scenes", 10, "scenes")
    kinds = {"exact": ("scene", False), "boxes": ("boxes", False), "segments": ("segments", False)}
    kinds |= {"control, boxes": ("boxes", True), "control, segments": ("segments", True)}
    rows = []
    for name, (by, elsewhere) in kinds.items():
        removed = datasets.Without(data, by, elsewhere=elsewhere)
        rows.append((name, f"{training.evaluate(net, data, removed=removed)['still named']:.1f}", f"{len(removed)}"))
    return page.table(("removal on 300 embedded scenes, B-cos network", "still named", "pairs"), rows)


def main() -> None:
    """Extract, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("../shared/data"), help="holds voc2007/VOCdevkit")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    place, folder = given.root / "voc2007", Path("runs/real")
    if not (place / "VOCdevkit").exists():
        print(f"skipped: {place} holds no VOCdevkit")
        return
    print(fills())
    begin, times = time.perf_counter(), []
    train, test = (datasets.load("voc", place, split, SIZE) for split in ("train", "test"))
    trunk, _ = models.split(network(), SIZE)
    removed, control = (datasets.Without(test, elsewhere=elsewhere) for elsewhere in (False, True))
    seen = [features.extract(trunk, train, folder, mirrored=True)]
    seen += [features.extract(trunk, part, folder) for part in (test, removed, control)]
    extracted = time.perf_counter() - begin
    rows = []
    for name, guide in tqdm(SETTINGS.items(), desc="settings"):
        start, found = time.perf_counter(), [scores(guide, seed, *seen) for seed in range(given.seeds)]
        times.append((time.perf_counter() - start) / given.seeds)
        rows.append((name, *(f"{statistics.mean(one[measure] for one in found):.1f}" for measure in MEASURES)))
    print(page.table(("VOC2007, half of test", *MEASURES), rows))
    print(f"{len(train)} training images, {len(test)} test images; {len(removed)} and {len(control)} pairs are filled")
    print(f"features {extracted:.0f} s, a head with its measurement {statistics.median(times):.0f} s")


if __name__ == "__main__":
    main()
