"""Rewards between two report graphs in RadGraph's form, equal to those of the radgraph package (0.1.18)."""

from collections.abc import Mapping
from typing import Any

LEVELS = ("simple", "partial", "complete")
"""The three rewards of the radgraph package, in its order; its "RadGraph F1" is `partial`."""


def graph_rewards(hypothesis: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[float, float, float]:
    """Rewards `simple`, `partial` and `complete` of one report in 0..100, as the radgraph package computes them.

    Each is the F1 of two sets. simple: (tokens, label) of every entity; partial: with True where the entity has a
    relation; complete: (tokens, label, relation, tokens of its target) for every relation, (tokens, label) for
    entities without. A graph without entities scores 0, against an empty one too.
    """
    if not hypothesis["entities"] or not reference["entities"]:
        return 0.0, 0.0, 0.0
    simple, partial, complete = (
        _set_f1(facts(hypothesis["entities"]), facts(reference["entities"]))
        for facts in (_simple_facts, _partial_facts, _complete_facts)
    )
    return simple, partial, complete


def _simple_facts(entities: Mapping[str, Any]) -> set[tuple]:
    return {(entity["tokens"], entity["label"]) for entity in entities.values()}


def _partial_facts(entities: Mapping[str, Any]) -> set[tuple]:
    return {
        (entity["tokens"], entity["label"], True) if entity["relations"] else (entity["tokens"], entity["label"])
        for entity in entities.values()
    }


def _complete_facts(entities: Mapping[str, Any]) -> set[tuple]:
    facts: set[tuple] = set()
    for entity in entities.values():
        if not entity["relations"]:
            facts.add((entity["tokens"], entity["label"]))
        # The package lower-cases the tokens of related entities only.
        for kind, target in entity["relations"]:
            facts.add((entity["tokens"].lower(), entity["label"], kind, entities[target]["tokens"].lower()))
    return facts


def _set_f1(said: set[tuple], true: set[tuple]) -> float:
    common = len(said & true)
    return 200 * common / (len(said) + len(true)) if common else 0.0
