"""Decisive spans by RadGraph's observations (Jain et al. 2021; RadGraph-XL, Delbrouck et al. 2024).

Read from published annotations where there are some: PhysioNet's ``MIMIC-CXR_graphs.json`` (a mapping from
``p10/p10000032/s50414267.txt`` to a graph of the whole report), or CheXpert Plus's ``section_findings.json`` (a list of
graphs, each under the key ``"0"``). Otherwise the package ``radgraph`` is run, if it and its weights are installed.

A graph holds words, not characters: its ``text`` is the report cut into words by blanks, and an entity covers the words
``start_ix`` to ``end_ix``. Letters and digits are the same in both, so characters are found by counting these.
RadGraph also gives the metric RadGraph F1: a method that is trained on its spans is then scored by their maker.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dive.annotation.vocabulary import Report, Span, disjoint
from dive.data.roots import DataError
from dive.progress import log

POLARITIES = {
    "Observation::definitely present": "positive",
    "Observation::definitely absent": "negative",
    "Observation::uncertain": "uncertain",
    "OBS-DP": "positive",
    "OBS-DA": "negative",
    "OBS-U": "uncertain",
}
"""Labels of RadGraph-XL and of RadGraph 1; measurements and anatomy are no observations."""

STUDY = re.compile(r"\bs\d+(?=\.txt$|$)")


def letters(text: str) -> tuple[str, list[int]]:
    """The letters and digits of a text in lower case, and where each stands."""
    kept = [(character.lower()[0], place) for place, character in enumerate(text) if character.isalnum()]
    return "".join(character for character, _ in kept), [place for _, place in kept]


def spans_of_graph(graph: Mapping[str, Any], text: str) -> list[Span] | None:
    """Observations of a graph as spans of a text that is the graph's, or a section of it; None where it is neither.

    Args:
        graph: ``text`` and ``entities`` (label, start_ix, end_ix).
        text: the report's section, as written.
    """
    wanted, places = letters(text)
    whole, _ = letters(graph["text"])
    begin = whole.find(wanted)
    if begin < 0 or not wanted:
        return None
    ends, so_far = [0], 0  # letters before each word of the graph
    for word in graph["text"].split():
        so_far += len(letters(word)[0])
        ends.append(so_far)
    spans = []
    for entity in graph["entities"].values():
        polarity = POLARITIES.get(entity["label"])
        if polarity is None:
            continue
        first, last = ends[entity["start_ix"]] - begin, ends[entity["end_ix"] + 1] - begin
        if 0 <= first < last <= len(places):
            start, end = places[first], places[last - 1] + 1
            spans.append(Span(start, end, entity["tokens"].lower(), polarity, "radgraph"))
    return disjoint(spans)


def read_graphs(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Graphs by study (``s50414267``) and by the letters of their text.

    Raises:
        DataError: the file is no RadGraph annotation.
    """
    with open(path, encoding="utf-8") as handle:
        content = json.load(handle)
    try:
        if isinstance(content, list):
            entries = [("", entry.get("0", entry)) for entry in content]
        else:
            entries = [(key, entry.get("0", entry)) for key, entry in content.items() if isinstance(entry, dict)]
        # Reports that two radiologists labelled have no graph of their own beside theirs.
        graphs = [(key, graph) for key, graph in entries if "entities" in graph]
        by_study = {match[0]: graph for key, graph in graphs if (match := STUDY.search(key))}
        by_text = {letters(graph["text"])[0]: graph for _, graph in graphs}
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the annotations of RadGraph ({error!r})") from error
    if not graphs:
        raise DataError(f"{path}: no graphs with entities in it")
    return by_study, by_text


def infer_graphs(texts: Iterable[str], model: str) -> dict[str, Any]:
    """Graphs of different texts by the package ``radgraph``: text -> graph.

    Raises:
        DataError: the package is not installed.
    """
    try:
        from radgraph import RadGraph
    except ImportError as error:
        raise DataError(
            "annotation.annotator radgraph: give annotation.radgraph.annotations a file for this dataset, or "
            "pip install radgraph"
        ) from error
    unique = [text for text in dict.fromkeys(texts) if text.strip()]
    graphs = RadGraph(model_type=model)(unique)
    return {text: graphs[str(index)] for index, text in enumerate(unique)}


def build(settings: Mapping[str, Any], files: Mapping[str, str]) -> Callable[[Iterable[Report]], Iterator[list[Span]]]:
    """The annotator of ``annotation.annotator: radgraph``.

    Args:
        settings: ``model`` of the package; ``max_missing``, the share of reports that may have no graph.
        files: ``annotations``, the published graphs; without it the package is run.

    Raises:
        DataError: see `read_graphs` and `infer_graphs`; or too many reports have no graph.
    """

    def annotate(reports: Iterable[Report]) -> Iterator[list[Span]]:
        reports = list(reports)
        if files.get("annotations"):
            by_study, by_text = read_graphs(files["annotations"])
        else:
            graphs = infer_graphs((report.text for report in reports), settings["model"])
            by_study, by_text = {}, {letters(text)[0]: graph for text, graph in graphs.items()}
        found: list[list[Span] | None] = []
        for report in reports:
            graph = by_text.get(letters(report.text)[0]) or by_study.get(report.study_uid.rpartition("/")[2])
            found.append(spans_of_graph(graph, report.text) if graph else None)
        missing = [report.study_uid for report, spans in zip(reports, found, strict=True) if spans is None]
        if missing:
            message = "radgraph: %d of %d reports have no graph, and so no decisive tokens: %s"
            log.info(message, len(missing), len(reports), ", ".join(missing))
        if len(missing) > settings["max_missing"] * len(reports):
            raise DataError(
                f"{len(missing)} of {len(reports)} reports have no graph in {files.get('annotations') or 'radgraph'}, "
                f"the first is {missing[0]}: is it of this dataset and section? annotation.radgraph.max_missing is "
                f"{settings['max_missing']:g}"
            )
        return iter([spans or [] for spans in found])

    return annotate
