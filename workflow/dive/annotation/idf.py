"""Decisive words by inverse document frequency: those that few training reports have."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import log as logarithm
from typing import Any

from dive.annotation.vocabulary import Report, Span, polarities, sentences
from dive.data.roots import DataError
from dive.progress import log

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")  # noqa: RUF001


def document_frequencies(texts: Iterable[str]) -> Counter[str]:
    """Number of texts that have a word, in any case."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({word.lower() for word in WORD.findall(text)})
    return counts


def inverse_frequencies(texts: Iterable[str]) -> dict[str, float]:
    """idf(w) = log(N / df(w)) over N texts (Spärck Jones 1972)."""
    texts = list(texts)
    return {word: logarithm(len(texts) / count) for word, count in document_frequencies(texts).items()}


def threshold_of(idf: Mapping[str, float], texts: Iterable[str], share: float) -> float:
    """The largest idf that at least ``share`` of the words of the texts (repetitions counted) reach."""
    values = sorted((idf[word.lower()] for text in texts for word in WORD.findall(text)), reverse=True)
    if not values:
        raise DataError("annotation.annotator idf: the training reports have no words to count")
    return values[max(1, round(share * len(values))) - 1]


def build(settings: Mapping[str, Any], files: Mapping[str, str]) -> Callable[[Iterable[Report]], Iterator[list[Span]]]:
    """The annotator of ``annotation.annotator: idf``: the rarest words, as many as the share asks for.

    Frequencies and threshold are taken from the training split alone; a word that it does not have is rarer than all.
    Ties at the threshold are all marked. Polarity is that of the vocabulary's cues; observation is the word.

    Args:
        settings: ``share`` of the training reports' words that are marked, in (0, 1).
        files: not used.
    """

    def annotate(reports: Iterable[Report]) -> Iterator[list[Span]]:
        reports = list(reports)
        training = [report.text for report in reports if report.split == "train"]
        idf = inverse_frequencies(training)
        threshold = threshold_of(idf, training, settings["share"])
        log.info("idf: words in at most %.2f %% of the training reports are decisive", 100 * 2.718281828**-threshold)
        rare = float("inf")
        for report in reports:
            spans = []
            for start, end in sentences(report.text):
                sentence = report.text[start:end]
                mentions = [
                    (match.start(), match.end(), word)
                    for match in WORD.finditer(sentence)
                    if idf.get(word := match[0].lower(), rare) >= threshold
                ]
                spans += [
                    Span(start + first, start + last, word, polarity, "idf")
                    for (first, last, word), (polarity, _) in zip(mentions, polarities(sentence, mentions), strict=True)
                ]
            yield spans

    return annotate
