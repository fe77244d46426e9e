"""Take another system's reports of the test studies as a method of the table."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.data.reports import import_reports

    import_reports(
        studies=snakemake.input.studies,
        pool=snakemake.input.pool,
        reports=snakemake.params.reports,
        out=snakemake.output[0],
    )
