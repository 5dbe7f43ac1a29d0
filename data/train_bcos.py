"""Train the small B-cos network of the scenes: `python data/train_bcos.py` writes data/bcos_scenes.safetensors.

First it learns to tell the individual cut-outs apart, as an ImageNet network can: "which one is it?" on crops around
single objects, then "which ones are in the picture?" on whole scenes, whose context says nothing about their objects.
Then all of it is fine-tuned to the ten categories on training scenes with their usual context. It sees only what the
training split shows: the seen individuals, on the training regions of the backgrounds.
`--check efficientnet_lite0` fine-tunes that network in the same way, to compare.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from e2lib import models, training
from e2lib.course import parameters
from e2lib.datasets import Scenes
from e2lib.datasets.scenes import CATEGORIES, cutouts
from e2lib.disk import DATA

INDEPENDENT = 0.2  # the correlation at which context says nothing about the objects
SPLITS = [("val", 0.8), ("test", 0.8), ("test", INDEPENDENT), ("test_unseen", 0.8)]
CROP, JITTER = 64, 10  # side of a crop and largest shift of its centre from the object's, in pixels


def crops(dataset: Scenes, seed: int) -> tuple[Tensor, Tensor]:
    """Crops around all objects of the scenes, uint8 (N, 3, 64, 64), and the index of each one's cut-out, (N,)."""
    generator = torch.Generator().manual_seed(seed)
    images, which = [], []
    for i in tqdm(range(len(dataset)), desc="composing", unit="scene"):
        image, boxes = dataset[i].image, dataset[i].boxes.int().tolist()
        for thing, (x1, y1, x2, y2) in zip(dataset.record(i).objects, boxes, strict=True):
            shift = torch.randint(-JITTER, JITTER + 1, (2,), generator=generator).tolist()
            x, y = ((a + b - CROP) // 2 + s for a, b, s in ((x1, x2, shift[0]), (y1, y2, shift[1])))
            x, y = (min(max(v, 0), dataset.size - CROP) for v in (x, y))
            images.append(image[:, y : y + CROP, x : x + CROP].clone())
            which.append(thing.cutout)
    return torch.stack(images), torch.tensor(which)


def whole(dataset: Scenes) -> tuple[Tensor, Tensor]:
    """The scenes, uint8 (N, 3, 128, 128), and which cut-outs they hold, float (N, individuals) of 0 and 1."""
    present = torch.zeros(len(dataset), len(cutouts()))
    for i in range(len(dataset)):
        present[i, [thing.cutout for thing in dataset.record(i).objects]] = 1
    return torch.stack([dataset[i].image.as_subclass(Tensor) for i in range(len(dataset))]), present


def learn(model: nn.Module, images: Tensor, targets: Tensor, loss_of, epochs: int, lr: float, task: str) -> None:
    """Train on flipped images: Adam, one cycle up to `lr`, batches of 64."""
    device = next(model.parameters()).device
    steps = epochs * (len(images) // 64)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.15)
    model.train()
    with tqdm(total=steps, desc=task, unit="step") as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(images)).split(64)[: len(images) // 64]:
                x = images[chosen].float() / 255
                flip = torch.rand(len(x)) < 0.5
                x[flip] = x[flip].flip(3)
                loss = loss_of(model(x.to(device, memory_format=torch.channels_last)), targets[chosen].to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.2f}")


def pretrain(scenes: int, epochs: tuple[int, int], seed: int, device: torch.device) -> models.Model:
    """A B-cos network that names the individuals of a scene, one logit each."""
    torch.manual_seed(seed)
    dataset = Scenes("train", scenes, 128, INDEPENDENT, seed=1000)
    model = models.build("bcos_scenes", len(cutouts())).to(device, memory_format=torch.channels_last)
    learn(model, *crops(dataset, seed), F.cross_entropy, epochs[0], 5e-3, "which one is it?")

    def each(logits: Tensor, present: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, present, reduction="none").sum(1).mean()

    learn(model, *whole(dataset), each, epochs[1], 2e-3, "which ones are in it?")
    return model


def report(model: models.Model, splits: list[tuple[str, float]], size: int, when: str) -> None:
    """Print F1 and mAP on 1000 scenes of each (split, correlation)."""
    for split, correlation in splits:
        scores = training.evaluate(model, Scenes(split, 1000, size, correlation))
        print(f"{when}, {split} {correlation}: F1 {scores['F1']:.1f}, mAP {scores['mAP']:.1f}", flush=True)


def finetune(model: models.Model, rounds: list, seed: int, size: int, device, precision="auto") -> models.Model:
    """Train all of `model` on (scenes, epochs, lr) of each round; prints what it brings on the val split."""
    model.to(device, memory_format=torch.channels_last)
    for number, (scenes, epochs, lr) in enumerate(rounds):
        dataset = Scenes("train", scenes, size, seed=seed + 100 * number)
        training.fit(model, dataset, epochs, lr, seed=seed, precision=precision)
        report(model, [("val", 0.8)], size, f"{model.name} seed {seed} round {number + 1}")
    return model


def main() -> None:
    """Train, save, and print the scores of every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", metavar="NETWORK", help="only fine-tune this network with ImageNet weights at 224 px"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of the fine-tuning; the first one's is saved"
    )
    parser.add_argument("--scenes", type=int, default=12000, help="scenes that it is pre-trained on")
    parser.add_argument("--epochs", type=int, nargs=2, default=[10, 8], help="passes over the crops, over the scenes")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device, start = parameters.device(args.device), time.time()
    if args.check:
        for seed in args.seeds:
            torch.manual_seed(seed)
            model = models.build(args.check, len(CATEGORIES), "imagenet")
            finetune(model, [(5000, 3, 3e-4)], seed, 224, device, "bfloat16")
            report(model, SPLITS, 224, f"{args.check} seed {seed}")
        return
    pretrained = pretrain(args.scenes, args.epochs, args.seeds[0], device)
    trunk = {k: v for k, v in pretrained.state_dict().items() if not k.startswith("net.fc.")}
    tuned = []
    for seed in args.seeds:
        torch.manual_seed(seed)
        model = models.build("bcos_scenes", len(CATEGORIES))
        model.load_state_dict(model.state_dict() | trunk)
        # It soon knows 2000 scenes by heart: the second round is on others.
        tuned.append(finetune(model, [(2000, 6, 2e-3), (8000, 4, 1e-3)], seed, 128, device))
        report(model, SPLITS, 128, f"seed {seed}")
    models.save(tuned[0].half(), DATA / "bcos_scenes.safetensors")  # half precision: half the size
    written = models.build("bcos_scenes", len(CATEGORIES), "scenes").to(device)
    report(written, SPLITS, 128, "the file that was written")
    print(f"{(time.time() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
