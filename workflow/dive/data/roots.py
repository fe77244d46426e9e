"""Where a dataset's files lie, and what to say when they do not.

The standard library only, so that asking costs nothing.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from dive.data.downloads import EMPTY, archive_problem, table_problem
from dive.files import DataError

MIMIC_TABLES = ("metadata", "split", "chexpert", "negbio")
ACCESS = {
    "mimic_cxr": (
        "MIMIC-CXR is credentialed: sign the agreement at physionet.org, then get the images and tables from "
        "https://physionet.org/content/mimic-cxr-jpg/ and mimic-cxr-reports.zip from https://physionet.org/content/mimic-cxr/"
    ),
    "chexpert_plus": (
        "CheXpert Plus is free on registration: https://aimi.stanford.edu/datasets/chexpert-plus "
        "(the table, the PNG images and chexbert_labels)"
    ),
}


MIMIC_CXR_SIZES = {
    "train": {"patients": 64_586, "studies": 222_758, "images": 368_960},
    "validate": {"patients": 500, "studies": 1_808, "images": 2_991},
    "test": {"patients": 293, "studies": 3_269, "images": 5_159},
}
"""Official sizes of MIMIC-CXR-JPG 2.x: 227,835 studies (Johnson et al. 2019, its table of splits)."""

CHEXPERT_PLUS_SIZES = {
    "train": {"patients": 64_525, "studies": 187_511, "images": 223_228},
    "valid": {"patients": 200, "studies": 200, "images": 234},
}
"""Sizes of CheXpert Plus: images are rows of the release 240401, which are exact; of patients and studies only the sums
are published (64,725 and 187,711; Chambon et al. 2024), and 200 of each are CheXpert's validation set."""


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in ``folder``, sorted; none when it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def find_table(root: Path, name: str) -> Path | None:
    """Path of a MIMIC-CXR-JPG table, e.g. ``name="split"`` -> ``mimic-cxr-2.0.0-split.csv.gz``.

    Releases 2.0.0 and 2.1.0 both keep 2.0.0 in the tables' names; an unpacked ``.csv`` is as good. The
    radiologists' test labels are the ``test-set-labeled`` of 2.1.0.
    """
    found = sorted([*root.glob(f"mimic-cxr-2.*-{name}.csv.gz"), *root.glob(f"mimic-cxr-2.*-{name}.csv")])
    return found[0] if found else None


def find_reports(base: Path) -> list[Path]:
    """What may hold MIMIC-CXR reports in or under ``base``: folders with ``p10/p10000032/s50414267.txt`` in
    them, and zips.

    Covers the three ways in which they lie: beside the study folders of the images, unpacked under a folder
    of their own (``mimic-cxr-reports/files``), or still in ``mimic-cxr-reports.zip``. These folders come first,
    since they are read faster; folders of other names, such as a backup, come last.
    """
    if base.suffix == ".zip":
        return [base] if base.is_file() else []
    tops = [base, *(top for top in subfolders(base) if not re.fullmatch(r"p\d\d", top.name))]
    folders = dict.fromkeys(place for top in tops for place in (top, top / "files") if place.is_dir())
    found = [folder for folder in folders if has_report(folder)]
    named = [
        folder for folder in found if folder in (base, base / "files") or "report" in str(folder.relative_to(base))
    ]
    return [*named, *sorted(base.glob("*report*.zip")), *(folder for folder in found if folder not in named)]


def has_report(folder: Path) -> bool:
    """Whether ``folder`` has reports as ``p10/p10000032/s50414267.txt``; looks at 20 patients of each group."""
    for group in subfolders(folder):
        if re.fullmatch(r"p\d\d", group.name):
            # Never the whole group, which has thousands of patients on what may be a slow disk.
            try:
                with os.scandir(group) as entries:
                    patients = [Path(entry.path) for entry in itertools.islice(entries, 20)]
            except OSError:
                continue
            if any(next(patient.glob("s*.txt"), None) for patient in patients):
                return True
    return False


def find_chexpert_table(root: Path) -> Path | None:
    """Path of the CheXpert Plus table, ``df_chexpert_plus_240401.csv`` (or another date, or gzipped)."""
    found = sorted([*root.glob("df_chexpert_plus_*.csv"), *root.glob("df_chexpert_plus_*.csv.gz")])
    return found[-1] if found else None


