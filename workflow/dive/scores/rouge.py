"""ROUGE-L (Lin, 2004), equal to the rouge-score package's ``rougeL`` F measure and many times faster.

The package's own tokeniser and stemmer are used (lower case, ``[a-z0-9]+``, Porter stems of words longer
than three letters), stems are remembered, and the longest common subsequence is computed on bit vectors. A string of
more than LONGEST_WORD letters keeps its form, since the stemmer's time grows with the square of a word's length.
"""

from collections.abc import Callable, Sequence
from functools import cache

LONGEST_WORD = 100
"""Letters of the longest word that is stemmed."""


class _RememberingStemmer:
    """nltk's Porter stemmer as rouge-score makes it; each distinct word is stemmed once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # 0.3 s, so imported by those who score only

        porter = PorterStemmer()
        self.stem: Callable[[str], str] = cache(lambda word: word if len(word) > LONGEST_WORD else porter.stem(word))


@cache
def _stemmer() -> _RememberingStemmer:
    return _RememberingStemmer()


def rouge_tokens(text: str, stem: bool = True) -> list[str]:
    """Tokenise as rouge-score does, with or without Porter stems."""
    from rouge_score.tokenize import tokenize

    return tokenize(text, _stemmer() if stem else None)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence (bit-parallel: Hyyro, 2004).

    Bit i of the state is 0 where the table's row grows at ``first[i]``; each token of ``second`` updates all
    columns in a handful of integer operations.
    """
    places: dict[str, int] = {}
    for index, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << index
    everything = (1 << len(first)) - 1
    state = everything
    for token in second:
        matched = state & places.get(token, 0)
        state = ((state + matched) | (state - matched)) & everything
    return len(first) - state.bit_count()


def rouge_l(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L F of two token sequences in 0..100; 0 where either is empty.

    P = lcs / |hypothesis|, R = lcs / |reference|, F = 2 P R / (P + R).
    """
    if not hypothesis or not reference:
        return 0.0
    common = common_subsequence(hypothesis, reference)
    return 200 * common / (len(hypothesis) + len(reference))
