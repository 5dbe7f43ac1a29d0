"""Parameters are refused by name; runs are executed once, fail by name, and are published clean."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from e2lib.course import runs

ROOT = Path(__file__).parents[2]
CELL = '# Parameters: change them here\nsize = 64\nseed = 0\ndata = "scenes"\ndata_root = None\ndevice = "cpu"'


def namespace(injected: str = "", **later) -> dict:
    """What a notebook's `globals()` holds after its parameters cell, and the one that papermill adds."""
    cells = [CELL, "# Parameters\n" + injected] if injected else [CELL]
    held = {"In": ["", *cells], "get_ipython": print}
    for cell in cells:
        exec(cell, held)
    return held | later


def test_parameters_are_checked_values():
    checked = runs.parameters(namespace("size = 96"))
    assert checked.model_dump() == dict(size=96, seed=0, data="scenes", data_root=None, device=torch.device("cpu"))


def test_later_variables_are_no_parameters():
    assert runs.parameters(namespace(images=[1, 2], sise=3)).size == 64


def test_works_where_no_cell_is_recorded():  # nbval executes cells like that
    assert runs.parameters(namespace() | {"In": [""]}).size == 64


@pytest.mark.parametrize(
    ("injected", "complaint"),
    [
        ("sise = 96", "unknown parameter 'sise': did you mean 'size'"),
        ("colour = 1", "unknown parameter 'colour': Here are size, seed"),
        ("size = 100", "parameter size=100: must be a multiple of 32 from 64 to 224"),
        ("size = 32", "parameter size=32: must be a multiple of 32 from 64"),
        ("size = 256", "parameter size=256: must be .* to 224"),
        ("size = '64'", "parameter size='64': .*integer"),
        ("seed = -1", "parameter seed=-1: "),
        ("seed = True", "parameter seed=True: "),
        ("device = 'gpu'", "parameter device='gpu': must be auto, cpu, cuda or cuda:N"),
        ("device = 3", "parameter device=3: must be auto, cpu, cuda or cuda:N"),
        ("device = 'cuda:99'", "parameter device='cuda:99': torch sees"),
        ("data = 'vok'", "parameter data='vok': must be one of scenes, birds, voc"),
        ("data = 'imagefolder'", "parameter data='imagefolder': must be one of scenes, birds, voc, coco, waterbirds"),
        ("data = 'voc'", "parameter data_root=None: data='voc' needs a folder with"),
        ("data = 'voc'; data_root = '/nowhere'", "parameter data_root='/nowhere': data='voc' needs a folder with"),
        ("data_root = '/'", "parameter data_root='/': data='scenes' is embedded"),
        ("size = 1\nseed = -1", r"(?s)size=1: .*seed=-1: "),
    ],
)
def test_unknown_names_and_wrong_values_are_refused(injected, complaint):
    with pytest.raises(ValueError, match=complaint):
        runs.parameters(namespace(injected))


def test_where_no_boxes_are_needed_the_data_may_have_none(tmp_path):
    cell = "# Parameters: which\nsource = 'imagefolder'\nsource_root = {!r}\nshots = {{'50': 3, 'all': 1}}"

    def read(root):
        space = {}
        exec(cell.format(root), space)  # what papermill makes of YAML has strings for keys
        return runs.parameters(space | {"In": ["", cell.format(root)]})

    found = read(str(tmp_path))
    assert found.source == "imagefolder" and found.shots == {50: 3, "all": 1}
    with pytest.raises(ValueError, match="parameter source_root='/nowhere': source='imagefolder' needs a folder with"):
        read("/nowhere")


def test_the_parameters_cell_comes_first():
    with pytest.raises(ValueError, match="first run the cell whose first line has '# Parameters:'"):
        runs.parameters({"In": ["", "x = 1"], "x": 1})


def test_an_edited_parameters_cell_counts_not_its_earlier_version():
    held = namespace() | {"sise": 96}
    held["In"].append(CELL + "\nsise = 96")
    with pytest.raises(ValueError, match="unknown parameter 'sise'"):
        runs.parameters(held)
    held["In"].append(CELL)
    assert runs.parameters(held).size == 64


