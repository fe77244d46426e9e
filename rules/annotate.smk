"""Which tokens of a report are decisive."""


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


rule annotate:
    """Find the decisive spans of every report by an annotator."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        vocabulary=vocabulary_of,
        annotations=annotations_of,
    output:
        "results/annotations/{dataset}/{annotator}/spans.parquet",
    log:
        "logs/annotate/{dataset}/{annotator}.log",
    benchmark:
        "benchmarks/annotate/{dataset}/{annotator}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        settings=annotator_for,
        code=code_of_annotator("scripts/annotate.py"),
    message:
        "{wildcards.dataset}: annotating decisive spans by {wildcards.annotator}"
    script:
        "../scripts/annotate.py"
