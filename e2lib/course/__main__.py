"""The course's one command line: `python -m e2lib.course run`, `sweep`, `results`, `publish`.

With a notebook in place of a command, it runs this notebook as a script, on one GPU or several: `torchrun
--nproc-per-node 4 -m e2lib.course notebooks/07_NAME.ipynb`. Every process executes every code cell. The processes share
the images in `training.fit` and `training.evaluate`. The first one prints, and writes the recorded numbers.
"""

import argparse
import contextlib
import datetime
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from e2lib.disk import write

try:
    from e2lib.course import notebook, parameters, plainly, run
except ModuleNotFoundError as error:
    sys.exit(f"{error}: pip install 'e2lib[course]' brings what the course needs")


def join(values: dict[str, Any]) -> tuple[int, int]:
    """Join the processes that torchrun started, give each its GPU, and return its number and their count.

    ValueError for work=None, because the processes need a folder that all of them see.
    """
    if (world := int(os.environ.get("WORLD_SIZE", 1))) == 1:
        return 0, 1
    import torch
    import torch.distributed as dist

    if values.get("work", "") is None:
        raise ValueError("parameter work=None: several processes need a folder that all see, as in -p work ../runs")
    local, cuda = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available() and values.get("device") != "cpu"
    if cuda:
        torch.cuda.set_device(local)
        values["device"] = f"cuda:{local}"
    # Some metrics add up on the CPU. A process with less work may wait for long.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=datetime.timedelta(days=1))
    return dist.get_rank(), world


def execute(path: Path, given: dict[str, Any], show: bool) -> list[dict[str, Any]]:
    """Run the code cells in this process and return the rows that they record. SystemExit if a cell fails."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    from e2lib.course.results import NUMBERS

    injected = parameters.INJECTED_CELL + "".join(f"{name} = {value!r}\n" for name, value in given.items())
    shell, rows = InteractiveShell.instance(), []
    os.chdir(path.parent)
    for number, cell in enumerate(notebook.code_cells(notebook.read(path)), 1):
        own = "parameters" in cell.metadata.get("tags", [])
        for text in [cell.source, injected] if own else [cell.source]:
            with capture_output(stdout=not show, stderr=False) as captured:
                done = shell.run_cell(text, store_history=True)
            if not done.success:
                error = done.error_before_exec or done.error_in_exec
                where = f"{path}: code cell {number} ({cell.source.splitlines()[0]!r})"
                sys.exit(f"{where}: {type(error).__name__}: {error}")
            for output in captured.outputs:
                if table := output.data.get(NUMBERS):
                    rows += [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
                elif show:
                    print(output.data.get("text/plain", ""))
    return rows


def script(path: Path, files: list[Path], more: list[tuple[str, str]], output: Path | None) -> None:
    """Run a notebook with parameters of YAML `files` and of `more`. Write the rows that it records as JSON."""
    given: dict[str, Any] = {}
    for file in files:
        given |= run.mapping(file)
    given |= {name: run.of_yaml(value, f"-p {name} {value}") for name, value in more}
    schema = parameters.of(path)
    parameters.check(schema, given)
    values = {name: parameter.default for name, parameter in schema.items()} | given
    rank, world = join(values)
    if output := output and output.absolute():  # the notebook has another working directory
        output.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if rank == 0 else contextlib.redirect_stderr(io.StringIO()):
        rows = execute(path.absolute(), values, show=rank == 0)
    if output and rank == 0:
        write(output, json.dumps(rows, indent=1))
    if world > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def main() -> None:
    """The command line."""
    os.environ["MPLBACKEND"] = "Agg"
    parser = argparse.ArgumentParser(prog="python -m e2lib.course", description=__doc__)
    if any(word.endswith(".ipynb") for word in sys.argv[1:2]):
        parser.add_argument("notebook", type=Path)
        parser.add_argument("-f", "--file", type=Path, action="append", default=[], help="YAML file of parameters")
        parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
        parser.add_argument("-o", "--output", type=Path, help="where the recorded numbers go, as JSON")
        given = parser.parse_args()
        with plainly():
            return script(given.notebook, given.file, given.parameter, given.output)
    commands = parser.add_subparsers(dest="command", required=True)
    options = {"run": "--preset --notebooks --device", "publish": "--preset --notebooks --device"}
    options |= {"sweep": "file --runs --profile --jobs", "results": "file --runs", "execute": "file kept"}
    defaults = {"--preset": "laptop", "--device": "auto", "--jobs": "0"}
    for name, words in options.items():
        command = commands.add_parser(name)
        for word in words.split():
            command.add_argument(word, default=defaults.get(word, ""))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: the same command goes on with what is not done"))
    with plainly():
        if given.command == "execute":  # Snakemake calls it
            return run.execute(Path(given.file), given.kept)
        if given.command == "run":
            jobs = run.plan(given.preset, given.notebooks, given.device)
            # A notebook uses all cores. In the smoke preset most of the time goes into starting, so three run at once.
            at_once = 3 if given.preset == "smoke" and not run.cards() else 0
            sys.exit(run.start(jobs, Path("runs", given.preset), at_once, bars=True))
        if given.command == "publish":
            from e2lib.course.publish import publish

            return publish(run.plan(given.preset, given.notebooks, given.device))
        from e2lib.course import sweep

        if given.command == "sweep":
            sys.exit(sweep.start(Path(given.file), given.runs, given.profile, int(given.jobs)))
        sweep.unseal(Path(given.file), given.runs)


if __name__ == "__main__":
    main()
