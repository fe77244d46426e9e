"""Parquet files that carry a checksum of themselves (`dive.sealed`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dive.sealed import KEY, REMEDY, UNSEALED, DamageError, checked, seal


def write_table(table: pa.Table, path: str | Path, compression: str = "snappy") -> None:
    """Write a table with its metadata and a checksum; the caller sees to it that the file appears whole."""
    metadata = {**(table.schema.metadata or {}), KEY: UNSEALED}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression=compression)
    seal(path)


def read_table(path: str | Path, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
    """Read columns of a table, of the rows that ``filters`` let through (as of ``pyarrow.parquet.read_table``).

    In one thread: a process that ends while a thread of pyarrow still starts is aborted ("terminate called without an
    active exception"), and the files are small.

    Raises:
        DamageError: the file differs from its checksum, or is no whole parquet file; the message names it.
    """
    source = _source(path)
    try:
        wanted = list(columns) if columns else None
        table = pq.read_table(source, columns=wanted, filters=filters, use_threads=False, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error
    return table.replace_schema_metadata(_without_checksum(table.schema))


def read_schema(path: str | Path) -> pa.Schema:
    """Columns and metadata of a table; the whole file is compared with its checksum.

    Raises:
        DamageError: as of `read_table`.
    """
    try:
        schema = pq.read_schema(_source(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error
    return schema.with_metadata(_without_checksum(schema))


def _source(path: str | Path) -> pa.BufferReader:
    return pa.BufferReader(pa.py_buffer(checked(path)))


def _without_checksum(schema: pa.Schema) -> dict[bytes, bytes] | None:
    kept = {key: value for key, value in (schema.metadata or {}).items() if key != KEY.encode()}
    return kept or None


def _unreadable(path: str | Path, error: Exception) -> DamageError:
    return DamageError(f"{path}: no whole parquet file ({error}); {REMEDY}")
