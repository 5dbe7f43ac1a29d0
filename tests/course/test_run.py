"""Notebooks are executed once, fail by name, survive every kill, and are published clean."""

import contextlib
import ctypes
import functools
import json
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

from e2lib.course import notebook, run
from e2lib.course.publish import publish
from e2lib.course.run import plan
from tests.course.conftest import course, write

# Notes down its process and goes on when a file says so.
WAITS = (
    "import os, time\nopen('../log', 'a').write(f'{os.getpid()}\\n')\nwhile not os.path.exists('go'): time.sleep(0.1)"
)


def execute(project: Path, job: run.Job, **how):
    run.describe([job], project / "plan.json", **how)
    run.execute(project / "plan.json", str(job.kept.absolute()))


def test_a_failure_is_named_the_others_are_kept_and_nothing_is_repeated(project):
    write(project / "notebooks" / "01_first.ipynb", "print(size)")
    broken = write(project / "notebooks" / "02_second.ipynb", "before = 1", "# why\nraise RuntimeError('no luck')")
    write(project / "notebooks" / "03_third.ipynb", "1")
    folder = project / "runs" / "smoke"

    done = course("run", "--preset", "smoke")
    assert done.returncode != 0
    assert "notebooks/02_second.ipynb: code cell 3 ('# why'): RuntimeError: no luck (see runs/smoke/02" in done.stdout
    table = done.stdout[done.stdout.index("smoke: 2 of 3 jobs done") :].splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["01_first", "02_second", "03_third"]
    assert [line.split()[3].strip(":") for line in table[1:4]] == ["done", "failed", "done"]
    assert "notebook 3/3: 03_third" in done.stdout
    assert not any(word in done.stdout for word in ("jobid", "Building DAG", "WorkflowError"))  # Snakemake is quiet
    names = ["01_first.ipynb", "02_second.failed.ipynb", "03_third.ipynb"]
    assert sorted(path.name for path in folder.glob("*.ipynb")) == names
    first = notebook.read(folder / "01_first.ipynb")
    assert first.cells[3].outputs[0].text == "96\n"  # the preset's value
    assert first.metadata["run"]["device"].endswith(f", {max(1, os.cpu_count() // 3)} threads")  # three run at once

    write(broken, "print('mended')")
    done = course("run", "--preset", "smoke")
    assert done.returncode == 0
    assert "notebook 2/3" in done.stdout and "notebook 1/3" not in done.stdout and "notebook 3/3" not in done.stdout
    names[1] = "02_second.ipynb"
    assert sorted(path.name for path in folder.glob("*.ipynb")) == names


def children(process: int) -> list[int]:
    """The processes that this one has started, and those that they have."""
    threads = Path(f"/proc/{process}/task").glob("*/children")
    first = [int(word) for thread in threads for word in thread.read_text().split()]
    return first + [other for child in first for other in children(child)]


def test_after_every_kill_the_same_command_goes_on(project):
    write(project / "notebooks" / "01_first.ipynb", "1")
    write(project / "notebooks" / "02_slow.ipynb", WAITS)
    log = project / "log"

    def killed(*names):
        """What the command says of which these processes are killed while the notebook runs."""
        begun = log.read_text().count("\n") if log.exists() else 0
        process = course("run", "--preset", "smoke", "--notebooks", "02", start=subprocess.Popen, session=True)
        while not log.exists() or log.read_text().count("\n") == begun:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        snakemake, *below = children(process.pid)
        kernel = int(log.read_text().split()[-1])
        [job] = [one for one in below if kernel in children(one) and b"execute" in _words(one)[:6]]
        groups = {"starter": [process.pid], "Snakemake": [snakemake], "job": [job], "others": below}
        for one in (one for name in names for one in groups[name]):
            with contextlib.suppress(ProcessLookupError):  # it has ended with another one
                os.kill(one, signal.SIGKILL)
        return process

    done = killed("job")  # what is left ends, and says what happened
    said = done.communicate()[0]
    assert done.returncode > 0 and "smoke: 0 of 1 jobs done" in said, said
    killed("starter", "Snakemake", "others")
    outlived = killed("starter", "Snakemake")  # by the job, which writes to the pipe: its reading end must stay open
    done = course("run", "--preset", "smoke", "--notebooks", "2", start=subprocess.Popen)
    assert "1 of the jobs, started earlier, still running" in done.stdout.readline()
    (project / "notebooks" / "go").touch()  # while the last one waits
    said = done.communicate()[0]
    outlived.stdout.close()
    assert done.returncode == 0, said
    assert len(log.read_text().split()) == 3
    assert notebook.read(project / "runs" / "smoke" / "02_slow.ipynb").cells[-1].execution_count
    assert not [path for path in (project / "runs" / ".kept").iterdir() if path.name.startswith(".02")]
    assert not (project / "runs" / "smoke" / "01_first.ipynb").exists()


