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


def shown_demonstrations(wildcards):
    """The demonstrations of a method that has them in its context."""
    shown = config["methods"][wildcards.method].get("demonstrations", False)
    return demonstrations_file(wildcards.dataset, wildcards.seed) if shown else []


def probe_demonstrations(wildcards):
    """The demonstrations with which the synthetic world is probed: those of the first seed."""
    return demonstrations_file(wildcards.dataset, config["seeds"][0])


def teacher_of(wildcards):
    """The cached teacher, for a method whose loss asks for it; with kd = 0 it learns from the reports alone."""
    if config["methods"][wildcards.method].get("loss", {}).get("kd", 0) == 0:
        return []
    return "results/teacher/{dataset}/{backbone}/k{shots}/seed{seed}".format(shots=config["shots"], **wildcards)


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


def annotations_of(wildcards):
    """RadGraph's published graphs of a dataset, for an annotator that reads them."""
    graphs = config["annotation"]["radgraph"]["annotations"].get(wildcards.dataset)
    return [graphs] if graphs and "radgraph" in parts_of(wildcards.annotator) else []


def vocabulary_of(wildcards):
    """The vocabulary, for an annotator that reads it."""
    return ["workflow/resources/vocabulary.csv"] if "vocabulary" in parts_of(wildcards.annotator) else []


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


def adapter_of(wildcards):
    """The trained adapter of a steering method: this dataset's, or for method@dataset that one's."""
    method, _, other = wildcards.method.partition("@")
    if method not in methods_of("steering"):
        return []
    return f"results/adapters/{other or wildcards.dataset}/{wildcards.backbone}/{method}/seed{wildcards.seed}"


def seeds_of(wildcards):
    """Seeds of a method; one that draws nothing at random has a single run."""
    method = config["methods"][wildcards.method]
    return config["seeds"] if draws(method) else [0]


def generations_of(wildcards):
    """The reports of all seeds of a method; what reads no backbone is the same for every backbone."""
    folder = "results/generations/{dataset}/{backbone}/{method}"
    if wildcards.method in methods_of("constant", "external"):
        folder = "results/generations/{dataset}/{method}"
    return expand(f"{folder}/seed{{seed}}.parquet", seed=seeds_of(wildcards), **wildcards)


# What a job depends on beside files: the narrowest slice of the configuration, and its code.


def backbone_for(batch):
    """A function for the settings of a backbone that a job uses; of the batch sizes only its own."""

    def settings(wildcards):
        chosen = {key: value for key, value in config["backbones"][wildcards.backbone].items() if key != "tiny"}
        return {**chosen, "batch": {batch: chosen["batch"][batch]}}

    return settings


def parts_of(annotator):
    """The annotators that one consists of: itself, or those that a union holds."""
    return config["annotation"]["union"] if annotator == "union" else [annotator]


def annotator_settings(annotator):
    """What an annotator reads of the configuration, and nothing of the others."""
    said = config["annotation"]
    if annotator == "union":
        return {"annotator": "union", "parts": [annotator_settings(part) for part in said["union"]]}
    own = {key: said[key] for key in ("classes", "include_cues")} if annotator == "vocabulary" else said[annotator]
    return {"annotator": annotator, **{key: value for key, value in own.items() if key != "annotations"}}


def annotator_for(wildcards):
    """The settings of the annotator that a job runs."""
    return annotator_settings(wildcards.annotator)


def code_of_annotator(script):
    """A function for the code version of a script with the annotators that it loads by name."""

    def version(wildcards):
        return code_version(script, *(f"dive.annotation.{part}" for part in parts_of(wildcards.annotator)))

    return version


# Of training, what decides its outcome: prefix cache and checkpoints only decide how soon it is there.
TRAINING = {key: config["training"][key] for key in ("max_report_tokens", "validation_studies")}


# Settings of the scores that need a model; of one without weights there is nothing to depend on.
SCORERS = located(config["scores"])


def reports_of(wildcards):
    """The file of another system's reports on a dataset."""
    return config["methods"][wildcards.method]["files"][wildcards.dataset]


def scorer_gpus(wildcards):
    """Devices that a scoring job takes."""
    return int(any(settings and settings["device"] != "cpu" for settings in SCORERS.values()))


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


