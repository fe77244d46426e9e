"""Compare the methods of a dataset and backbone: intervals, paired tests, contrasts."""

from pathlib import Path

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.scores.significance import compare_methods

    compare_methods(
        scores={
            method: str(Path(reports).parent)
            for method, reports in zip(snakemake.params.methods, snakemake.input.reports, strict=True)
        },
        ours=snakemake.params.ours,
        contrasts=snakemake.params.contrasts,
        settings=snakemake.params.settings,
        out=snakemake.output[0],
    )
