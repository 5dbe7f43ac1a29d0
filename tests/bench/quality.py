"""Whether networks that are trained and measured in the chosen form are as good as in float32, contiguous.

`python -m tests.bench.quality` prints F1 and EPG of three seeds in each form, on embedded scenes, in 12 minutes on two
cores. --images and --seeds make it smaller.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

from e2lib import datasets, features, models, training
from e2lib.guidance import Guide
from tests.bench import page
from tests.bench.guidance import FORMS

EVERYWHERE = ("e2lib.training.loop", "e2lib.training.evaluate", "e2lib.features")
AT_MOST = 1.0  # points between the means of both forms


@contextmanager
def in_form(name: str) -> Iterator[None]:
    """Features, trainings and measurements within run in this form of `FORMS`."""
    before = [(module, sys.modules[module].formed) for module in EVERYWHERE]
    try:
        for module, _ in before:
            sys.modules[module].formed = FORMS[name]
        yield
    finally:
        for module, formed in before:
            sys.modules[module].formed = formed


def scenes(part: str, images: int, size: int) -> datasets.Scenes:
    """Scenes with several objects."""
    return datasets.Scenes(part, images, size)


def measured(net: nn.Module, train, test, guide: Guide, epochs: int, lr: float, seed: int) -> dict[str, float]:
    """F1 and EPG of the network after a guided training."""
    training.fit(net, train, epochs, lr, 16, seed, guide)
    scores = training.evaluate(net, test, method=guide.method, at=guide.at)
    return {name: scores[name] for name in ("F1", "EPG")}


def head(seed: int, images: int) -> dict[str, float]:
    """A head on features of EfficientNet-Lite0, guided at Final, 224 px."""
    train, test = scenes("train", images, 224), scenes("test", images // 2, 224)
    net = models.build("efficientnet_lite0", len(train.classes), "imagenet")
    trunk, last = models.split(net, 224)
    with tempfile.TemporaryDirectory() as folder:
        seen = [features.extract(trunk, data, folder) for data in (train, test)]
        return measured(last, *seen, Guide(at="Final", weight=0.3), 6, 1e-3, seed)


def whole(seed: int, images: int) -> dict[str, float]:
    """EfficientNet-Lite0 as a whole, guided at Input, 128 px."""
    train, test = scenes("train", images, 128), scenes("test", images // 2, 128)
    net = models.build("efficientnet_lite0", len(train.classes), "imagenet")
    trunk, last = models.split(net, 128)
    # With a new classifier, F1 would depend more on the seed than on the form: the head learns first.
    with tempfile.TemporaryDirectory() as folder:
        training.fit(last, features.extract(trunk, train, folder), 6, 1e-3, 16, seed, Guide(weight=0))
    net.requires_grad_(True)  # split has frozen the trunk
    return measured(net, train, test, Guide(at="Input", weight=0.1), 2, 1e-4, seed)


def bcos(seed: int, images: int) -> dict[str, float]:
    """The bundled B-cos network, guided at Input, 96 px."""
    train, test = scenes("train", images, 96), scenes("test", images // 2, 96)
    net = models.build("bcos_scenes", len(train.classes), "scenes")
    return measured(net, train, test, Guide(method="bcos", at="Input", weight=0.1), 2, 2e-4, seed)


def main() -> None:
    """Train everything in both forms, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=600, help="training images; half as many are measured")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    for train in (head, whole, bcos):
        found = {form: [] for form in FORMS}
        for seed in tqdm(range(given.seeds), desc=train.__name__, leave=False):
            for form in FORMS:
                torch.manual_seed(seed)
                with in_form(form):
                    found[form].append(train(seed, given.images))
        for measure in ("F1", "EPG"):
            values = {form: [scores[measure] for scores in found[form]] for form in FORMS}
            each = ["  ".join(f"{x:.1f}" for x in values[form]) for form in FORMS]
            before, now = (statistics.mean(values[form]) for form in FORMS)
            what = f"{measure}: {train.__doc__.rstrip('.')}"
            rows.append((what, f"{each[0]} → {each[1]}: {now - before:+.2f}", f"± {AT_MOST:.0f}"))
    print(page.table(("float32, contiguous → chosen form, by seed", "measured: difference of means", "aim"), rows))


if __name__ == "__main__":
    main()
