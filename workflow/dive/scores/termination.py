"""Does a report end, is it as long as it should be, does it repeat itself or its neighbours?

A word is what stands between blanks. Every number is a sum or mean over reports of one row's values, so that
a resample of reports is a weighted column sum.
"""

from collections.abc import Sequence

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
)
"""Columns of :func:`termination_statistics`."""


def repeated_ngrams(words: Sequence[str], n: int = 4) -> float:
    """Share of a text's n-grams that repeat an earlier one: 1 - distinct / all (seq-rep-n, Welleck et al., 2020).

    0 for a text of fewer than n words.
    """
    ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def termination_statistics(
    hypotheses: Sequence[str], references: Sequence[str], stopped: Sequence[bool]
) -> list[tuple[float, ...]]:
    """Return one row of FLAGS a report.

    Args:
        hypotheses: generated texts of one seed; the empty text is allowed.
        references: their references, in the same order.
        stopped: whether the report ended by TERM and not by the limit on new tokens.

    ``premature_stop`` is a report that ended by TERM and is under-long. ``first_occurrence`` is 1 for the first
    report with a given text (case and blanks aside), so that its mean is the rate of unique reports.
    """
    rows, seen = [], set()
    for hypothesis, reference, ended in zip(hypotheses, references, stopped, strict=True):
        words, expected = hypothesis.lower().split(), len(reference.split())
        over, under = len(words) > OVER * expected, len(words) < UNDER * expected
        text = " ".join(words)
        first = text not in seen
        seen.add(text)
        rows.append((ended, len(words), expected, over, under, ended and under, repeated_ngrams(words), first))
    return [tuple(float(value) for value in row) for row in rows]


def termination_scores(total: Sequence[float], n: int) -> dict[str, float]:
    """Rates in 0..1 of summed rows of FLAGS over ``n`` reports.

    ``length_ratio`` is the ratio of all generated to all reference words, as BLEU's brevity penalty sees it, not
    the mean of ratios.
    """
    sums = dict(zip(FLAGS, total, strict=True))
    return {
        "stop_rate": sums["stopped"] / n,
        "length_ratio": sums["n_words"] / sums["reference_words"] if sums["reference_words"] else 0.0,
        "over_length_rate": sums["over_length"] / n,
        "under_length_rate": sums["under_length"] / n,
        "premature_stop_rate": sums["premature_stop"] / n,
        "repeated_4gram_rate": sums["repeated_4grams"] / n,
        "unique_report_rate": sums["first_occurrence"] / n,
    }
