"""Write the page about what was run."""

from dive.progress import logged
from dive.reporting.html import write_report

with logged(snakemake.log[0]):
    experiments = snakemake.params.experiments
    figures = zip(snakemake.input.results, snakemake.input.training, strict=True)
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
    )
