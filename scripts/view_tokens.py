"""Write the page that shows reports token by token."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.reporting.tokens import write_view

    write_view(
        studies=snakemake.input.studies,
        analyses=list(snakemake.input.analyses),
        backbones=snakemake.params.backbones,
        spans=list(snakemake.input.spans),
        title=snakemake.params.title,
        chosen=snakemake.params.chosen,
        out=snakemake.output[0],
    )
