"""Make a B-cos network of a pretrained one: `python data/bcosify.py --photographs FOLDER... --out FILE`.

The photographs need no labels. Any folders with images will do; the word "scenes" stands for the embedded photographs.
`models.bcosify` rewrites the network as a B-cos network at B = 1. While B rises, the new network imitates what the
old one computes of random crops: its last features, and its class probabilities.
`models.build("bcos_efficientnet_lite0", classes, FILE)` builds the result. After an interruption, the same command goes
on from the last finished epoch, and writes the same file.
"""

import argparse
import copy
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm.auto import tqdm

from e2lib import models, training
from e2lib.datasets import Batch, Sample, Samples, Scenes
from e2lib.datasets.files import SUFFIXES, check_value, read_image
from e2lib.disk import digest
from e2lib.training.precision import form, has_bfloat16

INDEPENDENT = 0.2  # the correlation at which the context of scenes says nothing about their objects
CLASSES = 1000  # of the pretrained networks
BATCH = 32


class Photographs(Samples):
    """Random crops, of a quarter of the area or more, of images in folders, or of embedded scenes."""

    classes = ["photograph"]

    def __init__(self, folders: list[str], size: int, scenes: int):
        found = [path for folder in folders for path in (Path(folder).rglob("*") if folder != "scenes" else ())]
        self.images = sorted(path for path in found if path.suffix.lower() in SUFFIXES)
        self.about = [(str(path), path.stat().st_size) for path in self.images] + [size]
        if "scenes" in folders:
            composed = Scenes("train", scenes, 128, INDEPENDENT, seed=1000)
            bar = tqdm(range(scenes), desc="composing", unit="scene")
            self.images += [composed[i].image.as_subclass(Tensor).clone() for i in bar]
            self.about.append(composed.fingerprint())
        check_value(len(self.images) > 0, "--photographs", folders, "folders with images, or scenes")
        crop = v2.RandomResizedCrop(size, (0.25, 1), antialias=True)
        self.transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        return digest(self.about)

    def __getitem__(self, i: int) -> Sample:
        image = self.images[i]
        image = read_image(image) if isinstance(image, Path) else image
        return Sample(self.transform(image.as_subclass(Tensor)), torch.tensor(0), name=str(i))


class Imitate(nn.Module):
    """The step: the student's B rises to `b` over the first part `rise` of all steps.

    The loss adds, before the last convolution and behind it, 1 - cosine of the features in each cell and 0.1 of their
    squared distance relative to the teacher's squares; and 0.1 of KL(teacher's classes || student's), in nats.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, size: int, steps: int, b: float, rise: float):
        super().__init__()
        self.b, self.rise, self.steps, self.size = b, rise, steps, size
        self.teacher = copy.deepcopy(teacher).requires_grad_(False).eval().to(memory_format=form(teacher)[0])
        self.depths = {"last": f"net.{models.split(teacher, size)[0].path}", "Final": teacher.depths["Final"]}
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.caught: dict[str, dict[str, Tensor]] = {"teacher": {}, "student": {}}
        for who, net in (("teacher", self.teacher), ("student", student)):
            for name, path in self.depths.items():
                net.get_submodule(path).register_forward_hook(partial(self.catch, who, name))

    def catch(self, who: str, name: str, module: nn.Module, inputs, output: Tensor) -> None:
        self.caught[who][name] = output.float()

    def extra_repr(self) -> str:
        return f"b={self.b}, rise={self.rise}, steps={self.steps}, size={self.size}"

    def forward(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        done = min(int(self.seen) / (self.rise * self.steps), 1)
        models.sharpen(student, 1 + (self.b - 1) * done)
        self.seen += 1
        device = batch.images.device
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
            old = self.teacher(batch.images).float()
        new, terms = student(batch.images), {}
        for name in self.depths:
            mine, theirs = self.caught["student"].pop(name), self.caught["teacher"].pop(name)
            away = (mine - theirs).square().mean() / theirs.square().mean()
            terms[name] = (1 - F.cosine_similarity(mine, theirs)).mean() + 0.1 * away
        old, new = old.log_softmax(1), new.log_softmax(1)
        terms["classes"] = 0.1 * F.kl_div(new, old, log_target=True, reduction="batchmean")
        return terms


def main() -> None:
    """Read the photographs, fit, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", nargs="+", required=True, metavar="FOLDER", help="searched recursively")
    parser.add_argument("--out", type=Path, required=True, help="a name that ends in .safetensors")
    parser.add_argument("--model", default="efficientnet_lite0", choices=models.weights.IMAGENET)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="side of the crops in pixels")
    parser.add_argument("--b", type=float, default=2.0, help="another B than 2 is set by models.sharpen after build")
    parser.add_argument("--rise", type=float, default=0.4, help="part of the steps in which B rises")
    parser.add_argument("--scenes", type=int, default=6000, help="number of scenes composed")
    parser.add_argument("--lr", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that read photographs")
    args = parser.parse_args()
    start, size = time.time(), args.size
    data = Photographs(args.photographs, size, args.scenes)
    torch.manual_seed(args.seed)
    teacher = models.build(args.model, CLASSES, "imagenet")
    student = models.bcosify(teacher)
    step = Imitate(teacher, student, size, args.epochs * (len(data) // BATCH), args.b, args.rise)
    history = training.fit(
        student,
        data,
        args.epochs,
        args.lr,
        BATCH,
        args.seed,
        step,
        "float32",
        args.workers,
        args.out.with_suffix(".pt"),
        lambda epoch: print(f"epoch {epoch} after {(time.time() - start) / 60:.0f} minutes", flush=True),
        lambda parameters: torch.optim.AdamW(parameters, args.lr),
        lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, pct_start=0.1),
    )
    for number, terms in enumerate(history, 1):
        print(f"epoch {number}: " + ", ".join(f"{name} {value:.3f}" for name, value in terms.items()))
    for parameter in student.parameters():
        if parameter.ndim > 1:  # half precision: half the size. Statistics of norms would underflow.
            parameter.data = parameter.data.half()
    models.save(student, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {len(data)} photographs, {args.epochs} epochs")


if __name__ == "__main__":
    main()
