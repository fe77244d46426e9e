"""Comparisons as the rule writes them, with numbers chosen by a test."""

import json

METRICS = ("bleu4", "rouge_l", "lexicon_label_f1", "lexicon_graph_f1", "stop_rate", "length_ratio")
METHODS = {
    "constant": ("Constant_report & co", "control"),
    "zero_shot": ("Zero-shot", "reference"),
    "live": ("LIVE", "published"),
    "lora": ("LoRA 100 %", "published"),
    "dive": ("DIVE", "ours"),
    "dive_static": ("DIVE static", "ablation"),
    "dive_uniform": ("DIVE uniform", "ablation"),
    "dive_static_uniform": ("DIVE static, uniform", "ablation"),
}
BASE = {
    "kind": "steering",
    "module": "dive",
    "rank": 16,
    "weights": {"pathology": 3.0, "eos": 10.0},
    "loss": {"kd": 1.0},
}
UNIFORM = {"pathology": 1.0, "eos": 1.0}
SETTINGS = {
    "constant": {"kind": "constant"},
    "zero_shot": {"kind": "prompt"},
    "live": {"kind": "steering", "module": "live", "weights": UNIFORM},
    "lora": {"kind": "steering", "module": "lora"},
    "dive": BASE,
    "dive_static": {**BASE, "rank": 0},
    "dive_uniform": {**BASE, "weights": UNIFORM},
    "dive_static_uniform": {**BASE, "rank": 0, "weights": UNIFORM},
}
LAYOUT = {
    "datasets": {name: {"title": f"Set {name.upper()}"} for name in ("a", "b")},
    "backbones": {"tiny": {"title": "Tiny_1"}},
    "methods": {name: {"title": title, "group": group} for name, (title, group) in METHODS.items()},
    "shots": 4,
    "seeds": [0, 1, 2],
    "label": "main",
    "significance": {"alpha": 0.05, "resamples": 1000, "margin": 1.0},
}


def comparison(differences=(), values=(), metrics=METRICS, methods=METHODS, contrasts=(), half=0.5, p=0.001):
    """A comparison of DIVE with all other methods.

    Args:
        differences: (against, metric) -> difference, or (difference, low, high, p); otherwise 2 everywhere.
        values: (method, metric) -> value; otherwise 50.
        metrics: those that were measured.
        contrasts: name -> metric -> {value, low, high}.
        half: half of an interval's length.
        p: p value that is not given.
    """
    rows = []
    for other in methods:
        for metric in metrics if other != "dive" else ():
            given = dict(differences).get((other, metric), 2.0)
            found = given if isinstance(given, tuple) else (given, given - half, given + half, p)
            rows.append(
                {"method": "dive", "against": other, "metric": metric}
                | dict(zip(("difference", "low", "high", "p"), found, strict=True))
            )
    scores = {}
    for method in methods:
        each = {metric: dict(values).get((method, metric), 50.0) for metric in metrics}
        found = {metric: {"value": value, "low": value - half, "high": value + half} for metric, value in each.items()}
        scores[method] = {"seeds": 3, "metrics": {**found, "unique_report_rate": {"value": 0.5}}}
    return {
        "n": 256,
        "patients": 200,
        "seeds": [0, 1, 2],
        "methods": scores,
        "comparisons": rows,
        "contrasts": dict(contrasts),
        "archives": {},
    }


def write(folder, **settings):
    """Write dataset -> comparison as JSON; returns (dataset, backbone) -> path."""
    paths = {}
    for dataset, found in settings.items():
        path = folder / f"{dataset}.json"
        path.write_text(json.dumps(found))
        paths[dataset, "tiny"] = str(path)
    return paths
