"""Files that appear whole or not at all, journals of work that a kill interrupts, and plain JSON."""

import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class WeightsError(RuntimeError):
    """Weights are absent or not what a model needs; the message names the file and the remedy."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (file or folder) that replaces it when the block ends without an error.

    A job that is killed half-way leaves no half-written output behind, and a reader never sees one. What SIGKILL lets
    nobody remove, the next writer of the same path on the same machine removes: whether another machine's writer lives,
    on a disk that they share, cannot be known.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        pid = left.name[len(start) : -len(".tmp")]
        if pid.isdecimal() and not _writes(int(pid)):
            _remove(left)
    temporary = path.with_name(f"{start}{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _writes(pid: int) -> bool:
    """Whether another process of this number lives; our own number is a dead one's, as in a container started again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return pid != os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Journal:
    """JSON Lines in which a long job notes what is done, so that a killed one goes on: who it is, then its entries.

    Args:
        path: outside the declared outputs, which Snakemake deletes when a job fails.
        made_by: what determines the result, see ``dive.provenance.fingerprint``; entries of anything else are ignored.
    """

    def __init__(self, path: str | Path, made_by: str) -> None:
        self.path, self.made_by = Path(path), made_by

    def read(self) -> list[Any]:
        """What an interrupted job left; a line that the kill cut off is dropped."""
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []
        if lines[:1] != [json.dumps(self.made_by)]:
            return []
        return [json.loads(line) for line in lines[1:-1]]  # what follows the last line break is no whole line

    def begin(self, entries: Iterable[Any] = ()) -> None:
        """Start anew from some entries."""
        with atomic_path(self.path) as temporary:
            lines = [json.dumps(entry) + "\n" for entry in (self.made_by, *entries)]
            temporary.write_text("".join(lines), encoding="utf-8")

    def append(self, *entries: Any) -> None:
        """Note what is done; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def remove(self) -> None:
        """The work is whole."""
        self.path.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """Parse a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN is refused since JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
