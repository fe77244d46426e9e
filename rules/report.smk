"""Tables, figures and the page about what was run; presentation is read here and nowhere else."""


rule tabulate:
    """The paper's main table in LaTeX, and its numbers."""
    input:
        summaries_of,
    output:
        tex="results/tables/{experiment}.tex",
        csv="results/tables/{experiment}.csv",
    log:
        "logs/tabulate/{experiment}.log",
    benchmark:
        "benchmarks/tabulate/{experiment}.tsv"
    threads: 1
    resources:
        mem_mb=500,
    params:
        rows=rows_of,
        layout=layout_of,
        code=code_version("scripts/tabulate.py"),
    message:
        "{wildcards.experiment}: writing the table"
    script:
        "../scripts/tabulate.py"


rule plot:
    """The results of every method, and the course of training."""
    input:
        scores=summaries_of,
        adapters=adapters_of,
    output:
        results=report(
            multiext("results/figures/{experiment}", ".pdf", ".svg"),
            caption="../workflow/report/results.rst",
            category="Figures",
            labels={"experiment": "{experiment}", "figure": "results"},
        ),
        curves=report(
            multiext("results/figures/{experiment}-training", ".pdf", ".svg"),
            caption="../workflow/report/training.rst",
            category="Figures",
            labels={"experiment": "{experiment}", "figure": "training"},
        ),
    log:
        "logs/plot/{experiment}.log",
    benchmark:
        "benchmarks/plot/{experiment}.tsv"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        rows=rows_of,
        layout=layout_of,
        code=code_version("scripts/plot.py"),
    message:
        "{wildcards.experiment}: drawing the figures"
    script:
        "../scripts/plot.py"
