"""Sweeps: planned and checked before anything runs, interrupted and finished, shared work done once."""

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from e2lib.course import runs, sweeps, tables

ROOT = Path(__file__).parents[2]
PARAMETERS = (
    "# Parameters: a\nimages = 10\nschedule = {'epochs': 1, 'lr': 0.1, 'start_epochs': 0}\nseed = 0\nwork = None"
)
# The network at the start is a file, which only the first job of a seed finds missing.
JOB = """import json, os, time
import pandas as pd
from e2lib.course import runs
start = runs.work_folder(runs.parameters(globals()), without=["images"]) / "start"
trained = not start.exists()
if trained:
    time.sleep(float(os.environ.get("SLOW", 0)))
    start.parent.mkdir(parents=True, exist_ok=True)
    start.write_text("")
with open("../log", "a") as log:
    log.write(json.dumps([seed, images, trained, os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()]) + "\\n")
time.sleep(float(os.environ.get("SLOW", 0)))
about = {"notebook": "07", "seed": seed}
rows = [about | {"score": images + seed}, about | {"score": -images, "split": "validation"}]
runs.record(pd.DataFrame(rows))"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with a notebook 07, a sweep of it, and the sweeps' Snakefile; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where GPUs' locks are: tests run side by side
    (tmp_path / "notebooks" / "sweeps").mkdir(parents=True)
    (tmp_path / "notebooks" / "presets" / "laptop").mkdir(parents=True)
    (tmp_path / "notebooks" / "presets" / "laptop" / "07.yaml").write_text("# the defaults")
    source = (ROOT / "notebooks" / "sweeps" / "Snakefile").read_text()
    (tmp_path / "notebooks" / "sweeps" / "Snakefile").write_text(source)
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(JOB)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "07_a.ipynb")
    return tmp_path


def sweep(project: Path, axes: str = "{seed: [0, 1], images: [10, 20]}", more: str = "") -> Path:
    path = project / "notebooks" / "sweeps" / "small.yaml"
    path.write_text(f"notebook: '07'\naxes: {axes}\n{more}")
    return path


def run(path: Path, *options: str, start=subprocess.run, session=False, **variables):
    command = [sys.executable, "-m", "e2lib.course.sweeps", "run", str(path), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return start(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=session
    )


def logged(project: Path) -> list[list]:
    return [json.loads(line) for line in (project / "log").read_text().splitlines()]


def test_a_plan_has_a_job_for_each_point_and_the_first_of_a_start_comes_first(project):
    jobs = sweeps.plan(sweep(project, "{seed: [0, 1], schedule.epochs: [1, 2], images: [10, 20]}"))
    assert len(jobs) == len({job.run.marker for job in jobs}) == 8
    assert jobs[3].point == {"seed": 0, "schedule.epochs": 2, "images": 20}
    assert jobs[3].run.parameters["schedule"] == {"epochs": 2, "lr": 0.1, "start_epochs": 0}
    assert waiting(jobs, project) == [None, 0, None, 2, None, 4, None, 6]
    for finished in (jobs[1], jobs[4]):  # whoever it was has trained the network at the start
        finished.run.marker.parent.mkdir(parents=True)
        finished.run.marker.touch()
    assert waiting(jobs, project) == [None, None, None, 2, None, None, None, 6]


def test_a_job_waits_for_the_first_of_each_start(project):
    notebook = project / "notebooks" / "07_a.ipynb"
    content = nbformat.read(notebook, as_version=4)
    content.cells.append(new_code_cell("runs.work_folder(p, without=('images', 'schedule'))"))  # a teacher's
    nbformat.write(content, notebook)
    jobs = sweeps.plan(sweep(project, "{schedule.epochs: [1, 2], images: [10, 20]}"))
    sweeps.describe(jobs, project / "plan.json", threads=1)
    after = [job["after"] for job in json.loads((project / "plan.json").read_text()).values()]
    first, second = (str(jobs[number].run.marker) for number in (0, 2))
    assert after == [[], [first], [first], [second, first]]


def waiting(jobs, project):
    """For each job of the plan the number of the one that it waits for."""
    sweeps.describe(jobs, project / "plan.json", threads=1)
    after = [job["after"] for job in json.loads((project / "plan.json").read_text()).values()]
    markers = [str(job.run.marker) for job in jobs]
    return [markers.index(one[0]) if one else None for one in after]


@pytest.mark.parametrize(
    ("axes", "more", "complaint"),
    [
        ("{sede: [0]}", "", "axes: sede: the notebook has no parameter 'sede'; it has images, schedule, seed, work"),
        ("{seed: [0, -1]}", "", r"\{'seed': -1\}: parameter seed=-1"),
        ("{seed: []}", "", "axes.seed: List should have at least 1 item"),
        ("{seed: 0}", "", r"axes.seed: 0 must be a list of values, such as \[0\]"),
        ("{seed: [0, 0]}", "", "axes: a value is named twice"),
        ("{seed.a: [0]}", "", "axes: seed.a: seed=0 has no such field"),
        ("{schedule.eposs: [1]}", "", "unknown parameter 'schedule.eposs'"),
        ("{seed: [0]}", "gpu: 1", "gpu: unknown; here are notebook, preset, parameters, axes, gpus"),
        ("{seed: [0]}", "parameters: {size: 64}", "unknown parameter 'size'"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_runs(project, axes, more, complaint):
    path = sweep(project, axes, more)
    with pytest.raises(ValueError, match=f"small.yaml: .*{complaint}"):
        sweeps.plan(path)


def test_missing_files_and_notebooks_are_named(project):
    path = sweep(project, more="preset: paper/07")
    with pytest.raises(FileNotFoundError, match="small.yaml: preset: there is no notebooks/presets/paper/07.yaml"):
        sweeps.plan(path)
    for number, complaint in ((10, "10 must be a text, in quotes"), ("'7'", "'7' must be a notebook's number, of two")):
        path.write_text(f"notebook: {number}\naxes: {{seed: [0]}}")
        with pytest.raises(ValueError, match=f"small.yaml: notebook: {complaint}"):
            sweeps.plan(path)
    path.write_text("notebook: '08'\naxes: {seed: [0]}")
    with pytest.raises(ValueError, match="small.yaml: notebook: there is no 08; choose from 07"):
        sweeps.plan(path)
    with pytest.raises(FileNotFoundError, match="there is no sweep .*large.yaml"):
        sweeps.plan(path.with_name("large.yaml"))
    with pytest.raises(FileNotFoundError, match="no sweep is named: SWEEP="):
        sweeps.plan(Path(""))
    preset = project / "notebooks" / "presets" / "laptop" / "07.yaml"
    for broken, file in (("axes: {seed: [0", path), ("images: '9", preset)):
        path.write_text("notebook: '07'\naxes: {seed: [0]}")
        file.write_text(broken)
        with pytest.raises(ValueError, match=rf"(?s){file.name} is no YAML: .*{file.name}\", line 1"):
            sweeps.plan(path)


def test_jobs_for_a_gpu_are_refused_where_there_is_none(project, monkeypatch):
    content = nbformat.read(project / "notebooks" / "07_a.ipynb", as_version=4)
    content.cells[0].source += "\ndevice = 'auto'"
    nbformat.write(content, project / "notebooks" / "07_a.ipynb")
    monkeypatch.setattr(sweeps, "_cards", lambda: [])
    with pytest.raises(ValueError, match="small.yaml: device='cuda', but torch sees no GPU here; PROFILE=slurm"):
        sweeps.run_all(sweep(project, "{seed: [0]}", "parameters: {device: cuda}"))
    assert not (project / "log").exists()


def test_a_preset_can_be_an_axis(project):
    (project / "notebooks" / "presets" / "laptop" / "07-large.yaml").write_text("images: 99")
    jobs = sweeps.plan(sweep(project, "{preset: [laptop/07, laptop/07-large], seed: [0, 1]}"))
    assert [job.run.parameters.get("images") for job in jobs] == [None, None, 99, 99]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_repository_can_be_planned(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert sweeps.plan(path)


def test_a_sweep_is_run_once_and_shows_test_numbers_when_asked(project):
    path, folder = sweep(project), project / "runs" / "sweeps" / "small"
    done = run(path, "--jobs", "2")
    assert done.returncode == 0, done.stdout
    assert "small: 4 of 4 jobs done" in done.stdout and "4/4" in done.stdout
    assert [seed for seed, _, trained, *_ in logged(project) if trained] in ([0, 1], [1, 0])  # shared work is done once
    # Who tunes sees validation numbers only.
    assert "on validation images: runs/sweeps/small/validation.csv" in done.stdout
    assert sorted(pd.read_csv(folder / "validation.csv").value) == [-20, -20, -10, -10]
    seen = {file.relative_to(folder).parts[0] for file in folder.rglob("*") if file.is_file()}
    assert seen == {".sealed", "work", "plan.json", "lock", "snakemake.log", "sweep.txt", "validation.csv"}
    table = tables.wide(tables.read(sweeps.results(path)))
    assert sorted(table.score) == [10, 11, 20, 21]
    assert (table["axis images"] + table["axis seed"] == table.score).all()
    assert (table.minutes >= 0).all() and table.device.str.contains("thread").all()
    shown = {file.stem for file in (folder / "notebooks").glob("*.ipynb")}
    assert shown == set(table.run) and len(shown) == 4
    sweeps.results(path)  # once more
    sweep(project, "{seed: [0], images: [10, 20, 30]}")
    more = run(path)
    assert more.returncode == 0 and len(logged(project)) == 5  # only the new point
    assert "results.csv is older than some of these jobs" in more.stdout and "older" not in done.stdout


def test_a_killed_sweep_goes_on_with_what_is_missing(project):
    path = sweep(project)
    killed = run(path, "--jobs", "2", start=subprocess.Popen, session=True, SLOW="2")
    while not (project / "log").exists() or len(logged(project)) < 3:
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)  # the sweep, Snakemake, and, as below, a notebook in the middle
    killed.communicate()
    for *_, process in logged(project):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    finished = {job.run.marker for job in sweeps.plan(path) if job.run.marker.exists()}
    assert 0 < len(finished) < 4
    times = {marker: marker.stat().st_mtime_ns for marker in finished}
    with pytest.raises(ValueError, match="small.yaml: . of 4 jobs have not run yet; make sweep SWEEP="):
        sweeps.results(path)
    done = run(path, "--jobs", "2")
    assert done.returncode == 0, done.stdout
    assert times == {marker: marker.stat().st_mtime_ns for marker in finished}
    assert sorted(pd.read_csv(sweeps.results(path)).value) == [10, 11, 20, 21]


@pytest.mark.parametrize("ended", [False, True], ids=["still running", "done by now"])
def test_a_job_that_outlived_its_sweep_is_not_run_twice(project, monkeypatch, ended):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # which that job uses
    path = sweep(project, "{seed: [0]}")
    killed = run(path, start=subprocess.Popen, session=True, SLOW="3" if ended else "20")
    while not (project / "log").exists():
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.1)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    assert children  # Snakemake
    for process in (killed.pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    killed.wait()
    [job] = sweeps.plan(path)
    while ended and not job.run.marker.exists():
        time.sleep(0.1)
    done = run(path)
    assert done.returncode == 0, done.stdout
    assert ("small: 1 of the jobs run still, started earlier" in done.stdout) is not ended
    assert len(logged(project)) == 1 and (project / "runs" / "sweeps" / "small" / "validation.csv").exists()


def test_a_full_disk_leaves_nothing_half_written(project):
    path, notebook = sweep(project, "{seed: [1]}"), project / "notebooks" / "07_a.ipynb"
    content = nbformat.read(notebook, as_version=4)
    content.cells.append(new_code_cell("print('x' * 900_000)"))
    nbformat.write(content, notebook)

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # what goes beyond cannot be written

    full = run(path, start=functools.partial(subprocess.run, preexec_fn=small_disk))
    assert full.returncode != 0 and "small: 0 of 1 jobs done" in full.stdout
    assert full.stdout.count("File too large") == 1
    sealed = [file for file in (project / "runs" / "sweeps" / "small" / ".sealed").rglob("*") if file.is_file()]
    assert {file.suffix for file in sealed} == {".error", ".lock"}
    done = run(path)
    assert done.returncode == 0, done.stdout
    assert list(pd.read_csv(sweeps.results(path)).value) == [11]


def test_a_stopped_sweep_stops_its_jobs_and_a_second_one_is_refused(project):
    path = sweep(project, "{seed: [0, 1], images: [10, 20, 30]}")
    first = run(path, "--jobs", "2", start=subprocess.Popen, SLOW="3")
    while not (project / "log").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.1)
    error = sweeps.plan(path)[-1].run.error
    error.parent.mkdir(parents=True)
    error.write_text("no luck")  # which the first is to report
    second = run(path)
    assert second.returncode != 0 and "sweep small is running already" in second.stdout
    assert error.exists()
    first.terminate()
    assert "stopped: the same command goes on" in first.communicate()[0]
    before = len(logged(project))
    assert before < 6
    time.sleep(5)
    assert len(logged(project)) == before  # no job went on


def test_a_snakemake_that_hangs_is_ended_after_its_jobs(project, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "PATIENCE", 0.2)
    monkeypatch.setattr(sweeps, "time", SimpleNamespace(sleep=interrupt))
    [job] = sweeps.plan(sweep(project, "{seed: [0]}"))
    job.run.marker.parent.mkdir(parents=True)
    source = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    hung = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
    hung.stdout.readline()
    held = threading.Event()

    def run_job():
        with job.run.lock:
            held.set()
            threading.Event().wait(2)

    start = time.monotonic()
    threading.Thread(target=run_job).start()
    held.wait()
    with pytest.raises(KeyboardInterrupt):
        sweeps._watch(hung, [job], "small")
    assert hung.returncode == -signal.SIGKILL and time.monotonic() - start > 2


def test_test_numbers_stay_sealed_while_a_job_that_failed_runs_again(project):
    path = sweep(project, "{seed: [0, 1]}")
    done, again = sweeps.plan(path)
    sweeps.describe([done, again], project / "plan.json", threads=1)
    sweeps.execute(project / "plan.json", str(done.run.marker))
    (project / "log").unlink()
    again.run.error.parent.mkdir(parents=True, exist_ok=True)
    again.run.error.write_text("killed")
    sweeps.results(path)  # it has run
    command = [sys.executable, "-m", "e2lib.course.sweeps", "execute", "plan.json", "--marker", str(again.run.marker)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT), "SLOW": "3"})
    while not (project / "log").exists():
        assert process.poll() is None
        time.sleep(0.1)
    with pytest.raises(ValueError, match="1 of 2 jobs have not run yet"):
        sweeps.results(path)
    assert process.wait() == 0
    starting = sweeps._alone(project / "runs" / "sweeps" / "small")  # a sweep that is about to start a job
    with starting, pytest.raises(ValueError, match="sweep small is running already"):
        sweeps.results(path)
    assert sorted(pd.read_csv(sweeps.results(path)).value) == [10, 11]


def test_a_failing_job_is_named_and_the_others_go_on(project):
    path = sweep(project, "{seed: [1], images: [10, 20]}")
    notebook = project / "notebooks" / "07_a.ipynb"
    content = nbformat.read(notebook, as_version=4)
    content.cells[1].source = "assert images != 20, 'no luck'\n" + content.cells[1].source
    nbformat.write(content, notebook)
    done = run(path, "--jobs", "2")
    assert done.returncode != 0
    assert "small: 1 of 2 jobs done" in done.stdout
    assert "failed: {'seed': 1, 'images': 20}: code cell 2" in done.stdout and "no luck" in done.stdout


def test_no_job_waits_a_second_time_for_one_that_fails(project):
    path = sweep(project, "{images: [10, 20]}")
    notebook = project / "notebooks" / "07_a.ipynb"
    content = nbformat.read(notebook, as_version=4)
    content.cells[1].source = "assert images != 10, 'no luck'\n" + content.cells[1].source
    nbformat.write(content, notebook)
    assert "small: 0 of 2 jobs done" in run(path).stdout  # the other one waits for the network at the start
    assert "small: 1 of 2 jobs done" in run(path).stdout


def test_keys_of_parameters_may_be_numbers(project, monkeypatch):
    notebook = project / "notebooks" / "07_a.ipynb"
    content = nbformat.read(notebook, as_version=4)
    content.cells[0].source += "\nshots = {20: 30}"
    nbformat.write(content, notebook)
    for shots in ("{5: 1, 20: 2}", "{5: 1, all: 2}"):
        [job] = sweeps.plan(sweep(project, "{seed: [0]}", f"parameters: {{shots: {shots}}}"))
        sweeps.describe([job], project / "plan.json", threads=1)
        read = json.loads((project / "plan.json").read_text())[str(job.run.marker)]
        assert runs.Run(job.run.notebook, job.run.preset, read["parameters"]).marker == job.run.marker


def test_each_job_sees_a_gpu_of_its_own(project):
    path = sweep(project, "{seed: [0, 1]}")
    done = run(path, CUDA_VISIBLE_DEVICES="5,7", SLOW="3")
    assert done.returncode == 0, done.stdout
    seen = [card for *_, card, _ in logged(project)]
    assert sorted(seen) == ["5", "7"]


def test_two_files_of_one_name_have_no_folder_in_common(project):
    path = sweep(project)
    other = project / "small.yaml"
    other.write_text(path.read_text())
    (project / "runs" / "sweeps" / "small").mkdir(parents=True)
    (project / "runs" / "sweeps" / "small" / "sweep.txt").write_text("notebooks/sweeps/small.yaml")
    with pytest.raises(
        ValueError, match="small.yaml: runs/sweeps/small is that of notebooks/sweeps/small.yaml; rename"
    ):
        sweeps.run_all(other)


def test_profiles_are_refused_by_name(project):
    (project / "notebooks" / "sweeps" / "profiles" / "slurm").mkdir(parents=True)
    done = run(sweep(project), "--profile", "slum")
    assert done.returncode != 0 and "unknown PROFILE 'slum': choose from slurm" in done.stdout


@pytest.mark.alone
@pytest.mark.parametrize("thousands", [1, 10])
def test_thousands_of_jobs_are_planned_within_a_minute(project, thousands):
    seeds, images = list(range(100)), list(range(1, 10 * thousands + 1))
    path = sweep(project, f"{{seed: {seeds}, images: {images}}}")
    start = time.perf_counter()
    jobs = sweeps.plan(path)
    assert len(jobs) == 1000 * thousands and len({job.starts for job in jobs}) == 100
    sweeps.describe(jobs, project / "plan.json", threads=1)
    dry = sweeps.command(project / "plan.json", gpus=0) + ["--cores", "2", "--dry-run", "--quiet", "all"]
    subprocess.run(dry, check=True, capture_output=True)
    assert time.perf_counter() - start < 60


# Stands for sbatch, srun and the others: runs jobs here, and notes down what each was asked for.
SLURM = """#!{python}
import json, os, subprocess, sys
from pathlib import Path
name, words, folder = Path(sys.argv[0]).name, sys.argv[1:], Path("{folder}")
done = lambda job: job.with_suffix(".done")
jobs = sorted(folder.glob("*.json"), key=lambda path: int(path.stem))
if name == "sbatch":
    job = folder / f"{{len(jobs) + 1}}.json"
    job.write_text(json.dumps(words))
    [script] = [word.removeprefix("--wrap=") for word in words if word.startswith("--wrap=")]
    script = f"({{script}}) && echo COMPLETED > {{done(job)}} || echo FAILED > {{done(job)}}"
    there = os.environ | {{"SLURM_JOB_ID": job.stem, "CUDA_VISIBLE_DEVICES": f"gpu-of-{{job.stem}}"}}
    how = dict(cwd=words[words.index("-D") + 1], env=there, start_new_session=True)
    with job.with_suffix(".log").open("w") as log:
        subprocess.Popen(script, shell=True, stdout=log, stderr=log, **how)
    print(job.stem)
