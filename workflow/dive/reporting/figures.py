"""Figures of the main results and of training, and a small overview; equal inputs give equal bytes."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dive.files import atomic_path, check_files, read_json
from dive.reporting.tables import GROUPS, METRICS, Metric, Scores, blocks, read_csv

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    # Identifiers in the SVG follow from the content alone, text stays text that can be searched.
    "svg.hashsalt": "dive",
    "svg.fonttype": "none",
}
"""Settings of every figure, whatever the machine's own matplotlibrc says."""

COLOURS = {
    "control": "#8c8c8c",
    "reference": "#56B4E9",
    "published": "#E69F00",
    "ours": "#D55E00",
    "transfer": "#009E73",
    "ablation": "#0072B2",
}
"""Colour of a group (Okabe and Ito, 2008: distinct with every kind of colour vision); groups also differ by marker."""

MARKERS = {"control": "s", "reference": "D", "published": "^", "ours": "o", "transfer": "P", "ablation": "v"}

SEED = {"linestyle": "", "marker": "|", "color": "black", "alpha": 0.7, "markersize": 7, "markeredgewidth": 0.8}
"""How a single seed is drawn over the mean's marker."""

LINES = ("#D55E00", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#8c8c8c")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (4, 1, 1, 1)))
"""Colours and dashes of curves: eight colours, then the next dash."""

Adapters = Mapping[tuple[str, str, str, int], str]


def plot_results(
    scores: Scores, adapters: Adapters, layout: Mapping[str, Any], results: Sequence[str], curves: Sequence[str]
) -> None:
    """Plot the metrics of every method and the course of training.

    Args:
        scores: (dataset, backbone, method) -> folder with ``summary.json``.
        adapters: (dataset, backbone, method, seed) -> folder with ``training.csv`` and ``validation.csv``.
        layout: ``datasets``, ``backbones`` and ``methods``, see :func:`dive.reporting.tables.write_tables`.
        results: files of the figure of results; the suffix (.pdf, .svg, .png) says the format.
        curves: files of the figure of training.
    """
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "Agg"}):
        save_figure(draw_results(scores, layout), results)
        save_figure(draw_curves(adapters, layout), curves)


def save_figure(figure: Figure, paths: Sequence[str]) -> None:
    """Write a figure in the format of each suffix, without the date, and close it."""
    for path in paths:
        suffix = Path(path).suffix.removeprefix(".")
        metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(suffix, {})
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata, dpi=150)
    plt.close(figure)


def plot_overview(table: str, out: str, metric: Metric = METRICS[0]) -> None:
    """Plot one metric of a main table: a panel per dataset and backbone, a line per method with its interval.

    Args:
        table: CSV of :func:`dive.reporting.tables.write_tables`.
        out: the figure; the suffix (.pdf, .svg, .png) says the format.
        metric: the metric; BLEU-4 by default.
    """
    settings = list(blocks(read_csv(table)).values())
    names = list(dict.fromkeys(row["title"] for block in settings for row in block))
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "Agg"}):
        figure, axes = plt.subplots(
            1,
            len(settings),
            figsize=(1.3 + 1.95 * len(settings), 0.19 * len(names) + 0.8),
            squeeze=False,
            sharex=True,
            sharey=True,
            layout="constrained",
        )
        for axis, block in zip(axes[0], settings, strict=True):
            for row in block:
                value, low, place = row[metric.name], row[f"{metric.name}_low"], names.index(row["title"])
                style = {"color": COLOURS[row["group"]], "markersize": 5}
                if value is not None:
                    axis.plot(value, place, marker=MARKERS[row["group"]], **style)
                if low is not None:
                    axis.plot([low, row[f"{metric.name}_high"]], [place, place], color=style["color"], linewidth=1.2)
            axis.set_title(f"{block[0]['dataset_title']}\n{block[0]['backbone_title']}", fontsize=7)
            axis.set_xlabel(" ".join(metric.heading))
            axis.grid(axis="x", linewidth=0.4, color="#dddddd")
        axes[0][0].set_yticks(range(len(names)), names)
        axes[0][0].set_ylim(len(names) - 0.5, -0.5)
        save_figure(figure, [out])


