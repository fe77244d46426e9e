"""Supervision: how much each token of a report counts in the cross-entropy."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dive.annotation.alignment import mark_tokens
from dive.annotation.weights import permuted, token_weights, value_at_risk, weight_sums
from dive.backbones.prompts import Prompt


def spans_of(spans: str, uids: Sequence[str]) -> list[list[tuple[int, int]]]:
    """(start, end) of the decisive spans of each study, in characters of its target; none is an empty list."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = pc.field("study_uid").isin(list(uids))
    columns = pq.read_table(spans, columns=["study_uid", "start", "end"], filters=wanted).to_pydict()
    found: dict[str, list[tuple[int, int]]] = {uid: [] for uid in uids}
    for uid, start, end in zip(columns["study_uid"], columns["start"], columns["end"], strict=True):
        found[uid].append((start, end))
    return [found[uid] for uid in uids]


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
