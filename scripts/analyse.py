"""Measure loss and divergence of every token of validation reports."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.analyses.tokens import analyse_tokens

    analyse_tokens(
        backbone={**snakemake.params.source, **snakemake.params.backbone},
        studies=snakemake.input.studies,
        pool=snakemake.input.pool,
        demonstrations=snakemake.input.demonstrations,
        vision=snakemake.input.vision,
        spans=dict(zip(snakemake.params.annotators, snakemake.input.spans, strict=True)),
        settings=snakemake.params.settings,
        out=snakemake.output[0],
    )
