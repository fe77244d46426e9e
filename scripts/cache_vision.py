"""Run the vision tower once over the images of the pool."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.backbones.vision import cache_vision

    cache_vision(
        backbone={**snakemake.params.source, **snakemake.params.backbone},
        studies=snakemake.input.studies,
        pool=snakemake.input.pool,
        root=snakemake.params.root,
        out=snakemake.output[0],
        partial=snakemake.params.partial,
        max_unreadable=snakemake.params.max_unreadable,
    )
