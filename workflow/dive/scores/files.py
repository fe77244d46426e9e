"""Score the reports of any system from CSV or JSON Lines files, by the same code as the workflow's tables.

The command ``dive score`` calls :func:`score_files`.
"""

import csv
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dive.data.reports import by_study, flag, identifier, listed, read_rows, reference, report
from dive.data.roots import DataError
from dive.devices import claim_device
from dive.files import atomic_path
from dive.packaged import VOCABULARY
from dive.parquet import write_table
from dive.scores.assets import load_scorers
from dive.scores.lexicon import Lexicon
from dive.scores.score import ABSENT, CONVENTIONS, score_reports

ID = "study_uid"


@dataclass(frozen=True)
class Options:
    """How files are read and scored, and what is written.

    Attributes:
        hypothesis, reference: columns of the generated report and of its reference.
        references: file of the references, if they are not in the same file; rows are then paired by ``id``.
        id: column of the study. A file without it is scored too, unless another name than the default is given.
        stopped: column that says whether a report ended by its end-of-turn token.
        out: CSV to write, one row per metric.
        reports: parquet to write, the additive statistics of every report.
        radgraph: folder that holds ``<archive>/{config.json, weights.th, vocabulary/}``; None does not measure it.
        archive: RadGraph's archive.
        max_words: words of a hypothesis that RadGraph reads.
        lower: lower-case both sides for RadGraph.
        chexbert: CheXbert's checkpoint; None does not measure it.
        encoder: configuration and vocabulary of its BERT.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:<n>``.
        remember: folder in which RadGraph and CheXbert remember what they read.
        vocabulary: vocabulary of the lexicon scores (CSV).
    """

    hypothesis: str = "hypothesis"
    reference: str = "reference"
    references: str | None = None
    id: str = ID
    stopped: str | None = None
    out: str | None = None
    reports: str | None = None
    radgraph: str | None = None
    archive: str = "radgraph-xl"
    max_words: int = 350
    lower: bool = False
    chexbert: str | None = None
    encoder: str = "bert-base-uncased"
    device: str = "auto"
    remember: str | None = None
    vocabulary: str = VOCABULARY


class Pairs(NamedTuple):
    """Reports of one file with their references; ``ids`` are studies, or row numbers where ``named`` is false."""

    ids: list[str]
    named: bool
    hypotheses: list[str]
    references: list[str]
    stopped: list[bool | None]


def read_pairs(path: str, options: Options) -> Pairs:
    """The pairs of one file.

    Raises:
        DataError: a file cannot be read with certainty (:func:`dive.data.reports.read_rows`), has a study twice, or
            lacks a study of the references (those are listed).
    """
    wanted = {options.hypothesis: report, **({options.stopped: flag} if options.stopped else {})}
    if options.references:
        columns = {options.reference: reference, options.id: identifier}
        truth = by_study(read_rows(options.references, columns), options.id, options.references)
        rows = by_study(read_rows(path, {**wanted, options.id: identifier}), options.id, path)
        if missing := [name for name in truth if name not in rows]:
            raise DataError(
                f"{path} lacks {listed(missing)} of {options.references}; add them, with an empty report where the "
                "system wrote nothing"
            )
        if extra := [name for name in rows if name not in truth]:
            print(f"{path}: left out {listed(extra)} that {options.references} lacks", file=sys.stderr)
        ids, named = list(truth), True
        references = [truth[name][options.reference] for name in ids]
        cells = [rows[name] for name in ids]
    else:
        columns = {**wanted, options.reference: reference}
        own = {options.id: identifier}  # a file without identifiers is scored all the same, unless they are asked for
        read = read_rows(path, columns, own) if options.id == ID else read_rows(path, {**columns, **own})
        cells, named = [row.cells for row in read], options.id in read[0].cells
        ids = list(by_study(read, options.id, path)) if named else [str(row.number) for row in read]
        references = [row[options.reference] for row in cells]
    stopped = [row[options.stopped] if options.stopped else None for row in cells]
    return Pairs(ids, named, [row[options.hypothesis] for row in cells], references, stopped)


def check_same_studies(pairs: Mapping[str, Pairs], key: str) -> None:
    """Refuse files whose scores cannot be compared, and say where their references differ.

    Raises:
        DataError: two files hold other studies, or, where rows have no identifier, other numbers of them.
    """
    (first, ours), *others = pairs.items()
    for path, theirs in others:
        remedy = "score them in separate commands, or remove what only one of them has"
        if len(ours.ids) != len(theirs.ids):
            raise DataError(f"{first} has {len(ours.ids)} reports and {path} has {len(theirs.ids)}; {remedy}")
        if ours.named and theirs.named and (differing := sorted({*ours.ids} ^ {*theirs.ids})):
            raise DataError(f"{first} and {path} differ in {listed(differing)} (column {key}); {remedy}")
        if changed := _other_references(ours, theirs):
            print(
                f"{first} and {path} have other references of {changed}; compare their scores only if that is meant, "
                "or give the references once, by --references",
                file=sys.stderr,
            )


