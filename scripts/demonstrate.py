"""Draw the demonstrations of every query, validation and test study."""

from dive.progress import logged

with logged(snakemake.log[0]):
    from dive.data.pools import draw_demonstrations

    draw_demonstrations(
        pool=snakemake.input.pool,
        studies=snakemake.input.studies,
        shots=int(snakemake.wildcards.shots),
        seed=int(snakemake.wildcards.seed),
        out=snakemake.output[0],
    )
