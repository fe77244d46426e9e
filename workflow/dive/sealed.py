"""A checksum inside the file that it belongs to, so that damage on the disk is an error where the file is read.

The checksum is the sha256 of the whole file with zeros in the place of the checksum itself. A writer leaves `UNSEALED`
anywhere in its file (a key of a JSON object, of the metadata of a parquet file) and calls `seal`; every reader gets the
bytes from `checked`. A file without a checksum, for example one that was written by hand, is read as it is.
"""

import hashlib
import mmap
import os
from pathlib import Path

KEY = "checksum"
"""Under which JSON objects and parquet metadata hold their checksum."""

MARK = b"dive-checksum/1:sha256:"
HALVES = (b"dive-checksum", b"/1:sha256:")
"""Either of them tells a sealed file, so that damage to the mark does not pass for a file without one."""

UNSEALED = MARK.decode() + "0" * 64

REMEDY = "delete it and run snakemake again"


class DamageError(ValueError):
    """A file is not what was written; the message names the file and the remedy."""


def seal(path: str | Path) -> None:
    """Put the checksum in the place that `UNSEALED` keeps for it.

    Raises:
        ValueError: the file has no such place.
    """
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        start = content.rfind(UNSEALED.encode())
        if start < 0:
            raise ValueError(f"{path}: no place for a checksum")
        start += len(MARK)
        content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()


def append_seal(path: str | Path) -> None:
    """Seal a file of a format that has no place for a checksum: it is appended, and `checked_body` takes it off."""
    with open(path, "ab") as file:
        file.write(UNSEALED.encode())
    seal(path)


def checked(path: str | Path) -> mmap.mmap | bytes:
    """The content of a file, mapped into memory, after it was compared with its checksum.

    Raises:
        DamageError: they differ; the message names the file.
        OSError: there is no such file.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = content.rfind(MARK)
    if start < 0 and not any(content.rfind(half) >= 0 for half in HALVES):
        return content
    start += len(MARK)
    with memoryview(content) as view:
        digest = hashlib.sha256(view[:start])
        digest.update(b"0" * 64)
        digest.update(view[start + 64 :])
    if start < len(MARK) or digest.hexdigest().encode() != content[start : start + 64]:
        raise DamageError(f"{path}: the file was damaged or edited, it differs from its own checksum; {REMEDY}")
    return content


def checked_body(path: str | Path) -> bytes:
    """What stood in a file before `append_seal`.

    Raises:
        DamageError: the file differs from its checksum, or has none.
    """
    content = checked(path)
    if content[-len(UNSEALED) :][: len(MARK)] != MARK:
        raise DamageError(f"{path}: the file is cut off, its checksum is absent; {REMEDY}")
    return content[: -len(UNSEALED)]