elif name in ("sacct", "squeue"):
    for job in jobs if "--name" in words else []:
        print(job.stem, done(job).read_text().strip() if done(job).exists() else "RUNNING", sep="|")
elif name == "srun":
    os.execvp("sh", ["sh", "-c", " ".join(words[next(i for i, word in enumerate(words) if word[0] != "-"):])])
"""


def test_slurm_runs_each_job_with_a_gpu_of_its_own(project):
    folder, commands = project / "slurm", project / "bin"
    folder.mkdir()
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "squeue", "sinfo", "scontrol", "sacctmgr", "sshare", "scancel"):
        (commands / name).write_text(SLURM.format(python=sys.executable, folder=folder))
        (commands / name).chmod(0o755)
    profile = project / "notebooks" / "sweeps" / "profiles" / "slurm" / "config.yaml"
    profile.parent.mkdir(parents=True)
    source = (ROOT / "notebooks" / "sweeps" / "profiles" / "slurm" / "config.yaml").read_text()
    profile.write_text(f"{source}slurm-init-seconds-before-status-checks: 1\n")
    path = sweep(project, "{seed: [0], images: [10, 20]}")
    done = run(path, "--profile", "slurm", PATH=f"{commands}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0 and "small: 2 of 2 jobs done" in done.stdout, done.stdout
    asked = [json.loads(job.read_text()) for job in folder.glob("*.json")]
    assert len(asked) == 2 and all("--gpus=1" in words and "--mem" in words for words in asked)
    assert len({card for *_, card, _ in logged(project)}) == 2  # what Slurm gave is left as it is
    assert [trained for _, _, trained, *_ in logged(project)] == [True, False]  # the second waited


# Stands for kubectl: runs a job's container here, and keeps the manifest.
KUBECTL = """#!{python}
import subprocess, sys, yaml
from pathlib import Path
verb, folder = sys.argv[1], Path("{folder}")
if verb == "create":
    job = folder / f"{{len(list(folder.glob('*.yaml'))) + 1}}.yaml"
    job.write_text(manifest := sys.stdin.read())
    [container] = yaml.safe_load(manifest)["spec"]["template"]["spec"]["containers"]
    with job.with_suffix(".log").open("w") as log:
        subprocess.Popen(
            container["command"], cwd=container["workingDir"], stdout=log, stderr=log, start_new_session=True
        )
    print(f"job.batch/{{job.stem}}")
elif verb == "get":
    log = (folder / Path(sys.argv[2]).name).with_suffix(".log").read_text()
    print("SuccessCriteriaMet Complete" if "(100%) done" in log else "FailureTarget Failed" if "Error" in log else "")
"""


def test_kubernetes_runs_each_job_with_a_gpu_of_its_own(project):
    folder, commands = project / "cluster", project / "bin"
    folder.mkdir()
    commands.mkdir()
    (commands / "kubectl").write_text(KUBECTL.format(python=sys.executable, folder=folder))
    (commands / "kubectl").chmod(0o755)
    profile = Path("notebooks", "sweeps", "profiles", "kubernetes")
    shutil.copytree(ROOT / profile, project / profile)
    path = sweep(project, "{seed: [0], images: [10, 20]}")
    done = run(path, "--profile", "kubernetes", PATH=f"{commands}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0 and "small: 2 of 2 jobs done" in done.stdout, done.stdout
    manifests = [yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")]
    assert len(manifests) == 2
    for manifest in manifests:
        [container] = manifest["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
        assert container["workingDir"] == str(project)
    assert [trained for _, _, trained, *_ in logged(project)] == [True, False]  # the second waited
