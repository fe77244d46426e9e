"""What decides a rerun by its content: real data, real backbones, other models' files, tables and templates of this project.

Snakemake compares times of inputs and the text of parameters. Times say nothing about these files: a folder has a new one
when a note is put into it, and none when a file deep in it is rewritten. So they are no inputs, or ancient ones, and
parameters hold digests of what is read of them. Where they lie are parameters with `input` among the arguments of their
function: such ones Snakemake does not compare. So are those that decide how a job runs or whether it stops.
"""

from dive.backbones.files import describe_model, fetch_model
from dive.contents import PLACE, Memory
from dive.data.inventory import describe_dataset, describe_pool
from dive.environment import may_download
from dive.files import read_json
from dive.packaged import VOCABULARY, packaged
from dive.scores.assets import encoder_of, model_files

MEMORY = Memory(PLACE)
# Jobs' own processes decide nothing, and are spared the search.
DECIDES = workflow.is_main_process
_known = {}


def remembered(kind, name, describe):
    """What ``describe()`` says, asked once in a run; None, which it says of what is not there yet, is asked again."""
    if DECIDES and _known.get((kind, name)) is None:
        _known[kind, name] = describe()
    return _known.get((kind, name))


def content_of(*paths):
    """One digest of files of this project or of the configuration, wherever they lie; a folder is all that is in it."""

    def describe():
        files = [(f"{number}", path) for number, path in enumerate(paths) if not os.path.isdir(path)]
        for number, folder in enumerate(paths):
            if os.path.isdir(folder):
                below = [
                    os.path.join(top, name) for top, _, names in os.walk(folder, followlinks=True) for name in names
                ]
                files += [(f"{number}/{os.path.relpath(path, folder)}", path) for path in below]
        content = MEMORY.content(files)
        MEMORY.save()
        return content

    return remembered("files", paths, describe) if paths else None


def place_of_vocabulary(wildcards, input):
    """Where the vocabulary of the lexicon scores lies."""
    return VOCABULARY


# Real data.


def synthetic_root(wildcards):
    """The folder of a synthetic dataset, which rule synthesize makes; real data are there already."""
    return [config["datasets"][wildcards.dataset]["root"]] if wildcards.dataset in SYNTHETIC else []


def root_of(wildcards, input):
    """Where a dataset lies."""
    return config["datasets"][wildcards.dataset]["root"]


def reports_place_of(wildcards, input):
    """Where MIMIC-CXR's reports lie when not under the root."""
    return config["datasets"][wildcards.dataset]["selection"]["reports"]


def selection_of(wildcards):
    """How studies are selected, without the place of their reports."""
    return without("reports", without("max_unreadable", config["datasets"][wildcards.dataset]["selection"]))


def limit_of(wildcards, input):
    """The share of unreadable files above which a job stops: what was made under a lower limit stays."""
    return config["datasets"][wildcards.dataset]["selection"]["max_unreadable"]


def data_of(wildcards):
    """Content of tables and reports, names and sizes of images; None for a synthetic dataset, which is an input."""
    name, dataset = wildcards.dataset, config["datasets"][wildcards.dataset]
    if name in SYNTHETIC:
        return None
    describe = lambda: describe_dataset(dataset["reader"], dataset["root"], dataset["selection"], MEMORY)
    return remembered("data", name, describe)


def images_of(wildcards):
    """Content of the images of a real dataset's pool. Snakemake asks when rule select is done, and before the job starts;
    without a pool to ask about it is what the features say that they were made of."""
    name = wildcards.dataset
    if name in SYNTHETIC or not DECIDES:
        return None
    try:
        return describe_pool(
            f"results/splits/{name}/studies.parquet",
            f"results/pools/{name}.json",
            config["datasets"][name]["root"],
            MEMORY,
        )
    except (OSError, ValueError):  # absent, or damaged, which the job says
        manifest = f"results/vision/{name}/{wildcards.backbone}/manifest.json"
        return read_json(manifest)["record"]["settings"]["images"] if os.path.isfile(manifest) else None


# Backbones.


def source_of(wildcards, input):
    """Where a backbone lies, by a place on this machine or a name on the hub, and how much of it is run at once."""
    return {key: config["backbones"][wildcards.backbone][key] for key in ("path", "revision", "batch")}


def weights_of(wildcards):
    """Content of a real backbone's files, those that loading reads; None for a tiny one, which is an input.

    What is not in the Hugging Face cache is downloaded, in a run and where the environment allows it: a job that did
    this by itself would be recorded without the content of what it loads.
    """
    name, backbone = wildcards.backbone, config["backbones"][wildcards.backbone]
    if name in TINY:
        return None

    def describe():
        if may_download() and is_run():
            fetch_model(backbone["path"], backbone["revision"])
        return describe_model(backbone["path"], backbone["revision"], MEMORY)

    return remembered("backbone", name, describe)


def is_run():
    """Whether jobs are going to be run: no dry run, no summary, no touching."""
    return workflow.executor_plugin is not None and not workflow.dryrun and not workflow.touch


# Models that score and annotate, and other systems' reports.


def scorers_of(wildcards, input):
    """Settings of the scores that need a model, with the places of their files."""
    return SCORERS


def content_of_model(name, settings):
    """Settings and files of a model that scores or annotates, without their places; None without a model."""
    if not settings:
        return None
    kept = {key: value for key, value in settings.items() if key not in ("path", "encoder", "batch", "max_missing")}
    encoder = encoder_of(name, settings)
    if encoder:
        describe = lambda: describe_model(encoder, None, MEMORY, weights=False)
        kept["encoder"] = remembered("encoder", encoder, describe)
    return {**kept, "content": content_of(*model_files(name, settings))}


def content_of_scorers():
    """The same of every score that needs a model."""
    return {name: content_of_model(name, settings) for name, settings in SCORERS.items()}


def annotator_for(wildcards, input):
    """The settings of the annotator that a job runs, with the places of its files."""
    return annotator_settings(wildcards.annotator, is_read_by_weights(wildcards))


def files_for_annotator(wildcards, input):
    """Vocabulary and published graphs, where the annotator that a job runs reads them."""
    graphs = graphs_of(wildcards)
    vocabulary = {"vocabulary": VOCABULARY} if "vocabulary" in parts_of(wildcards.annotator) else {}
    return {**vocabulary, **({"annotations": graphs} if graphs else {})}


def content_for_annotator(wildcards):
    """What decides the spans of an annotator: its settings without places, and the content of its files."""
    kept = lambda settings: {
        key: [kept(part) for part in value] if key == "parts" else value
        for key, value in settings.items()
        if key not in ("path", "linker", "max_missing")
    }
    of_weights = is_read_by_weights(wildcards)
    pipeline = config["annotation"]["scispacy"] if "scispacy" in parts_of(wildcards.annotator) else None
    return {
        "settings": kept(annotator_settings(wildcards.annotator, of_weights)),
        "files": content_of(*files_for_annotator(wildcards, None).values()),
        "model": content_of_model("radgraph", OBSERVER) if of_weights else None,
        "pipeline": content_of(*pipeline_files(pipeline)) if pipeline else None,
    }


def reports_of(wildcards, input):
    """The file of another system's reports on a dataset."""
    return config["methods"][wildcards.method]["files"][wildcards.dataset]


def content_of_reports(wildcards):
    """Its content."""
    return content_of(reports_of(wildcards, None))
