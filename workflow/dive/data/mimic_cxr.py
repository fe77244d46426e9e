"""MIMIC-CXR-JPG 2.x images and tables with the reports of MIMIC-CXR (Johnson et al. 2019)."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dive.data.roots import DataError, find_reports, find_table, labels_of, subfolders
from dive.data.sections import SECTIONED_BY_HAND, last_sections
from dive.data.studies import LABELS, Reading, collapse, count_tables, sample_studies
from dive.progress import log, progress

BROKEN = (ValueError, EOFError, OSError, zlib.error)
"""What pandas raises on a table that is cut off, damaged, or another one."""

# NegBio's older tables and the radiologists' use this name.
STUDY = re.compile(r"s\d{8,}")
ALIASES = {"airspace opacity": "Lung Opacity"}


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
    sizes = count_tables(images)
    studies = group_images(images)
    known = {*(f"s{study}" for study in studies.index), *(study for study, _, _ in excluded)}
    labels = labels_of("mimic_cxr", selection)
    table = read_labels(root, labels) if labels else pd.DataFrame(columns=list(LABELS), dtype=float)
    studies = studies.join(table)
    notes["label_rows_without_study"] = len(table.index.difference(studies.index))
    notes["studies_without_labels"] = int(studies[list(LABELS)].isna().all(axis=1).sum())
    if len(table) and notes["label_rows_without_study"] == len(table):
        raise DataError(f"{find_table(root, labels.replace('_', '-'))}: its study_id are no study of the split table")

    studies = sample_studies(studies, sample)
    studies["study_uid"] = [f"s{study}" for study in studies.index]
    studies["patient_uid"] = [f"p{subject}" for subject in studies["subject_id"]]
    sources = find_reports(Path(selection["reports"]) if selection.get("reports") else root)
    findings, impressions, indications, kept = [], [], [], []
    pairs = list(zip(studies["patient_uid"], studies["study_uid"], strict=True))
    for (_, study), text in zip(pairs, progress(read_reports(sources, pairs), "reports", len(pairs)), strict=True):
        sections = {} if isinstance(text, Problem) else last_sections(text)
        if isinstance(text, Problem):
            excluded.append((study, text.rule, text.detail))
        elif study in SECTIONED_BY_HAND:
            excluded.append((study, "sectioned_by_hand", "the official code has no sections of this report"))
        kept.append(not isinstance(text, Problem) and study not in SECTIONED_BY_HAND)
        findings.append(collapse(sections.get("findings")))
        impressions.append(collapse(sections.get("impression")))
        indications.append(collapse(sections.get("indication") or sections.get("history")))
    notes |= count_strays(root / "files", sources, known)
    studies["findings"], studies["impression"], studies["indication"] = findings, impressions, indications
    studies = studies[np.array(kept, dtype=bool)].reset_index(drop=True)
    return Reading(studies.drop(columns="subject_id"), excluded, notes, sizes, Locator(root))


def read_images(root: Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]], dict[str, int]]:
    """Join split and metadata by dicom_id; returns the images of sound studies, excluded studies, and counts.

    The frame has dicom_id, study_id, subject_id, split, view, sorted by study and dicom_id.
    """
    split = read_table(root, "split", {"dicom_id": "str", "study_id": "int64", "subject_id": "int64", "split": "str"})
    metadata = read_table(
        root, "metadata", {"dicom_id": "str", "study_id": "int64", "subject_id": "int64", "ViewPosition": "str"}
    )
    for name, table in (("split", split), ("metadata", metadata)):
        if table["dicom_id"].duplicated().any():
            raise DataError(f"{find_table(root, name)}: an image (dicom_id) has two rows")
    both = split.merge(metadata, on="dicom_id", how="outer", suffixes=("", "_metadata"), indicator="seen")
    only_metadata = (both["seen"] == "right_only").to_numpy()
    in_both = (both["seen"] == "both").to_numpy()
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
    notes = {
        "images": len(both),
        "patients": int(both["subject_id"].nunique()),
        "images_without_metadata": int((both["seen"] == "left_only").sum()),
        "images_without_split": int(only_metadata.sum()),
        "images_without_view": int((both["ViewPosition"].isna() & ~only_metadata).sum()),
    }
    sound = ~both["study_id"].isin(clashing) & ~only_metadata
    images = both.loc[sound, ["dicom_id", "study_id", "subject_id", "split"]]
    images = images.assign(view=both.loc[sound, "ViewPosition"].fillna("").str.strip().str.upper())
    return images.sort_values(["study_id", "dicom_id"], ignore_index=True), excluded, notes


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


def read_labels(root: Path, name: str) -> pd.DataFrame:
    """Labels by **name**, since three orders of the columns circulate; indexed by study_id, columns as in LABELS."""
    path = require_table(root, name.replace("_", "-"))
    try:
        table = pd.read_csv(path)
    except BROKEN as error:
        raise DataError(f"{path}: cannot be read ({error}); get it again") from error
    columns = {column: ALIASES.get(column.strip().lower(), column.strip()) for column in table.columns}
    table = table.rename(columns=columns)
    lacking = [label for label in ("study_id", *LABELS) if label not in table.columns]
    if lacking:
        raise DataError(f"{path} has no column {', '.join(lacking)}; it has {', '.join(table.columns)}")
    table = table.drop_duplicates("study_id").set_index("study_id")
    return table[list(LABELS)].apply(pd.to_numeric, errors="coerce").astype(float)


def require_table(root: Path, name: str) -> Path:
    """Path of a table, or a `DataError` that says which one is missing."""
    path = find_table(root, name)
    if path is None:
        raise DataError(f"no mimic-cxr-2.*-{name}.csv.gz in {root} (the dataset's root in the config)")
    return path


def read_table(root: Path, name: str, columns: dict[str, str]) -> pd.DataFrame:
    """Read the named columns of a table; dates and the rest are never parsed."""
    path = require_table(root, name)
    try:
        return pd.read_csv(path, usecols=list(columns), dtype=columns, keep_default_na=False, na_values=[""])
    except BROKEN as error:
        raise DataError(
            f"{path}: cannot be read ({error}); expected are the columns {', '.join(columns)}, ids as integers"
        ) from error


class Problem:
    """Why a study has no text: the rule that leaves it out, and the detail for the list."""

    def __init__(self, rule: str, detail: str) -> None:
        self.rule = rule
        self.detail = detail


def read_reports(sources: list[Path], pairs: list[tuple[str, str]]) -> Iterator[str | Problem]:
    """Yield the report of every (patient_uid, study_uid), or why there is none, from the first source that
    has it.

    Text is UTF-8 with newlines translated, as the official code opens it; bytes that are not UTF-8, and files or
    entries of a zip that cannot be read, are a problem of that study, never guessed.
    """
    archives = [ZipReports(source) for source in sources if source.suffix == ".zip"]
    folders = [os.fspath(source) for source in sources if source.suffix != ".zip"]
    names = ", ".join(source.name for source in sources) or "no folder or zip of reports"
    log.info("reports come from %s", names)
    for patient, study in pairs:
        content: bytes | Problem | None = None
        for folder in folders:
            try:
                with open(f"{folder}/{patient[:3]}/{patient}/{study}.txt", "rb") as handle:
                    content = handle.read()
                break
            except FileNotFoundError:
                continue
            except OSError as error:
                content = Problem("unreadable_report", f"cannot be opened ({error.strerror})")
        if content is None:
            for archive in archives:
                content = archive.read(study)
                if content is not None:
                    break
        if isinstance(content, Problem):
            yield content
            continue
        if content is None:
            yield Problem("no_report", f"{patient[:3]}/{patient}/{study}.txt is in none of: {names}")
            continue
        try:
            yield content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            yield Problem("undecodable_report", f"not UTF-8 at byte {error.start}")


class ZipReports:
    """The reports in ``mimic-cxr-reports.zip``, read in place; entries are found by the study's name at any depth."""

    def __init__(self, path: Path) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: no readable zip archive ({error}); download it again") from error
        self._entries = {
            entry.filename.rsplit("/", 1)[-1].removesuffix(".txt"): entry
            for entry in self._archive.infolist()
            if entry.filename.endswith(".txt")
        }

    def read(self, study: str) -> bytes | Problem | None:
        """Bytes of a study's report; None when the archive has none, a problem when its bytes are damaged."""
        entry = self._entries.get(study)
        try:
            return None if entry is None else self._archive.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            return Problem("unreadable_report", f"damaged in the zip ({error})")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)


