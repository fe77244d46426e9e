"""Hold what the lexicon proxies read in synthetic references against the findings behind them."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.scores.agreement import compare_lexicon

    datasets = snakemake.params.datasets
    compare_lexicon(
        studies=dict(zip(datasets, snakemake.input.studies, strict=True)),
        truths=dict(zip(datasets, snakemake.input.truths, strict=True)),
        vocabulary=snakemake.params.vocabulary,
        out_json=snakemake.output.json,
        out_md=snakemake.output.markdown,
    )
