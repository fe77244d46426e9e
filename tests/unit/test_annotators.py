"""The annotators behind one interface (two of them have files of their own), and the weightings that need none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dive import packaged
from dive.annotation.annotate import build_annotator, outside, unite
from dive.annotation.benchmark import drawn_reports, measure, unrepeated
from dive.annotation.idf import inverse_frequencies
from dive.annotation.vocabulary import Report, Span
from dive.annotation.weights import permuted, power_law, surprisal, token_weights, value_at_risk, weight_sums
from dive.data.roots import DataError

VOCABULARY = {"annotator": "vocabulary", "classes": ["observation", "pathology"], "include_cues": False}
FILES = {"vocabulary": packaged.VOCABULARY}


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
