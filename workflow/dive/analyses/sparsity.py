"""Is the sparsity in the reports or in the measure? Shares of tokens, loss and divergence, and agreement.

Two things can be sparse. The *measure*: a few tokens hold most of the loss or of the divergence from the teacher,
whatever they say. The *reports*: the tokens that an annotator calls decisive hold more of either than as many other
tokens would. The first is `half_share`, the second `density`: the share of the loss that marked tokens have, over the
share that they are of all tokens, with an interval over patients.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dive.parquet import read_table

RESAMPLES = 2000
MEASURES = ("loss", "kl")


class Tokens(NamedTuple):
    """The table of `dive.analyses.tokens`, all supervised tokens in a row, N in all.

    Attributes:
        patients: number of each token's patient, from 0, (N,).
        term: bool (N,).
        measures: ``loss`` and ``kl`` -> nats (N,).
        marks: annotator -> bool (N,); TERM is never marked.
        relevance: statistic -> factor (N,).
    """

    patients: np.ndarray
    term: np.ndarray
    measures: dict[str, np.ndarray]
    marks: dict[str, np.ndarray]
    relevance: dict[str, np.ndarray]


def read_tokens(path: str | Path) -> Tokens:
    """Read what `dive.analyses.tokens.analyse_tokens` wrote."""
    table = read_table(path)
    columns = {name: table[name] for name in table.column_names}
    _, patients = np.unique(np.array(columns["patient_uid"].to_pylist()), return_inverse=True)

    def of(prefix: str) -> dict[str, np.ndarray]:
        return {
            name.removeprefix(prefix): column.to_numpy() for name, column in columns.items() if name.startswith(prefix)
        }

    measures = {name: columns[name].to_numpy().astype(float) for name in MEASURES}
    return Tokens(patients, columns["term"].to_numpy(), measures, of("decisive_"), of("relevance_"))


def share(values: np.ndarray, marked: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Share of the (weighted) sum of ``values`` that the marked tokens have; 0 where there is nothing to share."""
    values = values if weights is None else values * weights
    total = values.sum()
    return float(values[marked].sum() / total) if total > 0 else 0.0


def densities(tokens: Tokens, marked: np.ndarray, values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0):
    """Share of ``values`` over share of tokens of the marked ones, with a 95 % bootstrap interval over patients.

    1 is what tokens drawn at random have.

    Returns:
        (density, low, high); None where nothing is marked or there is nothing to share.
    """
    n = int(tokens.patients.max()) + 1
    each = [
        np.bincount(tokens.patients, weights=part, minlength=n)
        for part in (marked.astype(float), np.ones(len(marked)), values * marked, values)
    ]
    sums = np.stack(each, axis=1)  # patients x (marked, tokens, values of marked, values)

    def of(totals: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (totals[..., 2] / totals[..., 3]) / (totals[..., 0] / totals[..., 1])

    found = float(of(sums.sum(axis=0)))
    if not np.isfinite(found):
        return None
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) @ sums
    drawn = of(draws)
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return found, float(low), float(high)


