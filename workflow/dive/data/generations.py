"""The table of generated reports, which every row of the paper's table writes and every score reads."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from dive.files import atomic_path
from dive.parquet import read_table, write_table

SCHEMA = pa.schema(
    [
        ("study_uid", pa.string()),
        ("patient_uid", pa.string()),
        ("report", pa.string()),
        ("n_tokens", pa.int32()),
        ("stopped", pa.bool_()),
        ("ended_by", pa.string()),
    ]
)
"""A row a study, see ``Generation``."""


LONGEST = 100_000
"""Characters of the longest text that is scored, about 30 times a long report. Up to here every score takes less than a
second; a longer text is an error. It is never cut, since that would change its scores."""


class Generation(NamedTuple):
    """One report.

    Attributes:
        study_uid, patient_uid: whose it is.
        report: the text.
        n_tokens: its length in the backbone's tokens, without the one that ended it.
        stopped: whether the writer ended it: with any of the end tokens at which ``model.generate`` stops, and not by
            the limit on new tokens; None where nobody knows.
        ended_by: that token; None for a report that was cut, or was not written token by token.
    """

    study_uid: str
    patient_uid: str
    report: str
    n_tokens: int
    stopped: bool | None
    ended_by: str | None = None


def count_endings(stopped: Iterable[bool | None], ended_by: Iterable[str | None]) -> dict[str, int]:
    """How many reports each token ended, the limit on new tokens, or nobody knows what; the most frequent first."""
    otherwise = {True: "end of text", False: "length limit", None: "unknown"}
    counts = Counter(token or otherwise[flag] for flag, token in zip(stopped, ended_by, strict=True))
    return dict(counts.most_common())


def write_generations(path: str | Path, rows: Iterable[Sequence]) -> None:
    """Write rows with the fields of ``Generation``, atomically and in the order given."""
    columns = list(zip(*(Generation(*row) for row in rows), strict=True)) or [[] for _ in SCHEMA]
    table = pa.table([list(column) for column in columns], schema=SCHEMA)
    with atomic_path(path) as temporary:
        write_table(table, temporary)


def read_generations(path: str | Path) -> dict[str, list]:
    """Columns of ``SCHEMA`` as lists.

    Raises:
        ValueError: the file has other columns; the message names it.
    """
    table = read_table(path)
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{path}: columns are {table.schema.names}, expected {SCHEMA.names}")
    return table.to_pydict()
