"""CheXpert Plus (Chambon et al. 2024): one table with a row an image, PNG images, CheXbert labels as JSON Lines."""

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dive.data.roots import DataError, find_chexpert_table, labels_of
from dive.data.studies import LABELS, Reading, collapse, count_tables, sample_studies

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
PATH = r"(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<view>view(?P<number>\d+)[^/]*)\.\w+$"


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
    notes["studies_without_labels"] = int(studies[list(LABELS)].isna().all(axis=1).sum())
    notes["studies_without_findings"] = int(studies["findings"].isna().sum())
    studies = sample_studies(studies, sample)

    # A broken character would teach the model to write it; the table is decoded with U+FFFD in its place.
    broken = studies["findings"].str.contains("\ufffd", na=False) | studies["impression"].str.contains(
        "\ufffd", na=False
    )
    bad = broken | studies["study_uid"].isin(split_twice)
    for study in studies["study_uid"][bad]:
        if study in split_twice:
            excluded.append((study, "tables_disagree", "its images lie in two splits"))
        else:
            excluded.append((study, "undecodable_report", "a section is not UTF-8"))
    return Reading(studies[~bad].reset_index(drop=True), excluded, notes, sizes, Locator(root))


def read_rows(root: Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]], dict[str, int]]:
    """The table's rows with study_uid, patient_uid and view, sorted by patient, study and view number."""
    path = find_chexpert_table(root)
    if path is None:
        raise DataError(f"no df_chexpert_plus_240401.csv in {root} (the dataset's root in the config)")
    try:
        rows = pd.read_csv(
            path,
            usecols=list(COLUMNS),
            dtype="str",
            keep_default_na=False,
            na_values=[""],
            encoding_errors="replace",
        )
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected are the columns {', '.join(COLUMNS)}") from error
    parts = rows["path_to_image"].str.extract(PATH)
    bad = parts["study"].isna()
    excluded = [
        (str(image), "bad_path", "path_to_image names no patient, study and view")
        for image in rows["path_to_image"][bad]
    ]
    notes = {
        "images": len(rows),
        "patients": int(parts["patient"].nunique()),
        "repeated_rows": int(rows["path_to_image"][~bad].duplicated().sum()),
    }
    rows, parts = rows[~bad], parts[~bad]
    lateral = rows["frontal_lateral"].fillna(parts["view"]).str.lower().str.contains("lateral")
    view = rows["ap_pa"].fillna("FRONTAL").str.strip().str.upper()
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

    The first image of a study that has any label speaks for it.

    The files are JSON Lines whatever their suffix says: an object a line, with path_to_image and the fourteen
    observations.
    """
    path = root / "chexbert_labels" / f"{section}_fixed.json"
    if not path.is_file():
        raise DataError(f"{path} is missing: get chexbert_labels of CheXpert Plus, or set selection.labels to null")
    values: dict[str, list[float]] = {}
    differing, unlabeled = set(), repr([np.nan] * len(LABELS))
    for number, record in enumerate(json_lines(path), start=1):
        match = re.search(PATH, str(record.get("path_to_image", "")))
        if match is None:
            raise DataError(f"{path}, line {number}: no path_to_image that names patient, study and view")
        # NaN is unlike itself, so equal rows are told by how they are written.
        row = [np.nan if record.get(label) is None else float(record[label]) for label in LABELS]
        uid = f"{match['patient']}/{match['study']}"
        if uid not in values or repr(values[uid]) == unlabeled:
            values[uid] = row
        elif repr(row) not in (unlabeled, repr(values[uid])):
            differing.add(uid)
    return pd.DataFrame.from_dict(values, orient="index", columns=list(LABELS), dtype=float), len(differing)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON Lines file; a file that is one JSON list is read as well."""
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                if number == 1 and line.lstrip().startswith("["):
                    yield from json.loads(path.read_text(encoding="utf-8"))
                    return
                raise DataError(f"{path}, line {number}: no JSON object ({error})") from error
            yield from value if isinstance(value, list) else [value]


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
