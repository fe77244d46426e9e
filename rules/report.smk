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
    """The page about the run of a grid: tables, figures, selection of studies, acceptance, settings."""
    input:
        table="results/tables/{experiment}.csv",
        claims="results/tables/{experiment}-claims.csv",
        results="results/figures/{experiment}.svg",
        training="results/figures/{experiment}-training.svg",
        flows=flows_of,
        pools=pools_of,
        vision=vision_of,
        acceptance=acceptance("json"),
        decisive=decisive_of("tables", "csv"),
        concentration=decisive_of("figures", "svg"),
    output:
        report(
            "results/report/{experiment}/index.html",
            caption="../workflow/report/page.rst",
            category="Overview",
            labels={"experiment": "{experiment}"},
        ),
    log:
        "logs/report/{experiment}.log",
    threads: 1
    resources:
        mem_mb=500,
    params:
        layout=claims_layout_for,
        datasets=datasets_of,
        pairs=pairs_of,
        titles=titles_of,
        views=views_of,
        settings=shown_settings,
        template=content_of(packaged("templates/report.html.j2")),
        code=code_version("scripts/report.py"),
    message:
        "{wildcards.experiment}: writing the page about what was run"
    script:
        "../scripts/report.py"


rule index_reports:
    """The page that lists the pages of all grids that were run, now or earlier."""
    input:
        pages=expand("results/report/{experiment}/index.html", experiment=config["experiments"]),
    output:
        report("results/report/index.html", caption="../workflow/report/index.rst", category="Overview"),
    log:
        "logs/index_reports.log",
    threads: 1
    resources:
        mem_mb=500,
    params:
        grids=list(config["grids"]),
        code=code_version("scripts/index_reports.py"),
    message:
        "listing the pages of all grids"
    script:
        "../scripts/index_reports.py"


rule summarise_costs:
    """The measured cost of every rule. It is written last and is no input of any rule, because seconds never repeat."""
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
