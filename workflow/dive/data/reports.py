"""Reports that something else wrote: rows of a CSV or JSON Lines file, and their import as a method's generations."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dive.data.generations import write_generations
from dive.data.roots import DataError
from dive.files import read_json
from dive.progress import log

NAMED = 20
"""Studies that an error lists by name; more are counted."""


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a ``.csv`` (with a header) or ``.jsonl`` file with these columns; others are passed over.

    An empty cell is the empty text, JSON's null is None.

    Raises:
        DataError: the file is absent or of another kind, a line of it cannot be read, or it lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no file {path}")
    if path.suffix.lower() == ".jsonl":
        rows = list(_json_lines(path))
        found = set().union(*rows) if rows else set()
    elif path.suffix.lower() == ".csv":
        csv.field_size_limit(sys.maxsize)
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            rows, found = list(reader), set(reader.fieldnames or ())
    else:
        raise DataError(f"{path}: reports are read from .csv or .jsonl files")
    if absent := [column for column in columns if column not in found]:
        raise DataError(
            f"{path}: has no column {', '.join(absent)}; it has {', '.join(sorted(map(str, found))) or 'none'}"
        )
    return [{column: row.get(column) for column in columns} for row in rows]


def _json_lines(path: Path):
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: no JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise DataError(f'{path}, line {number}: an object is expected, such as {{"report": ...}}')
            yield row


def by_study(rows: Sequence[Mapping[str, Any]], key: str, path: str | Path) -> dict[str, Mapping[str, Any]]:
    """Rows by their study.

    Raises:
        DataError: a study is there twice.
    """
    found: dict[str, Mapping[str, Any]] = {}
    twice = []
    for row in rows:
        name = str(row[key])
        if name in found:
            twice.append(name)
        found[name] = row
    if twice:
        raise DataError(f"{path}: {listed(twice)} more than once")
    return found


def listed(names: Sequence[str]) -> str:
    """``3 studies (a, b, c)``; of many the first NAMED."""
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {'study' if len(names) == 1 else 'studies'} ({', '.join(names[:NAMED])}{more})"


def import_reports(studies: str, pool: str, reports: str, out: str) -> None:
    """Write another system's reports of the test studies as generations, to be scored like any method's.

    Args:
        studies: ``studies.parquet`` of the dataset.
        pool: JSON whose ``test`` names the studies.
        reports: CSV or JSON Lines with ``study_uid`` (as in ``studies.parquet``) and ``report``. Every test study must
            be there once; other studies are counted and left out; an empty report stays one.
        out: the generations, in the order of the pool. Whether a report ended by itself is unknown (null), and
            ``n_tokens`` are words, since its tokenizer is unknown too.

    Raises:
        DataError: the file lacks test studies (all are listed, up to NAMED of them by name) or has one twice.
    """
    test = read_json(pool)["test"]
    table = pq.read_table(studies, columns=["study_uid", "patient_uid"]).to_pydict()
    patients = dict(zip(table["study_uid"], table["patient_uid"], strict=True))
    rows = by_study(read_rows(reports, ["study_uid", "report"]), "study_uid", reports)
    if missing := [uid for uid in test if uid not in rows]:
        raise DataError(
            f"{reports} lacks {listed(missing)} of the {len(test)} test studies in {pool}. Every method is scored on "
            "the same studies: a system that wrote nothing for one has an empty report there."
        )
    texts = [rows[uid]["report"] or "" for uid in test]
    log.info(
        "%d reports, %d of them empty; %d studies of the file are not in the test set",
        *(len(test), sum(not text.split() for text in texts), len(rows) - len(test)),
    )
    write_generations(
        out, ((uid, patients[uid], text, len(text.split()), None) for uid, text in zip(test, texts, strict=True))
    )
