"""The stage that turns a dataset on disk into ``studies.parquet``: read, select, split, record."""

import csv
from collections.abc import Callable
from importlib import import_module
from typing import Any

from dive.data.roots import DataError, check_root, require_root
from dive.data.selection import SMALL_TEST, Selection, select
from dive.data.studies import write_studies
from dive.files import atomic_path, write_json
from dive.progress import log

__all__ = ["check_root", "reader_of", "split_dataset"]


def reader_of(name: str) -> Callable[..., Any]:
    """``read`` of the module of this package that reads a layout: ``mimic_cxr`` or ``chexpert_plus``.

    It is loaded by name, so that no import leads to it and an edit of one reader splits its own datasets alone anew.
    """
    return import_module(f"dive.data.{name}").read


def split_dataset(
    dataset: str, reader: str, root: str, selection: dict[str, Any], studies: str, excluded: str, counts: str
) -> None:
    """Read a dataset and write the selected studies, the excluded ones with their rule, and the counts of the
    flow.

    Args:
        dataset: its name in the config.
        reader: ``mimic_cxr`` or ``chexpert_plus``.
        root: folder of the data.
        selection: ``datasets.<dataset>.selection``; see `dive.data.selection.Selection`.
        studies: path of ``studies.parquet`` to write.
        excluded: path of ``excluded.csv`` (study_uid, rule, detail) to write.
        counts: path of ``counts.json`` to write: raw, flow by rule, used by split, notes.

    Raises:
        DataError: data are missing, unreadable beyond the limit, or patients lie in several splits.
    """
    require_root(reader, root, dataset, selection)
    log.info("reading %s at %s", reader, root)
    try:
        rules = Selection.from_config(selection)
        reading = reader_of(reader)(root, selection)
        selected, left_out, flow = select(reading, root, reader, rules)
    except DataError as error:
        raise DataError(f"datasets.{dataset}: {error}") from None
    used = flow["used"]
    for step in flow["flow"]:
        log.info("%-24s left out %7d, remaining %7d", step["rule"], step["left_out"], step["remaining"])
    for split, numbers in used.items():
        log.info("%-24s %7d studies of %7d patients", split, numbers["studies"], numbers["patients"])
    if rules.convention == "official_valid" and used["test"]["studies"] < SMALL_TEST:
        log.warning("convention official_valid leaves %d test studies: intervals will be wide", used["test"]["studies"])
        flow["notes"]["small_test_set"] = used["test"]["studies"]
    notes = {"dataset": dataset, "reader": reader, "convention": rules.convention}
    write_studies(selected, studies, notes)
    with atomic_path(excluded) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["study_uid", "rule", "detail"])
        writer.writerows(left_out)
    write_json(counts, {"dataset": dataset, **flow})
