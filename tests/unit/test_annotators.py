"""The annotators behind one interface, and the weightings that need none."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dive.annotation.annotate import build_annotator, outside, unite
from dive.annotation.benchmark import drawn_reports, measure, unrepeated
from dive.annotation.idf import inverse_frequencies
from dive.annotation.radgraph import letters, read_graphs, spans_of_graph
from dive.annotation.vocabulary import Report, Span
from dive.annotation.weights import permuted, power_law, surprisal, token_weights, value_at_risk, weight_sums
from dive.data.roots import DataError

VOCABULARY = {"annotator": "vocabulary", "classes": ["observation", "pathology"], "include_cues": False}
FILES = {"vocabulary": str(Path(__file__).parents[2] / "workflow/resources/vocabulary.csv")}


def reports(*texts, split="train"):
    return [Report(f"s{i}", split, text) for i, text in enumerate(texts)]


def found(annotator, texts):
    return [
        [text[s.start : s.end] for s in spans] for spans, text in zip(annotator(reports(*texts)), texts, strict=True)
    ]


def test_an_unknown_annotator_is_named():
    with pytest.raises(DataError, match=r"annotation\.annotator is 'tarot'; there are: vocabulary, scispacy"):
        build_annotator({"annotator": "tarot"}, FILES)


# idf


def test_idf_is_log_n_over_df():
    idf = inverse_frequencies(["the heart", "the Lungs", "the heart the heart", "THE"])
    assert idf == pytest.approx({"the": 0.0, "heart": np.log(2), "lungs": np.log(4)})


def test_idf_marks_the_rarest_words_up_to_the_share():
    texts = ["the heart is large", "the heart is normal", "the lungs are clear", "the heart is normal"]
    annotate = build_annotator({"annotator": "idf", "share": 0.3}, {})
    # 16 words; five of them (large, lungs, are, clear, and normal twice at the threshold) are the rarest.
    assert found(annotate, texts) == [["large"], ["normal"], ["lungs", "are", "clear"], ["normal"]]


def test_idf_counts_the_training_split_alone_and_new_words_are_rare():
    training = reports("the heart is large", "the heart is normal")
    annotate = build_annotator({"annotator": "idf", "share": 0.1}, {})
    *_, spans = annotate([*training, Report("t", "test", "No pneumothorax; the heart is normal and large.")])
    assert [span.observation for span in spans] == ["no", "pneumothorax", "normal", "and", "large"]
    assert spans[1].polarity == "negative"
    assert {span.source for span in spans} == {"idf"}
    with pytest.raises(DataError, match="no words"):
        list(annotate(reports("1.5", split="train")))


# union


def test_a_union_keeps_the_first_annotator_s_span_and_the_rest_of_the_others():
    union = build_annotator({"annotator": "union", "parts": [VOCABULARY, {"annotator": "idf", "share": 0.5}]}, FILES)
    text = "Left pleural effusion persists"
    (spans,) = union(reports(text))
    assert [(text[s.start : s.end], s.source) for s in spans] == [
        ("Left", "idf"),
        ("pleural effusion", "vocabulary"),
        ("persists", "idf"),
    ]


SPANS = st.lists(st.tuples(st.integers(0, 19), st.integers(1, 6)), max_size=5)


@settings(deadline=None)
@given(SPANS, SPANS, st.text("ab ", min_size=25, max_size=25))
def test_unions_are_disjoint_and_lose_nothing(one, other, text):
    def annotator(places):
        kept = []
        for start, length in sorted(places):
            if not kept or start >= kept[-1].end:
                kept += outside(Span(start, start + length, "x", "positive", "y"), [], text)
        return lambda several: iter([kept for _ in several])

    first, second = annotator(one), annotator(other)
    (spans,) = unite([first, second])(reports(text))
    places = [place for span in spans for place in range(span.start, span.end) if not text[place].isspace()]
    assert len(places) == len(set(places))
    wanted = {
        p for a in (first, second) for s in next(a(["x"])) for p in range(s.start, s.end) if not text[p].isspace()
    }
    assert set(places) == wanted
    assert all(text[span.start : span.end].strip() == text[span.start : span.end] for span in spans)


# RadGraph


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


def marked(spans, text):
    return [(text[span.start : span.end], span.polarity) for span in spans]


EXPECTED = [("effusion", "positive"), ("pneumothorax", "negative"), ("nodule", "uncertain")]


def test_graphs_are_read_by_letters_and_digits():
    assert letters("A-1 é.") == ("a1é", [0, 2, 4])
    assert marked(spans_of_graph(GRAPH, TEXT), TEXT) == EXPECTED
    section = TEXT[TEXT.index("No ") :]  # a graph of the whole report, the target is one section
    assert marked(spans_of_graph(GRAPH, section), section) == EXPECTED[1:]
    assert spans_of_graph(GRAPH, "Another text") is None


@pytest.mark.parametrize("kind", ["list", "mapping"])
def test_published_annotations(tmp_path, kind):
    """CheXpert Plus has a list keyed by nothing, PhysioNet a mapping by the report's path."""
    old = json.loads(json.dumps(GRAPH).replace("Observation::definitely present", "OBS-DP"))
    content = [{"0": GRAPH}] if kind == "list" else {"p10/p10000032/s0.txt": old, "x/s1.txt": {"labeler_1": old}}
    path = tmp_path / "graphs.json"
    path.write_text(json.dumps(content))
    settings = {"annotator": "radgraph", "model": "radgraph", "max_missing": 0.5}
    annotate = build_annotator(settings, {"annotations": str(path)})
    # By text in either; by study a section is enough.
    texts = [TEXT, "Clear."] if kind == "list" else [TEXT[TEXT.index("No ") :], "Clear."]
    spans = list(annotate(reports(*texts)))
    assert marked(spans[0], texts[0]) == (EXPECTED if kind == "list" else EXPECTED[1:])
    assert spans[1] == []
    strict = build_annotator({**settings, "max_missing": 0.1}, {"annotations": str(path)})
    with pytest.raises(DataError, match=r"1 of 2 reports have no graph in .*the first is s1.*max_missing is 0\.1"):
        strict(reports(*texts))


