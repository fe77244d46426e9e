"""Decisive spans by RadGraph's observations (Jain et al. 2021; RadGraph-XL, Delbrouck et al. 2024).

Read from published annotations where there are some: PhysioNet's ``MIMIC-CXR_graphs.json`` (a mapping from
``p10/p10000032/s50414267.txt`` to a graph of the whole report), or CheXpert Plus's ``section_findings.json`` (a list of
graphs, each under the key ``"0"``). Otherwise the texts are read by RadGraph's model, the one that the metric uses
(`dive.radgraph`); both remember what it said in one place.

A graph holds words, not characters: its ``text`` is the report cut into words by blanks, and an entity covers the words
``start_ix`` to ``end_ix``. Letters and digits are the same in both, so characters are found by counting these.
RadGraph also gives the metric RadGraph F1: a method that is trained on its spans is then scored by their maker, or by
its kin where the archives differ.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dive.annotation.vocabulary import Report, Span
from dive.data.roots import DataError
from dive.progress import log
from dive.radgraph import GraphReader, words_of

POLARITIES = {
    "Observation::definitely present": "positive",
    "Observation::definitely absent": "negative",
    "Observation::uncertain": "uncertain",
    "OBS-DP": "positive",
    "OBS-DA": "negative",
    "OBS-U": "uncertain",
}
"""Labels of RadGraph-XL and of RadGraph 1; measurements and anatomy are no observations."""

STUDY = re.compile(r"(?:^|/)(s\d+)(?=$|/|\.txt$)")
"""The study in a report's path and in a ``study_uid``, to which the unit ``image`` adds the image's name."""

PART = 20_000
"""Texts whose graphs are in memory at a time; all of MIMIC-CXR's would take several GB."""


class Graph(NamedTuple):
    """What is read of a graph.

    Attributes:
        text: its words, joined by blanks.
        observations: (first word, last word, tokens, polarity) of each.
    """

    text: str
    observations: list[tuple[int, int, str, str]]


def observation(entity: Mapping[str, Any]) -> tuple[int, int, str, str] | None:
    """(first word, last word, tokens, polarity) of an entity that is an observation."""
    polarity = POLARITIES.get(entity["label"])
    return (entity["start_ix"], entity["end_ix"], entity["tokens"].lower(), polarity) if polarity else None


def letters(text: str) -> tuple[str, list[int]]:
    """The letters and digits of a text in lower case, and where each stands."""
    kept = [(character.lower()[0], place) for place, character in enumerate(text) if character.isalnum()]
    return "".join(character for character, _ in kept), [place for _, place in kept]


def spans_of_graph(graph: Graph, text: str) -> list[Span] | None:
    """Observations of a graph as spans of a text that is the graph's, or a section of it; None where it is neither.

    Every word of an observation is in a span. Where two overlap, the one that begins first, or is longer, is whole.
    """
    wanted, places = letters(text)
    whole, _ = letters(graph.text)
    begin = whole.find(wanted)
    if begin < 0 or not wanted:
        return None
    ends, so_far = [0], 0  # letters before each word of the graph
    for word in graph.text.split():
        so_far += len(letters(word)[0])
        ends.append(so_far)
    spans: list[Span] = []
    taken = 0  # letters before the end of the last span
    for first_word, last_word, tokens, polarity in sorted(graph.observations, key=lambda seen: (seen[0], -seen[1])):
        first, last = ends[first_word] - begin, ends[last_word + 1] - begin
        if first >= 0 and max(first, taken) < last <= len(places):
            first, taken = max(first, taken), last
            spans.append(Span(places[first], places[last - 1] + 1, tokens, polarity, "radgraph"))
    return spans


