"""Draw the results of every method, and the course of training."""

from pathlib import Path

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.reporting.figures import plot_results

    plot_results(
        scores={
            tuple(row): str(Path(summary).parent)
            for row, summary in zip(snakemake.params.rows, snakemake.input.scores, strict=True)
        },
        # results/adapters/<dataset>/<backbone>/<method>/seed<seed>
        adapters={
            (*Path(folder).parts[-4:-1], int(Path(folder).name.removeprefix("seed"))): folder
            for folder in snakemake.input.adapters
        },
        layout=snakemake.params.layout,
        results=snakemake.output.results,
        curves=snakemake.output.curves,
    )