def draw_results(scores: Scores, layout: Mapping[str, Any]) -> Figure:
    """One row of panels per dataset and backbone, one column per measured metric, one line per method.

    The marker is the mean over seeds, ticks are the seeds. The band begins at the zero-shot backbone and ends at
    the in-context teacher: what distillation can be expected to win.
    """
    summaries = {key: read_json(Path(folder) / "summary.json")["metrics"] for key, folder in scores.items()}
    pairs = [(d, b) for d in layout["datasets"] for b in layout["backbones"] if any((d, b) == k[:2] for k in scores)]
    shown = [
        metric for metric in METRICS if any(values[metric.name]["mean"] is not None for values in summaries.values())
    ]
    methods = sorted(layout["methods"], key=lambda name: list(GROUPS).index(layout["methods"][name]["group"]))
    methods = [name for name in methods if any(name == key[2] for key in scores)]
    panel = 0.17 * len(methods) + 0.42
    figure, axes = plt.subplots(
        len(pairs),
        len(shown),
        figsize=(2.1 + 1.35 * len(shown), panel * len(pairs) + 0.75),
        squeeze=False,
        sharey=True,
        sharex="col",
        layout="constrained",
    )
    figure.get_layout_engine().set(h_pad=0.05, w_pad=0.05)
    for row, (dataset, backbone) in enumerate(pairs):
        for axis, metric in zip(axes[row], shown, strict=True):
            _draw_panel(axis, metric, dataset, backbone, methods, summaries, layout)
        title = f"{layout['datasets'][dataset]['title']}, {layout['backbones'][backbone]['title']}"
        # The heading spans several panels: a blank title keeps its height free, its width is nobody's concern.
        axes[row][0].set_title(" ")
        heading = axes[row][0].annotate(title, (0, 1), (0, 6), "axes fraction", "offset points", fontweight="bold")
        heading.set_in_layout(False)
    for axis, metric in zip(axes[-1], shown, strict=True):
        axis.set_xlabel(" ".join(metric.heading))
    handles = [
        plt.Line2D([], [], linestyle="", marker=MARKERS[group], color=COLOURS[group], markersize=5, label=heading)
        for group, heading in GROUPS.items()
        if any(layout["methods"][name]["group"] == group for name in methods)
    ]
    handles.append(plt.Line2D([], [], **SEED, label="a seed"))
    if any(_band(summaries, dataset, backbone, shown[0].name, layout) for dataset, backbone in pairs):
        handles.append(plt.Rectangle((0, 0), 1, 1, color="#000000", alpha=0.07, label="zero-shot to teacher"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.3, columnspacing=1.4)
    return figure


def _draw_panel(
    axis: Axes,
    metric: Metric,
    dataset: str,
    backbone: str,
    methods: Sequence[str],
    summaries: Mapping[tuple[str, str, str], Mapping[str, Any]],
    layout: Mapping[str, Any],
) -> None:
    band = _band(summaries, dataset, backbone, metric.name, layout)
    if band:
        axis.axvspan(*band, color="#000000", alpha=0.07, linewidth=0)
    for line, name in enumerate(methods):
        values = summaries.get((dataset, backbone, name), {}).get(metric.name)
        if values is None or values["mean"] is None:
            continue
        group = layout["methods"][name]["group"]
        if len(values["seeds"]) > 1:
            seeds = list(values["seeds"].values())
            axis.plot(seeds, [line] * len(seeds), **SEED, zorder=4)
        axis.plot(values["mean"], line, MARKERS[group], color=COLOURS[group], markersize=5.5, zorder=3)
    axis.set_yticks(range(len(methods)), [layout["methods"][name]["title"] for name in methods])
    axis.set_ylim(len(methods) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)
    axis.margins(x=0.08)
    axis.locator_params(axis="x", nbins=4)


def _band(summaries, dataset, backbone, metric, layout) -> tuple[float, float] | None:
    """Ends of the band: the references without and with demonstrations (the first and last reference rows)."""
    references = [name for name, method in layout["methods"].items() if method["group"] == "reference"]
    means = [summaries.get((dataset, backbone, name), {}).get(metric, {}).get("mean") for name in references]
    if len(means) < 2 or means[0] is None or means[-1] is None:
        return None
    return min(means[0], means[-1]), max(means[0], means[-1])


def read_curve(path: Path, x: str, y: str) -> tuple[list[float], list[float]]:
    """Columns ``x`` and ``y`` of a CSV of numbers; rows without a ``y`` are left out.

    Raises:
        ValueError: if the file lacks a column.
    """
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        missing = {x, y} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))} to draw (it has {reader.fieldnames})")
        rows = [(float(row[x]), float(row[y])) for row in reader if row[y]]
    return [point[0] for point in rows], [point[1] for point in rows]


