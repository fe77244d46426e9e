"""CheXbert F1 (Smit et al., 2020) with f1chexbert's model and checkpoint format, many reports at a time.

The model: BERT whose [CLS] state feeds fourteen linear heads, thirteen with the classes blank, positive, negative and
uncertain, "No Finding" with blank and positive. Tokens, classes and averages are those of f1chexbert 0.0.2, which reads
one report at a time; here distinct texts are sorted by length and padded, which gives the same classes. Its traps are
not taken over: a checkpoint that does not fit is an error (`strict=False` hides it), pickled objects are refused,
empty lists and missing texts are no crash, and nothing is taken from a file of an earlier call.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dive.data.studies import LABELS
from dive.devices import claim_device, explained_memory
from dive.files import WeightsError, sha256
from dive.progress import progress
from dive.remembered import annotate_once
from dive.scores.labels import (
    COUNTS,
    FIVE,
    classification_report,
    count_columns,
    flag_columns,
    is_positive,
    label_counts,
    label_flags,
    label_scores,
)

if TYPE_CHECKING:
    import torch

CONDITIONS = (*(label for label in LABELS if label != "No Finding"), "No Finding")
"""Order of the model's heads (that of f1chexbert's report); everything that leaves this module is in that of LABELS."""

PACKAGE_LABELS = ("", 1, 0, -1)
"""What f1chexbert calls the classes blank, positive, negative and uncertain."""

CLASSES = 4
MAX_TOKENS = 512
PREFIX = "chexbert"
EXPECTED = "`dive fetch-assets` says which checkpoint is expected"
COLUMNS = (*count_columns(PREFIX), *flag_columns(PREFIX))
"""Additive columns of a report: hits, false alarms and misses of 14 observations; samples, samples5, exact5."""


class CheXbert:
    """The scorer: classes of texts, and what follows from them.

    Args:
        path: the checkpoint, ``chexbert.pth``.
        encoder: configuration and vocabulary of the BERT, a folder or a name in the Hugging Face cache.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        batch: texts at a time.
        implementation: ``batched``, or ``f1chexbert``: that package tokenises and labels each text by itself, with the
            same weights, which are still read as data.
        folder: where classes are remembered (:func:`dive.remembered.annotate_once`); None is nowhere.

    Raises:
        WeightsError: the checkpoint is absent.
    """

    name = "chexbert"
    columns = COLUMNS

    def __init__(
        self,
        path: str,
        encoder: str = "bert-base-uncased",
        device: str = "auto",
        batch: int = 64,
        folder: str | None = None,
        implementation: str = "batched",
    ) -> None:
        if not Path(path).is_file():
            raise WeightsError(f"scores.chexbert.path: no file {path}; `dive fetch-assets` says where it is from")
        self.path, self.encoder, self.device, self.batch, self.folder = path, encoder, device, batch, folder
        self.identity = {
            "scorer": "chexbert",
            "format": "f1chexbert 0.0.2",
            "checkpoint": Path(path).name,
            "sha256": sha256(path),
            "encoder": Path(encoder).name if Path(encoder).is_dir() else encoder,
        }
        self._label = self._label_in_batches
        if implementation == "f1chexbert":
            self._label = self._label_one_by_one
            self.identity["implementation"] = f"f1chexbert {package_version()}"
        self.conventions = {
            "chexbert_f1": "micro F1 of 14 observations, uncertain as positive, as f1chexbert 0.0.2 computes it, by "
            f"CheXbert's checkpoint {Path(path).name} (sha256 {self.identity['sha256'][:12]}); 0..100",
            "chexbert_f1_macro": "macro F1 of the 14; _weighted, _samples and CheXpert's competition's 5 beside it",
            "chexbert_exact5": "share of reports whose five observations all agree (f1chexbert's accuracy); 0..1",
        }
        self._model: torch.nn.Module | None = None
        self._tokenizer: Any = None
        self._classes: dict[str, list[int]] = {}

    def classes(self, texts: Sequence[str | None]) -> np.ndarray:
        """Classes (0 blank, 1 positive, 2 negative, 3 uncertain) in the order of LABELS, int8 (n, 14).

        A text without words gets what the model says of [CLS] [SEP] alone, as in f1chexbert; None is such a text.
        """
        cleaned = [clean(text) for text in texts]
        unread = [text for text in cleaned if text not in self._classes]
        if unread:
            self._classes.update(annotate_once(unread, self._read, self.identity, self.folder))
        rows = np.array([self._classes[text] for text in cleaned], dtype=np.int8).reshape(-1, len(LABELS))
        return rows[:, [CONDITIONS.index(label) for label in LABELS]]

    def statistics(self, hypotheses: Sequence[str | None], references: Sequence[str | None]) -> np.ndarray:
        """The additive numbers of every report, float64 (n, len(COLUMNS))."""
        counts = label_counts(self.classes(hypotheses), self.classes(references))
        flat = counts.reshape(len(counts), len(LABELS) * len(COUNTS))
        return np.concatenate([flat, label_flags(counts)], axis=1).astype(np.float64)

    @staticmethod
    def scores(total: np.ndarray, n: int) -> dict[str, float | None]:
        """Every CheXbert score from the sum of the statistics of ``n`` reports."""
        return scores(total, n)

    def report(self, hypotheses: Sequence[str | None], references: Sequence[str | None]) -> tuple:
        """What ``F1CheXbert()(hyps, refs)`` returns: accuracy over five, per report, report over 14 and over 5."""
        said, true = (is_positive(self.classes(texts)) for texts in (hypotheses, references))
        five = [label for label in CONDITIONS if label in FIVE]
        parts = []
        for names in (CONDITIONS, five):
            chosen = [LABELS.index(label) for label in names]
            parts.append(classification_report(said[:, chosen], true[:, chosen], names))
        chosen = [LABELS.index(label) for label in five]
        agree = (said[:, chosen] == true[:, chosen]).all(axis=1)
        return (float(agree.mean()) if len(agree) else 0.0), agree.astype(np.float32), *parts

    def _read(self, texts: list[str]) -> Iterator[tuple[str, list[int]]]:
        if self._model is None:
            self._model, self._tokenizer = load_labeler(self.path, self.encoder, self.device)
        yield from self._label(texts)

    def _label_one_by_one(self, texts: list[str]) -> Iterator[tuple[str, list[int]]]:
        """What the package says of each text; its own loading, which unpickles and downloads, is passed over."""
        import torch
        from f1chexbert import F1CheXbert

        labeler = F1CheXbert.__new__(F1CheXbert)
        torch.nn.Module.__init__(labeler)
        labeler.model, labeler.tokenizer = self._model, self._tokenizer
        labeler.device = next(self._model.parameters()).device
        for text in progress(texts, "CheXbert, reports"):
            with torch.inference_mode():
                labels = labeler.get_label(text, mode="classification")
            yield text, [PACKAGE_LABELS.index(label) for label in labels]

    def _label_in_batches(self, texts: list[str]) -> Iterator[tuple[str, list[int]]]:
        import torch

        device = next(self._model.parameters()).device
        ids = [token_ids(text, self._tokenizer) for text in texts]
        order = sorted(range(len(texts)), key=lambda index: (len(ids[index]), texts[index]))
        batches = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        for batch in progress(batches, "CheXbert, batches"):
            longest = len(ids[batch[-1]])
            padded = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros(len(batch), longest)
            for row, index in enumerate(batch):
                padded[row, : len(ids[index])] = torch.tensor(ids[index])
                mask[row, : len(ids[index])] = 1
            with torch.inference_mode(), explained_memory("scores.chexbert.batch"):
                logits = self._model(padded.to(device), mask.to(device))
            classes = torch.stack([head.argmax(dim=1) for head in logits], dim=1).tolist()
            yield from zip((texts[index] for index in batch), classes, strict=True)


def package_version() -> str:
    """Version of the package f1chexbert.

    Raises:
        WeightsError: it is not installed.
    """
    try:
        return version("f1chexbert")
    except PackageNotFoundError:
        raise WeightsError(
            "scores.chexbert.implementation: the package f1chexbert is not installed; install it as in "
            "requirements.lock, or choose batched, which gives the same classes"
        ) from None


def scores(total: np.ndarray, n: int) -> dict[str, float | None]:
    """CheXbert's scores in 0..100 from summed COLUMNS of ``n`` reports; ``chexbert_exact5`` is a share."""
    split = len(LABELS) * len(COUNTS)
    return label_scores(total[:split].reshape(-1, len(COUNTS)), PREFIX, total[split:], n)


