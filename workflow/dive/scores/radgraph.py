"""RadGraph F1 (Jain et al., 2021; Delbrouck et al., 2022) through the radgraph package, each distinct text read once.

Texts are read by the package's own model (`dive.radgraph`), and the rewards are those of its ``F1RadGraph``: `simple`,
`partial` (the "RadGraph F1" of the literature) and `complete`. Its mean over reports is therefore the same number from
fewer readings, since a system repeats texts and all systems share the references. A report is read whole: its sentences
alone would give other graphs.

The cost is quadratic in the length, so hypotheses are cut after ``max_words`` words and counted. A text without words
scores 0; the package crashes on white space.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dive.radgraph import GraphReader
from dive.scores.graphs import LEVELS, graph_rewards

COLUMNS = (*(f"radgraph_{level}" for level in LEVELS), "radgraph_capped")
"""Additive columns of a report: the three rewards in 0..100, and whether the hypothesis was cut."""


class RadGraph:
    """The scorer: graphs of texts, and the rewards between them.

    Args:
        path, archive, device, folder: of :class:`dive.radgraph.GraphReader`, which also says what is wrong with them.
        max_words: words of a hypothesis that are read; None reads all.
        lower: lower-case hypotheses and references before they are read (never one side alone).
    """

    name = "radgraph"
    columns = COLUMNS

    def __init__(
        self,
        path: str,
        archive: str = "radgraph-xl",
        max_words: int | None = 350,
        lower: bool = False,
        device: str = "auto",
        folder: str | None = None,
    ) -> None:
        self.reader = GraphReader(path, archive, device, folder)
        self.max_words, self.lower = max_words, lower
        self.identity = self.reader.identity
        self.conventions = {
            "radgraph_f1": f"mean `partial` reward of {self.identity['package']}, archive {archive} (sha256 "
            f"{self.identity['sha256']['weights.th'][:12]}), "
            + (f"hypotheses cut after {max_words} words, " if max_words else "")
            + f"{'lower-cased' if lower else 'case as written'}; 0..100",
            "radgraph_capped": "number of hypotheses that were cut",
        }
        self._graphs: dict[str, dict[str, Any]] = {}

    def graphs(self, texts: Sequence[str | None]) -> list[dict[str, Any]]:
        """``{"entities": {id: {tokens, label, start_ix, end_ix, relations}}}`` of every text, whole and as given."""
        given = [(text or "").lower() if self.lower else text or "" for text in texts]
        self._graphs.update(self.reader.graphs(text for text in given if text not in self._graphs))
        return [self._graphs[text] for text in given]

    def statistics(self, hypotheses: Sequence[str | None], references: Sequence[str | None]) -> np.ndarray:
        """The additive numbers of every report, float64 (n, len(COLUMNS))."""
        cut = [cap_words(text or "", self.max_words) for text in hypotheses]
        pairs = zip(self.graphs([text for text, _ in cut]), self.graphs(references), cut, strict=True)
        rows = [(*graph_rewards(said, true), float(capped)) for said, true, (_, capped) in pairs]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(COLUMNS))

    @staticmethod
    def scores(total: np.ndarray, n: int) -> dict[str, float | None]:
        """Every RadGraph score from the sum of the statistics of ``n`` reports."""
        return scores(total, n)


def scores(total: np.ndarray, n: int) -> dict[str, float | None]:
    """RadGraph's scores in 0..100 from summed COLUMNS of ``n`` reports; ``radgraph_capped`` is a number of reports."""
    found: dict[str, float | None] = {
        f"radgraph_{level}": float(value) / n for level, value in zip(LEVELS, total, strict=False)
    }
    return {"radgraph_f1": found["radgraph_partial"], **found, "radgraph_capped": float(total[len(LEVELS)])}


def cap_words(text: str, words: int | None) -> tuple[str, bool]:
    """The text up to the end of its ``words``-th word, white space kept, and whether anything was cut."""
    if words is None or len(text.split()) <= words:
        return text, False
    *_, last = itertools.islice(re.finditer(r"\S+", text), words)
    return text[: last.end()], True
