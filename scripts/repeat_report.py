"""Give every test study the one training report that serves everybody best."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.scores.constant import repeat_best_report

    repeat_best_report(studies=snakemake.input.studies, pool=snakemake.input.pool, out=snakemake.output[0])
