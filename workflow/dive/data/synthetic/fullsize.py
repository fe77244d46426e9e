"""Trees of the real datasets' full size, to measure readers on and to try a configuration before the data are there.

Numbers of patients, studies and images are the official ones, the reports are synthetic, and every image file is a hard
link to one small picture, so that MIMIC-CXR takes 1.3 GB (a million files) instead of 570. No model would learn
from it:

    python -m dive.data.synthetic.fullsize mimic_cxr data/mimic-cxr [--share 0.25] [--reports folder]
"""

import argparse
import csv
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dive.data.roots import CHEXPERT_PLUS_SIZES, MIMIC_CXR_SIZES
from dive.data.synthetic.findings import to_chexpert
from dive.data.synthetic.language import target_style
from dive.data.synthetic.layouts import (
    ALPHABETIC,
    CHEXPERT_COLUMNS,
    MIMIC_METADATA,
    Study,
    draw_studies,
    mimic_report,
    stream,
    write_csv,
)
from dive.files import atomic_path
from dive.progress import log, progress

WORDINGS = 1500
"""Patients whose reports are composed; all others' repeat them, made unique by a last sentence."""

NO_FINDINGS = {"mimic_cxr": 0.3, "chexpert_plus": 0.73}
"""Share of studies whose report has no findings section, about as it really is."""

VIEWS = (("PA", 0.38), ("AP", 0.53), ("", 0.05), ("LATERAL", 0.04))
"""Views of a study's first image, with their shares; further ones are lateral."""


class Case(NamedTuple):
    """One study of the tree: numbers of patient and study, how many images, its split."""

    patient: int
    order: int  # of the patient's studies
    images: int
    split: str


def write_full_size(layout: str, root: str | Path, share: float = 1.0, reports: str = "zip") -> None:
    """Write a tree with ``share`` of the official numbers of patients, studies and images of every split.

    Args:
        layout: ``mimic_cxr`` or ``chexpert_plus``.
        root: folder to write; replaced as a whole.
        share: 1 is the full size.
        reports: where MIMIC-CXR's reports lie: in the ``zip``, in a ``folder``, or ``beside`` the study folders.
    """
    sizes = MIMIC_CXR_SIZES if layout == "mimic_cxr" else CHEXPERT_PLUS_SIZES
    cases, patients = [], 0
    for split, size in sizes.items():
        numbers = [max(1, round(share * size[name])) for name in ("patients", "studies", "images")]
        cases += draw_cases(split, patients, *numbers)
        patients += numbers[0]
    wordings = draw_studies(layout, target_style("site_a"), {"train": WORDINGS}, 0)
    with atomic_path(root) as folder:
        folder.mkdir(parents=True)
        write = write_mimic_cxr if layout == "mimic_cxr" else write_chexpert_plus
        write(folder, cases, patients, wordings, reports)
    log.info("%s: %d studies of %d patients in %s", layout, len(cases), patients, root)


def draw_cases(split: str, first: int, patients: int, studies: int, images: int) -> Iterator[Case]:
    """Spread images over studies and these over patients, at least one each; patients are numbered from ``first``."""
    rng = stream(0, "fullsize", split)
    studies, images = max(studies, patients), max(images, studies, patients)
    of_patient = 1 + np.bincount(rng.integers(patients, size=studies - patients), minlength=patients)
    of_study = iter((1 + np.bincount(rng.integers(studies, size=images - studies), minlength=studies)).tolist())
    for patient, number in enumerate(of_patient.tolist(), start=first):
        for order in range(number):
            yield Case(patient, order, next(of_study), split)


class Picture:
    """Hard links to one small picture; a new copy is begun when the file system allows no more links.

    Args:
        kind: Pillow's name of the format.
    """

    def __init__(self, kind: str) -> None:
        buffer = io.BytesIO()
        Image.new("L", (16, 16), 128).save(buffer, kind)
        self._content = buffer.getvalue()
        self._source: str | None = None

    def put(self, path: str) -> None:
        """Make the file ``path``."""
        if self._source is not None:
            try:
                return os.link(self._source, path)
            except OSError:  # too many links, or a file system without them
                pass
        with open(path, "wb") as file:
            file.write(self._content)
        self._source = path
        return None


def views_of(cases: list[Case]) -> Iterator[list[str]]:
    """Views of each study's images."""
    names, shares = zip(*VIEWS, strict=True)
    drawn = stream(0, "fullsize", "views").choice(len(names), size=len(cases), p=shares)
    for case, first in zip(cases, drawn.tolist(), strict=True):
        yield [names[first], *["LATERAL"] * (case.images - 1)]


