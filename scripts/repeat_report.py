"""Give every test study the training report that scores best on the other training reports."""

from dive.job import logged

with logged(snakemake.log[0]):
    from dive.scores.constant import repeat_best_report

    repeat_best_report(studies=snakemake.input.studies, pool=snakemake.input.pool, out=snakemake.output[0])
