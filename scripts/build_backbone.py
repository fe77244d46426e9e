"""Train a tiny backbone of a real transformers class on the synthetic world."""

from dive.progress import logged

with logged(snakemake.log[0]):
    from dive.backbones.tiny import build_backbone

    build_backbone(
        out=snakemake.output[0],
        tiny=snakemake.params.tiny,
        world=snakemake.params.world,
        instruction=snakemake.params.instruction,
    )
