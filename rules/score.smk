"""Scores of every row, and the acceptance of the synthetic world."""


rule score:
    """Score the reports of all seeds of a method."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
        generations=generations_of,
        # Says which studies have no readable image, so that rows that read none are scored on the same.
        vision="results/vision/{dataset}/{backbone}",
    output:
        reports="results/scores/{dataset}/{backbone}/{method}/reports.parquet",
        summary="results/scores/{dataset}/{backbone}/{method}/summary.json",
    log:
        "logs/score/{dataset}/{backbone}/{method}.log",
    threads: 1
    resources:
        mem_mb=8000 if any(SCORERS.values()) else 2000,
        gpu=scorer_gpus,
    params:
        seeds=seeds_of,
        scorers=scorers_of,
        content=content_of_scorers(),
        vocabulary=place_of_vocabulary,
        words=content_of(VOCABULARY),
        # Found by the content of texts and weights, so it is right whenever it is there; no rule depends on it.
        remembered="results/remembered",
        code=code_of("scripts/score.py"),
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
    threads: 1
    resources:
        mem_mb=2000,
    params:
        methods=compared_methods,
        ours=compared_ours,
        contrasts=compared_contrasts,
        settings=judged_by("resamples", "alpha", "seed"),
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
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
    params:
        backbone=backbone_for("generation"),
        weights=weights_of,
        source=source_of,
        decoding=lookup(dpath="decoding", within=config),
        code=code_version("scripts/probe_world.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}: probing the synthetic world on validation"
    script:
        "../scripts/probe_world.py"


rule accept_world:
    """Test the synthetic world against its acceptance criteria."""
    input:
        probes(),
    output:
        json="results/world/acceptance.json",
        markdown="results/world/acceptance.md",
    log:
        "logs/accept_world.log",
    threads: 1
    resources:
        mem_mb=500,
    params:
        code=code_version("scripts/accept_world.py"),
    message:
        "testing the synthetic world against its acceptance criteria"
    script:
        "../scripts/accept_world.py"


rule compare_lexicon:
    """Compare the findings that the lexicon scores read in synthetic references with the true findings."""
    input:
        studies=expand("results/splits/{dataset}/studies.parquet", dataset=KNOWN),
        truths=expand("data/truth/{dataset}.parquet", dataset=KNOWN),
    output:
        json="results/world/lexicon.json",
        markdown="results/world/lexicon.md",
    log:
        "logs/compare_lexicon.log",
    threads: 1
    resources:
        mem_mb=500,
    params:
        datasets=KNOWN,
        vocabulary=place_of_vocabulary,
        words=content_of(VOCABULARY),
        code=code_version("scripts/compare_lexicon.py"),
    message:
        "comparing the lexicon scores with the synthetic truth"
    script:
        "../scripts/compare_lexicon.py"
