"""Table and figure of the decisive tokens of a dataset: shares before and after weighting, and agreement."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dive.analyses.sparsity import Tokens, concentration, read_tokens, sparsity_rows, verdict
from dive.files import atomic_path
from dive.progress import log
from dive.reporting.figures import LINES, STYLE, save_figure
from dive.reporting.tables import escape_latex

NAMES = {
    "all": "All tokens",
    "vocabulary": "Vocabulary",
    "scispacy": "scispaCy",
    "radgraph": "RadGraph observations",
    "idf": "Rarest words (idf)",
    "union": "Union",
    "random": "Random, same count",
    "term": "End of turn",
    "power_law": "Power-law weights",
    "surprisal": "Surprisal weights",
    "value_at_risk": "Value-at-risk weights",
}
TITLES = {"loss": "loss", "kl": "KL from the teacher"}
SHARES = ("tokens", "loss", "kl", "weight", "weighted_loss", "weighted_kl")
NUMBERS = (
    *SHARES, "loss_density", "loss_low", "loss_high", "loss_oracle", "loss_half",
    "kl_density", "kl_low", "kl_high", "kl_oracle", "kl_half",
)  # fmt: skip


def compare_annotators(
    tokens: Sequence[str],
    backbones: Sequence[str],
    layout: Mapping[str, Any],
    out_tex: str,
    out_csv: str,
    figure: Sequence[str],
) -> None:
    """Write table and figure of one dataset.

    Args:
        tokens: table of tokens of each backbone (`dive.analyses.tokens.analyse_tokens`).
        backbones: titles of the backbones, in the same order.
        layout: titles of ``dataset`` and ``method``; ``annotator`` of the verdict; ``weights`` (pathology, eos);
            ``shots``.
        out_tex: LaTeX table; needs booktabs and graphicx.
        out_csv: its numbers, a row an annotator and backbone, and the verdict.
        figure: files of the figure, by suffix.
    """
    read = [read_tokens(path) for path in tokens]
    rows = [sparsity_rows(of_backbone, layout["annotator"], layout["weights"]) for of_backbone in read]
    verdicts = [verdict(of_backbone, layout["annotator"]) for of_backbone in rows]
    for title, said in zip(backbones, verdicts, strict=True):
        log.info("%s, %s: %s", layout["dataset"], title, said)
    write_sparsity(out_csv, backbones, rows, verdicts)
    with atomic_path(out_tex) as temporary:
        temporary.write_text(latex_sparsity(backbones, rows, verdicts, layout), encoding="utf-8")
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "Agg"}):
        save_figure(draw_sparsity(read, backbones, rows, layout), figure)


def write_sparsity(
    path: str, backbones: Sequence[str], rows: Sequence[Sequence[Mapping[str, Any]]], verdicts: Sequence[str]
) -> None:
    """Write the rows with four decimals; an absent value is an empty cell."""
    annotators = list(rows[0][0]["f1"])
    columns = ["backbone", "row", "title", "kind", *NUMBERS, *(f"f1_{name}" for name in annotators), "verdict"]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        for title, of_backbone, said in zip(backbones, rows, verdicts, strict=True):
            for row in of_backbone:
                numbers = [*(row[name] for name in NUMBERS), *(row["f1"][name] for name in annotators)]
                cells = ["" if number is None else f"{number:.4f}" for number in numbers]
                named = NAMES.get(row["row"], row["row"])
                writer.writerow([title, row["row"], named, row["kind"], *cells, said if row["kind"] == "all" else ""])


def read_sparsity(path: str) -> list[dict[str, Any]]:
    """Read what `write_sparsity` wrote: numbers as float, empty cells as None."""
    with Path(path).open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    return [
        {
            key: value if key in ("backbone", "row", "title", "kind", "verdict") else float(value) if value else None
            for key, value in row.items()
        }
        for row in rows
    ]


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def with_interval(row: Mapping[str, Any], measure: str) -> str:
    """Density of a measure with its interval; empty where it is not defined."""
    if row[f"{measure}_density"] is None:
        return ""
    return f"{row[f'{measure}_density']:.2f} ({row[f'{measure}_low']:.2f}--{row[f'{measure}_high']:.2f})"


def notes_of(layout: Mapping[str, Any]) -> list[str]:
    """Sentences under the table: what was measured, and how to read it."""
    weights = layout["weights"]
    return [
        "On validation reports under teacher forcing, we sum over tokens the loss of the zero-shot backbone and the KL "
        f"divergence from the {layout['shots']}-shot teacher to it. Shares are in %.",
        "Density is the share of the loss (or KL) divided by the share of the tokens. It is 1 for random tokens; the "
        "interval is a 95 % interval over patients. Most is the largest share that this number of tokens can have.",
        f"After weighting: with the weights of {layout['method']} (pathology {weights['pathology']:g}, end of turn "
        f"{weights['eos']:g}) on the row's tokens; weights from statistics apply to every token, and their rows "
        f"describe the tokens of {NAMES[layout['annotator']]}. The objective does not weight its KL; the share of KL "
        "shows the effect that weights would have.",
        "F1 is the token-level agreement of two annotators.",
    ]


def latex_sparsity(
    backbones: Sequence[str],
    rows: Sequence[Sequence[Mapping[str, Any]]],
    verdicts: Sequence[str],
    layout: Mapping[str, Any],
) -> str:
    """The table in LaTeX; it shrinks to the text width where it is wider."""
    annotators = list(rows[0][0]["f1"])
    columns = 13 + len(annotators)
    lines = [
        r"% Needs \usepackage{booktabs} and \usepackage{graphicx}. Made by the workflow; the CSV has the numbers.",
        r"\begin{table}[tp]",
        r"\centering",
        rf"\caption{{Decisive tokens of {escape_latex(layout['dataset'])}: their shares, and annotators' agreement.}}",
        r"\label{tab:sparsity}",
        r"\smallskip\small",
        r"\setlength{\tabcolsep}{4pt}",
        r"\sbox0{%",
        rf"\begin{{tabular}}{{@{{}}l*{{{columns - 1}}}{{r}}@{{}}}}",
        r"\toprule",
        r"& \multicolumn{3}{c}{share before (\%)} & \multicolumn{3}{c}{share after (\%)} & \multicolumn{2}{c}{density}"
        r" & \multicolumn{2}{c}{most (\%)} & \multicolumn{2}{c}{half in (\%)}"
        rf" & \multicolumn{{{len(annotators)}}}{{c}}{{token F1 with}} \\",
        " & ".join(
            ["", "tokens", "loss", "KL", "weight", "loss", "KL", *["loss", "KL"] * 3]
            + [escape_latex(NAMES.get(name, name).split(",")[0].split(" (")[0]) for name in annotators]
        )
        + r" \\",
    ]
    for title, of_backbone in zip(backbones, rows, strict=True):
        lines += [r"\midrule", rf"\multicolumn{{{columns}}}{{@{{}}l}}{{\textbf{{{escape_latex(title)}}}}} \\"]
        for row in of_backbone:
            after = row["kind"] != "all"
            cells = [percent(row[name]) for name in SHARES[:3]]
            cells += [percent(row[name]) if after else "" for name in SHARES[3:]]
            cells += [with_interval(row, "loss"), with_interval(row, "kl")]
            cells += [percent(row[f"{m}_oracle"]) if row["kind"] == "annotator" else "" for m in ("loss", "kl")]
            cells += [percent(row["loss_half"]), percent(row["kl_half"])]
            cells += ["" if row["f1"][name] is None else f"{100 * row['f1'][name]:.0f}" for name in annotators]
            lines.append(" & ".join([escape_latex(NAMES.get(row["row"], row["row"])), *cells]) + r" \\")
    said = [f"{title}: {text}" for title, text in zip(backbones, verdicts, strict=True)]
    notes = " ".join(escape_latex(note) for note in [*notes_of(layout), *said])
    lines += [
        r"\bottomrule",
        r"\end{tabular}}",
        r"\ifdim\wd0>\textwidth\resizebox{\textwidth}{!}{\box0}\else\box0\fi",
        r"\par\smallskip",
        rf"\begin{{minipage}}{{\textwidth}}\scriptsize {notes}\end{{minipage}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def draw_sparsity(
    tokens: Sequence[Tokens],
    backbones: Sequence[str],
    rows: Sequence[Sequence[Mapping[str, Any]]],
    layout: Mapping[str, Any],
) -> Figure:
    """A row of panels per backbone: how concentrated loss and divergence are, and how far annotators agree.

    The curve takes the tokens by their own loss (KL), largest first: nobody can mark so few that hold so much. On the
    diagonal are tokens at random. An annotator's marker is at its share of tokens and of the loss; the open one is
    where the method's weights put it.
    """
    annotators = list(tokens[0].marks)
    colours = {name: LINES[index % len(LINES)] for index, name in enumerate([*annotators, "term"])}
    figure, axes = plt.subplots(
        len(tokens), 3, figsize=(7.6, 2.35 * len(tokens) + 0.7), squeeze=False, layout="constrained",
        gridspec_kw={"width_ratios": [1, 1, 0.85]},
    )  # fmt: skip
    for (left, middle, right), of_backbone, title, of_rows in zip(axes, tokens, backbones, rows, strict=True):
        for axis, measure in ((left, "loss"), (middle, "kl")):
            _draw_concentration(axis, of_backbone.measures[measure], measure, of_rows, colours)
        left.set_title(f"{layout['dataset']}, {title}", loc="left")
        _draw_agreement(right, of_rows, annotators)
    handles = [
        plt.Line2D([], [], linestyle="", marker="o", color=colour, markersize=5, label=NAMES.get(name, name))
        for name, colour in colours.items()
    ]
    after = {"marker": "o", "color": "black", "markerfacecolor": "white", "markersize": 5}
    handles += [
        plt.Line2D([], [], linestyle="", **after, label="after weighting"),
        plt.Line2D([], [], color="black", linewidth=1.0, label="largest first"),
        plt.Line2D([], [], color="#8c8c8c", linestyle=":", linewidth=0.9, label="at random"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), handletextpad=0.4)
    return figure


def _draw_concentration(
    axis: Axes, values: np.ndarray, measure: str, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    share, held = concentration(values)
    thinned = np.unique(np.linspace(0, len(share) - 1, 200).astype(int))
    axis.plot(100 * share[thinned], 100 * held[thinned], color="black", linewidth=1.0)
    axis.plot([0, 100], [0, 100], color="#8c8c8c", linestyle=":", linewidth=0.9)
    for row in rows:
        if row["row"] not in colours:
            continue
        x, before, after = (100 * row[key] for key in ("tokens", measure, f"weighted_{measure}"))
        colour = colours[row["row"]]
        axis.plot([x, x], [before, after], color=colour, linewidth=0.9)
        axis.plot(x, after, "o", color=colour, markersize=4.5, markerfacecolor="white")
        axis.plot(x, before, "o", color=colour, markersize=4.5)
    axis.set_xlabel("share of tokens (%)")
    axis.set_ylabel(f"share of {TITLES[measure]} (%)", fontsize=7.5)
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 100)
    axis.grid(color="#e6e6e6", linewidth=0.5)
    axis.set_axisbelow(True)


def _draw_agreement(axis: Axes, rows: Sequence[Mapping[str, Any]], annotators: Sequence[str]) -> None:
    f1 = {row["row"]: row["f1"] for row in rows if row["kind"] == "annotator"}
    values = np.array([[np.nan if f1[a][b] is None else 100 * f1[a][b] for b in annotators] for a in annotators])
    axis.imshow(values, cmap="Blues", vmin=0, vmax=130)
    for i, j in np.ndindex(values.shape):
        axis.text(j, i, "" if np.isnan(values[i, j]) else f"{values[i, j]:.0f}", ha="center", va="center", fontsize=8)
    names = [NAMES.get(name, name).split(",")[0].split(" (")[0] for name in annotators]
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title("token F1 (%)", fontsize=8, fontweight="normal")
