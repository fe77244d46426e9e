"""Decisive spans of a report by a vocabulary of surface forms, with the polarity of every mention.

The vocabulary is a table that a radiologist can edit (``dive/resources/vocabulary.csv``): observation, surface,
class, source. In a surface form ``(s)`` is an optional ending, ``(y|ies)`` a choice, and a blank stands for any
blanks and hyphens. Case does not matter. Classes: ``observation`` (CheXpert's fourteen), ``pathology`` (further
ones), ``anatomy``, ``modifier``. Sources: the phrase lists of the CheXpert labeler (Irvin et al. 2019) with their
inflections, the Fleischner glossary (Hansell et al. 2008), own.
"""

import csv
import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dive.data.roots import DataError

COLUMNS = ("observation", "surface", "class", "source")
CLASSES = ("observation", "pathology", "anatomy", "modifier")
POLARITIES = ("positive", "negative", "uncertain")

# An end of a sentence: punctuation before white space (so not the point in "1.5 cm"), or an empty line. Runs are taken
# whole (here and in all patterns below), so that a long one is read once and not from each of its characters.
SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++(?=\s|$)|\n[^\S\n]*+\n")

# Cues as in NegEx and NegBio (Chapman et al. 2001, Peng et al. 2018), cut down to what stands in chest reports.
# "Before" cues reach forward to the mention, "after" cues backward, neither across a word of CONTRAST.
PSEUDO = (
    r"no (?:(?:significant|interval|definite|appreciable|relevant|substantial) )*(?:change|increase)"
    r"|not only|no further"
)
UNCERTAIN_BEFORE = (
    r"can\s*not (?:be )?(?:exclude|rule out)|not (?:be )?(?:exclude|rule out)|difficult to exclude|possibl[ey]"
    r"|probabl[ey]|likely|may(?: be| represent| reflect)?|might|could|suspected|suspicious for|suspicion (?:of|for)"
    r"|concerning for|concern for|question(?:able)?(?: of)?|potential|equivocal|versus|if"
    r"|suggest(?:s|ing|ive of|ion of)?"
)
UNCERTAIN_AFTER = (
    r"(?:can\s*not|could not|not) be (?:entirely |completely )?(?:excluded|ruled out)|not (?:entirely )?excluded"
    r"|unlikely|versus|(?:is|are|was|were) (?:possible|probable|likely|suspected|questioned|difficult to exclude)"
)
NEGATIVE_BEFORE = (
    r"no(?: evidence of| sign of| signs of| definite)?|not|without|neither|nor|negative for|free of|clear of|normal"
    r"|unremarkable|absence of|absent|rather than|removal of|resolution of|never|exclude[sd]?|ruled out|rule out"
)
NEGATIVE_AFTER = (
    r"(?:(?:is|are|was|were|has been|have been) )?(?:not|no longer)(?: clearly| definitely)? (?:seen|identified|present"
    r"|visuali[sz]ed|evident|apparent|demonstrated|appreciated|detected)|(?:is|are|was|were) absent"
    r"|(?:is|are|was|were|has been|have been) (?:removed|ruled out|excluded|resolved|cleared)"
    r"|(?:has|have) (?:now |since |completely )*(?:resolved|cleared)"
    r"|(?:is|are|remains?|appears?|within) (?:stable and )?(?:within )?(?:normal|unremarkable)(?: limits)?"
)
CONTRAST = re.compile(
    r"\b(?:but|however|nevertheless|although|though|yet|except|apart from|aside from|other than|otherwise|secondary to"
    r"|there (?:is|are))\b|[;:]",
    re.IGNORECASE,
)
# Letters that case-insensitive matching takes for s, i and k, though they are no upper case of them.
FOLD = str.maketrans("\u017f\u0130\u0131\u212a", "siik")
COORDINATION = re.compile(r"(?:[\s,/]|\b(?:and|or|nor|the|an?|any)\b)*", re.IGNORECASE)


def _cue(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)".replace(" ", r"\s++"), re.IGNORECASE)


_PSEUDO = _cue(PSEUDO)
# (polarity, whether the cue reaches forward, pattern), the stronger polarity first
_CUES = (
    ("uncertain", True, _cue(UNCERTAIN_BEFORE)),
    ("uncertain", False, _cue(UNCERTAIN_AFTER)),
    ("negative", True, _cue(NEGATIVE_BEFORE)),
    ("negative", False, _cue(NEGATIVE_AFTER)),
)


class Span(NamedTuple):
    """A decisive stretch of a report: characters ``start`` to ``end`` (exclusive)."""

    start: int
    end: int
    observation: str
    polarity: str
    source: str


class Report(NamedTuple):
    """A report to annotate: its study, the split that this is in, the text as written."""

    study_uid: str
    split: str
    text: str


