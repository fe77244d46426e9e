"""Whether a sparse set of tokens decides: measured token by token, compared between annotators, and shown."""


rule analyse:
    """Loss of the zero-shot backbone and its divergence from the teacher at every token of validation reports."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        pool="results/pools/{dataset}.json",
        demonstrations=probe_demonstrations,
        vision="results/vision/{dataset}/{backbone}",
        spans=compared_spans,
        model=built_backbone,
    output:
        "results/analyses/{dataset}/{backbone}/tokens.parquet",
    log:
        "logs/analyse/{dataset}/{backbone}.log",
    threads: 1
    resources:
        mem_mb=memory,
        gpu=gpus,
    params:
        backbone=backbone_for("teacher"),
        weights=weights_of,
        source=source_of,
        annotators=COMPARED,
        settings=analysis_settings(),
        code=code_version("scripts/analyse.py"),
    message:
        "{wildcards.dataset}, {wildcards.backbone}: measuring loss and divergence token by token"
    script:
        "../scripts/analyse.py"


rule compare_annotators:
    """How much of the tokens, the loss and the divergence each annotator marks, and how far annotators agree."""
    input:
        analyses_of,
    output:
        tex="results/tables/sparsity/{dataset}.tex",
        csv=report(
            "results/tables/sparsity/{dataset}.csv",
            caption="../workflow/report/sparsity.rst",
            category="Decisive tokens",
            labels={"dataset": "{dataset}", "item": "table"},
        ),
        figure=report(
            multiext("results/figures/sparsity/{dataset}", ".pdf", ".svg"),
            caption="../workflow/report/sparsity.rst",
            category="Decisive tokens",
            labels={"dataset": "{dataset}", "item": "figure"},
        ),
    log:
        "logs/compare_annotators/{dataset}.log",
    threads: 1
    resources:
        mem_mb=1000,
    params:
        backbones=backbone_titles_of,
        layout=sparsity_layout,
        code=code_version("scripts/compare_annotators.py"),
    message:
        "{wildcards.dataset}: comparing annotators"
    script:
        "../scripts/compare_annotators.py"


rule view_tokens:
    """Reports token by token: weight, polarity, source, loss and divergence. Real reports only where the settings say so."""
    input:
        studies="results/splits/{dataset}/studies.parquet",
        analyses=analyses_of,
        spans=viewed_spans,
    output:
        report(
            "results/report/tokens/{dataset}.html",
            caption="../workflow/report/tokens.rst",
            category="Decisive tokens",
            labels={"dataset": "{dataset}", "item": "reports"},
        ),
    log:
        "logs/view_tokens/{dataset}.log",
    wildcard_constraints:
        dataset=any_of(VIEWED),
    threads: 1
    resources:
        mem_mb=500,
    params:
        backbones=backbone_titles_of,
        title=title_of_dataset,
        template=content_of(packaged("templates/tokens.html.j2")),
        chosen=lookup(dpath="analysis/view/studies", within=config),
        code=code_version("scripts/view_tokens.py"),
    message:
        "{wildcards.dataset}: showing reports token by token"
    script:
        "../scripts/view_tokens.py"
