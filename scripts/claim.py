"""Hold the claims of the abstract against the comparisons."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.reporting.claims import write_claims

    write_claims(
        comparisons=[(*pair, path) for pair, path in zip(snakemake.params.pairs, snakemake.input, strict=True)],
        layout=snakemake.params.layout,
        out_tex=snakemake.output.tex,
        out_csv=snakemake.output.csv,
        out_md=snakemake.output.markdown,
    )
