"""When one of several differences counts as resolved: Holm's correction, and an interval that agrees."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p values, in the order given: max over the k smallest of min(1, (m - k + 1) p_(k))."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def resolved(low: float, high: float, p_adjusted: float, alpha: float) -> int:
    """1 or -1 where a difference is above or below 0 by its interval *and* by its adjusted p value; else 0."""
    if p_adjusted >= alpha:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def family(
    comparison: Mapping[str, Any], ours: str, against: Collection[str], metrics: Collection[str], alpha: float
) -> dict[tuple[str, str], dict[str, Any]]:
    """The comparisons of one table's block, corrected together.

    Args:
        comparison: what :func:`dive.scores.significance.compare_methods` wrote for a dataset and backbone.
        ours: the method that is compared.
        against: the methods that the table compares it with.
        metrics: the metrics that the table shows.
        alpha: level of the family.

    Returns:
        (method, metric) -> the comparison with ``p_holm`` and ``resolved`` (1 ours is above, -1 below, 0 neither).
    """
    rows = [
        row
        for row in comparison["comparisons"]
        if row["method"] == ours and row["against"] in against and row["metric"] in metrics
    ]
    adjusted = holm([row["p"] for row in rows])
    return {
        (row["against"], row["metric"]): {
            **row,
            "p_holm": p,
            "resolved": resolved(row["low"], row["high"], p, alpha),
        }
        for row, p in zip(rows, adjusted, strict=True)
    }
