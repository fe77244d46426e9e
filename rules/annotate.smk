"""Which tokens of a report are decisive."""


rule annotate:
    """Find the decisive spans of every report by an annotator."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
    output:
        "results/annotations/{dataset}/{annotator}/spans.parquet",
    log:
        "logs/annotate/{dataset}/{annotator}.log",
    threads: 1
    resources:
        mem_mb=annotator_memory,
        gpu=annotator_gpus,
    params:
        settings=annotator_for,
        files=files_for_annotator,
        content=content_for_annotator,
        # Found by the content of texts and weights, and shared with the scores; no rule depends on it.
        remembered="results/remembered",
        code=code_of("scripts/annotate.py"),
    message:
        "{wildcards.dataset}: annotating decisive spans by {wildcards.annotator}"
    script:
        "../scripts/annotate.py"
