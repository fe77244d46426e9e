"""What each change of our method did: the differences of a grid's variants to the first of ours, for a terminal."""

from pathlib import Path

from dive.files import read_json
from dive.reporting.latex import printed
from dive.reporting.tables import METRICS, Row, blocks, read_csv
from dive.scores.multiplicity import family

VARIANTS = ("ours", "ablation")
"""Groups of the table whose rows are changes of our method; the others are compared in the table of significance."""


def describe_changes(results: str, experiment: str) -> str:
    """Say for each setting and variant how its scores differ from our method's.

    Args:
        results: folder of the results.
        experiment: name of a grid that was run.

    Returns:
        Lines with the difference of each metric, its interval, and its p value, which is corrected over the variants
        and metrics of a setting. Empty where a grid has no variants.
    """
    table = Path(results) / f"tables/{experiment}.csv"
    lines: list[str] = []
    for (dataset, backbone), rows in blocks(read_csv(str(table))).items():
        comparison = Path(results) / "comparisons" / experiment / dataset / f"{backbone}.json"
        variants = [row for group in VARIANTS for row in rows if row["group"] == group]
        if len(variants) > 1 and variants[0]["group"] == "ours" and comparison.is_file():
            lines += describe_setting(variants, read_json(comparison))
    return "\n".join([*lines, ""]) if lines else ""


def describe_setting(variants: list[Row], comparison: dict) -> list[str]:
    """Lines of one dataset and backbone; the first variant is the one that all others are compared with."""
    base, *others = variants
    alpha = comparison["provenance"]["settings"]["significance"]["alpha"]
    metrics = [metric for metric in METRICS if metric.ranked]
    names = [row["method"] for row in others]
    judged = family(comparison, base["method"], names, [metric.name for metric in metrics], alpha)
    shown = [metric for metric in metrics if any((name, metric.name) in judged for name in names)]
    width = max(len(row["title"]) for row in others)
    cells = []
    for row in others:
        cells.append([row["title"].ljust(width)])
        for metric in shown:
            found = judged.get((row["method"], metric.name))
            if found is None:
                cells[-1].append("")
                continue
            # The comparison is ours - variant; a reader wants what the change added.
            change, low, high = (-found[key] for key in ("difference", "high", "low"))
            ends = ", ".join(printed(end, metric.decimals, signed=True) for end in (low, high))
            p = "<.001" if found["p_holm"] < 0.001 else f"{found['p_holm']:.3f}".lstrip("0")
            mark = "*" if found["resolved"] else " "
            cells[-1].append(f"{printed(change, metric.decimals, signed=True):>5} [{ends}] {p:>5}{mark}")
    widths = [max(len(metric.text), *(len(line[i]) for line in cells)) for i, metric in enumerate(shown, start=1)]
    head = "  ".join(metric.text.ljust(room) for metric, room in zip(shown, widths, strict=True))
    return [
        f"{base['dataset_title']}, {base['backbone_title']}: difference to {base['title']} "
        f"[{100 * (1 - alpha):g} % interval] and p",
        f"{'':<{width}}  {head}".rstrip(),
        *(
            "  ".join([line[0], *(cell.ljust(room) for cell, room in zip(line[1:], widths, strict=True))]).rstrip()
            for line in cells
        ),
        "",
    ]
