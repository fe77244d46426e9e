"""CSV tables of the datasets, by columns' names, and strictly: what is wrong with a file is said in one sentence.

Cells never stand in a message: they may hold a patient's report.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dive.data.downloads import AGAIN, table_problem
from dive.data.roots import DataError

SEPARATORS = (",", ";", "\t", "|")
NOTHING = ("", "NaN", "nan", "NAN", "Nan", "<NA>", "null", "NULL", "Null", "(null)", "NaT", "\\N")
NOTHING += ("#N/A", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!", "#DIV/0!")
"""Cells that say that there is nothing. ``None`` and ``NA`` are not among them: radiologists write such words. A
spreadsheet makes #NAME? of a text that begins with a dash."""

BLOCK = 1 << 24
"""Bytes parsed at a time; no row is longer."""

HEADER = 1 << 16
"""Bytes in which the header must end."""

UNEVEN = re.compile(r"Row #(\d+): Expected \d+ columns, got (\d+)")
"""What pyarrow says of a row with more or fewer cells than the header."""

FALLBACK = "cp1252"
"""Decoding of bytes that are not UTF-8: what Windows writes, and where a byte means the same in Latin-1."""


@dataclass
class CsvTable:
    """Some columns of a table, as text.

    Attributes:
        path: the file.
        frame: the columns under the asked names; trimmed strings, missing where a cell says nothing. Bytes without a
            meaning are U+FFFD.
        recoded: column -> cells that were not UTF-8 and were read as Windows-1252.
    """

    path: Path
    frame: pd.DataFrame
    recoded: dict[str, int]

    def row(self, mask: pd.Series | np.ndarray) -> str:
        """The first row where ``mask`` is true, as a person would count it."""
        return f"row {int(np.flatnonzero(np.asarray(mask))[0]) + 2} (the header is row 1)"


class _Watched:
    """A binary file that counts its quotes while it is read: an odd number means that one is never closed."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self.quotes, self.closed = handle, 0, False

    def read(self, size: int = -1) -> bytes:
        content = self._handle.read(size)
        self.quotes += content.count(b'"')
        return content

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def plain(name: str) -> str:
    """A column's name without the differences that do not matter: case, blanks and underscores around and within."""
    return " ".join(name.replace("_", " ").split()).casefold()


