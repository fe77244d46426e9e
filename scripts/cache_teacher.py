"""Run the teacher once over the training queries."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.distillation.cache import cache_teacher

    cache_teacher(
        backbone={**snakemake.params.source, **snakemake.params.backbone},
        studies=snakemake.input.studies,
        demonstrations=snakemake.input.demonstrations,
        vision=snakemake.input.vision,
        training={"max_report_tokens": snakemake.params.max_report_tokens},
        out=snakemake.output[0],
        partial=snakemake.params.partial,
    )
