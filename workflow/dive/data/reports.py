"""Reports that something else wrote: rows of a CSV or JSON Lines file, and their import as a method's generations.

Such a file is read strictly. A comma or a quote in the wrong place cuts a text, empties it or joins it to the next, and
a score of such texts would be wrong without a word. So whatever is not certain is an error, which names the file, the
row and the remedy, and never repeats a text.
"""

import csv
import json
import math
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dive.data.generations import LONGEST, write_generations
from dive.data.roots import DataError
from dive.files import read_json
from dive.parquet import read_table
from dive.progress import log

NAMED = 20
"""Studies that an error lists by name; more are counted."""

LONGEST_LINE = 10_000_000
"""Characters of the longest line of a file, columns that are passed over included."""

MISSING = {"nan", "nat", "na", "n/a", "<na>", "none", "null", "(null)", "\\n"}
MISSING |= {"#n/a", "#name?", "#null!", "#num!", "#ref!", "#value!", "#div/0!"}
"""What programs write where a value is missing, in small letters: as the whole of a cell it is no report. A spreadsheet
makes #NAME? of a report that begins with a dash."""

BLANK = string.whitespace + "\u00a0\u200b\ufeff"
"""Characters around an identifier that nobody sees; files that were joined have byte-order marks within."""

_NO_TEXT = re.compile("[\\x00\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")

Cell = Callable[[Any], Any]
"""Reads a cell (a text in CSV, any value in JSON); its ValueError says what is wrong with the cell, and the remedy."""


class Row(NamedTuple):
    """A row of a file: its number and its line, both counted from 1, and its cells by column."""

    number: int
    line: int
    cells: dict[str, Any]

    def __str__(self) -> str:
        return f"row {self.number}, line {self.line}"


def identifier(value: Any) -> str:
    """The name of a study or patient: a text, or a whole number in JSON; blanks around it are no part of it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = unicodedata.normalize("NFC", _text(value, "write the identifier as a text").strip(BLANK))
    if not name or is_missing(name):
        raise ValueError("is empty; every row needs its identifier")
    return name


def is_missing(text: str) -> bool:
    """Whether a cell says that its value is missing; ``none`` in small letters is a word that a system may write."""
    return text.strip().lower() in MISSING and text.strip() != "none"


def report(value: Any) -> str:
    """A generated report; an empty cell, or null in JSON, is a report without words."""
    remedy = "leave the cell empty (null in JSON) where the system wrote nothing"
    text = "" if value is None else _text(value, remedy)
    if is_missing(text):
        raise ValueError(f"holds {text.strip()}, which stands for a missing value; {remedy}")
    return text


def reference(value: Any) -> str:
    """A reference, which has words; ``___`` alone is what was removed of them."""
    remedy = "give the row its reference, or remove the row"
    text = "" if value is None else _text(value, remedy)
    if is_missing(text) or not text.strip(BLANK + "_"):
        raise ValueError(f"holds no reference; {remedy}")
    return text


def flag(value: Any) -> bool | None:
    """Truth as CSV and JSON write it; an empty cell, or null in JSON, is unknown."""
    if value is None or value == "":
        return None
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if isinstance(value, str | int | float) and str(value).lower() in known:
        return known[str(value).lower()]
    raise ValueError("says neither true nor false; write true or false (1 or 0), or leave the cell empty")


def _text(value: Any, remedy: str) -> str:
    if not isinstance(value, str):
        kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
        name = "NaN" if isinstance(value, float) and math.isnan(value) else kinds.get(type(value), "null")
        raise ValueError(f"is {name} and no text; {remedy}")
    if _SURROGATE.search(value):
        raise ValueError(r"holds half a character (a lone surrogate, as \ud83d); write the text anew from its source")
    if len(value) > LONGEST:
        raise ValueError(
            f"has {len(value):,} characters, more than the {LONGEST:,} that are scored; look for a quote or a line "
            "break that is missing, or shorten the text"
        )
    return value


def read_rows(path: str | Path, columns: Mapping[str, Cell], optional: Mapping[str, Cell] | None = None) -> list[Row]:
    """Rows of a ``.csv`` (with a header) or ``.jsonl`` file with these columns; others are passed over.

    Text is UTF-8, with or without a byte-order mark; empty lines are passed over. In CSV every row has as many cells as
    the header, and a text with a comma, a quote or a line break stands in quotes.

    Args:
        path: the file.
        columns: column -> how its cells are read: `identifier`, `report`, `reference` or `flag`.
        optional: the same for columns that the file need not have; it has them in all rows or in none.

    Raises:
        DataError: the file is absent or of another kind, a row cannot be read with certainty, or it lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is a folder, not a file" if path.is_dir() else f"no file {path}; check the path")
    formats = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in formats:
        raise DataError(f"{path}: reports are read from .csv or .jsonl files; unpack or convert it")
    wanted = {**(optional or {}), **columns}
    rows = []
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
        for row in formats[path.suffix.lower()](path, _lines(path, handle), columns, wanted):
            cells = {}
            for name, value in row.cells.items():
                try:
                    cells[name] = wanted[name](value)
                except ValueError as error:
                    raise DataError(f"{path}, {row}: column {name} {error}") from None
            rows.append(row._replace(cells=cells))
    if not rows:
        raise DataError(f"{path}: has no reports; check that it is the right file")
    return rows


