"""Figures, the page about what was run, and what it all cost."""


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
    threads: 1
    resources:
        mem_mb=1000,
    params:
        rows=rows_of,
        layout=titles_for,
        code=code_version("scripts/plot.py"),
    message:
        "{wildcards.experiment}: drawing the figures"
    script:
        "../scripts/plot.py"


rule report:
    """The page about what was run: tables, figures, what was selected, the acceptance, the settings."""
    input:
        template=ancient("workflow/templates/report.html.j2"),
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
        template=content_of("workflow/templates/report.html.j2"),
        code=code_version("scripts/report.py"),
    message:
        "writing the page about what was run"
    script:
        "../scripts/report.py"


rule summarise_costs:
    """What every rule cost, as its jobs measured; made last, and no input of anything, since seconds never repeat."""
    input:
        made_at_the_end(),
    output:
        csv=report("results/costs/rules.csv", caption="../workflow/report/costs.rst", category="Costs"),
        markdown="results/costs/rules.md",
    log:
        "logs/summarise_costs.log",
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
