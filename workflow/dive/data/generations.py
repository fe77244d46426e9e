"""The table of generated reports, which every row of the paper's table writes and every score reads."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dive.files import atomic_path

SCHEMA = pa.schema(
    [
        ("study_uid", pa.string()),
        ("patient_uid", pa.string()),
        ("report", pa.string()),
        ("n_tokens", pa.int32()),
        ("stopped", pa.bool_()),
    ]
)
"""A row a study: the text, its length in the backbone's tokens, and whether TERM ended it (not the length limit)."""


LONGEST = 100_000
"""Characters of the longest text that is scored, about 30 times a long report. Up to here every score takes less than a
second; a longer text is an error. It is never cut, since that would change its scores."""


def write_generations(path: str | Path, rows: Iterable[tuple[str, str, str, int, bool]]) -> None:
    """Write (study_uid, patient_uid, report, n_tokens, stopped) rows, atomically and in the order given."""
    columns = list(zip(*rows, strict=True)) or [[] for _ in SCHEMA]
    table = pa.table([list(column) for column in columns], schema=SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_generations(path: str | Path) -> dict[str, list]:
    """Columns of ``SCHEMA`` as lists.

    Raises:
        ValueError: the file has other columns; the message names it.
    """
    table = pq.read_table(path)
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{path}: columns are {table.schema.names}, expected {SCHEMA.names}")
    return table.to_pydict()