def test_real_data_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "voc").mkdir()
    assert runs.parameters(namespace("data = 'voc'; data_root = '~/voc'")).data_root == tmp_path / "voc"


def write(path: Path, *cells: str, first: str = "# Parameters: a\nsize = 64") -> Path:
    """A notebook with the parameters cell `first` and `cells`."""
    card = {"minutes": 9, "hardware": "CPU", "question": "?"}
    notebook = new_notebook(metadata={"e2lib": card})
    notebook.cells = [
        new_markdown_cell("# Title"),
        *(new_code_cell(cell) for cell in (first, *cells)),
    ]
    notebook.cells[1].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with presets for three notebooks; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    for preset in runs.PRESETS:
        for number in ("01", "02", "03"):
            file = tmp_path / "notebooks" / "presets" / preset / f"{number}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}" if preset == "laptop" else "size: 96")
    return tmp_path


def run(project: Path, notebooks: str = "", start=subprocess.run, **options):
    """`make run PRESET=smoke`, but with this Python."""
    command = [sys.executable, "-m", "e2lib.course.runs", "run", "--preset", "smoke", "--notebooks", notebooks]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return start(command, cwd=project, env=environment, **output, **options)


def test_a_failure_is_named_the_others_are_kept_and_nothing_is_repeated(project):
    write(project / "notebooks" / "01_first.ipynb", "print(size)")
    broken = write(project / "notebooks" / "02_second.ipynb", "before = 1", "# why\nraise RuntimeError('no luck')")
    write(project / "notebooks" / "03_third.ipynb", "1")
    folder = project / "runs" / "smoke"

    done = run(project)
    assert done.returncode != 0
    assert "notebooks/02_second.ipynb: code cell 3 ('# why'): RuntimeError: no luck" in done.stdout
    table = done.stdout[done.stdout.index("notebook  ") :].splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["01_first", "02_second", "03_third"]
    assert [line.split()[2].strip(":") for line in table[1:4]] == ["done", "failed", "done"]
    assert "runs/smoke" in table[4]
    assert "notebook 3/3: 03_third" in done.stdout
    assert not any(word in done.stdout for word in ("jobid", "Building DAG", "WorkflowError"))  # Snakemake is quiet
    assert sorted(path.name for path in folder.glob("*.ipynb")) == [
        "01_first.ipynb",
        "02_second.failed.ipynb",
        "03_third.ipynb",
    ]
    assert runs.read(folder / "01_first.ipynb").cells[3].outputs[0].text == "96\n"  # the preset's value

    write(broken, "print('mended')")
    done = run(project)
    assert done.returncode == 0
    assert "notebook 2/3" in done.stdout
    assert "notebook 1/3" not in done.stdout and "notebook 3/3" not in done.stdout
    assert sorted(path.name for path in folder.glob("*.ipynb")) == [
        "01_first.ipynb",
        "02_second.ipynb",
        "03_third.ipynb",
    ]

    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = run(project)
    assert (done.returncode, done.stdout.count("done")) == (0, 3)
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_killed_run_is_run_again_and_only_what_was_asked(project):
    write(project / "notebooks" / "01_first.ipynb", "1")
    write(project / "notebooks" / "02_slow.ipynb", "import os, time\ntime.sleep(0 if os.path.exists('go') else 600)")
    folder = project / "runs" / "smoke"
    folder.mkdir(parents=True)
    killed = run(project, "02", start=subprocess.Popen, start_new_session=True)
    while not list(folder.glob(".02_slow.*.ipynb")):
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    # papermill called by hand and killed would leave an output that looks finished
    (folder / "02_slow.ipynb").write_text((project / "notebooks" / "02_slow.ipynb").read_text())

    (project / "notebooks" / "go").touch()
    done = run(project, "2")
    assert done.returncode == 0, done.stdout
    assert "notebook 1/1: 02_slow" in done.stdout
    assert runs.read(folder / "02_slow.ipynb").cells[-1].execution_count
    assert not (folder / "01_first.ipynb").exists()


