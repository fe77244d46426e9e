"""Find the decisive spans of every report by an annotator."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.annotation.annotate import annotate_studies

    annotate_studies(
        studies=snakemake.input.studies,
        settings=snakemake.params.settings,
        files={**snakemake.params.files, "remembered": snakemake.params.remembered},
        out=snakemake.output[0],
    )
