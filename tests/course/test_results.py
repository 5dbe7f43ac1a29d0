"""The tidy table of all runs' numbers: nothing is lost on the way there and back."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from e2lib.course import results

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
    table = results.read(results.write(tmp_path / "results.csv", results.tidy(ROWS)))
    assert [*table] == [*results.COLUMNS] and len(table) == 1 + 2 + 3 + 3 + 1
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
    rows = results.wide(results.read(results.write(tmp_path / "results.csv", results.tidy(ROWS))))
    assert len(rows) == len(ROWS) and (rows.commit == "0012").all()
    assert rows.shots.tolist()[:2] == [20, "all"] and rows.images[0] == 160
    assert rows.method.tolist() == ["KD", "KD", "l1", "l1", "DFR"]
    for name in ("accuracy", "EPG", "F1", "λ"):
        pd.testing.assert_series_equal(rows[name], ROWS[name], rtol=1e-5)


def test_the_choice_among_several_is_told_apart_on_validation_images_too():
    picks = pd.DataFrame([{"run": "04", "loss": "l1", "λ": 0.5, "chosen for": goal} | ABOUT for goal in ("EPG", "IoU")])
    assert sorted({*results.tidy(picks)["selection rule"]}) == [
        "EPG of validation images, F1 kept",
        "IoU of validation images, F1 kept",
    ]


def test_what_would_be_ambiguous_or_is_another_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="task: 'a=b; c' holds '=' or ';', which separate settings"):
        results.tidy(ROWS.assign(task="a=b; c"))
    with pytest.raises(ValueError, match="accuracy is there twice for .*'run': '06'"):
        results.wide(results.tidy(pd.concat([ROWS, ROWS[4:]])))
    (tmp_path / "old.csv").write_text("run,seed\n1,2\n")
    with pytest.raises(ValueError, match="old.csv has the columns run, seed; a table of results has run, notebook"):
        results.read(tmp_path / "old.csv")


def test_each_number_that_is_kept_tells_where_it_comes_from():
    path = Path(__file__).parents[2] / "notebooks" / "results.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    gaps = table[(table == "").any(axis=1)]
    assert gaps.empty, f"rows with empty fields, of the runs {sorted({*gaps.run})}"
    unclear = table[~table.commit.str.fullmatch("[0-9a-f]{12}")]  # such as 730fe3b3764f-dirty
    assert unclear.empty, f"rows from no commit, of the runs {sorted({*unclear.run})}"
    assert (table.minutes.astype(float) > 0).all()


def test_rows_of_validation_images_are_told_from_those_of_test_images(tmp_path):
    first = {"columns": ["F1", "split"], "data": [[1.0, None], [2.0, "validation"], [3.0, "test"]]}
    other = {"columns": ["EPG"], "data": [[4.0]], "settings": ["width"]}
    outputs = [new_output("display_data", {results.NUMBERS: numbers}) for numbers in (first, other)]
    nbformat.write(new_notebook(cells=[new_code_cell("1", outputs=outputs)]), tmp_path / "a.ipynb")
    assert results.recorded(tmp_path / "a.ipynb") == ([{"F1": 1.0}, {"F1": 3.0}, {"EPG": 4.0}], {"width"})
    assert results.recorded(tmp_path / "a.ipynb", "validation") == ([{"F1": 2.0}], {"width"})


def test_a_notebook_without_numbers_is_named(tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match="a.ipynb holds no numbers: one of its cells has to call results.record"):
        results.recorded(tmp_path / "a.ipynb")


def test_settings_are_named_not_guessed(monkeypatch):
    rows = pd.DataFrame([{"width": 3, "kind": "a", "F1": None, "EPG": 2.0}])
    with pytest.raises(ValueError, match=r"column 'kind' holds no numbers; .*settings=\['kind'\]"):
        results.record(rows)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    results.record(rows, settings=["width", "kind"])
    assert shown[0][results.NUMBERS]["settings"] == ["width", "kind"]
    table = results.tidy(rows.assign(run="a"), ["width", "kind"])
    assert table[["setting", "metric", "value"]].to_numpy().tolist() == [["width=3; kind=a", "EPG", 2.0]]


def test_a_report_says_of_which_revisions_its_rows_are():
    rows = pd.DataFrame([{"run": "a", "seed": seed, "F1": 1.0, "commit": f"{seed:012}"} for seed in (1, 2)])
    report = results.report(results.tidy(rows))
    assert "## a (several revisions)\n\nSeeds: 1, 2. Of several revisions: 000000000001, 000000000002." in report
    assert "## a\n\nSeeds: 1. Revision 000000000001." in results.report(results.tidy(rows[:1]))
    unknown = results.tidy(rows.assign(commit=["000000000001", ""]))
    assert results.pooled(unknown) == {"a": "000000000001, unknown"}
    assert results.pooled(pd.concat([unknown.assign(run="b", commit="c"), unknown[:1]])) == {}


def test_the_runs_of_several_revisions_in_the_repository_are_marked():
    folder = Path(__file__).parents[2] / "notebooks"
    text, table = (folder / "results.md").read_text(), results.read(folder / "results.csv")
    for run, part in table.groupby("run"):
        commits = sorted({*part.commit})
        assert (f"## {run} (several revisions)\n" in text) == (len(commits) > 1)
        assert f"Of several revisions: {', '.join(commits)}." in text or len(commits) == 1


def test_one_number_of_two_revisions_is_refused():
    row = {"run": "a", "loss": "l1", "seed": 0, "F1": 1.0, "commit": "1", "minutes": 2.0}
    for change in ({"commit": "2"}, {"minutes": 3.0}, {"commit": "2", "F1": None, "EPG": 5.0}):
        with pytest.raises(ValueError, match="is there twice for .*the other has commit 1, minutes 2.0"):
            results.wide(results.tidy(pd.DataFrame([row, row | change])))


def test_a_report_averages_over_seeds_alone():
    rows = [{"run": "a", "seed": s, "axis λ": x, "F1": 10 * x + s, "commit": "1"} for s in (0, 2) for x in (1, 5)]
    text = results.report(results.tidy(pd.DataFrame(rows), ["axis λ"]))
    assert text.splitlines()[-4:] == [
        "| selection rule | axis λ | F1 |",
        "|---|---|---|",
        "| last epoch | 1 | 11.0 ± 1.4 |",
        "| last epoch | 5 | 51.0 ± 1.4 |",
    ]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (pd.DataFrame([[1.0, 2.0]], columns=["F1", "F1"]), "two columns 'F1'"),
        (pd.DataFrame({"F1": [1.0], "split": ["val"]}), "'split' holds 'val'; it must be one of test, validation"),
        (pd.DataFrame({"F1": [1.0], "F1 kept": [True]}), "'F1 kept' holds True; it must be one of yes, no"),
    ],
)
def test_a_table_whose_rows_would_be_lost_is_refused(table, complaint):
    with pytest.raises(ValueError, match=complaint):
        results.record(table)


def test_texts_of_digits_and_truth_values_are_numbers(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data[results.NUMBERS]))
    results.record(pd.DataFrame({"F1": ["1.5"], "right": [True], "seed": [3]}))
    assert dict(zip(shown[0]["columns"], shown[0]["data"][0], strict=True)) == {"F1": 1.5, "right": 1.0, "seed": 3}


def test_columns_named_as_in_the_table_are_kept():
    row = {"run": "a", "method": "KD", "selection rule": "by hand", "F1": 1.0}
    found = results.tidy(pd.DataFrame([row])).iloc[0]
    assert (found.method, found["selection rule"]) == ("KD", "by hand")


def test_a_value_that_is_no_number_is_named(tmp_path):
    path = results.write(tmp_path / "results.csv", results.tidy(ROWS))
    path.write_text(path.read_text().replace("60.25", "sixty"))
    with pytest.raises(ValueError, match="results.csv: the column value holds 'sixty'; it must hold numbers"):
        results.read(path)


def test_the_report_of_the_repository_is_that_of_its_numbers():
    folder = Path(__file__).parents[2] / "notebooks"
    assert results.report(results.read(folder / "results.csv")) == (folder / "results.md").read_text()