def read_vocabulary(path: str | Path, classes: Sequence[str]) -> dict[str, str]:
    """Read the vocabulary's forms of the given classes, expanded and lower-cased: form -> observation.

    Raises:
        DataError: a column or class is unknown, a form is malformed, or one form stands for two observations; names
        the line.
    """
    unknown = [name for name in classes if name not in CLASSES]
    if unknown:
        raise DataError(f"annotation.classes has {', '.join(unknown)}; choose from {', '.join(CLASSES)}")
    forms: dict[str, str] = {}
    for line, (observation, surface, kind, _) in _vocabulary_rows(path):
        if kind not in CLASSES:
            raise DataError(f"{path}, line {line}: class {kind!r} is none of {', '.join(CLASSES)}")
        if kind not in classes:
            continue
        try:
            expanded = expand(surface)
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
        for form in expanded:
            if forms.setdefault(form, observation) != observation:
                raise DataError(f"{path}, line {line}: {form!r} stands for {forms[form]} already")
    if not forms:
        raise DataError(f"{path} has no form of the classes {', '.join(classes) or '(none)'} (annotation.classes)")
    return forms


def _vocabulary_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Lines and cells of the table below its header."""
    if not Path(path).is_file():
        raise DataError(f"{path}: is no vocabulary that can be read; name a CSV file")
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            rows = csv.reader(handle, strict=True)
            if tuple(next(rows, ())) != COLUMNS:
                raise DataError(f"{path} must have the columns {', '.join(COLUMNS)}")
            for cells in filter(None, rows):
                if len(cells) != len(COLUMNS):
                    raise DataError(
                        f"{path}, line {rows.line_num}: has {len(cells)} cells, not {len(COLUMNS)}; put a cell with a "
                        "comma in quotes"
                    )
                yield rows.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no vocabulary that can be read ({error}); it is a CSV file in UTF-8") from None


def expand(surface: str) -> list[str]:
    """All forms of a surface form: ``opaci(ty|ties)`` -> opacity, opacities; ``effusion(s)`` -> effusion,
    effusions."""
    pieces = re.split(r"\(([^()]*)\)", surface.lower())
    if any("(" in piece or ")" in piece or "|" in piece for piece in pieces[::2]) or not surface.strip():
        raise ValueError(f"surface form {surface!r} is malformed: (s) is an optional ending, (y|ies) a choice")
    choices = [
        [piece] if index % 2 == 0 else (piece.split("|") if "|" in piece else ["", piece])
        for index, piece in enumerate(pieces)
    ]
    return [" ".join(re.split(r"[\s-]+", "".join(parts).strip())) for parts in itertools.product(*choices)]


def trie_pattern(forms: Iterable[str]) -> str:
    """A regular expression for any of the forms, the longest that fits first; shared beginnings are written once.

    As a plain alternation of a thousand forms every word would be tried against each of them.
    """
    tree: dict[str, Any] = {}
    for form in forms:
        node = tree
        for character in form:
            node = node.setdefault(character, {})
        node[""] = {}

    def write(node: Mapping[str, Any]) -> str:
        branches = [
            (r"[\s-]++" if character == " " else re.escape(character)) + write(below)
            for character, below in sorted(node.items())
            if character
        ]
        if not branches:
            return ""
        joined = branches[0] if len(branches) == 1 and "" not in node else f"(?:{'|'.join(branches)})"
        return f"{joined}?" if "" in node else joined

    return write(tree)


class VocabularyAnnotator:
    """Finds the vocabulary's mentions: ``annotator(text)`` -> spans in order, none overlapping.

    Matching is on characters of the text as written; a mention never crosses the end of a sentence. Where mentions
    overlap they become one span with the observation of the longest. Negated mentions stay: polarity is an attribute.

    Args:
        vocabulary: path of the table.
        classes: which of CLASSES count.
        include_cues: also mark the cue that makes a mention negative or uncertain ("no", "without"), as a span of its
            own with the mention's observation and the source ``cue``.
    """

    def __init__(self, vocabulary: str | Path, classes: Sequence[str], include_cues: bool = False) -> None:
        self._observation = read_vocabulary(vocabulary, classes)
        self._include_cues = include_cues
        # Looked for at the beginning of every word, so that mentions may overlap.
        self._mention = re.compile(rf"(?<!\w)(?=({trie_pattern(self._observation)})(?!\w))", re.IGNORECASE)
        self._known: dict[str, list[Span]] = {}

    def __call__(self, text: str) -> list[Span]:
        """Spans of a text."""
        spans = []
        for start, end in sentences(text):
            sentence = text[start:end]
            found = self._known.get(sentence)
            if found is None:
                if len(self._known) >= 100_000:  # reports repeat their sentences, but not without end
                    self._known.clear()
                found = self._known[sentence] = self._annotate(sentence)
            spans += [span._replace(start=span.start + start, end=span.end + start) for span in found]
        return spans

    def _annotate(self, sentence: str) -> list[Span]:
        merged: list[tuple[int, int, str]] = []
        for match in self._mention.finditer(sentence):
            start, end = match.span(1)
            form = " ".join(re.split(r"[\s-]+", match[1].translate(FOLD).lower()))
            if merged and start < merged[-1][1]:
                first, last, observation = merged[-1]
                longer = end - start > last - first
                merged[-1] = (first, max(last, end), self._observation[form] if longer else observation)
            else:
                merged.append((start, end, self._observation[form]))
        spans, marks = [], {}
        for (start, end, observation), (polarity, cue) in zip(merged, polarities(sentence, merged), strict=True):
            spans.append(Span(start, end, observation, polarity, "vocabulary"))
            if self._include_cues and cue and not _overlaps(cue, merged):
                marks.setdefault(cue, Span(*cue, observation, polarity, "cue"))
        return disjoint([*spans, *marks.values()])


def _overlaps(cue: tuple[int, int], mentions: Sequence[tuple[int, int, str]]) -> bool:
    """Whether a cue and one of the mentions, which are in order and do not overlap, have a character in common."""
    next_one = bisect_right(mentions, cue[0], key=lambda mention: mention[1])
    return next_one < len(mentions) and mentions[next_one][0] < cue[1]


def disjoint(spans: Iterable[Span]) -> list[Span]:
    """Spans in order of their start; of two that overlap the one that begins first is kept."""
    kept: list[Span] = []
    for span in sorted(spans):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of every sentence, the final punctuation left out."""
    spans, start = [], 0
    for end in SENTENCE_END.finditer(text):
        spans.append((start, end.start()))
        start = end.end()
    return [*spans, (start, len(text))]


