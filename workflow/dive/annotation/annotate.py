"""Decisive spans of every report by the annotator that the configuration chooses.

An annotator is a module of this package with ``build(settings, files)``, which returns a callable: reports in, the
spans of each out, in the order of the reports. It sees all reports at once, so it may count words over the training
split or send unique sentences through a model in batches. Spans of a report do not overlap and never end in blanks.

| module | what it finds |
|---|---|
| ``vocabulary`` | the surface forms of a table that a radiologist can edit |
| ``scispacy`` | the entities of any spaCy pipeline, by label or by UMLS semantic type |
| ``radgraph`` | RadGraph's observations, from its published annotations or by its weights |
| ``idf`` | the words that the fewest training reports have |
| ``union`` | what any of several finds |

The control ``random`` has no spans: it marks as many subword tokens of a report as the annotator it is compared
with, at random places (`dive.annotation.weights.permuted`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from dive.annotation.vocabulary import Report, Span
from dive.data.roots import DataError
from dive.files import atomic_path
from dive.progress import log, progress

ANNOTATORS = ("vocabulary", "scispacy", "radgraph", "idf", "union")
Annotator = Callable[[Iterable[Report]], Iterator[list[Span]]]


def build_annotator(settings: Mapping[str, Any], files: Mapping[str, str]) -> Annotator:
    """The annotator that ``settings`` name.

    Args:
        settings: ``annotator`` and what this one reads; for ``union`` the ``parts``, a list of such settings.
        files: ``vocabulary`` (path of the table), ``annotations`` (RadGraph's) and ``remembered`` (folder of what
            RadGraph's weights said before), each where it is needed.

    Raises:
        DataError: there is no such annotator.
    """
    name = settings["annotator"]
    if name not in ANNOTATORS:
        raise DataError(f"annotation.annotator is {name!r}; there are: {', '.join(ANNOTATORS)}")
    if name == "union":
        return unite([build_annotator(part, files) for part in settings["parts"]])
    return import_module(f"dive.annotation.{name}").build(settings, files)


def unite(annotators: Iterable[Annotator]) -> Annotator:
    """What any of the annotators finds; where two overlap, the later one's span keeps only what is beside the
    former's."""
    annotators = list(annotators)

    def united(reports: Iterable[Report]) -> Iterator[list[Span]]:
        reports = list(reports)
        for report, *found in zip(reports, *(annotator(reports) for annotator in annotators), strict=True):
            kept: list[Span] = []
            for spans in found:
                kept += [part for span in spans for part in outside(span, kept, report.text)]
            yield sorted(kept)

    return united


def outside(span: Span, taken: Iterable[Span], text: str) -> list[Span]:
    """The parts of a span that none of the taken spans covers, without blanks at their ends."""
    parts = [(span.start, span.end)]
    for other in taken:
        parts = [
            piece
            for start, end in parts
            for piece in ((start, min(end, other.start)), (max(start, other.end), end))
            if piece[0] < piece[1]
        ]
    trimmed = []
    for start, end in dict.fromkeys(parts):
        inside = text[start:end]
        start += len(inside) - len(inside.lstrip())
        end = start + len(inside.strip())
        if start < end:
            trimmed.append(span._replace(start=start, end=end))
    return trimmed


def annotate_studies(studies: str, settings: Mapping[str, Any], files: Mapping[str, str], out: str) -> None:
    """Write the decisive spans of every study's target.

    Args:
        studies: path of ``studies.parquet``.
        settings: see `build_annotator`.
        files: see `build_annotator`.
        out: parquet to write, a row a span: study_uid, start, end (characters of target), text, observation,
            polarity, source.

    Raises:
        DataError: the annotator lacks a file, a package or a report's annotation; the message names it.
    """
    import pyarrow as pa

    from dive.data.studies import read_studies
    from dive.parquet import write_table

    table = read_studies(studies, columns=["study_uid", "split", "target"])
    reports = [Report(*row) for row in zip(table["study_uid"], table["split"], table["target"], strict=True)]
    columns: dict[str, list[Any]] = {name: [] for name in ("study_uid", "text", *Span._fields)}
    marked = characters = without = 0
    found = build_annotator(settings, files)(reports)
    for report, spans in zip(reports, progress(found, "reports annotated", total=len(reports)), strict=True):
        without += not spans
        characters += len(report.text)
        for span in spans:
            marked += span.end - span.start
            columns["study_uid"].append(report.study_uid)
            columns["text"].append(report.text[span.start : span.end])
            for name, value in span._asdict().items():
                columns[name].append(value)
    schema = pa.schema(
        [
            ("study_uid", pa.string()),
            ("start", pa.int32()),
            ("end", pa.int32()),
            ("text", pa.string()),
            ("observation", pa.string()),
            ("polarity", pa.string()),
            ("source", pa.string()),
        ]
    )
    with atomic_path(out) as temporary:
        write_table(pa.table(columns, schema=schema), temporary, compression="zstd")
    share = marked / characters if characters else 0.0
    log.info(
        "%s: %d spans in %d reports, %.1f %% of the characters; %d reports have none",
        settings["annotator"],
        len(columns["start"]),
        len(reports),
        100 * share,
        without,
    )