# What the analysis of decisive tokens compares and shows. Real reports are shown only where the settings say so.


SHOWN = config["methods"][config["analysis"]["method"]]["weights"]
COMPARED = list(
    dict.fromkeys(
        [
            config["annotation"]["annotator"],
            *config["analysis"]["annotators"],
            *({SHOWN["source"]} & {*ANNOTATORS, "random"}),
        ]
    )
)
VIEW = config["analysis"]["view"]
VIEWED = [name for name in DATASETS if VIEW["studies"] and (name in SYNTHETIC or VIEW["credentialed"])]


def compared_spans(wildcards):
    """The spans of every annotator that is compared."""
    return [spans_file(wildcards.dataset, name) for name in COMPARED]


def viewed_spans(wildcards):
    """The spans whose polarity and source the view shows; random tokens have none."""
    return [spans_file(wildcards.dataset, name) for name in COMPARED if name in ANNOTATORS]


def analysis_settings():
    """What decides the numbers of the analysis; parameters of statistics are those of a method that uses them."""
    names = list(dict.fromkeys([*config["analysis"]["statistics"], *({SHOWN["source"]} & set(STATISTICS))]))
    return {
        "studies": config["analysis"]["studies"],
        "max_report_tokens": config["training"]["max_report_tokens"],
        "seed": config["seeds"][0],
        "annotator": config["annotation"]["annotator"],
        "statistics": {name: SHOWN["level" if name == "value_at_risk" else "exponent"] for name in names},
        "weights": {key: SHOWN[key] for key in ("pathology", "eos", "source")},
    }


def analysed_backbones(dataset):
    """The backbones with which a dataset is run."""
    return [backbone for name, backbone in PAIRS if name == dataset]


def analyses_of(wildcards):
    """The tokens of a dataset with every backbone."""
    return [f"results/analyses/{wildcards.dataset}/{b}/tokens.parquet" for b in analysed_backbones(wildcards.dataset)]


def backbone_titles_of(wildcards):
    """Titles of the backbones with which a dataset is run."""
    return [config["presentation"]["backbones"][name]["title"] for name in analysed_backbones(wildcards.dataset)]


def title_of_dataset(wildcards):
    """Title of a dataset."""
    return config["presentation"]["datasets"][wildcards.dataset]["title"]


def sparsity_layout(wildcards):
    """What the table of annotators says beside numbers."""
    settings = analysis_settings()
    method = config["analysis"]["method"]
    return {
        "dataset": title_of_dataset(wildcards),
        "method": config["presentation"]["methods"][method]["title"],
        "shots": config["shots"],
        **{key: settings[key] for key in ("annotator", "weights")},
    }


def sparsity(suffix):
    """The comparison of annotators of every dataset, as a table or a figure."""
    folder = "figures" if suffix == "svg" else "tables"
    return [f"results/{folder}/sparsity/{dataset}.{suffix}" for dataset in DATASETS]


# What is gathered at the end.


def probes():
    """The probes of every selected dataset and backbone for which the synthetic world answers."""
    return [f"results/world/{d}/{b}.json" for d, b in PAIRS if d in SYNTHETIC and b in TINY]


def acceptance(suffix):
    """The acceptance, where there is a synthetic world to accept."""
    return [f"results/world/acceptance.{suffix}"] if probes() else []


def rows_of(wildcards):
    """(dataset, backbone, method) of every row of an experiment's table."""
    return select_rows(wildcards.experiment)


def summaries_of(wildcards):
    """The scores of every row of an experiment's table."""
    return [f"results/scores/{'/'.join(row)}/summary.json" for row in select_rows(wildcards.experiment)]


def adapters_of(wildcards):
    """The adapters whose training an experiment's figure shows."""
    trained = [name for name in methods_of("steering") if "epochs" in config["methods"][name]]
    rows = [row for row in select_rows(wildcards.experiment) if row[2] in trained]
    return [f"results/adapters/{'/'.join(row)}/seed{seed}" for row in rows for seed in config["seeds"]]


