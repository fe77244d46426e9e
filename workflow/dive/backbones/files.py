"""The files of a model's folder that loading reads: which they are, what they hold, and whether they are whole.

Neither torch nor transformers is needed, so that asking costs nothing.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dive.contents import Memory, memory_of_workflow
from dive.files import check_files
from dive.sealed import DamageError

READ = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "model*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""What ``from_pretrained`` opens of a folder, as patterns."""


def folder_of(path: str, revision: str | None = None) -> Path | None:
    """Where a model lies: the folder, or the snapshot of a hub name in the Hugging Face cache; None without either."""
    if os.path.isdir(path):
        return Path(path)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (ImportError, OSError, ValueError):  # not in the cache, or no name that a hub could have
        return None


def fetch_model(path: str, revision: str | None = None) -> None:
    """Download what loading reads of a model on the hub, unless it lies in the Hugging Face cache or is a folder."""
    if folder_of(path, revision) is None:
        from huggingface_hub import snapshot_download

        snapshot_download(path, revision=revision, allow_patterns=list(READ))


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a folder that loading reads."""
    for pattern in READ:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())


def describe_model(
    path: str, revision: str | None = None, memory: Memory | None = None, weights: bool = True
) -> str | None:
    """One digest of what loading reads of a model, wherever it lies; None where it is neither here nor in the cache.

    Large files in the Hugging Face cache are named by their sha256, which is taken from there: `check_model` compares.

    Args:
        path: ``backbones.<name>.path``: a folder or a name on the hub.
        revision: of a hub name.
        memory: of files that were read before; None is that of the workflow in this folder.
        weights: False leaves them out, for who reads only configuration and tokenizer.
    """
    folder = folder_of(path, revision)
    if folder is None:
        return None
    memory = memory or memory_of_workflow()
    digest = hashlib.sha256()
    for file in files_of(folder):
        if weights or file.suffix != ".safetensors":
            named = _blob(file)
            content = bytes.fromhex(named) if named and len(named) == 64 else memory.digest(file)
            digest.update(f"{file.relative_to(folder).as_posix()} ".encode() + content + b"\n")
    memory.save()
    return digest.hexdigest()


def check_model(path: str, revision: str | None = None) -> None:
    """Compare the files of a model with the checksums that are known of them, before anything reads them.

    Known are those that ``build_backbone`` leaves in its folder, and the names of files in the Hugging Face cache. A
    file of the cache is read once, and again when it has changed.

    Raises:
        DamageError: a file differs from its checksum, or is no whole JSON; the message names it.
    """
    folder = folder_of(path, revision)
    if folder is None:
        return
    check_files(folder)
    memory = memory_of_workflow()
    for file in files_of(folder):
        named = _blob(file)
        found = None
        if named and len(named) == 64:
            found = memory.digest(file).hex()
        elif named:  # small files are named as git names them
            content = file.read_bytes()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        if found != named:
            raise DamageError(
                f"{os.path.realpath(file)}: this file of {path} is damaged, it differs from the checksum in its "
                "name; delete it and download the model again"
            )
        if file.suffix == ".json":  # where no checksum tells
            check_json(file)
    memory.save()


def check_json(file: Path) -> None:
    """Read a JSON file of a model before transformers does, which names none that is damaged.

    Raises:
        DamageError: it holds no JSON object; the message names it.
    """
    try:
        whole = isinstance(json.loads(file.read_bytes()), dict)
    except ValueError:  # no JSON, or no UTF-8
        whole = False
    if not whole:
        raise DamageError(f"{file}: cut off, damaged, or no JSON object; download or build the checkpoint again")


def _blob(file: Path) -> str | None:
    """The checksum by which the Hugging Face cache names a file: 64 hexadecimal digits (sha256) or 40 (git's)."""
    real = Path(os.path.realpath(file))
    return real.name if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", real.name) else None
