"""Supervision: how much each token of a report counts in the cross-entropy."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dive.annotation.alignment import mark_tokens
from dive.annotation.weights import permuted, token_weights, value_at_risk, weight_sums
from dive.backbones.prompts import Prompt


def spans_of(spans: str | Path, uids: Sequence[str]) -> Iterator[list[tuple[int, int]]]:
    """(start, end) of the decisive spans of each study, in characters of its target; none is an empty list."""
    import pyarrow.compute as pc

    from dive.parquet import read_table

    wanted = pc.field("study_uid").isin(list(uids))
    table = read_table(spans, columns=["study_uid", "start", "end"], filters=wanted).combine_chunks()
    # As numbers until a study is asked for: lists of all would outweigh everything else that is kept of the queries.
    studies = table["study_uid"].combine_chunks().dictionary_encode()
    codes = studies.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    places = np.column_stack([table["start"].to_numpy(), table["end"].to_numpy()])[order]
    begins = np.searchsorted(codes[order], np.arange(len(studies.dictionary) + 1)).tolist()
    rows = {uid: slice(*begins[code : code + 2]) for code, uid in enumerate(studies.dictionary.to_pylist())}
    for uid in uids:
        yield list(map(tuple, places[rows.get(uid, slice(0))].tolist()))


class Supervision(NamedTuple):
    """How the labels of one report count in the cross-entropy.

    Attributes:
        weights: w_t of every label (T+1,), float32; (T,) for a cut report.
        sums: total weight of other tokens, pathology tokens and TERM.
        complete: whether the last label is TERM.
        marked: the decisive report tokens (T,), bool.
    """

    weights: torch.Tensor
    sums: tuple[float, float, float]
    complete: bool
    marked: np.ndarray


def mark_decisive(
    prompt: Prompt, spans: Sequence[tuple[int, int]], report: str, weights: Mapping[str, Any], seed: int = 0
) -> np.ndarray:
    """The decisive tokens of a report (T,), bool.

    Args:
        prompt: the report's prompt, with offsets.
        spans: characters, of the annotator that the weights ask for.
        report: the text.
        weights: ``methods.<name>.weights``; the source ``random`` marks as many tokens at other places.
        seed: of the random places.
    """
    marked = mark_tokens(prompt.offsets, spans, report)
    return permuted(marked, seed, prompt.images[-1]) if weights.get("source") == "random" else marked


def supervise(
    marked: np.ndarray, complete: bool, weights: Mapping[str, Any], relevance: np.ndarray | None = None
) -> Supervision:
    """Weights of a report's labels.

    Args:
        marked: its decisive tokens (T,).
        complete: whether TERM follows.
        weights: ``pathology`` and ``eos`` of ``methods.<name>.weights``.
        relevance: factor of each report token (T,) where their source is a statistic.
    """
    pathology, eos = weights.get("pathology", 1.0), weights.get("eos", 1.0)
    each = token_weights(marked, complete, pathology, eos, relevance)
    sums = weight_sums(marked, complete, pathology, eos, relevance)
    return Supervision(
        torch.tensor(each, dtype=torch.float32), (sums["other"], sums["pathology"], sums["term"]), complete, marked
    )


class SupervisionStore(Sequence[Supervision]):
    """The supervision of many reports in a byte a token: that of a report is made anew when it is asked for.

    Args:
        marked: decisive tokens of each report (T,), bool.
        complete: whether TERM follows each.
        weights: ``pathology`` and ``eos`` of ``methods.<name>.weights``.
        relevance: factors of the tokens of each, or None, see ``supervise``.
    """

    def __init__(
        self,
        marked: Sequence[np.ndarray],
        complete: Sequence[bool],
        weights: Mapping[str, Any],
        relevance: Sequence[np.ndarray | None],
    ) -> None:
        self._reports = list(zip(marked, complete, relevance, strict=True))
        self._weights = weights

    def __len__(self) -> int:
        return len(self._reports)

    def __getitem__(self, row: int) -> Supervision:
        marked, complete, relevance = self._reports[row]
        return supervise(marked, complete, self._weights, relevance)


def riskiest(supervision: Sequence[Supervision], losses: torch.Tensor, level: float) -> list[Supervision]:
    """The supervision of a batch with only those report tokens whose loss reaches the batch's value at risk.

    Args:
        supervision: of each report of the batch.
        losses: -log p of all their labels, one report after another (N,).
        level: see `value_at_risk`; TERM is always kept.
    """
    each = [part.cpu().numpy() for part in losses.split([len(of_one.weights) for of_one in supervision])]
    reports = [part[: len(of_one.marked)] for part, of_one in zip(each, supervision, strict=True)]
    kept = np.split(value_at_risk(np.concatenate(reports), level), np.cumsum([len(part) for part in reports])[:-1])
    chosen = []
    for of_one, keep in zip(supervision, kept, strict=True):
        factors = torch.ones_like(of_one.weights)
        factors[: len(keep)] = torch.from_numpy(keep)
        weights = of_one.weights * factors
        on_report = weights[: len(keep)].double().numpy()
        sums = (float(on_report[~of_one.marked].sum()), float(on_report[of_one.marked].sum()), of_one.sums[2])
        chosen.append(of_one._replace(weights=weights, sums=sums))
    return chosen
