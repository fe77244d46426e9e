"""The annotator ``radgraph``: published annotations, and the weights that the metric reads by."""

import itertools
import json
import logging

import pytest

from dive.annotation.annotate import build_annotator
from dive.annotation.radgraph import Graph, letters, observation, read_graphs, spans_of_graph
from dive.annotation.vocabulary import Report
from dive.data.roots import DataError
from dive.files import WeightsError
from tests.unit.tiny_scorers import SENTENCES, write_encoder, write_radgraph, write_reports


def reports(*texts):
    return [Report(f"p1/s{i}", "train", text) for i, text in enumerate(texts)]


def graph_of(text, *entities):
    """A graph as the package writes it; entities are (label, first word, last word)."""
    words = text.split()
    return {
        "text": text,
        "entities": {
            str(i): {"tokens": " ".join(words[a : b + 1]), "label": label, "start_ix": a, "end_ix": b, "relations": []}
            for i, (label, a, b) in enumerate(entities, start=1)
        },
    }


TEXT = "Small left-sided pleural effusion. No pneumothorax; 1.5 cm nodule?"
GRAPH = graph_of(
    "Small left - sided pleural effusion . No pneumothorax ; 1 . 5 cm nodule ?",
    ("Observation::definitely present", 5, 5),
    ("Anatomy::definitely present", 4, 4),
    ("Observation::definitely absent", 8, 8),
    ("Observation::uncertain", 14, 14),
    ("Observation::measurement::definitely present", 10, 13),
)


def read(graph):
    """As it is read: its words, and its observations."""
    return Graph(graph["text"], [seen for entity in graph["entities"].values() if (seen := observation(entity))])


def marked(spans, text):
    return [(text[span.start : span.end], span.polarity) for span in spans]


EXPECTED = [("effusion", "positive"), ("pneumothorax", "negative"), ("nodule", "uncertain")]


def test_graphs_are_read_by_letters_and_digits():
    assert letters("A-1 é.") == ("a1é", [0, 2, 4])
    assert marked(spans_of_graph(read(GRAPH), TEXT), TEXT) == EXPECTED
    section = TEXT[TEXT.index("No ") :]  # a graph of the whole report, the target is one section
    assert marked(spans_of_graph(read(GRAPH), section), section) == EXPECTED[1:]
    assert spans_of_graph(read(GRAPH), "Another text") is None


def test_observations_that_overlap_lose_no_word():
    labels = [f"Observation::{word}" for word in ("definitely present", "definitely absent", "uncertain")]
    graph = graph_of(
        "Dense left basal opacity", (labels[0], 1, 2), (labels[1], 0, 1), (labels[2], 1, 1), (labels[2], 2, 3)
    )
    expected = [("dense, left", "negative"), ("basal", "positive"), ("opacity", "uncertain")]
    text = "dense, left basal  opacity"
    assert marked(spans_of_graph(read(graph), text), text) == expected


@pytest.mark.parametrize("kind", ["list", "mapping"])
def test_published_annotations(tmp_path, kind):
    """CheXpert Plus has a list keyed by nothing, PhysioNet a mapping by the report's path."""
    old = json.loads(json.dumps(GRAPH).replace("Observation::definitely present", "OBS-DP"))
    content = [{"0": GRAPH}] if kind == "list" else {"p10/p10000032/s0.txt": old, "x/s1.txt": {"labeler_1": old}}
    path = tmp_path / "graphs.json"
    path.write_text(json.dumps(content))
    settings = {"annotator": "radgraph", "max_missing": 0.5}
    annotate = build_annotator(settings, {"annotations": str(path)})
    # By text in either; by study a section is enough.
    texts = [TEXT, "Clear."] if kind == "list" else [TEXT[TEXT.index("No ") :], "Clear."]
    spans = list(annotate(reports(*texts)))
    assert marked(spans[0], texts[0]) == (EXPECTED if kind == "list" else EXPECTED[1:])
    assert spans[1] == []
    strict = build_annotator({**settings, "max_missing": 0.1}, {"annotations": str(path)})
    with pytest.raises(DataError, match=r"1 of 2 reports have no graph in .*the first is p1/s1.*max_missing is 0\.1"):
        strict(reports(*texts))


def test_what_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "graphs.json"
    for content in ("[1, 2]", "{}", '{"a": {"entities": {}}}'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"graphs\.json"):
            read_graphs(path)


def test_a_row_an_image_has_its_study_s_graph(tmp_path):
    path = tmp_path / "graphs.json"
    path.write_text(json.dumps({"p10/p10000032/s50414267.txt": GRAPH, "p10/p10000032/s50414268.txt": GRAPH}))
    annotate = build_annotator({"annotator": "radgraph", "max_missing": 0}, {"annotations": str(path)})
    section = TEXT[TEXT.index("No ") :]
    (spans,) = annotate([Report("p10000032/s50414267/8a9b-1c", "train", section)])
    assert marked(spans, section) == EXPECTED[1:]


