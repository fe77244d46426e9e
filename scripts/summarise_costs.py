"""Summarise what every rule cost."""

from dive.progress import logged
from dive.reporting.costs import summarise_costs

with logged(snakemake.log[0]):
    summarise_costs(
        benchmarks=snakemake.params.benchmarks, out_csv=snakemake.output.csv, out_md=snakemake.output.markdown
    )
