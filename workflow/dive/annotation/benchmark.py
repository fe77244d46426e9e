"""How long an annotator takes, and how that grows: ``python -m dive.annotation.benchmark 1000 10000 100000``.

Reports are drawn from the synthetic world, as written and with no sentence twice (the vocabulary remembers sentences,
of which reports repeat many). Drawing them is not timed, building the annotator is.
"""

import argparse
import re
import sys
import time
from itertools import count

import numpy as np

from dive.annotation.annotate import build_annotator
from dive.annotation.vocabulary import Report
from dive.data.synthetic.findings import sample_findings
from dive.data.synthetic.language import target_style, write_report
from dive.packaged import VOCABULARY

SETTINGS = {
    "vocabulary": {"classes": ["observation", "pathology"], "include_cues": False},
    "idf": {"share": 0.3},
}


def drawn_reports(n: int, seed: int = 0) -> list[str]:
    """``n`` reports in two styles; like real ones they repeat their sentences."""
    rng = np.random.default_rng(seed)
    styles = [target_style("site_a"), target_style("site_b")]
    return [write_report(sample_findings(rng), styles[i % 2], rng) for i in range(n)]


def unrepeated(texts: list[str]) -> list[str]:
    """The same reports with an image number at the end of every sentence, so that no sentence is there twice."""
    numbers = count(1)
    return [re.sub(r"(?=[.](?:\s|$))", lambda _: f" on image {next(numbers)}", text) for text in texts]


def measure(annotator: str, texts: list[str]) -> tuple[float, int]:
    """CPU seconds to build an annotator and annotate all texts, and the number of spans."""
    reports = [Report(f"s{i}", "train", text) for i, text in enumerate(texts)]
    start = time.process_time()
    annotate = build_annotator({"annotator": annotator, **SETTINGS[annotator]}, {"vocabulary": VOCABULARY})
    spans = sum(len(found) for found in annotate(reports))
    return time.process_time() - start, spans


def main(arguments: list[str]) -> None:
    """Print a line for each number of reports."""
    parser = argparse.ArgumentParser(prog="python -m dive.annotation.benchmark", description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[1_000, 10_000, 100_000], help="numbers of reports")
    parser.add_argument("--annotator", choices=sorted(SETTINGS), default="vocabulary")
    given = parser.parse_args(arguments)
    print(f"{'reports':>9} {'spans':>9} {'CPU s':>8} {'ms each':>8}   {'CPU s':>8} {'ms each':>8}  no sentence twice")
    texts = drawn_reports(max(given.sizes))
    for n in sorted(given.sizes):
        seconds, spans = measure(given.annotator, texts[:n])
        longest, _ = measure(given.annotator, unrepeated(texts[:n]))
        cells = [f"{n:>9,} {spans:>9,}", *(f"{s:>8.2f} {1000 * s / n:>8.3f}" for s in (seconds, longest))]
        print(f"{cells[0]} {cells[1]}   {cells[2]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
