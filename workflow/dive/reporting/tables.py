"""The paper's main table: in LaTeX, as CSV, and as text for a terminal.

As a module it prints the table: ``python -m dive.reporting.tables results/tables/main.csv``.
"""

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dive.files import atomic_path, read_json
from dive.reporting.latex import escape_latex, float_table, printed, shortstack, stacked
from dive.scores.multiplicity import family

GROUPS = {
    "control": "Control",
    "reference": "Reference",
    "published": "Published",
    "ours": "Ours",
    "transfer": "Transfer",
    "ablation": "Ablation",
}
"""Groups of rows in the order of the table, with their headings."""

RANKED = ("published", "ours")
"""Best and second best are marked among these groups. Controls, the teacher and ablations do not compete."""


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Attributes:
        name: key in ``summary.json`` and column of the CSV.
        heading: lines of the heading in LaTeX.
        text: heading on the terminal.
        decimals: digits after the point.
        ranked: whether best and second best are marked (higher is better).
    """

    name: str
    heading: tuple[str, ...]
    text: str
    decimals: int = 1
    ranked: bool = True


METRICS = (
    Metric("bleu4", ("BLEU-4",), "BLEU-4"),
    Metric("rouge_l", ("ROUGE-L",), "ROUGE-L"),
    Metric("radgraph_f1", ("RadGraph", "F1"), "RadGraph"),
    Metric("chexbert_f1", ("CheXbert", "F1"), "CheXbert"),
    Metric("lexicon_label_f1", ("lexicon", "label F1"), "lex.label"),
    Metric("lexicon_graph_f1", ("lexicon", "graph F1"), "lex.graph"),
    Metric("stop_rate", ("stop", "rate"), "stop rate", 2, ranked=False),
    Metric("length_ratio", ("length", "ratio"), "length", 2, ranked=False),
)

CONVENTIONS = {
    "official": "official split",
    "own_split": "own split by patient",
    "official_valid": "official validation set as test",
}
"""Text of each ``selection.convention`` in the notes. Scores under different conventions are not comparable."""

IDENTITY = (
    *("dataset", "dataset_title", "backbone", "backbone_title", "method", "title", "group", "n", "seeds"),
    "patients",
)
"""Leading columns of the CSV. ``seeds`` is the number of seeds behind mean and sd, ``patients`` the number of patients
behind the intervals."""

PARTS = ("", "_sd", "_low", "_high", "_resolved")
"""Columns of a metric: mean, standard deviation over seeds, interval over patients and seeds, and, in rows of published
methods, whether ours is resolved from them (1 above, -1 below, 0 neither)."""

ARCHIVES = {"radgraph_f1": "RadGraph F1", "chexbert_f1": "CheXbert F1"}
"""Metrics that need the weights of a model. Their convention names the model's archive, and the notes repeat it."""

WIDTH = 120
"""Width of the terminal for :func:`format_table`, in characters."""

Row = dict[str, Any]
Scores = Mapping[tuple[str, str, str], str]
Comparisons = Mapping[tuple[str, str], str]