def test_what_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "graphs.json"
    for content in ("[1, 2]", "{}", '{"a": {"entities": {}}}'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"graphs\.json"):
            read_graphs(path)


# spaCy


NER = {
    "@architectures": "spacy.TransitionBasedParser.v2",
    "state_type": "ner",
    "extra_state_tokens": False,
    "hidden_width": 32,
    "maxout_pieces": 2,
    "use_upper": True,
    "tok2vec": {
        "@architectures": "spacy.HashEmbedCNN.v2",
        "pretrained_vectors": None,
        "width": 48,
        "depth": 2,
        "embed_size": 500,
        "window_size": 1,
        "maxout_pieces": 3,
        "subword_features": True,
    },
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """An English pipeline with a small recogniser of two labels, trained in a second, saved to a folder.

    With scispaCy's tokenizer and sentence splitter where these are installed, as its own models have them.
    """
    spacy = pytest.importorskip("spacy", reason="the annotator scispacy is an extra")
    import random

    from spacy.training import Example

    nlp = spacy.blank("en")
    try:
        import scispacy.custom_sentence_segmenter  # noqa: F401
        from scispacy.custom_tokenizer import combined_rule_tokenizer
    except ImportError:
        pass
    else:
        nlp.tokenizer = combined_rule_tokenizer(nlp)
        nlp.add_pipe("pysbd_sentencizer")
    nlp.add_pipe("ner", config={"model": NER})
    words = {"DISEASE": ["effusion", "pneumothorax", "edema"], "DEVICE": ["tube", "pacemaker"]}
    frames = ["There is a {}.", "No {} is seen.", "Small {} persists.", "A {}."]
    examples = []
    for label, names in words.items():
        for name in names:
            for frame in frames:
                text, start = frame.format(name), frame.index("{")
                annotations = {"entities": [(start, start + len(name), label)]}
                examples.append(Example.from_dict(nlp.make_doc(text), annotations))
    nlp.initialize(lambda: examples)
    random.seed(0)
    for _ in range(60):
        random.shuffle(examples)
        nlp.update(examples)
    folder = tmp_path_factory.mktemp("spacy") / "ner"
    nlp.to_disk(folder)
    return str(folder)


def scispacy(path, labels=("DISEASE",), types=()):
    return {"annotator": "scispacy", "path": path, "labels": list(labels), "types": list(types)}


def test_spacy_entities_by_label(pipeline):
    texts = ["There is a effusion. No pneumothorax is seen.", "A tube. No pneumothorax is seen.", "Clear."]
    annotate = build_annotator(scispacy(pipeline), {})
    assert found(annotate, texts) == [["effusion", "pneumothorax"], ["pneumothorax"], []]
    spans = next(annotate(reports(*texts)))
    assert [(span.observation, span.polarity, span.source) for span in spans] == [
        ("DISEASE", "positive", "scispacy"),
        ("DISEASE", "negative", "scispacy"),
    ]
    everything = build_annotator(scispacy(pipeline, labels=()), {})
    assert found(everything, ["There is a tube."]) == [["tube"]]


def test_spacy_mistakes_are_named(pipeline, tmp_path):
    with pytest.raises(DataError, match="has none of CHEMICAL, but DEVICE, DISEASE"):
        build_annotator(scispacy(pipeline, ["CHEMICAL"]), {})
    with pytest.raises(DataError, match=r"annotation\.scispacy\.path: .* is no spaCy pipeline"):
        build_annotator(scispacy(str(tmp_path)), {})
    with pytest.raises(DataError, match=r"annotation\.scispacy\.path is empty"):
        build_annotator(scispacy(None), {})


def test_spacy_entities_by_semantic_type(pipeline, tmp_path, monkeypatch):
    """scispaCy's linker by its interface: ``kb_ents`` of an entity, ``kb.cui_to_entity`` of the component."""
    import spacy
    from spacy.language import Language
    from spacy.tokens import Span as SpacySpan

    from dive.annotation import scispacy as module

    monkeypatch.setattr(module, "COMPONENTS", ())
    types = {"C1": ["T047"], "C2": ["T074"]}
    SpacySpan.set_extension("kb_ents", default=[], force=True)

    class Linker:
        def __init__(self):
            self.kb = type("Knowledge", (), {})()
            self.kb.cui_to_entity = {cui: type("Entity", (), {"types": of})() for cui, of in types.items()}

        def __call__(self, document):
            for entity in document.ents:
                entity._.kb_ents = [("C1" if entity.label_ == "DISEASE" else "C2", 0.9)]
            return document

    Language.factory("scispacy_linker", func=lambda nlp, name: Linker())
    linked = spacy.load(pipeline)
    linked.add_pipe("scispacy_linker")
    linked.to_disk(tmp_path / "linked")
    texts = ["There is a edema.", "There is a tube."]
    for wanted, expected in (
        (["T047"], [["edema"], []]),
        (["T074"], [[], ["tube"]]),
        (["T047", "T074"], [["edema"], ["tube"]]),
    ):
        assert found(build_annotator(scispacy(str(tmp_path / "linked"), (), wanted), {}), texts) == expected


def test_without_spacy_the_remedy_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(DataError, match=r"pip install 'dive\[scispacy\]'"):
        build_annotator(scispacy("x"), {})


# speed


def test_time_grows_with_the_number_of_reports_and_no_faster():
    texts = unrepeated(drawn_reports(400))
    sentences_seen = [sentence for text in texts for sentence in text.split(". ")]
    assert len(set(sentences_seen)) == len(sentences_seen)
    few_seconds, _ = measure("vocabulary", texts[:100])
    many_seconds, spans = measure("vocabulary", texts)
    assert many_seconds < 8 * few_seconds
    assert many_seconds < 400 * 0.6e-3 * 2  # 100,000 in a minute, on a machine that does other things too
    assert spans > 1500


# weights


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.integers(0, 5))
def test_random_tokens_are_as_many(marks, seed):
    marks = np.array(marks, dtype=bool)
    drawn = permuted(marks, seed, "s1")
    assert drawn.sum() == marks.sum()
    assert drawn.shape == marks.shape
    assert np.array_equal(drawn, permuted(marks, seed, "s1"))


