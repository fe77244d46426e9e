"""Score the reports of all seeds of a method."""

from pathlib import Path

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.scores.score import score_method

    score_method(
        studies=snakemake.input.studies,
        pool=snakemake.input.pool,
        generations=dict(zip(snakemake.params.seeds, snakemake.input.generations, strict=True)),
        vocabulary=snakemake.params.vocabulary,
        vision=snakemake.input.vision,
        scorers=snakemake.params.scorers,
        remembered=snakemake.params.remembered,
        out=Path(snakemake.output.summary).parent,
    )
