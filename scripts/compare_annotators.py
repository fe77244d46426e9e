"""Write table and figure of the decisive tokens of a dataset."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.reporting.sparsity import compare_annotators

    compare_annotators(
        tokens=list(snakemake.input),
        backbones=snakemake.params.backbones,
        layout=snakemake.params.layout,
        out_tex=snakemake.output.tex,
        out_csv=snakemake.output.csv,
        figure=snakemake.output.figure,
    )
