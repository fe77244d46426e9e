"""CheXpert Plus (Chambon et al. 2024): one table with a row an image, PNG images, CheXbert labels as JSON Lines."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dive.data.csv_tables import plain, read_csv, split_names, view_codes
from dive.data.downloads import table_problem
from dive.data.roots import DataError, find_chexpert_table, labels_of
from dive.data.studies import LABELS, Reading, collapse, count_tables, sample_studies

SPLITS = ("train", "valid")
COLUMNS = (
    "path_to_image",
    "frontal_lateral",
    "ap_pa",
    "section_clinical_history",
    "section_history",
    "section_findings",
    "section_impression",
    "split",
)
SECTIONS = ("section_findings", "section_impression", "section_clinical_history", "section_history")
PATH = (
    r"(?P<patient>patient[0-9]{1,18})/(?P<study>study[0-9]{1,18})/"
    r"(?P<view>view(?P<number>[0-9]{1,18})[^/]{0,40})\.\w{1,5}$"
)
NAMES = {plain(label): label for label in LABELS}
NAN = float("nan")
LABELS_SET = frozenset(LABELS)

FROM = "get it again from https://aimi.stanford.edu/datasets/chexpert-plus"
"""What to do about a damaged table."""

TWICE = f"names a label twice; {FROM}"


def read(root: str | Path, selection: dict[str, Any], sample: int | None = None) -> Reading:
    """Read every study of the table.

    The key of a study is (patient, study) of the image's path: accession numbers are no key, and ``report``
    is captured an image and differs within a study, so it is not read at all. Sections that differ between
    the images of a study: the text of the lowest view number that has one is taken, and such studies are
    counted in the notes.

    Args:
        root: the folder with the table, ``chexbert_labels/`` and the images.
        selection: of the config; ``labels`` is findings, impression or report: the CheXbert table to read.
        sample: keep so many studies only, drawn by hash; None keeps all.
    """
    root = Path(root)
    rows, excluded, notes = read_rows(root)
    sizes = count_tables(rows.rename(columns={"patient_uid": "subject_id", "study_uid": "study_id"}))
    labels = labels_of("chexpert_plus", selection)
    by_study = rows.groupby("study_uid", sort=False)
    texts = by_study[list(SECTIONS)].first()  # first() skips nulls, and rows are sorted by view number
    for section in SECTIONS[:2]:
        notes[f"studies_whose_{section}_differ"] = int((by_study[section].nunique() > 1).sum())
    # An image that the table names twice is one image; its first row says its view.
    images = rows.drop_duplicates("path_to_image")
    first = ~images["study_uid"].duplicated()
    studies = images.loc[first, ["study_uid", "patient_uid", "split"]].set_index("study_uid", drop=False)
    distinct = by_study["split"].nunique()
    split_twice = set(distinct.index[distinct > 1])
    starts = np.flatnonzero(first)[1:]
    studies["image_paths"] = [list(part) for part in np.split(images["path_to_image"].to_numpy(object), starts)]
    studies["views"] = [list(part) for part in np.split(images["view"].to_numpy(object), starts)]
    studies["findings"] = texts["section_findings"]
    studies["impression"] = texts["section_impression"]
    studies["indication"] = texts["section_clinical_history"].where(
        texts["section_clinical_history"].notna(), texts["section_history"]
    )
    table, differing = read_labels(root, labels) if labels else (pd.DataFrame(columns=list(LABELS), dtype=float), 0)
    studies = studies.join(table)
    notes["studies_whose_labels_differ"] = differing
    notes["label_rows_without_study"] = len(table.index.difference(studies.index))
    if len(table) and notes["label_rows_without_study"] == len(table):
        path = root / "chexbert_labels" / f"{labels}_fixed.json"
        raise DataError(f"{path}: its path_to_image are no study of the table; get both of the same release")
    notes["studies_without_labels"] = int(studies[list(LABELS)].isna().all(axis=1).sum())
    notes["studies_without_findings"] = int(studies["findings"].isna().sum())
    studies = sample_studies(studies, sample)

    # A broken character would teach the model to write it: U+FFFD stands for bytes without a meaning.
    broken = studies["findings"].str.contains("\ufffd", na=False) | studies["impression"].str.contains(
        "\ufffd", na=False
    )
    bad = broken | studies["study_uid"].isin(split_twice)
    for study in studies["study_uid"][bad]:
        if study in split_twice:
            excluded.append((study, "tables_disagree", "its images lie in two splits"))
        else:
            excluded.append((study, "undecodable_report", "a section has lost characters, or bytes without a meaning"))
    return Reading(studies[~bad].reset_index(drop=True), excluded, notes, sizes, Locator(root))


def read_rows(root: Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]], dict[str, int]]:
    """The table's rows with study_uid, patient_uid and view, sorted by patient, study and view number."""
    path = find_chexpert_table(root)
    if path is None:
        raise DataError(f"no df_chexpert_plus_240401.csv in {root} (the dataset's root in the config)")
    table = read_csv(path, COLUMNS, source=FROM)
    rows = table.frame
    if rows.empty:
        raise DataError(f"{path} has no row; {FROM}")
    parts = rows["path_to_image"].str.extract(PATH)
    bad = parts["study"].isna()
    if bad.all():
        raise DataError(
            f"{path}: no path_to_image is like train/patient42142/study5/view1_frontal.jpg; is it another table?"
        )
    # A cell that is no path may be any text, so it is shown only where it looks like one.
    shown = rows["path_to_image"][bad]
    shown = shown.where(shown.str.fullmatch(r"[\w./-]{1,100}").fillna(False))
    excluded = [
        (f"row {index + 2}" if pd.isna(image) else image, "bad_path", "path_to_image names no patient, study and view")
        for index, image in shown.items()
    ]
    notes = {
        "images": len(rows),
        "patients": int(parts["patient"].nunique()),
        "repeated_rows": int(rows["path_to_image"][~bad].duplicated().sum()),
        "cells_not_utf_8": sum(table.recoded.values()),
    }
    rows = rows.assign(split=split_names(table, rows["split"], SPLITS))
    rows, parts = rows[~bad], parts[~bad]
    side = rows["frontal_lateral"].fillna(parts["view"]).str.lower()
    lateral = side.str.contains("lateral", regex=False)
    frontal = np.where(side.str.contains("frontal", regex=False), "FRONTAL", "")
    view = view_codes(rows["ap_pa"]).where(rows["ap_pa"].notna(), frontal)
    notes["images_without_view"] = int((rows["ap_pa"].isna() & ~lateral).sum())
    rows = rows.assign(
        patient_uid=parts["patient"],
        study_uid=parts["patient"] + "/" + parts["study"],
        view=view.where(~lateral, "LATERAL"),
        patient_number=parts["patient"].str.removeprefix("patient").astype("int64"),
        study_number=parts["study"].str.removeprefix("study").astype("int64"),
        number=parts["number"].astype("int64"),
    )
    for section in SECTIONS:
        rows[section] = pd.Series([collapse(text) for text in rows[section]], index=rows.index, dtype="str")
    order = ["patient_number", "study_number", "number", "path_to_image"]
    rows = rows.sort_values(order, ignore_index=True, kind="stable")
    return rows, excluded, notes


