"""Write the page about what was run."""

from dive.progress import logged

with logged(snakemake.log[0]):
    from dive.reporting.html import write_report

    experiments = snakemake.params.experiments
    figures = zip(snakemake.input.results, snakemake.input.training, strict=True)
    decisive = zip(
        snakemake.params.titles,
        snakemake.input.decisive,
        snakemake.input.concentration,
        snakemake.params.views,
        strict=True,
    )
    write_report(
        out=snakemake.output[0],
        template=snakemake.input.template,
        title="DIVE: distillation of in-context demonstrations for chest X-ray reports",
        tables=dict(zip(experiments, snakemake.input.tables, strict=True)),
        layouts=dict(zip(experiments, snakemake.params.layouts, strict=True)),
        claims=(snakemake.input.claims, snakemake.params.claims),
        figures=dict(zip(experiments, figures, strict=True)),
        flows=dict(zip(snakemake.params.datasets, snakemake.input.flows, strict=True)),
        acceptance=snakemake.input.acceptance[0] if snakemake.input.acceptance else None,
        settings=snakemake.params.settings,
        version=snakemake.params.code,
        pools=dict(zip(snakemake.params.datasets, snakemake.input.pools, strict=True)),
        vision=dict(zip(map(tuple, snakemake.params.pairs), snakemake.input.vision, strict=True)),
        decisive=[dict(zip(("title", "table", "figure", "view"), entry, strict=True)) for entry in decisive],
    )
