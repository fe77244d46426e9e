"""The annotator ``scispacy``: on spaCy, scispaCy's tokenizer and sentence splitter, and its linker as they are."""

import json
import sys

import pytest

from dive.annotation.annotate import build_annotator
from dive.annotation.scispacy import load_pipeline, pipeline_errors
from dive.annotation.vocabulary import Report
from dive.data.roots import DataError

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
def spacy():
    """spaCy with scispaCy, which the environment of requirements.lock has."""
    pytest.importorskip("scispacy", reason='the package comes with "dive[scispacy]"')
    return pytest.importorskip("spacy")


@pytest.fixture(scope="module")
def pipeline(spacy, tmp_path_factory):
    """An English pipeline with a small recogniser of two labels, trained in a second, saved to a folder.

    Tokenizer and sentence splitter are scispaCy's, as its own models have them. Its configuration names a linker, which
    would be downloaded if it were loaded.
    """
    import random

    import scispacy.custom_sentence_segmenter  # noqa: F401
    from scispacy.custom_tokenizer import combined_rule_tokenizer
    from spacy.training import Example

    spacy.util.fix_random_seed(0)  # of Python and of numpy, which draws the weights
    nlp = spacy.blank("en")
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
    for _ in range(60):
        random.shuffle(examples)
        nlp.update(examples)
    folder = tmp_path_factory.mktemp("spacy") / "ner"
    nlp.to_disk(folder)
    config = folder / "config.cfg"
    text = config.read_text()
    assert '"ner"]' in text
    text = text.replace('"ner"]', '"ner","scispacy_linker"]')
    config.write_text(f'{text}\n[components.scispacy_linker]\nfactory = "scispacy_linker"\nlinker_name = "umls"\n')
    return str(folder)


def settings(path, labels=("DISEASE",), types=(), linker=None):
    return {"annotator": "scispacy", "path": path, "labels": list(labels), "types": list(types), "linker": linker}


def reports(texts):
    return [Report(f"s{i}", "train", text) for i, text in enumerate(texts)]


def found(annotator, texts):
    return [
        [text[s.start : s.end] for s in spans] for spans, text in zip(annotator(reports(texts)), texts, strict=True)
    ]


def test_entities_by_label(pipeline):
    texts = ["There is a effusion. No pneumothorax is seen.", "A tube. No pneumothorax is seen.", "Clear."]
    annotate = build_annotator(settings(pipeline), {})
    assert found(annotate, texts) == [["effusion", "pneumothorax"], ["pneumothorax"], []]
    spans = next(annotate(reports(texts)))
    assert [(span.observation, span.polarity, span.source) for span in spans] == [
        ("DISEASE", "positive", "scispacy"),
        ("DISEASE", "negative", "scispacy"),
    ]
    everything = build_annotator(settings(pipeline, labels=()), {})
    assert found(everything, ["There is a tube."]) == [["tube"]]


def test_mistakes_are_named(pipeline, tmp_path):
    with pytest.raises(DataError, match="has none of CHEMICAL, but DEVICE, DISEASE"):
        build_annotator(settings(pipeline, ["CHEMICAL"]), {})
    with pytest.raises(DataError, match=r"annotation\.scispacy\.path: .* is no spaCy pipeline"):
        build_annotator(settings(str(tmp_path)), {})
    with pytest.raises(DataError, match=r"annotation\.scispacy\.path is empty"):
        build_annotator(settings(None), {})


CONCEPTS = {"C1": ("Edema", ["edema"], "T046"), "C2": ("Tube, device", ["tube"], "T074")}


@pytest.fixture(scope="module")
def linker(pipeline, tmp_path_factory):
    """A linker's folder with two concepts, in the files that scispaCy publishes for UMLS.

    As its ``create_tfidf_ann_index``, which itself wants an older scipy; settings of the index aside.
    """
    import joblib
    import nmslib
    import numpy as np
    import scipy.sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    folder = tmp_path_factory.mktemp("linker")
    lines = [
        {"concept_id": cui, "canonical_name": name, "aliases": aliases, "types": [kind], "definition": name}
        for cui, (name, aliases, kind) in CONCEPTS.items()
    ]
    (folder / "umls.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    aliases = [alias for name, others, _ in CONCEPTS.values() for alias in (name, *others)]
    (folder / "concept_aliases.json").write_text(json.dumps(aliases))
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), dtype=np.float32)
    vectors = vectorizer.fit_transform(aliases)
    joblib.dump(vectorizer, folder / "tfidf_vectorizer.joblib")
    scipy.sparse.save_npz(folder / "tfidf_vectors_sparse.npz", vectors)
    index = nmslib.init(method="hnsw", space="cosinesimil_sparse", data_type=nmslib.DataType.SPARSE_VECTOR)
    index.addDataPointBatch(vectors)
    index.createIndex()
    index.saveIndex(str(folder / "nmslib_index.bin"))
    return folder


