"""The validated configuration, what of it is run, and the functions by which rules find their inputs and settings."""

import os
import re
import sys
from itertools import product
from pathlib import Path

from dive import runs, warm
from dive.annotation.scispacy import needed_files, pipeline_errors, pipeline_files
from dive.backbones.check import check_backbones
from dive.backbones.shipped import shipped_hash
from dive.config import resolve
from dive.configfiles import ConfigError, read_files
from dive.crosschecks import annotators_used
from dive.data.roots import check_root
from dive.environment import set_environment
from dive.scores.assets import absent_graphs, absent_weights, located
from dive.provenance import code_version, decisive, module_of, packages_of
from dive.reporting.ablations import contrasts_of
from dive.settings import SPANS as ANNOTATORS, STATISTICS, draws, reads_demonstrations, reads_layers

set_environment()

try:
    # Once more and for nothing but errors: Snakemake lets the last of two equal keys win.
    read_files(workflow.configfiles)
    config = resolve(config)
except ConfigError as error:
    sys.exit(str(error))


def select_rows(experiment):
    """(dataset, backbone, method) of every row of an experiment's table; a transfer is for the other datasets."""
    grid = config["grids"][experiment]
    rows = product(grid["datasets"], grid["backbones"], grid["methods"])
    return [row for row in rows if config["methods"][row[2]].get("trained_on") != row[0]]


ROWS = [row for experiment in config["experiments"] for row in select_rows(experiment)]
PAIRS = list(dict.fromkeys((dataset, backbone) for dataset, backbone, _ in ROWS))
DATASETS = list(dict.fromkeys(dataset for dataset, _ in PAIRS))
SYNTHETIC = [name for name, dataset in config["datasets"].items() if dataset["synthetic"]]
# Of those, the ones that are run: their references have a known truth.
KNOWN = [name for name in DATASETS if name in SYNTHETIC]
TINY = [name for name, backbone in config["backbones"].items() if backbone["tiny"]]

absent = [
    message
    for name in DATASETS
    if name not in SYNTHETIC
    for dataset in [config["datasets"][name]]
    for message in check_root(dataset["reader"], dataset["root"], name, dataset["selection"])
]
absent += check_backbones(config, ROWS)
absent += [
    f"methods.{method}.files.{dataset}: no file {file}; correct the path, or take the method out of the grids"
    for dataset, method in dict.fromkeys((dataset, method) for dataset, _, method in ROWS)
    for file in [config["methods"][method].get("files", {}).get(dataset)]
    if file and not os.path.isfile(file)
]
absent += absent_weights(config["scores"])
if "radgraph" in annotators_used(config):
    absent += absent_graphs(config["annotation"]["radgraph"], DATASETS)
if "scispacy" in annotators_used(config):
    files = needed_files(config["annotation"]["scispacy"])
    absent += [f"annotation.scispacy: no file {file}" for file in files if not os.path.isfile(file)]
    absent += pipeline_errors(config["annotation"]["scispacy"]["path"])
if absent:
    sys.exit("\n".join(dict.fromkeys(absent)))
# `workflow.cores` itself raises where no number is given, as with --summary.
if (cores := workflow.resource_settings.cores) is not None and cores < 1:
    sys.exit(f"--cores {cores}: no job can run on that; give a number from 1 on, or all")


def any_of(names):
    """A regular expression for exactly these names; without names it matches nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


TRANSFERS = [name for name, method in config["methods"].items() if "trained_on" in method]


def methods_of(*kinds):
    """Names of the methods of some kinds; a transfer (method@dataset) is none of its own."""
    return [name for name, method in config["methods"].items() if method["kind"] in kinds and name not in TRANSFERS]


wildcard_constraints:
    experiment=any_of(config["experiments"]),
    dataset=any_of(config["datasets"]),
    backbone=any_of(config["backbones"]),
    method=any_of(config["methods"]),
    annotator=any_of(ANNOTATORS),
    shots=r"\d+",
    seed=r"\d+",
    draw=r"(-draw[1-9]\d*)?",
    table="termination|significance|factorial|mechanisms",


# The draws of a seed's demonstrations. The first has no number, so that more draws leave its files as they are.
DRAWS = ["", *(f"-draw{number}" for number in range(1, config["draws"]))]

# What a job is given by its wildcards: a tiny backbone has a folder that is built here, a distilled method a teacher.


def built_backbone(wildcards):
    """The folder of a tiny backbone, which rule build_backbone makes; a real one is there already."""
    return [f"models/{wildcards.backbone}"] if wildcards.backbone in TINY else []


def shipped_backbone(wildcards):
    """Hash of the trained tiny backbone that comes with the project; None where this recipe has to be trained."""
    backbone = config["backbones"][wildcards.backbone]
    return shipped_hash(backbone["tiny"], config["world"], backbone["instruction"])


def demonstrations_file(dataset, seed):
    """The demonstrations that a seed draws for every study of a dataset's pool."""
    return f"results/demonstrations/{dataset}/k{config['shots']}/seed{seed}.json"