def _words(process: int) -> list[bytes]:
    return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")


def test_a_stopped_list_stops_and_a_second_command_waits_for_it(project):
    write(project / "notebooks" / "01_first.ipynb", WAITS)
    first = course("run", "--preset", "smoke", start=subprocess.Popen)
    while not (project / "log").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.1)
    second = course("run", "--preset", "smoke", start=subprocess.Popen)
    assert "smoke is already running; waiting for it to end" in second.stdout.readline()
    first.terminate()
    (project / "notebooks" / "go").touch()
    assert "stopped: the same command goes on" in first.communicate()[0]
    said = second.communicate()[0]
    assert second.returncode == 0 and "smoke: 1 of 1 jobs done" in said, said
    assert len((project / "log").read_text().split()) == 1


def test_a_snakemake_that_hangs_is_ended_after_its_jobs(project, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    write(project / "notebooks" / "01_first.ipynb", "1")
    monkeypatch.setattr(run, "PATIENCE", 0.2)
    monkeypatch.setattr(run, "time", SimpleNamespace(sleep=interrupt))
    [job] = plan("smoke")
    run.KEPT.mkdir(parents=True)
    hung = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"], stdout=subprocess.PIPE)
    hung.stdout.readline()
    held = threading.Event()

    def work():
        with run.locked(job.lock):
            held.set()
            threading.Event().wait(1)

    start = time.monotonic()
    threading.Thread(target=work).start()
    held.wait()
    with pytest.raises(KeyboardInterrupt):
        run._watch(hung, [job], "small")
    assert hung.returncode == -signal.SIGKILL and time.monotonic() - start > 1


def test_a_kernel_that_dies_is_named(project):
    write(project / "notebooks" / "01_first.ipynb", "1", "import os\nos._exit(1)", "2")
    [job] = plan("smoke")
    with pytest.raises(SystemExit, match=r"01_first.ipynb: code cell 3 \('import os'\): DeadKernelError"):
        execute(project, job)
    assert job.failed.exists() and not job.kept.exists()


def test_leaving_early_is_not_finishing(project):
    write(project / "notebooks" / "01_first.ipynb", "import sys\nsys.exit()", "2")
    [job] = plan("smoke")
    with pytest.raises(SystemExit, match="code cell 2"):
        execute(project, job)
    assert job.failed.exists() and job.error.exists() and not job.kept.exists()


def test_what_was_edited_after_the_plan_is_another_job(project):
    write(project / "notebooks" / "01_first.ipynb", "1")
    [planned] = plan("smoke")
    run.KEPT.mkdir(parents=True)
    write(project / "notebooks" / "01_first.ipynb", "2")
    with pytest.raises(SystemExit, match="changed meanwhile; the same command runs it as it is now"):
        execute(project, planned)
    assert "changed meanwhile" in planned.error.read_text()


def test_a_full_disk_leaves_nothing_half_written(project):
    write(project / "notebooks" / "01_first.ipynb", "print('x' * 900_000)")
    [job] = plan("smoke")
    run.KEPT.mkdir(parents=True)
    run.describe([job], project / "plan.json")

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # what goes beyond cannot be written

    words = "execute", "plan.json", job.kept.absolute()
    full = course(*words, start=functools.partial(subprocess.run, preexec_fn=small_disk))
    assert full.returncode != 0 and full.stdout.count("File too large") == 1
    assert {file.suffix for file in run.KEPT.iterdir()} == {".error", ".lock"}
    done = course(*words)
    assert done.returncode == 0 and job.kept.exists(), done.stdout


def test_the_key_follows_what_goes_in_and_nothing_else(project):
    path = write(
        project / "notebooks" / "01_first.ipynb", "1", first="# Parameters: a\nsize = 64\nfile = 'w'\nwork = None"
    )
    weights, preset = project / "notebooks" / "w", project / "notebooks" / "presets" / "smoke" / "01.yaml"

    def key():
        return plan("smoke")[0].key

    first = key()
    content = notebook.read(path)
    content.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
    content.metadata["e2lib"]["minutes"] = 5
    content.cells[0].source = "# Other title"
    nbformat.write(content, path)
    assert key() == first
    preset.write_text("{size: 96, work: here}")  # where trainings are kept makes no difference
    assert key() == first
    keys = {first}
    for change in ("a", "b"):
        weights.write_text(change)
        keys.add(key())
    preset.write_text("size: 128")
    keys.add(key())
    content.cells[2].source = "2"
    nbformat.write(content, path)
    assert len({*keys, key()}) == 5


def test_other_photographs_make_another_run(project):
    write(project / "notebooks" / "01_first.ipynb", "1", first="# Parameters: a\nsize = 64\ndata_root = 'data'")
    photographs = project / "notebooks" / "data" / "birds"
    keys = [plan("smoke")[0].key]

    def change(name, text):
        run._hash.cache_clear()  # a new process reads anew
        (photographs / name).parent.mkdir(parents=True, exist_ok=True)
        (photographs / name).write_text(text)
        keys.append(plan("smoke")[0].key)

    change("a.png", "photograph")
    change("a.png", "photograph 2")
    change("b.png", "photograph")
    assert len({*keys}) == 4
    for hidden in (".ipynb_checkpoints/a.png", ".DS_Store"):
        change(hidden, "what no loader reads")
    assert keys[-1] == keys[-2] == keys[-3]


def test_data_that_lie_only_where_the_job_runs_stop_no_job(project):
    write(project / "notebooks" / "01_first.ipynb", "1", first="# Parameters: a\nsize = 64\ndata_root = 'scratch'")
    [job] = plan("smoke")
    run.KEPT.mkdir(parents=True)
    run.describe([job], project / "plan.json")
    (project / "notebooks" / "scratch").mkdir()
    (project / "notebooks" / "scratch" / "a.png").touch()
    run.execute(project / "plan.json", str(job.kept.absolute()))
    assert job.kept.exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("shots: {5: 1, '5': 2}", "is no YAML: 5 stands twice"),
        ("shares: {0.1: 1, 0.10: 2}", "is no YAML: 0.10 stands twice"),
        ("schedule: {lr: 1, epochs: 2, lr: 3}", "is no YAML: lr stands twice"),
        ("{[1]: 2}", "is no YAML: .*unhashable"),
        ("false", "holds False instead of lines name: value"),
        ("0", "holds 0 instead of"),
        ("[]", r"holds \[\] instead of"),
        ("a: \xff", "is no YAML: .*invalid"),
        ("a: 1\n---\na: 2", "is no YAML: expected a single document"),
    ],
)
def test_no_line_of_a_yaml_file_is_lost(tmp_path, text, complaint):
    file = tmp_path / "a.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"(?s)a.yaml {complaint}"):
        run.mapping(file)


