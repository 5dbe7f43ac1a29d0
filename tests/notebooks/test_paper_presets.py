"""The presets at paper scale: two steps of each on a small tree in the real layout, without weights, at 64 pixels."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from e2lib import datasets, features, frozen, models, training
from e2lib.course import parameters, run
from e2lib.distillation import Distill
from e2lib.guidance import Guide
from tests.notebooks.test_notebooks import NOTEBOOKS, ROOT

PAPER = ROOT / "notebooks" / "presets" / "paper"
PRESETS = sorted(PAPER.glob("0[45]b*.yaml"))
SMALL = {"size": 64}
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
    found = {(values["data"], values["model"]) for path in PRESETS for values in [vars(checked(path, read(path)))]}
    assert found == {(data, model) for data in SETS for model in NETWORKS}


# COCO differs in its files and classes: one network is enough there
TRIED = [path for path in PRESETS if "coco" not in path.stem or path.stem == "04b-coco-resnet50"]


@pytest.mark.parametrize("path", TRIED, ids=lambda path: path.stem)
def test_two_steps_of_a_preset(path, trees):
    values = read(path)
    assert values["size"] == 224
    p = checked(path, values | {"data_root": str(trees / values["data"]), "size": 64})
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
    path = PAPER / "06b.yaml"
    p = checked(path, read(path) | {"data_root": str(tmp_path), "size": 64})
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


@pytest.fixture(scope="module")
def folders(trees):
    """ImageNet and SUN397, as folders of classes."""
    for name, categories in (("imagenet", ["bird", "sea", "fruit"]), ("sun397", ["tool", "music", "flower"])):
        scenes = datasets.Scenes("train", 300, 64, objects=1)
        for split, most in (("train", 12), ("val", 4)):
            for c in categories:
                folder = trees / name / split / c
                folder.mkdir(parents=True)
                images = scenes.images_with(scenes.classes.index(c))
                for i in images[:most] if split == "train" else images[-most:]:
                    Image.fromarray(scenes[i].image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return trees


def prepared(path, root):
    """The parameters of a preset with the small data, as its notebook gets them."""
    values = read(path)
    assert values["size"] == 224
    values["size"] = 64
    for name in ("data_root", "source_root"):
        if name in values:
            values[name] = str(root / Path(values[name]).name)
    for name, field in (("scenes", "data_root"), ("unrelated", "root")):
        if name in values:
            values[name] |= {field: str(root / Path(values[name][field]).name)} | (
                SMALL if "size" in values[name] else {}
            )
    if "network" in values:
        values["network"] |= SMALL
    return checked(path, values)


def network(name, classes):
    torch.manual_seed(0)
    return models.build(name, classes)


def two_steps(teacher, student, part, terms, lr, **how):
    """Distil on two batches of two; the gradient of each term reaches the student, and is finite."""
    batch = datasets.collate([part[i] for i in range(2)])
    step = Distill(teacher, student, batch.images, terms, count=len(part), **how)
    training.fit(student, datasets.at_most(part, 4), 1, lr, batch_size=2, step=step)
    step.steps.zero_()
    for name, term in step(student, batch).items():
        gradients = torch.autograd.grad(term, list(student.parameters()), allow_unused=True, retain_graph=True)
        assert 0 < max(g.abs().max().item() for g in gradients if g is not None) < float("inf"), name


RIVALS = {"cross_entropy", "kd", "e2kd", "fitnet", "at", "review_kd", "cat_kd", "crd", "dkd", "dist"}


@pytest.mark.parametrize("path", sorted(PAPER.glob("07*.yaml")), ids=lambda path: path.stem)
def test_two_steps_of_distilling_with_few_images(path, folders):
    p = prepared(path, folders)
    train, _, test = datasets.load_splits(p.source, p.source_root, p.size, 40, 4, p.seed, p.crops)
    teacher, student = (network(like.model, len(train.classes)) for like in (p.teacher, p.student))
    how = {"method": p.explained.method, "at": p.explained.at}
    # Of all classes an untrained B-cos network says the same: nothing for DIST to correlate.
    terms = dict.fromkeys(sorted(RIVALS - {"dist"} if teacher.is_bcos else RIVALS), 1.0)
    two_steps(teacher, student, datasets.few_shot(train, 2), terms, p.student.lr, temperature=5.0, **how)
    assert p.student.temperature == 1  # the sweep has 5 as well
    assert p.shots == {50: 250, 200: 125, "all": 200} and p.crops and p.teacher.epochs == 0
    assert p.explained.weight in ((1, 5, 10) if p.explained.method == "gradcam" else (0.2, 1, 5, 10))
    assert len(test) == 4 and training.evaluate(teacher, test, 2, teacher=teacher)["agreement"] == 100


def test_the_papers_pairs_have_presets():
    pairs = {(p["teacher"]["model"], p["student"]["model"]) for p in map(read, PAPER.glob("07*.yaml"))}
    assert pairs == {
        ("resnet34", "resnet18"),
        ("bcos_resnet34", "bcos_resnet18"),
        ("bcos_densenet169", "bcos_resnet18"),
    }
    birds = {(p["guided_head"]["model"], p["network"]["model"]) for p in map(read, PAPER.glob("08b*.yaml"))}
    assert [path.stem for path in PAPER.glob("08b*.yaml") if read(path)["network_schedule"]["rivals"]] == ["08b"]
    assert {p["network_schedule"]["epochs"] for p in map(read, PAPER.glob("08b*.yaml"))} == {700}
    others = {"convnext_tiny", "efficientnet_b0", "mobilenetv3_large_100", "shufflenet_v2_x1_0"}
    assert birds == {("resnet50", name) for name in {"resnet18"} | others}


def test_two_steps_of_the_right_reasons(trees, tmp_path):
    for number, correlation in enumerate((1.0, 0.5, 0.5)):
        (tmp_path / "waterbirds100").mkdir(exist_ok=True)
        export_waterbirds(datasets.SceneBirds("train", 8, 64, correlation), tmp_path / "waterbirds100", number)
    (tmp_path / "voc2007").symlink_to(trees / "voc")
    p = prepared(PAPER / "08b.yaml", tmp_path)
    train, _, test = datasets.load_splits(p.data, p.data_root, p.size, 4, 2, p.seed)
    plain, how = datasets.with_transform(train, datasets.eval_transform(p.size)), {"method": "ixg", "at": "Final"}
    teacher, student, whole = (network(like.model, 2) for like in (p.guided_head, p.head, p.network))
    (there, teacher_head), (here, head) = (models.split(net, p.size) for net in (teacher, student))
    both = features.join(*(features.extract(trunk, plain, tmp_path, mirrored=True) for trunk in (here, there)))
    width = 256  # of ResNet-18's layer3
    head.channels, teacher_head.channels = slice(width), slice(width, None)
    terms = {"kd": 1.0, "e2kd": p.head.weight}
    two_steps(teacher_head, head, both, terms, p.head.lr, contrast=True, **how)
    kept = frozen.freeze(teacher, train, tmp_path / "store", p.size, dtype="uint8", contrast=True, **how)
    two_steps(None, whole, kept, terms, p.network_schedule.lr, contrast=True, **how)
    two_steps(teacher, whole, kept, terms, p.network_schedule.lr, contrast=True, mixup=1.0, **how)
    for other in PAPER.glob("08b-*.yaml"):  # other students of this teacher
        q = prepared(other, tmp_path)
        assert q.guided_head == p.guided_head and q.head == p.head and q.scenes == p.scenes
        two_steps(None, network(q.network.model, 2), kept, terms, q.network_schedule.lr, contrast=True, **how)
    terms = {"cross_entropy": 1.0, "at": 100.0, "review_kd": 1.0, "cat_kd": 10.0}
    two_steps(teacher, whole, kept, terms, p.network_schedule.lr, teacher_size=p.size)
    m = p.scenes
    several = datasets.load_splits(m.data, m.data_root, m.size, 4, 2, p.seed)[0]
    expert, pupil = (network(like.model, len(several.classes)) for like in (p.guided, p.pupil))
    terms = {"multi_label_kd": 1.0, "e2kd": p.pupil.weight}
    two_steps(expert, pupil, several, terms, p.pupil.lr, method="weights", at="Input")


@pytest.mark.parametrize("path", sorted(PAPER.glob("09*.yaml")), ids=lambda path: path.stem)
def test_two_steps_of_other_architectures(path, folders):
    p = prepared(path, folders)
    train = datasets.load_splits(p.source, p.source_root, p.size, 40, 4, p.seed)[0]
    unrelated = datasets.load("imagefolder", p.unrelated.root, "train", p.size, 4)
    assert not {*unrelated.classes} & {*train.classes}
    teacher, vit, cnn = (network(like.model, len(train.classes)) for like in (p.teacher, p.vit, p.cnn))
    terms, how = {"kd": 1.0, "e2kd": p.explained.weight}, {"method": p.explained.method, "at": p.explained.at}
    two_steps(teacher, vit, train, terms, p.vit.lr, every=p.explained.every, **how)
    two_steps(teacher, network(p.unrelated.model, len(train.classes)), unrelated, terms, p.unrelated.lr, **how)
    assert (p.vit.model, p.vit.epochs, p.explained.every) == ("bcos_simple_vit_ti_patch16_224", 150, 4)
    assert p.teacher.model == "bcos_densenet169" and p.teacher.epochs == 0
    for name in p.students:
        two_steps(cnn, network(name, len(train.classes)), train, terms, p.family_schedule.lr, method="gradcam")


@pytest.mark.parametrize("path", sorted(PAPER.glob("10*.yaml")), ids=lambda path: path.stem)
def test_two_steps_of_frozen_explanations(path, folders, tmp_path):
    p = prepared(path, folders)
    train = datasets.load_splits(p.source, p.source_root, p.size, 40, 4, p.seed, p.crops)[0]
    teacher, student = (network(like.model, len(train.classes)) for like in (p.teacher, p.student))
    how = {"method": p.explained.method, "at": p.explained.at}
    assert (p.teacher.model, p.student.model, p.shots) == ("bcos_densenet169", "bcos_resnet18", {50: 250, 200: 125})
    kept = frozen.freeze(teacher, datasets.few_shot(train, 2), tmp_path, p.size, **how)
    two_steps(None, student, kept, {"kd": 1.0, "e2kd": p.explained.weight}, p.student.lr, **how)


def schema(path):
    return parameters.of(
        next(notebook for notebook in NOTEBOOKS if notebook.name.partition("_")[0] == path.stem.partition("-")[0])
    )


def read(path):
    """A preset's parameters, and its notebook's others."""
    return {name: parameter.default for name, parameter in schema(path).items()} | run.mapping(path)


def checked(path, values):
    """As the notebook gets them, on the CPU."""
    return SimpleNamespace(**parameters.check(schema(path), values) | {"device": torch.device("cpu")})
