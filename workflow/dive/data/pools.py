"""The studies that the experiments use, drawn once, and the demonstrations that each of them is shown.

Every draw is by hash (`dive.data.draws`): another study in the data, another seed or another size of one
group leaves all other draws as they were, and a smaller group is the beginning of a larger one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dive.data.draws import hashes, mix
from dive.data.roots import DataError
from dive.data.studies import read_notes, read_studies
from dive.files import read_json, write_json
from dive.progress import progress

GROUPS = {"queries": "train", "demonstrations": "train", "validation": "validate", "test": "test"}


def select_pool(studies: str, sizes: dict[str, int | None], out: str) -> None:
    """Draw queries, demonstration pool, validation and test studies.

    Queries and demonstrations come from train and share no patient; with the patient-disjoint splits, neither
    do demonstrations and evaluation.

    Args:
        studies: path of ``studies.parquet``.
        sizes: studies in each of ``queries``, ``demonstrations``, ``validation``, ``test``; None is all there
        are. With both
            queries and demonstrations None, the training patients are divided in halves.
        out: path of the JSON to write: the four names -> lists of study_uid in the order of the draw.

    Raises:
        DataError: there are too few studies; names the config key.
    """
    table = read_studies(studies, columns=["study_uid", "patient_uid", "split"])
    dataset = read_notes(studies).get("dataset", "<name>")
    table = table.assign(rank=hashes(0, "pool", table["study_uid"])).sort_values(["rank", "study_uid"])
    train = table[table["split"] == "train"]
    if sizes["queries"] is None and sizes["demonstrations"] is None:
        half = hashes(0, "pool/halves", train["patient_uid"]) % np.uint64(2) == 0
        groups = {"queries": train[half], "demonstrations": train[~half]}
    elif sizes["demonstrations"] is None:
        # The queries come first, from the end of the order; all other patients may demonstrate.
        queries = train[::-1][: sizes["queries"]]
        groups = {"queries": queries, "demonstrations": others(train, queries)}
    else:
        # Demonstrations from the beginning of the order, queries from its end: the sizes disturb each other
        # only when a patient would be in both.
        demonstrations = train[: sizes["demonstrations"]]
        groups = {"queries": others(train, demonstrations)[::-1], "demonstrations": demonstrations}
    groups["validation"] = table[table["split"] == "validate"]
    groups["test"] = table[table["split"] == "test"]
    pool, errors = {}, []
    for group, split in GROUPS.items():
        available = groups[group]["study_uid"].tolist()
        wanted = sizes[group]
        if not available or (wanted is not None and len(available) < wanted):
            asked, left = "all" if wanted is None else wanted, " left" if split == "train" else ""
            errors.append(
                f"datasets.{dataset}.pool.{group} asks for {asked} studies, but {split} has {len(available)}{left}: "
                f"lower it, or relax datasets.{dataset}.selection"
            )
        pool[group] = available[:wanted]
    if errors:
        raise DataError("\n".join(errors))
    assert_disjoint(pool, table)
    write_json(out, pool)


def others(studies: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The studies of patients that have none in ``chosen``."""
    return studies[~studies["patient_uid"].isin(set(chosen["patient_uid"]))]


def assert_disjoint(pool: dict[str, Sequence[str]], studies: pd.DataFrame) -> None:
    """Raise `DataError` when a demonstration's patient is also a query's or an evaluated one."""
    patient = dict(zip(studies["study_uid"], studies["patient_uid"], strict=True))
    shown = {patient[uid] for uid in pool["demonstrations"]}
    for group in ("queries", "validation", "test"):
        both = sorted(shown & {patient[uid] for uid in pool[group]})
        if both:
            raise DataError(f"{len(both)} patients are in demonstrations and {group}, the first is {both[0]}")


SPARE = 16
"""Candidates beside K that a shared draw keeps, to take the places of demonstrations without a readable image."""


def draw_demonstrations(
    pool: str, studies: str, shots: int, seed: int, out: str, draw: int = 0, shared: bool = False
) -> None:
    """Draw ``shots`` demonstrations for every query, validation and test study, each from another patient.

    Fewer shots are the beginning of more. The draws of one study depend on its name, the seed and the
    candidates only.

    Args:
        pool: path of the pool's JSON.
        studies: path of ``studies.parquet``.
        shots: K, at least 0.
        seed: of the draw.
        out: path of the JSON to write: queries, validation, test -> study_uid -> K demonstration study_uids.
        draw: number of the draw, from 0; each has a stream of its own, and all but the first are for queries alone.
        shared: one set for all studies, which the JSON repeats for each; ``spare`` lists up to `SPARE` candidates that
            would have been next.

    Raises:
        DataError: the pool holds demonstrations of fewer than ``shots`` patients.
    """
    members: dict[str, list[str]] = read_json(pool)
    table = read_studies(studies, columns=["study_uid", "patient_uid"])
    assert_disjoint(members, table)
    patient = dict(zip(table["study_uid"], table["patient_uid"], strict=True))
    candidates = sorted(members["demonstrations"])
    of_patient = [patient[uid] for uid in candidates]
    if len(set(of_patient)) < shots:
        dataset = read_notes(studies).get("dataset", "<name>")
        raise DataError(
            f"shots: {shots} demonstrations need as many patients, but the pool has {len(set(of_patient))}: "
            f"raise datasets.{dataset}.pool.demonstrations or lower shots"
        )
    keys = hashes(seed, "demonstrations/candidates", candidates)
    stream = f"demonstrations/queries/{draw}" if draw else "demonstrations/queries"
    groups = ("queries",) if draw else ("queries", "validation", "test")
    drawn: dict[str, Any] = {}
    if shared:
        (own,) = hashes(seed, stream, [""])
        ranked = nearest(mix(keys ^ own), candidates, of_patient, min(shots + SPARE, len(set(of_patient))))
        drawn = {group: dict.fromkeys(members[group], ranked[:shots]) for group in groups}
        drawn["spare"] = ranked[shots:]
    else:
        for group in groups:
            names = members[group]
            own = hashes(seed, stream, names)
            drawn[group] = {
                uid: nearest(mix(keys ^ key), candidates, of_patient, shots)
                for uid, key in progress(list(zip(names, own, strict=True)), f"demonstrations of {group}")
            }
    write_json(out, drawn)


def nearest(order: np.ndarray, candidates: list[str], of_patient: list[str], shots: int) -> list[str]:
    """The ``shots`` candidates with the smallest numbers in ``order``, (n,) uint64, skipping patients already drawn."""
    if shots == 0:
        return []
    near = min(len(order), 4 * shots + 16)
    # A partial sort does unless many of the nearest share their patients.
    for ranked in (np.argpartition(order, near - 1)[:near], np.arange(len(order))):
        chosen: dict[str, int] = {}
        for index in ranked[np.argsort(order[ranked], kind="stable")]:
            chosen.setdefault(of_patient[index], int(index))
            if len(chosen) == shots:
                return [candidates[i] for i in chosen.values()]
    raise AssertionError("the caller has checked that there are enough patients")
