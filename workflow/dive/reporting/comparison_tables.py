"""The other tables: termination, significance, the 2x2, and single mechanisms, each in LaTeX and as CSV.

All read the output of :func:`dive.scores.significance.compare_methods`, so that no number is computed twice.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dive.files import atomic_path, check_files, read_json
from dive.reporting.ablations import changes, find_cells
from dive.reporting.latex import escape_latex, float_table, printed, shortstack, stacked
from dive.reporting.tables import (
    GROUPS,
    METRICS,
    NORMALISER,
    Metric,
    Row,
    block_heading,
    interval_note,
    seed_note,
    setting_notes,
    unmeasured_note,
)
from dive.scores.multiplicity import family

TERMINATION = (
    Metric("stop_rate", ("stop", "rate"), "stop rate", 2, ranked=False),
    Metric("length_ratio", ("length", "ratio"), "length", 2, ranked=False),
    Metric("over_length_rate", ("over-", "long"), "over-long", 2, ranked=False),
    Metric("under_length_rate", ("under-", "long"), "under-long", 2, ranked=False),
    Metric("premature_stop_rate", ("premature", "stop"), "premature", 2, ranked=False),
    Metric("repeated_4gram_rate", ("repeated", "4-grams"), "repeated", 2, ranked=False),
    Metric("unique_report_rate", ("unique", "reports"), "unique", 2, ranked=False),
)
"""Columns of the termination table. All are rates or ratios, and none is ranked."""

RANKED = tuple(metric for metric in METRICS if metric.ranked)

SHARES = ("other", "pathology", "term")
"""Kinds of tokens whose share of the cross-entropy's weight ``training.csv`` has as ``share_<kind>``."""

CELLS = {
    "dynamic_weighted": "dynamic, decisive weights (ours)",
    "static_weighted": "static, decisive weights",
    "dynamic_uniform": "dynamic, uniform weights",
    "static_uniform": "static, uniform weights",
}

EFFECT_TITLES = {
    "dynamic, weighted": "dynamic - static, decisive weights",
    "dynamic, uniform": "dynamic - static, uniform weights",
    "weighted, dynamic": "decisive - uniform, dynamic",
    "weighted, static": "decisive - uniform, static",
    "interaction": "interaction",
    "dynamic": "dynamic - static, mean of both",
    "weighted": "decisive - uniform, mean of both",
}
"""Effects as the LaTeX table shows them, in its order; the last two are in the CSV only."""

Block = dict[str, Any]
Cell = Mapping[str, float] | None


def write_comparison_table(
    table: str,
    comparisons: Mapping[tuple[str, str], str],
    layout: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
    adapters: Mapping[tuple[str, str, str, int], str],
    out_tex: str,
    out_csv: str,
) -> None:
    """Write one of the tables of an experiment.

    Args:
        table: a key of ``TABLES``.
        comparisons: (dataset, backbone) -> JSON of :func:`dive.scores.significance.compare_methods`.
        layout: as of :func:`dive.reporting.tables.write_tables`, with ``significance``.
        methods: name -> settings, of the experiment's grid.
        adapters: (dataset, backbone, method, seed) -> folder of the adapter, whose ``training.csv`` has the shares;
            only the table of mechanisms reads it.
        out_tex: the LaTeX table; needs booktabs and graphicx.
        out_csv: the same numbers, one row each.
    """
    blocks = [
        {
            **read_json(path),
            "dataset": dataset,
            "backbone": backbone,
            "dataset_title": layout["datasets"][dataset]["title"],
            "backbone_title": layout["backbones"][backbone]["title"],
        }
        for (dataset, backbone), path in comparisons.items()
    ]
    for block in blocks:
        block.update({f"{name}_archive": said for name, said in block["archives"].items()})
    caption, columns, lines, notes, rows = TABLES[table](blocks, layout, methods, adapters)
    settings, *others = setting_notes(blocks, layout)
    seeds = seed_note([{"seeds": max(1, len(block["seeds"]))} for block in blocks], layout)
    label = f"{layout.get('label', 'main')}-{table}"
    with atomic_path(out_tex) as temporary:
        text = float_table(label, caption, columns, lines, [settings, seeds, interval_note(layout), *notes, *others])
        temporary.write_text(text, encoding="utf-8")
    with atomic_path(out_csv) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(rows[0] if rows else ["empty"])
        writer.writerows([_plain(value) for value in row.values()] for row in rows)


def _plain(value: Any) -> Any:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else value


