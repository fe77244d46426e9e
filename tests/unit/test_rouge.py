"""ROUGE-L against the rouge-score package and hand-computed cases."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from dive.data.generations import LONGEST
from dive.scores.rouge import common_subsequence, rouge_l, rouge_tokens

WORDS = ["Opacities", "opacity", "are", "seen", "IN", "the", "lungs", "lung", ".", "1.5", "cm", "no", "é"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)


def score(hypothesis, reference, stem=True):
    return rouge_l(rouge_tokens(hypothesis, stem), rouge_tokens(reference, stem))


def test_hand_computed():
    # common: police, the, gunman = 3 of 4 and 3 of 4 (Lin, 2004, adapted)
    assert common_subsequence(["police", "kill", "the", "gunman"], ["police", "killed", "the", "gunman"]) == 3
    assert score("police kill the gunman", "police killed the gunman", stem=False) == pytest.approx(75)
    assert score("police kill the gunman", "police killed the gunman", stem=True) == pytest.approx(100)
    # "the gunman kill police": police, or gunman, or "the gunman" in order = 2 of 4
    assert score("the gunman kill police", "police killed the gunman", stem=False) == pytest.approx(50)


def test_empty_texts_score_zero():
    assert score("", "clear lungs") == score("clear lungs", "") == score("", "") == score("...", "lungs") == 0


@pytest.mark.parametrize("stem", [True, False])
@settings(max_examples=100, deadline=None)
@given(hypothesis=TEXTS, reference=TEXTS)
def test_equals_rouge_score(stem, hypothesis, reference):
    expected = RougeScorer(["rougeL"], use_stemmer=stem).score(reference, hypothesis)["rougeL"].fmeasure
    assert score(hypothesis, reference, stem) == pytest.approx(100 * expected, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_identity_scores_100(text):
    assert score(text, text) == pytest.approx(100 if rouge_tokens(text) else 0)


@pytest.mark.parametrize(
    "text", ["y" * (LONGEST - 7) + "ational", "a b c " * (LONGEST // 6), "no effusion and " * 6_000]
)
def test_the_longest_texts_take_seconds(text):
    """One word of y took minutes: the stemmer looks back over all of them from each."""
    began = time.process_time()
    assert score(text, text) == pytest.approx(100)
    assert time.process_time() - began < 3
