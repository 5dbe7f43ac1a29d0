"""`python -m e2lib.course`: a notebook in one process or in several, with the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.course.conftest import ROOT, write

PARAMETERS = "# Parameters: a\nimages = 9\nseed = 0\nwork = None\ndevice = 'cpu'"
CODE = """import pandas as pd, torch
from e2lib import datasets, models, pareto, training
from e2lib.course import parameters, results
from e2lib.guidance import Guide
p = parameters.read(globals())
data = datasets.Scenes("train", p.images, 64, objects=1)
torch.manual_seed(p.seed)
net = models.build("test_convnext", len(data.classes), None)
guides = [Guide("energy", "ixg", "Final", weight) for weight in (1.0, 3.0)]
archive = pareto.search(net, data, data, guides, 2, 1e-3, p.work or "alone", 4)
best = archive.load(archive.choose("EPG", {}), net)
scores = training.evaluate(best, data, method="ixg", at="Final")
print("processes:", training.processes()[1])
points = sum(point["setting"]["epoch"] for point in archive.points)
results.record(pd.DataFrame([{"notebook": "04", "seed": p.seed, "points": points} | scores]))"""


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write(tmp_path / "04_a.ipynb", CODE, first=PARAMETERS)


def call(notebook: Path, *options: str, world: int = 1, **variables: str):
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"] if world > 1 else []
    command = [sys.executable, "-m", *torchrun, "e2lib.course", str(notebook), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_two_processes_give_the_numbers_of_one(notebook):
    folder, found = notebook.parent, {}
    for world in (1, 2):
        options = ["-p", "seed", "3", "-p", "work", str(folder / f"work-{world}")]
        options += ["-o", str(folder / "new" / f"{world}.json")]
        done = call(notebook, *options, world=world)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"processes: {world}") == 1  # the first process alone is heard
        [found[world]] = json.loads((folder / "new" / f"{world}.json").read_text())
    assert found[1]["seed"] == 3 and found[1]["points"] == 2 * (1 + 2) and found[1]["EPG"] > 0
    assert found[2] == pytest.approx(found[1], abs=0.1)


def test_wrong_calls_are_refused_by_name(notebook, tmp_path):
    failing = write(tmp_path / "05_b.ipynb", "seed / 0", first=PARAMETERS)
    done = call(notebook, "-p", "sede", "3")
    assert (
        done.returncode != 0
        and "unknown parameter 'sede': did you mean 'seed'? Here are images, seed, work, device" in done.stderr
    )
    done = call(failing, "-p", "seed", "3")
    assert done.returncode != 0 and "code cell 2 ('seed / 0'): ZeroDivisionError" in done.stderr
    done = call(notebook, WORLD_SIZE="2")  # as torchrun says it
    assert done.returncode != 0 and "parameter work=None: several processes need a folder" in done.stderr
