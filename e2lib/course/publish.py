"""The outputs of executed notebooks, written into their sources."""

from e2lib.course import notebook, parameters
from e2lib.course.run import Job
from e2lib.disk import write


def publish(jobs: list[Job]) -> None:
    """Write the outputs of executed notebooks into their sources, without data of papermill and of this machine.

    FileNotFoundError for a job that is not done. ValueError for parameters that are not the defaults of the notebook.
    """
    import nbformat

    for job in jobs:
        if not job.kept.exists():
            raise FileNotFoundError(f"{job.notebook} has not been run as it is now: make run")
        schema = parameters.of(job.notebook)
        if changed := {name: value for name, value in job.given.items() if schema[name].default != value}:
            raise ValueError(f"the preset differs from the parameters cell of {job.notebook}: {changed}")
        source, executed = notebook.read(job.notebook), notebook.read(job.kept)
        cells = zip(notebook.code_cells(source), notebook.code_cells(executed), strict=True)
        for number, (cell, done) in enumerate(cells, 1):
            cell.outputs = [output for output in done.outputs if not notebook.is_bar(output)]
            for output in [*cell.outputs]:  # of a widget, which needs a kernel, its picture stays
                if output.get("data", {}).pop(notebook.WIDGET, None) and [*output.data] == ["text/plain"]:
                    cell.outputs.remove(output)
            for item in [cell, *(output for output in cell.outputs if output.output_type == "execute_result")]:
                item.execution_count = number
        for cell in source.cells:
            tags = cell.metadata.get("tags", [])
            cell.metadata = {"tags": tags} if tags else {}
            if "hide-input" in tags:  # the site's name for it; this is JupyterLab's
                cell.metadata["jupyter"] = {"source_hidden": True}
        card = source.metadata.get("e2lib", {})
        card |= {"minutes": job.state()["minutes"], "source": notebook.source_hash(source)}
        kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        source.metadata = {"e2lib": card, "kernelspec": kernel, "language_info": {"name": "python"}}
        write(job.notebook, nbformat.writes(source) + "\n")