def collect_rows(scores: Scores, layout: Mapping[str, Any], comparisons: Comparisons | None = None) -> list[Row]:
    """Read every ``summary.json`` into rows ordered by dataset, backbone, group and the layout's methods.

    Args:
        scores: (dataset, backbone, method) -> folder of the scores.
        layout: see :func:`write_tables`.
        comparisons: (dataset, backbone) -> JSON of :func:`dive.scores.significance.compare_methods`, for intervals.

    Raises:
        ValueError: if a name is not in the layout, a group is unknown, or two methods of one dataset and
            backbone were scored on different numbers of studies.
    """
    for kind, position in (("datasets", 0), ("backbones", 1), ("methods", 2)):
        unknown = sorted({key[position] for key in scores} - set(layout[kind]))
        if unknown:
            raise ValueError(f"the table's layout does not know the {kind} {', '.join(unknown)}")
    methods = layout["methods"]
    for name, method in methods.items():
        if method["group"] not in GROUPS:
            raise ValueError(f"methods.{name}.group is {method['group']!r}; the table knows {', '.join(GROUPS)}")
    ordered = sorted(methods, key=lambda name: list(GROUPS).index(methods[name]["group"]))
    rows = []
    for dataset in layout["datasets"]:
        for backbone in layout["backbones"]:
            block: list[Row] = []
            judged = read_json(comparisons[dataset, backbone]) if (dataset, backbone) in (comparisons or {}) else None
            resolved = resolve_published(judged, layout) if judged else {}
            for method in ordered:
                if (dataset, backbone, method) not in scores:
                    continue
                summary = read_json(Path(scores[dataset, backbone, method]) / "summary.json")
                metrics = summary["metrics"]
                row: Row = {
                    "dataset": dataset,
                    "dataset_title": layout["datasets"][dataset]["title"],
                    "backbone": backbone,
                    "backbone_title": layout["backbones"][backbone]["title"],
                    "method": method,
                    "title": methods[method]["title"],
                    "group": methods[method]["group"],
                    "n": metrics["bleu4"]["n"],
                    "seeds": len(metrics["bleu4"]["seeds"]),
                    "patients": judged["patients"] if judged else None,
                }
                for metric in METRICS:
                    row[metric.name] = metrics[metric.name]["mean"]
                    row[f"{metric.name}_sd"] = metrics[metric.name]["sd"]
                    found = judged["methods"][method]["metrics"].get(metric.name, {}) if judged else {}
                    row[f"{metric.name}_low"], row[f"{metric.name}_high"] = found.get("low"), found.get("high")
                    row[f"{metric.name}_resolved"] = resolved.get((method, metric.name))
                    if metric.name in ARCHIVES:
                        said = summary.get("conventions", {}).get(metric.name)
                        row[f"{metric.name}_archive"] = said if row[metric.name] is not None else None
                block.append(row)
            sizes = {row["n"] for row in block}
            if len(sizes) > 1:
                each = ", ".join(f"{row['method']} {row['n']}" for row in block)
                raise ValueError(f"{dataset} x {backbone}: methods were scored on different studies ({each})")
            rows.extend(block)
    return rows


