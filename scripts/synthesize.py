"""Write a synthetic dataset in the layout of the real one, and its truth apart."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.data.synthetic.layouts import synthesize

    synthesize(
        layout=snakemake.params.layout,
        root=snakemake.output.root,
        truth=snakemake.output.truth,
        style=snakemake.params.synthetic["style"],
        patients=snakemake.params.synthetic["patients"],
        world=snakemake.params.world,
        seed=snakemake.params.world["seed"],
    )
