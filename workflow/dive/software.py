"""With which packages a result was computed: each job notes it, and each run compares the notes with what is installed.

Snakemake does not see that another version of torch or of a scorer is installed. Without its own metadata
(``.snakemake/metadata``) it does not see changes of settings and code either. Results would be stale without a word. A
rerun of everything at every update of a package would throw away weeks of work, so the workflow says what differs, and
its user decides.
"""

import base64
import json
import os
import platform
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

COMPUTING = {
    "PIL": ("pillow",),
    "f1chexbert": ("f1chexbert",),
    "nltk": ("nltk",),
    "numpy": ("numpy",),
    "pandas": ("pandas",),
    "pyarrow": ("pyarrow",),
    "radgraph": ("radgraph",),
    "rouge_score": ("rouge-score", "nltk"),
    "scispacy": ("scispacy",),
    "spacy": ("spacy",),
    "tokenizers": ("tokenizers",),
    "torch": ("torch",),
    "transformers": ("transformers", "tokenizers"),
    "triton": ("triton",),
}
"""What a module may import -> the packages whose version can then change a number in a result."""

NOTES = Path("results/software")
"""A file for every job, in the order of the logs."""


class Job(NamedTuple):
    """A job of the configured experiments: its rule, its log, what it makes, and the packages that its code imports."""

    rule: str
    log: str
    outputs: list[str]
    packages: Collection[str]


@cache
def installed() -> dict[str, str]:
    """Version of Python (without the patch level) and of every package that can change a number, where it is there."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in sorted({name for names in COMPUTING.values() for name in names}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def note_file(log: str | Path) -> Path:
    """Where a job notes its packages: ``results/software/<rule>/....json`` if its log is ``logs/<rule>/....log``."""
    return NOTES.joinpath(*Path(log).parts[1:]).with_suffix(".json")


def note(log: str | Path) -> None:
    """Note what is installed, for the job with this log."""
    file = note_file(log)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(installed(), indent=1) + "\n", encoding="utf-8")


def warnings(jobs: Iterable[Job], metadata: Path | None = Path(".snakemake/metadata")) -> Iterator[str]:
    """What to say of results that are there: made with other packages, or of which Snakemake's metadata are lost.

    Args:
        jobs: of the configured experiments.
        metadata: folder of Snakemake's metadata; None where they are kept elsewhere.
    """
    there = [job for job in jobs if all(map(os.path.exists, job.outputs))]
    changed: dict[tuple[str, str], list[Job]] = {}
    for job in there:
        if told := "; ".join(_differences(job)):
            changed.setdefault((job.rule, told), []).append(job)
    if changed:
        rules = dict.fromkeys(rule for rule, _ in changed)
        yield "These results were made with other versions of packages than are installed now, and are kept:"
        yield from (f"  {_name(of_rule)}: {told}" for (_, told), of_rule in changed.items())
        yield f"  To make them again: snakemake --forcerun {' '.join(rules)}"
        yield f"  To keep them for good: rm -r {' '.join(_notes_of(rule) for rule in rules)}"
    lost: dict[str, list[Job]] = {}
    for job in there if metadata else ():
        if not all(os.path.exists(metadata_file(path, metadata)) for path in job.outputs):
            lost.setdefault(job.rule, []).append(job)
    if lost:
        yield f"Snakemake's metadata ({metadata}) of these results are lost. It cannot see whether they are up to date:"
        yield from (f"  {_name(of_rule)}" for of_rule in lost.values())
        yield f"  To make them again: snakemake --forcerun {' '.join(lost)}"
        yield "  If no settings and no code have changed since: snakemake --touch --forceall --cores 1"


def _differences(job: Job) -> Iterator[str]:
    """``torch 2.8.0, now 2.9.1`` for every package of a job; nothing where it left no note."""
    try:
        noted = json.loads(note_file(job.log).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    now = installed()
    for name in ("python", *sorted(job.packages)):
        if noted.get(name) != now.get(name):
            yield f"{name} {noted.get(name, 'absent')}, now {now.get(name, 'absent')}"


def _name(jobs: list[Job]) -> str:
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return f"{jobs[0].rule} ({jobs[0].outputs[0]}{more})"


def _notes_of(rule: str) -> str:
    """The notes of a rule: a folder, or the one file of a rule with one job."""
    return str(NOTES / rule if (NOTES / rule).is_dir() else NOTES / f"{rule}.json")


def metadata_file(path: str, metadata: Path) -> str:
    """Where Snakemake keeps the metadata of an output: its path in base64, in folders where that is too long a name."""
    name, most = base64.urlsafe_b64encode(path.encode()).decode(), 254
    parts = [name[begin : begin + most] for begin in range(0, len(name), most)]
    return os.path.join(metadata, *(f"@{part}" for part in parts[:-1]), parts[-1])