def write_mimic_cxr(root: Path, cases: list[Case], patients: int, wordings: list[Study], reports: str) -> None:
    """MIMIC-CXR-JPG with the reports of MIMIC-CXR."""
    rng = stream(0, "fullsize", "ids")
    subjects = np.sort(rng.choice(10_000_000, patients, replace=False)) + 10_000_000
    numbers = np.sort(rng.choice(10_000_000, len(cases), replace=False)) + 50_000_000
    absent = stream(0, "fullsize", "findings").random(len(cases)) < NO_FINDINGS["mimic_cxr"]
    texts = [mimic_report(study).decode("utf-8", errors="replace") for study in wordings]
    texts = [text for text in texts if "\n IMPRESSION" in text and "\n FINDINGS" in text]
    silent = [text.replace("\n FINDINGS", "\n TECHNIQUE") for text in texts]
    values = [[to_chexpert(study.findings)[name] for name in ALPHABETIC] for study in wordings]
    picture, metadata, split, labels = Picture("JPEG"), [], [], []
    archive = zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) if reports == "zip" else None
    top = root / "mimic-cxr-reports/files" if reports == "folder" else root / "files"
    for index, (case, views) in enumerate(zip(progress(cases, "studies written"), views_of(cases), strict=True)):
        subject, study = int(subjects[case.patient]), int(numbers[index])
        place = f"p{str(subject)[:2]}/p{subject}"
        os.makedirs(f"{root}/files/{place}/s{study}")
        for view in views:
            dicom = f"{study:08x}-{subject:08x}-{len(metadata):08x}-00000000-00000000"
            picture.put(f"{root}/files/{place}/s{study}/{dicom}.jpg")
            metadata.append((dicom, subject, study, "CHEST", view, 16, 16, 21800506, "213014.531", "", "", ""))
            split.append((dicom, study, subject, case.split))
        labels.append((subject, study, *values[index % len(values)]))
        wording = (silent if absent[index] else texts)[index % len(texts)]
        text = wording.replace("\n IMPRESSION", f" Seen in series {index}.\n IMPRESSION", 1)
        if archive is not None:
            archive.writestr(f"files/{place}/s{study}.txt", text)
        else:
            os.makedirs(top / place, exist_ok=True)
            (top / place / f"s{study}.txt").write_text(text, encoding="utf-8")
    if archive is not None:
        archive.close()
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", MIMIC_METADATA, metadata)
    write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), split)
    write_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ("subject_id", "study_id", *ALPHABETIC), labels)


def write_chexpert_plus(root: Path, cases: list[Case], patients: int, wordings: list[Study], reports: str) -> None:
    """CheXpert Plus: the table, the images, and CheXbert's labels, which are the same for the three texts."""
    absent = stream(0, "fullsize", "findings").random(len(cases)) < NO_FINDINGS["chexpert_plus"]
    values = [json.dumps(to_chexpert(study.findings)) for study in wordings]
    picture = Picture("PNG")
    (root / "chexbert_labels").mkdir()
    with (
        (root / "df_chexpert_plus_240401.csv").open("w", newline="", encoding="utf-8") as table,
        (root / "chexbert_labels/findings_fixed.json").open("w", encoding="utf-8") as lines,
    ):
        writer = csv.DictWriter(table, CHEXPERT_COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for index, (case, views) in enumerate(zip(progress(cases, "studies written"), views_of(cases), strict=True)):
            wording = wordings[index % len(wordings)]
            place = f"{case.split}/patient{case.patient + 1:05d}/study{case.order + 1}"
            os.makedirs(f"{root}/PNG/{place}")
            for number, view in enumerate(views, start=1):
                side = "lateral" if view == "LATERAL" else "frontal"
                picture.put(f"{root}/PNG/{place}/view{number}_{side}.png")
                writer.writerow(
                    {
                        "path_to_image": f"{place}/view{number}_{side}.jpg",
                        "frontal_lateral": side.capitalize(),
                        "ap_pa": "" if side == "lateral" else view,
                        "report": f"Image {number}. {wording.report} {wording.impression}",
                        "section_narrative": wording.impression,
                        "section_history": "Cough.",
                        "section_findings": "" if absent[index] else f"{wording.report} Seen in series {index}.",
                        "section_impression": f"1. {wording.impression}",
                        "split": case.split,
                    }
                )
                written = values[index % len(values)] if not absent[index] else "{}"
                lines.write(f'{{"path_to_image": "{place}/view{number}_{side}.jpg"')
                lines.write("}\n" if written == "{}" else f", {written[1:]}\n")
    for section in ("impression", "report"):
        os.link(root / "chexbert_labels/findings_fixed.json", root / f"chexbert_labels/{section}_fixed.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a synthetic tree of a real dataset's full size.")
    parser.add_argument("layout", choices=["mimic_cxr", "chexpert_plus"])
    parser.add_argument("root")
    parser.add_argument("--share", type=float, default=1.0, help="of the official numbers of patients and studies")
    parser.add_argument("--reports", choices=["zip", "folder", "beside"], default="zip")
    arguments = parser.parse_args()
    write_full_size(arguments.layout, arguments.root, arguments.share, arguments.reports)
