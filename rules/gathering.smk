"""What the analysis, the tables, the figures and the page gather, and what they say beside numbers."""

# What the analysis of decisive tokens compares and shows. Real reports are shown only where the settings say so.


SHOWN = config["methods"][config["analysis"]["method"]]["weights"]
COMPARED = list(
    dict.fromkeys(
        [
            config["annotation"]["annotator"],
            *config["analysis"]["annotators"],
            *({SHOWN["source"]} & {*ANNOTATORS, "random"}),
        ]
    )
)
VIEW = config["analysis"]["view"]
VIEWED = [name for name in DATASETS if VIEW["studies"] and (name in SYNTHETIC or VIEW["credentialed"])]


def compared_spans(wildcards):
    """The spans of every annotator that is compared."""
    return [spans_file(wildcards.dataset, name) for name in COMPARED]


def viewed_spans(wildcards):
    """The spans whose polarity and source the view shows; random tokens have none."""
    return [spans_file(wildcards.dataset, name) for name in COMPARED if name in ANNOTATORS]


def analysis_settings():
    """What decides the numbers of the analysis; parameters of statistics are those of a method that uses them."""
    names = list(dict.fromkeys([*config["analysis"]["statistics"], *({SHOWN["source"]} & set(STATISTICS))]))
    return {
        "studies": config["analysis"]["studies"],
        "max_report_tokens": config["training"]["max_report_tokens"],
        "seed": config["seeds"][0],
        "annotator": config["annotation"]["annotator"],
        "statistics": {name: SHOWN["level" if name == "value_at_risk" else "exponent"] for name in names},
        "weights": {key: SHOWN[key] for key in ("pathology", "eos", "source")},
    }


def analysed_backbones(dataset):
    """The backbones with which a dataset is run."""
    return [backbone for name, backbone in PAIRS if name == dataset]


def analyses_of(wildcards):
    """The tokens of a dataset with every backbone."""
    return [f"results/analyses/{wildcards.dataset}/{b}/tokens.parquet" for b in analysed_backbones(wildcards.dataset)]


def backbone_titles_of(wildcards):
    """Titles of the backbones with which a dataset is run."""
    return [config["presentation"]["backbones"][name]["title"] for name in analysed_backbones(wildcards.dataset)]


def title_of_dataset(wildcards):
    """Title of a dataset."""
    return config["presentation"]["datasets"][wildcards.dataset]["title"]


def sparsity_layout(wildcards):
    """What the table of annotators says beside numbers."""
    settings = analysis_settings()
    method = config["analysis"]["method"]
    return {
        "dataset": title_of_dataset(wildcards),
        "method": config["presentation"]["methods"][method]["title"],
        "shots": config["shots"],
        **{key: settings[key] for key in ("annotator", "weights")},
    }


def sparsity(suffix):
    """The comparison of annotators of every dataset, as a table or a figure."""
    folder = "figures" if suffix == "svg" else "tables"
    return [f"results/{folder}/sparsity/{dataset}.{suffix}" for dataset in DATASETS]


def rows_of(wildcards):
    """(dataset, backbone, method) of every row of an experiment's table."""
    return select_rows(wildcards.experiment)


def summaries_of(wildcards):
    """The scores of every row of an experiment's table."""
    return [f"results/scores/{'/'.join(row)}/summary.json" for row in select_rows(wildcards.experiment)]


def shown_of(experiment, keys):
    """What a table or figure says of the datasets, backbones and methods of an experiment, in the grid's order."""
    entries = config["presentation"]
    return {
        kind: {name: {key: entries[kind][name][key] for key in keys if key in entries[kind][name]} for name in names}
        for kind, names in config["grids"][experiment].items()
    }


def titles_for(wildcards):
    """Titles and groups of what is in the table of the experiment that a job is about."""
    return shown_of(wildcards.experiment, ("title", "group"))


def judged_by(*keys):
    """Settings of the tests between methods that a table reads."""
    return {key: config["significance"][key] for key in keys}


def layout_of(experiment):
    """What an experiment's tables say beside numbers: titles and groups, notes, and how it was measured."""
    shown = shown_of(experiment, ("title", "note", "group"))
    for name, entry in shown["datasets"].items():
        selection = config["datasets"][name]["selection"]
        named = ("section", "unit", "views", "convention", "fractions")
        shown["datasets"][name] = {**entry, "selection": {key: selection[key] for key in named}}
    return {
        **shown,
        "label": experiment,
        "shots": config["shots"],
        "seeds": config["seeds"],
        "significance": judged_by("alpha", "resamples"),
    }