def missing_mimic_cxr(root: Path, reports: Path | None, labels: str | None) -> tuple[list[str], list[str]]:
    """What is missing of MIMIC-CXR under ``root``, and what is there but cannot be used; one line a thing."""
    wanted = ["metadata", "split", *([labels.replace("_", "-")] if labels else [])]
    missing = [
        f"mimic-cxr-2.0.0-{name}.csv.gz" if name in MIMIC_TABLES else f"mimic-cxr-2.1.0-{name}.csv"
        for name in wanted
        if find_table(root, name) is None
    ]
    if not (root / "files").is_dir():
        missing.append("files/p10/p10000032/s50414267/<dicom_id>.jpg (the images of MIMIC-CXR-JPG)")
    if not find_reports(reports or root):
        where = "" if reports is None else f" at {reports} (selection.reports)"
        missing.append(
            f"the reports{where}: mimic-cxr-reports.zip, or unpacked as mimic-cxr-reports/files/p10/p10000032/"
            "s50414267.txt, or beside the study folders as files/p10/p10000032/s50414267.txt"
        )
    archives = [source for source in find_reports(reports or root) if source.suffix == ".zip"]
    tables = [find_table(root, name) for name in wanted]
    return missing, [*unusable(tables, table_problem), *unusable(archives, archive_problem)]


def missing_chexpert_plus(root: Path, reports: Path | None, labels: str | None) -> tuple[list[str], list[str]]:
    """What is missing of CheXpert Plus under ``root``, and what is there but cannot be used; one line a thing."""
    table, labeled = find_chexpert_table(root), root / "chexbert_labels" / f"{labels}_fixed.json"
    missing = [] if table else ["df_chexpert_plus_240401.csv"]
    if labels and not labeled.is_file():
        missing.append(f"chexbert_labels/{labels}_fixed.json (or set selection.labels to null)")
    if not any(next(root.glob(pattern), None) for pattern in ("PNG", "train", "valid", "patient*")):
        missing.append("the images: PNG/train/patient42142/study5/view1_frontal.png (or PNG/PNG/..., or train/...)")
    return missing, unusable([table, labeled if labels else None], table_problem)


def unusable(paths: Iterable[Path | None], problem_of: Callable[[Path], str | None]) -> list[str]:
    """A line for each file that is there but cannot be what it should be, with what to do.

    Empty files are enough to plan a run; the first job names the one that it needs.
    """
    problems = [(path, problem_of(path)) for path in paths if path is not None and path.exists()]
    return [f"{path.name}: {problem}" for path, problem in problems if problem not in (None, EMPTY)]


MISSING: dict[str, Callable[[Path, Path | None, str | None], tuple[list[str], list[str]]]] = {
    "mimic_cxr": missing_mimic_cxr,
    "chexpert_plus": missing_chexpert_plus,
}


def default_labels(reader: str, section: str) -> str:
    """Label table that fits a reader: CheXpert's for MIMIC-CXR, CheXbert's of the target for CheXpert Plus."""
    return "chexpert" if reader == "mimic_cxr" else "report" if section == "both" else section


def labels_of(reader: str, selection: dict) -> str | None:
    """The label table that a selection asks for: ``auto`` (also when unset) is the reader's default, None is none."""
    labels = selection.get("labels", "auto")
    return default_labels(reader, selection.get("section", "findings")) if labels == "auto" else labels


def check_root(reader: str, root: str | Path, dataset: str, selection: dict | None = None) -> list[str]:
    """Say in under a second what a dataset lacks, before any job starts.

    Args:
        reader: ``mimic_cxr`` or ``chexpert_plus``.
        root: the dataset's folder, ``datasets.<dataset>.root`` of the config.
        dataset: its name in the config.
        selection: ``datasets.<dataset>.selection``; its ``reports``, ``labels`` and ``section`` say what is
        needed.

    Returns:
        No message when all is there; else one for the whole dataset, with what is expected where and how to
        get it.
    """
    selection = selection or {}
    root = Path(root)
    reports = selection.get("reports")
    place = Path(reports) if reports and root.is_dir() else None
    missing, unusable = MISSING[reader](root, place, labels_of(reader, selection))
    if not root.is_dir():
        missing = [f"the folder itself: {root} does not exist", *missing]
    parts = []
    if missing:
        parts.append(f"no {reader} data at {root}. Missing there:\n" + "".join(f"    - {line}\n" for line in missing))
    if unusable:
        parts.append(f"files at {root} that cannot be used:\n" + "".join(f"    - {line}\n" for line in unusable))
    if not parts:
        return []
    then = f"\n  Then set datasets.{dataset}.root to the folder that holds them." if missing else ""
    return [f"datasets.{dataset}: {'  And '.join(parts)}  {ACCESS[reader]}.{then}"]


def require_root(reader: str, root: str | Path, dataset: str, selection: dict | None = None) -> None:
    """Raise `DataError` with the message of `check_root` when something is missing."""
    messages = check_root(reader, root, dataset, selection)
    if messages:
        raise DataError("\n".join(messages))
