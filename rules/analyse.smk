"""Whether a sparse set of tokens decides: measured token by token, compared between annotators, and shown."""

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


rule analyse:
    """Loss of the zero-shot backbone and its divergence from the teacher at every token of validation reports."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
        demonstrations=probe_demonstrations,
        vision="results/vision/{dataset}/{backbone}",
        spans=compared_spans,
        model=built_backbone,
    output:
        "results/analyses/{dataset}/{backbone}/tokens.parquet",
    log:
        "logs/analyse/{dataset}/{backbone}.log",
    benchmark:
        "benchmarks/analyse/{dataset}/{backbone}.tsv"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
    params:
        backbone=backbone_for("teacher"),
        annotators=COMPARED,
        settings=analysis_settings(),
        code=code_version("scripts/analyse.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}: measuring loss and divergence token by token"
    script:
        "../scripts/analyse.py"


rule compare_annotators:
    """How much of the tokens, the loss and the divergence each annotator marks, and how far annotators agree."""
    input:
        analyses_of,
    output:
        tex="results/tables/sparsity/{dataset}.tex",
        csv=report(
            "results/tables/sparsity/{dataset}.csv",
            caption="../workflow/report/sparsity.rst",
            category="Decisive tokens",
            labels={"dataset": "{dataset}", "item": "table"},
        ),
        figure=report(
            multiext("results/figures/sparsity/{dataset}", ".pdf", ".svg"),
            caption="../workflow/report/sparsity.rst",
            category="Decisive tokens",
            labels={"dataset": "{dataset}", "item": "figure"},
        ),
    log:
        "logs/compare_annotators/{dataset}.log",
    benchmark:
        "benchmarks/compare_annotators/{dataset}.tsv"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        backbones=backbone_titles_of,
        layout=sparsity_layout,
        code=code_version("scripts/compare_annotators.py"),
    message:
        "{wildcards.dataset}: comparing annotators"
    script:
        "../scripts/compare_annotators.py"


rule view_tokens:
    """Reports token by token: weight, polarity, source, loss and divergence. Real reports only where the settings say so."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        analyses=analyses_of,
        spans=viewed_spans,
        template="workflow/templates/tokens.html.j2",
    output:
        report(
            "results/report/tokens/{dataset}.html",
            caption="../workflow/report/tokens.rst",
            category="Decisive tokens",
            labels={"dataset": "{dataset}", "item": "reports"},
        ),
    log:
        "logs/view_tokens/{dataset}.log",
    benchmark:
        "benchmarks/view_tokens/{dataset}.tsv"
    wildcard_constraints:
        dataset=any_of(VIEWED),
    threads: 1
    resources:
        mem_mb=500,
    params:
        backbones=backbone_titles_of,
        title=title_of_dataset,
        chosen=lookup(dpath="analysis/view/studies", within=config),
        code=code_version("scripts/view_tokens.py"),
    message:
        "{wildcards.dataset}: showing reports token by token"
    script:
        "../scripts/view_tokens.py"