def _lines(path: Path, handle: Any) -> Iterator[str]:
    """Lines of an open file; each is text and has an end."""
    number = 0
    while line := handle.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{path}, line {number}: has more than {LONGEST_LINE:,} characters; add line breaks or shorten it"
            )
        if found := _NO_TEXT.search(line):
            raise DataError(
                f"{path}, line {number}: byte 0x{ord(found[0]) & 0xFF:02x} at character {found.start() + 1} is no text "
                "in UTF-8; the file may be in Windows-1252 or UTF-16: save it as UTF-8"
            )
        yield line


def _csv_rows(path: Path, lines: Iterable[str], columns: Iterable[str], wanted: Mapping[str, Cell]) -> Iterator[Row]:
    header: list[str] = []
    names: list[str] = []
    number = 0
    limit = csv.field_size_limit(LONGEST_LINE)
    try:
        reader = csv.reader(lines, strict=True)
        while True:
            line = reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                break
            if not cells:
                continue
            if not header:
                header = cells
                _check_names(f"{path}, line {line}", header, columns, wanted)
                names = [name.strip(BLANK) for name in header]
                continue
            number += 1
            place = f"{path}, row {number}, line {line}"
            if len(cells) != len(header):
                raise DataError(
                    f"{place}: has {len(cells)} cells where the header has {len(header)}; put a text with a comma in "
                    "quotes, or add the cells that are missing"
                )
            if sorted(cell.strip(BLANK) for cell in cells) == sorted(names):
                raise DataError(f"{place}: repeats the header; remove the row")
            named = zip(header, cells, strict=True)
            yield Row(number, line, {name: cell for name, cell in named if name in wanted})
    except csv.Error as error:
        place = f"{path}, row {number + 1}, line {line}" if header else f"{path}, line {line}"
        raise DataError(
            f"{place}: is no CSV ({error}); close the quote that is open there, and double a quote inside a text"
        ) from None
    finally:
        csv.field_size_limit(limit)
    if not header:
        raise DataError(f"{path}: is empty; its first row must name the columns {', '.join(columns)}")


def _json_rows(path: Path, lines: Iterable[str], columns: Iterable[str], wanted: Mapping[str, Cell]) -> Iterator[Row]:
    present: list[str] = []
    number = 0
    for line, text in enumerate(lines, start=1):
        if not (text := text.lstrip("\ufeff")).strip():
            continue
        number += 1
        place = f"{path}, row {number}, line {line}"
        row = _json_row(place, text)
        if not present:
            _check_names(place, list(row), columns, wanted)
            present = [name for name in wanted if name in row]
        if absent := [name for name in present if name not in row]:
            raise DataError(f"{place}: has no {', '.join(absent)}; add it, as null where the system wrote nothing")
        if added := [name for name in wanted if name in row and name not in present]:
            raise DataError(
                f"{place}: has {', '.join(added)}, but rows before it do not; give it to all rows or to none"
            )
        yield Row(number, line, {name: row[name] for name in present})


