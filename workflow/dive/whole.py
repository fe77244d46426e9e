"""Folders of results from which a file is gone: Snakemake takes a folder for whole as long as it is there."""

import json
from itertools import takewhile
from pathlib import Path

from dive.data.readable import UNREADABLE
from dive.files import CHECKSUMS

MANIFEST = "manifest.json"
"""Of `dive.shards`, whose module imports torch."""

LISTS = {
    "build_backbone": (CHECKSUMS,),
    "cache_layers": (MANIFEST,),
    "cache_teacher": (MANIFEST,),
    "cache_vision": (MANIFEST, UNREADABLE),
    "distill": (CHECKSUMS, "config.json"),
}
"""Rules that make a folder -> files in it that say what else belongs to it, and without which nobody can read it."""


def absent_files(rule: str, folder: str | Path) -> list[str]:
    """Files that are gone from a folder that a rule has made, of those that a job needs; none if the folder itself is.

    What is damaged is told by the job that reads it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    wanted = dict.fromkeys(LISTS.get(rule, ()))
    for name in list(wanted):
        wanted.update(dict.fromkeys(_listed(folder / name)))
    return [name for name in wanted if not (folder / name).exists()]


def _listed(path: Path) -> list[str]:
    """Names of the files that one of `LISTS` says are beside it."""
    try:
        with path.open(encoding="utf-8") as file:
            # A manifest names its shards before its tensors, of which it may have many thousands.
            lines = list(takewhile(lambda line: not line.startswith(' "tensors"'), file))
            is_cut = bool(lines) and lines[0] == "{\n" and lines[-1].endswith(",\n")
        text = "".join(lines)
        said = json.loads(f"{text.rstrip().removesuffix(',')}}}" if is_cut else text)
        said = said.get("sha256", said.get("shards"))
    except (OSError, ValueError, AttributeError):
        return []
    return list(said) if isinstance(said, dict) else []
