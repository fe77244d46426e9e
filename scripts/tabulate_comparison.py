"""Write a table beside the main one."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.reporting.comparison_tables import write_comparison_table

    pairs, keys = map(tuple, snakemake.params.pairs), map(tuple, snakemake.params.adapters)
    write_comparison_table(
        table=snakemake.wildcards.table,
        comparisons=dict(zip(pairs, snakemake.input.comparisons, strict=True)),
        layout=snakemake.params.layout,
        methods=snakemake.params.methods,
        adapters=dict(zip(keys, snakemake.input.adapters, strict=True)),
        out_tex=snakemake.output.tex,
        out_csv=snakemake.output.csv,
    )