def read_labels(root: Path, section: str) -> tuple[pd.DataFrame, int]:
    """CheXbert's labels of a section, by study_uid, and the number of studies whose images have different ones.

    The first image of a study that has any label speaks for it, in the order of the view numbers.

    The files are JSON Lines whatever their suffix says: an object a line, with path_to_image and the fourteen
    observations, whose names may differ in case.

    Raises:
        DataError: the file is missing or is no such file, or a label is no number; file and line are named, and
            nothing that stands there.
    """
    path = root / "chexbert_labels" / f"{section}_fixed.json"
    if not path.is_file():
        raise DataError(f"{path} is missing: get chexbert_labels of CheXpert Plus, or set selection.labels to null")
    best: dict[str, tuple[tuple[int, str], list[float]]] = {}
    differing, unlabeled = set(), repr([np.nan] * len(LABELS))
    named = others = False
    for number, record in json_lines(path):
        match = re.search(PATH, str(record.get("path_to_image", "")))
        if match is None:
            raise DataError(f"{path}, line {number}: no path_to_image that names patient, study and view; {FROM}")
        record = by_label(record, path, number)
        if len(record) > 1:
            others = True
            named = named or not LABELS_SET.isdisjoint(record)
        values = map(record.get, LABELS)
        row = [
            value if type(value) is float else as_number(value, label, path, number)
            for value, label in zip(values, LABELS, strict=True)
        ]
        # NaN is unlike itself, so equal rows are told by how they are written.
        uid, written = f"{match['patient']}/{match['study']}", repr(row)
        place = (int(match["number"]), match["view"])
        if uid not in best or repr(best[uid][1]) == unlabeled:
            best[uid] = (place, row)
        elif written != unlabeled:
            if written != repr(best[uid][1]):
                differing.add(uid)
            if place < best[uid][0]:
                best[uid] = (place, row)
    if others and not named:
        raise DataError(
            f"{path}: no line has a label named {LABELS[0]}, {LABELS[1]} or any other of CheXbert's; {FROM}"
        )
    values = {uid: row for uid, (_, row) in best.items()}
    labels = pd.DataFrame.from_dict(values, orient="index", columns=list(LABELS), dtype=float)
    if np.isinf(labels.to_numpy()).any():
        raise DataError(f"{path}: a label is infinite; labels are 1, 0, -1 or null; {FROM}")
    return labels, len(differing)


