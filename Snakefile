# One rule for each notebook that is asked for. `python -m e2lib.course.runs run` (in `make run`) calls this.
import sys

from e2lib.course import runs

selected = runs.plan(config.get("preset", "laptop"), str(config.get("notebooks", "")), config.get("device", "auto"))

# A notebook uses every core, so one runs at a time; in the smoke preset, where most of the time goes to starting, two do.
each = (workflow.cores + 1) // 2 if config.get("preset") == "smoke" else workflow.cores


rule all:
    input:
        [str(run.marker) for run in selected],


for number, run in enumerate(selected, 1):

    rule:
        name:
            run.name
        output:
            update(str(run.marker)),  # not removed, if a job that outlived its Snakemake has written it
        params:
            preset=run.preset,
            notebook=run.name[:2],
            device=config.get("device", "auto"),
            position=f"{number}/{len(selected)}",
        priority: len(selected) - number  # in teaching order
        threads: each
        shell:
            "{sys.executable:q} -m e2lib.course.runs execute --marker {output} --preset {params.preset}"
            " --notebooks {params.notebook} --device {params.device} --position {params.position} 2>&1"
