"""Find the spans of pathology in every report."""

from dive.annotation.vocabulary import annotate_studies
from dive.progress import logged

with logged(snakemake.log[0]):
    annotate_studies(
        studies=snakemake.input.studies,
        vocabulary=snakemake.input.vocabulary,
        settings=snakemake.params.settings,
        out=snakemake.output[0],
    )
