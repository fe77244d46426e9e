"""What content files have, without reading them again: sha256, remembered by size, times and inode.

The memory holds no paths: a file whose folder was moved, or that is reached through a link, is not read again; a copy
is read once. The memory may be deleted at any time, which only costs the time to read the files again, and any number
of processes may use it at once: each writes it whole, and what one of them loses of another's is read again.
"""

import contextlib
import hashlib
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from dive.files import atomic_path

PLACE = Path(".snakemake/contents")
"""Where the workflow remembers, in the folder that it runs in."""

HEAD = b"dive-contents/1\n"
KEY, DIGEST = struct.Struct("<QQqq"), 32  # inode, size, modified, changed (ns); sha256

SETTLED = 3.0
"""Seconds since the last change after which a file is remembered: clocks of file systems tick slowly, and a second
change within a tick would not be seen."""


class Memory:
    """Digests of files that were read before.

    Args:
        path: file that keeps them; None keeps them for this process alone.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.known = _read(self.path)
        self.fresh: dict[bytes, bytes] = {}

    def digest(self, path: str | Path, status: os.stat_result | None = None) -> bytes:
        """The sha256 of a file's content, 32 bytes; ``status`` is what ``os.stat`` says of it, where that is known.

        Raises:
            OSError: the file cannot be read.
        """
        status = status or os.stat(path)
        key = KEY.pack(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        found = self.known.get(key)
        if found is None:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").digest()
                after = os.fstat(file.fileno())
            last = max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
            if after.st_mtime_ns == status.st_mtime_ns and time.time() - last > SETTLED:
                self.known[key] = self.fresh[key] = found
        return found

    def content(self, files: Iterable[tuple[str, str | Path]]) -> str:
        """One digest of named files, whatever their order and wherever they lie: 64 hexadecimal digits.

        A file that is not there counts as absent.
        """
        total = hashlib.sha256()
        for name, path in sorted(files, key=lambda item: item[0]):
            try:
                digest = self.digest(path)
            except OSError:
                digest = b""
            total.update(f"{len(name)} {name} ".encode("utf-8", "surrogateescape") + digest + b"\n")
        return total.hexdigest()

    def content_below(self, root: str | Path, paths: Iterable[str]) -> str:
        """`content` of files by their paths below a folder; what had to be read is kept."""
        found = self.content((path, Path(root) / path) for path in paths)
        self.save()
        return found

    def learned(self) -> bytes:
        """What was read and is not yet kept, for the process that keeps it (`learn`)."""
        return b"".join(key + digest for key, digest in self.fresh.items())

    def learn(self, records: bytes) -> None:
        """Take over what another process has `learned`."""
        found = _parse(records)
        self.known.update(found)
        self.fresh.update(found)

    def save(self) -> None:
        """Keep what was read since the last time, beside what other processes have kept meanwhile."""
        if self.path is not None and self.fresh:
            self.fresh = {**_read(self.path), **self.fresh}
            records = self.learned()
            # A full or read-only disk must not keep anybody from working.
            with contextlib.suppress(OSError), atomic_path(self.path) as temporary:
                temporary.write_bytes(HEAD + hashlib.sha256(records).digest() + records)
        self.fresh = {}


def memory_of_workflow() -> Memory:
    """The memory of the workflow that runs in this folder; outside of one nothing is kept."""
    return Memory(PLACE if PLACE.parent.is_dir() else None)


def _read(path: Path | None) -> dict[bytes, bytes]:
    """What a file remembers; a damaged one remembers nothing."""
    try:
        content = path.read_bytes() if path is not None else b""
    except OSError:
        content = b""
    start = len(HEAD) + DIGEST
    records = content[start:]
    if not content.startswith(HEAD) or hashlib.sha256(records).digest() != content[len(HEAD) : start]:
        return {}
    return _parse(records)


def _parse(records: bytes) -> dict[bytes, bytes]:
    width = KEY.size + DIGEST
    return {records[at : at + KEY.size]: records[at + KEY.size : at + width] for at in range(0, len(records), width)}
