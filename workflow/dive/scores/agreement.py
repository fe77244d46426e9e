"""How far the lexicon proxies can be trusted: what they read in synthetic references, held against what was written.

In the synthetic world the findings behind every report are known, so the proxies' error on references is measured and
not assumed. It says nothing about real reports, whose language is wider than the world's.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dive.annotation.vocabulary import read_vocabulary
from dive.data.studies import LABELS
from dive.files import atomic_path, write_json
from dive.parquet import read_table
from dive.progress import log
from dive.scores.labels import is_positive
from dive.scores.lexicon import Graph, Lexicon

OBSERVATION_OF = {
    "cardiomegaly": "Cardiomegaly",
    "effusion": "Pleural Effusion",
    "consolidation": "Consolidation",
    "pneumothorax": "Pneumothorax",
    "edema": "Edema",
    "nodule": "Lung Lesion",
    "atelectasis": "Atelectasis",
    "tube": "Support Devices",
    "line": "Support Devices",
    "pacemaker": "Support Devices",
}
"""CheXpert's name of a finding of the synthetic world; its other names have no truth there."""

DEVICES = "Support Devices"
SIDED = ("Pleural Effusion", "Consolidation", "Pneumothorax", "Lung Lesion", "Atelectasis")
SIDES = {"left": ("left",), "right": ("right",), "bilateral": ("left", "right"), "both": ("left", "right")}

Facts = set[tuple[str, str]]


def compare_lexicon(
    studies: Mapping[str, str], truths: Mapping[str, str], vocabulary: str, out_json: str, out_md: str
) -> None:
    """Compare labels and graphs of all references with the findings that they were written from.

    Args:
        studies: dataset -> ``studies.parquet``.
        truths: dataset -> the truth of the synthetic dataset (a bool column a finding and side).
        vocabulary: the vocabulary of the lexicon proxies (CSV).
        out_json: dataset -> ``labels`` and ``graph``, each with ``reports`` and, for all together (``all``) and by
            observation, ``tp``, ``fp``, ``fn``, ``precision``, ``recall`` and ``f1`` (0..100; null where undefined).
        out_md: the same as a table.
    """
    words = Lexicon(vocabulary)
    names = {surface.lower(): name for surface, name in read_vocabulary(vocabulary, ["observation"]).items()}
    found: dict[str, Any] = {}
    for dataset, path in studies.items():
        table = read_table(path, columns=["study_uid", "target"]).to_pydict()
        truth = read_table(truths[dataset]).to_pandas().set_index("study_uid")
        counts: dict[str, Counter] = {"labels": Counter(), "graph": Counter()}
        for uid, text in zip(table["study_uid"], table["target"], strict=True):
            findings = [name for name in truth.columns if name != "patient_uid" and truth.at[uid, name]]
            graph_truth = set(map(placed, findings))
            label_truth = {(observation, "") for observation, _ in graph_truth}
            if not {observation for observation, _ in graph_truth} - {DEVICES}:
                label_truth.add(("No Finding", ""))
            add(counts["labels"], label_facts(words.labels(text)), label_truth)
            add(counts["graph"], graph_facts(words.graph(text), names), graph_truth)
        found[dataset] = {kind: {"reports": len(table["target"]), **rates(counted)} for kind, counted in counts.items()}
        log.info(
            "%s: %d references, F1 of labels %.1f, of graph facts %.1f",
            *(
                dataset,
                len(table["target"]),
                found[dataset]["labels"]["all"]["f1"],
                found[dataset]["graph"]["all"]["f1"],
            ),
        )
    write_json(out_json, found)
    with atomic_path(out_md) as temporary:
        temporary.write_text(as_markdown(found), encoding="utf-8")


def placed(finding: str) -> tuple[str, str]:
    """``left_effusion`` -> ("Pleural Effusion", "left"); the side is empty where the finding has none."""
    side, _, kind = finding.rpartition("_")
    return OBSERVATION_OF[kind], side


def label_facts(states: np.ndarray) -> Facts:
    """The observations that are positive or uncertain, of those that the world knows."""
    known = {*OBSERVATION_OF.values(), "No Finding"}
    return {(label, "") for label, said in zip(LABELS, is_positive(states), strict=True) if said and label in known}


def graph_facts(graph: Graph, names: Mapping[str, str]) -> Facts:
    """Present findings with the sides that the graph's relations give them.

    A side reaches a finding as its modifier, as its place, or as a modifier of its place.
    """
    entities = graph["entities"]
    modifiers: dict[str, list[str]] = {}
    for name, entity in entities.items():
        for kind, target in entity["relations"]:
            if kind == "modify":
                modifiers.setdefault(target, []).append(name)
    facts: Facts = set()
    for name, entity in entities.items():
        observation = names.get(entity["tokens"])
        if entity["label"] == "Observation::definitely absent" or observation not in OBSERVATION_OF.values():
            continue
        places = [target for kind, target in entity["relations"] if kind == "located_at"]
        near = [*modifiers.get(name, ()), *places, *(other for place in places for other in modifiers.get(place, ()))]
        sides = [side for other in near for side in SIDES.get(entities[other]["tokens"], ())]
        if observation in SIDED:
            facts |= {(observation, side) for side in sides}
        else:
            facts.add((observation, ""))
    return facts


def add(counts: Counter, said: Facts, true: Facts) -> None:
    """Count hits, false alarms and misses by observation."""
    for outcome, facts in (("tp", said & true), ("fp", said - true), ("fn", true - said)):
        counts.update((observation, outcome) for observation, _ in facts)


def rates(counts: Counter) -> dict[str, dict[str, float | None]]:
    """Precision, recall and F1 in 0..100, of all and by observation."""
    observations = sorted({observation for observation, _ in counts})
    sums = {name: [counts[name, outcome] for outcome in ("tp", "fp", "fn")] for name in observations}
    sums = {"all": [sum(column) for column in zip(*sums.values(), strict=True)] or [0, 0, 0], **sums}
    return {
        name: {
            **{"tp": tp, "fp": fp, "fn": fn},
            "precision": 100 * tp / (tp + fp) if tp + fp else None,
            "recall": 100 * tp / (tp + fn) if tp + fn else None,
            "f1": 200 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        }
        for name, (tp, fp, fn) in sums.items()
    }


def as_markdown(found: Mapping[str, Any]) -> str:
    """A table a dataset."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield "# The lexicon proxies against the synthetic truth"
    yield ""
    yield "What the rules behind `lexicon_label_f1` and `lexicon_graph_f1` read in the references, held against the"
    yield "findings that the references were written from: precision, recall and F1 in percent. A graph fact is a"
    yield "present finding with its side. It measures the proxies on this world's language, not on real reports."
    for dataset, kinds in found.items():
        yield from ("", f"## {dataset} ({kinds['labels']['reports']} references)", "")
        yield "| observation | label P | label R | label F1 | graph P | graph R | graph F1 |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        rows = dict.fromkeys([*kinds["labels"], *kinds["graph"]])
        for name in rows:
            if name == "reports":
                continue
            cells = [
                "" if value is None else f"{value:.1f}"
                for kind in ("labels", "graph")
                for value in (kinds[kind].get(name, {}).get(rate) for rate in ("precision", "recall", "f1"))
            ]
            yield f"| {name} | {' | '.join(cells)} |"
