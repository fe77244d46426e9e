"""What a downloaded file really is, by its first bytes: downloads go wrong in a few well-known ways.

The standard library only, so that asking costs nothing. Each answer says what the file is and what to do.
"""

import gzip
import struct
import zipfile
import zlib
from pathlib import Path

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR"}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
LOOKED_AT = 512
"""Bytes from the start of a file."""

AGAIN = "download it again"
EMPTY = f"has zero bytes; {AGAIN}"
ENCRYPTED = 1
"""Bit of a zip entry's flags."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
"""Compression methods of zip entries that Python reads."""


def is_web_page(start: bytes) -> bool:
    """Whether a file that begins so is HTML: what a server sends in place of the file before one has logged in."""
    text = start[:LOOKED_AT].removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    return text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<script", b"<!--"))


def text_problem(start: bytes) -> str | None:
    """Say why a file that begins so is not the UTF-8 text that it should be; None when it may be."""
    if not start:
        return EMPTY
    if is_web_page(start):
        return f"is a web page, perhaps the login page, in place of the file; log in, then {AGAIN}"
    if start.startswith(b"version https://git-lfs"):
        return "is the pointer of a file in Git LFS; fetch the file with git lfs pull"
    if start.startswith(UTF_16):
        return "is UTF-16 text; save it as UTF-8"
    for magic, name in OTHERS.items():
        if start.startswith(magic):
            return f"is compressed by {name}; unpack it"
    if start.startswith(ZIP):
        return "is a zip archive or a spreadsheet; unpack it, or export it as CSV"
    if b"\0" in start:
        return f"has binary content; {AGAIN}"
    return None


def table_problem(path: str | Path) -> str | None:
    """Say why a table or a file of JSON Lines cannot be what its name says, and what to do; None when it may be.

    Args:
        path: the file; a name that ends in ``.gz`` promises a gzip file.
    """
    path = Path(path)
    if path.is_dir():
        return f"is a folder; put the file {path.name} in its place"
    try:
        with path.open("rb") as handle:
            start = handle.read(LOOKED_AT)
    except OSError as error:
        return f"cannot be opened ({error.strerror}); check the file and its permissions"
    packed = start.startswith(GZIP)
    if packed and path.suffix != ".gz":
        return f"is compressed by gzip, without .gz at the end of its name; rename it to {path.name}.gz"
    if not packed:
        problem = text_problem(start)
        if problem is None and path.suffix == ".gz":
            return f"is not compressed (browsers unpack .gz files); rename it to {path.stem}"
        return problem
    try:
        with gzip.open(path) as handle:
            start = handle.read(LOOKED_AT)
    except (OSError, EOFError, zlib.error):
        return f"cannot be read, it is cut off or damaged; {AGAIN}"
    if start.startswith(GZIP):
        return "is compressed by gzip twice; unpack it once with gunzip"
    return text_problem(start)


def archive_problem(path: str | Path) -> str | None:
    """Say why a zip archive cannot be read, and what to do; None when it may be. Looks at its ends only."""
    path = Path(path)
    if not path.is_file():
        return "is no file; put the zip archive in its place"
    try:
        with path.open("rb") as handle:
            start = handle.read(LOOKED_AT)
            if is_web_page(start):
                return text_problem(start)
            if not zipfile.is_zipfile(handle):
                return f"is no whole zip archive: an interrupted download? If so, {AGAIN}"
            place = 0
            while True:
                handle.seek(place)
                header = handle.read(30)
                if len(header) < 30 or not header.startswith(ZIP):
                    return None
                flags, method = struct.unpack("<HH", header[6:10])
                size, name, extra = struct.unpack("<I4xHH", header[18:30])
                problem = entry_problem(flags, method)
                if problem or size or flags & 8:  # the first file; before it may lie folders, which are never encrypted
                    return problem
                place += 30 + name + extra
    except OSError as error:
        return f"cannot be opened ({error.strerror}); check the file and its permissions"


def entry_problem(flags: int, method: int) -> str | None:
    """Say why an entry of a zip archive cannot be read, by its flags and compression method; None when it can."""
    if flags & ENCRYPTED:
        return "is encrypted; unpack it with its password, and keep the unpacked folder in its place"
    if method not in METHODS:
        return f"is compressed by method {method}, unknown to Python; unpack it, and keep the folder in its place"
    return None
