"""Measured cost of every rule, from what its jobs left in ``benchmarks/``: where the time goes."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dive.files import atomic_path

COLUMNS = ("rule", "jobs", "total_s", "share", "median_s", "max_s", "cpu_s", "max_rss_mb")
"""Columns of the CSV: number of jobs; wall seconds summed, their share, median and maximum of one job; CPU seconds
summed; the highest memory of a job in MB."""


@dataclass(frozen=True)
class Job:
    """One job: its rule, wall seconds, CPU seconds and peak memory in MB."""

    rule: str
    seconds: float
    cpu: float
    memory: float


def read_jobs(folder: str) -> list[Job]:
    """Read what jobs left below ``folder``, whose first level names the rules (``generate/...tsv``, ``plot.tsv``).

    Costs are of the run that made the present result: a file is replaced whenever its job runs again.

    Raises:
        ValueError: if a file is not what a job leaves (`dive.job.logged`).
    """
    jobs = []
    for path in sorted(Path(folder).rglob("*.tsv")):
        rule = path.relative_to(folder).parts[0].removesuffix(".tsv")
        try:
            with path.open(newline="", encoding="utf-8") as handle:
                (row,) = csv.DictReader(handle, delimiter="\t")
            jobs.append(Job(rule, float(row["s"]), float(row["cpu_time"]), float(row["max_rss"])))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a cost file of a job; remove it") from error
    return jobs


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
        rows.append(
            {
                "rule": rule,
                "jobs": str(len(seconds)),
                "total_s": f"{totals[rule]:.1f}",
                "share": f"{totals[rule] / everything:.3f}" if everything else "",
                "median_s": f"{median(seconds):.1f}",
                "max_s": f"{max(seconds):.1f}",
                "cpu_s": f"{sum(job.cpu for job in rules[rule]):.1f}",
                "max_rss_mb": f"{max(job.memory for job in rules[rule]):.0f}",
            }
        )
    return rows


def summarise_costs(benchmarks: str, out_csv: str, out_md: str) -> None:
    """Write what every rule cost, the costliest first, as CSV and as a Markdown table.

    Args:
        benchmarks: folder of what jobs left, one subfolder or file a rule.
        out_csv: COLUMNS, a row a rule.
        out_md: the same for readers, with the sum of all jobs.

    Raises:
        ValueError: if no job left anything.
    """
    jobs = read_jobs(benchmarks)
    if not jobs:
        raise ValueError(f"there are no cost files of jobs in {benchmarks}; run the workflow first")
    rows = cost_rows(jobs)
    with atomic_path(out_csv) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    total = sum(job.seconds for job in jobs)
    peak = max(job.memory for job in jobs)
    lines = [
        "# Measured wall time of every rule",
        "",
        f"{len(jobs)} jobs, {total:.0f} s of job time in all (jobs run in parallel, so the run was shorter); "
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
