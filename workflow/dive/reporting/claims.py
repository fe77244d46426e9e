"""The abstract's claims held against a run: each is computed from comparisons with published baselines, none typed.

The claims of 2605.27194: best BLEU-4, ROUGE-L and RadGraph F1 in all four dataset x backbone settings, and competitive
CheXbert F1. With D_c = ours - comparator c, its interval over patients and seeds, and p by Holm within the setting:

    best         holds: D_c is resolved above 0 for every c;     fails: resolved below 0 for some c
    competitive  holds: the interval of D_c lies above -margin   fails: it lies below -margin for some c
                 for every c

otherwise it is *not resolved*; without numbers or comparators it is *not measured*. "For every c" and "in all settings"
are intersections, so each part is judged at the level alpha (Berger, 1982). Over several settings a claim holds if it
holds in all of them, and fails if it fails in one. The proxies have lines of their own, and so does every ablation that
scores above our method.
"""

import csv
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dive.files import atomic_path, read_json
from dive.reporting.latex import escape_latex, float_table, printed, stacked
from dive.reporting.tables import METRICS, NORMALISER, Metric, interval_note, seed_note, setting_notes
from dive.scores.multiplicity import family

HOLDS, UNRESOLVED, FAILS, UNMEASURED = "holds", "not resolved", "fails", "not measured"
VERDICTS = (HOLDS, UNRESOLVED, FAILS, UNMEASURED)


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        metric: its metric.
        text: as the tables print it.
        kind: ``best`` or ``competitive``.
        proxy: whether it is a rule-based stand-in, which is no claim of the paper.
    """

    metric: str
    text: str
    kind: str
    proxy: bool = False


CLAIMS = (
    Claim("bleu4", "best BLEU-4", "best"),
    Claim("rouge_l", "best ROUGE-L", "best"),
    Claim("radgraph_f1", "best RadGraph F1", "best"),
    Claim("chexbert_f1", "competitive CheXbert F1", "competitive"),
    Claim("lexicon_graph_f1", "proxy: best lexicon graph F1", "best", proxy=True),
    Claim("lexicon_label_f1", "proxy: competitive lexicon label F1", "competitive", proxy=True),
)

COLUMNS = (
    *("line", "claim", "metric", "setting", "dataset", "backbone", "ours", "comparator", "comparators", "estimate"),
    *("low", "high", "p_holm", "margin", "settings_held", "settings", "verdict", "why"),
)
"""Columns of the CSV. ``line``: overall or setting, also with the prefix proxy_; ablation, ablation_setting.
``comparator`` is the one with the smallest difference; ``estimate`` to ``p_holm`` belong to it. ``comparators`` is the
number of comparators."""

Row = dict[str, Any]
Setting = Mapping[str, Any]


def judge_setting(claim: Claim, setting: Setting, layout: Mapping[str, Any]) -> Row:
    """The verdict on a claim in one setting (dataset x backbone).

    Args:
        claim: the claim.
        setting: a comparison with ``dataset``, ``backbone`` and their titles.
        layout: titles and groups of ``methods``; ``significance``: {alpha, margin}.
    """
    said = layout["significance"]
    ours, published = _ours(setting, layout), _named(setting, layout, "published")
    ranked = [metric.name for metric in METRICS if metric.ranked]
    found = family(setting, ours, published, ranked, said["alpha"]) if ours else {}
    rows = [found[other, claim.metric] for other in published if (other, claim.metric) in found]
    base: Row = {
        "line": "proxy_setting" if claim.proxy else "setting",
        "claim": claim.text,
        "metric": claim.metric,
        "setting": f"{setting['dataset_title']}, {setting['backbone_title']}",
        "dataset": setting["dataset"],
        "backbone": setting["backbone"],
        "ours": ours,
        "comparators": len(rows),
        "margin": said["margin"] if claim.kind == "competitive" else None,
    }
    if len(rows) < len(published) or not rows:
        absent = ours is None or claim.metric not in setting["methods"][ours]["metrics"]
        why = (
            "no method of ours here"
            if ours is None
            else "no published baseline here"
            if not published
            else "the metric was not measured"
            if absent
            else "a published baseline lacks the metric"
        )
        return {**base, "verdict": UNMEASURED, "why": why}
    nearest = min(rows, key=lambda row: row["difference"])
    if claim.kind == "best":
        holds, fails = all(row["resolved"] > 0 for row in rows), any(row["resolved"] < 0 for row in rows)
    else:
        holds = all(row["low"] > -said["margin"] for row in rows)
        fails = any(row["high"] < -said["margin"] for row in rows)
    return {
        **base,
        "comparator": nearest["against"],
        "estimate": nearest["difference"],
        **{key: nearest[key] for key in ("low", "high", "p_holm")},
        "verdict": HOLDS if holds else FAILS if fails else UNRESOLVED,
    }


def judge_all(claim: Claim, rows: Sequence[Row]) -> Row:
    """The verdict over all settings: holds if all hold, fails if one fails; what was not measured is not assumed."""
    verdicts = [row["verdict"] for row in rows]
    if all(verdict == UNMEASURED for verdict in verdicts):
        verdict = UNMEASURED
    elif FAILS in verdicts:
        verdict = FAILS
    else:
        verdict = HOLDS if all(verdict == HOLDS for verdict in verdicts) else UNRESOLVED
    return {
        "line": "proxy_overall" if claim.proxy else "overall",
        "claim": claim.text,
        "metric": claim.metric,
        "setting": f"all {len(rows)} settings" if len(rows) > 1 else "the only setting",
        "margin": rows[0]["margin"] if rows else None,
        "settings_held": verdicts.count(HOLDS),
        "settings": len(rows),
        "verdict": verdict,
        "why": next((row["why"] for row in rows if row["verdict"] == UNMEASURED), None),
        "unmeasured": verdicts.count(UNMEASURED),
    }


def find_better_ablations(setting: Setting, layout: Mapping[str, Any]) -> tuple[list[Row], int]:
    """Ablations that score above ours in a ranked metric (resolved), and how many more only have a higher estimate."""
    ours = _ours(setting, layout)
    ablations = _named(setting, layout, "ablation")
    titles = {name: entry["title"] for name, entry in layout["methods"].items()}
    ranked = {metric.name: metric for metric in METRICS if metric.ranked}
    found = family(setting, ours, ablations, ranked, layout["significance"]["alpha"]) if ours else {}
    rows, higher = [], 0
    for (method, metric), row in found.items():
        if row["resolved"] < 0:
            rows.append(
                {
                    "line": "ablation_setting",
                    "claim": ablation_claim(titles[method], titles[ours], ranked[metric]),
                    "metric": metric,
                    "setting": f"{setting['dataset_title']}, {setting['backbone_title']}",
                    "dataset": setting["dataset"],
                    "backbone": setting["backbone"],
                    "ours": ours,
                    "comparator": method,
                    "comparators": 1,
                    "estimate": row["difference"],
                    **{key: row[key] for key in ("low", "high", "p_holm")},
                    "verdict": HOLDS,
                }
            )
        elif row["difference"] < 0:
            higher += 1
    return rows, higher


def ablation_claim(ablation: str, ours: str, metric: Metric) -> str:
    """``On BLEU-4, the uniform-weights ablation scores above DIVE``; a longer title is quoted as it is."""
    short = ablation.removeprefix(f"{ours} ")
    named = f"the ablation {ablation}"
    if re.fullmatch(r"[A-Za-z-]+( [A-Za-z-]+)?", short):
        named = f"the {short.replace(' ', '-')} ablation"
    return f"On {' '.join(metric.heading)}, {named} scores above {ours}"


def gather_ablations(rows: Sequence[Row], settings: int) -> list[Row]:
    """The settings in which an ablation scores above ours, below one line for each ablation and metric."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["comparator"], row["metric"]), []).append(row)
    gathered = []
    for each in lines.values():
        shared = {key: each[0][key] for key in ("claim", "metric", "ours", "comparator", "verdict")}
        held = {"setting": in_settings(len(each), settings), "settings_held": len(each), "settings": settings}
        gathered += [{**shared, **held, "line": "ablation"}, *each]
    return gathered