def probe_demonstrations(wildcards):
    """The demonstrations that probe the synthetic world: the ones of the first seed."""
    return demonstrations_file(wildcards.dataset, config["seeds"][0])


def seeds_of_method(name):
    """Seeds of a method; one that draws nothing at random has a single run."""
    return config["seeds"] if draws(config["methods"][name]) else [0]


def seeds_of(wildcards):
    """Seeds of the method that a job is about."""
    return seeds_of_method(wildcards.method)


# What a job depends on beside files: the narrowest slice of the configuration, and its code.


def backbone_for(batch):
    """A function for the settings of a backbone that decide what a job makes; of the batch sizes at most its own."""
    # The tower is not compiled and reads no text.
    unread = ("tiny", "path", "revision", *(["compile", "instruction"] if batch == "vision" else []))

    def settings(wildcards):
        chosen = {key: value for key, value in config["backbones"][wildcards.backbone].items() if key not in unread}
        return decisive({**chosen, "batch": {batch: chosen["batch"][batch]}})

    return settings


def without(key, settings):
    """Settings without one that decides how a job runs, or whether it stops, and not what it makes."""
    return {name: value for name, value in settings.items() if name != key}


# Of training, what decides its outcome: prefix cache and checkpoints only decide how soon it is there.
TRAINING = {key: config["training"][key] for key in ("max_report_tokens", "validation_studies")}


def loaded_by_name(name, wildcards):
    """Modules that a job of a rule loads by name, so that no import leads to them."""
    if name in ("distill", "generate"):
        return module_of(config["methods"][wildcards["method"]])
    if name == "annotate":
        return [f"dive.annotation.{part}" for part in parts_of(wildcards["annotator"])]
    if name == "split":
        return [f"dive.data.{config['datasets'][wildcards['dataset']]['reader']}"]
    if name == "score":
        return [f"dive.scores.{model}" for model, settings in SCORERS.items() if settings]
    return []


def code_of(script):
    """A function for the code version of a script together with the modules that a job loads by name."""

    def version(wildcards):
        return code_version(script, *loaded_by_name(Path(script).stem, wildcards))

    return version


def code_of_backbone(script):
    """A function for the code version of a script that trains a tiny backbone; None where it only copies one."""

    def version(wildcards):
        return None if shipped_backbone(wildcards) else code_version(script)

    return version


def gpus(wildcards):
    """Devices that a job with this backbone takes; the profile says how many there are."""
    return 0 if config["backbones"][wildcards.backbone]["device"] == "cpu" else 1


def memory(wildcards):
    """Main memory in MB of a job with this backbone: a real one is loaded there before it goes to a device."""
    return 2000 if wildcards.backbone in TINY else 48000


def is_credentialed(wildcards):
    """Whether only those who have signed for a dataset may have it: every real one, which is patients' reports."""
    return wildcards.dataset not in SYNTHETIC


def methods_in(experiment):
    """Settings of the methods of an experiment's grid, in its order."""
    return {name: config["methods"][name] for name in config["grids"][experiment]["methods"]}


# What single rules read and are given.


def marking_of(source):
    """The annotator whose spans a source of weights reads: the controls and statistics have none of their own."""
    if source == "random":
        return config["annotation"]["random"]["like"]
    return source if source in ANNOTATORS else config["annotation"]["annotator"]


def spans_file(dataset, source):
    """The decisive spans that a source of weights reads."""
    return f"results/annotations/{dataset}/{marking_of(source)}/spans.parquet"


def spans_of(wildcards):
    """The decisive spans that a method's weights act on."""
    return spans_file(wildcards.dataset, config["methods"][wildcards.method].get("weights", {}).get("source"))


def graphs_of(wildcards):
    """RadGraph's published graphs of a dataset, for an annotator that reads them; None for any other."""
    if "radgraph" not in parts_of(wildcards.annotator):
        return None
    return config["annotation"]["radgraph"]["annotations"].get(wildcards.dataset)


# RadGraph's weights for annotating; None where there are none to depend on.
OBSERVER = located({"radgraph": config["annotation"]["radgraph"]})["radgraph"]


def is_read_by_weights(wildcards):
    """Whether RadGraph's weights read the reports: for an annotator that has no published graphs of a dataset."""
    return bool(OBSERVER) and "radgraph" in parts_of(wildcards.annotator) and not graphs_of(wildcards)


def annotator_gpus(wildcards):
    """Devices that an annotating job takes."""
    return int(is_read_by_weights(wildcards) and OBSERVER["device"] != "cpu")


def annotator_memory(wildcards):
    """Main memory in MB of an annotating job: published graphs are one large file, RadGraph a model."""
    return 4000 if "radgraph" in parts_of(wildcards.annotator) else 2000


def parts_of(annotator):
    """The annotators that one consists of: itself, or those that a union holds."""
    return config["annotation"]["union"] if annotator == "union" else [annotator]


