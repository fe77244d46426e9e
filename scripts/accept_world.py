"""Hold the synthetic world against its acceptance criteria."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.acceptance import accept_world

    accept_world(
        probes=list(snakemake.input),
        out_json=snakemake.output.json,
        out_md=snakemake.output.markdown,
    )
