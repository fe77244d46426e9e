"""RadGraph F1 (Jain et al., 2021; Delbrouck et al., 2022) through the radgraph package, each distinct text read once.

The package's own model reads the texts one at a time, as it always does (its ``batch_size`` is ignored), and the
rewards are those of its ``F1RadGraph``: `simple`, `partial` (the "RadGraph F1" of the literature) and `complete`. Its
mean over reports is therefore the same number from fewer readings, since a system repeats texts and all systems share
the references. A report is read whole: its sentences alone would give other graphs.

The cost is quadratic in the length, so hypotheses are cut after ``max_words`` words and counted. A text without words
scores 0; the package crashes on white space.
"""

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dive.devices import claim_device, explained_memory
from dive.files import sha256
from dive.progress import log, progress
from dive.scores.assets import WeightsError
from dive.scores.graphs import LEVELS, graph_rewards
from dive.scores.remembered import annotate_once

ARCHIVES = ("radgraph", "radgraph-xl", "modern-radgraph-xl")
"""Model types of the package that read chest radiographs; scores by different archives are not comparable."""

COLUMNS = (*(f"radgraph_{level}" for level in LEVELS), "radgraph_capped")
"""Additive columns of a report: the three rewards in 0..100, and whether the hypothesis was cut."""

NO_GRAPH: dict[str, Any] = {"entities": {}}


class RadGraph:
    """The scorer: graphs of texts, and the rewards between them.

    Args:
        path: a folder that holds ``<archive>/{config.json, weights.th, vocabulary/}``.
        archive: one of ARCHIVES.
        max_words: words of a hypothesis that are read; None reads all.
        lower: lower-case hypotheses and references before they are read (never one side alone).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        folder: where graphs are remembered (:func:`dive.scores.remembered.annotate_once`); None is nowhere.

    Raises:
        WeightsError: the archive's folder is absent or incomplete, or the package is not installed.
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
        if archive not in ARCHIVES:
            raise WeightsError(f"scores.radgraph.archive: {archive!r} is none of {', '.join(ARCHIVES)}")
        files = archive_files(path, archive)
        try:
            package = version("radgraph")
        except PackageNotFoundError as error:
            raise WeightsError('RadGraph F1 needs the package radgraph: pip install "dive[metrics]"') from error
        self.path, self.archive, self.max_words, self.lower, self.device = path, archive, max_words, lower, device
        self.folder = folder
        self.identity = {
            "scorer": "radgraph",
            "package": f"radgraph {package}",
            "transformers": version("transformers"),
            "archive": archive,
            "sha256": {str(file.relative_to(Path(path) / archive)): sha256(file) for file in files},
        }
        self.conventions = {
            "radgraph_f1": f"mean `partial` reward of radgraph {package}, archive {archive} (sha256 "
            f"{self.identity['sha256']['weights.th'][:12]}), "
            + (f"hypotheses cut after {max_words} words, " if max_words else "")
            + f"{'lower-cased' if lower else 'case as written'}; 0..100",
            "radgraph_capped": "number of hypotheses that were cut",
        }
        self._model: Any = None
        self._graphs: dict[str, dict[str, Any]] = {}

    def graphs(self, texts: Sequence[str | None]) -> list[dict[str, Any]]:
        """``{"entities": {id: {tokens, label, start_ix, end_ix, relations}}}`` of every text, whole and as given."""
        given = [(text or "").lower() if self.lower else text or "" for text in texts]
        unread = [text for text in given if text not in self._graphs and text.split()]
        if unread:
            self._graphs.update(annotate_once(unread, self._read, self.identity, self.folder))
        return [self._graphs.get(text, NO_GRAPH) for text in given]

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

    def _read(self, texts: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        import torch

        if self._model is None:
            self._model = load_archive(self.path, self.archive, self.device)
        tokens = _tokens_of(self.archive)
        for text in progress(texts, "RadGraph, texts"):
            if not tokens(text):  # nothing is left for the model, e.g. of a literal "\n"
                yield text, NO_GRAPH
                continue
            with (
                torch.inference_mode(),
                explained_memory("scores.radgraph.max_words, or set scores.radgraph.device to cpu"),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # that a text of one word may break what it does not break
                read = self._model([text])
            if "0" not in read:
                raise RuntimeError(f"radgraph gave no graph for a text of {len(text.split())} words; it said why above")
            yield text, {"entities": read["0"]["entities"]}


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


def archive_files(path: str, archive: str) -> list[Path]:
    """The files that make an archive.

    Raises:
        WeightsError: one is absent; told with the folder that must hold it.
    """
    folder = Path(path) / archive
    files = [folder / "config.json", folder / "weights.th", folder / "vocabulary/non_padded_namespaces.txt"]
    absent = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if absent:
        raise WeightsError(
            f"scores.radgraph.path: {folder} has no {', '.join(absent)}; the unpacked archive belongs there, "
            "and `make fetch-assets` says where it is from"
        )
    return sorted({*files, *(folder / "vocabulary").glob("*.txt")})


def load_archive(path: str, archive: str, device: str = "auto") -> Any:
    """The package's model, from files that are there: it would download an absent archive without saying so.

    The package loads the weights strictly by key; tensors only, as torch loads by default.

    Raises:
        WeightsError: the weights are no plain tensors or do not fit the archive's configuration.
    """
    import pickle

    archive_files(path, archive)
    weights = Path(path) / archive / "weights.th"
    chosen = claim_device(device, "scores.radgraph.device")
    cuda = -1 if chosen == "cpu" else int(chosen.removeprefix("cuda:"))
    # It prints its device, and resets the filter of warnings when it is imported.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        from radgraph import RadGraph as Package

        try:
            model = Package(model_type=archive, model_cache_dir=str(path), cuda=cuda)
        except (pickle.UnpicklingError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "state_dict" not in str(error):
                raise  # of the device, not of the file
            raise WeightsError(
                f"{weights}: not the weights of {archive} ({' '.join(str(error).split())[:300]}). "
                "`make fetch-assets` says which archive is expected."
            ) from error
    log.info("RadGraph: archive %s, radgraph %s", archive, version("radgraph"))
    return model.eval()


def _tokens_of(archive: str):
    """The package's own split of a text into words."""
    from radgraph.utils import preprocess_reports

    return lambda text: preprocess_reports([text], archive)[0]["sentences"][0]
