"""A cache of a model's outputs across methods, seeds and runs: each model reads each text once.

The key of an entry is the content of the text and the identity of the model, so an entry equals what the model would
compute. The folder therefore lies outside all declared outputs, may be removed at any time, and is unknown to
Snakemake. Entries are lines ``<sha256 of the text><tab><JSON>`` in files named by
their content and written whole, so jobs that run at the same time add to the folder without a lock.

The values hold words of reports: treat the folder as the data.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dive.files import atomic_path, write_json
from dive.progress import log

Annotate = Callable[[list[str]], Iterable[tuple[str, Any]]]


def annotate_once(
    texts: Iterable[str], annotate: Annotate, identity: Mapping[str, Any], folder: str | None, every: float = 60.0
) -> dict[str, Any]:
    """Return text -> value for every distinct text; ``annotate`` sees only those that nobody asked about before.

    Args:
        texts: any number of times each.
        annotate: yields (text, value) of the texts that it is given, values ready for JSON. Not called without need,
            so that a model is loaded only where it reads something.
        identity: everything beside the text that a value depends on: model, weights, version, settings.
        folder: where what was said before lies, a subfolder for each identity; None remembers nothing.
        every: seconds after which new values are saved: what a killed job has read is not read again.
    """
    keys = {text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts}
    place = _place(folder, identity) if folder else None
    known = _read(place, set(keys.values())) if place else {}
    values = {text: known[key] for text, key in keys.items() if key in known}
    missing = [text for text in keys if text not in values]
    if not missing:
        return values
    log.info("%d distinct texts; the model reads %d of them, the others are cached", len(keys), len(missing))
    fresh: dict[str, Any] = {}
    saved = time.monotonic()
    for text, value in annotate(missing):
        values[text] = fresh[keys[text]] = value
        if place and time.monotonic() - saved > every:
            _write(place, fresh)
            fresh, saved = {}, time.monotonic()
    if place and fresh:
        _write(place, fresh)
    return values


def _place(folder: str, identity: Mapping[str, Any]) -> Path:
    text = json.dumps(identity, sort_keys=True)
    place = Path(folder) / f"{identity['scorer']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not (place / "identity.json").is_file():
        write_json(place / "identity.json", dict(identity))
    return place


def _read(place: Path, wanted: set[str]) -> dict[str, Any]:
    """The entries wanted; only their lines are parsed, so a large folder costs little memory."""
    return {
        key: json.loads(value)
        for path in sorted(place.glob("*.tsv"))
        if _is_whole(path)
        for key, value in _lines(path)
        if key in wanted
    }


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            key, _, value = line.partition("\t")
            yield key, value


def _is_whole(path: Path) -> bool:
    """Whether a file has the content by which it is named; what a damaged one said is asked again."""
    return _name(path.read_bytes()) == path.name


def _name(content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()[:16]}.tsv"


def _write(place: Path, entries: Mapping[str, Any]) -> None:
    text = "".join(f"{key}\t{json.dumps(value, separators=(',', ':'))}\n" for key, value in sorted(entries.items()))
    with atomic_path(place / _name(text.encode())) as temporary:
        temporary.write_text(text, encoding="utf-8")
