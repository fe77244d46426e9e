"""Files that appear whole or not at all, journals of work that a kill interrupts, and JSON that carries a checksum."""

import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dive.sealed import KEY, MARK, UNSEALED, DamageError, checked, seal


class DataError(RuntimeError):
    """The data on disk are not what the configuration says; the message names the file or key, and the remedy."""


class WeightsError(RuntimeError):
    """Weights are absent or not what a model needs; the message names the file and the remedy."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (file or folder) that replaces it when the block ends without an error.

    A job that is killed half-way leaves no half-written output behind, and a reader never sees one. Leftovers of
    a killed process are removed by the next writer of the same path on the same machine. On a shared disk it is not
    possible to know whether a writer on another machine is still running.
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
    """Lines in which a long job notes what is done, so that a killed one goes on: who it is, then its entries.

    A line is JSON, a tab, and the beginning of the sha256 of that JSON.

    Args:
        path: outside the declared outputs, which Snakemake deletes when a job fails.
        made_by: what determines the result, see ``dive.provenance.fingerprint``; entries of anything else are ignored.
    """

    def __init__(self, path: str | Path, made_by: str) -> None:
        self.path, self.made_by = Path(path), made_by

    def read(self) -> list[Any]:
        """What an interrupted job left, up to a line that the kill cut off or that is damaged: these are made again."""
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        if lines[:1] != [_line(self.made_by).rstrip("\n").encode()]:
            return []
        entries = []
        for line in lines[1:-1]:  # what follows the last line break is no whole line
            text = line.rpartition(b"\t")[0]
            if line != _signed(text):
                break
            entries.append(json.loads(text))
        return entries

    def begin(self, entries: Iterable[Any] = ()) -> None:
        """Start anew from some entries."""
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(map(_line, (self.made_by, *entries))), encoding="utf-8")

    def append(self, *entries: Any) -> None:
        """Note what is done; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, entries))

    def remove(self) -> None:
        """The work is whole."""
        self.path.unlink(missing_ok=True)


def _signed(text: bytes) -> bytes:
    return text + b"\t" + hashlib.sha256(text).hexdigest()[:16].encode()


def _line(entry: Any) -> str:
    """An entry of a journal as it stands in the file."""
    return _signed(json.dumps(entry).encode()).decode() + "\n"


def read_json(path: str | Path) -> Any:
    """Parse a JSON file, after comparing it with its checksum where it has one.

    Raises:
        ValueError: it is no JSON, or (`dive.sealed.DamageError`) differs from its checksum; the message names the file.
    """
    try:
        value = json.loads(bytes(checked(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no whole JSON ({error})") from error
    if isinstance(value, dict) and str(value.get(KEY)).startswith(MARK.decode()):
        del value[KEY]
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN is refused since JSON has none.

    An object also gets a checksum, which `read_json` compares and takes away.
    """
    sealed = isinstance(value, Mapping)
    with atomic_path(path) as temporary:
        content = {**value, KEY: UNSEALED} if sealed else value
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if sealed:
            seal(temporary)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


CHECKSUMS = "checksums.json"
"""File of a folder in which `record_checksums` notes the sha256 of others that have no place for their own."""


def record_checksums(folder: str | Path, *names: str) -> None:
    """Note the sha256 of files of a folder, or of all of them, for `check_files`."""
    folder = Path(folder)
    listed = names or sorted(path.name for path in folder.iterdir() if path.is_file())
    write_json(folder / CHECKSUMS, {"sha256": {name: sha256(folder / name) for name in listed}})


def check_files(folder: str | Path, *names: str) -> None:
    """Compare files of a folder, or all that are noted there, with what `record_checksums` noted, if anything.

    Raises:
        DamageError: see `check_digests`.
    """
    if (Path(folder) / CHECKSUMS).is_file():
        check_digests(folder, read_json(Path(folder) / CHECKSUMS)["sha256"], *names)


def check_digests(folder: str | Path, recorded: Mapping[str, str], *names: str) -> None:
    """Compare files of a folder with name -> sha256: those of ``names`` that are recorded, or all.

    Raises:
        DamageError: one differs or is absent; the message names it.
    """
    for name in names or recorded:
        path = Path(folder) / name
        if name in recorded and not (path.is_file() and sha256(path) == recorded[name]):
            raise DamageError(
                f"{path}: absent, damaged or of another folder, it differs from the checksum recorded beside it; "
                f"delete {folder} and run snakemake again"
            )
