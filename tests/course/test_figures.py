"""Figures of the lessons: what they draw, read back from the axes."""

import matplotlib
import pandas as pd
import pytest

from e2lib.course import figures


@pytest.fixture(autouse=True)
def close():
    yield
    matplotlib.pyplot.close("all")


def test_ways_are_bars_of_the_ceiling_the_guided_and_the_baseline():
    table = pd.DataFrame({"baseline EPG": [60.0], "EPG": [75.0], "ceiling": [100.0], "seconds": [7.0]}, index=["Input"])
    axis, time = figures.show_ways(table).axes
    assert [bar.get_width() for bar in axis.patches] == [100, 75, 60]
    assert [bar.get_width() for bar in time.patches] == [7]


def test_bars_by_group_with_the_worst_named():
    groups = ["a", "b", "c"]
    table = pd.DataFrame(
        [[90, 30, 60.0, 55], [80, 70, 65.0, 72]], ["one", "l1, of two and more"], [*groups, "accuracy"]
    )
    figure = figures.show_groups(table, groups, unseen=["b"])
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [90, 80, 30, 70, 60, 65]
    assert [text.get_text() for text in axis.texts] == ["30", "65"]
    assert [round(text.get_position()[0], 3) for text in axis.texts] == [0, round(1 + 0.8 / 3, 3)]
    [dashes] = axis.collections
    assert [segment[0, 1] for segment in dashes.get_segments()] == [55, 72]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["one", "L1, of two\nand more"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["all images", "a", "b, not in training", "c"]


def test_show_claims_marks_each_number_above_its_bound():
    row = {"claim": "a", "above": 1.0, "ours": 4.0, "low": 3.0, "high": 5.0, "paper_says": 8.0, "here": "holds"}
    row |= {"revisions": "", "held": "1 of 2", "theme": "few images"}
    other = row | {"ours": 0.0, "low": -2.0, "high": 2.0, "paper_says": None, "here": "undecided"}
    rows = [row | {"data": "x"}, row | {"data": "y"}, other | {"claim": "b", "data": "x", "revisions": "1 and 2"}]
    table = pd.DataFrame([r | {"reproductions": {"A": 7.0}, "verdict": r["here"]} for r in rows])
    figure = figures.show_claims(table)
    [axis] = figure.axes
    assert figure.get_suptitle() == "few images"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a\u00a0· x", "y", "b\u00a0· x †"]
    drawn = {m: [tuple(line.get_xdata()) for line in axis.lines if line.get_marker() == m] for m in "oDx"}
    assert drawn["o"] == [(3.0,), (3.0,), (-1.0,)]  # 4 is 3 above the bound
    assert drawn["D"] == [(7.0,)] and drawn["x"] == [(6.0,), (6.0,)]  # once a claim
    assert [text.get_text() for text in axis.texts] == ["holds (1 of 2)", "undecided (1 of 2)"]
