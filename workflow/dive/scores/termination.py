"""Does a report end, is it as long as it should be, does it repeat itself or its neighbours?

A word is what stands between blanks, case aside. Every number is a sum or mean over reports of one row's values, so
that a resample of reports is a weighted column sum. (What is first or new in a report depends on the reports before
it: unique reports and distinct n-grams are properties of the whole set, and a resample only reweighs them.)
"""

from collections.abc import Sequence
from itertools import pairwise
from math import isnan, nan

OVER, UNDER = 1.5, 1 / 1.5
"""A report is over-long above OVER times its reference's words, under-long below UNDER times."""

FLAGS = (
    "stopped",
    "n_words",
    "reference_words",
    "over_length",
    "under_length",
    "premature_stop",
    "repeated_4grams",
    "first_occurrence",
    "new_words",
    "new_2grams",
    "n_2grams",
)
"""Columns of :func:`termination_statistics`."""


def repeated_ngrams(words: Sequence[str], n: int = 4) -> float:
    """Share of a text's n-grams that repeat an earlier one: 1 - distinct / all (seq-rep-n, Welleck et al., 2020).

    0 for a text of fewer than n words.
    """
    ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def termination_statistics(
    hypotheses: Sequence[str], references: Sequence[str], stopped: Sequence[bool | None]
) -> list[tuple[float, ...]]:
    """Return one row of FLAGS a report.

    Args:
        hypotheses: generated texts of one seed; the empty text is allowed.
        references: their references, in the same order.
        stopped: whether the model ended the report and not the limit on new tokens; None where nobody knows, as for the
            reports of another system: its flags are NaN. Any token at which ``model.generate`` stops counts, since a
            reader of the report cannot tell them apart; the table of generations says which one it was.

    ``premature_stop`` is a report that the model ended and that is under-long. ``first_occurrence`` is 1 for the first
    report with a given text (case and blanks aside), so that its mean is the rate of unique reports. ``new_words`` and
    ``new_2grams`` count what no report before had.
    """
    rows: list[tuple[float, ...]] = []
    seen: set[str] = set()
    vocabulary: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for hypothesis, reference, ended in zip(hypotheses, references, stopped, strict=True):
        words, expected = hypothesis.lower().split(), len(reference.split())
        over, under = len(words) > OVER * expected, len(words) < UNDER * expected
        text = " ".join(words)
        first = text not in seen
        seen.add(text)
        new = {*words} - vocabulary
        new_pairs = {*pairwise(words)} - pairs
        vocabulary |= new
        pairs |= new_pairs
        ending = (nan, nan) if ended is None else (ended, ended and under)
        row = (ending[0], len(words), expected, over, under, ending[1], repeated_ngrams(words), first)
        rows.append(tuple(map(float, (*row, len(new), len(new_pairs), max(0, len(words) - 1)))))
    return rows


def termination_scores(total: Sequence[float], n: int) -> dict[str, float | None]:
    """Rates in 0..1 of summed rows of FLAGS over ``n`` reports; None where the rows do not know.

    ``length_ratio`` is the ratio of all generated to all reference words, as BLEU's brevity penalty sees it, not
    the mean of ratios. ``distinct_1`` and ``distinct_2`` are distinct words and word pairs over all of them (Li et al.,
    2016): the higher, the more varied; they fall with the amount of text, so they compare systems on one test set.
    """
    sums = {name: None if isnan(value) else float(value) for name, value in zip(FLAGS, total, strict=True)}
    return {
        "stop_rate": None if sums["stopped"] is None else sums["stopped"] / n,
        "length_ratio": sums["n_words"] / sums["reference_words"] if sums["reference_words"] else 0.0,
        "over_length_rate": sums["over_length"] / n,
        "under_length_rate": sums["under_length"] / n,
        "premature_stop_rate": None if sums["premature_stop"] is None else sums["premature_stop"] / n,
        "repeated_4gram_rate": sums["repeated_4grams"] / n,
        "unique_report_rate": sums["first_occurrence"] / n,
        "distinct_1": sums["new_words"] / sums["n_words"] if sums["n_words"] else 0.0,
        "distinct_2": sums["new_2grams"] / sums["n_2grams"] if sums["n_2grams"] else 0.0,
        "words": sums["n_words"] / n,
        "reference_words": sums["reference_words"] / n,
    }
