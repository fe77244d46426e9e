"""Graphs of texts by RadGraph's model (Jain et al. 2021; RadGraph-XL, Delbrouck et al. 2024), through its package.

The metric RadGraph F1 and the annotator ``radgraph`` read texts by it. Texts go through the package's own model one at
a time, as they always do there (its ``batch_size`` is ignored; most of the time is its handling of words and spans, so
batches would gain little). A distinct text is read once, and never again where a folder remembers it.
"""

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dive.devices import claim_device, explained_memory
from dive.files import WeightsError, sha256
from dive.progress import log, progress
from dive.remembered import annotate_once

ARCHIVES = ("radgraph", "radgraph-xl", "modern-radgraph-xl")
"""Model types of the package that read chest radiographs; graphs by different archives are not comparable."""

NO_GRAPH: dict[str, Any] = {"entities": {}}


class GraphReader:
    """Graphs of texts by one archive.

    Args:
        path: a folder that holds ``<archive>/{config.json, weights.th, vocabulary/}``.
        archive: one of ARCHIVES.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        folder: where graphs are remembered (:func:`dive.remembered.annotate_once`); None is nowhere.
        key: of the configuration whose ``device`` this is, for errors.
        limit: what bounds the words of a text, for errors.

    Attributes:
        identity: all that a graph depends on beside its text: package, archive, hashes of the files.

    Raises:
        WeightsError: the archive's folder is absent or incomplete, or the package is not installed.
    """

    def __init__(
        self,
        path: str,
        archive: str,
        device: str = "auto",
        folder: str | None = None,
        key: str = "scores.radgraph",
        limit: str = "scores.radgraph.max_words",
    ) -> None:
        if archive not in ARCHIVES:
            raise WeightsError(f"RadGraph's archive {archive!r} is none of {', '.join(ARCHIVES)}")
        files = archive_files(path, archive)
        try:
            package = version("radgraph")
        except PackageNotFoundError as error:
            raise WeightsError('RadGraph needs the package radgraph: pip install "dive[metrics]"') from error
        self.path, self.archive, self.device, self.folder = path, archive, device, folder
        self.key, self.limit = key, limit
        self.identity = {
            "scorer": "radgraph",
            "package": f"radgraph {package}",
            "transformers": version("transformers"),
            "archive": archive,
            "sha256": {str(file.relative_to(Path(path) / archive)): sha256(file) for file in files},
        }
        self._model: Any = None

    def graphs(self, texts: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Text -> ``{"entities": {id: {tokens, label, start_ix, end_ix, relations}}}``; NO_GRAPH for one without words.

        Raises:
            RuntimeError: the package gave no graph for a text that has words.
        """
        found = dict.fromkeys(texts, NO_GRAPH)
        unread = [text for text in found if text.split()]
        if unread:
            found.update(annotate_once(unread, self._read, self.identity, self.folder))
        return found

    def _read(self, texts: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        import torch

        if self._model is None:
            self._model = load_archive(self.path, self.archive, self.device, self.key)
        for text in progress(texts, "RadGraph, texts"):
            if not words_of(text, self.archive):  # nothing is left for the model, e.g. of a literal "\n"
                yield text, NO_GRAPH
                continue
            with (
                torch.inference_mode(),
                explained_memory(f"{self.limit}, or set {self.key}.device to cpu"),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # that a text of one word may break what it does not break
                read = self._model([text])
            if "0" not in read:
                raise RuntimeError(f"radgraph gave no graph for a text of {len(text.split())} words; it said why above")
            yield text, {"entities": read["0"]["entities"]}


def words_of(text: str, archive: str) -> list[str]:
    """The words to which ``start_ix`` and ``end_ix`` of a graph's entities refer: the package's own split of a text."""
    from radgraph.utils import preprocess_reports

    return preprocess_reports([text], archive)[0]["sentences"][0]


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
            f"{folder} has no {', '.join(absent)}; the unpacked archive belongs there, and `dive fetch-assets` says "
            "where it is from"
        )
    return sorted({*files, *(folder / "vocabulary").glob("*.txt")})


def load_archive(path: str, archive: str, device: str = "auto", key: str = "scores.radgraph") -> Any:
    """The package's model, from files that are there: it would download an absent archive without saying so.

    The package loads the weights strictly by key; tensors only, as torch loads by default.

    Raises:
        WeightsError: the weights are no plain tensors, do not fit the archive's configuration, or are not finite.
    """
    import torch

    archive_files(path, archive)
    weights = Path(path) / archive / "weights.th"
    chosen = claim_device(device, f"{key}.device")
    cuda = -1 if chosen == "cpu" else int(chosen.removeprefix("cuda:"))
    # It prints its device, and resets the filter of warnings when it is imported.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        from radgraph import RadGraph as Package

        try:
            model = Package(model_type=archive, model_cache_dir=str(path), cuda=cuda)
        except Exception as error:  # whatever comes of reading a file of another kind
            if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error):
                raise  # of the device, not of the file
            reason = " ".join(str(error).split())[:300] if "state_dict" in str(error) else type(error).__name__
            raise WeightsError(
                f"{weights}: not the weights of {archive} that config.json beside it describes ({reason}). "
                "`dive fetch-assets` says which archive is expected."
            ) from error
    if not all(torch.isfinite(values).all() for values in model.state_dict().values()):
        raise WeightsError(f"{weights}: holds values that are not finite, so it is damaged; unpack the archive again")
    log.info("RadGraph: archive %s, radgraph %s", archive, version("radgraph"))
    return model.eval()
