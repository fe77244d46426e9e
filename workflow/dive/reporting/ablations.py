"""What an ablation changes, read off the settings of its method, so that no table depends on a method's name."""

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]

CELLS = ("dynamic_weighted", "static_weighted", "dynamic_uniform", "static_uniform")
"""The 2x2: state-conditioned (rank > 0) or static steering, decisive or uniform weights; the first cell is ours."""

WEIGHTS = ("pathology", "eos")
"""The weights among a method's ``weights``; its other keys say what is decisive."""

EFFECTS: dict[str, dict[str, float]] = {
    "dynamic, weighted": {"dynamic_weighted": 1, "static_weighted": -1},
    "dynamic, uniform": {"dynamic_uniform": 1, "static_uniform": -1},
    "dynamic": {"dynamic_weighted": 0.5, "static_weighted": -0.5, "dynamic_uniform": 0.5, "static_uniform": -0.5},
    "weighted, dynamic": {"dynamic_weighted": 1, "dynamic_uniform": -1},
    "weighted, static": {"static_weighted": 1, "static_uniform": -1},
    "weighted": {"dynamic_weighted": 0.5, "dynamic_uniform": -0.5, "static_weighted": 0.5, "static_uniform": -0.5},
    "interaction": {"dynamic_weighted": 1, "static_weighted": -1, "dynamic_uniform": -1, "static_uniform": 1},
}
"""Effects as weights of the cells: each factor where the other is on, where it is off, on average; the interaction is
(dynamic - static with decisive weights) - (dynamic - static with uniform weights)."""


def flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def changes(settings: Settings, base: Settings) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose value differs, with the value of the base and the other; None where there is none."""
    one, other = flat(base), flat(settings)
    keys = dict.fromkeys([*one, *other])
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def find_cells(methods: Mapping[str, Settings], ours: str) -> dict[str, str] | None:
    """Which methods are the cells of the 2x2 around a method.

    Args:
        methods: name -> settings, of one grid, in the configuration's order.
        ours: a steering method with ``rank`` > 0 and a weight other than 1.

    Returns:
        cell -> method, or None where a cell is missing: a cell must equal ours in everything else.
    """
    base = methods[ours]
    weights = base.get("weights", {})
    flat_weights = {key: 1 for key in WEIGHTS if key in weights}
    if not base.get("rank") or {**weights, **flat_weights} == weights:
        return None
    static, uniform = {"rank": 0}, {"weights": {**weights, **flat_weights}}
    wanted = dict(
        zip(CELLS, (base, {**base, **static}, {**base, **uniform}, {**base, **static, **uniform}), strict=True)
    )
    cells = {
        cell: next((name for name, settings in methods.items() if settings == other), None)
        for cell, other in wanted.items()
    }
    return None if None in cells.values() else {**cells, CELLS[0]: ours}


def contrasts_of(methods: Mapping[str, Settings], ours: list[str]) -> dict[str, dict[str, float]]:
    """The effects of the 2x2 of each of our methods as weights of methods: ``<ours>: <effect>`` -> method -> weight."""
    found = {}
    for name in ours:
        if cells := find_cells(methods, name):
            for effect, weights in EFFECTS.items():
                found[f"{name}: {effect}"] = {cells[cell]: float(weight) for cell, weight in weights.items()}
    return found