def concentration(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Curve of concentration: share of tokens, largest values first, and the share of the sum that they have.

    Returns:
        Two arrays (N + 1,), both from 0 to 1. Equal values give the diagonal.
    """
    ordered = np.sort(values)[::-1].cumsum()
    total = ordered[-1] if len(ordered) else 0.0
    tokens = np.arange(len(values) + 1) / max(len(values), 1)
    return tokens, np.concatenate([[0.0], ordered / total]) if total > 0 else tokens


def half_share(values: np.ndarray) -> float:
    """The smallest share of tokens that has half of the sum."""
    tokens, held = concentration(values)
    return float(tokens[np.searchsorted(held, 0.5)])


def oracle_share(values: np.ndarray, n: int) -> float:
    """The largest share of the sum that any n tokens have."""
    return float(concentration(values)[1][n])


def token_f1(one: np.ndarray, other: np.ndarray) -> float | None:
    """Token-level F1 of two annotators, 2 |A and B| / (|A| + |B|); None where neither marks anything."""
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else None


def sparsity_rows(tokens: Tokens, annotator: str, weights: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the table says of one backbone: a row for all tokens, each annotator, TERM, and each statistic.

    Args:
        tokens: see `read_tokens`.
        annotator: whose tokens the rows of statistics are about.
        weights: ``pathology`` and ``eos``, for the shares after weighting; every annotator is weighted as if it were
            the source.

    Returns:
        Rows of ``row`` (all, an annotator, ``term`` or a statistic), ``kind``, shares of ``tokens``, ``loss`` and
        ``kl``, their ``_density`` with ``_low`` and ``_high``, ``_oracle`` (the largest share that as many tokens
        can have), ``_half`` (all tokens only), ``weight`` and ``weighted_loss`` and ``weighted_kl`` after weighting,
        and ``f1`` (annotator -> token-level F1). Absent values are None.
    """
    ones = np.ones(len(tokens.term))
    rows = []

    def row_of(name: str, kind: str, marked: np.ndarray, weighting: np.ndarray) -> dict[str, Any]:
        row: dict[str, Any] = {"row": name, "kind": kind, "tokens": share(ones, marked)}
        for measure in MEASURES:
            values = tokens.measures[measure]
            density = densities(tokens, marked, values) if kind in ("annotator", "term") else None
            row |= {measure: share(values, marked), f"{measure}_oracle": oracle_share(values, int(marked.sum()))}
            row |= dict(
                zip((f"{measure}_{key}" for key in ("density", "low", "high")), density or [None] * 3, strict=True)
            )
            row[f"{measure}_half"] = half_share(values) if kind == "all" else None
            row[f"weighted_{measure}"] = share(values, marked, weighting)
        row["weight"] = share(weighting, marked)
        row["f1"] = {
            name: token_f1(marked, other) if kind == "annotator" else None for name, other in tokens.marks.items()
        }
        return row

    def by_annotator(marked: np.ndarray) -> np.ndarray:
        return np.where(tokens.term, weights["eos"], np.where(marked, weights["pathology"], 1.0))

    everything = np.ones(len(tokens.term), dtype=bool)
    rows.append(row_of("all", "all", everything, ones))
    for name, marked in tokens.marks.items():
        rows.append(row_of(name, "annotator", marked, by_annotator(marked)))
    rows.append(row_of("term", "term", tokens.term, by_annotator(tokens.marks[annotator])))
    for name, factor in tokens.relevance.items():
        weighting = np.where(tokens.term, weights["eos"], factor)
        rows.append(row_of(name, "statistic", tokens.marks[annotator], weighting))
    return rows


def verdict(rows: Sequence[Mapping[str, Any]], annotator: str) -> str:
    """What the numbers say, in two sentences; the interval decides, not the reader's wish."""
    every = next(row for row in rows if row["kind"] == "all")
    marked = next(row for row in rows if row["row"] == annotator)
    sentences = [
        f"The measure: half of the loss lies in {100 * every['loss_half']:.0f} % of the tokens, half of the divergence "
        f"from the teacher in {100 * every['kl_half']:.0f} %."
    ]
    said = []
    for measure, name in (("loss", "the loss"), ("kl", "the divergence")):
        density, low, high = (marked[f"{measure}_{key}"] for key in ("density", "low", "high"))
        if density is None:
            said.append(f"{name} cannot be told, for nothing is marked")
            continue
        judged = "more than" if low > 1 else "less than" if high < 1 else "not resolved from"
        said.append(f"{name} at {density:.2f} ({low:.2f} to {high:.2f}) of the mean, {judged} tokens at random")
    sentences.append(
        f"The reports: {annotator} marks {100 * marked['tokens']:.0f} % of the tokens, which have {' and '.join(said)}."
    )
    return " ".join(sentences)
