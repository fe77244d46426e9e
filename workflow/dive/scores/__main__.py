"""Score any system: ``python -m dive.scores system.csv [another.jsonl] --out scores.csv``.

A file is CSV with a header or JSON Lines; a row is a report with its reference. Where references lie in a file of their
own, ``--references`` names it and rows are paired by ``--id``. Scores are those of the workflow's tables, by the same
code; RadGraph F1 and CheXbert F1 are measured where their weights are given.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dive.data.reports import by_study, listed, read_rows
from dive.data.roots import DataError
from dive.files import WeightsError, atomic_path
from dive.scores.assets import load_scorers
from dive.scores.lexicon import Lexicon
from dive.scores.score import ABSENT, CONVENTIONS, score_reports

VOCABULARY = Path(__file__).resolve().parents[2] / "resources/vocabulary.csv"


def read_pairs(path: str, options: argparse.Namespace) -> tuple[list[str], list[Any], list[Any], list[bool | None]]:
    """Identifiers, hypotheses, references and whether they ended, of one file.

    Raises:
        DataError: a file cannot be read, or a study of the references has no hypothesis (those are listed).
    """
    wanted = [options.hypothesis, *([options.stopped] if options.stopped else [])]
    if options.references:
        truth = by_study(read_rows(options.references, [options.id, options.reference]), options.id, options.references)
        rows = by_study(read_rows(path, [options.id, *wanted]), options.id, path)
        if missing := [name for name in truth if name not in rows]:
            raise DataError(f"{path} lacks {listed(missing)} of {options.references}")
        names = list(truth)
        references = [truth[name][options.reference] for name in names]
        chosen: Sequence[Mapping[str, Any]] = [rows[name] for name in names]
    else:
        chosen = read_rows(path, [options.reference, *wanted])
        names = [str(number) for number in range(1, len(chosen) + 1)]
        references = [row[options.reference] for row in chosen]
    if not chosen:
        raise DataError(f"{path}: has no reports")
    stopped = [as_flag(row[options.stopped], path) if options.stopped else None for row in chosen]
    return names, [row[options.hypothesis] for row in chosen], references, stopped


def as_flag(value: Any, path: str) -> bool | None:
    """Truth as CSV and JSON write it; an empty cell is unknown."""
    if value in (None, ""):
        return None
    known = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if known is None:
        raise DataError(f"{path}: whether a report ended is true or false (1 or 0), not {value!r}")
    return known


def print_table(table: Mapping[str, Mapping[str, float | None]], columns: Sequence[str]) -> None:
    """Metrics as rows, files as columns; what was not measured is left out."""
    width = max(map(len, table), default=0)
    widths = [max(len(name), 9) for name in columns]
    print(" " * width, *(f"{name:>{room}}" for name, room in zip(columns, widths, strict=True)), sep="  ")
    for metric, values in table.items():
        if all(values[name] is None for name in columns):
            continue
        cells = ["" if values[name] is None else f"{values[name]:.4f}" for name in columns]
        print(f"{metric:<{width}}", *(f"{c:>{room}}" for c, room in zip(cells, widths, strict=True)), sep="  ")


def write_scores(path: str, table: Mapping[str, Mapping[str, float | None]], columns, conventions) -> None:
    """A row a metric: its value for every file, and what it is; an empty cell was not measured."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["metric", *columns, "convention"])
        for metric, values in table.items():
            cells = ["" if values[name] is None else repr(values[name]) for name in columns]
            writer.writerow([metric, *cells, conventions.get(metric, "")])


def write_reports(path: str, parts: Sequence[tuple[str, Sequence[str], np.ndarray]], columns: Sequence[str]) -> None:
    """The additive statistics of every report of every file; no text."""
    tables = [
        pa.table(
            {
                "file": pa.array([file] * len(names), pa.string()),
                "id": pa.array(names, pa.string()),
                **{column: statistics[:, index] for index, column in enumerate(columns)},
            }
        )
        for file, names, statistics in parts
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m dive.scores", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="+", help="CSV or JSON Lines, one a system")
    add("--hypothesis", default="hypothesis", help="column of the generated report (default: %(default)s)")
    add("--reference", default="reference", help="column of the reference (default: %(default)s)")
    add("--references", help="file of the references, if they are not beside the hypotheses")
    add("--id", default="study_uid", help="column that pairs the two files (default: %(default)s)")
    add("--stopped", help="column that says whether the system ended a report, and no length limit")
    add("--out", help="CSV to write: a row a metric")
    add("--reports", help="parquet to write: the additive statistics of every report")
    add("--radgraph", help="folder that holds <archive>/{config.json, weights.th, vocabulary/}")
    add("--archive", default="radgraph-xl", help="RadGraph's archive (default: %(default)s)")
    add("--max-words", type=int, default=350, help="words of a hypothesis that RadGraph reads (default: %(default)s)")
    add("--lower", action="store_true", help="lower-case both sides for RadGraph")
    add("--chexbert", help="CheXbert's checkpoint, chexbert.pth")
    add("--encoder", default="bert-base-uncased", help="its BERT's configuration and vocabulary (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:<n> (default: %(default)s)")
    add("--remember", help="folder in which RadGraph and CheXbert remember what they read")
    add("--vocabulary", default=str(VOCABULARY), help="vocabulary of the lexicon scores (CSV)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write what was asked for; 0 on success, 1 when a file or weights are wrong."""
    options = parse(arguments)
    settings: dict[str, dict[str, Any] | None] = {"radgraph": None, "chexbert": None}
    if options.radgraph:
        settings["radgraph"] = {
            **{"path": options.radgraph, "archive": options.archive, "max_words": options.max_words},
            **{"lower": options.lower, "device": options.device},
        }
    if options.chexbert:
        settings["chexbert"] = {"path": options.chexbert, "encoder": options.encoder, "device": options.device}
    try:
        scorers = load_scorers(settings, options.remember)
        words = Lexicon(options.vocabulary)
        files = list(dict.fromkeys(options.files))
        results, parts = {}, []
        for file in files:
            names, hypotheses, references, stopped = read_pairs(file, options)
            results[file], statistics, columns = score_reports(hypotheses, references, words, stopped, scorers)
            absent = {name: None for name in ABSENT if name not in results[file]}
            results[file] = {"reports": float(len(names)), **results[file], **absent}
            parts.append((file, names, statistics))
    except (DataError, WeightsError) as error:
        print(error, file=sys.stderr)
        return 1
    table = {metric: {file: results[file][metric] for file in files} for metric in results[files[0]]}
    conventions = dict(CONVENTIONS)
    for scorer in scorers:
        conventions.update(scorer.conventions)
        print(
            f"{scorer.name}: {', '.join(f'{key} {value}' for key, value in scorer.identity.items() if key != 'scorer')}"
        )
    print_table(table, files)
    if options.out:
        write_scores(options.out, table, files, conventions)
    if options.reports:
        write_reports(options.reports, parts, columns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
