"""The validated configuration, what of it is run, and the functions by which rules find their inputs and settings."""

import os
import re
import sys
from itertools import product

from dive.config import SPANS as ANNOTATORS, STATISTICS, ConfigError, draws, reads_demonstrations, reads_layers, resolve
from dive.data.roots import check_root
from dive.scores.assets import absent_weights, located, weight_files
from dive.provenance import code_version, module_of
from dive.reporting.ablations import contrasts_of

# A job asks nothing of the network and tells it nothing; HF_HUB_OFFLINE=0 lets a first run download a backbone.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

try:
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
absent += absent_weights(config["scores"])
if absent:
    sys.exit("\n".join(absent))


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
    table="termination|significance|factorial|mechanisms",


# What a job is given by its wildcards: a tiny backbone has a folder that is built here, a distilled method a teacher.


def built_backbone(wildcards):
    """The folder of a tiny backbone; a real one is a path or a name on the hub, and nothing here makes it."""
    return [f"models/{wildcards.backbone}"] if wildcards.backbone in TINY else []


def demonstrations_file(dataset, seed):
    """The demonstrations that a seed draws for every study of a dataset's pool."""
    return f"results/demonstrations/{dataset}/k{config['shots']}/seed{seed}.json"


def probe_demonstrations(wildcards):
    """The demonstrations with which the synthetic world is probed: those of the first seed."""
    return demonstrations_file(wildcards.dataset, config["seeds"][0])


def seeds_of(wildcards):
    """Seeds of a method; one that draws nothing at random has a single run."""
    method = config["methods"][wildcards.method]
    return config["seeds"] if draws(method) else [0]


# What a job depends on beside files: the narrowest slice of the configuration, and its code.


def backbone_for(batch):
    """A function for the settings of a backbone that a job uses; of the batch sizes only its own."""

    def settings(wildcards):
        chosen = {key: value for key, value in config["backbones"][wildcards.backbone].items() if key != "tiny"}
        return {**chosen, "batch": {batch: chosen["batch"][batch]}}

    return settings


# Of training, what decides its outcome: prefix cache and checkpoints only decide how soon it is there.
TRAINING = {key: config["training"][key] for key in ("max_report_tokens", "validation_studies")}


def code_of_method(script):
    """A function for the code version of a script together with the module that the method's settings name."""

    def version(wildcards):
        return code_version(script, *module_of(config["methods"][wildcards.method]))

    return version


def gpus(wildcards):
    """Devices that a job with this backbone takes; the profile says how many there are."""
    return 0 if config["backbones"][wildcards.backbone]["device"] == "cpu" else 1


def memory(wildcards):
    """Main memory in MB of a job with this backbone: a real one is loaded there before it goes to a device."""
    return 2000 if wildcards.backbone in TINY else 48000


def methods_in(experiment):
    """Settings of the methods of an experiment's grid, in its order."""
    return {name: config["methods"][name] for name in config["grids"][experiment]["methods"]}
