"""Tables: the main one, those of comparisons, and what the abstract's claims come to; presentation is read here."""


def rows_of(wildcards):
    """(dataset, backbone, method) of every row of an experiment's table."""
    return select_rows(wildcards.experiment)


def summaries_of(wildcards):
    """The scores of every row of an experiment's table."""
    return [f"results/scores/{'/'.join(row)}/summary.json" for row in select_rows(wildcards.experiment)]


def layout_of(experiment):
    """Titles, notes and groups of what is in an experiment's table, in the order of the configuration."""
    shown = {
        kind: {name: config["presentation"][kind][name] for name in names}
        for kind, names in config["grids"][experiment].items()
    }
    for name, entry in shown["datasets"].items():
        selection = config["datasets"][name]["selection"]
        named = ("section", "unit", "views", "convention", "fractions")
        shown["datasets"][name] = {**entry, "selection": {key: selection[key] for key in named}}
    return {
        **shown,
        "label": experiment,
        **{key: config[key] for key in ("shots", "seeds", "significance")},
    }


def layout_for(wildcards):
    """The layout of the experiment that a job is about."""
    return layout_of(wildcards.experiment)


def pairs_in(experiment):
    """(dataset, backbone) of an experiment's rows."""
    return list(dict.fromkeys(row[:2] for row in select_rows(experiment)))


def comparisons_in(experiment):
    """The comparisons of an experiment, in the order of its datasets and backbones."""
    return [f"results/comparisons/{experiment}/{'/'.join(pair)}.json" for pair in pairs_in(experiment)]


def comparisons_of(wildcards):
    """The comparisons of the experiment that a job is about."""
    return comparisons_in(wildcards.experiment)


def pairs_of(wildcards):
    """Dataset and backbone of each of these comparisons."""
    return pairs_in(wildcards.experiment)


def settings_in_table(wildcards):
    """Settings of the methods, for the tables that say what differs."""
    return methods_in(wildcards.experiment) if wildcards.table in ("factorial", "mechanisms") else {}


def adapter_keys_in_table(wildcards):
    """Dataset, backbone, method and seed of the adapters whose loss shares a table shows: ours and its ablations."""
    if wildcards.table != "mechanisms":
        return []
    shown = {*grouped(wildcards.experiment, "ours"), *grouped(wildcards.experiment, "ablation")}
    trained = [name for name in shown if "epochs" in config["methods"][name]]
    rows = [row for row in select_rows(wildcards.experiment) if row[2] in trained]
    return [(*row, seed) for row in rows for seed in config["seeds"]]


def adapters_in_table(wildcards):
    """These adapters."""
    return [f"results/adapters/{d}/{b}/{m}/seed{seed}" for d, b, m, seed in adapter_keys_in_table(wildcards)]


def comparison_tables(experiment):
    """The tables beside the main one for which an experiment has rows."""
    ours, published, ablations = (grouped(experiment, group) for group in ("ours", "published", "ablation"))
    wanted = {
        "termination": True,
        "significance": ours and published,
        "factorial": contrasts_of(methods_in(experiment), ours),
        "mechanisms": ours and ablations,
    }
    return [f"results/tables/{experiment}-{table}.tex" for table, rows in wanted.items() if rows]


def layout_of_claims():
    """Titles and groups over all experiments, and the margin of a competitive score."""
    layouts = [layout_of(experiment) for experiment in config["experiments"]]
    merged = {kind: {k: v for one in layouts for k, v in one[kind].items()} for kind in config["presentation"]}
    return {**layouts[0], **merged}


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