def test_what_yaml_allows_stays_allowed(tmp_path):
    file = tmp_path / "a.yaml"
    for text, right in (("# nothing", {}), ("a: &one {b: 1, c: 2}\nd: {<<: *one, c: 3}", {"b": 1, "c": 3})):
        file.write_text("\ufeff" + text, "utf-8")
        assert run.mapping(file) == (right and {"a": {"b": 1, "c": 2}, "d": right})
    file.write_text("[1, 2]")
    assert run.mapping(file, list) == [1, 2]
    with pytest.raises(ValueError, match=r"a.yaml holds \[1, 2\] instead of lines"):
        run.mapping(file)


def test_the_real_preset_asks_for_its_folder_before_anything_runs(project, monkeypatch):
    write(project / "notebooks" / "01_first.ipynb", "1")
    (project / "notebooks" / "presets" / "real").mkdir(parents=True)
    (project / "notebooks" / "presets" / "real" / "01.yaml").write_text("{}")
    monkeypatch.setenv("E2LIB_REAL", str(project / "photographs"))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*photographs; REAL=FOLDER names one"):
        plan("real")
    (project / "photographs").mkdir()
    assert len(plan("real")) == 1


def test_device_goes_to_the_notebooks_that_have_one(project, monkeypatch):
    write(project / "notebooks" / "01_first.ipynb", "1")
    write(project / "notebooks" / "02_second.ipynb", "1", first="# Parameters: a\nsize = 64\ndevice = 'auto'")
    jobs = plan("smoke", device="cuda")
    assert [job.given for job in jobs] == [{"size": 96}, {"size": 96, "device": "cuda"}]
    monkeypatch.setattr(run, "cards", lambda: [])
    with pytest.raises(ValueError, match="device='cuda', but torch sees no GPU here; DEVICE=cpu"):
        run.start(jobs, Path("runs", "smoke"))


