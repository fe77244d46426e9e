"""Every job of the configured experiments and what it makes: the targets of a run, which come back once they are deleted,
and the results that may be stale where Snakemake cannot see it.

Snakemake makes a missing file only where it is a target or where a job that runs anyway reads it. A table that nothing
reads and an adapter whose reports are there would therefore stay away.
"""

from functools import cache

from dive import software
from dive.whole import absent_files
from snakemake.io import apply_wildcards

WRITERS = {"constant": "repeat_report", "external": "import_reports"}


def jobs_of_run():
    """(rule, wildcards) of every job of the configured experiments; the rules say what each makes."""
    jobs = {}

    def add(rule, **wildcards):
        jobs[rule, tuple(wildcards.items())] = wildcards

    def demonstrate(dataset, seed, draw=""):
        add("demonstrate", dataset=dataset, shots=config["shots"], seed=seed, draw=draw)

    def distill(dataset, backbone, method, seed):
        add("distill", dataset=dataset, backbone=backbone, method=method, seed=seed)
        settings = config["methods"][method]
        add("annotate", dataset=dataset, annotator=marking_of(settings.get("weights", {}).get("source")))
        cached = {"dataset": dataset, "backbone": backbone, "shots": config["shots"], "seed": seed}
        for draw in DRAWS if reads_teacher(settings) else ():
            add("cache_teacher", **cached, draw=draw)
            demonstrate(dataset, seed, draw)
        if reads_layers(settings):
            add("cache_layers", **cached)
        if reads_layers(settings) or reads_demonstrations(settings):
            demonstrate(dataset, seed)

    for dataset, backbone, method in ROWS:
        row = {"dataset": dataset, "backbone": backbone, "method": method}
        settings = config["methods"][method]
        add("score", **row)
        for seed in seeds_of_method(method):
            if settings["kind"] in WRITERS:
                add(WRITERS[settings["kind"]], dataset=dataset, method=method, seed=seed)
                continue
            add("generate", **row, seed=seed)
            if settings.get("demonstrations"):
                demonstrate(dataset, seed)
            if settings["kind"] == "steering":
                distill(settings.get("trained_on", dataset), backbone, method.partition("@")[0], seed)
    for dataset, backbone in PAIRS:
        add("analyse", dataset=dataset, backbone=backbone)
        demonstrate(dataset, config["seeds"][0])
    for dataset in DATASETS:
        for name in COMPARED:
            add("annotate", dataset=dataset, annotator=marking_of(name))
        add("compare_annotators", dataset=dataset)
    for dataset in VIEWED:
        add("view_tokens", dataset=dataset)
    # With a transfer a dataset may be trained on that no grid reports on.
    trained = [(job["dataset"], job["backbone"]) for (rule, _), job in jobs.items() if rule == "distill"]
    for dataset, backbone in dict.fromkeys([*PAIRS, *trained]):
        add("cache_vision", dataset=dataset, backbone=backbone)
        add("split", dataset=dataset)
        add("select", dataset=dataset)
        if dataset in SYNTHETIC:
            add("synthesize", dataset=dataset)
        if backbone in TINY:
            add("build_backbone", backbone=backbone)
    for dataset, backbone in known_pairs():
        add("probe_world", dataset=dataset, backbone=backbone)
    for experiment in config["experiments"]:
        add("tabulate", experiment=experiment)
        add("plot", experiment=experiment)
        add("claim", experiment=experiment)
        add("report", experiment=experiment)
        for dataset, backbone in pairs_in(experiment):
            add("compare", experiment=experiment, dataset=dataset, backbone=backbone)
        for table in tables_beside(experiment):
            add("tabulate_comparison", experiment=experiment, table=table)
    for name in (*(["accept_world"] if known_pairs() else []), *(["compare_lexicon"] if KNOWN else [])):
        add(name)
    for name in ("index_reports", "summarise_costs"):
        add(name)
    return [(rule, wildcards) for (rule, _), wildcards in jobs.items()]


def described(name, wildcards):
    """A job of a rule with its files and the packages that its code imports."""
    log, outputs = getattr(rules, name).log[0], getattr(rules, name).output
    packages = packages_of(f"scripts/{name}.py", *loaded_by_name(name, wildcards))
    made = [apply_wildcards(pattern, wildcards) for pattern in outputs]
    return software.Job(name, apply_wildcards(log, wildcards), made, packages)


@cache
def all_jobs():
    """Every job of the configured experiments; a process that runs one of them never asks."""
    return [described(name, wildcards) for name, wildcards in jobs_of_run()]


def everything(wildcards):
    """The outputs of all jobs. Those that lack a file are to be made again, for which Snakemake is told so as by
    `--forcerun`: it takes a folder for whole as long as it is there."""
    for job in all_jobs() if workflow.is_main_process else ():
        for folder in job.outputs:
            if gone := absent_files(job.rule, folder):
                print(f"{folder}: {', '.join(gone[:3])} absent, so the folder is made again", file=sys.stderr)
                workflow.dag.forcefiles.add(folder)
    return [path for job in all_jobs() for path in job.outputs]


if workflow.is_main_process:
    backend = getattr(workflow.workflow_settings, "persistence_backend", None)
    kept_in_files = backend is None or backend.name == "FILE"
    for line in software.warnings(all_jobs(), *([] if kept_in_files else [None])):
        print(line, file=sys.stderr)