def _json_row(place: str, text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise DataError(f"{place}: names a column twice; remove one of the two")
        return found

    try:
        row = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: no JSON ({error.msg}, character {error.pos + 1}); every line must be a whole object"
        ) from None
    except (ValueError, RecursionError):
        raise DataError(
            f"{place}: holds a number of thousands of digits or thousands of nested lists; remove that column"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f'{place}: an object is expected, such as {{"report": ...}}; write one object a line')
    return row


def _check_names(place: str, found: Sequence[str], columns: Iterable[str], wanted: Iterable[str]) -> None:
    if twice := [name for name in wanted if found.count(name) > 1]:
        times = found.count(twice[0])
        raise DataError(f"{place}: has the column {twice[0]} {times} times; remove or rename the others")
    if absent := [name for name in columns if name not in found]:
        # Where there is no header, the first row is a report, which is not to be shown.
        named = all(len(name) <= 40 and len(name.split()) <= 4 for name in found)
        there = f"it has {', '.join(sorted(found)) or 'none'}" if named else "its first row is no header"
        hint = "; columns are separated by commas" if len(found) == 1 else "; rename or add it"
        raise DataError(f"{place}: has no column {', '.join(absent)}; {there}{hint}")


def by_study(rows: Iterable[Row], key: str, path: str | Path) -> dict[str, dict[str, Any]]:
    """Cells by their study.

    Raises:
        DataError: a study is there twice.
    """
    found: dict[str, dict[str, Any]] = {}
    places: dict[str, list[Row]] = {}
    for row in rows:
        found[row.cells[key]] = row.cells
        places.setdefault(row.cells[key], []).append(row)
    if twice := [name for name, rows_of in places.items() if len(rows_of) > 1]:
        first = " and ".join(map(str, places[twice[0]][:2]))
        raise DataError(f"{path}: {listed(twice)} more than once (first: {first}); keep one row of each study")
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
            be there once; other studies are counted and left out; an empty report stays one. Where the file has a
            ``patient_uid``, it must be that of the dataset.
        out: the generations, in the order of the pool. Whether a report ended by itself is unknown (null), and
            ``n_tokens`` are words, since its tokenizer is unknown too.

    Raises:
        DataError: the file cannot be read with certainty (:func:`read_rows`), lacks test studies (all are listed, up to
            NAMED of them by name), has one twice, or has one under another patient.
    """
    test = read_json(pool)["test"]
    table = read_table(studies, columns=["study_uid", "patient_uid"]).to_pydict()
    patients = dict(zip(table["study_uid"], table["patient_uid"], strict=True))
    read = read_rows(reports, {"study_uid": identifier, "report": report}, {"patient_uid": identifier})
    rows = by_study(read, "study_uid", reports)
    if missing := [uid for uid in test if uid not in rows]:
        raise DataError(
            f"{reports} lacks {listed(missing)} of the {len(test)} test studies in {pool}. Every method is scored on "
            "the same studies: a system that wrote nothing for one has an empty report there."
        )
    if foreign := [uid for uid in test if rows[uid].get("patient_uid", patients[uid]) != patients[uid]]:
        raise DataError(
            f"{reports} has {listed(foreign)} under another patient than {studies}; correct patient_uid, or leave the "
            "column out"
        )
    texts = [rows[uid]["report"] for uid in test]
    log.info(
        "%d reports, %d of them empty; %d studies of the file are not in the test set",
        *(len(test), sum(not text.split() for text in texts), len(rows) - len(test)),
    )
    write_generations(
        out, ((uid, patients[uid], text, len(text.split()), None) for uid, text in zip(test, texts, strict=True))
    )
