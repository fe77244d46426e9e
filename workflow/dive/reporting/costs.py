"""Measured cost of every rule, from Snakemake's benchmark files: where the time goes."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dive.files import atomic_path

COLUMNS = ("rule", "jobs", "total_s", "share", "median_s", "max_s", "cpu_s", "max_rss_mb")
"""Columns of the CSV: number of jobs; wall seconds summed, their share, median and maximum of one job; CPU seconds
summed; the highest memory of a job in MB. A cell is empty where Snakemake could not measure (a job of a moment)."""


@dataclass(frozen=True)
class Job:
    """One benchmarked job: its rule, wall seconds, CPU seconds and peak memory in MB (None where not measured)."""

    rule: str
    seconds: float
    cpu: float | None
    memory: float | None


def read_jobs(folder: str) -> list[Job]:
    """Read every benchmark below ``folder``, whose first level names the rules (``generate/...tsv``, ``plot.tsv``).

    A file of several runs (``repeat``) counts each. Times are of the run that made the present result: a benchmark is
    replaced whenever its job runs again.

    Raises:
        ValueError: if a file is not a benchmark of Snakemake's.
    """
    jobs = []
    for path in sorted(Path(folder).rglob("*.tsv")):
        rule = path.relative_to(folder).parts[0].removesuffix(".tsv")
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle, delimiter="\t")
            if "s" not in (reader.fieldnames or ()):
                raise ValueError(f"{path} is no benchmark file of Snakemake: it has no column `s`")
            for row in reader:
                jobs.append(Job(rule, float(row["s"]), _number(row.get("cpu_time")), _number(row.get("max_rss"))))
    return jobs


def _number(cell: str | None) -> float | None:
    """A cell's number; Snakemake writes ``-`` or ``NA`` for a job that ended before it was looked at."""
    try:
        return float(cell or "")
    except ValueError:
        return None


def cost_rows(jobs: Sequence[Job]) -> list[dict[str, str]]:
    """One row of COLUMNS a rule, the costliest first."""
    everything = sum(job.seconds for job in jobs)
    rules: dict[str, list[Job]] = {}
    for job in jobs:
        rules.setdefault(job.rule, []).append(job)
    totals = {rule: sum(job.seconds for job in own) for rule, own in rules.items()}
    rows = []
    for rule in sorted(rules, key=lambda name: (-totals[name], name)):
        seconds = [job.seconds for job in rules[rule]]
        cpu = [job.cpu for job in rules[rule] if job.cpu is not None]
        memory = [job.memory for job in rules[rule] if job.memory is not None]
        rows.append(
            {
                "rule": rule,
                "jobs": str(len(seconds)),
                "total_s": f"{totals[rule]:.1f}",
                "share": f"{totals[rule] / everything:.3f}" if everything else "",
                "median_s": f"{median(seconds):.1f}",
                "max_s": f"{max(seconds):.1f}",
                "cpu_s": f"{sum(cpu):.1f}" if cpu else "",
                "max_rss_mb": f"{max(memory):.0f}" if memory else "",
            }
        )
    return rows


def summarise_costs(benchmarks: str, out_csv: str, out_md: str) -> None:
    """Write what every rule cost, the costliest first, as CSV and as a Markdown table.

    Args:
        benchmarks: folder of Snakemake's benchmark files, one subfolder or file a rule.
        out_csv: COLUMNS, a row a rule.
        out_md: the same for readers, with the sum of all jobs.

    Raises:
        ValueError: if there is no benchmark at all.
    """
    jobs = read_jobs(benchmarks)
    if not jobs:
        raise ValueError(f"no benchmark lies below {benchmarks}: run the workflow first")
    rows = cost_rows(jobs)
    with atomic_path(out_csv) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    total = sum(job.seconds for job in jobs)
    peak = max((job.memory for job in jobs if job.memory is not None), default=0.0)
    lines = [
        "# Measured wall time of every rule",
        "",
        f"{len(jobs)} jobs, {total:.0f} s of job time in all (jobs run side by side, so the run was shorter); "
        f"the largest job took {peak:.0f} MB.",
        "",
        "| rule | jobs | total s | share | median s | max s | CPU s | max MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        share = f"{100 * float(row['share']):.1f} %" if row["share"] else ""
        cells = {**row, "share": share}
        lines.append(
            "| " + " | ".join(f"`{cells[name]}`" if name == "rule" else cells[name] for name in COLUMNS) + " |"
        )
    with atomic_path(out_md) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
