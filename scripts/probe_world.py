"""Measure on validation what the synthetic world gives."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.acceptance import probe_world

    probe_world(
        backbone={**snakemake.params.source, **snakemake.params.backbone},
        studies=snakemake.input.studies,
        pool=snakemake.input.pool,
        demonstrations=snakemake.input.demonstrations,
        vision=snakemake.input.vision,
        truth=snakemake.input.truth,
        decoding=snakemake.params.decoding,
        out=snakemake.output[0],
    )
