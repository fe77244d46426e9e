"""Training of the steering methods."""


rule distill:
    """Distil the teacher into a method's adapter; the checkpoint is chosen on validation."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
        spans=spans_of,
        vision="results/vision/{dataset}/{backbone}",
        teacher=teacher_of,
        layers=layers_of,
        demonstrations=fitted_demonstrations,
        model=built_backbone,
    output:
        directory("results/adapters/{dataset}/{backbone}/{method}/seed{seed}"),
    log:
        "logs/distill/{dataset}/{backbone}/{method}/seed{seed}.log",
    wildcard_constraints:
        method=any_of(methods_of("steering")),
    retries: 0
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
    params:
        backbone=backbone_for("training"),
        weights=weights_of,
        source=source_of,
        method=lookup(dpath="methods/{method}", within=config),
        training=TRAINING,
        credentialed=is_credentialed,
        # Outside the declared output, which Snakemake deletes on failure: a second try resumes.
        checkpoint="results/checkpoints/distill/{dataset}/{backbone}/{method}/seed{seed}",
        code=code_of("scripts/distill.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}, {wildcards.method}, seed {wildcards.seed}: training"
    script:
        "../scripts/distill.py"
