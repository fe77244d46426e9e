"""Corpus BLEU (Papineni et al., 2002) with pycocoevalcap's constants, from statistics that add up.

The library hardly moves BLEU-4, the tokenisation moves it by a factor of 1.7, so every result names it:
the headline score reads lower-cased text with separated punctuation, ``bleu4_raw`` cased text split at
white space.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

ORDER = 4
"""Longest n-gram that is counted."""

STATISTICS = (
    *(f"match_{n}" for n in range(1, ORDER + 1)),
    *(f"guess_{n}" for n in range(1, ORDER + 1)),
    "length_hyp",
    "length_ref",
)
"""The ten numbers of one report, in the order of :func:`bleu_statistics`."""

TINY, SMALL = 1e-15, 1e-9
"""pycocoevalcap's guards in p_n = (match + TINY) / (guess + SMALL) and in the ratio of lengths."""

_PUNCTUATION = re.compile(r"([^\w\s])")

Tokenise = Callable[[str], list[str]]


def separated_tokens(text: str) -> list[str]:
    """Headline tokenisation: lower case, every punctuation mark a token of its own, split at white space.

    ``___`` (a de-identified span) is one token: the underscore counts as a letter.
    """
    return _PUNCTUATION.sub(r" \1 ", text.lower()).split()


def raw_tokens(text: str) -> list[str]:
    """Tokenisation of ``bleu4_raw``: case and punctuation as written, split at white space."""
    return text.split()


def count_ngrams(tokens: list[str]) -> Counter:
    """Count the n-grams of 1 to ORDER tokens; n-grams are tuples, so orders cannot collide."""
    counts: Counter = Counter()
    for n in range(1, ORDER + 1):
        counts.update(zip(*(tokens[start:] for start in range(n)), strict=False))
    return counts


def bleu_statistics(hypothesis: str, reference: str, tokenise: Tokenise = separated_tokens) -> np.ndarray:
    """Return the ten additive numbers of one report, int64 (10,), in the order of ``STATISTICS``.

    match_n are the clipped n-gram matches, guess_n the hypothesis' n-grams. The sum of rows over any
    (re)sample of reports gives that sample's corpus BLEU by :func:`bleu_from_statistics`.
    """
    hypothesis_tokens, reference_tokens = tokenise(hypothesis), tokenise(reference)
    statistics = np.zeros(2 * ORDER + 2, dtype=np.int64)
    allowed = count_ngrams(reference_tokens)
    for ngram, count in count_ngrams(hypothesis_tokens).items():
        statistics[len(ngram) - 1] += min(count, allowed[ngram])
    for n in range(1, ORDER + 1):
        statistics[ORDER + n - 1] = max(0, len(hypothesis_tokens) - n + 1)
    statistics[-2:] = len(hypothesis_tokens), len(reference_tokens)
    return statistics


def bleu_from_statistics(total: np.ndarray, n: int = ORDER) -> np.ndarray:
    """Corpus BLEU-n in 0..100 of summed statistics.

        p_k  = (match_k + 1e-15) / (guess_k + 1e-9)
        r    = (length_hyp + 1e-15) / (length_ref + 1e-9)
        BLEU = 100 * (prod_{k<=n} p_k)^(1/n) * min(1, exp(1 - 1/r))

    Args:
        total: summed statistics (..., 10); leading axes are kept: all sums of a bootstrap are one call.
        n: highest n-gram order, 1 to 4.

    Raises:
        ValueError: if ``n`` or the last axis is out of range.
    """
    total = np.asarray(total, dtype=np.float64)
    if not 1 <= n <= ORDER or total.shape[-1] != 2 * ORDER + 2:
        raise ValueError(f"BLEU needs n in 1..{ORDER} and {2 * ORDER + 2} statistics, not n={n}, shape {total.shape}")
    precisions = (total[..., :n] + TINY) / (total[..., ORDER : ORDER + n] + SMALL)
    ratio = (total[..., -2] + TINY) / (total[..., -1] + SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return 100 * np.prod(precisions, axis=-1) ** (1 / n) * brevity


def corpus_bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    n: int = ORDER,
    tokenise: Tokenise = separated_tokens,
) -> float:
    """Corpus BLEU-n in 0..100 of paired texts, with one brevity penalty and one precision per order.

    Never the mean of sentence scores. Empty hypotheses count with length 0; no text at all scores 0.

    Raises:
        ValueError: if the two sequences differ in length.
    """
    total = np.zeros(2 * ORDER + 2, dtype=np.int64)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        total += bleu_statistics(hypothesis, reference, tokenise)
    return float(bleu_from_statistics(total, n))
