"""A notebook as a script, on one GPU or several: `torchrun --nproc-per-node 4 -m e2lib.course notebooks/07_NAME.ipynb`.

Every process executes every code cell; `training.fit` and `training.evaluate` share their images. The first process
shows what cells print, and writes the numbers that the notebook records.
"""

import argparse
import contextlib
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from e2lib.course import runs


def values(given: argparse.Namespace) -> dict[str, Any]:
    """The parameters of -f files and of -p, the later ones counting; ValueError for one that the notebook has not."""
    found: dict[str, Any] = {}
    for file in given.file:
        found |= yaml.safe_load(file.read_text()) or {}
    found |= {name: yaml.safe_load(value) for name, value in given.parameter}
    own = runs.defaults(given.notebook)
    if unknown := sorted(found.keys() - own.keys()):
        raise ValueError(f"{given.notebook} has no parameter {', '.join(unknown)}; it has {', '.join(own)}")
    return found


def join(parameters: dict[str, Any], own: dict[str, Any]) -> tuple[int, int]:
    """Joins the processes that torchrun has started, gives each its GPU, and returns number and count.

    ValueError for a notebook that keeps trainings where not all processes see them.
    """
    if (world := int(os.environ.get("WORLD_SIZE", 1))) == 1:
        return 0, 1
    import torch
    import torch.distributed as dist

    if (own | parameters).get("work", "") is None:
        raise ValueError(
            "parameter work=None: several processes need a folder that all of them see, as in -p work ../runs"
        )
    local, cuda = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available() and parameters.get("device") != "cpu"
    if cuda:
        torch.cuda.set_device(local)
        parameters["device"] = f"cuda:{local}"
    # What some metrics add up lies on the CPU. Processes may wait for long where one of them has more to do.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=datetime.timedelta(days=1))
    return dist.get_rank(), world


def execute(notebook: Path, parameters: dict[str, Any], show: bool) -> list[dict[str, Any]]:
    """Runs the code cells in this process; the rows that they record. SystemExit where a cell fails."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    cells = [
        (cell.source, "parameters" in cell.metadata.get("tags", [])) for cell in runs.code_cells(runs.read(notebook))
    ]
    injected = runs.INJECTED_CELL + "".join(f"{name} = {value!r}\n" for name, value in parameters.items())
    shell, rows = InteractiveShell.instance(), []
    os.chdir(notebook.parent)
    for number, (source, first) in enumerate(cells, 1):
        for text in [source, injected] if first else [source]:
            with capture_output(stdout=not show, stderr=False) as captured:
                done = shell.run_cell(text, store_history=True)
            if not done.success:
                error = done.error_before_exec or done.error_in_exec
                sys.exit(
                    f"{notebook}: code cell {number} ({source.splitlines()[0]!r}): {type(error).__name__}: {error}"
                )
            for output in captured.outputs:
                if table := output.data.get(runs.NUMBERS):
                    rows += [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
                elif show:
                    print(output.data.get("text/plain", ""))
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m e2lib.course", description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("-f", "--file", type=Path, action="append", default=[], help="YAML file of parameters")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("-o", "--output", type=Path, help="where the recorded numbers go, as JSON")
    given = parser.parse_args()
    os.environ["MPLBACKEND"] = "Agg"
    with runs.plainly():
        parameters = values(given)
        rank, world = join(parameters, runs.defaults(given.notebook))
    output = given.output and given.output.absolute()
    if output:  # before the training
        output.parent.mkdir(parents=True, exist_ok=True)
    silent = contextlib.nullcontext() if rank == 0 else contextlib.redirect_stderr(open(os.devnull, "w"))  # noqa: SIM115
    with silent:
        rows = execute(given.notebook.absolute(), parameters, show=rank == 0)
    if output and rank == 0:
        runs.write(output, json.dumps(rows, indent=1))
    if world > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


if __name__ == "__main__":
    main()
