"""Named tensors on disk: safetensors shards of bounded size and a manifest that is written last.

The manifest says what is there (shape, dtype, shard, place and checksum of every tensor) and what made it (``record``),
and carries a checksum of itself, so that a reader never takes a half-written or foreign folder for a cache.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from dive.files import DataError, Journal, atomic_path
from dive.sealed import KEY, UNSEALED, DamageError, checked, seal

MANIFEST = "manifest.json"
FORMAT = "dive-shards/2"


class ShardError(RuntimeError):
    """A cache folder is absent, incomplete or not what its manifest says; the message names file and remedy."""


class ShardWriter:
    """Write tensors under string keys into ``folder``; used as a context manager.

    The folder appears, whole, when the block ends without an error. With a ``partial`` folder, finished shards outlive
    a killed process: the next one that is ``made_by`` the same goes on from them (see ``in``), any other starts anew.
    After a `DataError` all tensors that were added do.

    Args:
        folder: where the shards go; replaced if it exists.
        record: what made the tensors (config slice, code version, package versions); kept in the manifest.
        shard_bytes: a shard is closed when it has grown to this size (default 0.13 GB: what a kill loses at most).
        partial: where unfinished work is kept, outside the declared outputs, which Snakemake deletes when a job fails.
        made_by: what determines the tensors, see ``dive.provenance.fingerprint``.

    Attributes:
        target: the folder while it is written: what else belongs to it goes here.
    """

    def __init__(
        self,
        folder: str | Path,
        record: dict[str, Any],
        shard_bytes: int = 1 << 27,
        partial: str | Path | None = None,
        made_by: str = "",
    ) -> None:
        self.folder = Path(folder)
        self.record = record
        self.shard_bytes = shard_bytes
        self.partial = None if partial is None else Path(partial)
        self._journal = None if partial is None else Journal(f"{partial}.jsonl", made_by)
        self._open: dict[str, torch.Tensor] = {}
        self._open_bytes = 0
        self._shards: dict[str, int] = {}
        self._tensors: dict[str, dict[str, Any]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "ShardWriter":
        if self.partial is None:
            self.target = self._stack.enter_context(atomic_path(self.folder))
            self.target.mkdir(parents=True)
            return self
        self.target = self.partial
        done = self._journal.read()
        if not all(_size(self.target / shard["name"]) == shard["bytes"] for shard in done):
            done = []
        if not done:
            shutil.rmtree(self.target, ignore_errors=True)
        self.target.mkdir(parents=True, exist_ok=True)
        self._journal.begin(done)
        for shard in done:
            self._shards[shard["name"]] = shard["bytes"]
            self._tensors.update(shard["tensors"])
        return self

    def __contains__(self, key: str) -> bool:
        """Whether ``key`` was added, by this process or by one that was killed."""
        return key in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def notes(self, key: str) -> dict[str, Any]:
        """What the manifest will say of ``key``."""
        return self._tensors[key]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_shard()
            self._write_manifest()
            if self.partial is not None:
                with atomic_path(self.folder) as temporary:
                    shutil.move(self.partial, temporary)  # copies where the checkpoints are on another disk
                self._journal.remove()
        elif self.partial is not None and isinstance(error, DataError):
            self._close_shard()  # what was computed stands, whatever is done about the data
        self._stack.__exit__(kind, error, trace)

    def require(self, n_bytes: float, remedy: str) -> None:
        """Refuse, before the work, what the disk has no room for; finished shards are counted as there.

        Args:
            n_bytes: of all tensors.
            remedy: settings that make it less.

        Raises:
            RuntimeError: too little room.
        """
        missing = n_bytes - sum(self._shards.values())
        if (free := shutil.disk_usage(self.target).free) < missing:
            raise RuntimeError(
                f"{self.folder} needs {missing / 1e9:.2f} GB and the disk of {self.target.parent} has "
                f"{free / 1e9:.2f} GB; make room, or lower {remedy}"
            )

    def add(self, key: str, tensor: torch.Tensor, **notes: Any) -> None:
        """Store ``tensor`` (moved to the CPU) under ``key``; ``notes`` are JSON values kept beside its shape.

        Raises:
            ShardError: the key was added before.
        """
        if key in self._tensors:
            raise ShardError(f"{self.folder}: the key {key!r} was written twice")
        tensor = tensor.detach().to("cpu").contiguous()
        self._tensors[key] = {
            "shard": f"shard-{len(self._shards):05d}.safetensors",
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "sha256": hashlib.sha256(_bytes_of(tensor)).hexdigest(),
            **notes,
        }
        self._open[key] = tensor
        self._open_bytes += tensor.nbytes
        if self._open_bytes >= self.shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        if not self._open:
            return
        name = f"shard-{len(self._shards):05d}.safetensors"
        path = self.target / name
        save_file(self._open, path)
        for key, begin in _places(path).items():
            self._tensors[key]["begin"] = begin
        self._shards[name] = os.path.getsize(path)
        if self._journal is not None:
            tensors = {key: self._tensors[key] for key in self._open}
            self._journal.append({"name": name, "bytes": self._shards[name], "tensors": tensors})
        self._open, self._open_bytes = {}, 0

    def _write_manifest(self) -> None:
        """One line a shard and a tensor, so that ten thousand of them can be read and searched."""
        parts = [f' "format": {json.dumps(FORMAT)}', f' "record": {json.dumps(self.record, allow_nan=False)}']
        for name, entries in (("shards", self._shards), ("tensors", self._tensors)):
            lines = [f"  {json.dumps(key)}: {json.dumps(entry, allow_nan=False)}" for key, entry in entries.items()]
            parts.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
        parts.append(f' "{KEY}": "{UNSEALED}"')
        with atomic_path(self.target / MANIFEST) as temporary:
            temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
            seal(temporary)


class Shards(Mapping[str, torch.Tensor]):
    """Read what ``ShardWriter`` wrote, one tensor at a time.

    A tensor's bytes are read when it is asked for, and nothing else: no file stays open or mapped, so that memory does
    not grow with what has been read. Shards' sizes are checked when the folder is opened, a tensor's checksum when it
    is first read.

    Raises:
        ShardError: folder, manifest or a shard is absent, or a tensor is not what the manifest says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.manifest = json.loads(bytes(checked(self.folder / MANIFEST)), object_hook=_Entries())
        except DamageError as error:
            message = f"{self.folder}/{MANIFEST}: damaged, it differs from its own checksum"
            raise ShardError(f"{message}; delete {self.folder} and run snakemake again") from error
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise ShardError(
                f"{self.folder}: no complete cache here ({error}); delete the folder and run snakemake again"
            ) from error
        if self.manifest.get("format") != FORMAT:
            raise ShardError(f"{self.folder}/{MANIFEST}: format is not {FORMAT}; delete the folder and run again")
        for name, n_bytes in self.manifest["shards"].items():
            if _size(self.folder / name) != n_bytes:
                raise ShardError(f"{self.folder / name}: absent or cut off; delete {self.folder} and run again")
        self._entries: dict[str, _Entry] = self.manifest.pop("tensors")
        self._checked: set[str] = set()

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the tensor of ``key``, without reading it."""
        return self._entries[key].shape

    def notes(self, key: str) -> dict[str, Any]:
        """What was noted of ``key`` when it was written."""
        return self._entries[key].notes

    def __getitem__(self, key: str) -> torch.Tensor:
        entry = self._entries[key]
        path = self.folder / entry.shard
        tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
        content = _bytes_of(tensor)
        with path.open("rb") as file:
            file.seek(entry.begin)
            file.readinto(content)
        if key not in self._checked:
            if hashlib.sha256(content).digest() != entry.sha256:
                raise ShardError(f"{path}: {key} differs from its manifest; delete {self.folder} and run again")
            self._checked.add(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class _Entry(NamedTuple):
    """A tensor's line of the manifest, in a quarter of the memory that parsed JSON takes."""

    shard: str
    begin: int
    shape: tuple[int, ...]
    dtype: str
    sha256: bytes
    notes: dict[str, Any]


class _Entries:
    """Hook of the JSON parser: makes an `_Entry` of every tensor's object, and keeps what many have in common once."""

    def __init__(self) -> None:
        self._kept: dict[Any, Any] = {}

    def __call__(self, value: dict[str, Any]) -> Any:
        if not {"sha256", "begin"} <= value.keys():
            return value
        shard, shape, dtype = (self._one(value.pop(name)) for name in ("shard", "shape", "dtype"))
        return _Entry(shard, value.pop("begin"), shape, dtype, bytes.fromhex(value.pop("sha256")), self._one(value))

    def _one(self, value: Any) -> Any:
        value = tuple(value) if isinstance(value, list) else value
        return self._kept.setdefault(json.dumps(value), value)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor of any dtype."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def _places(shard: Path) -> dict[str, int]:
    """Where the bytes of each tensor begin in a safetensors file, which opens with the length of its JSON header."""
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {key: 8 + length + entry["data_offsets"][0] for key, entry in header.items() if key != "__metadata__"}