def test_each_job_sees_a_gpu_of_its_own(project, monkeypatch):
    monkeypatch.setattr(run, "cards", lambda: ["5", "7"])
    monkeypatch.setattr(tempfile, "tempdir", str(project))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with run._card():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
        with run._card():
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
            with pytest.raises(RuntimeError, match=r"other jobs use every GPU of this machine \(5, 7\)"), run._card():
                pass


@pytest.mark.parametrize(
    ("named", "there", "seen"),
    [("5,7", 2, ["5", "7"]), ("-1", 0, []), ("", 0, []), ("0,-1,1", 1, ["0"]), ("0", 0, []), (None, 2, ["0", "1"])],
)
def test_gpus_are_those_that_the_process_may_use(monkeypatch, named, there, seen):
    """CUDA takes the names up to the first that is no GPU; torch counts them."""
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)  # the driver is there
    run.cards.cache_clear()
    assert run.cards() == seen
    run.cards.cache_clear()


def test_the_laptop_preset_runs_lessons_and_what_goes_on_from_them_by_name(project):
    for name in ("01_first", "01b_more", "02_second"):
        write(project / "notebooks" / f"{name}.ipynb", "1")
    for preset, text in (("laptop", "{}"), ("full", "{}")):
        file = project / "notebooks" / "presets" / preset / "01b.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    names = [[job.notebook.stem for job in plan(*asked)] for asked in (("laptop",), ("laptop", "1b 2"), ("full",))]
    assert names == [["01_first", "02_second"], ["01b_more", "02_second"], ["01b_more"]]


def test_a_path_among_parameters_may_begin_with_a_variable(project, monkeypatch):
    write(project / "notebooks" / "01_first.ipynb", "1", first="# Parameters: a\nroot = None")
    (project / "notebooks" / "presets" / "smoke" / "01.yaml").write_text("root: $E2LIB_REAL/voc2007")
    monkeypatch.setenv("E2LIB_REAL", "elsewhere")
    [here] = plan("smoke")
    monkeypatch.setenv("E2LIB_REAL", "there")
    [there] = plan("smoke")
    assert [job.given["root"] for job in (here, there)] == ["elsewhere/voc2007", "there/voc2007"]
    assert here.key != there.key


