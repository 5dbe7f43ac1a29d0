"""Stand-ins: a folder with notebooks that take a second, their presets, and the Snakefile."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[2]


def write(path: Path, *cells: str, first: str = "# Parameters: a\nsize = 64") -> Path:
    """A notebook with the parameters cell `first` and `cells`."""
    card = {"minutes": 9, "hardware": "CPU", "question": "?"}
    found = [new_markdown_cell("# Title"), *(new_code_cell(cell) for cell in (first, *cells))]
    found[1].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=found, metadata={"e2lib": card}), path)
    return path


def course(*words: str, start=subprocess.run, session: bool = False, **variables: str):
    """`python -m e2lib.course WORDS` in the working directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": session}
    return start([sys.executable, "-m", "e2lib.course", *map(str, words)], env=environment, **output)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with presets for three notebooks and the Snakefile; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where GPUs' locks are: tests run side by side
    for preset in ("smoke", "laptop", "paper"):
        for number in ("01", "02", "03"):
            file = tmp_path / "notebooks" / "presets" / preset / f"{number}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}" if preset == "laptop" else "size: 96")
    (tmp_path / "notebooks" / "Snakefile").write_text((ROOT / "notebooks" / "Snakefile").read_text())
    return tmp_path
