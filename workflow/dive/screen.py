"""A run of Snakemake on one screen: what runs, how much is done by expected time, time left, finished rows of tables.

``snakemake --logger dive`` uses it through the package ``snakemake_logger_plugin_dive``. Errors and warnings are
printed. The scheduler's other messages are only in Snakemake's log (.snakemake/log), and those of jobs in the logs of
their rules. Where no terminal is attached, a line is printed every few seconds. A dry run is printed as Snakemake
prints it.

snakemake-logger-plugin-rich has a bar per rule that counts jobs. A job of one rule takes a hundred times as long here
as one of another, so its bars would say little about the time left.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

from dive.job import QUIET
from dive.reporting.costs import read_jobs

EXPECTED = {
    "distill": 5.6, "generate": 2.5, "probe_world": 7.8, "score": 0.7, "cache_teacher": 1.5, "cache_layers": 1.5,
    "analyse": 1.2, "plot": 2.6, "compare": 0.6, "cache_vision": 0.5, "compare_annotators": 1.0, "synthesize": 0.9,
    "compare_lexicon": 0.6, "build_backbone": 0.2,
}  # fmt: skip
"""Seconds of a job of the synthetic world, before any was measured here; rules that are not named take OTHER."""
OTHER = 0.2

PAUSE = 10.0
"""Seconds between two lines where no terminal is attached."""


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Settings of the plugin.

    Attributes:
        plan: file to which the jobs of a dry run are written, one JSON object per line.
    """

    plan: Path | None = field(
        default=None, metadata={"help": "File to which the jobs of a dry run are written, as JSON Lines", "type": Path}
    )


class Clock:
    """How much of a run is done, in expected seconds of its jobs.

    Args:
        measured: rule -> seconds that its jobs took before.
    """

    def __init__(self, measured: Mapping[str, list[float]]) -> None:
        self.measured = {rule: list(seconds) for rule, seconds in measured.items()}
        self.waiting: dict[str, int] = {}
        self.spent = 0.0
        self.began = time.monotonic()

    def expected(self, rule: str) -> float:
        """Seconds that a job of a rule will take: the median of those before it."""
        seconds = self.measured.get(rule)
        return median(seconds) if seconds else EXPECTED.get(rule, OTHER)

    def finish(self, rule: str, seconds: float) -> None:
        """Count a job that took some seconds."""
        self.waiting[rule] = max(0, self.waiting.get(rule, 0) - 1)
        self.measured.setdefault(rule, []).append(seconds)
        self.spent += seconds

    def state(self, running: list[tuple[str, float]]) -> tuple[float, float | None]:
        """Share that is done, and seconds that are left (None before a job has ended).

        Args:
            running: rule and seconds so far of each job at work.
        """
        ahead = sum(count * self.expected(rule) for rule, count in self.waiting.items())
        begun = sum(min(seconds, self.expected(rule)) for rule, seconds in running)
        done, total = self.spent + begun, self.spent + ahead
        elapsed = time.monotonic() - self.began
        if not self.spent or not total:
            return done / total if total else 0.0, None
        # Jobs run side by side: so many of their seconds pass in one.
        return min(1.0, done / total), max(0.0, ahead - begun) / max(done / elapsed, 0.1)


def measured_before(folder: str = "benchmarks") -> dict[str, list[float]]:
    """Rule -> seconds of its jobs, as an earlier run in this folder left them."""
    try:
        jobs = read_jobs(folder)
    except (OSError, ValueError):
        return {}
    found: dict[str, list[float]] = {}
    for job in jobs:
        found.setdefault(job.rule, []).append(job.seconds)
    return found


