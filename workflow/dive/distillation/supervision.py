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
    import pyarrow.parquet as pq

    columns = pq.read_table(spans, columns=["study_uid", "start", "end"]).to_pydict()
    found: dict[str, list[tuple[int, int]]] = {uid: [] for uid in uids}
    for uid, start, end in zip(columns["study_uid"], columns["start"], columns["end"], strict=True):
        if uid in found:
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


def supervise(
    prompt: Prompt,
    spans: Sequence[tuple[int, int]],
    report: str,
    weights: Mapping[str, Any],
    relevance: np.ndarray | None = None,
    seed: int = 0,
) -> Supervision:
    """Weights of a report's labels from its decisive spans (characters) and ``methods.<name>.weights``.

    Args:
        prompt: the report's prompt.
        spans: of the annotator that the weights ask for.
        report: the text.
        weights: ``pathology``, ``eos`` and ``source``; ``random`` marks as many tokens at other places.
        relevance: factor of each report token (T,) where the source is a statistic.
        seed: of the random places.
    """
    marked = mark_tokens(prompt.offsets, spans, report)
    if weights.get("source") == "random":
        marked = permuted(marked, seed, prompt.images[-1])
    pathology, eos = weights.get("pathology", 1.0), weights.get("eos", 1.0)
    each = token_weights(marked, prompt.complete, pathology, eos, relevance)
    sums = weight_sums(marked, prompt.complete, pathology, eos, relevance)
    return Supervision(
        torch.tensor(each, dtype=torch.float32),
        (sums["other"], sums["pathology"], sums["term"]),
        prompt.complete,
        marked,
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
