"""Write the page about what a grid ran."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.reporting.html import write_report

    name, given, params = snakemake.wildcards.experiment, snakemake.input, snakemake.params
    decisive = zip(params.titles, given.decisive, given.concentration, params.views, strict=True)
    write_report(
        out=snakemake.output[0],
        title="DIVE: distillation of in-context demonstrations for chest X-ray reports",
        tables={name: given.table},
        layouts={name: params.layout},
        claims=(given.claims, params.layout),
        figures={name: (given.results, given.training)},
        flows=dict(zip(params.datasets, given.flows, strict=True)),
        acceptance=given.acceptance[0] if given.acceptance else None,
        settings=params.settings,
        version=params.code,
        pools=dict(zip(params.datasets, given.pools, strict=True)),
        vision=dict(zip(map(tuple, params.pairs), given.vision, strict=True)),
        decisive=[dict(zip(("title", "table", "figure", "view"), entry, strict=True)) for entry in decisive],
    )
