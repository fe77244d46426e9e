"""From chest radiographs and reports to the paper's main table: the stages are in rules/, the science in workflow/dive."""

from snakemake.utils import min_version

min_version("9.14")


configfile: "config.yaml"


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
    shell("mkdir -p results/adapters results/layers results/teacher results/world")
    shell("python -m dive.reporting.summary results {config[experiments]}")