def reaches(sentence: str, mentions: Sequence[tuple[int, int, str]]) -> list[int]:
    """How far behind each mention a cue may stand: up to the next mention that is not merely joined to it by "and"."""
    limits, limit = [], len(sentence)
    following: int | None = None
    for start, end, _ in reversed(mentions):
        if following is not None and not COORDINATION.fullmatch(sentence, end, following):
            limit = following
        limits.append(limit)
        following = start
    return limits[::-1]


class Cues:
    """The cues of a sentence and the words that stop them, found once and looked up for every mention.

    Args:
        sentence: text without the end of a sentence inside.
    """

    def __init__(self, sentence: str) -> None:
        self._length = len(sentence)
        self._contrasts = [match.span() for match in CONTRAST.finditer(sentence)]
        ignored = [match.span() for match in _PSEUDO.finditer(sentence)]
        self._cues = [
            (polarity, forward, [match.span() for match in pattern.finditer(sentence) if not _inside(match, ignored)])
            for polarity, forward, pattern in _CUES
        ]

    def polarity_of(self, start: int, end: int, limit: int | None = None) -> tuple[str, tuple[int, int] | None]:
        """Polarity of the mention at ``start`` to ``end``, and the place of the cue that makes it so.

        A mention is uncertain when a cue of uncertainty reaches it, else negative when a negation does, else positive.
        Cues behind the mention count up to ``limit`` (the end of the sentence by default); no cue reaches across a word
        of CONTRAST.
        """
        before = bisect_right(self._contrasts, start, key=lambda place: place[1])
        begin = self._contrasts[before - 1][1] if before else 0
        limit = self._length if limit is None else limit
        behind = bisect_left(self._contrasts, end, key=lambda place: place[0])
        if behind < len(self._contrasts) and self._contrasts[behind][1] <= limit:
            limit = self._contrasts[behind][0]
        for polarity, forward, places in self._cues:
            # Places are in order, so that the first within reach is the only one to look at.
            low, high = (begin, start) if forward else (end, limit)
            first = bisect_left(places, low, key=lambda place: place[0])
            if first < len(places) and places[first][1] <= high:
                return polarity, places[first]
        return "positive", None


def _inside(match: re.Match[str], places: Sequence[tuple[int, int]]) -> bool:
    """Whether a match begins inside one of the places, which are in order and do not overlap."""
    before = bisect_right(places, match.start(), key=lambda place: place[0])
    return before > 0 and match.start() < places[before - 1][1]


def polarities(sentence: str, mentions: Sequence[tuple[int, int, str]]) -> list[tuple[str, tuple[int, int] | None]]:
    """Polarity of every mention (start, end, observation) of a sentence, in order, and the place of its cue."""
    if not mentions:
        return []
    cues = Cues(sentence)
    limits = reaches(sentence, mentions)
    return [cues.polarity_of(start, end, limit) for (start, end, _), limit in zip(mentions, limits, strict=True)]


def build(settings: Mapping[str, Any], files: Mapping[str, str]) -> Callable[[Iterable[Report]], Iterator[list[Span]]]:
    """The annotator of ``annotation.annotator: vocabulary`` (see dive/annotation/annotate.py)."""
    annotator = VocabularyAnnotator(files["vocabulary"], settings["classes"], settings["include_cues"])
    return lambda reports: (annotator(report.text) for report in reports)
