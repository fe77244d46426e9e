"""Rule-based proxies of CheXbert F1 and RadGraph F1, for use without the weights of these models.

They read a report with the vocabulary of decisive tokens: labels as the CheXpert labeler assigns them (Irvin et
al., 2019), and a graph in RadGraph's dict form (Jain et al., 2021) scored by the rewards of the radgraph package.
They never have the models' names, because they miss every finding that the vocabulary lacks, in references and
hypotheses.
"""

import re
from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np

from dive.annotation.vocabulary import (
    CLASSES,
    Cues,
    Span,
    VocabularyAnnotator,
    read_vocabulary,
    sentences,
)
from dive.data.studies import LABELS
from dive.scores.labels import BLANK, NEGATIVE, POSITIVE, UNCERTAIN

STRENGTH = {"negative": 1, "uncertain": 2, "positive": 3}
"""Several mentions of one observation: positive before uncertain before negative."""

STATES = {"positive": POSITIVE, "negative": NEGATIVE, "uncertain": UNCERTAIN}

# Mentions that name the heart or mediastinum without judging it: what the sentence says of them decides.
_NEUTRAL = re.compile(
    r"(size|silhouettes?|contours?|shadow|configuration|mediastinum|cardiomediastinum|heart)$", re.IGNORECASE
)
_HEART = re.compile(r"\bheart\b", re.IGNORECASE)
_ENLARGED = re.compile(r"\b(enlarge\w*|widen\w*|dilat\w*|prominen\w*|increased|cardiomegaly)\b", re.IGNORECASE)
_NORMAL = re.compile(r"\b(normal|unremarkable|not enlarged|within (normal )?limits)\b", re.IGNORECASE)

_WORD = re.compile(r"\w+|[^\w\s]")

Graph = dict[str, Any]


