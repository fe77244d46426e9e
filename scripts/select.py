"""Draw the pool of a dataset."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.data.pools import select_pool

    select_pool(studies=snakemake.input.studies, sizes=snakemake.params.sizes, out=snakemake.output[0])