def in_settings(held: int, settings: int) -> str:
    """``in 3 of 4 settings``."""
    return f"in {held} of {settings} setting{'s' * (settings != 1)}"


def _ours(setting: Setting, layout: Mapping[str, Any]) -> str | None:
    return next(iter(_named(setting, layout, "ours")), None)


def _named(setting: Setting, layout: Mapping[str, Any], group: str) -> list[str]:
    return [name for name in setting["methods"] if layout["methods"][name]["group"] == group]


def merge_settings(comparisons: Sequence[tuple[str, str, str]], layout: Mapping[str, Any]) -> list[Setting]:
    """One setting for each dataset x backbone, with the methods of all experiments that include it."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for dataset, backbone, path in comparisons:
        found = read_json(path)
        setting = merged.setdefault(
            (dataset, backbone),
            {
                **found,
                "dataset": dataset,
                "backbone": backbone,
                "dataset_title": layout["datasets"][dataset]["title"],
                "backbone_title": layout["backbones"][backbone]["title"],
                "methods": {},
                "comparisons": [],
            },
        )
        setting["methods"] = {**found["methods"], **setting["methods"]}
        setting["archives"] = {**found["archives"], **setting["archives"]}
        pairs = {(row["method"], row["against"], row["metric"]) for row in setting["comparisons"]}
        setting["comparisons"] += [
            row for row in found["comparisons"] if (row["method"], row["against"], row["metric"]) not in pairs
        ]
    return list(merged.values())


def judge_claims(settings: Sequence[Setting], layout: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    """Every line of the claims table, and sentences about the claims that have no line."""
    rows: list[Row] = []
    for claim in CLAIMS:
        each = [judge_setting(claim, setting, layout) for setting in settings]
        rows += [judge_all(claim, each), *each]
    notes = []
    for row in rows:
        if n := row.get("unmeasured"):
            where = "" if n == row["settings"] else f" {in_settings(n, row['settings'])}"
            notes.append(f"Not measured{where}: {row['claim']} ({row['why']}).")
    better, higher = [], 0
    for setting in settings:
        found, count = find_better_ablations(setting, layout)
        better += found
        higher += count
    rows += gather_ablations(better, len(settings))
    if higher:
        notes.append(
            f"In {higher} further case{'s' * (higher > 1)} (ablation x metric x setting) an ablation has a higher "
            "estimate than our method, but the difference is not resolved."
        )
    return rows, notes


def verdict_notes(layout: Mapping[str, Any]) -> list[str]:
    """What the verdicts mean, and with which methods ours is compared."""
    said = layout["significance"]
    titles = (
        ", ".join(entry["title"] for entry in layout["methods"].values() if entry["group"] == "published") or "none"
    )
    points = f"{said['margin']:g} point{'s' * (said['margin'] != 1)}"
    return [
        f"Our method is compared with the published baselines of this run ({titles}). The table shows the nearest "
        "comparator, with the smallest difference (our score minus its score). Controls, the backbone alone and the "
        "in-context teacher are not comparators.",
        "A claim of the best score holds if our method is resolved above every comparator. It fails if our method is "
        "resolved below one of them. A difference is resolved if paired approximate randomization over patients gives "
        f"p < {said['alpha']:g} after Holm's correction within the setting and the interval excludes 0.",
        f"A claim of a competitive score has a margin of {points} (our choice). It holds if the "
        f"interval of every difference lies above -{said['margin']:g}, and fails if the interval of one lies below.",
        "Over several settings a claim holds if it holds in all of them, and fails if it fails in one. Proxies are "
        "computed by rules. They are not RadGraph F1 or CheXbert F1, and the paper makes no claim about them.",
    ]


def write_claims(
    comparisons: Sequence[tuple[str, str, str]], layout: Mapping[str, Any], out_tex: str, out_csv: str, out_md: str
) -> None:
    """Write the verdicts on the claims.

    Args:
        comparisons: (dataset, backbone, JSON of :func:`dive.scores.significance.compare_methods`).
        layout: as of :func:`dive.reporting.tables.write_tables`, over all experiments; ``significance``: {alpha,
            resamples, margin}.
        out_tex: LaTeX table.
        out_csv: every line, see ``COLUMNS``.
        out_md: the same for a terminal, with one sentence for each ablation that scores above ours.
    """
    settings = merge_settings(comparisons, layout)
    rows, more = judge_claims(settings, layout)
    notes = [*verdict_notes(layout), *more]
    with atomic_path(out_csv) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            cells = [row.get(column) for column in COLUMNS]
            writer.writerow(
                "" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else cell for cell in cells
            )
    with atomic_path(out_md) as temporary:
        temporary.write_text(markdown(rows, layout, notes), encoding="utf-8")
    for setting in settings:
        setting.update({f"{name}_archive": said for name, said in setting["archives"].items()})
    first, *others = setting_notes(settings, layout)
    seeds = seed_note([{"seeds": max(1, len(setting["seeds"]))} for setting in settings], layout)
    with atomic_path(out_tex) as temporary:
        every = [first, seeds, interval_note(layout), *notes, NORMALISER, *others]
        temporary.write_text(latex(rows, layout, every), encoding="utf-8")


def read_claims(path: str) -> list[Row]:
    """Read what :func:`write_claims` wrote; empty cells become None."""
    with Path(path).open(newline="", encoding="utf-8") as handle:
        rows: list[Row] = list(csv.DictReader(handle))
    for row in rows:
        for key, value in row.items():
            row[key] = value or None
        for key in ("estimate", "low", "high", "p_holm", "margin"):
            row[key] = float(row[key]) if row[key] else None
    return rows


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """The lines that are printed: a claim that was measured nowhere has one line; the CSV has its settings."""
    unmeasured = {row["claim"] for row in rows if row["line"].endswith("overall") and row["verdict"] == UNMEASURED}
    return [row for row in rows if row["line"].endswith("overall") or row["claim"] not in unmeasured]


def shown_cells(row: Row, layout: Mapping[str, Any]) -> dict[str, str]:
    """The printed cells of a line: claim or setting, comparator, difference, interval, p, verdict."""
    overall, ablation = row["line"].endswith("overall"), row["line"].startswith("ablation")
    metric = next(metric for metric in METRICS if metric.name == row["metric"])
    claim = row["setting"] if row["line"].endswith("setting") else row["claim"]
    verdict = f"above {layout['methods'][row['ours']]['title']}" if ablation else row["verdict"]
    if row["line"] == "ablation":
        verdict = row["setting"]
    elif overall and verdict != UNMEASURED:
        held = in_settings(int(row["settings_held"]), int(row["settings"]))
        verdict = f"holds {held}" if verdict == HOLDS else f"{verdict}: holds {held}"
    measured = row.get("estimate") is not None
    comparator = row.get("comparator") if not ablation else None
    return {
        "claim": claim,
        "comparator": layout["methods"][comparator]["title"] if comparator else "",
        "difference": printed(row["estimate"], metric.decimals, signed=True) if measured else "",
        "interval": " to ".join(printed(row[end], metric.decimals, signed=True) for end in ("low", "high"))
        if measured
        else "",
        "p": ("<.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}".lstrip("0")) if measured else "",
        "verdict": verdict,
    }


def markdown(rows: Sequence[Row], layout: Mapping[str, Any], notes: Sequence[str]) -> str:
    """The claims as a Markdown table with aligned columns, then a sentence for each ablation that scores above ours."""
    heads = {
        "claim": "claim, then each setting",
        "comparator": "nearest",
        "difference": "difference",
        "interval": f"{100 * (1 - layout['significance']['alpha']):g} % interval",
        "p": "p",
        "verdict": "verdict",
    }
    lines = [heads]
    for row in shown_rows(rows):
        if row["line"].startswith("ablation"):
            continue
        cells = shown_cells(row, layout)
        lines.append({**cells, "claim": cells["claim"] if row["line"] in _BOLD else f"- {cells['claim']}"})
    widths = {key: max(len(line[key]) for line in lines) for key in heads}
    right = ("difference", "p")

    def render(line: Mapping[str, str]) -> str:
        return (
            "| "
            + " | ".join(
                line[key].rjust(widths[key]) if key in right else line[key].ljust(widths[key]) for key in heads
            )
            + " |"
        )

    rule = "|" + "|".join("-" * (widths[key] + 1) + (":" if key in right else "-") for key in heads) + "|"
    table = [render(heads), rule, *(render(line) for line in lines[1:])]
    better = ["", "Ablations that score above our method:", ""]
    sentences = ablation_sentences(rows, layout)
    better += [textwrap.fill(f"- {text}", width=120, subsequent_indent="  ") for text in sentences]
    wrapped = textwrap.fill(" ".join(notes), width=120)
    title = "# Claims of the abstract in this run"
    return "\n".join([title, "", *table, *(better if len(better) > 3 else []), "", wrapped, ""])


def ablation_sentences(rows: Sequence[Row], layout: Mapping[str, Any]) -> list[str]:
    """One sentence for each ablation and metric: in how many settings it scores above ours, and by how much in each."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["line"] == "ablation":
            found[row["claim"]] = [f"{row['claim']} {row['setting']}"]
        elif row["line"] == "ablation_setting":
            cells = shown_cells({**row, "estimate": -row["estimate"]}, layout)
            found[row["claim"]].append(f"{row['setting']} ({cells['difference']})")
    return [f"{claim}: {', '.join(settings)}." for claim, *settings in found.values()]


