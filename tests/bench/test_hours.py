"""The estimate of GPU hours: what jobs share is counted once, and every step of every sweep can be timed."""

from pathlib import Path

import pytest
import yaml

from tests.bench import hours, page

ROOT = Path(__file__).parents[2]


@pytest.fixture
def of(tmp_path, monkeypatch):
    """The images that each step takes in a sweep of a preset at paper scale, with these axes."""
    monkeypatch.chdir(ROOT)

    def total(number, **axes):
        path = tmp_path / "a.yaml"
        path.write_text(yaml.safe_dump({"notebook": number, "preset": f"paper/{number}", "axes": axes}))
        return hours.total(path)

    return total


def test_a_baseline_is_counted_once_and_guidance_for_each_job(of):
    jobs, once = of("04b", seed=[0], depths=[["Input"]])
    assert jobs == 1
    assert once == {("plain", "bcos_resnet50"): 2501 * 350, ("guided", "bcos_resnet50", "Input"): 2501 * 50 * 12}
    jobs, both = of("04b", seed=[0, 1], depths=[["Input"], ["Final"]])
    assert jobs == 4
    assert both == {
        ("plain", "bcos_resnet50"): 2 * once["plain", "bcos_resnet50"],
        ("guided", "bcos_resnet50", "Input"): 2 * once["guided", "bcos_resnet50", "Input"],
        ("guided", "bcos_resnet50", "Final"): 2 * once["guided", "bcos_resnet50", "Input"],
    }


def test_kd_is_counted_once_for_all_lambdas_of_e2kd(of):
    _, one = of("07b", seed=[0], **{"explained.weight": [1.0]})
    _, three = of("07b", seed=[0], **{"explained.weight": [1.0, 5.0, 10.0]})
    explained = ("e2kd", "resnet34", "resnet18", "gradcam", "Final")
    assert three.pop(explained) == 3 * one.pop(explained) and three == one
    assert one["plain", "resnet18"] == 50_000 * 250 + 200_000 * 125 + 1_153_050 * 200


def test_mixup_asks_the_teacher_itself(of):
    n = 4795 * 700
    _, plain = of("08b", seed=[0], **{"network_schedule.mixup": [0.0]})
    _, mixed = of("08b", seed=[0], **{"network_schedule.mixup": [1.0]})
    rivals, live = ("kd", "resnet50", "resnet18"), ("e2kd", "resnet50", "resnet18", "ixg", "Final")
    assert (plain["plain", "resnet18"], plain[rivals], plain["frozen", "resnet18", "ixg", "Final"]) == (2 * n, 3 * n, n)
    assert (mixed["plain", "resnet18"], mixed[rivals], mixed[live]) == (n, 4 * n, n)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks" / "sweeps").glob("paper-*.yaml")), ids=lambda path: path.stem
)
def test_each_sweep_at_paper_scale_can_be_estimated(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    jobs, images = hours.total(path)
    assert jobs > 1 and all(taken > 0 for taken in images.values())


@pytest.mark.parametrize("step", [("plain",), ("guided", "Final"), ("frozen", "weights", "Input")])
def test_steps_of_one_network_are_timed(step):
    assert hours.seconds((step[0], "bcos_scenes", *step[1:]), repeats=1) > 0


@pytest.mark.parametrize("step", [("kd",), ("e2kd", "gradcam", "Final")])
def test_steps_of_two_networks_are_timed(step):
    assert hours.seconds((step[0], "bcos_scenes", "bcos_scenes", *step[1:]), repeats=1) > 0


@pytest.mark.parametrize("name", ["make bench", "GPU hours"])
def test_the_page_has_a_place_for_each_table(name, monkeypatch, tmp_path):
    copy = tmp_path / "costs.md"
    copy.write_text(page.PAGE.read_text())
    monkeypatch.setattr(page, "PAGE", copy)
    page.write(name, "| a |")
    assert f"<!-- {name} -->\n| a |\n<!-- end -->" in copy.read_text()
    assert copy.read_text().count("<!-- end -->") == 2
    copy.write_text("")
    with pytest.raises(ValueError, match=f"one place <!-- {name} -->"):
        page.write(name, "| a |")
