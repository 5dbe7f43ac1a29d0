"""Make what the playground of the site shows: `python docs/assets.py` writes docs/_static/playground/made/.

All pictures are scenes of the embedded photographs (data/README.md has their licence), whose backgrounds tell the
category. Two heads of EfficientNet-Lite0 learn from them. The first learns plainly, and trusts the backgrounds. The
teacher is guided by all boxes. `python docs/assets.py animation` draws the README's picture of the same steps.
"""

import copy
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from e2lib import figures, models
from e2lib.attribution import explain
from e2lib.datasets import Batch, Scenes
from e2lib.disk import replacing, write
from e2lib.features import extract
from e2lib.guidance import Guide
from e2lib.metrics import F1, epg
from e2lib.training import fit

HERE = Path(__file__).parent
MADE = HERE / "_static" / "playground" / "made"
KEPT = HERE.parent / "runs" / "playground"  # features and heads, under hashes of what they come from
SIDE = 224  # pixels
CATEGORIES = ("bird", "insect", "furry", "music", "vehicle")  # one of each background
PLACES = {"water": "water", "green": "greenery", "autumn": "an autumn wood", "indoor": "a room", "open": "open country"}
CAR = 183  # a scene to show that was chosen by eye
SHOWN, OTHERS, LESSONS = 20, 60, 4
STEP = {"method": "ixg", "at": "Final", "classification": "bce", "absolute": True}  # of Guide, also in the browser
RATE = 1e-3  # of Adam, likewise


def scenes(split: str, length: int, correlation: float, seed: int) -> Scenes:
    """Scenes of one object."""
    return Scenes(split, length, SIDE, correlation, seed, objects=1, categories=CATEGORIES)


def learned(head: nn.Module, data, epochs: int, weight: float) -> nn.Module:
    """A copy of the head that has learned, guided by all boxes with this weight λ."""
    head, step = copy.deepcopy(head), Guide("energy", weight=weight, **STEP)
    fit(head, data, epochs, 4e-3, 32, step=step, checkpoint=KEPT / "head.pt")
    return head.eval()


def network(weights: str | None = None) -> models.Model:
    """EfficientNet-Lite0 with every fifth channel of its last convolution, 256, so that a phone can train them."""
    model = models.build("efficientnet_lite0", len(CATEGORIES), weights)
    net, kept = model.net, slice(None, None, 5)
    convolution, norm = net.conv_head, net.bn2
    net.conv_head = nn.Conv2d(convolution.in_channels, 256, 1, bias=False)
    net.conv_head.weight.data = convolution.weight.data[kept].clone()
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(norm, name)
        tensor.data = tensor.data[kept].clone()
    norm.num_features = net.num_features = 256
    net.classifier = nn.Linear(256, len(CATEGORIES))
    return model


def networks() -> tuple[nn.Module, nn.Module, nn.Module]:
    """The trunk, the head that the visitor guides, and the teacher. The browser has both heads in float16."""
    torch.manual_seed(0)
    trunk, head = models.split(network("imagenet"), SIDE)
    data = extract(trunk, scenes("train", 800, 1.0, 0), KEPT)
    heads = learned(head, data, 8, 0.0), learned(head, data, 20, 0.3)
    for one in heads:
        one.net.conv_head.weight.data = one.net.conv_head.weight.data.half().float()
    return trunk, *heads


def pick(data: Scenes) -> list[int]:
    """The scenes to show: in turn the next of each category, and the car."""
    by_class = [data.images_with(c).tolist() for c in range(len(CATEGORIES))]
    return [i for turn in zip(*by_class, strict=False) for i in turn if i != CAR][: SHOWN - 1] + [CAR]


def pair(data: Scenes, i: int) -> tuple[Tensor, Tensor]:
    """A scene, and the same without its object: uint8 (3, H, W)."""
    sample = data[i]
    return sample.image, data.without(i, int(sample.box_labels)).image