_BOLD = ("overall", "proxy_overall", "ablation")


def latex(rows: Sequence[Row], layout: Mapping[str, Any], notes: Sequence[str]) -> str:
    """The claims as a LaTeX table, with the ablations that score above ours."""
    lines = [r"claim & nearest comparator & \multicolumn{2}{c}{difference} & $p$ & verdict \\"]
    for row in shown_rows(rows):
        cells = {key: escape_latex(text) for key, text in shown_cells(row, layout).items()}
        if row["line"] in _BOLD:  # its numbers are in the lines of the settings, so the claim may take their columns
            claim, verdict = (rf"\textbf{{{cells[key]}}}" for key in ("claim", "verdict"))
            lines += [r"\midrule", rf"\multicolumn{{5}}{{@{{}}l}}{{{claim}}} & {verdict} \\"]
            continue
        metric = next(metric for metric in METRICS if metric.name == row["metric"])
        number = "&"
        if row.get("estimate") is not None:
            ends = stacked(row["low"], row["high"], metric.decimals, signed=True)
            number = f"${printed(row['estimate'], metric.decimals, signed=True)}$&{ends}"
        p = rf"\scriptsize {cells['p']}" if cells["p"] else ""
        lines.append(rf"\quad {cells['claim']} & {cells['comparator']} & {number} & {p} & {cells['verdict']} \\")
    caption = "Claims of the abstract in this run. Difference: our method minus the nearest comparator."
    return float_table(f"{layout.get('label', 'main')}-claims", caption, r"@{}llr@{}lrl@{}", lines, notes)
