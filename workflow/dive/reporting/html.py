"""The page about a run: one HTML file that contains its tables, figures, acceptance, data flow and costs.

It loads nothing from elsewhere and contains no text of a patient, only numbers, names and notes.
"""

import base64
import csv
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dive.data.readable import count_readable
from dive.files import atomic_path, read_json
from dive.packaged import packaged
from dive.reporting.claims import HOLDS, UNMEASURED, read_claims, shown_cells, shown_rows, verdict_notes
from dive.reporting.flow import flow_diagram
from dive.reporting.tables import GROUPS, Metric, Row, blocks, marks, measured, read_csv, table_notes


def write_report(
    out: str,
    title: str,
    tables: Mapping[str, str],
    layouts: Mapping[str, Mapping[str, Any]],
    figures: Mapping[str, Sequence[str]],
    flows: Mapping[str, str],
    acceptance: str | None = None,
    costs: str | None = None,
    settings: Mapping[str, Any] | None = None,
    version: str = "",
    pools: Mapping[str, str] | None = None,
    vision: Mapping[tuple[str, str], str] | None = None,
    decisive: Sequence[Mapping[str, str]] = (),
    claims: tuple[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the page.

    Args:
        out: the HTML file.
        title: heading of the page.
        tables: experiment -> CSV of :func:`dive.reporting.tables.write_tables`.
        layouts: experiment -> the layout of its table, for titles and notes.
        figures: experiment -> SVG files, shown in this order.
        flows: dataset -> ``counts.json`` of its selection (raw, flow, used).
        acceptance: ``acceptance.json`` of the synthetic world; None where there is none.
        costs: CSV of :func:`dive.reporting.costs.summarise_costs`; None leaves the section out.
        settings: what of the configuration is shown, nested; printed as dotted keys.
        version: version of the code, printed below the title.
        pools: dataset -> JSON of its pool, for the flow diagram.
        vision: (dataset, backbone) -> folder of the vision features, which says what could not be decoded.
        decisive: for each dataset its ``title``, ``table`` and ``figure`` of decisive tokens
            (:func:`dive.reporting.sparsity.compare_annotators`), and ``view``, the address of the page that shows
            reports, or "".
        claims: CSV of :func:`dive.reporting.claims.write_claims` and its layout; None leaves the section out.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(packaged("templates/report.html.j2").read_text(encoding="utf-8"))
    titles = {name: entry["title"] for layout in layouts.values() for name, entry in layout["datasets"].items()}
    text = page.render(
        title=title,
        version=version,
        experiments=[experiment_section(name, tables[name], layouts[name], figures.get(name, ())) for name in tables],
        flows=[
            flow_section(
                titles.get(name, name),
                path,
                (pools or {}).get(name),
                {backbone: folder for (dataset, backbone), folder in (vision or {}).items() if dataset == name},
            )
            for name, path in flows.items()
        ],
        claims=claims_section(*claims) if claims else None,
        acceptance=acceptance_section(acceptance, vision) if acceptance else None,
        costs=cost_section(costs) if costs else None,
        settings=list(dotted(settings or {})),
        decisive=[decisive_section(entry) for entry in decisive],
    )
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def experiment_section(name: str, table: str, layout: Mapping[str, Any], figures: Sequence[str]) -> dict[str, Any]:
    """Cells, notes and figures of one experiment, ready for the template."""
    rows = read_csv(table)
    columns = measured(rows)
    return {
        "name": name,
        "columns": [metric.heading for metric in columns],
        "blocks": [
            {
                "title": f"{block[0]['dataset_title']}, {block[0]['backbone_title']}",
                "n": block[0]["n"],
                "rows": list(_table_rows(block, columns)),
            }
            for block in blocks(rows).values()
        ],
        "notes": table_notes(rows, layout, page=True),
        "methods": len({row["method"] for row in rows}),
        "seeds": max(row["seeds"] for row in rows),
        "figures": [embed_svg(path) for path in figures],
    }


def _table_rows(block: Sequence[Row], columns: Sequence[Metric]) -> Iterator[dict[str, Any]]:
    marked, group = marks(block), None
    for row in block:
        cells = []
        for metric in columns:
            value, spread = row[metric.name], row[f"{metric.name}_sd"]
            cells.append(
                {
                    "value": "" if value is None else f"{value:.{metric.decimals}f}",
                    "spread": "" if spread is None else f"{spread:.{metric.decimals}f}",
                    "interval": describe_interval(row, metric),
                    "resolved": bool(row[f"{metric.name}_resolved"]),
                    "mark": marked.get((row["method"], metric.name), ""),
                }
            )
        yield {
            "group": GROUPS[row["group"]],
            "kind": row["group"],
            "first": row["group"] != group,
            "title": row["title"],
            "cells": cells,
        }
        group = row["group"]


def describe_interval(row: Row, metric: Metric) -> str:
    """The interval of a cell, shown when a reader points at the cell; empty if there is none."""
    low, high = row[f"{metric.name}_low"], row[f"{metric.name}_high"]
    return "" if low is None else f"interval {low:.{metric.decimals}f} to {high:.{metric.decimals}f}"


def claims_section(path: str, layout: Mapping[str, Any]) -> dict[str, Any]:
    """The claims with their verdicts in every setting, the ablations that score above ours, and notes."""
    rows = read_claims(path)
    verdicts = [row["verdict"] for row in rows if row["line"] == "overall"]
    return {
        "rows": [{**shown_cells(row, layout), "line": row["line"], "said": row["verdict"]} for row in shown_rows(rows)],
        "held": verdicts.count(HOLDS),
        "measured": len(verdicts) - verdicts.count(UNMEASURED),
        "unmeasured": verdicts.count(UNMEASURED),
        "notes": verdict_notes(layout),
    }


def embed_svg(path: str) -> str:
    """A data URI of an SVG file; as an image of its own, its identifiers cannot clash with another figure's."""
    return "data:image/svg+xml;base64," + base64.b64encode(Path(path).read_bytes()).decode("ascii")


def flow_section(
    title: str, path: str, pool: str | None = None, vision: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """From the raw studies to the used ones: the diagram, and rule by rule; shares are of the raw studies."""
    counts = read_json(path)
    drawn = {group: len(uids) for group, uids in read_json(pool).items()} if pool else None
    decoded = {name: count_readable(pool, folder) for name, folder in (vision or {}).items()} if pool else None
    raw = counts["raw"]["studies"]
    return {
        "title": title,
        "diagram": flow_diagram(title, counts, drawn, decoded),
        "notes": [
            {"what": name.replace("_", " "), "number": number} for name, number in counts["notes"].items() if number
        ],
        "convention": counts.get("convention_note") or counts.get("convention", ""),
        "raw": raw,
        "steps": [
            {
                "rule": step["rule"].replace("_", " "),
                "left_out": step["left_out"],
                "remaining": step["remaining"],
                "share": step["remaining"] / raw if raw else 0.0,
            }
            for step in counts["flow"]
        ],
    }


def acceptance_section(path: str, shown: Container[tuple[str, str]] | None = None) -> dict[str, Any]:
    """Criteria as rows and dataset x backbone as columns: what was measured, its interval, whether it is met.

    Args:
        path: ``acceptance.json``, of everything that a run has.
        shown: (dataset, backbone) of the page; None shows all.
    """
    rows = read_json(path)["rows"]
    rows = [row for row in rows if shown is None or (row["dataset"], row["backbone"]) in shown]
    pairs = list(dict.fromkeys((row["dataset"], row["backbone"]) for row in rows))
    # The finding with the lowest AUROC differs from world to world; its name belongs to the cell.
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        criterion, _, detail = row["criterion"].partition(" (")
        line = lines.setdefault(criterion, {"criterion": criterion, "wanted": row["threshold"], "cells": {}})
        interval = row["interval"]
        line["cells"][row["dataset"], row["backbone"]] = {
            "value": f"{row['value']:.2f}",
            "interval": f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "",
            "met": row["met"],
            "detail": detail.rstrip(")"),
        }
    return {
        "met": sum(row["met"] for row in rows),
        "criteria": len(rows),
        "pairs": pairs,
        "lines": [{**line, "cells": [line["cells"].get(pair) for pair in pairs]} for line in lines.values()],
    }


def decisive_section(entry: Mapping[str, str]) -> dict[str, Any]:
    """Shares of each annotator's tokens by backbone, in per cent, with what they say in words."""
    with Path(entry["table"]).open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    shares = ("tokens", "loss", "kl", "weight", "weighted_loss", "weighted_kl")
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cells = [f"{100 * float(row[name]):.1f}" if row[name] and row["kind"] != "all" else "" for name in shares]
        for name in ("loss", "kl"):
            density, low, high = (row[f"{name}_{key}"] for key in ("density", "low", "high"))
            cells.append(f"{float(density):.2f} ({float(low):.2f} to {float(high):.2f})" if density else "")
        if row["kind"] != "all":
            lines.setdefault(row["backbone"], []).append({"title": row["title"], "cells": cells})
    said = {row["backbone"]: row["verdict"] for row in rows if row["verdict"]}
    return {
        "title": entry["title"],
        "view": entry["view"],
        "figure": embed_svg(entry["figure"]),
        "blocks": [{"title": name, "said": said[name], "rows": of_backbone} for name, of_backbone in lines.items()],
    }


def cost_section(path: str) -> dict[str, Any]:
    """Rows of the cost table with the length of their bars, and the sums."""
    with Path(path).open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    longest = max((float(row["total_s"]) for row in rows), default=0.0)
    return {
        "jobs": sum(int(row["jobs"]) for row in rows),
        "total": sum(float(row["total_s"]) for row in rows),
        "rows": [{**row, "bar": float(row["total_s"]) / longest if longest else 0.0} for row in rows],
    }


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted key, value) pairs; lists are joined by commas."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        else:
            yield name, "" if value is None else str(value)
