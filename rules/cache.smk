"""What is computed once and read by every method: features of the images, states of the teacher and of its layers."""


rule cache_vision:
    """Run the vision tower once over the images of the pool."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
        root=synthetic_root,
        model=built_backbone,
    output:
        directory("results/vision/{dataset}/{backbone}"),
    log:
        "logs/cache_vision/{dataset}/{backbone}.log",
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
    params:
        backbone=backbone_for("vision"),
        weights=weights_of,
        source=source_of,
        images=images_of,
        root=root_of,
        max_unreadable=limit_of,
        # Outside the declared output, which Snakemake deletes on failure: a second try resumes.
        partial="results/checkpoints/cache_vision/{dataset}/{backbone}",
        code=code_version("scripts/cache_vision.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}: caching vision features"
    script:
        "../scripts/cache_vision.py"


rule cache_teacher:
    """Run the teacher once over the training queries: the backbone with demonstrations in its context."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        demonstrations="results/demonstrations/{dataset}/k{shots}/seed{seed}{draw}.json",
        vision="results/vision/{dataset}/{backbone}",
        model=built_backbone,
    output:
        directory("results/teacher/{dataset}/{backbone}/k{shots}/seed{seed}{draw}"),
    log:
        "logs/cache_teacher/{dataset}/{backbone}/k{shots}/seed{seed}{draw}.log",
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
    params:
        backbone=backbone_for("teacher"),
        weights=weights_of,
        source=source_of,
        max_report_tokens=lookup(dpath="training/max_report_tokens", within=config),
        # Outside the declared output, which Snakemake deletes on failure: a second try resumes.
        partial="results/checkpoints/cache_teacher/{dataset}/{backbone}/k{shots}/seed{seed}",
        code=code_version("scripts/cache_teacher.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}, {wildcards.shots} shots, seed {wildcards.seed}{wildcards.draw}: caching the teacher"
    script:
        "../scripts/cache_teacher.py"


rule cache_layers:
    """Cache the states of all the teacher's layers for methods that average or align them; the log says how many bytes."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        demonstrations="results/demonstrations/{dataset}/k{shots}/seed{seed}.json",
        vision="results/vision/{dataset}/{backbone}",
        model=built_backbone,
    output:
        directory("results/layers/{dataset}/{backbone}/k{shots}/seed{seed}"),
    log:
        "logs/cache_layers/{dataset}/{backbone}/k{shots}/seed{seed}.log",
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
    params:
        backbone=backbone_for("teacher"),
        weights=weights_of,
        source=source_of,
        max_report_tokens=lookup(dpath="training/max_report_tokens", within=config),
        # Outside the declared output, which Snakemake deletes on failure: a second try resumes.
        partial="results/checkpoints/cache_layers/{dataset}/{backbone}/k{shots}/seed{seed}",
        code=code_version("scripts/cache_layers.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}, {wildcards.shots} shots, seed {wildcards.seed}: caching the teacher's layers"
    script:
        "../scripts/cache_layers.py"