# By weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a tiny archive in the package's format."""
    pytest.importorskip("radgraph", reason='the package comes with "dive[metrics]"')
    folder = tmp_path_factory.mktemp("radgraph")
    encoder = write_encoder(folder / "bert")
    write_radgraph(folder, encoder, "radgraph-xl")
    return str(folder)


def settings(path, archive="radgraph-xl", max_missing=0.0):
    model = {"path": path, "archive": archive, "device": "cpu"}
    return {"annotator": "radgraph", "max_missing": max_missing, **model}


def test_spans_are_the_observations_that_the_package_finds(tmp_path):
    radgraph = pytest.importorskip("radgraph", reason='the package comes with "dive[metrics]"')
    texts = [*dict.fromkeys(write_reports(20, 0)), "No edema/effusion, 2.5 cm\n  (left-sided)."]
    labels = {"OBS-DP": "positive", "OBS-DA": "negative", "OBS-U": "uncertain"}
    seen = set()
    # Drawn weights prefer one label or two, and what they find overlaps often.
    for archive, seed in (("radgraph", 0), ("radgraph-xl", 2), ("radgraph-xl", 5)):
        folder = str(write_radgraph(tmp_path / str(seed), write_encoder(tmp_path / str(seed) / "bert"), archive, seed))
        graphs = radgraph.RadGraph(model_type=archive, model_cache_dir=folder, cuda=-1)(texts)
        annotate = build_annotator(settings(folder, archive), {})
        for index, (text, spans) in enumerate(zip(texts, annotate(reports(*texts)), strict=True)):
            graph = graphs[str(index)]
            numbers = [number for number, word in enumerate(graph["text"].split()) for _ in letters(word)[0]]
            wanted = {}  # place of a letter -> polarities of the observations that it belongs to
            for place, number in zip(letters(text)[1], numbers, strict=True):
                inside = [e for e in graph["entities"].values() if e["start_ix"] <= number <= e["end_ix"]]
                seen |= {entity["label"] for entity in inside}
                if polarities := {labels[entity["label"]] for entity in inside if entity["label"] in labels}:
                    wanted[place] = polarities
            given = {p: span.polarity for span in spans for p in range(span.start, span.end) if text[p].isalnum()}
            assert given.keys() == wanted.keys(), text
            assert all(polarity in wanted[place] for place, polarity in given.items())
            assert all(text[span.start].isalnum() and text[span.end - 1].isalnum() for span in spans)
            assert all(one.end <= other.start for one, other in itertools.pairwise(spans))
    assert seen == {*labels, "ANAT-DP"}


def test_a_text_is_read_once_ever_and_by_the_metric_too(weights, tmp_path, monkeypatch):
    from dive.scores.radgraph import RadGraph

    files = {"remembered": str(tmp_path)}
    texts = list(SENTENCES) * 2
    expected = list(build_annotator(settings(weights), files)(reports(*texts)))
    monkeypatch.setattr("dive.radgraph.load_archive", lambda *_: pytest.fail("the model was loaded"))
    assert list(build_annotator(settings(weights), files)(reports(*texts))) == expected
    scorer = RadGraph(weights, "radgraph-xl", device="cpu", folder=str(tmp_path))
    assert scorer.statistics(texts, texts).shape == (len(texts), 4)


def test_texts_without_a_graph_are_counted_and_listed(weights, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="dive")
    monkeypatch.setattr("dive.annotation.radgraph.PART", 2)
    texts = [SENTENCES[0], "...", SENTENCES[1], SENTENCES[0], "_ _"]
    annotate = build_annotator(settings(weights, max_missing=0.5), {})
    spans = list(annotate(reports(*texts)))
    assert spans[0] == spans[3]
    assert spans[1] == spans[4] == []
    assert "2 of 5 reports have no graph, and so no decisive tokens: p1/s1, p1/s4" in caplog.text
    with pytest.raises(DataError, match=r"2 of 5 reports have no graph in radgraph-xl, the first is p1/s1"):
        build_annotator(settings(weights), {})(reports(*texts))


def test_without_annotations_and_weights_the_key_is_named(tmp_path):
    with pytest.raises(DataError, match=r"annotation\.radgraph\.annotations .*annotation\.radgraph\.path"):
        build_annotator(settings(None), {})
    with pytest.raises(DataError, match=r"annotation\.radgraph\.path"):
        build_annotator({"annotator": "radgraph", "max_missing": 0.1}, {})
    with pytest.raises(WeightsError, match=r"has no config\.json, weights\.th, .*dive fetch-assets"):
        build_annotator(settings(str(tmp_path)), {})
