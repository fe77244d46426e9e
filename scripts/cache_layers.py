"""Run the teacher once over the training queries and keep the states of all its layers."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.distillation.layers import cache_layers

    cache_layers(
        backbone={**snakemake.params.source, **snakemake.params.backbone},
        studies=snakemake.input.studies,
        demonstrations=snakemake.input.demonstrations,
        vision=snakemake.input.vision,
        training={"max_report_tokens": snakemake.params.max_report_tokens},
        out=snakemake.output[0],
        partial=snakemake.params.partial,
    )