def clean(text: str | None) -> str:
    """Collapse white space, as f1chexbert does before it tokenises."""
    return re.sub(r"\s+", " ", (text or "").strip()).strip()


def token_ids(text: str, tokenizer: Any) -> list[int]:
    """[CLS] pieces [SEP], at most 512: a longer text keeps its first 510 pieces."""
    pieces = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[: MAX_TOKENS - 2]
    return [tokenizer.cls_token_id, *pieces, tokenizer.sep_token_id]


def load_labeler(path: str, encoder: str, device: str = "auto") -> tuple["torch.nn.Module", Any]:
    """The model in evaluation mode and its tokenizer.

    The checkpoint is a dictionary whose ``model_state_dict`` has tensors named ``module.bert.*`` and
    ``module.linear_heads.<0..13>.{weight,bias}`` (the prefix is optional). It is read as data: a pickled object in it
    is an error. Older checkpoints also hold the constant buffer ``bert.embeddings.position_ids``.

    Raises:
        WeightsError: the file is no such checkpoint, its keys or shapes are not those of the model, a value is not
            finite, or the encoder is no BERT.
    """
    import zipfile

    import torch
    from transformers import AutoConfig, BertTokenizer

    try:
        # The published file also holds the optimiser's state, twice the model's size: mapped, it is not read.
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a file of another kind is read as if it were one of tensors: anything may come of it
        raise WeightsError(
            f"{path}: not a file of plain tensors ({type(error).__name__}), so it is not loaded; {EXPECTED}"
        ) from error
    if not isinstance(stored, Mapping) or not isinstance(stored.get("model_state_dict"), Mapping):
        raise WeightsError(f"{path}: has no model_state_dict, so it is no CheXbert checkpoint; {EXPECTED}")
    state = {str(key).removeprefix("module."): value for key, value in stored["model_state_dict"].items()}
    state.pop("bert.embeddings.position_ids", None)
    if not all(isinstance(value, torch.Tensor) and torch.isfinite(value).all() for value in state.values()):
        raise WeightsError(f"{path}: holds values that are no tensors of finite numbers, so it is damaged; {EXPECTED}")
    try:
        model, tokenizer = build_labeler(AutoConfig.from_pretrained(encoder)), BertTokenizer.from_pretrained(encoder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"scores.chexbert.encoder: {encoder} gives no BERT ({type(error).__name__}); name a folder with its "
            "config.json and vocab.txt, or a model in the Hugging Face cache"
        ) from error
    wanted = model.state_dict()
    problems = {
        "absent": sorted(wanted.keys() - state.keys()),
        "unknown": sorted(state.keys() - wanted.keys()),
        "of another shape": sorted(k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape),
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {what} (first: {keys[0]})" for what, keys in problems.items() if keys)
        raise WeightsError(f"{path} does not fit the encoder {encoder}: keys are {found}; {EXPECTED}")
    model.load_state_dict(state)
    chosen = claim_device(device, "scores.chexbert.device")
    return model.eval().requires_grad_(False).to(chosen), tokenizer


def build_labeler(config: Any) -> "torch.nn.Module":
    """f1chexbert's ``bert_labeler`` without its dropout, which does nothing at inference; names of parameters equal."""
    import torch
    from transformers import BertModel

    class Labeler(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(config)
            widths = [CLASSES] * (len(CONDITIONS) - 1) + [2]
            self.linear_heads = torch.nn.ModuleList(torch.nn.Linear(config.hidden_size, width) for width in widths)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
            state = self.bert(ids, attention_mask=mask)[0][:, 0]
            return [head(state) for head in self.linear_heads]

    return Labeler()
