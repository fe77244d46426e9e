"""Tables: the main one, the tables of comparisons, and the verdicts on the abstract's claims."""


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
    """One of the other tables: termination, significance, the 2x2, or single mechanisms."""
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
    """Judge whether the claims of the abstract hold in the results of a grid."""
    input:
        comparisons_of,
    output:
        tex="results/tables/{experiment}-claims.tex",
        csv=report(
            "results/tables/{experiment}-claims.csv",
            caption="../workflow/report/claims.rst",
            category="Tables",
            labels={"experiment": "{experiment}", "table": "claims"},
        ),
        markdown="results/tables/{experiment}-claims.md",
    log:
        "logs/claim/{experiment}.log",
    threads: 1
    resources:
        mem_mb=500,
    params:
        pairs=pairs_of,
        layout=claims_layout_for,
        code=code_version("scripts/claim.py"),
    message:
        "{wildcards.experiment}: judging the claims of the abstract"
    script:
        "../scripts/claim.py"
