"""Write the main table of an experiment."""

from pathlib import Path

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.reporting.tables import write_tables

    write_tables(
        scores={
            tuple(row): str(Path(summary).parent)
            for row, summary in zip(snakemake.params.rows, snakemake.input.scores, strict=True)
        },
        comparisons=dict(zip(map(tuple, snakemake.params.pairs), snakemake.input.comparisons, strict=True)),
        layout=snakemake.params.layout,
        out_tex=snakemake.output.tex,
        out_csv=snakemake.output.csv,
    )
