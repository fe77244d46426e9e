"""From a dataset as it lies on disk to the studies, the pool and the demonstrations of this run."""


rule synthesize:
    """Write a synthetic dataset in the layout of the real one, and its truth apart."""
    output:
        root=directory("data/{dataset}"),
        truth="data/truth/{dataset}.parquet",
    log:
        "logs/synthesize/{dataset}.log",
    wildcard_constraints:
        dataset=any_of(SYNTHETIC),
    threads: 1
    resources:
        mem_mb=1000,
    params:
        layout=lookup(dpath="datasets/{dataset}/reader", within=config),
        synthetic=lookup(dpath="datasets/{dataset}/synthetic", within=config),
        world=lookup(dpath="world", within=config),
        code=code_version("scripts/synthesize.py"),
    message:
        "{wildcards.dataset}: writing a synthetic dataset"
    script:
        "../scripts/synthesize.py"


rule build_backbone:
    """Copy the trained tiny backbone that comes with the project, or train one of another recipe on the synthetic world."""
    output:
        directory("models/{backbone}"),
    log:
        "logs/build_backbone/{backbone}.log",
    wildcard_constraints:
        backbone=any_of(TINY),
    # Training takes minutes, and everything with a model waits for it.
    priority: 10
    threads: 1
    resources:
        mem_mb=2500,
    params:
        tiny=lookup(dpath="backbones/{backbone}/tiny", within=config),
        world=lookup(dpath="world", within=config),
        instruction=lookup(dpath="backbones/{backbone}/instruction", within=config),
        # The hash of the files that are copied: of these no other code decides anything.
        shipped=shipped_backbone,
        code=code_of_backbone("scripts/build_backbone.py"),
    message:
        "{wildcards.backbone}: copying the tiny backbone that comes with the project, or training one (minutes)"
    script:
        "../scripts/build_backbone.py"


rule split:
    """Read a dataset into the table of studies: sections, selection, labels, patient-disjoint splits."""
    input:
        root=synthetic_root,
    output:
        studies="results/splits/{dataset}/studies.parquet",
        excluded="results/splits/{dataset}/excluded.csv",
        counts="results/splits/{dataset}/counts.json",
    log:
        "logs/split/{dataset}.log",
    threads: 1
    resources:
        mem_mb=4000,
    params:
        reader=lookup(dpath="datasets/{dataset}/reader", within=config),
        selection=selection_of,
        data=data_of,
        root=root_of,
        reports=reports_place_of,
        max_unreadable=limit_of,
        code=code_of("scripts/split.py"),
    message:
        "{wildcards.dataset}: reading and selecting studies"
    script:
        "../scripts/split.py"


rule select:
    """Draw the pool once: training queries, demonstrations, validation and test studies, disjoint by patient."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
    output:
        "results/pools/{dataset}.json",
    log:
        "logs/select/{dataset}.log",
    threads: 1
    resources:
        mem_mb=2000,
    params:
        sizes=lookup(dpath="datasets/{dataset}/pool", within=config),
        code=code_version("scripts/select.py"),
    message:
        "{wildcards.dataset}: drawing the pool"
    script:
        "../scripts/select.py"


rule demonstrate:
    """Draw demonstrations from other patients: the first draw for all studies, further ones (-draw1 ...) for queries."""
    input:
        pool="results/pools/{dataset}.json",
        studies="results/splits/{dataset}/studies.parquet",
    output:
        "results/demonstrations/{dataset}/k{shots}/seed{seed}{draw}.json",
    log:
        "logs/demonstrate/{dataset}/k{shots}/seed{seed}{draw}.log",
    threads: 1
    resources:
        mem_mb=2000,
    params:
        shared=config["demonstrations"] == "shared",
        code=code_version("scripts/demonstrate.py"),
    message:
        "{wildcards.dataset}, {wildcards.shots} shots, seed {wildcards.seed}{wildcards.draw}: drawing demonstrations"
    script:
        "../scripts/demonstrate.py"