def resolve_published(comparison: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """(published method, metric) -> whether ours is resolved from it; the family is the block's ranked metrics."""
    groups = {group: [name for name, entry in layout["methods"].items() if entry["group"] == group] for group in RANKED}
    if len(groups["ours"]) != 1:
        return {}  # with two of ours a mark would not say which
    ranked = [metric.name for metric in METRICS if metric.ranked]
    alpha = layout["significance"]["alpha"]
    found = family(comparison, groups["ours"][0], groups["published"], ranked, alpha)
    return {key: row["resolved"] for key, row in found.items()}


def write_csv(rows: Iterable[Row], path: str) -> None:
    """Write rows with four decimals; an absent value is an empty cell, never a zero."""
    columns = [
        *IDENTITY,
        *(f"{metric.name}{part}" for metric in METRICS for part in PARTS),
        *(f"{name}_archive" for name in ARCHIVES),
    ]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            cells = (row.get(column) for column in columns)
            writer.writerow(
                "" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else cell for cell in cells
            )


def read_csv(path: str) -> list[Row]:
    """Read what :func:`write_csv` wrote; empty cells become None."""
    with Path(path).open(newline="", encoding="utf-8") as handle:
        rows: list[Row] = list(csv.DictReader(handle))
    for row in rows:
        row["n"], row["seeds"] = int(row["n"]), int(row["seeds"])
        for metric in METRICS:
            for name in (f"{metric.name}{part}" for part in PARTS):
                row[name] = float(row[name]) if row[name] else None
    return rows


def blocks(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Group rows by (dataset, backbone), in their order."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row["dataset"], row["backbone"]), []).append(row)
    return grouped


def measured(rows: Sequence[Row]) -> list[Metric]:
    """The metrics that at least one row has; the others get no column."""
    return [metric for metric in METRICS if any(row[metric.name] is not None for row in rows)]


def marks(block: Iterable[Row]) -> dict[tuple[str, str], str]:
    """Say which (method, metric) of one block is ``best`` or ``second`` among RANKED methods.

    Values are compared as printed: those that print alike are marked alike. A lone method is not marked.
    """
    found = {}
    for metric in METRICS:
        values = {
            row["method"]: round(row[metric.name], metric.decimals)
            for row in block
            if metric.ranked and row["group"] in RANKED and row[metric.name] is not None
        }
        levels = sorted(set(values.values()), reverse=True)
        if len(values) < 2:
            continue
        for method, value in values.items():
            if value == levels[0]:
                found[method, metric.name] = "best"
            elif value == levels[1] and sum(other == levels[0] for other in values.values()) == 1:
                found[method, metric.name] = "second"
    return found


def _latex_cell(row: Row, metric: Metric, mark: str | None) -> str:
    """Two cells: the number, which stays aligned, and its interval, or its spread where there is no interval."""
    value, spread, low = row[metric.name], row[f"{metric.name}_sd"], row[f"{metric.name}_low"]
    if value is None:
        return "&"
    text = printed(value, metric.decimals)
    text = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}.get(mark or "", text)
    if row[f"{metric.name}_resolved"]:
        text += r"\rlap{$^{\dagger}$}"
    if low is not None and metric.ranked:
        gap = r"\hspace{.35em}" if row[f"{metric.name}_resolved"] else ""
        return f"{text}&{gap}{stacked(low, row[f'{metric.name}_high'], metric.decimals)}"
    return f"{text}&" if spread is None or low is not None else rf"{text}&$_{{\pm {spread:.{metric.decimals}f}}}$"


def describe_selection(selection: Mapping[str, Any]) -> str:
    """Say which studies a dataset's rows stand for: convention of the split, section, unit, views."""
    convention = CONVENTIONS[selection["convention"]]
    if selection["convention"] == "own_split" and selection.get("fractions"):
        shares = selection["fractions"]
        convention += f" ({100 * shares['validate']:g} % validation, {100 * shares['test']:g} % test)"
    if selection["convention"] == "official_valid" and selection.get("fractions"):
        convention += f" (validation: {100 * selection['fractions']['validate']:g} % of the training patients)"
    section = {"both": "findings and impression"}.get(selection["section"], selection["section"])
    return f"{convention}, {section}, one row per {selection['unit']}, {selection['views']} views"


def setting_notes(rows: Sequence[Row], layout: Mapping[str, Any]) -> list[str]:
    """Sentences that every table needs: K, n, seeds and patients, archives, and what the datasets' rows stand for.

    Args:
        rows: with dataset_title, backbone_title, n, seeds and patients, and the archives where there are any.
        layout: see :func:`write_tables`.
    """
    sizes = {row["dataset_title"]: (row["n"], row.get("patients")) for row in rows}
    each = [f"{title}: n = {n} test studies{f' of {p} patients' if p else ''}" for title, (n, p) in sizes.items()]
    notes = [f"The teacher sees K = {layout['shots']} demonstrations (image and report). {'; '.join(each)}."]
    for name, title in ARCHIVES.items():
        said = dict.fromkeys(row[f"{name}_archive"] for row in rows if row.get(f"{name}_archive"))
        notes += [f"{title}: {text.rstrip('.')}." for text in said]
    for kind in ("datasets", "backbones"):
        for entry in layout[kind].values():
            if any(row[f"{kind[:-1]}_title"] == entry["title"] for row in rows):
                said = [describe_selection(entry["selection"])] if entry.get("selection") else []
                said += [entry["note"].rstrip(".")] if entry.get("note") else []
                notes += [f"{entry['title']}: {'; '.join(said)}."] if said else []
    return notes


NORMALISER = (
    "BLEU-4 is corpus BLEU on lower-case text with separated punctuation. ROUGE-L is the F-score of rouge-score with "
    "stemming."
)


def seed_note(rows: Sequence[Row], layout: Mapping[str, Any]) -> str:
    """Which seeds a number is the mean over."""
    most = max(row["seeds"] for row in rows)
    if most <= 1:
        return "One seed."
    named = f" ({', '.join(map(str, layout['seeds']))})" if layout.get("seeds") else ""
    return f"Scores are means over {most} seeds{named}. A method without randomness has a single run."


def interval_note(layout: Mapping[str, Any], where: str = "Each score or difference is followed by its") -> str:
    """What an interval is; ``where`` begins the sentence and says where to see the interval."""
    said, seeds = layout["significance"], len(layout.get("seeds", ()))
    few = f" With {seeds} seeds it shows {seeds - 1}/{seeds} of the variance between seeds." if seeds > 1 else ""
    return (
        f"{where} {100 * (1 - said['alpha']):g} % interval: a paired bootstrap over patients and seeds with "
        f"{said['resamples']:,} resamples.{few}"
    )


def table_notes(rows: list[Row], layout: Mapping[str, Any], page: bool = False) -> list[str]:
    """Sentences below the table: the data, what the marks mean, what was not measured, then the layout's own notes.

    Args:
        rows: of the table.
        layout: see :func:`write_tables`.
        page: whether the notes are for the HTML page. The page shows the standard deviation after a number and the
            interval on hovering; the LaTeX table shows the interval after a score.
    """
    settings, *others = setting_notes(rows, layout)
    judged = any(row[f"{metric.name}_low"] is not None for row in rows for metric in METRICS)
    several = max(row["seeds"] for row in rows) > 1
    notes = [settings, seed_note(rows, layout)]
    if page and several:
        notes.append("The number after ± is the standard deviation over seeds.")
    if judged:
        beside = "Each score, except stop rate and length ratio, is followed by its"
        notes.append(interval_note(layout, "Point at a number to see its" if page else beside))
        if any(row[f"{metric.name}_resolved"] is not None for row in rows for metric in METRICS):
            notes.append(
                "† marks a published method whose difference from ours is resolved: paired approximate randomization "
                f"over patients gives p < {layout['significance']['alpha']:g} after Holm's correction within the "
                "block, and the interval of the difference excludes 0."
            )
    elif several and not page:
        notes.append("The subscript is the standard deviation over seeds.")
    notes += [
        "Bold marks the best score and underlining the second best, among published methods and ours. Controls, "
        "references (the in-context teacher is one) and ablations are not ranked; nor are stop rate and length ratio.",
        f"{NORMALISER} Stop rate is the share of reports that end with an end token and not at the limit on new "
        "tokens. Length ratio is the number of generated words divided by the number of reference words.",
    ]
    if any(row["group"] == "transfer" for row in rows):
        notes.append("In a transfer row the adapter was trained and selected on the other dataset only.")
    if absent := absent_models(rows):
        notes.append(f"{unmeasured_note(absent)} The lexicon columns are computed by rules and do not replace them.")
    if any(row["stop_rate"] is None for row in rows):
        every = all(row["stop_rate"] is None for row in rows)
        which = "The stop rate was not measured" if every else "An empty stop rate was not measured"
        notes.append(f"{which}, because a file of reports does not say how each report ended.")
    return [*notes, *others, *layout.get("notes", ())]


def absent_models(rows: Sequence[Row]) -> list[str]:
    """Titles of the metrics that need the weights of a model and that no row has."""
    return [title for name, title in ARCHIVES.items() if all(row[name] is None for row in rows)]


def unmeasured_note(absent: Sequence[str]) -> str:
    """Which scores were not measured, and why."""
    return (
        f"{' and '.join(absent)} {'was' if len(absent) == 1 else 'were'} not measured, because the weights of "
        f"{'its model' if len(absent) == 1 else 'their models'} were not given."
    )


def latex_table(rows: list[Row], layout: Mapping[str, Any]) -> str:
    """Render the rows as one ``table`` float, with the columns that were measured."""
    columns = measured(rows)
    lines = [" & ".join(["", "", *(shortstack(metric.heading) for metric in columns)]) + r" \\"]
    for block in blocks(rows).values():
        marked = marks(block)
        lines += block_heading(block[0], 2 + 2 * len(columns))
        group = None
        for row in block:
            first = row["group"] != group
            if first and group is not None:
                lines.append(r"\addlinespace[2pt]")
            group = row["group"]
            cells = [_latex_cell(row, metric, marked.get((row["method"], metric.name))) for metric in columns]
            label = rf"\textit{{{GROUPS[group]}}}" if first else ""
            lines.append(" & ".join([label, escape_latex(row["title"]), *cells]) + r" \\")
    caption = layout.get("caption", "Chest X-ray report generation.")
    specification = rf"@{{}}ll*{{{len(columns)}}}{{r@{{}}l}}@{{}}"
    return float_table(layout.get("label", "main"), caption, specification, lines, table_notes(rows, layout))


def block_heading(row: Row, width: int) -> list[str]:
    """Lines that open the block of a dataset and backbone in a table of ``width`` columns."""
    heading = escape_latex(f"{row['dataset_title']}, {row['backbone_title']}")
    return [r"\midrule", rf"\multicolumn{{{width}}}{{@{{}}l}}{{\textbf{{{heading}}}}} \\", r"\addlinespace[2pt]"]


def write_tables(
    scores: Scores, layout: Mapping[str, Any], out_tex: str, out_csv: str, comparisons: Comparisons | None = None
) -> None:
    """Write the main table in LaTeX and its CSV.

    Args:
        scores: (dataset, backbone, method) -> folder with ``summary.json``.
        layout: the texts of the table, in the order of its rows:
            ``datasets`` and ``backbones``: name -> {title, note (optional, printed below the table)}, datasets also
            with their ``selection`` (section, unit, views, convention, fractions), which the notes name;
            ``methods``: name -> {title, group}; ``shots``: K; ``significance``: {alpha, resamples} of the intervals;
            ``seeds``, ``caption``, ``label`` and ``notes`` (sentences): optional.
        out_tex: the LaTeX table; needs booktabs and graphicx.
        out_csv: the same numbers with four decimals, one row per method, with the columns of all metrics.
        comparisons: (dataset, backbone) -> JSON of the comparisons; without it there are no intervals.
    """
    rows = collect_rows(scores, layout, comparisons)
    if not rows:
        raise ValueError("no scores were given, so there is no table to write")
    write_csv(rows, out_csv)
    with atomic_path(out_tex) as temporary:
        temporary.write_text(latex_table(rows, layout), encoding="utf-8")


def format_table(path: str) -> str:
    """Render the CSV at ``path`` as text of at most WIDTH columns: ``*`` marks the best, ``+`` the second best."""
    rows = read_csv(path)
    columns = measured(rows)
    absent = absent_models(rows)
    # A blank, a mark, the number, then its spread on the left of a field of its own.
    fields = [(8, 6) if metric.decimals == 1 else (6, 5) for metric in columns]
    if sum(map(sum, fields)) > 96:
        fields = [(7, 5) if metric.decimals == 1 else (6, 5) for metric in columns]
    room = WIDTH - sum(map(sum, fields))
    name_width = min(room, max(len(row["title"]) for row in rows) + 1)
    lines = []
    for block in blocks(rows).values():
        marked = marks(block)
        head = "".join(
            f"{metric.text:>{number + spread - 2}}  " for metric, (number, spread) in zip(columns, fields, strict=True)
        )
        lines.append(f"{block[0]['dataset_title']}, {block[0]['backbone_title']} (n = {block[0]['n']})")
        lines += [(" " * name_width + head).rstrip(), "-" * (name_width + sum(map(sum, fields)))]
        group = block[0]["group"]
        for row in block:
            if row["group"] != group and not {row["group"], group} <= set(RANKED):
                lines.append("")
            group = row["group"]
            cells = []
            for metric, (number, spread) in zip(columns, fields, strict=True):
                value, error = row[metric.name], row[f"{metric.name}_sd"]
                mark = {"best": "*", "second": "+"}.get(marked.get((row["method"], metric.name), ""), "")
                shown = "" if value is None else f"{mark}{value:.{metric.decimals}f}"
                around = "" if error is None else f"±{error:.{metric.decimals}f}"
                cells.append(f"{shown:>{number}}{around:<{spread}}")
            lines.append((f"{row['title'][: name_width - 1]:<{name_width}}" + "".join(cells)).rstrip())
        lines.append("")
    seeds = max(row["seeds"] for row in rows)
    if seeds > 1:
        lines.append(f"Mean ± standard deviation over {seeds} seeds. A row without ± has a single run.")
    lines.append("* marks the best score and + the second best, among published methods and ours.")
    if absent:
        lines.append(unmeasured_note(absent))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dive.reporting.tables results/tables/main.csv")
    sys.stdout.write(format_table(sys.argv[1]))
