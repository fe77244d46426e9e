"""What of a real dataset decides results: the content of tables and reports, the names and sizes of all images, and the
content of the pool's images.

The workflow compares this instead of times of modification. The same files elsewhere, or behind a link, are the same
data; a file that no reader opens is no part of them.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dive.contents import Memory
from dive.data.listing import WIDTH, list_patients
from dive.data.roots import find_chexpert_table, find_reports, find_table, labels_of, subfolders

DEPTH = 4
"""Folders between the root of CheXpert Plus and those of its patients, at most: ``PNG/PNG/train`` and one more."""


def describe_dataset(reader: str, root: str | Path, selection: Mapping[str, Any], memory: Memory) -> dict[str, str]:
    """Everything on which the reading of a dataset depends, as digests.

    Args:
        reader: ``mimic_cxr`` or ``chexpert_plus``.
        root: the dataset's folder.
        selection: ``datasets.<name>.selection``: ``reports`` is another place of MIMIC-CXR's reports, ``labels`` and
            ``section`` say which table of labels is read.
        memory: of content that was read before.

    Returns:
        ``tables``, ``reports`` (empty where they are in a table) and ``images``.
    """
    root, selection = Path(root), dict(selection)
    labels = labels_of(reader, selection)
    if reader == "mimic_cxr":
        names = ["metadata", "split", *([labels.replace("_", "-")] if labels else [])]
        tables = {name: find_table(root, name) for name in names}
        found = _describe_mimic_cxr(root, selection, memory)
    else:
        tables = {"table": find_chexpert_table(root)}
        if labels:
            tables["labels"] = root / "chexbert_labels" / f"{labels}_fixed.json"
        found = {"reports": "", "images": _images(_patients(chexpert_plus_patients(root), memory))}
    content = memory.content((name, path) for name, path in tables.items() if path is not None)
    memory.save()
    return {"tables": content, **found}


def describe_pool(studies: str | Path, pool: str | Path, root: str | Path, memory: Memory) -> str:
    """One digest of the images of the studies that were drawn.

    Args:
        studies: path of ``studies.parquet``.
        pool: path of the pool's JSON.
        root: the dataset's folder.
        memory: of content that was read before.
    """
    import pyarrow.compute as pc

    from dive.files import read_json
    from dive.parquet import read_table

    wanted = {uid for group in read_json(pool).values() for uid in group}
    rows = read_table(studies, ["image_paths"], pc.field("study_uid").isin(sorted(wanted)))["image_paths"].to_pylist()
    return memory.content_below(root, {path for paths in rows for path in paths})


def _describe_mimic_cxr(root: Path, selection: Mapping[str, Any], memory: Memory) -> dict[str, str]:
    """``reports`` and ``images``, which often lie in the same folders and are then listed together."""
    sources = find_reports(Path(selection["reports"]) if selection.get("reports") else root)
    listed: dict[str, Mapping[str, bytes]] = {}

    def patients(place: Path) -> Mapping[str, bytes]:
        key = os.path.realpath(place)
        if key not in listed:
            listed[key] = _patients(mimic_cxr_patients(place), memory)
        return listed[key]

    # A study takes the first copy of its report, so the order of the places counts.
    reports = hashlib.sha256()
    for source in sources:
        if source.suffix == ".zip":
            reports.update(memory.digest(source) + b"\n")
        else:
            for name, answer in patients(source).items():
                reports.update(name.encode() + b" " + answer[WIDTH // 2 :] + b"\n")
            reports.update(b"\n")
    return {"reports": reports.hexdigest(), "images": _images(patients(root / "files"))}


def mimic_cxr_patients(place: Path) -> Iterator[tuple[str, str]]:
    """(name, path) of the patients' folders ``p10/p10000032`` in a place."""
    for group in subfolders(place):
        if re.fullmatch(r"p\d\d", group.name):
            for name, path in _folders(group):
                if name[0] == "p":
                    yield f"{group.name}/{name}", path


def chexpert_plus_patients(root: Path, within: str = "", depth: int = DEPTH) -> Iterator[tuple[str, str]]:
    """(name, path) of the patients' folders under a root, wherever a copy keeps its images; not of DICOM files."""
    for name, path in _folders(root):
        if re.fullmatch(r"patient\d+", name):
            yield f"{within}{name}", path
        elif depth and name.upper() != "DICOM" and name != "chexbert_labels":
            yield from chexpert_plus_patients(Path(path), f"{within}{name}/", depth - 1)


def _folders(place: Path) -> list[tuple[str, str]]:
    try:
        with os.scandir(place) as entries:
            return sorted((entry.name, entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _patients(folders: Iterable[tuple[str, str]], memory: Memory) -> Mapping[str, bytes]:
    """Name -> answer of `list_patients`."""
    named = dict(folders)
    answers = list_patients(list(named.values()), memory)
    return {name: answers[WIDTH * index : WIDTH * (index + 1)] for index, name in enumerate(named)}


def _images(patients: Mapping[str, bytes]) -> str:
    lines = (name.encode("utf-8", "surrogateescape") + b" " + patients[name][: WIDTH // 2] for name in sorted(patients))
    return hashlib.sha256(b"\n".join(lines)).hexdigest()