def by_label(record: dict[str, Any], path: Path, line: int) -> dict[str, Any]:
    """A line's object under the names of LABELS, from names that differ in case, blanks and underscores.

    Raises:
        DataError: two names are those of one label; file and line are named.
    """
    if len(record) == 1 or (len(record) == len(LABELS) + 1 and record.keys() >= LABELS_SET):
        return record
    named = {NAMES.get(plain(key), key): value for key, value in record.items()}
    if len(named) < len(record):
        raise DataError(f"{path}, line {line}: {TWICE}")
    return named


def as_number(value: Any, label: str, path: Path, line: int) -> float:
    """A label as a float, NaN where there is none.

    Raises:
        DataError: it is no finite number.
    """
    if value is None:
        return NAN
    try:
        if isinstance(value, str):
            value = value.strip() or NAN
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isinf(number) or isinstance(value, bool):
        raise DataError(f"{path}, line {line}: its {label} is no number; labels are 1, 0, -1 or null; {FROM}")
    return number


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers of lines, and the objects in them; a file that is one JSON list is read as well.

    Raises:
        DataError: a line is no object; file and line are named.
    """
    problem = table_problem(path) if path.stat().st_size else None
    if problem:
        raise DataError(f"{path}: {problem}")
    try:
        with path.open(encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, start=1):
                if not line.strip():
                    continue
                whole = number == 1 and line.lstrip().startswith("[")
                value = json.loads(line + handle.read() if whole else line, object_pairs_hook=named_once)
                for record in value if isinstance(value, list) else [value]:
                    if not isinstance(record, dict):
                        raise DataError(f"{path}, line {number}: no JSON object; {FROM}")
                    yield number, record
    except KeyError:
        raise DataError(f"{path}, line {number}: {TWICE}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; {FROM}") from None
    except (json.JSONDecodeError, RecursionError):
        raise DataError(f"{path}, line {number}: no JSON object, as when the file is cut off; {FROM}") from None


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; KeyError where a key is there twice, of which the last would win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeyError
    return found


class Locator:
    """Image files of CheXpert Plus by (patient, study, view), wherever the copy keeps them.

    The table says ``train/patient1/study1/view1_frontal.jpg``; on disk it is often ``.png``, under ``PNG/``
    or ``PNG/PNG/``, and sometimes without the split folder. The pattern that fitted last is tried first, so a
    regular copy costs one look an image.
    """

    BASES = ("", "PNG/", "PNG/PNG/")
    SUFFIXES = (".png", ".jpg", ".jpeg")

    def __init__(self, root: Path) -> None:
        self._root = root
        self._patterns = [
            (base, split, suffix) for base in self.BASES for split in (True, False) for suffix in self.SUFFIXES
        ]

    def __call__(self, path: str) -> tuple[str | None, list[str]]:
        match = re.search(PATH, path)
        if match is None:
            return None, [path]
        split = path[: match.start()]
        image = f"{match['patient']}/{match['study']}/{match['view']}"
        tried = []
        patterns = self._patterns
        for pattern in patterns:
            base, with_split, suffix = pattern
            candidate = base + (split if with_split else "") + image + suffix
            tried.append(candidate)
            if (self._root / candidate).is_file():
                # A new list, never a change in place: several threads may be looking.
                self._patterns = [pattern, *(other for other in patterns if other != pattern)]
                return candidate, tried
        return None, tried