def test_a_kernel_that_dies_is_named(project):
    write(project / "notebooks" / "01_first.ipynb", "1", "import os\nos._exit(1)", "2")
    [one] = runs.plan("smoke")
    with pytest.raises(SystemExit, match=r"01_first.ipynb: code cell 3 \('import os'\): DeadKernelError"):
        runs.execute(one, one.marker, "1/1")
    assert one.failed.exists() and not one.output.exists()


def test_leaving_early_is_not_finishing(project):
    write(project / "notebooks" / "01_first.ipynb", "import sys\nsys.exit()", "2")
    [one] = runs.plan("smoke")
    with pytest.raises(SystemExit, match="code cell 2"):
        runs.execute(one, one.marker, "1/1")


def test_an_edit_during_the_run_is_refused(project):
    write(project / "notebooks" / "01_first.ipynb", "1")
    [planned] = runs.plan("smoke")
    before = planned.marker
    write(project / "notebooks" / "01_first.ipynb", "2")
    [edited] = runs.plan("smoke")
    with pytest.raises(SystemExit, match="edited while"):
        runs.execute(edited, before, "1/1")


def test_papermill_alone_refuses_an_unknown_parameter(project):
    cell = "import sys\nsys.path.insert(0, root)\nfrom e2lib import runs\nruns.parameters(globals())"
    source = write(project / "notebooks" / "01_first.ipynb", f"root = {str(ROOT)!r}\n" + cell)
    command = [sys.executable, "-m", "papermill", str(source), "out.ipynb", "--no-progress-bar", "-k", "python3"]
    command += ["--language", "python"]
    refused = subprocess.run([*command, "-p", "sise", "96"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "unknown parameter 'sise': did you mean 'size'?" in refused.stderr


def test_key_follows_what_goes_in_and_nothing_else(project, monkeypatch):
    path = write(project / "notebooks" / "01_first.ipynb", "1")
    code = project / "e2lib"
    (code / "sub").mkdir(parents=True)
    (code / "sub" / "deep.py").write_text("a = 1")
    monkeypatch.setattr(runs, "__file__", str(code / "runs.py"))

    def key(device="auto"):
        [one] = runs.plan("smoke", device=device)
        return one.key

    first = key()
    notebook = runs.read(path)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
    notebook.metadata["e2lib"]["minutes"] = 5
    notebook.cells[0].source = "# Other title"
    nbformat.write(notebook, path)
    assert key() == first
    notebook.cells[2].source = "2"
    nbformat.write(notebook, path)
    second = key()
    (code / "sub" / "deep.py").write_text("a = 2")
    third = key()
    (project / "notebooks" / "presets" / "smoke" / "01.yaml").write_text("size: 128")
    assert len({first, second, third, key()}) == 4


def test_device_goes_to_the_notebooks_that_have_one(project):
    write(project / "notebooks" / "01_first.ipynb", "1")
    write(project / "notebooks" / "02_second.ipynb", "1", first="# Parameters: a\ndevice = 'auto'")
    assert [one.parameters for one in runs.plan("smoke", device="cuda")] == [
        {"size": 96},
        {"size": 96, "device": "cuda"},
    ]


def test_plan_refuses_by_name(project):
    with pytest.raises(FileNotFoundError, match="no notebook"):
        runs.plan("smoke")
    path = write(project / "notebooks" / "01_first.ipynb", "1")
    with pytest.raises(ValueError, match="unknown PRESET 'big': choose from smoke, laptop, paper"):
        runs.plan("big")
    with pytest.raises(ValueError, match="unknown NOTEBOOKS '07': choose from 01"):
        runs.plan("smoke", "01 07")
    path.write_text(path.read_text().replace("parameters", "other"))
    with pytest.raises(ValueError, match="01_first.ipynb has 0 cells tagged parameters"):
        runs.plan("smoke", device="cpu")
    (project / "notebooks" / "presets" / "laptop" / "01.yaml").write_text("size")
    with pytest.raises(ValueError, match="presets/laptop/01.yaml holds 'size'"):
        runs.plan("laptop")
    twin = write(project / "notebooks" / "01_twin.ipynb", "1")
    with pytest.raises(ValueError, match="same number: 01_first.ipynb 01_twin.ipynb"):
        runs.plan("smoke")
    twin.unlink()
    with pytest.raises(ValueError, match="unknown DEVICE 'gpu'"):
        runs.plan("smoke", device="gpu")
    (project / "notebooks" / "presets" / "paper" / "01.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="presets/paper/01.yaml is missing"):
        runs.plan("paper")
    path.write_text("{")
    with pytest.raises(ValueError, match="01_first.ipynb is no readable notebook"):
        runs.plan("smoke")[0].marker  # noqa: B018


PANEL = """from IPython.display import display
view = {"model_id": "1", "version_major": 2, "version_minor": 0}
display({"application/vnd.jupyter.widget-view+json": view, "image/jpeg": "/9j/", "text/plain": "a panel"}, raw=True)"""


def test_of_a_panel_the_picture_is_published(project):
    path = write(project / "notebooks" / "01_first.ipynb", PANEL)
    (project / "notebooks" / "presets" / "laptop" / "01.yaml").write_text("size: 64")
    [one] = runs.plan("laptop")
    runs.execute(one, one.marker)
    runs.publish([one])
    (output,) = runs.read(path).cells[-1].outputs
    assert output.data == {"image/jpeg": "/9j/", "text/plain": "a panel"}
    assert "widgets" not in runs.read(path).metadata


PLOT = "import matplotlib.pyplot as plt\nplt.plot([1]);"


def test_publish_keeps_outputs_and_leaves_the_rest(project, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = write(
        project / "notebooks" / "01_first.ipynb", "from tqdm.auto import tqdm\nfor _ in tqdm([1]): print(size)", PLOT
    )
    (project / "notebooks" / "presets" / "laptop" / "01.yaml").write_text("size: 64")
    [one] = runs.plan("laptop")
    with pytest.raises(FileNotFoundError, match="01_first has no finished run with PRESET laptop"):
        runs.publish([one])
    runs.execute(one, one.marker, "1/1")
    notebook = runs.read(path)
    notebook.cells[0].source = "# Title, now that the numbers are known"
    nbformat.write(notebook, path)
    runs.publish([one])
    text = path.read_text()
    assert "numbers are known" in text
    assert not any(word in text for word in ("papermill", str(project), "widget", "iopub", "it/s"))
    cells = runs.read(path).cells
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2, 3]
    assert cells[2].outputs[0].text == "64\n"
    assert "image/png" in cells[3].outputs[0].data  # although MPLBACKEND asks for no display
    card = runs.read(path).metadata.e2lib
    assert card.minutes == json.loads(one.marker.read_text())["minutes"]
    assert card.source == runs.source_hash(runs.read(path))
    assert (card.hardware, card.question) == ("CPU", "?")
    assert runs.plan("laptop")[0].marker.exists()  # publishing makes nothing stale

    (project / "notebooks" / "presets" / "laptop" / "01.yaml").write_text("size: 96")
    [other] = runs.plan("laptop")
    other.marker.write_text("{}")
    with pytest.raises(ValueError, match="PRESET laptop differs from the parameters cell .*'size': 96"):
        runs.publish([other])


def test_results_are_collected_from_every_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    presets = tmp_path / "notebooks" / "presets"
    (presets / "laptop").mkdir(parents=True)
    (presets / "laptop" / "07.yaml").write_text("# the defaults")
    entries = "one: {notebook: '07'}\n  large: {notebook: '07', parameters: {size: 96, model: large|x}}"
    (presets / "results.yaml").write_text(f"seeds: [0, 2]\nruns:\n  {entries}\n")
    parameters = "# Parameters: a\nsize = 64\nseed = 0\nmodel = 'net'"
    code = (
        "import pandas as pd\nfrom e2lib import runs\n"
        "row = {'notebook': '07', 'data': 'scenes', 'model': model, 'seed': seed, 'at': 'Input'}\n"
        "row |= {'λ': 0.003 if seed else 0.5, 'F1 kept': 'no' if seed else 'yes'}\n"
        "row |= {'F1': size + seed, 'EPG': float('nan')}\n"
        "runs.record(pd.DataFrame([row]))"
    )
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(code)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "07_a.ipynb")
    runs.collect()
    table = pd.read_csv(tmp_path / "notebooks" / "results.csv", dtype=str)
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
    text = (tmp_path / "notebooks" / "results.md").read_text()
    assert text.count("Seeds: 0, 2.") == 2 and text.index("## one") < text.index("## large")
    assert text.splitlines()[-3:] == [
        "| data | model | selection rule | at | λ | F1 kept | F1 |",
        "|---|---|---|---|---|---|---|",
        "| scenes | large\\|x | EPG of validation images, F1 kept | Input | 0.003, 0.5 | 1 of 2 | 97.0 ± 1.4 |",
    ]
    markers = sorted((tmp_path / "runs").rglob("*.json"))
    before = [marker.stat().st_mtime_ns for marker in markers]
    assert runs.plan("laptop")[0].marker.exists()  # the first seed of the defaults is the laptop preset's run
    runs.collect()
    assert len(markers) == 4 and [marker.stat().st_mtime_ns for marker in markers] == before  # nothing ran again
    csv = tmp_path / "notebooks" / "results.csv"
    whole = csv.read_text()
    csv.write_text(whole.replace("0.003", "0.004"))
    for marker in markers:
        if "large" in str(marker):
            marker.unlink()
    runs.collect("one")  # the other run stays as it is in the file, in its place
    changed = [line.replace("λ,0.003", "λ,0.004") if line.startswith("large") else line for line in whole.splitlines()]
    assert csv.read_text().splitlines() == changed  # minutes and all
    assert not list((tmp_path / "runs" / "results" / "large-0").rglob("*.json"))
    (presets / "results.yaml").write_text("seeds: [0, 2]\nruns:\n  one: {notebook: '07'}\n  new: {notebook: '07'}\n")
    runs.collect("one")  # rows of a run that is no longer named are kept, as the last ones
    assert [line.partition(",")[0] for line in csv.read_text().splitlines()[1:]] == ["one"] * 6 + ["large"] * 6
    with pytest.raises(ValueError, match="unknown RUNS 'two': choose from one new"):
        runs.collect("one two")
    (presets / "results.yaml").write_text(
        "seeds: [0]\nruns:\n  one: {notebook: '07', parameters: {model: {data_root: nowhere}}}\n"
    )
    with pytest.raises(FileNotFoundError, match="one needs notebooks/nowhere; put the data there"):
        runs.collect()


def test_a_notebook_without_numbers_is_named(tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match="a.ipynb holds no numbers: one of its cells has to call runs.record"):
        runs.recorded(tmp_path / "a.ipynb")


@pytest.mark.parametrize("lambdas", [{"l1": [1.0]}, {"energy": [1.0], "l2": [1.0]}])
def test_losses_are_those_of_guidance_and_energy_among_them(lambdas):
    cell = CELL + f"\nlambdas = {lambdas}"
    held = {"In": ["", cell]}
    exec(cell, held)
    with pytest.raises(
        ValueError, match="parameter lambdas=.*must have values for energy, and may have .* l1, ppce, rrr"
    ):
        runs.parameters(held)


def test_a_schedule_is_checked_by_field():
    cell = CELL + "\nschedule = {'epochs': 0, 'lr': 0.1, 'batch_size': 8, 'eposs': 1}"
    held = {"In": ["", cell]}
    exec(cell, held)
    with pytest.raises(ValueError) as caught:
        runs.parameters(held)
    message = str(caught.value)
    assert "parameter schedule.epochs=0" in message
    assert "unknown parameter 'schedule.eposs': did you mean 'schedule.epochs'? Here are schedule.lr" in message


def namespace_of(cell):
    held = {"In": ["", cell]}
    exec(cell, held)
    return held


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("explained = {'method': 'weights', 'at': 'Final', 'weight': 1.0}", "at must be Input for method weights"),
        ("teacher = {'model': 'a', 'weights': None, 'lr': 0.1, 'epochs': -1}", "parameter teacher.epochs=-1"),
        ("vit = {'model': 'a', 'weights': None, 'lr': 0.1, 'epochs': 0}", "parameter vit.epochs=0"),
        ("source = 'voc'", "parameter source='voc': must be one of scenes, birds, waterbirds, imagefolder"),
        (
            "source = 'scenes'\nunrelated = {'root': 'x', 'model': 'a', 'weights': None, 'lr': 0.1, 'epochs': 1}",
            "parameter unrelated.root='x': source='scenes' is embedded, leave unrelated.root=None",
        ),
        (
            "scenes = {'data': 'voc', 'data_root': 'x', 'size': 64, 'images': 1, 'measured': 1}",
            "parameter scenes.data_root='x': scenes.data='voc' needs a folder with VOCdevkit",
        ),
    ],
)
def test_parameters_of_distillation_are_checked(line, complaint):
    with pytest.raises(ValueError, match=complaint):
        runs.parameters(namespace_of(f"# Parameters: some\n{line}"))


