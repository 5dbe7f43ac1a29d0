"""The presets of guidance at paper scale: two steps of each on a small tree in the real layout, without weights."""

import json

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from e2lib import datasets, models, runs, training
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


def read(path):
    notebook = next(notebook for notebook in NOTEBOOKS if notebook.name[:2] == path.stem[:2])
    return runs.defaults(notebook) | yaml.safe_load(path.read_text())