def draw_curves(adapters: Adapters, layout: Mapping[str, Any]) -> Figure:
    """Training loss by step (left) and validation cross-entropy by epoch (right), a thin line a seed.

    Losses of methods with different objectives are not comparable; the validation cross-entropy is one for all.

    A dot marks the epoch whose adapter was kept: the least validation cross-entropy.
    """
    pairs = [(d, b) for d in layout["datasets"] for b in layout["backbones"] if any((d, b) == k[:2] for k in adapters)]
    methods = [name for name in layout["methods"] if any(name == key[2] for key in adapters)]
    figure, axes = plt.subplots(
        max(len(pairs), 1), 2, figsize=(7.2, 1.9 * max(len(pairs), 1) + 0.7), squeeze=False, layout="constrained"
    )
    if not pairs:
        for axis in axes[0]:
            axis.set_axis_off()
        axes[0][0].text(0, 0.5, "No method of this experiment is trained.", va="center")
        return figure
    # Ours and the published methods come first, so that they have the same colours as among the results.
    ranks = {"ours": 0, "published": 1}
    methods.sort(key=lambda name: ranks.get(layout["methods"][name]["group"], len(ranks)))
    colours = {name: LINES[index % len(LINES)] for index, name in enumerate(methods)}
    dashes = {name: DASHES[index // len(LINES) % len(DASHES)] for index, name in enumerate(methods)}
    for (dataset, backbone), (left, right) in zip(pairs, axes, strict=True):
        for key in sorted((key for key in adapters if key[:2] == (dataset, backbone)), key=str):
            method, folder = key[2], Path(adapters[key])
            line = {"color": colours[method], "linestyle": dashes[method], "linewidth": 0.9, "alpha": 0.8}
            check_files(folder, "training.csv", "validation.csv")
            left.plot(*read_curve(folder / "training.csv", "step", "loss"), **line)
            epochs, values = read_curve(folder / "validation.csv", "epoch", "cross_entropy")
            right.plot(epochs, values, **line)
            if values:
                best = min(range(len(values)), key=values.__getitem__)
                right.plot(epochs[best], values[best], "o", color=colours[method], markersize=3.5)
        left.set_title(f"{layout['datasets'][dataset]['title']}, {layout['backbones'][backbone]['title']}", loc="left")
        left.set_ylabel("training loss (own objective)")
        right.set_ylabel("validation cross-entropy")
        for axis in (left, right):
            axis.grid(color="#e6e6e6", linewidth=0.5)
            axis.margins(x=0.02)
    axes[-1][0].set_xlabel("step")
    axes[-1][1].set_xlabel("epoch")
    handles = [
        plt.Line2D([], [], color=colours[name], linestyle=dashes[name], label=layout["methods"][name]["title"])
        for name in methods
    ]
    handles.append(plt.Line2D([], [], color="black", linestyle="", marker="o", markersize=3.5, label="kept"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure
