"""The numbers of runs: notebooks record them, a tidy table holds one per row, a report shows means over seeds."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from e2lib.course import notebook
from e2lib.disk import write as write_text

NUMBERS = "application/vnd.e2lib.numbers+json"  # rows of numbers in a notebook's output
COLUMNS = ("run", "notebook", "data", "model", "method", "setting", "seed", "selection rule", "metric", "value")
COLUMNS += ("commit", "minutes", "device")
KEYS = [name for name in COLUMNS if name not in ("metric", "value")]
MADE = ("commit", "minutes", "device")  # how a number was made: numbers that differ only in these are one number twice
SOURCES = {"head": "method", "loss": "method", "chosen by": "selection rule", "chosen for": "selection rule"}
SETTINGS = ("at", "boxes", "group labels", "images", "shots", "task")  # the other columns that are not metrics
# Columns of the report, in this order.
DESCRIBED = ("data", "model", "images", "task", "method", "selection rule", "group labels", "at", "boxes")
REPORTED = (
    *("worst group", "gain, worst group", "accuracy", "gain, accuracy", "out of distribution"),
    *("gain, out of distribution", "gain over KD, accuracy", "gain over KD, out of distribution"),
    *("agreement", "gain over KD, agreement", "agreement, out of distribution"),
    *("gain over KD, agreement, out of distribution", "F1", "Δ F1", "EPG", "Δ EPG", "way", "of all boxes' gain"),
    *("still named", "IoU", "Δ IoU", "on-object EPG", "F1 without context", "Δ F1 without context"),
)
HEAD = """# Results

`make results` writes this file, and more metrics into results.csv. Numbers are in per cent, on test images. The \
*selection rule* chooses λ and epoch on validation images; from 07 on, the notebook names λ. ± is the standard \
deviation over seeds. A seed changes training and its images; test images are always the same. Δ and *gain* are \
differences to the baseline of the same seed, trained for as many epochs at λ = 0; *gain over KD* to plain \
distillation. *Way* is the part of the gap between the baseline's EPG and the ceiling that is closed. *F1 kept* \
counts seeds whose choice lost at most one point of F1 on validation images; 04c names a rule so, which allows 0.3. \
*Agreement* is the share of images with \
the teacher's top class. sweeps/results.yaml describes the runs; all data but scenes and birds \
are [photographs](../docs/sweeps.md). A run of several revisions of the code is marked.
"""


def record(table: pd.DataFrame, settings: Collection[str] = ()) -> None:
    """Put the numbers of a table into the notebook's output, for `recorded`: one row per setting, metrics in per cent.

    The columns are notebook, data, model, seed, method (or head, or loss), `SETTINGS`, the further `settings`, and
    metrics. "split" is test or validation, "F1 kept" yes or no. ValueError for any other word there, for a metric that
    is not a number, and for two columns of one name.
    """
    from IPython.display import display

    if twice := sorted({*table.columns[table.columns.duplicated()]}):
        raise ValueError(f"the table has two columns {', '.join(map(repr, twice))}; the names of columns must differ")
    for name, words in {"split": ("test", "validation"), "F1 kept": ("yes", "no")}.items():
        if name in table and (wrong := [word for word in table[name].dropna() if word not in words]):
            raise ValueError(f"column {name!r} holds {wrong[0]!r}; it must be one of {', '.join(words)}")
    known = {*KEYS, *SOURCES, *SETTINGS, *settings, "split", "F1 kept"}
    for name in (name for name in table if name not in known):
        try:
            table = table.assign(**{name: pd.to_numeric(table[name]).astype(float)})
        except (ValueError, TypeError):
            right = f"if it is a setting, use record(…, settings=[{name!r}])"
            raise ValueError(f"column {name!r} holds no numbers; {right}") from None
    content = json.loads(table.to_json(orient="split", index=False)) | {"settings": [*settings]}
    display({"text/plain": f"({len(table)} rows of numbers for make results)", NUMBERS: content}, raw=True)


def recorded(path: Path, split: str = "test") -> tuple[list[dict[str, Any]], set[str]]:
    """The rows of test or validation images that `record` put into an executed notebook, and its further settings.

    ValueError if there are no rows at all.
    """
    outputs = [output.get("data", {}) for cell in notebook.read(path).cells for output in cell.get("outputs", [])]
    tables = [data[NUMBERS] for data in outputs if NUMBERS in data]
    if not (rows := [dict(zip(t["columns"], row, strict=True)) for t in tables for row in t["data"]]):
        raise ValueError(f"{path} holds no numbers: one of its cells has to call results.record")
    settings = {name for t in tables for name in t.get("settings", [])}
    return [row for row in rows if (row.pop("split", None) or "test") == split], settings


def tidy(rows: pd.DataFrame, settings: Collection[str] = ()) -> pd.DataFrame:
    """A table with one number per row, in `COLUMNS`. `rows` are those of `recorded`, with run, minutes, device, commit.

    Metrics are in per cent, except "λ", "epoch", "seconds …" and "F1 kept" (1 or 0). The settings of a row are in
    "setting", as `name=value; name=value`. ValueError for a text that would make this ambiguous.
    """
    settings, found = {*SETTINGS, *settings}, []
    others = [name for name in rows if name not in {*KEYS, *SOURCES, "F1 kept"}]
    for row in rows.to_dict("records"):
        row = {name: value for name, value in row.items() if pd.notna(value)}
        about = {name: row.get(name, "") for name in KEYS}
        about["method"] = row.get("head", row.get("loss", about["method"]))
        # λ and epoch are chosen together, from the front of a Pareto archive.
        kept = f"{row.get('chosen for', 'EPG')} of validation images, F1 kept"
        about["selection rule"] = kept if "λ" in row else row.get("chosen by", about["selection rule"] or "last epoch")
        about["setting"] = "; ".join(_setting(name, row[name]) for name in others if name in settings and name in row)
        if "F1 kept" in row:
            row["F1 kept"] = float(row["F1 kept"] == "yes")
        metrics = [name for name in (*others, "F1 kept") if name in row and name not in settings]
        found += [about | {"metric": name, "value": row[name]} for name in metrics]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _setting(name: str, value: Any) -> str:
    text = f"{name}={int(value) if isinstance(value, float) and value.is_integer() else value}"
    if ";" in text or text.count("=") > 1:
        raise ValueError(f"{name}: {value!r} holds '=' or ';', which separate settings")
    return text


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """A table with one row per setting and seed, and one column per metric, from a tidy table.

    ValueError for a number that is there twice, also if the two are of different revisions.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    keys = [table[name].astype(object).fillna("") for name in KEYS]  # NaN equals nothing
    for *key, metric, value in zip(*keys, table.metric, table.value, strict=True):
        about = dict(zip(KEYS, key, strict=True))
        told = tuple(value for name, value in about.items() if name not in MADE)
        if (row := rows.get(told)) is None:
            pairs = [part.split("=") for part in about["setting"].split("; ") if part]
            row = rows[told] = about | {name: float(text) if text.isdigit() else text for name, text in pairs}
        if metric in row or any(row[name] != about[name] for name in MADE):
            other = ", ".join(f"{name} {row[name]}" for name in MADE)
            raise ValueError(f"{metric} is there twice for {about}; the other has {other}; take one of the two out")
        row[metric] = value
    return pd.DataFrame(rows.values()).drop(columns="setting", errors="ignore")


def read(path: str | Path) -> pd.DataFrame:
    """The tidy table in a file that `write` wrote. ValueError for other columns, and values that are no numbers."""
    texts = dict.fromkeys(("run", "notebook", "commit", "setting", "method"), str)
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={"value": [""], "minutes": [""]})
    if [*table] != [*COLUMNS]:
        raise ValueError(f"{path} has the columns {', '.join(table)}; a table of results has {', '.join(COLUMNS)}")
    for name in ("value", "minutes"):
        wrong = table[name].notna() & pd.to_numeric(table[name], errors="coerce").isna()
        if wrong.any():
            raise ValueError(f"{path}: the column {name} holds {table[name][wrong].iloc[0]!r}; it must hold numbers")
    return table


def write(path: Path, table: pd.DataFrame) -> Path:
    """Replace the file in one step. Numbers have six digits."""
    write_text(path, table.to_csv(index=False, float_format="%.6g"))
    return path


def pooled(table: pd.DataFrame) -> dict[str, str]:
    """The runs with rows of several revisions of the code, and these: {"10": "4442e5c5bf69, 7703bcc46ccd"}."""
    found = table.commit.fillna("").astype(str).replace("", "unknown").groupby(table.run, sort=False).unique()
    return {run: ", ".join(sorted(commits)) for run, commits in found.items() if len(commits) > 1}


def revisions(table: pd.DataFrame) -> str:
    """A sentence that names the revision, or the revisions, of a table's rows; empty if none is known."""
    if several := pooled(table.assign(run="")):
        return f"Of several revisions: {several['']}. Their code may differ: run all of it anew."
    return "".join(f"Revision {commit}." for commit in {*table.commit.dropna()} - {""})


def report(table: pd.DataFrame) -> str:
    """A tidy table as Markdown: one table per run, with means ± standard deviations over seeds."""
    text, whole = HEAD, wide(table)
    known = [*DESCRIBED, *(name for name in whole if name not in {*DESCRIBED, *KEYS, *table.metric})]
    for run, part in whole.groupby("run", sort=False):
        text += f"\n## {run}{' (several revisions)' * bool(pooled(part))}\n\n"
        text += f"Seeds: {', '.join(map(str, sorted(part.seed.unique())))}. {revisions(part)}\n\n"
        part = part.replace("", float("nan")).dropna(axis=1, how="all")
        names, metrics = ([name for name in these if name in part] for these in (known, REPORTED))
        choices = [name for name in ("λ", "F1 kept") if name in part]
        text += f"| {' | '.join([*names, *choices, *metrics])} |\n|{'---|' * len([*names, *choices, *metrics])}\n"
        for setting, rows in part.groupby([part[name].astype(object).fillna("") for name in names], sort=False):
            cells = [f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|") for value in setting]
            if choices:
                cells.append(", ".join(f"{value:g}" for value in sorted({*rows["λ"]})))
                cells.append(f"{rows['F1 kept'].eq(1).sum()} of {len(rows)}")
            for mean, deviation in zip(rows[metrics].mean(), rows[metrics].std(), strict=True):
                spread = f" ± {deviation:.1f}" if deviation == deviation else ""
                # + 0.0 turns -0.0 into 0.0.
                cells.append(f"{round(mean, 1) + 0.0:.1f}{spread}" if mean == mean else "")
            text += f"| {' | '.join(cells)} |\n"
    return text