def layout_for(wildcards):
    """The layout of the experiment that a job is about."""
    return layout_of(wildcards.experiment)


def claims_layout_for(wildcards):
    """The layout of this experiment's claims and page, which say the margin of a competitive score too."""
    judged = judged_by("alpha", "resamples", "margin")
    return {**layout_of(wildcards.experiment), "significance": judged}


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


def tables_beside(experiment):
    """The tables beside the main one for which an experiment has rows."""
    ours, published, ablations = (grouped(experiment, group) for group in ("ours", "published", "ablation"))
    wanted = {
        "termination": True,
        "significance": ours and published,
        "factorial": contrasts_of(methods_in(experiment), ours),
        "mechanisms": ours and ablations,
    }
    return [table for table, rows in wanted.items() if rows]


def adapters_of(wildcards):
    """The adapters whose training an experiment's figure shows."""
    trained = [name for name in methods_of("steering") if "epochs" in config["methods"][name]]
    rows = [row for row in select_rows(wildcards.experiment) if row[2] in trained]
    return [f"results/adapters/{'/'.join(row)}/seed{seed}" for row in rows for seed in config["seeds"]]


def datasets_of(wildcards):
    """Datasets of an experiment's rows."""
    return list(dict.fromkeys(dataset for dataset, _ in pairs_of(wildcards)))


def titles_of(wildcards):
    """Titles of these datasets."""
    return [config["presentation"]["datasets"][name]["title"] for name in datasets_of(wildcards)]


def flows_of(wildcards):
    """Counts of the selection of these datasets."""
    return [f"results/splits/{name}/counts.json" for name in datasets_of(wildcards)]


def pools_of(wildcards):
    """Pools of these datasets."""
    return [f"results/pools/{name}.json" for name in datasets_of(wildcards)]


def vision_of(wildcards):
    """Features of the images of an experiment's datasets by its backbones, which say what could not be decoded."""
    return [f"results/vision/{dataset}/{backbone}" for dataset, backbone in pairs_of(wildcards)]


def decisive_of(folder, suffix):
    """A function for the comparisons of annotators of an experiment's datasets, as tables or figures."""

    def files(wildcards):
        return [f"results/{folder}/sparsity/{name}.{suffix}" for name in datasets_of(wildcards)]

    return files


def views_of(wildcards):
    """Addresses of the pages that show reports of these datasets, seen from an experiment's page; "" without one."""
    return [f"../tokens/{name}.html" if name in VIEWED else "" for name in datasets_of(wildcards)]


def shown_settings(wildcards):
    """The settings that a page shows: those that decide numbers, of what was run; no places on this machine."""
    methods = methods_in(wildcards.experiment)
    return {
        **{key: config[key] for key in ("seeds", "shots", "draws", "demonstrations", "decoding", "analysis")},
        "annotation": {
            **config["annotation"],
            "radgraph": without("max_missing", config["annotation"]["radgraph"]),
        },
        "scores": {
            name: settings and {**without("batch", settings), "path": "given"} for name, settings in SCORERS.items()
        },
        "training": TRAINING,
        "datasets": {
            name: {
                "selection": without("max_unreadable", config["datasets"][name]["selection"]),
                "pool": config["datasets"][name]["pool"],
            }
            for name in datasets_of(wildcards)
        },
        "methods": {
            name: {key: value for key, value in settings.items() if key != "files"}
            for name, settings in methods.items()
        },
    }


def made_at_the_end():
    """Everything that nothing else is made from, the costs aside."""
    ends = expand(
        [
            "results/tables/{experiment}.tex",
            "results/tables/{experiment}-claims.tex",
            "results/figures/{experiment}.pdf",
            "results/report/{experiment}/index.html",
        ],
        experiment=config["experiments"],
    )
    views = [f"results/report/tokens/{dataset}.html" for dataset in VIEWED]
    known = ["results/world/lexicon.md"] if KNOWN else []
    tables = [f"results/tables/{name}-{table}.tex" for name in config["experiments"] for table in tables_beside(name)]
    tables += sparsity("tex")
    return [*ends, *tables, *views, "results/report/index.html", *acceptance("md"), *known]
