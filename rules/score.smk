"""Scores of every row, and the acceptance of the synthetic world."""

# Settings of the scores that need a model; of one without weights there is nothing to depend on.
SCORERS = located(config["scores"])


def scorer_gpus(wildcards):
    """Devices that a scoring job takes."""
    return int(any(settings and settings["device"] != "cpu" for settings in SCORERS.values()))


def generations_of(wildcards):
    """The reports of all seeds of a method; what reads no backbone is the same for every backbone."""
    folder = "results/generations/{dataset}/{backbone}/{method}"
    if wildcards.method in methods_of("constant", "external"):
        folder = "results/generations/{dataset}/{method}"
    return expand(f"{folder}/seed{{seed}}.parquet", seed=seeds_of(wildcards), **wildcards)


def probes():
    """The probes of every selected dataset and backbone for which the synthetic world answers."""
    return [f"results/world/{d}/{b}.json" for d, b in PAIRS if d in SYNTHETIC and b in TINY]


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


rule score:
    """Score the reports of all seeds of a method."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
        generations=generations_of,
        # Says which studies have no readable image, so that rows that read none are scored on the same.
        vision="results/vision/{dataset}/{backbone}",
        vocabulary="workflow/resources/vocabulary.csv",
        weights=list(weight_files(SCORERS).values()),
    output:
        reports="results/scores/{dataset}/{backbone}/{method}/reports.parquet",
        summary="results/scores/{dataset}/{backbone}/{method}/summary.json",
    log:
        "logs/score/{dataset}/{backbone}/{method}.log",
    benchmark:
        "benchmarks/score/{dataset}/{backbone}/{method}.tsv"
    threads: 1
    resources:
        mem_mb=8000 if any(SCORERS.values()) else 2000,
        gpu=scorer_gpus,
    params:
        seeds=seeds_of,
        scorers=SCORERS,
        # Found by the content of texts and weights, so it is right whenever it is there; no rule depends on it.
        remembered="results/remembered",
        code=code_version("scripts/score.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}, {wildcards.method}: scoring"
    script:
        "../scripts/score.py"


rule compare:
    """Intervals and paired tests of the methods of a dataset and backbone: resampling of patients and seeds."""
    input:
        reports=compared_scores("reports.parquet"),
        summaries=compared_scores("summary.json"),
    output:
        "results/comparisons/{experiment}/{dataset}/{backbone}.json",
    log:
        "logs/compare/{experiment}/{dataset}/{backbone}.log",
    benchmark:
        "benchmarks/compare/{experiment}/{dataset}/{backbone}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        methods=compared_methods,
        ours=compared_ours,
        contrasts=compared_contrasts,
        settings={key: config["significance"][key] for key in ("resamples", "alpha", "seed")},
        code=code_version("scripts/compare.py"),
    message:
        "{wildcards.experiment}, {wildcards.dataset}, {wildcards.backbone}: comparing methods"
    script:
        "../scripts/compare.py"


rule probe_world:
    """Measure on validation what the synthetic world gives: zero-shot, with demonstrations, with a blank image."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
        demonstrations=probe_demonstrations,
        vision="results/vision/{dataset}/{backbone}",
        truth="data/truth/{dataset}.parquet",
        model=built_backbone,
    output:
        "results/world/{dataset}/{backbone}.json",
    log:
        "logs/probe_world/{dataset}/{backbone}.log",
    benchmark:
        "benchmarks/probe_world/{dataset}/{backbone}.tsv"
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
    params:
        backbone=backbone_for("generation"),
        decoding=lookup(dpath="decoding", within=config),
        code=code_version("scripts/probe_world.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}: probing the synthetic world on validation"
    script:
        "../scripts/probe_world.py"


rule accept_world:
    """Hold the synthetic world against its acceptance criteria."""
    input:
        probes(),
    output:
        json="results/world/acceptance.json",
        markdown="results/world/acceptance.md",
    log:
        "logs/accept_world.log",
    benchmark:
        "benchmarks/accept_world.tsv"
    threads: 1
    resources:
        mem_mb=500,
    params:
        code=code_version("scripts/accept_world.py"),
    message:
        "holding the synthetic world against its acceptance criteria"
    script:
        "../scripts/accept_world.py"


rule compare_lexicon:
    """Hold what the lexicon proxies read in synthetic references against the findings behind them."""
    input:
        studies=expand("results/splits/{dataset}/studies.parquet", dataset=KNOWN),
        truths=expand("data/truth/{dataset}.parquet", dataset=KNOWN),
        vocabulary="workflow/resources/vocabulary.csv",
    output:
        json="results/world/lexicon.json",
        markdown="results/world/lexicon.md",
    log:
        "logs/compare_lexicon.log",
    benchmark:
        "benchmarks/compare_lexicon.tsv"
    threads: 1
    resources:
        mem_mb=500,
    params:
        datasets=KNOWN,
        code=code_version("scripts/compare_lexicon.py"),
    message:
        "holding the lexicon proxies against the synthetic truth"
    script:
        "../scripts/compare_lexicon.py"
