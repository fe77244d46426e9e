"""How long an annotator takes, and how that grows: ``python -m dive.annotation.benchmark 1000 10000 100000``.

Reports are drawn from the synthetic world, each different; drawing them is not timed, building the annotator is.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from dive.annotation.annotate import build_annotator
from dive.annotation.vocabulary import Report
from dive.data.synthetic.findings import sample_findings
from dive.data.synthetic.language import target_style, write_report

VOCABULARY = Path(__file__).resolve().parents[2] / "resources/vocabulary.csv"
SETTINGS = {
    "vocabulary": {"classes": ["observation", "pathology"], "include_cues": False},
    "idf": {"share": 0.3},
}


def different_reports(n: int, seed: int = 0) -> list[Report]:
    """``n`` reports in two styles, no two alike."""

    def drawn() -> Iterator[str]:
        rng = np.random.default_rng(seed)
        styles = [target_style("site_a"), target_style("site_b")]
        seen = set()
        for turn in count():
            # A size in every report: the world alone has fewer different ones than are asked for here.
            text = f"{write_report(sample_findings(rng), styles[turn % 2], rng)} Nodule of {turn / 10} mm."
            if text not in seen:
                seen.add(text)
                yield text

    return [Report(f"s{i}", "train", text) for i, text in zip(range(n), drawn(), strict=False)]


def measure(annotator: str, sizes: list[int]) -> list[tuple[int, float, int]]:
    """(number of reports, CPU seconds, spans found) for each number of reports."""
    reports = different_reports(max(sizes))
    rows = []
    for n in sizes:
        start = time.process_time()
        annotate = build_annotator({"annotator": annotator, **SETTINGS[annotator]}, {"vocabulary": str(VOCABULARY)})
        spans = sum(len(found) for found in annotate(reports[:n]))
        rows.append((n, time.process_time() - start, spans))
    return rows


def main(arguments: list[str]) -> None:
    """Print a line for each number of reports."""
    parser = argparse.ArgumentParser(prog="python -m dive.annotation.benchmark", description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[1_000, 10_000, 100_000], help="numbers of reports")
    parser.add_argument("--annotator", choices=sorted(SETTINGS), default="vocabulary")
    given = parser.parse_args(arguments)
    print(f"{'reports':>9} {'CPU s':>8} {'ms each':>8} {'spans':>9}")
    for n, seconds, spans in measure(given.annotator, sorted(given.sizes)):
        print(f"{n:>9,} {seconds:>8.2f} {1000 * seconds / n:>8.3f} {spans:>9,}")


if __name__ == "__main__":
    main(sys.argv[1:])