def _identity(block: Block, method: str, layout: Mapping[str, Any]) -> Row:
    return {
        **{key: block[key] for key in ("dataset", "backbone", "n", "patients")},
        "method": method,
        "title": layout["methods"][method]["title"],
    }


def _names(layout: Mapping[str, Any], *groups: str) -> list[str]:
    """Methods of some groups, ordered by group, then as the configuration has them."""
    methods = layout["methods"]
    return [name for group in GROUPS if group in groups for name in methods if methods[name]["group"] == group]


def _measured(blocks: Sequence[Block], metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics that some method of some block has."""
    names = {name for block in blocks for entry in block["methods"].values() for name in entry["metrics"]}
    return [metric for metric in metrics if metric.name in names]


def _absent_note(blocks: Sequence[Block], metrics: Sequence[Metric]) -> list[str]:
    absent = [metric for metric in metrics if metric not in _measured(blocks, metrics)]
    titles = [" ".join(metric.heading) for metric in absent]
    return [f"{unmeasured_note(titles)} The lexicon columns do not replace them."] if titles else []


def _cell(found: Cell, metric: Metric, signed: bool = False, strong: bool = False) -> str:
    """Two cells of LaTeX: the number, and its interval."""
    if not found:
        return "&"
    text = printed(found["value"], metric.decimals, signed)
    text = rf"$\mathbf{{{text}}}$" if strong else f"${text}$"
    if found.get("low") is None:
        return f"{text}&"
    return f"{text}&{stacked(found['low'], found['high'], metric.decimals, signed)}"


def _heads(metrics: Sequence[Metric]) -> list[str]:
    return [shortstack(metric.heading) for metric in metrics]


def _line(*cells: str) -> str:
    return " & ".join(cells) + r" \\"


Made = tuple[str, str, list[str], list[str], list[Row]]


def tabulate_termination(blocks: Sequence[Block], layout: Mapping[str, Any], methods: Any, adapters: Any) -> Made:
    """For every method: do its reports end, have the length of the reference, repeat themselves or each other?"""
    metrics = _measured(blocks, TERMINATION)
    lines, rows = [_line("", "", *_heads(metrics))], []
    for block in blocks:
        lines += block_heading(block, 2 + 2 * len(metrics))
        group = None
        for method in _names(layout, *GROUPS):
            if method not in block["methods"]:
                continue
            found = block["methods"][method]["metrics"]
            first = layout["methods"][method]["group"] != group
            lines += [r"\addlinespace[2pt]"] * (first and group is not None)
            group = layout["methods"][method]["group"]
            heading = rf"\textit{{{GROUPS[group]}}}" if first else ""
            cells = [_cell(found.get(metric.name), metric) for metric in metrics]
            lines.append(_line(heading, escape_latex(layout["methods"][method]["title"]), *cells))
            row = {**_identity(block, method, layout), "seeds": block["methods"][method]["seeds"]}
            for metric in metrics:
                value = found.get(metric.name, {})
                row |= {metric.name: value.get("value")}
                row |= {f"{metric.name}_{end}": value.get(end) for end in ("low", "high")}
            rows.append(row)
    notes = [
        "Stop rate is the share of reports that end with an end token and not at the limit on new tokens. Length ratio "
        "is the number of generated words divided by the number of reference words, over the corpus. A report is "
        "over-long if it has more than 1.5 times the words of its reference, and under-long if it has less than 1/1.5 "
        "times as many. A premature stop is an under-long report that ends with an end token. Repeated 4-grams is the "
        "mean of 1 - distinct / all. Unique reports is distinct texts / reports; it has no interval, because a "
        "resample repeats reports."
    ]
    columns = rf"@{{}}ll*{{{len(metrics)}}}{{r@{{}}l}}@{{}}"
    return "Termination, length and repetition.", columns, lines, notes, rows


def tabulate_significance(blocks: Sequence[Block], layout: Mapping[str, Any], methods: Any, adapters: Any) -> Made:
    """Differences of ours to each published method: interval and corrected p value of every ranked metric."""
    metrics, alpha = _measured(blocks, RANKED), layout["significance"]["alpha"]
    heads = [rf"\multicolumn{{3}}{{c}}{{{escape_latex(' '.join(metric.heading))}}}" for metric in metrics]
    under = [r"\multicolumn{2}{c}{$\Delta$} & $p$"] * len(metrics)
    rules = " ".join(rf"\cmidrule(lr){{{3 * i + 2}-{3 * i + 4}}}" for i in range(len(metrics)))
    lines, rows = [_line("", *heads), rules, _line("", *under)], []
    published = _names(layout, "published")
    for block in blocks:
        lines += block_heading(block, 1 + 3 * len(metrics))
        for ours in _names(layout, "ours"):
            found = family(block, ours, published, [metric.name for metric in metrics], alpha)
            for other in published:
                if other not in block["methods"]:
                    continue
                cells = []
                for metric in metrics:
                    row = found.get((other, metric.name))
                    if row is None:
                        cells += ["&", ""]
                        continue
                    value = {"value": row["difference"], "low": row["low"], "high": row["high"]}
                    cells += [_cell(value, metric, signed=True, strong=bool(row["resolved"])), _p_value(row["p_holm"])]
                    rows.append(
                        {
                            **_identity(block, ours, layout),
                            "against": other,
                            "metric": metric.name,
                            **{key: row[key] for key in ("difference", "low", "high", "p", "p_holm", "resolved")},
                        }
                    )
                title = f"{layout['methods'][ours]['title']} - {layout['methods'][other]['title']}"
                lines.append(_line(escape_latex(title), *cells))
    notes = [
        "p is from two-sided paired approximate randomization over patients "
        f"({layout['significance']['resamples']:,} trials), with Holm's correction within a block. Bold marks a "
        f"resolved difference: the corrected p is below {alpha:g} and the interval excludes 0. {NORMALISER}",
        *_absent_note(blocks, RANKED),
    ]
    columns = rf"@{{}}l*{{{len(metrics)}}}{{r@{{}}lr}}@{{}}"
    return "Differences to each published method.", columns, lines, notes, rows


def _p_value(p: float) -> str:
    return r"\scriptsize$<$.001" if p < 0.001 else rf"\scriptsize {p:.3f}".replace("0.", ".", 1)


def tabulate_factorial(
    blocks: Sequence[Block], layout: Mapping[str, Any], methods: Mapping[str, Any], adapters: Any
) -> Made:
    """The 2x2 of dynamic or static steering and decisive or uniform weights: its cells, effects and interaction."""
    metrics = [metric for metric in METRICS if metric in _measured(blocks, METRICS)]
    lines, rows = [_line("", *_heads(metrics))], []
    for block in blocks:
        lines += block_heading(block, 1 + 2 * len(metrics))
        for ours in _names(layout, "ours"):
            cells = find_cells(methods, ours)
            if cells is None:
                continue
            base = {key: block[key] for key in ("dataset", "backbone", "n", "patients")} | {"ours": ours}
            for cell, method in cells.items():
                found = block["methods"][method]["metrics"]
                lines.append(_line(CELLS[cell], *(_cell(found.get(metric.name), metric) for metric in metrics)))
                rows += _long({**base, "kind": "cell", "row": cell, "method": method}, found, metrics)
            lines.append(r"\addlinespace[2pt]")
            for effect, title in EFFECT_TITLES.items():
                found = block["contrasts"][f"{ours}: {effect}"]
                rows += _long({**base, "kind": "effect", "row": effect, "method": None}, found, metrics)
                if "," in effect or effect == "interaction":
                    shown = []
                    for metric in metrics:
                        value = found.get(metric.name)
                        strong = bool(value) and (value["low"] > 0 or value["high"] < 0)
                        shown.append(_cell(value, metric, signed=True, strong=strong))
                    head = rf"\textit{{{title}}}" if effect == "interaction" else escape_latex(title)
                    lines.append(_line(head, *shown))
    notes = [
        "The interaction is (dynamic - static) with decisive weights minus (dynamic - static) with uniform weights. "
        "Bold marks an effect whose interval excludes 0. Effects are not corrected for multiple comparisons. "
        f"{NORMALISER}",
        *_absent_note(blocks, RANKED),
    ]
    columns = rf"@{{}}l*{{{len(metrics)}}}{{r@{{}}l}}@{{}}"
    return "State-conditioned steering and decisive-token weights: the 2x2.", columns, lines, notes, rows


def _long(identity: Row, found: Mapping[str, Any], metrics: Sequence[Metric]) -> Iterator[Row]:
    for metric in metrics:
        if value := found.get(metric.name):
            yield {**identity, "metric": metric.name, **{key: value.get(key) for key in ("value", "low", "high")}}


def read_shares(folders: Sequence[str]) -> dict[str, float]:
    """Shares of the kinds of tokens in the cross-entropy's weight, 0..1: mean over steps, then over runs."""
    runs: dict[str, list[float]] = {kind: [] for kind in SHARES}
    for folder in folders:
        check_files(folder, "training.csv")
        with (Path(folder) / "training.csv").open(newline="", encoding="utf-8") as handle:
            steps = list(csv.DictReader(handle))
        for kind in SHARES:
            if steps and steps[0].get(f"share_{kind}"):
                runs[kind].append(fmean(float(step[f"share_{kind}"]) for step in steps))
    return {kind: fmean(values) for kind, values in runs.items() if values}


def describe_changes(settings: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """The settings in which a method differs from ours: ``rank 16 → 0``."""

    def shown(value: Any) -> str:
        return "none" if value is None else f"{value:g}" if isinstance(value, float | int) else str(value)

    return ", ".join(
        f"{key.rpartition('.')[2]} {shown(old)} → {shown(new)}" for key, (old, new) in changes(settings, base).items()
    )


def tabulate_mechanisms(
    blocks: Sequence[Block],
    layout: Mapping[str, Any],
    methods: Mapping[str, Any],
    adapters: Mapping[tuple[str, str, str, int], str],
) -> Made:
    """Ours and each ablation: what it changes, what its loss weighs, and its difference to ours in every metric."""
    metrics, alpha = _measured(blocks, METRICS), layout["significance"]["alpha"]
    ablations = _names(layout, "ablation")
    heads = [r"\shortstack{\strut other\strut}", r"\shortstack{\strut path.\strut}", r"\shortstack{\strut TERM\strut}"]
    weight = r"\multicolumn{3}{c}{weight of the loss, \%}"
    lines = [
        _line("", weight, *([r"\multicolumn{2}{c}{}"] * len(metrics))),
        r"\cmidrule(lr){2-4}",
        _line("", *heads, *_heads(metrics)),
    ]
    rows, changed = [], {}
    for block in blocks:
        lines += block_heading(block, 4 + 2 * len(metrics))
        for ours in _names(layout, "ours"):
            judged = family(block, ours, ablations, [metric.name for metric in RANKED], alpha)
            plain = {(row["against"], row["metric"]): row for row in block["comparisons"] if row["method"] == ours}
            for method in [ours, *ablations]:
                if method not in block["methods"]:
                    continue
                folders = [
                    folder
                    for key, folder in adapters.items()
                    if key[:3] == (block["dataset"], block["backbone"], method)
                ]
                shares = read_shares(folders)
                told = "" if method == ours else describe_changes(methods[method], methods[ours])
                if told:
                    changed[method] = told
                cells = [f"{100 * shares[kind]:.1f}" if kind in shares else "" for kind in SHARES]
                for metric in metrics:
                    value = block["methods"][method]["metrics"].get(metric.name)
                    row = {**_identity(block, method, layout), "changes": told, "metric": metric.name}
                    row |= {f"share_{kind}": shares.get(kind) for kind in SHARES}
                    row |= {
                        "value": value and value["value"],
                        "low": value and value["low"],
                        "high": value and value["high"],
                    }
                    against = plain.get((method, metric.name))
                    corrected = judged.get((method, metric.name), {})
                    less = against and {
                        "value": -against["difference"],
                        "low": -against["high"],
                        "high": -against["low"],
                    }
                    for key in ("value", "low", "high"):
                        row[f"difference_{key}"] = less[key] if less else None
                    row |= {
                        "p_holm": corrected.get("p_holm"),
                        "resolved": -corrected["resolved"] if corrected else None,
                    }
                    rows.append(row)
                    if method == ours:
                        cells.append(_cell(value, metric))
                    else:
                        cells.append(_cell(less, metric, signed=True, strong=bool(corrected.get("resolved"))))
                title = escape_latex(layout["methods"][method]["title"])
                lines.append(_line(title, *cells))
                lines += [r"\addlinespace[2pt]"] * (method == ours)
    said = [f"{layout['methods'][name]['title']}: {told}." for name, told in changed.items()]
    notes = [
        *said,
        "Rows below ours show the difference ablation - ours. Bold marks a resolved difference: paired approximate "
        f"randomization gives p < {alpha:g} after Holm's correction over the block's ablations and ranked metrics, and "
        "the interval excludes 0. Stop rate and length ratio are not tested. Weight of the loss is the share of other, "
        "pathology and end-of-turn (TERM) tokens in the weighted cross-entropy, averaged over steps and seeds. Without "
        f"weights it is their share of the tokens. {NORMALISER}",
        *_absent_note(blocks, RANKED),
    ]
    columns = rf"@{{}}lrrr*{{{len(metrics)}}}{{r@{{}}l}}@{{}}"
    return "Single mechanisms.", columns, lines, notes, rows


TABLES = {
    "termination": tabulate_termination,
    "significance": tabulate_significance,
    "factorial": tabulate_factorial,
    "mechanisms": tabulate_mechanisms,
}
