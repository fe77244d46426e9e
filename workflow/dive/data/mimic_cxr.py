"""MIMIC-CXR-JPG 2.x images and tables with the reports of MIMIC-CXR (Johnson et al. 2019)."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dive.data.csv_tables import integers, numbers, read_csv, split_names, view_codes
from dive.data.mimic_reports import Problem, Reports, count_strays
from dive.data.roots import DataError, find_reports, find_table, labels_of
from dive.data.sections import SECTIONED_BY_HAND, last_sections
from dive.data.studies import LABELS, SPLITS, Reading, collapse, count_tables, sample_studies
from dive.progress import progress

# NegBio's older tables and the radiologists' use this name.
ALIASES = {"airspace opacity": "Lung Opacity"}

FROM = "get it again from https://physionet.org/content/mimic-cxr-jpg/"
"""What to do about a damaged table."""

NO_LABELS = pd.DataFrame(columns=list(LABELS), dtype=float)


def read(root: str | Path, selection: dict[str, Any], sample: int | None = None) -> Reading:
    """Read every study that the tables name; nothing is left out here without being listed.

    Studies are what ``split`` and ``metadata`` list; the split is the official one (train, validate, test).
    Reports may lie in any of the layouts of `find_reports`; a study takes the first copy found. Sections are
    the official parser's. Reports and study folders that no table names belong to no study: they are counted.

    Args:
        root: the folder with the tables and ``files/``.
        selection: of the config; ``reports`` is another place of the reports, ``labels`` the table of labels.
        sample: read the reports of so many studies only, drawn by hash; None reads all.
    """
    root = Path(root)
    images, excluded, notes = read_images(root)
    unlisted, allowed = notes["images_without_metadata"], selection.get("max_unreadable", 0.05)
    if selection.get("views", "frontal") == "frontal" and unlisted > max(1, allowed * notes["images"]):
        raise DataError(
            f"{find_table(root, 'metadata')} lacks {unlisted} of the {notes['images']} images of the split table, so "
            f"which of them are lateral is unknown; {FROM}, or raise selection.max_unreadable to use them all the same"
        )
    if notes["images_without_view"] >= len(images) and selection.get("views", "frontal") == "frontal":
        raise DataError(
            f"{find_table(root, 'metadata')}: its ViewPosition is empty for every image, so which of them are lateral "
            f"is unknown; {FROM}, or set selection.views to all"
        )
    sizes = count_tables(images)
    studies = group_images(images)
    known = {*(f"s{study}" for study in studies.index), *(study for study, _, _ in excluded)}
    labels = labels_of("mimic_cxr", selection)
    table, notes["label_rows_without_id"] = read_labels(root, labels) if labels else (NO_LABELS, 0)
    studies = studies.join(table)
    notes["label_rows_without_study"] = len(table.index.difference(studies.index))
    notes["studies_without_labels"] = int(studies[list(LABELS)].isna().all(axis=1).sum())
    if len(table) and notes["label_rows_without_study"] == len(table):
        raise DataError(
            f"{find_table(root, labels.replace('_', '-'))}: its study_id are no study of the split table; "
            "get both of the same release"
        )

    studies = sample_studies(studies, sample)
    studies["study_uid"] = [f"s{study}" for study in studies.index]
    studies["patient_uid"] = [f"p{subject}" for subject in studies["subject_id"]]
    reports = Reports(find_reports(Path(selection["reports"]) if selection.get("reports") else root))
    findings, impressions, indications, kept = [], [], [], []
    pairs = list(zip(studies["patient_uid"], studies["study_uid"], strict=True))
    for (_, study), text in zip(pairs, progress(reports.read(pairs), "reports", len(pairs)), strict=True):
        sections = {} if isinstance(text, Problem) else last_sections(text)
        if isinstance(text, Problem):
            excluded.append((study, text.rule, text.detail))
        elif study in SECTIONED_BY_HAND:
            excluded.append((study, "sectioned_by_hand", "the official code has no sections of this report"))
        kept.append(not isinstance(text, Problem) and study not in SECTIONED_BY_HAND)
        findings.append(collapse(sections.get("findings")))
        impressions.append(collapse(sections.get("impression")))
        indications.append(collapse(sections.get("indication") or sections.get("history")))
    notes |= count_strays(root / "files", reports, known)
    notes["reports_not_utf_8"] = reports.recoded
    del reports  # a zip's directory takes 100 MB
    studies["findings"], studies["impression"], studies["indication"] = findings, impressions, indications
    studies = studies[np.array(kept, dtype=bool)].reset_index(drop=True)
    return Reading(studies.drop(columns="subject_id"), excluded, notes, sizes, Locator(root))


def read_images(root: Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]], dict[str, int]]:
    """Join split and metadata by dicom_id; returns the images of sound studies, excluded studies, and counts.

    The frame has dicom_id, study_id, subject_id, split, view, sorted by study and dicom_id.
    """
    split, notes = read_table(root, "split", "split")
    metadata, more = read_table(root, "metadata", "ViewPosition")
    notes = {name: number + more[name] for name, number in notes.items()}
    both = split.merge(metadata, on="dicom_id", how="outer", suffixes=("", "_metadata"), indicator="seen")
    only_metadata = (both["seen"] == "right_only").to_numpy()
    in_both = (both["seen"] == "both").to_numpy()
    if 2 * in_both.sum() < len(split):
        raise DataError(
            f"{find_table(root, 'metadata')} has rows for {in_both.sum()} of the {len(split)} images of the split "
            "table, so which of them are lateral is unknown; get both tables of the same release"
        )
    for column in ("study_id", "subject_id"):
        both[column] = both[column].where(~only_metadata, both[f"{column}_metadata"]).astype("int64")
    clash = np.zeros(len(both), dtype=bool)
    for column in ("study_id", "subject_id"):
        clash |= in_both & (both[column] != both[f"{column}_metadata"]).to_numpy()
    by_study = both.groupby("study_id")
    clashing = set(both["study_id"][clash]) | set(both["study_id_metadata"][clash].astype("int64"))
    for column in ("subject_id", "split"):
        distinct = by_study[column].nunique()
        clashing |= set(distinct.index[distinct > 1])
    splitless = by_study["split"].count()
    splitless = set(splitless.index[splitless == 0]) - clashing
    excluded = [
        (f"s{study}", "tables_disagree", "split and metadata name another patient, study or split for its images")
        for study in sorted(clashing)
    ]
    excluded += [(f"s{study}", "no_split", "in the metadata, not in the split table") for study in sorted(splitless)]
    notes |= {
        "images": len(both),
        "patients": int(both["subject_id"].nunique()),
        "images_without_metadata": int((both["seen"] == "left_only").sum()),
        "images_without_split": int(only_metadata.sum()),
        "images_without_view": int((both["ViewPosition"].isna() & ~only_metadata).sum()),
    }
    sound = ~both["study_id"].isin(clashing) & ~only_metadata
    images = both.loc[sound, ["dicom_id", "study_id", "subject_id", "split"]]
    images = images.assign(view=view_codes(both.loc[sound, "ViewPosition"]))
    return images.sort_values(["study_id", "dicom_id"], ignore_index=True), excluded, notes


def read_table(root: Path, name: str, column: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows of split or metadata: dicom_id, study_id, subject_id as integers, and ``column``; dates never parsed.

    Rows without anything, and rows that repeat another one, are dropped and counted.

    Raises:
        DataError: an id is missing or no number, or two rows contradict each other; file and image are named.
    """
    path = require_table(root, name)
    table = read_csv(path, ["dicom_id", "study_id", "subject_id", column], source=FROM)
    rows = table.frame.assign(study_id=integers(table, "study_id", "s"), subject_id=integers(table, "subject_id", "p"))
    lacking = rows["dicom_id"].isna().astype(int) + (rows["study_id"] < 0) + (rows["subject_id"] < 0)
    partly = (lacking > 0) & (lacking < 3)
    if partly.any():
        raise DataError(f"{path}, {table.row(partly)}: it lacks an id, of the image, the study or the patient; {FROM}")
    whole = rows[lacking == 0]
    if whole.empty:
        raise DataError(f"{path} has no row that names an image; {FROM}")
    whole = whole.assign(**{column: whole[column].str.upper()})  # rows that capitals alone tell apart are the same
    kept = whole.drop_duplicates()
    repeated = kept["dicom_id"].duplicated()
    if repeated.any():
        image = kept["dicom_id"][repeated].iloc[0]
        image = image if re.fullmatch(r"[0-9A-Za-z.-]{1,80}", image) else "of a strange name"
        raise DataError(f"{path}: two rows of the image {image} contradict each other; {FROM}")
    if column == "split":
        kept = kept.assign(split=split_names(table, kept["split"], SPLITS))
    return kept, {"blank_rows": int((lacking == 3).sum()), "repeated_rows": len(whole) - len(kept)}


