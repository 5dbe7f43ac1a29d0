"""`python -m pytest tests/kills.py` kills each thing that keeps results at 20 random moments. It takes half an hour.

After every kill, no half file counts as done. The same call then goes on, and its numbers are those of a run that was
not killed. KILLS=2 in the environment tries fewer moments. The quick tests beside each module kill at chosen moments.
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from e2lib import features, frozen, training
from e2lib.course import results, run
from e2lib.datasets import Scenes
from tests.course.conftest import course, project, write  # noqa: F401
from tests.course.test_run import children
from tests.training.common import GUIDED, flipped, tiny

MOMENTS = int(os.environ.get("KILLS", "20"))
PATIENCE = 300  # seconds until a run that hangs fails the test


def trained(folder: Path) -> dict:
    """A guided training of eight epochs, and its history."""
    model = nn.Sequential(tiny(), nn.Linear(10, 2000), nn.Linear(2000, 10))  # a checkpoint takes a while to write
    how = {"epochs": 8, "lr": 1e-2, "batch_size": 4, "step": GUIDED}
    history = training.fit(model, flipped(16), **how, checkpoint=folder / "run.pt")
    return {"history": torch.tensor([[*row.values()] for row in history]), **model.state_dict()}


def extracted(folder: Path) -> dict:
    """The feature cache of 60 images, in 12 files."""
    torch.manual_seed(0)
    features.SHARD = 5
    trunk = nn.Sequential(nn.Conv2d(3, 64, 7, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 2))
    found = features.extract(trunk, Scenes("train", 60, 64), folder, mirrored=True, batch_size=5)
    return {"features": found.features, "boxes": found.boxes, "targets": found.targets}


def explained(folder: Path) -> dict:
    """The frozen store of 60 images, in 12 files."""
    features.SHARD = 5
    data = frozen.freeze(tiny().eval(), Scenes("train", 60, 64), folder, 64, "ixg", "Input", batch_size=5)
    samples = [data[i] for i in range(len(data))]
    return {name: torch.stack([getattr(sample, name) for sample in samples]) for name in ("maps", "logits")}


def begin(work, folder: Path) -> None:
    """What the killed process does: it works elsewhere first, to be warm; `folder` is there when it begins."""
    with tempfile.TemporaryDirectory() as elsewhere:
        work(Path(elsewhere))
    folder.mkdir()
    work(folder)


def started(work, folder: Path):
    """A process that runs `begin`, forked from one that has imported all of this."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.kills"])
    process = server.Process(target=begin, args=(work, folder))
    process.start()
    return process


