"""Which tokens of a report are decisive."""


rule annotate:
    """Find the spans of pathology in every report by the vocabulary."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        vocabulary="workflow/resources/vocabulary.csv",
    output:
        "results/annotations/{dataset}/spans.parquet",
    log:
        "logs/annotate/{dataset}.log",
    benchmark:
        "benchmarks/annotate/{dataset}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        settings=lookup(dpath="annotation", within=config),
        code=code_version("scripts/annotate.py"),
    message:
        "{wildcards.dataset}: annotating decisive spans"
    script:
        "../scripts/annotate.py"
