"""Stopping, length and repetition on cases counted by hand."""

import pytest

from dive.scores.termination import FLAGS, repeated_ngrams, termination_scores, termination_statistics


def test_repeated_4grams():
    assert repeated_ngrams(["a", "b", "c", "d"]) == 0
    assert repeated_ngrams(["a", "b", "c"]) == 0
    # a b c d | b c d a | c d a b | d a b c | a b c d: the fifth repeats the first
    assert repeated_ngrams(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert repeated_ngrams(["no"] * 13) == pytest.approx(1 - 1 / 10)


def test_rates_counted_by_hand():
    reference = "one two three four five six"
    hypotheses = [
        reference,  # as long as it should be
        "One two  THREE four five six",  # the same text again, case and blanks aside
        "one",  # under-long, and it ended by itself
        "a b c d a b c d a b",  # over-long: 10 > 9, 3 of 7 4-grams repeat, ran into the limit
        "",  # empty, under-long, premature
    ]
    rows = termination_statistics(hypotheses, [reference] * 5, [True, True, True, False, True])
    assert [len(row) for row in rows] == [len(FLAGS)] * 5
    scores = termination_scores([sum(column) for column in zip(*rows, strict=True)], len(rows))
    assert scores == pytest.approx(
        {
            "stop_rate": 4 / 5,
            "length_ratio": (6 + 6 + 1 + 10 + 0) / 30,
            "over_length_rate": 1 / 5,
            "under_length_rate": 2 / 5,
            "premature_stop_rate": 2 / 5,
            "repeated_4gram_rate": (3 / 7) / 5,
            "unique_report_rate": 4 / 5,
            "distinct_1": (6 + 4) / 23,
            "distinct_2": (5 + 4) / (5 + 5 + 9),
            "words": 23 / 5,
            "reference_words": 6,
        }
    )


def test_a_report_cut_by_the_limit_is_never_a_premature_stop():
    (row,) = termination_statistics(["one"], ["one two three"], [False])
    values = dict(zip(FLAGS, row, strict=True))
    assert values["under_length"] == 1
    assert values["premature_stop"] == 0
