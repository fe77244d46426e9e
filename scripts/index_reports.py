"""List the pages of all grids."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.reporting.index import write_index

    write_index(out=snakemake.output[0], grids=snakemake.params.grids)