def test_entities_by_semantic_type(pipeline, linker, monkeypatch):
    monkeypatch.setattr("requests.head", lambda *_, **__: pytest.fail("the network was asked"))
    texts = ["There is a edema.", "There is a tube.", "There is a effusion."]  # the last is in no knowledge base
    for types, expected in (
        (["T046"], [["edema"], [], []]),
        (["T074"], [[], ["tube"], []]),
        (["T046", "T074"], [["edema"], ["tube"], []]),
    ):
        assert found(build_annotator(settings(pipeline, (), types, str(linker)), {}), texts) == expected
    both = build_annotator(settings(pipeline, ["DISEASE"], ["T046", "T074"], str(linker)), {})
    assert found(both, texts) == [["edema"], [], []]


def test_a_linker_lacks_what_is_named(pipeline, linker, tmp_path):
    def message(folder):
        with pytest.raises(DataError) as error:
            build_annotator(settings(pipeline, (), ["T046"], folder), {})
        return str(error.value)

    assert "annotation.scispacy.linker is empty" in message(None)
    assert f"{tmp_path}/no is no folder" in message(f"{tmp_path}/no")
    (tmp_path / "tfidf_vectorizer.joblib").write_bytes((linker / "tfidf_vectorizer.joblib").read_bytes())
    wanted = "nmslib_index.bin, tfidf_vectors_sparse.npz, concept_aliases.json, a single *.jsonl, the knowledge base"
    assert wanted in message(str(tmp_path))


def test_without_spacy_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(DataError, match=r"pip install 'dive\[scispacy\]'"):
        build_annotator(settings("x"), {})


WORDS = {"effusion": "NOUN", "effusions": "NOUN", "no": "DET", "is": "AUX", "seen": "VERB", ".": "PUNCT"}


def ruled(spacy, folder, ruler, pattern, *before):
    """An English pipeline of a ruler alone, after components that set tags and lemmas by word."""
    nlp = spacy.blank("en")
    for name in before:
        component = nlp.add_pipe(name)
        if name == "attribute_ruler":
            for word, pos in WORDS.items():
                component.add([[{"LOWER": word}]], {"POS": pos, "LEMMA": word.rstrip("s")})
    config = {"annotate_ents": True} if ruler == "span_ruler" else {}
    nlp.add_pipe(ruler, config=config).add_patterns([{"label": "DISEASE", "pattern": pattern}])
    nlp.to_disk(folder)
    return str(folder)


@pytest.mark.parametrize("ruler", ["entity_ruler", "span_ruler"])
@pytest.mark.parametrize("attribute", ["POS", "pos", "LEMMA"])
def test_rules_on_parts_of_speech_and_lemmas_have_what_they_need(spacy, tmp_path, ruler, attribute):
    value = {"POS": "NOUN", "LEMMA": "effusion"}[attribute.upper()]
    path = ruled(spacy, tmp_path / "p", ruler, [{attribute: value}], "attribute_ruler")
    assert pipeline_errors(path) == []
    annotate = build_annotator(settings(path), {})
    assert found(annotate, ["No effusions is seen. Clear."]) == [["effusions"]]


@pytest.mark.parametrize("ruler", ["entity_ruler", "span_ruler"])
@pytest.mark.parametrize(
    ("attribute", "setter"), [("POS", "attribute_ruler"), ("LEMMA", "lemmatizer"), ("DEP", "parser")]
)
def test_rules_that_no_component_serves_are_told_before_any_job(spacy, tmp_path, ruler, attribute, setter):
    path = ruled(spacy, tmp_path / "p", ruler, [{attribute: "NOUN"}])
    (message,) = pipeline_errors(path)
    assert message.startswith(f"annotation.scispacy.path: {ruler} in {path} has rules with {attribute}")
    assert setter in message
    with pytest.raises(DataError, match=r"annotation\.scispacy\.path: the pipeline at .* cannot read a sentence"):
        build_annotator(settings(path), {})


def test_rules_on_words_alone_keep_the_pipeline_short(spacy, tmp_path):
    path = ruled(spacy, tmp_path / "p", "entity_ruler", [{"LOWER": "effusion"}], "attribute_ruler")
    assert load_pipeline(path).pipe_names == ["entity_ruler"]
    assert found(build_annotator(settings(path), {}), ["An effusion."]) == [["effusion"]]