def picture(image: Tensor) -> Image.Image:
    """An image of Pillow."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def described(data: Scenes, i: int) -> dict:
    """What the page says of a scene."""
    sample, record = data[i], data.record(i)
    text = f"{CATEGORIES[int(sample.box_labels)]} before {PLACES[record.context]}"
    return {"label": int(sample.box_labels), "box": sample.boxes[0].int().tolist(), "text": text, "name": sample.name}


def numbers(head: nn.Module) -> dict[str, Tensor]:
    """What the browser needs of a head, by its names there; the large matrix in float16."""
    convolution, norm, classifier = head.net.conv_head, head.net.bn2, head.net.classifier
    found = {
        "convolution": convolution.weight[:, :, 0, 0].T.half(),
        "mean": norm.running_mean,
        "inverse": (norm.running_var + norm.eps).rsqrt(),
        "scale": norm.weight,
        "shift": norm.bias,
        "classifier": classifier.weight.T,
        "bias": classifier.bias,
    }
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def rows(features: Tensor) -> Tensor:
    """Features (N, C, h, w) as float16 (N, h w, C)."""
    return features.half().flatten(2).transpose(1, 2).contiguous()


@torch.no_grad()
def measured(head: nn.Module, features: Tensor, labels: list[int], boxes: list[list[int]]) -> dict[str, float]:
    """F1 and EPG, in per cent, of features (N, C, h, w)."""
    classes, f1 = torch.tensor(labels), F1()
    batch = Batch.of(features, classes, torch.tensor(boxes).float(), size=(SIDE, SIDE))
    logits, maps = explain(head, features, classes, "ixg", "Final")
    f1.update(logits, batch.hot(len(CATEGORIES)))
    return {"f1": 100 * f1.compute().item(), "epg": 100 * epg(maps, batch.class_masks(classes)).mean().item()}


def main() -> None:
    """Write everything."""
    MADE.mkdir(parents=True, exist_ok=True)
    trunk, student, teacher = networks()
    ours, free = scenes("test", 300, 1.0, 3), scenes("test", OTHERS, 0.2, 5)
    chosen = pick(ours)
    images = [image.float() / 255 for i in chosen for image in pair(ours, i)]
    with torch.no_grad():
        features = torch.cat([trunk(torch.stack(images[k : k + 8])) for k in range(0, len(images), 8)])
    others = extract(trunk, free, KEPT)
    save_file({"scenes": rows(features), **numbers(student)}, MADE / "start.safetensors")
    more = {f"teacher.{name}": tensor for name, tensor in numbers(teacher).items()}
    save_file({"others": rows(others.features[:, 0]), **more}, MADE / "more.safetensors")
    for k, i in enumerate(chosen):
        for name, image in zip((f"{k}", f"{k}-without"), pair(ours, i), strict=True):
            picture(image).save(MADE / f"{name}.webp", quality=80)
    known = {"labels": [int(s.box_labels) for s in free], "boxes": [s.boxes[0].int().tolist() for s in free]}
    about = {
        "classes": CATEGORIES,
        "side": SIDE,
        "scenes": [described(ours, i) for i in chosen],
        "lessons": [chosen.index(i) for i in chosen[:LESSONS]],
        "others": known,
        "before": measured(student, others.features[:, 0].float(), **known),
    }
    write(MADE / "scenes.json", json.dumps(about))
    print(f"{MADE}: {sum(path.stat().st_size for path in MADE.iterdir()) / 1e6:.1f} MB, {about['before']}")


def animation() -> None:
    """The README's picture: twenty steps with one box on the first scene."""
    trunk, head, _ = networks()
    data = scenes("test", 300, 1.0, 3)
    first = pick(data)[0]
    sample, images = data[first], torch.stack(pair(data, first)).float() / 255
    with torch.no_grad():
        features = trunk(images)
    hot = nn.functional.one_hot(sample.box_labels, len(CATEGORIES))
    batch = Batch.of(features[:1], hot, sample.boxes, size=(SIDE, SIDE))
    step, optimizer = Guide("energy", weight=1.0, **STEP), torch.optim.Adam(head.parameters(), RATE)
    frames = []
    for count in range(21):
        with torch.no_grad():
            probabilities = head(features).sigmoid()[:, sample.box_labels].flatten().tolist()
        _, maps = explain(head, features[:1], sample.box_labels, "ixg", "Final")
        frames.append(frame(images, maps[0, 0].detach(), sample.boxes[0], probabilities, count))
        optimizer.zero_grad()
        sum(step(head, batch).values()).backward()
        optimizer.step()
    times = [1500, *[160] * 19, 3000]  # milliseconds
    with replacing(MADE.parent / "map.webp") as part:
        frames[0].save(part, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=75)
    with replacing(MADE.parent / "map.jpg") as part:
        frames[-1].save(part, "JPEG", quality=85)  # for browsers without WebP


def frame(images: Tensor, values: Tensor, box: Tensor, probabilities: list[float], step: int) -> Image.Image:
    """One step: the map with the box, the scene and its probability, the same without the object."""
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), dpi=100, layout="constrained")
    photos = images.permute(0, 2, 3, 1)
    figures.show_map(axes[0], values, photos[0])
    figures.add_box(axes[0], box.tolist(), "black")
    axes[0].set_title(f"step {step}: the map", fontsize=11)
    for axis, photo, value, name in zip(axes[1:], photos, probabilities, ("bird", "object removed"), strict=True):
        axis.imshow(photo)
        axis.set_title(f"{name}: {value:.0%}", fontsize=11)
    for axis in axes:
        axis.set_axis_off()
    figure.canvas.draw()
    found = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    return found


if __name__ == "__main__":
    animation() if sys.argv[1:] == ["animation"] else main()
