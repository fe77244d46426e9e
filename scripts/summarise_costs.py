"""Summarise what every rule cost."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.reporting.costs import summarise_costs

    summarise_costs(
        benchmarks=snakemake.params.benchmarks, out_csv=snakemake.output.csv, out_md=snakemake.output.markdown
    )