def row_of(summary: str | Path) -> str:
    """The scores of a method in a line, from its ``summary.json``; empty where they cannot be read."""
    try:
        metrics = json.loads(Path(summary).read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError):
        return ""
    named = {"bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "radgraph_f1": "RadGraph", "chexbert_f1": "CheXbert"}
    named |= {"lexicon_label_f1": "lex.label", "lexicon_graph_f1": "lex.graph"}
    known = {title: metrics.get(name, {}).get("mean") for name, title in named.items()}
    return "  ".join(f"{title} {value:5.1f}" for title, value in known.items() if value is not None)


def minutes(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class LogHandler(LogHandlerBase):
    """What Snakemake's logger sends its records to."""

    def __post_init__(self) -> None:
        self.dry = bool(self.common_settings.dryrun)
        self.plan = getattr(self.settings, "plan", None)
        self.clock = Clock({})
        self.jobs: dict[int, tuple[str, str, list[str]]] = {}
        self.running: dict[int, float] = {}
        self.printed = 0.0
        self.live: Any = None
        if not self.dry:
            # Jobs then tell the terminal of errors and warnings alone.
            os.environ[QUIET] = "1"

    @property
    def writes_to_stream(self) -> bool:
        """A dry run is printed by Snakemake itself."""
        return not self.common_settings.dryrun

    @property
    def writes_to_file(self) -> bool:
        """The plan is written apart."""
        return False

    @property
    def has_filter(self) -> bool:
        """Records are chosen in ``emit``."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Errors are printed as Snakemake formats them."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """It is not drawn."""
        return False

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; one that cannot be shown must not stop the run."""
        try:
            self.take(getattr(record, "event", None), record)
        except Exception:
            self.handleError(record)

    def take(self, event: str | None, record: Any) -> None:
        """Act on a record."""
        if self.dry:
            if self.plan and event == LogEvent.JOB_INFO:
                names = ("rule_name", "input", "output", "reason", "wildcards")
                with open(self.plan, "a", encoding="utf-8") as file:
                    file.write(json.dumps({name: getattr(record, name, None) for name in names}, default=str) + "\n")
            return
        if event == LogEvent.RUN_INFO:
            self.start(record.stats)
        elif event == LogEvent.JOB_INFO:
            told = record.rule_msg or record.rule_name
            self.jobs[record.jobid] = (record.rule_name, told, list(record.output or ()))
            self.running[record.jobid] = time.monotonic()
        elif event == LogEvent.JOB_FINISHED:
            self.finish(record.job_id)
        elif record.levelno >= logging.WARNING:
            self.print(self.format(record))
        self.refresh()

    def start(self, stats: Mapping[str, int]) -> None:
        """The jobs of a run are known: rule -> their number."""
        self.clock = Clock(measured_before())
        self.clock.waiting = {rule: int(count) for rule, count in stats.items() if rule not in ("total", "all")}
        if sys.stderr.isatty() and self.live is None and any(self.clock.waiting.values()):
            from rich.console import Console
            from rich.live import Live

            self.live = Live(
                get_renderable=self.screen, console=Console(stderr=True), refresh_per_second=2, transient=True
            )
            self.live.start()

    def finish(self, number: int) -> None:
        """A job has ended: count it, and print the row of the table that it scored."""
        rule, _, outputs = self.jobs.get(number, ("", "", []))
        if number in self.running:
            self.clock.finish(rule, time.monotonic() - self.running.pop(number))
        if rule == "score":
            summary = next((path for path in outputs if path.endswith("summary.json")), "")
            if row := row_of(summary):
                dataset, backbone, method = Path(summary).parts[-4:-1]
                place = f"{dataset}, {backbone}: {method}"
                self.print(f"{place:<52} {row}")

    def print(self, text: str) -> None:
        """Print above the screen."""
        if not text or text == "None":
            return
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def refresh(self) -> None:
        """Without a terminal: a line now and then."""
        now = time.monotonic()
        if self.live is None and self.running and now - self.printed >= PAUSE:
            self.printed = now
            print("; ".join(self.lines()), file=sys.stderr, flush=True)

    def lines(self, form: str = "{job} ({time})") -> list[str]:
        """How far the run is, and the jobs at work, each in this form."""
        now = time.monotonic()
        at_work = {number: now - began for number, began in self.running.items()}
        share, left = self.clock.state([(self.jobs[number][0], seconds) for number, seconds in at_work.items()])
        head = f"{100 * share:3.0f} % done in {minutes(now - self.clock.began)}"
        head += f", about {minutes(left)} left" if left is not None else ""
        jobs = [(self.jobs[number][1], minutes(seconds)) for number, seconds in at_work.items()]
        return [head, *(form.format(job=job, time=spent) for job, spent in jobs)]

    def screen(self) -> Any:
        """The lines as rich shows them: times in front, since a narrow terminal cuts the ends of lines."""
        from rich.text import Text

        return Text("\n  ".join(self.lines("{time}  {job}")), no_wrap=True, overflow="ellipsis")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        super().close()
