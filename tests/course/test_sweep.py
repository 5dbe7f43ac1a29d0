"""Sweeps: planned and checked before anything runs, shared work done once, test numbers sealed until asked for."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell

from e2lib.course import results, run, sweep
from tests.course.conftest import ROOT, course, write

PARAMETERS = (
    "# Parameters: a\nimages = 10\nschedule = {'epochs': 1, 'lr': 0.1}\nshots = {20: 30}\nseed = 0\nwork = None"
)
# The network at the start is a file, which only the first job of a seed finds missing.
JOB = """import json, os
import pandas as pd
from e2lib.course import parameters, results
start = parameters.work_folder(parameters.read(globals()), without=["images"]) / "start"
trained = not start.exists()
if trained:
    start.parent.mkdir(parents=True, exist_ok=True)
    start.write_text("")
with open("../log", "a") as log:
    log.write(json.dumps([seed, images, trained, os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
assert images != 13, "no luck"
about = {"notebook": "07", "seed": seed}
rows = [about | {"score": images + seed}, about | {"score": -images, "split": "validation"}]
results.record(pd.DataFrame(rows))"""


@pytest.fixture
def lesson(project) -> Path:
    """A notebook 07 in the folder of the test."""
    (project / "notebooks" / "presets" / "laptop" / "07.yaml").write_text("# the defaults")
    (project / "notebooks" / "sweeps").mkdir()
    return write(project / "notebooks" / "07_a.ipynb", JOB, first=PARAMETERS)


def file(axes: str = "{seed: [0, 1], images: [10, 20]}", more: str = "") -> Path:
    path = Path("notebooks", "sweeps", "small.yaml")
    path.write_text(f"notebook: '07'\naxes: {axes}\n{more}")
    return path


def logged() -> list[list]:
    return [json.loads(line) for line in Path("log").read_text().splitlines()]


def waiting(jobs) -> list[list[int]]:
    """For each job of the plan the numbers of those that it waits for."""
    run.describe(jobs, Path("plan.json"))
    kept = [str(job.kept.absolute()) for job in jobs]
    return [[kept.index(one) for one in job["after"]] for job in json.loads(Path("plan.json").read_text()).values()]


def test_a_plan_has_a_job_for_each_point_and_the_first_of_a_start_comes_first(lesson):
    jobs = sweep.plan(file("{seed: [0, 1], schedule.epochs: [1, 2], images: [10, 20]}"))
    assert len(jobs) == len({job.kept for job in jobs}) == 8
    assert jobs[3].name == "small: seed=0, schedule.epochs=2, images=20"
    assert jobs[3].given["schedule"] == {"epochs": 2, "lr": 0.1}
    assert waiting(jobs) == [[], [0], [], [2], [], [4], [], [6]]
    run.KEPT.mkdir(parents=True)
    for done in (jobs[1], jobs[4]):  # whoever it was has trained the network at the start
        done.kept.touch()
    assert waiting(jobs) == [[], [], [], [2], [], [], [], [6]]


def test_a_job_waits_for_the_first_of_each_start(lesson):
    content = nbformat.read(lesson, as_version=4)
    content.cells.append(new_code_cell("parameters.work_folder(p, without=('images', 'schedule'))"))  # a teacher's
    nbformat.write(content, lesson)
    assert waiting(sweep.plan(file("{schedule.epochs: [1, 2], images: [10, 20]}"))) == [[], [0], [0], [2, 0]]


@pytest.mark.parametrize(
    ("axes", "more", "complaint"),
    [
        ("{sede: [0]}", "", "sede=0: unknown parameter 'sede': did you mean 'seed'"),
        ("{seed: [0, x]}", "", "seed=x: parameter seed='x'"),
        ("{seed: []}", "", r"axes.seed=\[\]: List should have at least 1 item"),
        ("{seed: 0}", "", "axes.seed=0: Input should be a valid list"),
        ("{seed: [0, 0]}", "", "axes: a value is named twice"),
        ("{seed.a: [0]}", "", "axes: seed.a: seed=0 has no such field"),
        ("{schedule.eposs: [1]}", "", "unknown parameter 'schedule.eposs'"),
        ("{seed: [0]}", "gpu: 1", "gpu=1: unknown; here are notebook, preset, parameters, axes, gpus"),
        ("{seed: [0]}", "parameters: {size: 64}", "unknown parameter 'size'"),
        ("{seed: [0]}", "parameters: {seed: 1}", "seed replaces seed, which stands before it"),
        ("{schedule: [{epochs: 1, lr: 1}]}", "parameters: {schedule.lr: 2}", "schedule replaces schedule.lr, which"),
        ("{schedule.lr: [1], schedule: [{epochs: 1, lr: 1}]}", "", "schedule replaces schedule.lr, which stands"),
        ("{preset: [laptop/07]}", "preset: smoke/07", "preset replaces preset, which stands before it"),
        ("{shots: [{5: 1, '5': 2}]}", "", "is no YAML: 5 stands twice"),
        ("{seed: [0]}", "gpus: yes", "gpus=True: Input should be a valid integer"),
        ("{seed: [0]}", "notebook: '08'", "is no YAML: notebook stands twice"),
        ("{seed: [0]}", "preset: paper/07", "there is no notebooks/presets/paper/07.yaml"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_runs(lesson, axes, more, complaint):
    with pytest.raises((ValueError, FileNotFoundError), match=f"small.yaml:? .*{complaint}"):
        sweep.plan(file(axes, more))


def test_missing_files_and_notebooks_are_named(lesson):
    path = file()
    for number, complaint in (
        ("10", "notebook=10: Input should be a valid string"),
        ("'7'", "small: notebook: there is no 7; choose from 07"),
    ):
        path.write_text(f"notebook: {number}\naxes: {{seed: [0]}}")
        with pytest.raises(ValueError, match=f"small.yaml: {complaint}"):
            sweep.plan(path)
    with pytest.raises(FileNotFoundError, match="there is no sweep .*large.yaml"):
        sweep.plan(path.with_name("large.yaml"))
    with pytest.raises(FileNotFoundError, match="no sweep is named: SWEEP="):
        sweep.plan(Path(""))


def test_a_field_may_vary_in_an_object_that_parameters_give(lesson):
    jobs = sweep.plan(file("{schedule.lr: [1.0, 2.0]}", "parameters: {schedule: {epochs: 5, lr: 9.0}}"))
    assert [job.given["schedule"] for job in jobs] == [{"epochs": 5, "lr": lr} for lr in (1.0, 2.0)]


def test_a_preset_can_be_an_axis(lesson):
    Path("notebooks", "presets", "laptop", "07-large.yaml").write_text("images: 99")
    jobs = sweep.plan(file("{preset: [laptop/07, laptop/07-large], seed: [0, 1]}"))
    assert [job.given.get("images") for job in jobs] == [None, None, 99, 99]


def test_keys_of_parameters_may_be_numbers(lesson):
    for shots in ("{5: 1, 20: 2}", "{5: 1, all: 2}"):
        [job] = sweep.plan(file("{seed: [0]}", f"parameters: {{shots: {shots}}}"))
        given = json.loads(json.dumps(job.given))
        assert run.Job.of(job.notebook, given, Path("a")).key == job.key


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_repository_can_be_planned(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert sweep.plan(path)


def test_the_first_seed_of_the_results_is_the_laptop_presets_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    jobs = sweep.plan(ROOT / "notebooks" / "sweeps" / "results.yaml", "04b 10b")
    assert {job.key for job in run.plan("laptop", "04b 10b")} < {job.key for job in jobs}


def test_a_sweep_is_run_once_and_shows_test_numbers_when_asked(lesson):
    path, folder = file("{images: [10, 20, 13], seed: [0]}"), Path("runs", "sweeps", "small")
    with pytest.raises(ValueError, match="small.yaml: 3 of 3 jobs have not run yet; make sweep SWEEP="):
        sweep.unseal(path)
    done = course("sweep", path)
    assert done.returncode != 0 and "small: 2 of 3 jobs done" in done.stdout and "2/3" in done.stdout, done.stdout
    assert "failed: code cell 2" in done.stdout and "AssertionError: no luck" in done.stdout
    assert [trained for _, _, trained, _ in logged()] == [True, False, False]  # shared work is done once
    # Who tunes sees validation numbers only.
    assert "on validation images: runs/sweeps/small/validation.csv" in done.stdout
    assert sorted(pd.read_csv(folder / "validation.csv").value) == [-20, -10]
    seen = {".snakemake", ".failed", "work", "plan.json", "lock", "snakemake.log", "sweep.txt", "validation.csv"}
    assert {file.name for file in folder.iterdir()} == seen
    with pytest.raises(ValueError, match="1 of 3 jobs failed: small: images=13, seed=0"):
        sweep.unseal(path)
    table = results.wide(results.read(folder / "results.csv"))
    assert sorted(table.score) == [10, 20] and (table["axis images"] == table.score).all() and {*table.run} == {"small"}
    assert (table.minutes >= 0).all() and table.device.str.endswith(f", {os.cpu_count()} threads").all()
    assert len(list((folder / "notebooks").glob("*.ipynb"))) == 2
    grown = sweep.plan(file("{images: [10, 20, 13, 30], seed: [0]}"))
    assert [job.kept.exists() for job in grown] == [True, True, False, False]  # a new point makes no other run again


def do(jobs):
    """Run jobs in this process."""
    run.KEPT.mkdir(parents=True, exist_ok=True)
    run.describe(jobs, Path("plan.json"))
    for job in jobs:
        run.execute(Path("plan.json"), str(job.kept.absolute()))


def test_test_numbers_stay_sealed_while_a_job_that_failed_runs_again(lesson):
    path = file("{seed: [0, 1]}")
    done, again = sweep.plan(path)
    do([done])
    again.error.write_text("killed")
    with pytest.raises(ValueError, match="1 of 2 jobs failed"):
        sweep.unseal(path)  # it has run
    with run.locked(again.lock), pytest.raises(ValueError, match="1 of 2 jobs have not run yet"):
        sweep.unseal(path)
    starting = run.locked(Path("runs", "sweeps", "small", "lock"))  # a sweep that is about to start a job
    with starting, pytest.raises(ValueError, match="small is still running; wait for it"):
        sweep.unseal(path)


def test_no_job_waits_a_second_time_for_one_that_failed(lesson, monkeypatch):
    jobs, ordered = sweep.plan(file("{images: [13, 20]}")), []
    run.KEPT.mkdir(parents=True)
    jobs[0].error.write_text("no luck")
    monkeypatch.setattr(run, "describe", lambda jobs, *_, **__: ordered.extend(jobs))
    monkeypatch.setattr(run, "command", lambda *_: ["true"])
    run.start(jobs, Path("runs", "sweeps", "small"), at_once=1)
    assert ordered == [jobs[1], jobs[0]]


def test_results_of_several_runs_are_joined_in_one_table(lesson):
    into = Path("notebooks")
    path = into / "sweeps" / "results.yaml"

    def write_sweep(**runs):
        path.write_text(yaml.safe_dump({"into": "notebooks", "axes": {"seed": [0, 2]}, "runs": runs}, sort_keys=False))

    code = (
        "import pandas as pd\nfrom e2lib.course import results\n"
        "row = {'notebook': '07', 'data': 'scenes', 'model': model, 'seed': seed, 'at': 'Input'}\n"
        "row |= {'λ': 0.003 if seed else 0.5, 'F1 kept': 'no' if seed else 'yes'}\n"
        "row |= {'F1': size + seed, 'EPG': float('nan')}\n"
        "results.record(pd.DataFrame([row]))"
    )
    write(lesson, code, first="# Parameters: a\nsize = 64\nseed = 0\nmodel = 'net'")
    large = {"notebook": "07", "parameters": {"size": 96, "model": "large|x"}}
    write_sweep(one={"notebook": "07"}, large=large)
    jobs = sweep.plan(path)
    assert len({job.key for job in jobs}) == 4
    do(jobs)
    sweep.unseal(path)
    table = pd.read_csv(into / "results.csv", dtype=str)
    assert (table.pop("minutes").astype(float) >= 0).all() and table.pop("device").str.contains("threads").all()
    assert table.pop("commit").isna().all()  # there is no repository
    assert table.to_csv(index=False).splitlines() == [
        "run,notebook,data,model,method,setting,seed,selection rule,metric,value",
        *(
            f'{name},07,scenes,{net},,at=Input,{seed},"EPG of validation images, F1 kept",{metric},{value}'
            for name, net, size in (("one", "net", 64), ("large", "large|x", 96))
            for seed in (0, 2)
            for metric, value in (("λ", 0.003 if seed else 0.5), ("F1", size + seed), ("F1 kept", int(not seed)))
        ),
    ]
    text = (into / "results.md").read_text()
    assert text.count("Seeds: 0, 2.") == 2 and text.index("## one") < text.index("## large")
    assert text.splitlines()[-3:] == [
        "| data | model | selection rule | at | λ | F1 kept | F1 |",
        "|---|---|---|---|---|---|---|",
        "| scenes | large\\|x | EPG of validation images, F1 kept | Input | 0.003, 0.5 | 1 of 2 | 97.0 ± 1.4 |",
    ]
    csv = into / "results.csv"
    whole = csv.read_text()
    csv.write_text(whole.replace("0.003", "0.004"))
    sweep.unseal(path, "one")  # the other run stays as it is in the file, in its place
    changed = [line.replace("λ,0.003", "λ,0.004") if line.startswith("large") else line for line in whole.splitlines()]
    assert csv.read_text().splitlines() == changed  # minutes and all
    kept = [(job, job.kept.rename(f"{job.key}.ipynb")) for job in (*jobs[:2], jobs[3])]
    for job, _ in kept:
        job.error.write_text("no photographs")
    with pytest.raises(ValueError, match="3 of 4 jobs failed: one: .*csv these runs get no new rows: one, large$"):
        sweep.unseal(path)
    assert csv.read_text().splitlines() == changed
    for job, file in kept:
        file.rename(job.kept)
    write_sweep(one={"notebook": "07"}, new={"notebook": "07"})
    sweep.unseal(path, "one")  # rows of a run that is no longer named are kept, as the last ones
    assert [line.partition(",")[0] for line in csv.read_text().splitlines()[1:]] == ["one"] * 6 + ["large"] * 6
    with pytest.raises(ValueError, match="unknown RUNS 'two': choose from one new"):
        sweep.plan(path, "one two")


def test_two_files_of_one_name_have_no_folder_in_common(lesson):
    path = file()
    other = Path("small.yaml")
    other.write_text(path.read_text())
    Path("runs", "sweeps", "small").mkdir(parents=True)
    Path("runs", "sweeps", "small", "sweep.txt").write_text("notebooks/sweeps/small.yaml")
    with pytest.raises(
        ValueError, match="small.yaml: runs/sweeps/small belongs to notebooks/sweeps/small.yaml; rename"
    ):
        sweep.start(other)


def test_profiles_are_refused_by_name(lesson):
    (run.PROFILES / "slurm").mkdir(parents=True)
    with pytest.raises(ValueError, match="unknown PROFILE 'slum': choose from slurm"):
        sweep.start(file(), profile="slum")


@pytest.mark.alone
def test_ten_thousand_jobs_are_planned_within_a_minute(lesson):
    seeds, images = list(range(100)), list(range(1, 101))
    path, folder = file(f"{{seed: {seeds}, images: {images}}}"), Path("runs", "sweeps", "small")
    start = time.perf_counter()
    jobs = sweep.plan(path)
    assert len(jobs) == 10_000 and len({job.starts for job in jobs}) == 100
    folder.mkdir(parents=True)
    run.describe(jobs, folder / "plan.json")
    dry = run.command(folder, gpus=0) + ["--cores", "2", "--dry-run", "--quiet", "all"]
    subprocess.run(dry, check=True, capture_output=True)
    print(f"{time.perf_counter() - start:.1f} seconds")
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


def stand_in(names: tuple[str, ...], code: str, folder: Path) -> str:
    """The PATH on which commands `names` are this code."""
    folder.mkdir()
    Path("bin").mkdir()
    for name in names:
        Path("bin", name).write_text(code.format(python=sys.executable, folder=folder))
        Path("bin", name).chmod(0o755)
    return f"{Path('bin').absolute()}{os.pathsep}{os.environ['PATH']}"


def test_slurm_runs_each_job_with_a_gpu_of_its_own(lesson, project):
    folder = project / "slurm"
    names = ("sbatch", "srun", "sacct", "squeue", "sinfo", "scontrol", "sacctmgr", "sshare", "scancel")
    path = stand_in(names, SLURM, folder)
    shutil.copytree(ROOT / run.PROFILES / "slurm", run.PROFILES / "slurm")
    with (run.PROFILES / "slurm" / "config.yaml").open("a") as profile:
        profile.write("slurm-init-seconds-before-status-checks: 1\n")
    done = course("sweep", file("{seed: [0]}"), "--profile", "slurm", PATH=path)
    assert done.returncode == 0 and "small: 1 of 1 jobs done" in done.stdout, done.stdout
    [asked] = [json.loads(job.read_text()) for job in folder.glob("*.json")]
    assert "--gpus=1" in asked and "--mem" in asked
    assert [card for *_, card in logged()] == ["gpu-of-1"]  # what Slurm gave is left as it is


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


def test_kubernetes_runs_each_job_with_a_gpu_of_its_own(lesson, project):
    folder = project / "cluster"
    path = stand_in(("kubectl",), KUBECTL, folder)
    shutil.copytree(ROOT / run.PROFILES / "kubernetes", run.PROFILES / "kubernetes")
    with (run.PROFILES / "kubernetes" / "config.yaml").open("a") as profile:
        profile.write("seconds-between-status-checks: 1\n")
    done = course("sweep", file("{seed: [0]}"), "--profile", "kubernetes", PATH=path)
    assert done.returncode == 0 and "small: 1 of 1 jobs done" in done.stdout, done.stdout
    [manifest] = [yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")]
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert Path(container["workingDir"]).is_relative_to(project)