def read_graphs(path: str | Path) -> tuple[dict[str, Graph], dict[str, Graph]]:
    """Graphs by study (``s50414267``), and those without one by the letters of their text.

    Raises:
        DataError: the file is no RadGraph annotation.
    """

    def shrink(item: dict[str, Any]) -> Any:
        # While the file is parsed: entities that are no observations, and relations, would take most of the memory.
        if "start_ix" in item:
            return observation(item)
        if "entities" in item:
            return Graph(item["text"], [entity for entity in item["entities"].values() if entity])
        return item

    try:
        with open(path, encoding="utf-8") as handle:
            content = json.load(handle, object_hook=shrink)
        named = ((None, entry) for entry in content) if isinstance(content, list) else content.items()
        # Reports that two radiologists labelled have no graph of their own beside theirs.
        graphs = [
            (STUDY.search(name or ""), graph)
            for name, entry in named
            if isinstance(graph := entry.get("0") if isinstance(entry, dict) else entry, Graph)
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the annotations of RadGraph ({error!r})") from error
    if not graphs:
        raise DataError(f"{path}: no graphs with entities in it")
    by_study = {study[1]: graph for study, graph in graphs if study}
    return by_study, {letters(graph.text)[0]: graph for study, graph in graphs if not study}


def published_spans(reports: list[Report], path: str | Path) -> list[list[Span] | None]:
    """Spans of every report by published annotations; None where these have no graph of it."""
    by_study, by_text = read_graphs(path)
    found = []
    for report in reports:
        study = STUDY.search(report.study_uid)
        graph = (by_study.get(study[1]) if study else None) or by_text.get(letters(report.text)[0])
        found.append(spans_of_graph(graph, report.text) if graph else None)
    return found


def inferred_spans(reports: list[Report], reader: GraphReader) -> list[list[Span] | None]:
    """Spans of every report by RadGraph's model; None where nothing of a text is left in its words."""
    texts = list(dict.fromkeys(report.text for report in reports))
    found: dict[str, list[Span] | None] = {}
    for begin in range(0, len(texts), PART):
        part = texts[begin : begin + PART]
        log.info("radgraph: texts %d to %d of %d", begin + 1, begin + len(part), len(texts))
        for text, graph in reader.graphs(part).items():
            observations = [seen for entity in graph["entities"].values() if (seen := observation(entity))]
            found[text] = spans_of_graph(Graph(" ".join(words_of(text, reader.archive)), observations), text)
    return [found[report.text] for report in reports]


def build(settings: Mapping[str, Any], files: Mapping[str, str]) -> Callable[[Iterable[Report]], Iterator[list[Span]]]:
    """The annotator of ``annotation.annotator: radgraph``.

    Args:
        settings: ``max_missing``, the share of reports that may have no graph; where there are no annotations also
            ``path``, ``archive`` and ``device`` of `dive.radgraph.GraphReader`.
        files: ``annotations``, the published graphs; without it the model reads the texts, and what it says is
            remembered in the folder ``remembered``, so that a killed job goes on where it was.

    Raises:
        WeightsError: the archive is absent or incomplete, or the package is not installed.
        DataError: there are neither annotations nor a path; see `read_graphs`; or too many reports have no graph.
    """
    published = files.get("annotations")
    reader = None
    if not published:
        if not settings.get("path"):
            raise DataError(
                "annotation.annotator radgraph: give annotation.radgraph.annotations a file of this dataset, or "
                "annotation.radgraph.path RadGraph's weights (`dive fetch-assets` says where they are from)"
            )
        model = {key: settings[key] for key in ("path", "archive", "device")}
        told = {"key": "annotation.radgraph", "limit": "datasets.*.selection.max_words"}
        reader = GraphReader(**model, folder=files.get("remembered"), **told)

    def annotate(reports: Iterable[Report]) -> Iterator[list[Span]]:
        reports = list(reports)
        found = published_spans(reports, published) if published else inferred_spans(reports, reader)
        missing = [report.study_uid for report, spans in zip(reports, found, strict=True) if spans is None]
        if missing:
            message = "radgraph: %d of %d reports have no graph, and so no decisive tokens: %s"
            log.info(message, len(missing), len(reports), ", ".join(missing))
        if len(missing) > settings["max_missing"] * len(reports):
            raise DataError(
                f"{len(missing)} of {len(reports)} reports have no graph in {published or settings['archive']}, "
                f"the first is {missing[0]}: is it of this dataset and section? annotation.radgraph.max_missing is "
                f"{settings['max_missing']:g}"
            )
        return iter([spans or [] for spans in found])

    return annotate