def _other_references(ours: Pairs, theirs: Pairs) -> str:
    """Which references differ by more than white space between two files, in words; empty where none does."""
    left, right = ([" ".join(text.split()) for text in pairs.references] for pairs in (ours, theirs))
    if ours.named and theirs.named:
        of_theirs = dict(zip(theirs.ids, right, strict=True))
        changed = sorted(name for name, text in zip(ours.ids, left, strict=True) if of_theirs[name] != text)
        return listed(changed) if changed else ""
    differing = (Counter(left) - Counter(right)).total()
    return f"{differing} of {len(left)} rows" if differing else ""


def check_columns(options: Options) -> None:
    """See that every column has one meaning: a report that is its own reference has the best of scores.

    Raises:
        DataError: two options name one column.
    """
    given = {name: getattr(options, name) for name in ("hypothesis", "reference", "id")}
    if options.references and given["hypothesis"] == given["reference"]:
        del given["reference"]  # a column of another file
    for name, column in given.items():
        if twice := [other for other in given if other != name and given[other] == column]:
            raise DataError(f"--{name} and --{twice[0]} both name the column {column}; name another one")


def check_targets(files: Sequence[str], options: Options) -> None:
    """See that what is asked for can be written, before anything is computed.

    Raises:
        DataError: a file to write is a folder, is read or written otherwise, or lies where no folder can be.
    """
    taken = {Path(path).resolve(): "is read" for path in [*files, options.references, options.vocabulary] if path}
    for option, path in (("--out", options.out), ("--reports", options.reports)):
        if path is None:
            continue
        if not path.strip():
            raise DataError(f"{option} is empty; name a file to write, or omit it")
        target = Path(path).resolve()
        if target.is_dir():
            raise DataError(f"{option} {path} is a folder; name a file to write, such as {path.rstrip('/')}/scores.csv")
        if target in taken:
            raise DataError(f"{option} {path} {taken[target]} by this command; name another file")
        there = next(parent for parent in target.parents if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise DataError(f"{option} {path}: nothing can be written in {there}; name another folder")
        taken[target] = "is written"
    if options.remember and Path(options.remember).exists() and not Path(options.remember).is_dir():
        raise DataError(f"--remember {options.remember} is a file; name a folder")


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
        write_table(pa.concat_tables(tables), temporary)


def check_device(setting: str) -> None:
    """See that the device is there, before anything is computed.

    Raises:
        DataError: it is not.
    """
    try:
        claim_device(setting, "--device")
    except ValueError as error:
        raise DataError(str(error)) from None


def score_files(files: Sequence[str], options: Options) -> None:
    """Score files of reports, print a table with a column per file, and write what the options ask for.

    Everything that can be wrong with the files and options is found before anything is computed or written.

    Args:
        files: CSV with a header or JSON Lines, one per system. A row is a report with its reference. Files that are
            scored together must hold the same studies, each of them once.
        options: see Options.

    Raises:
        DataError: a file cannot be read with certainty, or cannot be compared with the others.
        WeightsError: the weights of RadGraph or CheXbert are absent or not the expected ones.
    """
    check_columns(options)
    check_targets(files, options)
    pairs = {file: read_pairs(file, options) for file in dict.fromkeys(files)}
    check_same_studies(pairs, options.id)
    words = Lexicon(options.vocabulary)
    settings = model_settings(options)
    if any(settings.values()):
        check_device(options.device)
    scorers = load_scorers(settings, options.remember)
    results, parts = {}, []
    for file, (ids, _, hypotheses, references, stopped) in pairs.items():
        results[file], statistics, columns = score_reports(hypotheses, references, words, stopped, scorers)
        absent = {name: None for name in ABSENT if name not in results[file]}
        results[file] = {"reports": float(len(ids)), **results[file], **absent}
        parts.append((file, ids, statistics))
    names = list(pairs)
    table = {metric: {file: results[file][metric] for file in names} for metric in results[names[0]]}
    conventions = {**CONVENTIONS, **{name: text for scorer in scorers for name, text in scorer.conventions.items()}}
    if options.out:
        write_scores(options.out, table, names, conventions)
    if options.reports:
        write_reports(options.reports, parts, columns)
    for scorer in scorers:
        print(
            f"{scorer.name}: {', '.join(f'{key} {value}' for key, value in scorer.identity.items() if key != 'scorer')}"
        )
    print_table(table, names)


def model_settings(options: Options) -> dict[str, dict[str, Any] | None]:
    """Settings of the scores that need a model, as :func:`load_scorers` takes them; None where no weights are given."""
    radgraph = {
        **{"path": options.radgraph, "archive": options.archive, "max_words": options.max_words},
        **{"lower": options.lower, "device": options.device},
    }
    chexbert = {"path": options.chexbert, "encoder": options.encoder, "device": options.device}
    return {
        "radgraph": radgraph if options.radgraph else None,
        "chexbert": chexbert if options.chexbert else None,
    }
