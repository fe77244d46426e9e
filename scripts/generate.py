"""Write a report for every test study."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.generation import generate_reports

    generate_reports(
        backbone={**snakemake.params.source, **snakemake.params.backbone},
        method=snakemake.params.method,
        studies=snakemake.input.studies,
        pool=snakemake.input.pool,
        demonstrations=snakemake.input.demonstrations or None,
        vision=snakemake.input.vision,
        adapter=snakemake.input.adapter or None,
        decoding=snakemake.params.decoding,
        out=snakemake.output[0],
        partial=snakemake.params.partial,
        trained={
            "dataset": snakemake.params.method.get("trained_on", snakemake.wildcards.dataset),
            "seed": int(snakemake.wildcards.seed),
        },
    )