def test_random_tokens_differ_by_study_and_seed():
    marks = np.arange(40) < 12
    assert not np.array_equal(permuted(marks, 0, "s1"), permuted(marks, 0, "s2"))
    assert not np.array_equal(permuted(marks, 0, "s1"), permuted(marks, 1, "s1"))
    places = np.mean([permuted(marks, seed, "s1") for seed in range(400)], axis=0)
    assert abs(places - 0.3).max() < 0.12  # every place alike


def test_power_law():
    corpus = [[1, 1, 1, 2], [1, 3, 3]]
    one, two = power_law([[1, 2, 9], [3]], corpus, 1.0)
    mean = (4 / 5 + 1 / 2 + 2 / 3) / 7
    assert one * mean == pytest.approx([1 / 5, 1 / 2, 1.0])
    assert two * mean == pytest.approx([1 / 3])
    assert np.concatenate(power_law(corpus, corpus, 1.3)).mean() == pytest.approx(1)
    assert power_law([[1, 2]], corpus, 0.0)[0] == pytest.approx([1, 1])


def test_surprisal():
    weights = surprisal([np.array([1.0, 3.0]), np.array([0.0])], 1.0)
    assert [part.tolist() for part in weights] == [pytest.approx([0.75, 2.25]), pytest.approx([0.0])]
    assert np.concatenate(surprisal([np.array([1.0, 3.0]), np.array([2.0])], 2.0)).mean() == pytest.approx(1)
    assert surprisal([np.array([1.0, 3.0])], 0.0)[0].tolist() == [1, 1]


@settings(deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=50), st.floats(0, 0.99))
def test_value_at_risk_is_the_definition(losses, level):
    losses = np.array(losses)
    # inf {x : P(loss <= x) >= level}
    var = min((x for x in losses if (losses <= x).mean() >= level - 1e-12), default=losses.max())
    kept = value_at_risk(losses, level)
    assert kept.tolist() == (losses >= var).astype(float).tolist()
    assert kept.any()


def test_relevance_scales_report_tokens_and_not_the_terminator():
    marks = np.array([False, True])
    relevance = np.array([0.5, 1.5])
    assert token_weights(marks, True, 3, 10, relevance).tolist() == [0.5, 4.5, 10]
    assert weight_sums(marks, True, 3, 10, relevance) == {"other": 0.5, "pathology": 4.5, "term": 10.0}