def layout_of(experiment):
    """Titles, notes and groups of what is in an experiment's table, in the order of the configuration."""
    shown = {
        kind: {name: config["presentation"][kind][name] for name in names}
        for kind, names in config["grids"][experiment].items()
    }
    for name, entry in shown["datasets"].items():
        selection = config["datasets"][name]["selection"]
        named = ("section", "unit", "views", "convention", "fractions")
        shown["datasets"][name] = {**entry, "selection": {key: selection[key] for key in named}}
    return {
        **shown,
        "label": experiment,
        **{key: config[key] for key in ("shots", "seeds", "significance")},
    }


def layout_for(wildcards):
    """The layout of the experiment that a job is about."""
    return layout_of(wildcards.experiment)


def methods_in(experiment):
    """Settings of the methods of an experiment's grid, in its order."""
    return {name: config["methods"][name] for name in config["grids"][experiment]["methods"]}


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


def pairs_in(experiment):
    """(dataset, backbone) of an experiment's rows."""
    return list(dict.fromkeys(row[:2] for row in select_rows(experiment)))


def comparisons_in(experiment):
    """The comparisons of an experiment, in the order of its datasets and backbones."""
    return [f"results/comparisons/{experiment}/{'/'.join(pair)}.json" for pair in pairs_in(experiment)]


def comparisons_of(wildcards):
    """The comparisons of the experiment that a job is about."""
    return comparisons_in(wildcards.experiment)


def pairs_of(wildcards):
    """Dataset and backbone of each of these comparisons."""
    return pairs_in(wildcards.experiment)


def settings_in_table(wildcards):
    """Settings of the methods, for the tables that say what differs."""
    return methods_in(wildcards.experiment) if wildcards.table in ("factorial", "mechanisms") else {}


def adapter_keys_in_table(wildcards):
    """Dataset, backbone, method and seed of the adapters whose loss shares a table shows: ours and its ablations."""
    if wildcards.table != "mechanisms":
        return []
    shown = {*grouped(wildcards.experiment, "ours"), *grouped(wildcards.experiment, "ablation")}
    trained = [name for name in shown if "epochs" in config["methods"][name]]
    rows = [row for row in select_rows(wildcards.experiment) if row[2] in trained]
    return [(*row, seed) for row in rows for seed in config["seeds"]]


def adapters_in_table(wildcards):
    """These adapters."""
    return [f"results/adapters/{d}/{b}/{m}/seed{seed}" for d, b, m, seed in adapter_keys_in_table(wildcards)]


def comparison_tables(experiment):
    """The tables beside the main one for which an experiment has rows."""
    ours, published, ablations = (grouped(experiment, group) for group in ("ours", "published", "ablation"))
    wanted = {
        "termination": True,
        "significance": ours and published,
        "factorial": contrasts_of(methods_in(experiment), ours),
        "mechanisms": ours and ablations,
    }
    return [f"results/tables/{experiment}-{table}.tex" for table, rows in wanted.items() if rows]


def layout_of_claims():
    """Titles and groups over all experiments, and the margin of a competitive score."""
    layouts = [layout_of(experiment) for experiment in config["experiments"]]
    merged = {kind: {k: v for one in layouts for k, v in one[kind].items()} for kind in config["presentation"]}
    return {**layouts[0], **merged}


def shown_settings():
    """The settings that the page shows: those that decide numbers, of what was run; no places on this machine."""
    methods = dict.fromkeys(method for _, _, method in ROWS)
    return {
        **{key: config[key] for key in ("seeds", "shots", "decoding", "annotation", "analysis")},
        "scores": {name: settings and {**settings, "path": "given"} for name, settings in SCORERS.items()},
        "training": TRAINING,
        "datasets": {name: {key: config["datasets"][name][key] for key in ("selection", "pool")} for name in DATASETS},
        "methods": {
            name: {key: value for key, value in config["methods"][name].items() if key != "files"} for name in methods
        },
    }


def made_at_the_end():
    """Everything that nothing else is made from, the costs aside."""
    ends = expand(
        ["results/tables/{experiment}.tex", "results/figures/{experiment}.pdf"],
        experiment=config["experiments"],
    )
    views = [f"results/report/tokens/{dataset}.html" for dataset in VIEWED]
    known = ["results/world/lexicon.md"] if KNOWN else []
    tables = [path for experiment in config["experiments"] for path in comparison_tables(experiment)]
    tables += [*sparsity("tex"), "results/tables/claims.tex"]
    return [*ends, *tables, *views, "results/report/index.html", *acceptance("md"), *known]
