"""Distil the teacher into a method's adapter."""

from dive.job import logged

# How training is computed, not what comes out: read past `params`, so that changing these reruns nothing.
settings = snakemake.config["training"]
resources = {key: settings[key] for key in ("prefix_cache_gb", "checkpoint_seconds")}

with logged(snakemake.log[0]):
    from dive.distillation.training import distill

    distill(
        backbone={**snakemake.params.source, **snakemake.params.backbone},
        method=snakemake.params.method,
        studies=snakemake.input.studies,
        pool=snakemake.input.pool,
        spans=snakemake.input.spans,
        vision=snakemake.input.vision,
        teacher=list(snakemake.input.teacher),
        layers=snakemake.input.layers or None,
        demonstrations=snakemake.input.demonstrations or None,
        training={**snakemake.params.training, **resources},
        seed=int(snakemake.wildcards.seed),
        out=snakemake.output[0],
        checkpoint=snakemake.params.checkpoint,
        credentialed=snakemake.params.credentialed,
    )