def visible(folder: Path) -> list[Path]:
    """The files that count as done."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def is_whole(path: Path, finished: Path, result: dict) -> bool:
    """Whether a file holds what the run that was not killed wrote, or the first epochs of its training."""
    if path.suffix != ".pt":
        return path.read_bytes() == (finished / path.name).read_bytes()
    history = torch.tensor([[*row.values()] for row in torch.load(path, weights_only=True)["history"]])
    return torch.equal(history, result["history"][: len(history)])


@pytest.mark.parametrize("work", [trained, extracted, explained])
def test_work_that_is_killed_at_random_moments_ends_with_the_same_numbers(work, tmp_path, capfd):
    finished, process = tmp_path / "finished", started(work, tmp_path / "finished")
    seconds = lifetime(process, finished)
    assert process.exitcode == 0
    files, expected, killed, done = visible(finished), work(finished), 0, []
    assert visible(finished) == files  # a test of code that is edited meanwhile would end here
    for number in range(MOMENTS):
        folder = tmp_path / str(number)
        process = started(work, folder)
        took = lifetime(process, folder, random.uniform(0, seconds))
        killed += process.exitcode == -signal.SIGKILL
        seconds = seconds if process.exitcode else min(seconds, took)  # the first one may have been slow
        there = visible(folder)
        assert all(is_whole(path, finished, expected) for path in there)
        done.append(
            len(torch.load(there[0], weights_only=True)["history"]) if there and work is trained else len(there)
        )
        found = work(folder)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
        assert {path.name for path in visible(folder)} == {path.name for path in visible(finished)}
    with capfd.disabled():
        print(
            f"\n{work.__name__}: {killed} of {MOMENTS} killed within {seconds:.1f} s; done at the kill: {sorted(done)}"
        )
    assert killed > MOMENTS / 2


def lifetime(process, folder: Path, most: float = PATIENCE) -> float:
    """Wait for the end of a process, `most` seconds from when `folder` is there; kill it then. The seconds it took."""
    while not folder.exists():
        assert process.is_alive()
        time.sleep(0.001)
    start = time.monotonic()
    process.join(most)
    process.kill()
    process.join()
    return time.monotonic() - start


PARAMETERS = "# Parameters: a\nsize = 64\nwork = '../runs/work'"
LESSON = (
    "import pandas as pd\nfrom e2lib.course import parameters, results\nfrom tests.kills import trained",
    "folder = parameters.work_folder(parameters.read(globals()))\nfound = trained(folder)",
    "numbers = {str(i): float(x) for i, x in enumerate(found['history'].flatten())}\n"
    "numbers |= {name: float(x.double().sum()) for name, x in found.items()}\n"
    "results.record(pd.DataFrame([numbers]))",
)


def numbers_of(jobs: list[run.Job]) -> list:
    """What notebooks recorded; every one that counts as done was executed to its end."""
    for job in (job for job in jobs if job.kept.exists()):
        executed = json.loads(job.kept.read_text())
        code = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
        assert executed["metadata"]["run"] and all(cell["execution_count"] for cell in code)
    return [results.recorded(job.kept) if job.kept.exists() else None for job in jobs]


@pytest.mark.parametrize("command", ["run", "execute"], ids=["Snakemake", "papermill"])
def test_notebooks_that_are_killed_at_random_moments_end_with_the_same_numbers(command, project, monkeypatch, capfd):  # noqa: F811
    for name in ("01_first", "02_second")[: 2 if command == "run" else 1]:
        write(project / "notebooks" / f"{name}.ipynb", *LESSON, first=PARAMETERS)

    def begin_anew(name: str) -> tuple[list[run.Job], list]:
        """The jobs and the command's words in a folder of its own: what a kill leaves running ends there by itself."""
        shutil.copytree(project / "notebooks", project / name / "notebooks")
        monkeypatch.chdir(project / name)
        jobs = run.plan("smoke")
        if command == "run":
            return jobs, ["run", "--preset", "smoke"]
        run.KEPT.mkdir(parents=True)
        run.describe(jobs, Path("plan.json"))
        return jobs, ["execute", "plan.json", jobs[0].kept.absolute()]

    jobs, words = begin_anew("finished")
    start = time.monotonic()
    done = course(*words)
    seconds, expected, states = time.monotonic() - start, numbers_of(jobs), []
    assert done.returncode == 0 and None not in expected, done.stdout
    for number in range(MOMENTS):
        jobs, words = begin_anew(str(number))
        process = course(*words, start=subprocess.Popen, session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, seconds))
        everyone = [process.pid, *children(process.pid)] if process.poll() is None else []
        for one in random.choice([everyone, everyone[:2], everyone[-1:], everyone[:1]]):
            with contextlib.suppress(ProcessLookupError):  # it has ended with another one
                os.kill(one, signal.SIGKILL)
        states.append(sum(numbers is not None for numbers in numbers_of(jobs)))
        again = course(*words)
        if again.returncode:  # it waited for a job that went on, and that had lost its kernel
            again = course(*words)
        assert again.returncode == 0 and numbers_of(jobs) == expected, again.stdout
        process.communicate(timeout=PATIENCE)
    with capfd.disabled():
        print(f"\n{command}: {MOMENTS} kills within {seconds:.1f} s; notebooks done at the kill: {sorted(states)}")
