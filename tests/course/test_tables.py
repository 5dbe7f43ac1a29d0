"""The tidy table of all runs' numbers: nothing is lost on the way there and back."""

from pathlib import Path

import pandas as pd
import pytest

from e2lib.course import tables

ABOUT = {
    "notebook": "09",
    "data": "scenes",
    "model": "a → b",
    "seed": 1,
    "minutes": 2.5,
    "device": "cpu",
    "commit": "0012",
}
ROWS = pd.DataFrame(
    [
        {"run": "09", "head": "KD", "task": "bird, whole", "shots": 20, "images": 160, "accuracy": 50.0, **ABOUT},
        {"run": "09", "head": "KD", "task": "bird, whole", "shots": "all", "accuracy": 60.25, "EPG": 1 / 3, **ABOUT},
        {"run": "04", "loss": "l1", "at": "Input", "λ": 0.5, "F1 kept": "no", "chosen for": "IoU", "F1": 1.0, **ABOUT},
        {"run": "05", "loss": "l1", "at": "Input", "λ": 0.5, "F1 kept": "yes", "F1": 2.0, **ABOUT},
        {"run": "06", "head": "DFR", "chosen by": "worst validation group", "accuracy": 3.0, **ABOUT},
    ]
)


def test_each_number_has_a_row_with_all_that_tells_it_from_others(tmp_path):
    table = tables.read(tables.write(tmp_path / "results.csv", tables.tidy(ROWS)))
    assert [*table] == [*tables.COLUMNS] and len(table) == 1 + 2 + 3 + 3 + 1
    first = table.iloc[0].to_dict()
    assert first == ABOUT | {
        "run": "09",
        "method": "KD",
        "setting": "task=bird, whole; shots=20; images=160",
        "selection rule": "last epoch",
        "metric": "accuracy",
        "value": 50.0,
    }
    assert table.groupby("run", sort=False)["selection rule"].first().tolist() == [
        "last epoch",
        "IoU of validation images, F1 kept",
        "EPG of validation images, F1 kept",
        "worst validation group",
    ]
    assert table[table.metric == "F1 kept"].value.tolist() == [0, 1]


def test_nothing_is_lost_there_and_back(tmp_path):
    rows = tables.wide(tables.read(tables.write(tmp_path / "results.csv", tables.tidy(ROWS))))
    assert len(rows) == len(ROWS) and (rows.commit == "0012").all()
    assert rows.shots.tolist()[:2] == [20, "all"] and rows.images[0] == 160
    assert rows.method.tolist() == ["KD", "KD", "l1", "l1", "DFR"]
    for name in ("accuracy", "EPG", "F1", "λ"):
        pd.testing.assert_series_equal(rows[name], ROWS[name], rtol=1e-5)


def test_the_choice_among_several_is_told_apart_on_validation_images_too():
    picks = pd.DataFrame([{"run": "04", "loss": "l1", "λ": 0.5, "chosen for": goal} | ABOUT for goal in ("EPG", "IoU")])
    assert sorted({*tables.tidy(picks)["selection rule"]}) == [
        "EPG of validation images, F1 kept",
        "IoU of validation images, F1 kept",
    ]


def test_what_would_be_ambiguous_or_is_another_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="task: 'a=b; c' holds '=' or ';', which separate settings"):
        tables.tidy(ROWS.assign(task="a=b; c"))
    with pytest.raises(ValueError, match="accuracy is there twice for .*'run': '06'"):
        tables.wide(tables.tidy(pd.concat([ROWS, ROWS[4:]])))
    (tmp_path / "old.csv").write_text("run,seed\n1,2\n")
    with pytest.raises(ValueError, match="old.csv has the columns run, seed; a table of results has run, notebook"):
        tables.read(tmp_path / "old.csv")


def test_each_number_that_is_kept_tells_where_it_comes_from():
    path = Path(__file__).parents[2] / "notebooks" / "results.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    gaps = table[(table == "").any(axis=1)]
    assert gaps.empty, f"rows with empty fields, of the runs {sorted({*gaps.run})}"
    unclear = table[~table.commit.str.fullmatch("[0-9a-f]{12}")]  # such as 730fe3b3764f-dirty
    assert unclear.empty, f"rows from no commit, of the runs {sorted({*unclear.run})}"
    assert (table.minutes.astype(float) > 0).all()
