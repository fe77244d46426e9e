"""Tables, figures and the page about what was run; presentation is read here and nowhere else."""


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
    benchmark:
        "benchmarks/tabulate/{experiment}.tsv"
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
    benchmark:
        "benchmarks/tabulate_comparison/{experiment}/{table}.tsv"
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
    benchmark:
        "benchmarks/claim.tsv"
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
        layout=layout_for,
        code=code_version("scripts/plot.py"),
    message:
        "{wildcards.experiment}: drawing the figures"
    script:
        "../scripts/plot.py"


rule report:
    """The page about what was run: tables, figures, what was selected, the acceptance, the settings."""
    input:
        template="workflow/templates/report.html.j2",
        tables=expand("results/tables/{experiment}.csv", experiment=config["experiments"]),
        claims="results/tables/claims.csv",
        results=expand("results/figures/{experiment}.svg", experiment=config["experiments"]),
        training=expand("results/figures/{experiment}-training.svg", experiment=config["experiments"]),
        flows=expand("results/splits/{dataset}/counts.json", dataset=DATASETS),
        pools=expand("results/pools/{dataset}.json", dataset=DATASETS),
        vision=[f"results/vision/{dataset}/{backbone}" for dataset, backbone in PAIRS],
        acceptance=acceptance("json"),
        decisive=sparsity("csv"),
        concentration=sparsity("svg"),
    output:
        report("results/report/index.html", caption="../workflow/report/page.rst", category="Overview"),
    log:
        "logs/report.log",
    benchmark:
        "benchmarks/report.tsv"
    threads: 1
    resources:
        mem_mb=500,
    params:
        experiments=config["experiments"],
        layouts=[layout_of(experiment) for experiment in config["experiments"]],
        claims=layout_of_claims(),
        datasets=DATASETS,
        pairs=PAIRS,
        titles=[config["presentation"]["datasets"][name]["title"] for name in DATASETS],
        views=[f"tokens/{name}.html" if name in VIEWED else "" for name in DATASETS],
        settings=shown_settings(),
        code=code_version("scripts/report.py"),
    message:
        "writing the page about what was run"
    script:
        "../scripts/report.py"


rule summarise_costs:
    """What every rule cost by Snakemake's benchmarks; made last, and no input of anything, since seconds never repeat."""
    input:
        made_at_the_end(),
    output:
        csv=report("results/costs/rules.csv", caption="../workflow/report/costs.rst", category="Costs"),
        markdown="results/costs/rules.md",
    log:
        "logs/summarise_costs.log",
    benchmark:
        "benchmarks/summarise_costs.tsv"
    threads: 1
    resources:
        mem_mb=500,
    params:
        benchmarks="benchmarks",
        code=code_version("scripts/summarise_costs.py"),
    message:
        "summarising what every rule cost"
    script:
        "../scripts/summarise_costs.py"
