"""Copy the trained tiny backbone that comes with the project, or train one of another recipe on the synthetic world."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.backbones.shipped import provide_backbone

    provide_backbone(
        out=snakemake.output[0],
        tiny=snakemake.params.tiny,
        world=snakemake.params.world,
        instruction=snakemake.params.instruction,
        shipped=snakemake.params.shipped,
    )
