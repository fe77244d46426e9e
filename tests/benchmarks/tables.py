"""Comparisons within one run and the table that states them."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

HEADER = (
    *("measure", "backbone", "setting", "engine", "compared with", "ratio", "wanted", "asserted in the run"),
    "peak memory",
)


class Row(NamedTuple):
    """One line of the table; ``ratio`` is what ``measure`` says: a speed-up, a share, an exponent.

    ``memory`` is the peak of what is in the column ``engine``, on a GPU.
    """

    measure: str
    backbone: str
    setting: str
    engine: str
    other: str
    ratio: float | None
    wanted: str
    checked: str
    memory: str = ""


def in_turns(repetitions: int, ways: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Call every way once a repetition, in turn, and collect what they return."""
    found: dict[str, list[Any]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, way in ways.items():
            found[name].append(way())
    return found


def timed(way: Callable[[], Any]) -> Callable[[], float]:
    """``way``, returning its seconds; what a GPU still has to do is waited for."""

    def measure() -> float:
        wait()
        begin = time.perf_counter()
        way()
        wait()
        return time.perf_counter() - begin

    return measure


def wait() -> None:
    """Let the GPU finish, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of what was measured in the same repetition."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def milliseconds(seconds: Sequence[float], count: int = 1) -> str:
    """Median time of one of ``count``."""
    return f"{1000 * statistics.median(seconds) / count:,.1f} ms"


def rate(count: int, seconds: Sequence[float]) -> str:
    """``count`` things in the median time."""
    return f"{count / statistics.median(seconds):,.1f} a second"


def table(rows: Iterable[Row]) -> str:
    """Rows as Markdown; a column of memory where one of them has it."""
    rows = list(rows)
    header = HEADER if any(row.memory for row in rows) else HEADER[:-1]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = row._replace(ratio="" if row.ratio is None else f"{row.ratio:.3g}")[: len(header)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def made_by(command: str, machine: str) -> str:
    """When, on what and from which commit a table was made."""
    git = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy of the files alone
        commit = "unknown"
    return (
        f"`{command}`, {date.today()}, commit {commit}, {machine}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}."
    )


def processor() -> str:
    """The CPU in words."""
    return f"{len(os.sched_getaffinity(0))} cores, CPU, {torch.get_num_threads()} threads"


def put(path: str, marker: str, block: str) -> None:
    """Put a block of Markdown between ``<!-- marker -->`` and ``<!-- /marker -->`` of a file; the rest of it stays.

    A file without these markers gets the block with its markers at the end, and one that does not exist is created.

    Raises:
        ValueError: the file has one marker of a pair, or several pairs.
    """
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    text = Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
    if begin not in text and end not in text:
        text += f"{begin}{end}\n"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} needs one pair of markers {begin.strip()} and {end}")
    head, _, rest = text.partition(begin)
    Path(path).write_text(f"{head}{begin}{block}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
