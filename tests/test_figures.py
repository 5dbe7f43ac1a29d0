"""Figures: what they draw, read back from the axes."""

import subprocess
import sys

import matplotlib
import pytest
import torch

from e2lib import figures, models
from e2lib.datasets import Scenes, Without, collate

matplotlib.use("Agg")


def test_show_samples_draws_every_box_where_it_is():
    dataset = Scenes("train", 5, 64)
    samples = [dataset[i] for i in range(5)]
    figure = figures.show_samples(samples, dataset.classes, columns=3)
    assert len(figure.axes) == 5
    for axis, sample in zip(figure.axes, samples, strict=True):
        drawn = [(r.get_x() + 0.5, r.get_y() + 0.5, r.get_width(), r.get_height()) for r in axis.patches]
        assert drawn == [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in sample.boxes.tolist()]
        assert set(axis.get_title().split(", ")) == {dataset.classes[c] for c in sample.box_labels}


def test_show_maps_has_a_row_an_image_and_a_column_a_method():
    images, maps = torch.rand(2, 3, 16, 16), torch.randn(2, 1, 16, 16)
    figure = figures.show_maps(
        images, {"a": maps, "zero": 0 * maps}, boxes=[torch.tensor([[1, 2, 5, 6]])] * 2, notes={"a": ["x", "y"]}
    )
    *panels, scale = figure.axes
    assert len(panels) == 6 and panels[1].get_title() == "a" and panels[4].get_xlabel() == "y"
    assert all(len(axis.patches) == 1 for axis in panels) and not scale.patches
    shown = panels[1].images[-1]
    torch.testing.assert_close(torch.tensor(shown.get_array().data), maps[0, 0] / maps[0].abs().sum())
    assert shown.norm.vmin == -shown.norm.vmax < 0  # zero is in the middle of the colours


def test_maps_of_an_image_share_one_scale():
    """A map that spreads over four times the pixels has a quarter of the colour, however large its values are."""
    narrow, wide = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    narrow[..., :4, :4], wide[..., :8, :8] = 1.0, 100.0
    figure = figures.show_maps(torch.rand(1, 3, 16, 16), {"narrow": narrow, "wide": wide})
    one, other = (figure.axes[n].images[-1] for n in (1, 2))
    assert one.norm.vmax == other.norm.vmax == pytest.approx(1 / 16)
    assert other.get_array().max() == pytest.approx(1 / 64)
    maps = {"narrow": narrow, "wide": wide, "own": wide}
    figure = figures.show_maps(torch.rand(1, 3, 16, 16), maps, alone=["own"])
    assert [figure.axes[n].images[-1].norm.vmax for n in (1, 2, 3)] == pytest.approx([1 / 16, 1 / 16, 1 / 64])


def test_show_removal_has_both_pictures_and_what_each_network_says():
    data = Scenes("test", 4, 64)
    removed, net = Without(data, "scene"), models.build("bcos_scenes", 10, "scenes")
    figure = figures.show_removal({"one": net, "two": net}, data, removed, [1, 2], "bcos", "Input")
    assert len(figure.axes) == 2 * 6 + 1  # the last one is the colour bar
    limits = [figure.axes[n].images[-1].norm.vmax for n in (1, 2, 4, 5)]
    assert limits[0] == limits[1] and limits[2] == limits[3] >= limits[0] / 10  # of a photograph, for both networks
    assert [axis.get_title() for axis in figure.axes[1:3]] == ["one", "two"] and not figure.axes[7].get_title()
    i, c = removed.pairs[1].tolist()
    before, after = figure.axes[0].images[0].get_array(), figure.axes[3].images[0].get_array()
    for shown, sample in ((before, data[i]), (after, removed[1])):
        assert torch.allclose(torch.tensor(shown.data), sample.image.permute(1, 2, 0) / 255)
    with torch.no_grad():
        chance = net.eval()(collate([removed[1]]).images)[0, c].sigmoid().item()
    assert figure.axes[4].get_xlabel() == figure.axes[5].get_xlabel() == f"{data.classes[c]} {chance:.0%}"


def test_colour_explanation_by_hand():
    images, weights = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 6, 4, 4)
    weights[0, :, 0, 0] = torch.tensor([3.0, 0, 1, 1, 2, -1])  # red 3 : 1, green 0 : 2, blue 1 : 0
    weights[0, :, 2, 2] = -1.0  # speaks against: invisible
    rgba = figures.colour_explanation(images, weights, smooth=1)
    assert rgba.shape == (1, 4, 4, 4)
    torch.testing.assert_close(rgba[0, 0, 0], torch.tensor([0.75, 0, 1, 1]))
    assert rgba[0, 2, 2, 3] == 0 and rgba.isfinite().all()


@pytest.fixture(autouse=True)
def close():
    yield
    matplotlib.pyplot.close("all")


def test_front_rings_what_is_not_beaten_and_names_each_training_once():
    def point(weight, epoch, f1, epg, file):
        return {"setting": {"weight": weight, "epoch": epoch}, "scores": {"F1": f1, "EPG": epg}, "file": file}

    points = [point(0.1, 1, 80, 60, None), point(0.1, 2, 82, 65, "0"), point(1.0, 1, 70, 75, "1")]
    figure = figures.show_front(points, {"F1": 83, "EPG": 55}, 82.5)
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert [[80, 60], [82, 65]] in lines and [[82, 65]] in lines and [[70, 75]] in lines and [[83, 55]] in lines
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["λ = 0.1", "λ = 1", "baseline (λ = 0)"]


def test_data_sets_and_figures_need_no_package_that_only_some_have():
    code = """
import sys
from e2lib import figures
figures.use_style()
figures.add_box(figures.plt.subplots()[1], (0, 0, 1, 1), "white")
print(figures.plt.rcParams["figure.dpi"], {"seaborn", "pandas", "IPython", "pycocotools", "captum"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "144.0 set()\n", done.stderr