def test_plan_refuses_by_name(project):
    with pytest.raises(FileNotFoundError, match="no notebook"):
        plan("smoke")
    path = write(project / "notebooks" / "01_first.ipynb", "1")
    with pytest.raises(ValueError, match="unknown PRESET 'big': choose from smoke, laptop, full, paper"):
        plan("big")
    with pytest.raises(ValueError, match="unknown NOTEBOOKS '07': choose from 01"):
        plan("smoke", "01 07")
    with pytest.raises(ValueError, match="unknown DEVICE 'gpu'"):
        plan("smoke", device="gpu")
    laptop = project / "notebooks" / "presets" / "laptop" / "01.yaml"
    for text, complaint in (
        ("size", "holds 'size'"),
        ("size: 1\nsize: 2", "is no YAML: size stands twice.*line 1"),
        ("size: [0", "is no YAML: .*"),
        ("sise: 96", "unknown parameter 'sise': did you mean 'size'"),
    ):
        laptop.write_text(text)
        with pytest.raises(ValueError, match=f"(?s)presets/laptop/01.yaml:? {complaint}"):
            plan("laptop")
    twin = write(project / "notebooks" / "01_twin.ipynb", "1")
    with pytest.raises(ValueError, match="same number: 01_first.ipynb 01_twin.ipynb"):
        plan("smoke")
    twin.unlink()
    (project / "notebooks" / "presets" / "paper" / "01.yaml").unlink()
    with pytest.raises(ValueError, match="unknown NOTEBOOKS '01': choose from"):  # not in this preset
        plan("paper", "01")
    path.write_text(path.read_text().replace("parameters", "other"))
    with pytest.raises(ValueError, match="01_first.ipynb has 0 cells tagged parameters"):
        plan("smoke")
    path.write_text("{")
    with pytest.raises(ValueError, match="01_first.ipynb is no readable notebook"):
        plan("smoke")


PANEL = """from IPython.display import display
view = {"model_id": "1", "version_major": 2, "version_minor": 0}
display({"application/vnd.jupyter.widget-view+json": view, "image/jpeg": "/9j/", "text/plain": "a panel"}, raw=True)"""
SLIDER = "import ipywidgets\nipywidgets.IntSlider()"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1]);"


def test_publish_keeps_outputs_and_leaves_the_rest(project, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    bar = "from tqdm.auto import tqdm\nfor _ in tqdm([1]): print(size)"
    path = write(project / "notebooks" / "01_first.ipynb", bar, PLOT, PANEL, SLIDER)
    (project / "notebooks" / "presets" / "laptop" / "01.yaml").write_text("size: 64")
    [job] = plan("laptop")
    run.KEPT.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="01_first.ipynb has not been run as it is now"):
        publish([job])
    execute(project, job)
    content = notebook.read(path)
    content.cells[0].source = "# Title, now that the numbers are known"
    nbformat.write(content, path)
    publish([job])
    text = path.read_text()
    assert "numbers are known" in text
    assert not any(word in text for word in ("papermill", str(project), "iopub", "it/s", "commit"))
    cells = notebook.read(path).cells
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2, 3, 4, 5]
    assert cells[2].outputs[0].text == "64\n"
    assert "image/png" in cells[3].outputs[0].data  # although MPLBACKEND asks for no display
    assert cells[4].outputs[0].data == {"image/jpeg": "/9j/", "text/plain": "a panel"}
    assert not cells[5].outputs  # what only a kernel can show
    assert "widgets" not in notebook.read(path).metadata
    card = notebook.read(path).metadata.e2lib
    assert card.minutes == job.state()["minutes"] and card.source == notebook.source_hash(notebook.read(path))
    assert (card.hardware, card.question) == ("CPU", "?")
    assert plan("laptop")[0].kept.exists()  # publishing makes nothing stale

    (project / "notebooks" / "presets" / "laptop" / "01.yaml").write_text("size: 96")
    [other] = plan("laptop")
    other.kept.write_text(json.dumps({}))
    with pytest.raises(ValueError, match="differs from the parameters cell of .*'size': 96"):
        publish([other])