def count_strays(files: Path, sources: list[Path], known: set[str]) -> dict[str, int]:
    """Reports on disk (``reports``), and what of them and of the study folders no table names (``stray_...``).

    One listing of every patient's folder, and none of the studies' own: seconds at full size.

    Args:
        files: the folder of the images.
        sources: of `find_reports`.
        known: study_uids of the tables, excluded ones too.
    """
    named, reports, folders = set(), set(), set()
    for place in dict.fromkeys([files, *(source for source in sources if source.suffix != ".zip")]):
        for group in subfolders(place):
            if not re.fullmatch(r"p\d\d", group.name):
                continue
            for patient in subfolders(group):
                with os.scandir(patient) as entries:
                    for entry in entries:
                        name, ending = os.path.splitext(entry.name)
                        if ending == ".txt" and place in sources and STUDY.fullmatch(name):
                            (named if name in known else reports).add(name)
                        elif not ending and place == files and name not in known and STUDY.fullmatch(name):
                            folders.add(name)
    for source in sources:
        if source.suffix == ".zip":
            for name in filter(STUDY.fullmatch, ZipReports(source)):
                (named if name in known else reports).add(name)
    for what, names in (("reports", reports), ("study folders", folders)):
        if names:
            log.warning("%d %s are named by no table, %s the first: not used", len(names), what, min(names))
    return {"reports": len(named), "stray_reports": len(reports), "stray_study_folders": len(folders)}


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
