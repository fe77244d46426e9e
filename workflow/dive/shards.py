"""Named tensors on disk: safetensors shards of bounded size and a manifest that is written last.

The manifest says what is there (shape, dtype, shard of every tensor), what made it (``record``) and how each shard's
bytes hash, so that a reader never takes a half-written or foreign folder for a cache.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dive.files import atomic_path, read_json, sha256, write_json

MANIFEST = "manifest.json"
FORMAT = "dive-shards/1"


class ShardError(RuntimeError):
    """A cache folder is absent, incomplete or not what its manifest says; the message names file and remedy."""


class ShardWriter:
    """Write tensors under string keys into ``folder``; used as a context manager.

    The folder appears, whole, when the block ends without an error.

    Args:
        folder: where the shards go; replaced if it exists.
        record: what made the tensors (config slice, code version, package versions); kept in the manifest.
        shard_bytes: a shard is closed when it has grown to this size (default 0.5 GB).
    """

    def __init__(self, folder: str | Path, record: dict[str, Any], shard_bytes: int = 1 << 29) -> None:
        self.folder = Path(folder)
        self.record = record
        self.shard_bytes = shard_bytes
        self._open: dict[str, torch.Tensor] = {}
        self._open_bytes = 0
        self._shards: dict[str, dict[str, Any]] = {}
        self._tensors: dict[str, dict[str, Any]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "ShardWriter":
        self.target = self._stack.enter_context(atomic_path(self.folder))
        """The folder while it is written: what else belongs to it goes here."""
        self.target.mkdir(parents=True)
        return self

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_shard()
            write_json(
                self.target / MANIFEST,
                {
                    "format": FORMAT,
                    "record": self.record,
                    "shards": self._shards,
                    "tensors": self._tensors,
                },
            )
        self._stack.__exit__(kind, error, trace)

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
            **notes,
        }
        self._open[key] = tensor
        self._open_bytes += tensor.numel() * tensor.element_size()
        if self._open_bytes >= self.shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        if not self._open:
            return
        name = f"shard-{len(self._shards):05d}.safetensors"
        save_file(self._open, self.target / name)
        self._shards[name] = {
            "bytes": os.path.getsize(self.target / name),
            "sha256": sha256(self.target / name),
        }
        self._open, self._open_bytes = {}, 0


class Shards(Mapping[str, torch.Tensor]):
    """Read what ``ShardWriter`` wrote; tensors come lazily from memory-mapped shards.

    Sizes are checked when the folder is opened, a shard's checksum when its first tensor is read.

    Raises:
        ShardError: folder, manifest or a shard is absent, or a shard is not what the manifest says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.manifest = read_json(self.folder / MANIFEST)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise ShardError(
                f"{self.folder}: no complete cache here ({error}); delete the folder and run snakemake again"
            ) from error
        if self.manifest.get("format") != FORMAT:
            raise ShardError(f"{self.folder}/{MANIFEST}: format is not {FORMAT}; delete the folder and run again")
        for name, entry in self.manifest["shards"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise ShardError(f"{path}: absent or cut off; delete {self.folder} and run snakemake again")
        self._files: dict[str, Any] = {}

    def notes(self, key: str) -> dict[str, Any]:
        """The manifest's entry of ``key``: shard, shape, dtype and what was noted when it was written."""
        return self.manifest["tensors"][key]

    def __getitem__(self, key: str) -> torch.Tensor:
        name = self.manifest["tensors"][key]["shard"]
        if name not in self._files:
            path = self.folder / name
            if sha256(path) != self.manifest["shards"][name]["sha256"]:
                raise ShardError(f"{path}: content differs from its manifest; delete {self.folder} and run again")
            self._files[name] = safe_open(path, framework="pt")
        return self._files[name].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest["tensors"])

    def __len__(self) -> int:
        return len(self.manifest["tensors"])
