"""Verdicts on claims, by hand-made results."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from e2lib.course import claims, results
from e2lib.course.figures import show_claims
from e2lib.course.notebook import read

RESULTS = pd.DataFrame(
    [
        {"run": run, "method": method, "seed": seed, "accuracy": value, "commit": f"{run}{seed % 2 * (run == 'real')}"}
        for run, method, numbers in (
            ("one", "KD", (10.0, 12.0, 11.0)),
            ("one", "e²KD", (20.0, 21.0, 22.0)),
            ("one", "AT", (9.0, 12.0, 13.0)),
            ("real", "KD", (30.0, 30.0, 31.0)),
            ("real", "e²KD", (20.0, 21.0, 20.0)),
        )
        for seed, value in enumerate(numbers)
    ]
)


def claim(**changes):
    of = {"where": {"method": "e²KD"}, "value": "accuracy", "minus": {"method": "KD"}}
    content = {
        "claim": "c",
        "paper": "e²KD",
        "theme": "few images",
        "paper_says": 5.1,
        "setting": "s",
        "ours": {"embedded": {"run": "one"} | of},
    }
    return content | changes


def judged(tmp_path, *contents):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(list(contents)))
    return claims.judge(claims.read(path), RESULTS)


def test_a_difference_is_taken_seed_by_seed(tmp_path):
    [row] = judged(tmp_path, claim()).to_dict("records")
    assert row["ours"] == pytest.approx(10.0)  # 10, 9 and 11
    assert (row["low"], row["high"]) == pytest.approx((10 - 4.303 / 3**0.5, 10 + 4.303 / 3**0.5))
    assert (row["here"], row["verdict"], row["seeds"]) == ("holds", "holds", 3)


@pytest.mark.parametrize(("above", "said"), [(0, "holds"), (10, "undecided"), (13, "does not hold")])
def test_the_verdict_follows_from_the_bound(tmp_path, above, said):
    [row] = judged(tmp_path, claim(above=above)).to_dict("records")
    assert row["verdict"] == said


def test_a_claim_is_judged_by_all_its_data(tmp_path):
    of = claim()["ours"]["embedded"]
    rival, real = of | {"where": {"method": "AT"}}, of | {"run": "real"}
    table = judged(
        tmp_path,
        claim(claim="a", ours={"embedded": of, "real": real}),
        claim(claim="b", ours={"embedded": rival}),
        claim(claim="c", ours={"embedded": rival, "real": real, "absent": of | {"run": "two"}}),
        claim(claim="d", ours={"absent": of | {"run": "two"}}),
    )
    assert table.here.tolist() == ["holds", "does not hold", "undecided", "undecided", "does not hold"]
    assert table.verdict.tolist() == ["mixed", "mixed", "undecided", "does not hold", "does not hold"]


def test_wrong_claims_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="claims.yaml, claim 2: ours.embedded.valeu: Extra inputs"):
        judged(tmp_path, claim(), claim(ours={"embedded": claim()["ours"]["embedded"] | {"valeu": "x"}}))
    with pytest.raises(ValueError, match=r"claim 1: headline names \['embeded'\]; choose from \['embedded'\]"):
        judged(tmp_path, claim(headline=["embeded"]))
    with pytest.raises(ValueError, match="claim 2: there is another claim 'c'"):
        judged(tmp_path, claim(), claim())
    with pytest.raises(ValueError, match="run one: the results have no column 'EPG'"):
        judged(tmp_path, claim(ours={"embedded": {"run": "one", "where": {}, "value": "EPG"}}))
    with pytest.raises(ValueError, match="names 0 rows of 'accuracy'; one per seed"):
        judged(tmp_path, claim(ours={"embedded": {"run": "one", "where": {"method": "DIST"}, "value": "accuracy"}}))
    with pytest.raises(ValueError, match="names 9 rows of 'accuracy'; one per seed"):
        judged(tmp_path, claim(ours={"embedded": {"run": "one", "where": {}, "value": "accuracy"}}))
    with pytest.raises(ValueError, match="there are 1 seeds; an interval needs 2 to 10"):
        claims.interval(pd.Series([1.0]))


def test_claims_on_several_revisions_are_marked(tmp_path):
    of = claim()["ours"]["embedded"]
    table = judged(tmp_path, claim(claim="a"), claim(claim="b", ours={"real data": of | {"run": "real"}}))
    assert table.revisions.tolist() == ["", "real0, real1"]
    axis = show_claims(table).axes[0]
    assert [label.get_text().endswith("†") for label in axis.get_yticklabels()] == [False, True]
    assert "real0" not in axis.get_xlabel()  # a reader needs no revisions on a figure


def test_a_claims_file_loses_no_line(tmp_path):
    path = tmp_path / "claims.yaml"
    for text, complaint in (
        ("- {claim: a, above: 1, above: -1}", "is no YAML: above stands twice"),
        ("claim: a", "holds {'claim': 'a'} instead of a list"),
        ("- {claim: a", "is no YAML"),
        ("- above", "claim 1: : Input should be a valid dictionary"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"claims.yaml,? {complaint}"):
            claims.read(path)
    with pytest.raises(FileNotFoundError, match="there is no .*absent.yaml"):
        claims.read(tmp_path / "absent.yaml")


def test_absent_runs_are_named(tmp_path):
    (tmp_path / "claims.yaml").write_text(
        yaml.safe_dump([claim(ours={"a": claim()["ours"]["embedded"] | {"run": "two"}})])
    )
    assert claims.missing(claims.read(tmp_path / "claims.yaml"), RESULTS) == ["two"]


def test_every_claim_of_the_repository_has_its_numbers():
    results, found = claims.load(), claims.read()
    assert claims.missing(found, results) == []
    assert set(claims.judge(found, results).claim) == {one.claim for one in found}


def test_notebook_11_shows_every_claim():
    cells = read(Path(__file__).parents[2] / "notebooks" / "11_what_holds_up.ipynb").cells
    shown = [re.findall(r'theme == "(.*)"', cell.source) for cell in cells if cell.cell_type == "code"]
    assert sorted(theme for found in shown for theme in found) == sorted({one.theme for one in claims.read()})


def test_changed_verdicts_are_named_and_fail(tmp_path):
    path, before, after = (tmp_path / name for name in ("claims.yaml", "before.csv", "after.csv"))
    path.write_text(yaml.safe_dump([claim(claim="a"), claim(claim="b", above=10)]))
    rows = RESULTS.rename(columns={"method": "head"})
    results.write(before, results.tidy(rows))
    results.write(after, results.tidy(rows.assign(accuracy=rows.accuracy.where(rows["head"] != "e²KD", 11.0))))

    def compare(*files):
        command = [sys.executable, "-m", "tests.verdicts", *files]
        return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)

    assert compare(path, before, before).stdout == "no verdict changed\n"
    done = compare(path, before, after)
    assert done.returncode == 1
    assert "a: holds before, undecided now" in done.stderr and "b: undecided before, does not hold now" in done.stderr