def test_results_that_name_an_unknown_parameter_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks" / "presets" / "laptop").mkdir(parents=True)
    (tmp_path / "notebooks" / "presets" / "laptop" / "07.yaml").write_text("# the defaults")
    (tmp_path / "notebooks" / "presets" / "results.yaml").write_text(
        "seeds: [0]\nruns: {one: {notebook: '07', parameters: {sise: 96}}}"
    )
    cell = new_code_cell("# Parameters: a\nsize = 64\nseed = 0", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "notebooks" / "07_a.ipynb")
    with pytest.raises(ValueError, match="results.yaml: one names .'sise'., which notebooks/07_a.ipynb has not"):
        runs.repeated()


def test_the_work_folder_belongs_to_the_parameters(tmp_path):
    cell = CELL + f"\nwork = {str(tmp_path)!r}"

    def folder(injected="seed = 0", without=()):
        held = {"In": ["", cell, "# Parameters\n" + injected]}
        for source in held["In"]:
            exec(source, held)
        return runs.work_folder(runs.parameters(held), without)

    assert folder().parent == tmp_path
    assert folder() == folder("device = 'auto'") != folder("size = 96")
    assert folder("work = None") != folder("work = None")
    assert folder(without=["size"]) == folder("size = 96", ["size"]) != folder("seed = 1", ["size"])
    assert folder(without=["size"]) != folder()
    with pytest.raises(ValueError, match="without names sede, which are no parameters"):
        folder(without=["sede"])


