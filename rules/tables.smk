"""Tables: the main one, those of comparisons, and what the abstract's claims come to; presentation is read here."""


rule tabulate:
    """The paper's main table in LaTeX, and its numbers."""
    input:
        scores=summaries_of,
        comparisons=comparisons_of,
    output:
        tex="results/tables/{experiment}.tex",
        csv=report(
            "results/tables/{experiment}.csv",
            caption="../workflow/report/table.rst",
            category="Tables",
            labels={"experiment": "{experiment}", "table": "results"},
        ),
    log:
        "logs/tabulate/{experiment}.log",
    threads: 1
    resources:
        mem_mb=500,
    params:
        rows=rows_of,
        pairs=pairs_of,
        layout=layout_for,
        code=code_version("scripts/tabulate.py"),
    message:
        "{wildcards.experiment}: writing the table"
    script:
        "../scripts/tabulate.py"


rule tabulate_comparison:
    """A table beside the main one: termination, significance, the 2x2, or single mechanisms."""
    input:
        comparisons=comparisons_of,
        adapters=adapters_in_table,
    output:
        tex="results/tables/{experiment}-{table}.tex",
        csv=report(
            "results/tables/{experiment}-{table}.csv",
            caption="../workflow/report/comparison.rst",
            category="Tables",
            labels={"experiment": "{experiment}", "table": "{table}"},
        ),
    log:
        "logs/tabulate_comparison/{experiment}/{table}.log",
    threads: 1
    resources:
        mem_mb=500,
    params:
        pairs=pairs_of,
        layout=layout_for,
        methods=settings_in_table,
        adapters=adapter_keys_in_table,
        code=code_version("scripts/tabulate_comparison.py"),
    message:
        "{wildcards.experiment}: writing the table of {wildcards.table}"
    script:
        "../scripts/tabulate_comparison.py"


rule claim:
    """Whether the claims of the abstract hold on what was run."""
    input:
        [path for experiment in config["experiments"] for path in comparisons_in(experiment)],
    output:
        tex="results/tables/claims.tex",
        csv=report(
            "results/tables/claims.csv",
            caption="../workflow/report/claims.rst",
            category="Tables",
            labels={"experiment": "all", "table": "claims"},
        ),
        markdown="results/tables/claims.md",
    log:
        "logs/claim.log",
    threads: 1
    resources:
        mem_mb=500,
    params:
        pairs=[pair for experiment in config["experiments"] for pair in pairs_in(experiment)],
        layout=layout_of_claims(),
        code=code_version("scripts/claim.py"),
    message:
        "holding the claims of the abstract against the comparisons"
    script:
        "../scripts/claim.py"