def annotator_settings(annotator, is_read):
    """What an annotator reads of the configuration, and nothing of the others; ``is_read``: by RadGraph's weights."""
    said = config["annotation"]
    if annotator == "union":
        return {"annotator": "union", "parts": [annotator_settings(part, is_read) for part in said["union"]]}
    own = said.get(annotator)
    if annotator == "vocabulary":
        own = {key: said[key] for key in ("classes", "include_cues")}
    if annotator == "radgraph":
        used = ("path", "archive", "device", "max_missing") if is_read else ("max_missing",)
        own = {key: (OBSERVER or own)[key] for key in used}
    return {"annotator": annotator, **own}


def reads_teacher(method):
    """Whether a method's loss asks for the teacher; with kd = 0 it learns from the reports alone."""
    return method.get("loss", {}).get("kd", 0) != 0


def teacher_of(wildcards):
    """The cached teacher of every draw, for a method that learns from it."""
    if not reads_teacher(config["methods"][wildcards.method]):
        return []
    folder = "results/teacher/{dataset}/{backbone}/k{shots}/seed{seed}{draw}"
    return expand(folder, shots=config["shots"], draw=DRAWS, **wildcards)


def layers_of(wildcards):
    """The cached states of all the teacher's layers, for a method that aligns its own to them or averages them."""
    if not reads_layers(config["methods"][wildcards.method]):
        return []
    return "results/layers/{dataset}/{backbone}/k{shots}/seed{seed}".format(shots=config["shots"], **wildcards)


def fitted_demonstrations(wildcards):
    """The demonstrations of the training queries, for a method that runs the queries with them itself."""
    if not reads_demonstrations(config["methods"][wildcards.method]):
        return []
    return demonstrations_file(wildcards.dataset, wildcards.seed)


def shown_demonstrations(wildcards):
    """The demonstrations of a method that has them in its context."""
    shown = config["methods"][wildcards.method].get("demonstrations", False)
    return demonstrations_file(wildcards.dataset, wildcards.seed) if shown else []


def adapter_of(wildcards):
    """The trained adapter of a steering method: of this dataset, or of the dataset after the @ in method@dataset."""
    method, _, other = wildcards.method.partition("@")
    if method not in methods_of("steering"):
        return []
    return f"results/adapters/{other or wildcards.dataset}/{wildcards.backbone}/{method}/seed{wildcards.seed}"


# Settings of the scores that need a model; of one without weights there is nothing to depend on.
SCORERS = located(config["scores"])


def scorer_gpus(wildcards):
    """Devices that a scoring job takes."""
    return int(any(settings and settings["device"] != "cpu" for settings in SCORERS.values()))


# A fork cannot use a GPU, and on a cluster another process than this one starts the jobs.
on_cpu = all(
    model["device"] == "cpu"
    for model in [*(config["backbones"][name] for _, name in PAIRS), *filter(None, [*SCORERS.values(), OBSERVER])]
)
if on_cpu and workflow.is_main_process:
    kept_warm = warm.allow()
else:
    kept_warm = []
    warm.forbid()
if not workflow.subprocess_exec:
    folders = [workflow.snakemake_tmp_dir, workflow.sourcecache.runtime_cache_path, *kept_warm]
    runs.begin(folders, locks=workflow.is_main_process)


def generations_of(wildcards):
    """The reports of all seeds of a method; what reads no backbone is the same for every backbone."""
    folder = "results/generations/{dataset}/{backbone}/{method}"
    if wildcards.method in methods_of("constant", "external"):
        folder = "results/generations/{dataset}/{method}"
    return expand(f"{folder}/seed{{seed}}.parquet", seed=seeds_of(wildcards), **wildcards)


def known_pairs():
    """Every selected pair of a synthetic dataset and a tiny backbone: the pairs that the acceptance test judges."""
    return [(d, b) for d, b in PAIRS if d in SYNTHETIC and b in TINY]


def probes():
    """The probes of these."""
    return [f"results/world/{dataset}/{backbone}.json" for dataset, backbone in known_pairs()]


def acceptance(suffix):
    """The acceptance, where there is a synthetic world to accept."""
    return [f"results/world/acceptance.{suffix}"] if probes() else []


def grouped(experiment, group):
    """Methods of an experiment's grid that belong to a group of the table."""
    groups = config["presentation"]["methods"]
    return [name for name in methods_in(experiment) if groups[name]["group"] == group]


def compared_methods(wildcards):
    """The methods that a dataset and backbone have, all of which are compared."""
    pair = (wildcards.dataset, wildcards.backbone)
    return [row[2] for row in select_rows(wildcards.experiment) if row[:2] == pair]


def compared_scores(file):
    """A function for a file of the scores of each of these methods."""

    def files(wildcards):
        folder = f"results/scores/{wildcards.dataset}/{wildcards.backbone}"
        return [f"{folder}/{method}/{file}" for method in compared_methods(wildcards)]

    return files


def compared_ours(wildcards):
    """The methods that are compared with all others."""
    ours = grouped(wildcards.experiment, "ours")
    return [name for name in compared_methods(wildcards) if name in ours]


def compared_contrasts(wildcards):
    """Effects of the 2x2, as weights of methods."""
    return contrasts_of(methods_in(wildcards.experiment), compared_ours(wildcards))