class Lexicon:
    """Labels and graphs of reports by one vocabulary; texts that were seen are remembered.

    Args:
        vocabulary: the vocabulary table (observation, surface, class, source).
    """

    def __init__(self, vocabulary: str) -> None:
        self._observations = VocabularyAnnotator(vocabulary, ["observation"])
        self._everything = VocabularyAnnotator(vocabulary, CLASSES)
        self._class_of = {
            observation: name for name in CLASSES for observation in read_vocabulary(vocabulary, [name]).values()
        }
        self._labels: dict[str, np.ndarray] = {}
        self._graphs: dict[str, Graph] = {}

    def labels(self, text: str) -> np.ndarray:
        """States of the fourteen observations in the order of LABELS, int64 (14,).

        "No Finding" is positive where no observation but Support Devices is positive or uncertain, as in the CheXpert
        labeler; a text without words has no label at all, not even that one.
        """
        if text not in self._labels:
            self._labels[text] = self._read_labels(text)
        return self._labels[text]

    def _read_labels(self, text: str) -> np.ndarray:
        strongest: dict[str, str] = {}
        for start, end in sentences(text):
            for observation, polarity in self._judge(text[start:end]):
                if STRENGTH[polarity] > STRENGTH.get(strongest.get(observation, ""), 0):
                    strongest[observation] = polarity
        states = np.full(len(LABELS), BLANK)
        if not text.strip():
            return states
        for index, label in enumerate(LABELS):
            if label in strongest:
                states[index] = STATES[strongest[label]]
        findings = [polarity for label, polarity in strongest.items() if label not in ("No Finding", "Support Devices")]
        states[LABELS.index("No Finding")] = BLANK if {"positive", "uncertain"} & set(findings) else POSITIVE
        return states

    def _judge(self, sentence: str) -> list[tuple[str, str]]:
        """Observations of one sentence with their polarity."""
        judged, neutral = [], []
        for span in self._observations(sentence):
            if not _NEUTRAL.search(sentence[span.start : span.end]):
                judged.append((span.observation, span.polarity))
            elif span.polarity != "positive":  # a cue such as "normal" reaches it
                neutral.append((span.observation, span.polarity))
            else:
                neutral.append((span.observation, None))
        if not neutral and _HEART.search(sentence):
            neutral.append(("Cardiomegaly", "negative" if _NORMAL.search(sentence) else None))
        enlarged = _ENLARGED.search(sentence) if neutral else None
        if enlarged:
            polarity, _ = Cues(sentence).polarity_of(*enlarged.span())
            return judged + [(observation, polarity) for observation, _ in neutral]
        return judged + [(observation, polarity) for observation, polarity in neutral if polarity]

    def graph(self, text: str) -> Graph:
        """Entities and relations of a text in RadGraph's form.

            {"text": ..., "entities": {"1": {"tokens", "label", "start_ix", "end_ix", "relations": [[type, id]]}}}

        Labels: ``Observation::`` definitely present, definitely absent or uncertain, ``Anatomy::definitely present``.
        ``start_ix`` and ``end_ix`` count words and punctuation marks, both included; tokens are lower-cased. Within a
        sentence, a modifier modifies the next finding or anatomy (else the last one) and a finding is located at the
        nearest anatomy; where none is named, at a side that ends the sentence.
        """
        if text not in self._graphs:
            self._graphs[text] = self._read_graph(text)
        return self._graphs[text]

    def _read_graph(self, text: str) -> Graph:
        words = [match.span() for match in _WORD.finditer(text)]
        begins, ends = [low for low, _ in words], [high for _, high in words]
        entities: dict[str, dict[str, Any]] = {}
        for start, end in sentences(text):
            spans = self._everything(text[start:end])
            names = [str(len(entities) + position) for position in range(1, len(spans) + 1)]
            for name, span in zip(names, spans, strict=True):
                first, last = start + span.start, start + span.end
                entities[name] = {
                    "tokens": " ".join(re.split(r"[\s-]+", text[first:last].lower())),
                    "label": self._label_of(span),
                    "start_ix": bisect_right(ends, first),
                    "end_ix": bisect_left(begins, last) - 1,
                    "relations": [],
                }
            for name, relation in zip(names, self._relate(spans), strict=True):
                if relation:
                    kind, target = relation
                    entities[name]["relations"].append([kind, names[target]])
        return {"text": text, "entities": entities}

    def _label_of(self, span: Span) -> str:
        if self._class_of[span.observation] == "anatomy" or span.observation == "Side":
            return "Anatomy::definitely present"
        state = {"positive": "definitely present", "negative": "definitely absent", "uncertain": "uncertain"}
        return f"Observation::{state[span.polarity]}"

    def _relate(self, spans: list[Span]) -> list[tuple[str, int] | None]:
        """For every span of a sentence its relation and the position of the other span, or None."""
        kinds = [self._class_of[span.observation] for span in spans]
        heads = [place for place, kind in enumerate(kinds) if kind != "modifier"]
        sites = [place for place, kind in enumerate(kinds) if kind == "anatomy"]
        # Without an anatomy a side at the sentence's end is the place: "effusion on the left".
        after = heads[-1] + 1 if heads else 0
        trailing = next((place for place in range(after, len(spans)) if spans[place].observation == "Side"), None)
        relations: list[tuple[str, int] | None] = []
        for place, (span, kind) in enumerate(zip(spans, kinds, strict=True)):
            following = bisect_right(heads, place)
            if kind == "modifier" and heads and not (span.observation == "Side" and following == len(heads)):
                relations.append(("modify", heads[min(following, len(heads) - 1)]))
            elif kind in ("observation", "pathology") and (sites or trailing is not None):
                relations.append(("located_at", _nearest(sites, place) if sites else trailing))
            else:
                relations.append(None)
        return relations


def _nearest(sites: list[int], place: int) -> int:
    """The site with the smallest distance, of two alike the earlier one."""
    right = bisect_left(sites, place)
    return min(sites[max(0, right - 1) : right + 1], key=lambda site: (abs(site - place), site))
