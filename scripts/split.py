"""Read a dataset into the table of studies."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.data.splits import split_dataset

    split_dataset(
        dataset=snakemake.wildcards.dataset,
        reader=snakemake.params.reader,
        root=snakemake.params.root,
        selection={
            **snakemake.params.selection,
            "reports": snakemake.params.reports,
            "max_unreadable": snakemake.params.max_unreadable,
        },
        studies=snakemake.output.studies,
        excluded=snakemake.output.excluded,
        counts=snakemake.output.counts,
    )