def group_images(images: pd.DataFrame) -> pd.DataFrame:
    """A row a study, indexed by study_id, with lists of image paths and views; ``images`` is sorted by study."""
    subject, study = images["subject_id"].astype(str), images["study_id"].astype(str)
    path = "files/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/" + images["dicom_id"] + ".jpg"
    first = ~images["study_id"].duplicated()
    studies = images.loc[first, ["study_id", "subject_id", "split"]].set_index("study_id")
    starts = np.flatnonzero(first)[1:]
    studies["image_paths"] = [list(part) for part in np.split(path.to_numpy(dtype=object), starts)]
    studies["views"] = [list(part) for part in np.split(images["view"].to_numpy(dtype=object), starts)]
    return studies


def read_labels(root: Path, name: str) -> tuple[pd.DataFrame, int]:
    """Labels by **name**, since three orders of the columns circulate, and the number of rows without a study.

    The frame is indexed by study_id, its columns are LABELS.

    Raises:
        DataError: a label is no number, or two rows of a study contradict each other.
    """
    path = require_table(root, name.replace("_", "-"))
    table = read_csv(path, ["study_id", *LABELS], ALIASES, FROM)
    rows = pd.DataFrame({label: numbers(table, label) for label in LABELS})
    rows.insert(0, "study_id", integers(table, "study_id", "s"))
    named = rows[rows["study_id"] >= 0].drop_duplicates()
    if named.empty:
        raise DataError(f"{path} has no row with a study_id; {FROM}, or set selection.labels to null")
    repeated = named["study_id"].duplicated()
    if repeated.any():
        study = named["study_id"][repeated].iloc[0]
        raise DataError(f"{path}: two rows of the study s{study} contradict each other; {FROM}")
    return named.set_index("study_id"), int((rows["study_id"] < 0).sum())


def require_table(root: Path, name: str) -> Path:
    """Path of a table, or a `DataError` that says which one is missing."""
    path = find_table(root, name)
    if path is None:
        raise DataError(f"no mimic-cxr-2.*-{name}.csv.gz in {root} (the dataset's root in the config)")
    return path


class Locator:
    """Image files of MIMIC-CXR-JPG: where the tables say, as ``.jpg``, or resized copies as ``.jpeg`` or ``.png``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, path: str) -> tuple[str | None, list[str]]:
        tried = [path, *(path.removesuffix(".jpg") + suffix for suffix in (".jpeg", ".png"))]
        for candidate in tried:
            if (self._root / candidate).is_file():
                return candidate, tried
        return None, tried
