"""Draw the demonstrations of every query, validation and test study, or a further draw of the queries'."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.data.pools import draw_demonstrations

    draw_demonstrations(
        pool=snakemake.input.pool,
        studies=snakemake.input.studies,
        shots=int(snakemake.wildcards.shots),
        seed=int(snakemake.wildcards.seed),
        out=snakemake.output[0],
        draw=int(snakemake.wildcards.draw.removeprefix("-draw") or 0),
        shared=snakemake.params.shared,
    )
