"""Corpus BLEU against hand-computed cases and plain loops over pycocoevalcap's formula."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dive.scores.bleu import (
    bleu_from_statistics,
    bleu_statistics,
    corpus_bleu,
    raw_tokens,
    separated_tokens,
)
from tests.unit.reference import ask
from tests.unit.tiny_scorers import write_reports

TEXTS = st.lists(
    st.sampled_from(["The", "heart", "is", "normal", ".", "no", "effusion", ",", "left-sided", "___"]),
    max_size=14,
).map(" ".join)


def plain_bleu(hypotheses, references, tokenise, n=4):
    """The formula once more, with loops over lists and no shared code."""
    matches, guesses, length_h, length_r = [0] * n, [0] * n, 0, 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        h, r = tokenise(hypothesis), tokenise(reference)
        length_h, length_r = length_h + len(h), length_r + len(r)
        for k in range(1, n + 1):
            unused = [r[i : i + k] for i in range(len(r) - k + 1)]
            for i in range(len(h) - k + 1):
                guesses[k - 1] += 1
                if h[i : i + k] in unused:
                    unused.remove(h[i : i + k])
                    matches[k - 1] += 1
    product = 1.0
    for match, guess in zip(matches, guesses, strict=True):
        product *= (match + 1e-15) / (guess + 1e-9)
    ratio = (length_h + 1e-15) / (length_r + 1e-9)
    # The exponent underflows to 0 for empty hypotheses, as in the reference.
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return 100 * product ** (1 / n) * brevity


def test_headline_tokenisation_separates_punctuation_and_lowers_case():
    assert separated_tokens("Heart size\n is NORMAL.  No left-sided effusion, ___.") == (
        ["heart", "size", "is", "normal", ".", "no", "left", "-", "sided", "effusion", ",", "___", "."]
    )
    assert raw_tokens("Heart size\n is NORMAL.") == ["Heart", "size", "is", "NORMAL."]


def test_hand_computed_corpus():
    # hypothesis: the cat the cat on the mat (7); reference: the cat is on the mat (6)
    # 1-grams: the 2 (clipped), cat 1, on 1, mat 1 = 5/7; 2-grams: the cat 1, on the 1, the mat 1 = 3/6;
    # 3-grams: on the mat = 1/5; 4-grams: 0/4
    statistics = bleu_statistics("the cat the cat on the mat", "the cat is on the mat")
    assert statistics.tolist() == [5, 3, 1, 0, 7, 6, 5, 4, 7, 6]
    assert bleu_from_statistics(statistics, 1) == pytest.approx(100 * 5 / 7)
    assert bleu_from_statistics(statistics, 2) == pytest.approx(100 * math.sqrt(5 / 7 * 3 / 6))
    assert bleu_from_statistics(statistics, 4) == pytest.approx(100 * (5 / 7 * 3 / 6 / 5 * 1e-15 / 4) ** 0.25)


def test_brevity_penalty_is_of_the_corpus_not_of_a_report():
    reference = "one two three four five six"
    # Each side once short and once long: the corpus lengths agree, so there is no penalty.
    assert corpus_bleu([reference + " seven", "one two three four five"], [reference, reference], n=1) == pytest.approx(
        100 * 11 / 12
    )
    assert corpus_bleu(["one two three"], [reference], n=1) == pytest.approx(100 * math.exp(1 - 2))
    # Never the mean of sentence scores: a wrong long report outweighs a right short one.
    pooled = corpus_bleu(["a", "x " * 9], ["a", "b " * 9], n=1)
    assert pooled == pytest.approx(10)


def test_identity_scores_100_and_empty_text_0():
    text = "Small left pleural effusion. No pneumothorax."
    assert corpus_bleu([text], [text]) == pytest.approx(100, abs=1e-6)
    assert corpus_bleu([""], [text]) == 0
    assert corpus_bleu([" \n"], [text]) == 0
    assert corpus_bleu([], []) == 0
    assert corpus_bleu([text], [""]) == pytest.approx(0, abs=1e-9)
    assert corpus_bleu(["", text], [text, text]) == pytest.approx(100 * math.exp(-1))


def test_case_and_punctuation_only_matter_to_the_raw_variant():
    hypothesis, reference = ["Heart is normal in size ."], ["heart is normal in size."]
    assert corpus_bleu(hypothesis, reference) == pytest.approx(100, abs=1e-6)
    assert corpus_bleu(hypothesis, reference, tokenise=raw_tokens) < 80


def test_unpaired_texts_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        corpus_bleu(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="n=5"):
        bleu_from_statistics(np.zeros(10), 5)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), st.integers(1, 4))
def test_equals_the_plain_loops(pairs, n):
    hypotheses, references = zip(*pairs, strict=True)
    for tokenise in (separated_tokens, raw_tokens):
        expected = plain_bleu(hypotheses, references, tokenise, n)
        assert corpus_bleu(hypotheses, references, n, tokenise) == pytest.approx(expected, rel=1e-12)


def test_many_sums_at_once_equal_one_at_a_time():
    rows = np.stack([bleu_statistics(f"a b c d e {i}", "a b c d f") for i in range(6)])
    weights = np.random.default_rng(0).integers(0, 3, size=(5, 6))
    together = bleu_from_statistics(weights @ rows)
    assert together.shape == (5,)
    for weight, value in zip(weights, together, strict=True):
        assert bleu_from_statistics((weight[:, None] * rows).sum(0)) == pytest.approx(value)


@pytest.mark.parametrize("tokenise", [separated_tokens, raw_tokens])
def test_equals_the_reference_packages(tokenise):
    """pycocoevalcap to the last digit; sacrebleu up to pycocoevalcap's guards, where every order has a match."""
    hypotheses, references = write_reports(80, 0), write_reports(80, 1)
    hypotheses[:3] = ["", "Effusion.", "No pneumothorax. " * 40]
    tokens = {
        "hyps": [" ".join(tokenise(text)) for text in hypotheses],
        "refs": [" ".join(tokenise(text)) for text in references],
    }
    theirs = ask("pycocoevalcap", **tokens)
    for n in range(1, 5):
        assert corpus_bleu(hypotheses, references, n, tokenise) == pytest.approx(100 * theirs[n - 1], rel=1e-12)
    assert 0 < theirs[3] < theirs[0] < 1
    assert corpus_bleu(hypotheses, references, 4, tokenise) == pytest.approx(ask("sacrebleu", **tokens), abs=1e-6)
