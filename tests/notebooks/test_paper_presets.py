"""The presets of guidance at paper scale: two steps of each on a small tree in the real layout, without weights."""

import json

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from e2lib import datasets, features, models, runs, training
from e2lib.guidance import Guide
from tests.notebooks.test_notebooks import NOTEBOOKS, ROOT

PRESETS = sorted((ROOT / "notebooks" / "presets" / "paper").glob("0[45]*.yaml"))
SETS = ("voc", "coco")
NETWORKS = ("resnet50", "xdnn_resnet50", "bcos_resnet50", "bcos_densenet121", "bcos_simple_vit_s_patch16_224")


def export_coco(scenes, root, split):
    """Composed scenes as a COCO folder, a box an object."""
    folder, annotations, images = root / f"{split}2014", [], []
    folder.mkdir(parents=True)
    for i, sample in enumerate(scenes):
        name = f"COCO_{split}2014_{i:012}.jpg"
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(folder / name)
        images.append({"id": i, "file_name": name, "height": sample.image.shape[1], "width": sample.image.shape[2]})
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.box_labels.tolist(), strict=True):
            box, polygon = [x1, y1, x2 - x1, y2 - y1], [[x1, y1, x2, y1, x2, y2, x1, y2]]
            fields = {"id": len(annotations), "image_id": i, "category_id": label + 1, "iscrowd": 0}
            annotations.append(fields | {"bbox": box, "segmentation": polygon})
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(scenes.classes)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    for split in ("train", "val", "test"):
        datasets.export_voc(datasets.Scenes(split, 20, 64), root / "voc", split)
    for split in ("train", "val"):
        export_coco(datasets.Scenes(split, 20, 64), root / "coco", split)
    return root


def test_every_data_set_and_network_of_the_paper_has_a_preset():
    found = {(values["data"], values["model"]) for values in map(read, PRESETS)}
    assert found == {(data, model) for data in SETS for model in NETWORKS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_two_steps_of_a_preset(path, trees):
    values = read(path)
    p = runs.parameters(values | {"data_root": str(trees / values["data"]), "device": "cpu"})
    train, val, _ = datasets.load_splits(p.data, p.data_root, p.size, 4, 2, p.seed)
    torch.manual_seed(0)
    model = models.build(p.model, len(train.classes))
    depths = values.get("depths", ["Input", "Final"])  # those of notebook 05
    assert set(depths) <= model.depths.keys()
    method = "bcos" if model.is_bcos else "ixg"
    if p.model.startswith("xdnn"):  # its last layer begins at zero, and so would all maps
        nn.init.normal_(list(model.net.parameters())[-1], std=0.1)
    pulls = []
    for loss, at in zip(p.lambdas, [depths[0], *depths[::-1]] if len(depths) > 1 else depths * 2, strict=False):
        # untrained, a map can be negative everywhere; its absolute value is not
        guide = Guide(loss, method, at, p.lambdas[loss][0], absolute=True)
        training.fit(model, train, 1, p.schedule.lr, batch_size=2, step=guide)  # two steps: a NaN would be an error
        terms = guide(model, datasets.collate([train[i] for i in range(2)]))
        gradients = torch.autograd.grad(terms["guidance"], list(model.parameters()), allow_unused=True)
        pulls.append(max(g.abs().max().item() for g in gradients if g is not None))
    assert all(0 < pull < float("inf") for pull in pulls), pulls
    assert 0 <= training.evaluate(model, val, 2, method, depths[0])["EPG"] <= 100


def export_waterbirds(birds, root, split):
    """Composed birds in the layout of Waterbirds, a line an image."""
    folder = root / "waterbird_1.0_forest2water2"
    folder.mkdir(exist_ok=True)
    (root / "CUB_200_2011").mkdir(exist_ok=True)
    metadata, boxes = folder / "metadata.csv", root / "CUB_200_2011" / "bounding_boxes.txt"
    lines = metadata.read_text().splitlines() if metadata.exists() else ["img_id,img_filename,y,split,place"]
    known = boxes.read_text().splitlines() if boxes.exists() else []
    for sample in birds:
        name = f"{len(lines)}.jpg"
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(folder / name)
        lines.append(f"{len(lines)},{name},{sample.group // 2},{split},{sample.group % 2}")
        x1, y1, x2, y2 = sample.boxes[0].tolist()
        known.append(f"{len(lines) - 1} {x1} {y1} {x2 - x1} {y2 - y1}")
    metadata.write_text("\n".join([*lines, ""]))
    boxes.write_text("\n".join([*known, ""]))


def test_two_steps_of_the_preset_for_waterbirds(tmp_path):
    for number, correlation in enumerate((1.0, 0.5, 0.5)):
        export_waterbirds(datasets.SceneBirds("train", 8, 64, correlation), tmp_path, number)
    values = read(ROOT / "notebooks" / "presets" / "paper" / "06.yaml") | {"data_root": str(tmp_path), "device": "cpu"}
    p = runs.parameters(values)
    train, val, _ = datasets.load_splits(p.data, p.data_root, p.size, 4, 2, p.seed)
    torch.manual_seed(0)
    model = models.build(p.model, len(train.classes))
    trunk, head = models.split(model, p.size)
    plain = datasets.with_transform(train, datasets.eval_transform(p.size))
    for loss in p.lambda_of:
        guide = Guide(loss, "bcos", "Final", p.lambda_of[loss], contrast=True, absolute=True, dropout=0.5)
        on_train = features.extract(trunk, plain, tmp_path / "features", mirrored=True)
        history = training.fit(head, on_train, 1, p.head_schedule.lr, batch_size=2, step=guide)
        assert history[0]["guidance"] > 0
    whole = models.build(p.model, len(train.classes))
    for at in ("Input", "Mid3"):
        guide = Guide("energy", "bcos", at, p.whole.weight, contrast=True, absolute=True)
        assert training.fit(whole, train, 1, p.whole.lr, batch_size=2, step=guide)[0]["guidance"] > 0
    assert "worst group" in training.evaluate(whole, val, 2, "bcos", "Mid3", contrast=True)


def read(path):
    notebook = next(notebook for notebook in NOTEBOOKS if notebook.name[:2] == path.stem[:2])
    return runs.defaults(notebook) | yaml.safe_load(path.read_text())