def read_csv(
    path: Path, columns: Sequence[str], aliases: Mapping[str, str] | None = None, source: str = AGAIN
) -> CsvTable:
    """Read the named columns of a CSV file, gzipped or not.

    The separator is told from the header; names may differ in case, blanks and underscores, and a byte-order mark is
    skipped. Other columns are parsed and dropped.

    Args:
        path: the table.
        columns: names to read.
        aliases: other names of columns, lower-cased -> the name among ``columns``.
        source: what to do about a damaged table.

    Raises:
        DataError: the file is no such table; the message names file, row and remedy, and no cell.
    """
    problem = table_problem(path)
    if problem:
        raise DataError(f"{path}: {problem}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            start = handle.read(HEADER)
            separator, places, width = find_columns(path, start, columns, aliases or {})
            handle.seek(0)
            table = _parse(path, handle, separator, places, width, source)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be read, it is cut off or damaged ({error}); {source}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {source}") from error
    read, recoded = {}, {}
    for name in columns:
        text, recoded[name] = _as_text(table[name])
        trimmed = pc.utf8_trim_whitespace(text)
        nothing = pc.is_in(trimmed, value_set=pa.array(NOTHING))
        read[name] = pc.if_else(nothing, pa.scalar(None, pa.string()), trimmed)
    frame = pa.table(read).to_pandas()
    return CsvTable(path, frame, recoded)


def find_columns(
    path: Path, start: bytes, columns: Sequence[str], aliases: Mapping[str, str]
) -> tuple[str, dict[str, int], int]:
    """Separator of a table, name -> place of each wanted column, and the number of columns, by the header.

    Raises:
        DataError: a column is absent or stands there twice.
    """
    wanted = {plain(name): name for name in columns} | {plain(name): column for name, column in aliases.items()}
    text = start.decode("utf-8-sig", errors="replace")
    best: tuple[str, list[str]] = (",", [])
    for separator in SEPARATORS:
        cells = next(csv.reader([text.lstrip("\r\n").splitlines()[0] if text.strip() else ""], delimiter=separator), [])
        names = [wanted.get(plain(cell), "") for cell in cells]
        if sum(map(bool, names)) > sum(map(bool, best[1])):
            best = (separator, names)
    separator, names = best
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise DataError(
            f"{path} has no column {', '.join(lacking)}: its first line must name the columns {', '.join(columns)}; "
            "is it another table?"
        )
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise DataError(f"{path} has the column {', '.join(twice)} twice; remove one of them")
    return separator, {name: names.index(name) for name in columns}, len(names)


def _parse(
    path: Path, handle: BinaryIO, separator: str, places: Mapping[str, int], width: int, source: str
) -> pa.Table:
    """The wanted columns as binary; every row must have as many cells as the header."""
    watched = _Watched(handle)
    numbers = [str(place) for place in range(width)]
    kept = {str(place): pa.binary() for place in places.values()}
    try:
        table = pa.csv.read_csv(
            pa.PythonFile(watched, mode="r"),
            pa.csv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=numbers, skip_rows_after_names=1),
            pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            pa.csv.ConvertOptions(column_types=kept, include_columns=list(kept), strings_can_be_null=False),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        # The error itself repeats the row, which may be a report.
        found = UNEVEN.search(str(error))
        if found:
            raise DataError(
                f"{path}, row {found[1]} (the header is row 1): {found[2]} cells where the header has {width}: cut "
                f"off, or a quote or comma is out of place; {source}"
            ) from None
        if "straddl" in str(error):
            size = f"{BLOCK >> 20} MiB"
            raise DataError(f"{path} has a row of more than {size}: a quote is never closed; {source}") from None
        raise DataError(f"{path}: cannot be read as a table; {source}") from None
    if watched.quotes % 2:
        raise DataError(f"{path} has a quote that is never closed; {source}")
    return table.select([str(places[name]) for name in places]).rename_columns(list(places))


def _as_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """A binary column as strings, and how many cells were not UTF-8 and were read as Windows-1252."""
    try:
        return column.cast(pa.string()), 0
    except pa.ArrowInvalid:
        pass
    texts, recoded = [], 0
    for cell in column.to_pylist():
        text, other = decode(cell)
        recoded += other and text is not None
        texts.append(cell.decode("utf-8", errors="replace") if text is None else text)
    return pa.chunked_array([pa.array(texts, pa.string())]), recoded


def decode(content: bytes) -> tuple[str | None, bool]:
    """Text of bytes, and whether another decoding than UTF-8 was needed; the text is None where none fits.

    UTF-8 first, with or without a byte-order mark, then UTF-16 with one, then Windows-1252. Bytes that it leaves
    undefined are no text.
    """
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8"), False
    except UnicodeDecodeError:
        pass
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else FALLBACK
    try:
        return content.decode(encoding), True
    except UnicodeDecodeError:
        return None, True


def integers(table: CsvTable, column: str, prefix: str) -> pd.Series:
    """A column of ids as integers, missing ones as -1.

    Accepted is what programs make of integers on the way: ``50000001.0``, blanks, and the ``p`` or ``s`` of the
    folders' names.

    Args:
        table: of `read_csv`.
        column: its name.
        prefix: the letter that may stand before an id.

    Raises:
        DataError: a cell is something else; the message names file, row and column.
    """
    values = pa.Array.from_pandas(table.frame[column], type=pa.string())
    try:
        numbers = values.cast(pa.int64())
    except pa.ArrowInvalid:
        pattern = f"^[{prefix}{prefix.upper()}]?(?P<id>[0-9]{{1,18}})(?:[.]0*)?$"
        numbers = pc.struct_field(pc.extract_regex(values, pattern), "id").cast(pa.int64())
        strange = pc.and_(values.is_valid(), numbers.is_null())
        if pc.any(strange).as_py():
            where = table.row(strange.to_numpy(zero_copy_only=False))
            raise DataError(
                f"{table.path}, {where}: its {column} is no whole number, as when a spreadsheet has rewritten or "
                f"shifted it; {AGAIN}"
            ) from None
    result = pd.Series(numbers.fill_null(-1).to_numpy(zero_copy_only=False), index=table.frame.index)
    if (result < -1).any():
        raise DataError(f"{table.path}, {table.row(result < -1)}: its {column} is negative; {AGAIN}")
    return result


def numbers(table: CsvTable, column: str) -> pd.Series:
    """A column of labels as floats, missing ones as NaN.

    Raises:
        DataError: a cell is no finite number; the message names file, row and column.
    """
    values = pd.to_numeric(table.frame[column], errors="coerce").astype(float)
    strange = (values.isna() & table.frame[column].notna()) | np.isinf(values)
    if strange.any():
        raise DataError(
            f"{table.path}, {table.row(strange)}: its {column} is no number; labels are 1, 0, -1 or nothing; {AGAIN}"
        )
    return values


def split_names(table: CsvTable, column: pd.Series, known: Sequence[str]) -> pd.Series:
    """A column of splits in lower case, missing ones as they are; what is no known split becomes ``other``.

    In a table whose cells are shifted it may be any text, which must not get into lists and messages.

    Raises:
        DataError: no row is in a known split.
    """
    names = column.str.lower()
    unknown = names.notna() & ~names.isin(known)
    if not names.isin(known).any():
        raise DataError(
            f"{table.path}: no row of its column {column.name} has {', '.join(known)}; is it another table?"
        )
    return names.mask(unknown, "other")


def view_codes(views: pd.Series) -> pd.Series:
    """View positions in capitals, empty where there is none; what cannot be one becomes OTHER, as it may be text."""
    codes = views.fillna("").str.upper()
    names = {code: code if re.fullmatch(r"[A-Z0-9 _/-]{0,24}", code) else "OTHER" for code in codes.unique()}
    return codes.map(names)