def test_what_runs_share_is_read_off_the_notebook(tmp_path):
    first = "a, b = runs.work_folder(p), runs.work_folder(p, without=['size'])"
    second = "%time 1\nc = runs.work_folder(p, without=('size', 'seed'))"
    nbformat.write(new_notebook(cells=[new_code_cell(first), new_code_cell(second)]), tmp_path / "a.ipynb")
    assert sorted(runs.sharing(tmp_path / "a.ipynb"), key=len) == [["size"], ("size", "seed")]


def test_rows_of_validation_images_are_told_from_those_of_test_images(tmp_path):
    table = {"columns": ["F1", "split"], "data": [[1.0, None], [2.0, "validation"], [3.0, "test"]]}
    other = {"columns": ["EPG"], "data": [[4.0]]}
    outputs = [new_output("display_data", {runs.NUMBERS: numbers}) for numbers in (table, other)]
    nbformat.write(new_notebook(cells=[new_code_cell("1", outputs=outputs)]), tmp_path / "a.ipynb")
    assert runs.recorded(tmp_path / "a.ipynb") == [{"F1": 1.0}, {"F1": 3.0}, {"EPG": 4.0}]
    assert runs.recorded(tmp_path / "a.ipynb", "validation") == [{"F1": 2.0}]


def test_a_temporary_work_folder_ends_with_its_process():
    code = """
        from e2lib.course import runs
        from pydantic import BaseModel
        folder = runs.work_folder(type("P", (BaseModel,), {"__annotations__": {"work": None}})(work=None))
        (folder / "0.pt").write_text("")
        print(folder)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder.is_absolute() and not folder.exists()
