"""Reports of every method for the test studies."""


rule generate:
    """Write a report for every test study by greedy decoding, the same limit and no penalty for any method."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
        vision="results/vision/{dataset}/{backbone}",
        demonstrations=shown_demonstrations,
        adapter=adapter_of,
        model=built_backbone,
    output:
        "results/generations/{dataset}/{backbone}/{method}/seed{seed}.parquet",
    log:
        "logs/generate/{dataset}/{backbone}/{method}/seed{seed}.log",
    wildcard_constraints:
        method=any_of([*methods_of("prompt", "steering"), *TRANSFERS]),
    retries: 0
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
    params:
        backbone=backbone_for("generation"),
        weights=weights_of,
        source=source_of,
        method=lookup(dpath="methods/{method}", within=config),
        decoding=lookup(dpath="decoding", within=config),
        # Outside the declared output, which Snakemake deletes on failure: a second try resumes.
        partial="results/checkpoints/generate/{dataset}/{backbone}/{method}/seed{seed}.jsonl",
        code=code_of("scripts/generate.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}, {wildcards.method}, seed {wildcards.seed}: writing reports"
    script:
        "../scripts/generate.py"


rule repeat_report:
    """Give every test study the training report that scores best on the other training reports; no model runs."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
    output:
        "results/generations/{dataset}/{method}/seed{seed}.parquet",
    log:
        "logs/repeat_report/{dataset}/{method}/seed{seed}.log",
    wildcard_constraints:
        method=any_of(methods_of("constant")),
    threads: 1
    resources:
        mem_mb=1000,
    params:
        code=code_version("scripts/repeat_report.py"),
    message:
        "{wildcards.dataset}: repeating the best training report"
    script:
        "../scripts/repeat_report.py"


rule import_reports:
    """Read another system's reports of the test studies; a missing report is an error."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
    output:
        "results/generations/{dataset}/{method}/seed{seed}.parquet",
    log:
        "logs/import_reports/{dataset}/{method}/seed{seed}.log",
    wildcard_constraints:
        method=any_of(methods_of("external")),
    threads: 1
    resources:
        mem_mb=1000,
    params:
        reports=reports_of,
        content=content_of_reports,
        code=code_version("scripts/import_reports.py"),
    message:
        "{wildcards.dataset}, {wildcards.method}: reading another system's reports"
    script:
        "../scripts/import_reports.py"
