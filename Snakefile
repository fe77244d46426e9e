"""From chest radiographs and reports to the paper's main table: the stages are in rules/, the science in workflow/dive."""

import os

from snakemake.utils import min_version

from dive.reporting.summary import summarise_run

min_version("9.14")


# That of the folder of the run (--directory); where it has none, the default beside this file.
configfile: "config.yaml" if os.path.isfile("config.yaml") else workflow.source_path("config.yaml")


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/content.smk"
include: "rules/gathering.smk"
include: "rules/data.smk"
include: "rules/annotate.smk"
include: "rules/cache.smk"
include: "rules/analyse.smk"
include: "rules/distill.smk"
include: "rules/generate.smk"
include: "rules/score.smk"
include: "rules/tables.smk"
include: "rules/report.smk"
include: "rules/whole.smk"


rule all:
    default_target: True
    input:
        everything,


onsuccess:
    # Of grids without the methods that need them these are empty; `dvc commit` wants the outputs of all its stages.
    for folder in ("adapters", "layers", "teacher", "world"):
        os.makedirs(f"results/{folder}", exist_ok=True)
    print(summarise_run("results", config["experiments"]))
