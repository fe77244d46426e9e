"""F1 of the fourteen CheXpert observations, whoever read them: from counts and flags that add up over reports.

The averages are those of f1chexbert's report, which are scikit-learn's: micro, macro, weighted and samples over
fourteen observations and over the five of CheXpert's competition, zero where there is nothing to find and nothing was
found. One matrix spans more than 20 points over these averages, so a number without its average says little.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dive.data.studies import LABELS

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)
"""State of an observation, coded as CheXbert's four classes."""

FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five observations of CheXpert's competition, on which "top 5" scores are computed."""

COUNTS = ("tp", "fp", "fn")
FLAGS = ("samples", "samples5", "exact5")
"""What a report adds beside its counts: its own F1 over 14 and over 5 observations, and whether all 5 agree."""

_FIVE = [LABELS.index(label) for label in FIVE]


def count_columns(prefix: str) -> tuple[str, ...]:
    """Names of the 14 x 3 counts, observation by observation: ``<prefix>_tp_No Finding``, ..."""
    return tuple(f"{prefix}_{count}_{label}" for label in LABELS for count in COUNTS)


def flag_columns(prefix: str) -> tuple[str, ...]:
    """Names of the columns of :func:`label_flags`."""
    return tuple(f"{prefix}_{flag}" for flag in FLAGS)


def is_positive(states: np.ndarray) -> np.ndarray:
    """Uncertain counts as positive, as f1chexbert's `rrg` mode has it; negative and blank do not."""
    return np.isin(states, (POSITIVE, UNCERTAIN))


def label_counts(hypothesis: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Hits, false alarms and misses by observation from states (..., 14), int64 (..., 14, 3)."""
    said, true = is_positive(hypothesis), is_positive(reference)
    return np.stack([said & true, said & ~true, ~said & true], axis=-1).astype(np.int64)


def label_flags(counts: np.ndarray) -> np.ndarray:
    """What single reports (..., 14, 3) add to `samples` F1 and exact match, float64 (..., 3), in 0..1.

    A report in which nothing is to be found and nothing was found adds 0 to `samples`, as in scikit-learn.
    """
    five = counts[..., _FIVE, :]
    return np.stack(
        [_f1(counts.sum(-2)) / 100, _f1(five.sum(-2)) / 100, (five[..., 1:].sum((-1, -2)) == 0).astype(float)], axis=-1
    )


def _f1(counts: np.ndarray) -> np.ndarray:
    """F1 in 0..100 of (..., 3) counts; 0 where there is nothing to find and nothing was found, as in scikit-learn."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return 100 * _ratio(2 * tp, 2 * tp + fp + fn)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(whole, dtype=np.float64), where=whole > 0)


def label_scores(
    counts: np.ndarray, prefix: str, flags: np.ndarray | None = None, n: int = 0
) -> dict[str, float | None]:
    """F1 in 0..100 from summed counts (14, 3), and from summed flags (3,) of ``n`` reports where these are given.

    ``<prefix>_f1`` is micro over 14 (headline); ``_f1_macro``, ``_f1_weighted`` (by the references' positives) and
    ``_f1_samples`` beside it, the same with a 5 over five; ``_exact5`` is the share of reports whose five all agree;
    ``_f1/<observation>`` is None for an observation that is neither in a reference nor in a hypothesis: in the means
    it counts 0 (scikit-learn's convention).
    """
    scores: dict[str, float | None] = {}
    each = _f1(counts)
    support = counts[:, 0] + counts[:, 2]
    for suffix, rows in (("", list(range(len(LABELS)))), ("5", _FIVE)):
        micro = "f1" if not suffix else "f1_micro5"
        scores[f"{prefix}_{micro}"] = float(_f1(counts[rows].sum(axis=0)))
        scores[f"{prefix}_f1_macro{suffix}"] = float(each[rows].mean())
        scores[f"{prefix}_f1_weighted{suffix}"] = float(_ratio((each * support)[rows].sum(), support[rows].sum()))
    if flags is not None:
        scores[f"{prefix}_f1_samples"], scores[f"{prefix}_f1_samples5"] = (
            100 * float(value) / n for value in flags[:2]
        )
        scores[f"{prefix}_exact5"] = float(flags[2]) / n
    for label, value, total in zip(LABELS, each, counts.sum(axis=1), strict=True):
        scores[f"{prefix}_f1/{label}"] = float(value) if total else None
    return scores


def classification_report(said: np.ndarray, true: np.ndarray, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The dictionary of scikit-learn's ``classification_report(true, said, target_names=names, output_dict=True)``.

    Args:
        said: what hypotheses have, bool (n, k).
        true: what references have, bool (n, k).
        names: names of the k observations.

    Returns:
        Each observation and ``micro avg``, ``macro avg``, ``weighted avg``, ``samples avg``, each with ``precision``,
        ``recall``, ``f1-score`` (0..1) and ``support``.
    """
    said, true = np.asarray(said, dtype=bool), np.asarray(true, dtype=bool)

    def rates(axis: int | None) -> np.ndarray:
        hits, found, wanted = ((x).sum(axis).astype(np.float64) for x in (said & true, said, true))
        both = found + wanted
        return np.stack([_ratio(hits, found), _ratio(hits, wanted), _ratio(2 * hits, both)], axis=-1)

    each, support = rates(0), true.sum(axis=0)
    weighted = each.T @ support / support.sum() if support.sum() else np.zeros(3)
    rows = dict(zip(names, zip(each, support, strict=True), strict=True))
    for name, values in (
        ("micro avg", rates(None)),
        ("macro avg", each.mean(axis=0)),
        ("weighted avg", weighted),
        ("samples avg", rates(1).mean(axis=0)),
    ):
        rows[name] = (values, support.sum())
    return {
        name: {
            "precision": float(values[0]),
            "recall": float(values[1]),
            "f1-score": float(values[2]),
            "support": float(total),
        }
        for name, (values, total) in rows.items()
    }
