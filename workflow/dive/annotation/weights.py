"""Weights of the cross-entropy: by decisive tokens and the end of turn, or by statistics that need no annotation.

Statistics give every report token a relevance with mean 1, from its frequency (`power_law`) or from its loss
(`surprisal`, `value_at_risk`); TERM keeps its own weight, so that termination is the same in every comparison.
"""

from collections.abc import Sequence

import numpy as np

from dive.data.draws import stream

STATISTICS = ("power_law", "surprisal", "value_at_risk")


def token_weights(
    marked: np.ndarray, complete: bool, pathology: float, eos: float, relevance: np.ndarray | None = None
) -> np.ndarray:
    """Weight w_t of every supervised token: ``pathology`` where marked, ``eos`` on TERM, 1 elsewhere.

    Args:
        marked: bool, shape (T,), the decisive tokens of the report.
        complete: whether the report ends with TERM; a truncated one has no such label.
        pathology: w_pathology > 0.
        eos: w_eos > 0.
        relevance: factor of each report token, shape (T,); None is 1.

    Returns:
        float64, shape (T + 1,) when complete, with TERM last, else (T,). L_wce = sum_t w_t ce_t / sum_t w_t over the
        batch.
    """
    if pathology <= 0 or eos <= 0:
        raise ValueError(f"weights must be positive, not pathology {pathology}, eos {eos}")
    weights = np.where(np.asarray(marked, dtype=bool), float(pathology), 1.0)
    weights = weights if relevance is None else weights * np.asarray(relevance, dtype=float)
    return np.append(weights, float(eos)) if complete else weights


def weight_shares(marked: np.ndarray, complete: bool, pathology: float, eos: float) -> dict[str, float]:
    """Shares of the total weight that other tokens, pathology tokens and TERM have; they add up to 1.

    The weighted mean keeps the scale of the loss, so that weights only redistribute: of 80 tokens with 25 of
    pathology, (3, 10) moves 67.5/31.2/1.2 % to 38.8/54.0/7.2 %. For several reports concatenate ``marked`` of each
    and sum the parts of `weight_sums`.
    """
    sums = weight_sums(marked, complete, pathology, eos)
    total = sum(sums.values())
    return {part: value / total for part, value in sums.items()} if total else dict.fromkeys(sums, 0.0)


def weight_sums(
    marked: np.ndarray, complete: bool, pathology: float, eos: float, relevance: np.ndarray | None = None
) -> dict[str, float]:
    """Total weight of other tokens, pathology tokens and TERM of one report."""
    marked = np.asarray(marked, dtype=bool)
    weights = token_weights(marked, complete, pathology, eos, relevance)[: len(marked)]
    return {
        "other": float(weights[~marked].sum()),
        "pathology": float(weights[marked].sum()),
        "term": float(eos) if complete else 0.0,
    }


def permuted(marked: np.ndarray, seed: int, study_uid: str) -> np.ndarray:
    """As many marks as before at random places of the report: the control of decisive tokens.

    The draw depends on the seed and the study alone, never on which other studies there are.
    """
    draw = stream(seed, "random tokens", study_uid)
    return draw.permutation(np.asarray(marked, dtype=bool))


def power_law(
    labels: Sequence[Sequence[int]], corpus: Sequence[Sequence[int]], exponent: float = 1.0
) -> list[np.ndarray]:
    """Power-Law Decay Loss (Shao et al. 2025, 2505.16900)::

        w(t) = 1 / (freq(t) + epsilon)^alpha

    with freq the number of times that a token stands in the corpus, epsilon = 1 (so that a token the corpus lacks
    has the largest weight, and a finite one) and alpha the exponent; divided by the mean over the corpus's tokens.

    Args:
        labels: tokens of the reports to weight, TERM left out.
        corpus: tokens of the training reports.
        exponent: alpha >= 0; 0 is uniform.

    Returns:
        For each report its relevance, float64, shape (T,).
    """
    values, counts = np.unique(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in corpus]), return_counts=True)
    decay = (counts + 1.0) ** -exponent
    mean = (counts * decay).sum() / counts.sum()

    def of_report(ids: Sequence[int]) -> np.ndarray:
        ids = np.asarray(ids, dtype=np.int64)
        place = np.minimum(np.searchsorted(values, ids), len(values) - 1)
        return np.where(values[place] == ids, decay[place], 1.0) / mean

    return [of_report(ids) for ids in labels]


def surprisal(losses: Sequence[np.ndarray], exponent: float = 1.0) -> list[np.ndarray]:
    """w_t proportional to (-log p(y_t))^exponent under the zero-shot backbone, with mean 1 over all tokens given.

    Args:
        losses: -log p of each report token, TERM left out; a report each, shape (T,).
        exponent: 0 is uniform.
    """
    raised = [np.asarray(of_report, dtype=float) ** exponent for of_report in losses]
    total, n = sum(values.sum() for values in raised), sum(map(len, raised))
    return [values * n / total if total else np.ones_like(values) for values in raised]


def value_at_risk(losses: np.ndarray, level: float) -> np.ndarray:
    """ESLM's selection (Bal et al. 2025, 2505.19893): the tokens whose loss reaches the batch's value at risk::

        VaR_level = inf {x : P(loss <= x) >= level},   w_t = 1[loss_t >= VaR_level]

    With the weighted mean this minimises the conditional value at risk: the mean over the worst 1 - level of tokens.

    Args:
        losses: -log p of the report tokens of a batch under the present student, shape (N,).
        level: in [0, 1); 0.1, the published choice, leaves out the easiest tenth.

    Returns:
        float64 0 or 1, shape (N,).
    """
    losses = np.asarray(losses, dtype=float)
    if not len(losses):
        return losses
    threshold = np.quantile(losses, level, method="inverted_cdf")
    return (losses >= threshold).astype(float)
