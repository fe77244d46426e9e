"""Writes the synthetic world as the real data sets lie on disk, with the dirt that they are known for.

Every sixth study carries one kind of dirt, in turn, so that even a small data set has each of them.
Everything is drawn by
seeded streams of its own and files carry no dates: the same arguments give the same bytes.
"""

import csv
import gzip
import io
import json
import textwrap
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dive.data.synthetic.findings import LABELS, Findings, follow_up, sample_findings, to_chexpert
from dive.data.synthetic.language import Style, target_style, write_impression, write_report
from dive.data.synthetic.phantom import DISK_SIZE, draw_image
from dive.files import atomic_path
from dive.parquet import write_table
from dive.progress import log, progress

DIRT_EVERY = 6
MIMIC_DIRT = (
    "deidentified",
    "misspelt_header",
    "no_findings",
    "two_findings",
    "no_view",
    "truncated_image",
    "crlf",
    "two_frontals",
    "wet_read",
    "lateral_only",
    "shared_text",
    "no_sections",
    "addendum",
    "unlabeled",
    "flush_left_header",
    "missing_image",
    "findings_and_impression",
    "device_header",
    "not_in_metadata",
    "short",
    "undecodable",
    "no_report",
    "not_in_split",
    "empty_image",
)
CHEXPERT_DIRT = (
    "sections_differ",
    "no_impression",
    "no_view",
    "white_space",
    "two_frontals",
    "shared_text",
    "deidentified",
    "unlabeled",
    "truncated_image",
    "lateral_only",
    "sections_differ",
    "short",
    "no_view",
    "white_space",
    "missing_image",
    "two_frontals",
    "shared_text",
    "no_impression",
    "undecodable",
    "deidentified",
    "empty_image",
    "unlabeled",
)
NULL_FINDINGS = 0.4  # of CheXpert Plus studies; really 73 % of rows
WITH_LATERAL = 0.3
STUDIES_OF_A_PATIENT = (0.6, 0.3, 0.1)  # one, two, three

MISSPELT = ("FINDNGS", "FINIDNGS", "FINDINS", "FINDING")
REASONS = ("shortness of breath", "fever and cough", "chest pain", "line placement", "follow up of known disease")

MIMIC_METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
# The three orders of label columns that circulate: by alphabet, CheXpert's, and the radiologists' of release 2.1.0.
ALPHABETIC = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
CHEXPERT_ORDER = tuple(to_chexpert(Findings()))
RADIOLOGISTS_ORDER = (*(name for name in ALPHABETIC if name != "No Finding"), "No Finding")
CHEXPERT_COLUMNS = (
    "path_to_image",
    "path_to_dcm",
    "frontal_lateral",
    "ap_pa",
    "deid_patient_id",
    "patient_report_date_order",
    "report",
    "section_narrative",
    "section_clinical_history",
    "section_history",
    "section_comparison",
    "section_technique",
    "section_procedure_comments",
    "section_findings",
    "section_impression",
    "section_end_of_impression",
    "section_summary",
    "section_accession_number",
    "age",
    "sex",
    "race",
    "ethnicity",
    "interpreter_needed",
    "insurance_type",
    "recent_bmi",
    "deceased",
    "split",
)


@dataclass
class Study:
    """One synthetic study before it takes a layout: what is true, what is written, what is wrong with it."""

    patient: int  # index of the patient
    order: int  # of the patient's studies, from 0
    split: str
    findings: Findings
    report: str
    impression: str
    dirt: str | None
    views: list[str] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=np.random.default_rng, repr=False)


def synthesize(
    layout: str,
    root: str,
    truth: str,
    style: str,
    patients: Mapping[str, int],
    world: Mapping[str, Any],
    seed: int,
    reports: str = "beside",
) -> None:
    """Write a synthetic data set and, apart from it, the truth behind it.

    Args:
        layout: ``mimic_cxr`` (MIMIC-CXR-JPG 2.1.0 with the reports of MIMIC-CXR) or ``chexpert_plus``.
        root: folder to write; replaced as a whole.
        truth: parquet to write: study_uid, patient_uid as the readers make them, a bool column for each world
        label.
        style: the site that writes the reports, ``site_a`` or ``site_b``.
        patients: number of patients in train, validate and test. CheXpert Plus has no official test set: its
        table says
            ``valid`` for validate, ``train`` for the rest, and the selection's convention splits.
        world: ``world`` of the config; ``image_size`` is the width of the images on disk in pixels.
        seed: of everything that is drawn.
        reports: where MIMIC-CXR's reports lie: ``beside`` the study folders, unpacked in a ``folder``, or in
        the ``zip``.
    """
    writer = {"mimic_cxr": MimicWriter, "chexpert_plus": ChexpertWriter}[layout]
    studies = draw_studies(layout, target_style(style), patients, seed)
    with atomic_path(root) as folder:
        folder.mkdir(parents=True)
        size = world.get("image_size", DISK_SIZE)
        identities = writer(folder, size, stream(seed, layout, "ids"), reports).write(studies)
    columns: dict[str, Any] = {
        "study_uid": [study for _, study in identities],
        "patient_uid": [patient for patient, _ in identities],
    }
    present = [study.findings.labels() for study in studies]
    columns |= {label: [label in labels for labels in present] for label in LABELS}
    with atomic_path(truth) as temporary:
        write_table(pa.table(columns), temporary)
    log.info("%d studies of %d patients in %s", len(studies), len({p for p, _ in identities}), root)


def stream(seed: int, *names: object) -> np.random.Generator:
    """Generator of its own for a named purpose: adding one elsewhere changes nothing here."""
    return np.random.default_rng([seed, zlib.crc32("/".join(map(str, names)).encode())])


def draw_studies(layout: str, style: Style, patients: Mapping[str, int], seed: int) -> list[Study]:
    """Draw all studies in order of train, validate, test; a patient has one to three studies of related findings."""
    kinds = MIMIC_DIRT if layout == "mimic_cxr" else CHEXPERT_DIRT
    studies: list[Study] = []
    patient = 0
    for split in ("train", "validate", "test"):
        for index in range(patients.get(split, 0)):
            rng = stream(seed, layout, split, index)
            findings = sample_findings(rng)
            for order in range(int(rng.choice(len(STUDIES_OF_A_PATIENT), p=STUDIES_OF_A_PATIENT)) + 1):
                findings = follow_up(findings, rng) if order else findings
                report, impression = write_report(findings, style, rng), write_impression(findings, style, rng)
                turn, rest = divmod(len(studies), DIRT_EVERY)
                dirt = None if rest != DIRT_EVERY - 1 else kinds[turn % len(kinds)]
                study = Study(patient, order, split, findings, report, impression, dirt)
                if dirt == "shared_text":
                    # The same text, so the same findings, under another patient's study.
                    study.findings, study.report = studies[0].findings, studies[0].report
                    study.impression = studies[0].impression
                study.views = draw_views(dirt, rng)
                study.rng = rng
                studies.append(study)
            patient += 1
    return studies


def draw_views(dirt: str | None, rng: np.random.Generator) -> list[str]:
    """Views of a study's images."""
    frontal = "PA" if rng.random() < 0.4 else "AP"
    lateral = ["LATERAL"] if rng.random() < WITH_LATERAL else []
    if dirt == "lateral_only":
        return ["LATERAL"]
    if dirt == "no_view":
        return [""]
    if dirt == "two_frontals":
        return ["AP", "PA", *lateral]  # in the order that the selection must turn round
    if dirt == "sections_differ":
        return [frontal, "LATERAL"]
    return [frontal, *lateral]


def image_bytes(study: Study, view: str, kind: str, size: int) -> bytes:
    """An encoded image of a study; a lateral view shows the same phantom, which the selection leaves out."""
    buffer = io.BytesIO()
    image = draw_image(study.findings, study.rng, size)
    if view == "LATERAL":
        image = image.rotate(90)
    options = {"quality": 95} if kind == "JPEG" else {}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put_image(path: Path, content: bytes, dirt: str | None) -> None:
    """Write an image file, or what is left of it."""
    if dirt == "missing_image":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"truncated_image": len(content) // 2, "empty_image": 0}.get(dirt or "", len(content))
    path.write_bytes(content[:size])


class MimicWriter:
    """Writes MIMIC-CXR-JPG's tables and images, and MIMIC-CXR's reports."""

    def __init__(self, root: Path, size: int, rng: np.random.Generator, reports: str) -> None:
        self.root, self.size, self.rng, self.reports = root, size, rng, reports

    def write(self, studies: Sequence[Study]) -> list[tuple[str, str]]:
        """Write everything; returns (patient_uid, study_uid) of every study."""
        n_patients = studies[-1].patient + 1
        subjects = np.sort(self.rng.choice(10_000_000, n_patients, replace=False)) + 10_000_000
        ids = self.rng.choice(10_000_000, len(studies), replace=False) + 50_000_000
        metadata, splits, labels, texts, identities = [], [], [], [], []
        for study, study_id in zip(progress(studies, "studies written"), ids, strict=True):
            subject = int(subjects[study.patient])
            identities.append((f"p{subject}", f"s{study_id}"))
            place = f"p{str(subject)[:2]}/p{subject}/s{study_id}"
            for view in study.views:
                dicom = "-".join(f"{part:08x}" for part in self.rng.integers(0, 2**32, 5))
                content = image_bytes(study, view, "JPEG", self.size)
                put_image(self.root / "files" / place / f"{dicom}.jpg", content, study.dirt)
                if study.dirt != "not_in_metadata":
                    metadata.append(self._metadata(dicom, subject, int(study_id), study, view))
                if study.dirt != "not_in_split":
                    splits.append((dicom, study_id, subject, study.split))
            if study.dirt != "unlabeled":
                labels.append((subject, study_id, study))
            if study.dirt != "no_report":
                texts.append((f"{place}.txt", mimic_report(study)))
        self._write_reports(texts)
        self._write_tables(metadata, splits, labels)
        return identities

    def _metadata(self, dicom: str, subject: int, study_id: int, study: Study, view: str) -> tuple[Any, ...]:
        date = 21_100_101 + 10_000 * int(study.patient % 80) + 100 * study.order
        name = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral"}.get(view, "")
        procedure = "CHEST (PA AND LAT)" if len(study.views) > 1 else "CHEST (PORTABLE AP)"
        clock = f"{self.rng.integers(0, 240_000)}.{self.rng.integers(0, 1000):03d}"
        return (dicom, subject, study_id, procedure, view, self.size, self.size, date, clock, procedure, name, "Erect")

    def _write_reports(self, texts: Sequence[tuple[str, bytes]]) -> None:
        if self.reports == "zip":
            with zipfile.ZipFile(self.root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for place, content in texts:
                    # A fixed date: the same bytes on every run.
                    archive.writestr(zipfile.ZipInfo(f"files/{place}"), content, zipfile.ZIP_DEFLATED)
            return
        top = self.root / ("files" if self.reports == "beside" else "mimic-cxr-reports/files")
        for place, content in texts:
            path = top / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _write_tables(self, metadata: list[Any], splits: list[Any], labels: list[Any]) -> None:
        write_csv(self.root / "mimic-cxr-2.0.0-metadata.csv.gz", MIMIC_METADATA, metadata)
        write_csv(self.root / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), splits)
        for name, order in (("chexpert", ALPHABETIC), ("negbio", CHEXPERT_ORDER)):
            rows = [(subject, study_id, *label_row(study, order)) for subject, study_id, study in labels]
            write_csv(self.root / f"mimic-cxr-2.0.0-{name}.csv.gz", ("subject_id", "study_id", *order), rows)
        rows = [
            (study_id, *label_row(study, RADIOLOGISTS_ORDER)) for _, study_id, study in labels if study.split == "test"
        ]
        write_csv(self.root / "mimic-cxr-2.1.0-test-set-labeled.csv", ("study_id", *RADIOLOGISTS_ORDER), rows)


def label_row(study: Study, order: Iterable[str]) -> list[float | None]:
    """CheXpert observations of a study in the given order; None is written as an empty cell."""
    values = to_chexpert(study.findings)
    return [values[name] for name in order]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, gzipped without a time stamp when its name ends in .gz."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    content = text.getvalue().encode("utf-8")
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def paragraph(text: str) -> str:
    """Text as MIMIC-CXR wraps it: lines of at most 78 characters that begin with a blank."""
    return textwrap.fill(text, 77, initial_indent=" ", subsequent_indent=" ")


def mimic_report(study: Study) -> bytes:
    """The report file of a study: headers after newline and blank, ``___`` for what was removed, and its dirt."""
    dirt, rng = study.dirt, study.rng
    findings = study.report
    if dirt == "deidentified":
        findings += " Compared with ___ there is no change."
    if dirt == "short":
        findings = "As above."
    blocks = [("INDICATION", f"___ year old patient with {REASONS[rng.integers(len(REASONS))]}.")]
    blocks.append(("COMPARISON", "___." if rng.random() < 0.5 else "None."))
    impression = ("IMPRESSION", study.impression)
    if dirt == "misspelt_header":
        blocks += [(MISSPELT[rng.integers(len(MISSPELT))], findings), impression]
    elif dirt == "no_findings":
        blocks += [impression]
    elif dirt == "findings_and_impression":
        blocks += [("FINDINGS AND IMPRESSION", findings)]
    elif dirt == "two_findings":
        blocks += [("FINDINGS", "Preliminary read, superseded below."), ("FINDINGS", findings), impression]
    elif dirt == "wet_read":
        blocks += [("FINDINGS", findings), ("WET READ", "___ ___ 9:12 PM\n No acute process."), impression]
    elif dirt == "device_header":
        blocks += [("FINDINGS", findings), ("ET TUBE", "Ends above the carina."), impression]
    elif dirt not in ("no_sections", "flush_left_header"):
        blocks += [("FINDINGS", findings), impression]
    lines = ["                                 FINAL REPORT"]
    for header, text in blocks:
        # Short sections go on in the header's line, as they really do.
        body = f" {text}" if len(text) + len(header) < 70 else f" \n \n{paragraph(text)}"
        lines += [f" {header}: {body}", " "]
    if dirt == "no_sections":
        lines += [paragraph(findings), " ", paragraph(study.impression)]
    elif dirt == "flush_left_header":
        lines += [f"FINDINGS: {findings}", " ", f" IMPRESSION:{study.impression}"]
    if dirt == "addendum":
        lines = [" ADDENDUM  The radiograph was reviewed again.", " ", *lines]
        lines += [" ADDENDUM:  Nothing to add.", " "]
    content = "\n".join(lines).encode("utf-8") + b"\n"
    if dirt == "undecodable":
        content = content.replace(b" with ", b" w\x81th ", 1)
    return content.replace(b"\n", b"\r\n") if dirt == "crlf" else content


class ChexpertWriter:
    """Writes CheXpert Plus: the table with a row an image, PNG images, CheXbert labels as JSON Lines."""

    def __init__(self, root: Path, size: int, rng: np.random.Generator, reports: str) -> None:
        self.root, self.size, self.rng = root, size, rng

    def write(self, studies: Sequence[Study]) -> list[tuple[str, str]]:
        """Write everything; returns (patient_uid, study_uid) of every study."""
        n_patients = studies[-1].patient + 1
        numbers = np.sort(self.rng.choice(64_000, n_patients, replace=False)) + 1
        rows, identities = [], []
        labels: dict[str, list[str]] = {"findings": [], "impression": [], "report": []}
        for study in progress(studies, "studies written"):
            patient = f"patient{numbers[study.patient]:05d}"
            identities.append((patient, f"{patient}/study{study.order + 1}"))
            split = "valid" if study.split == "validate" else "train"
            sections = chexpert_sections(study)
            people = self._people()
            for number, view in enumerate(study.views, start=1):
                side = "lateral" if view == "LATERAL" else "frontal"
                place = f"{split}/{identities[-1][1]}/view{number}_{side}"
                content = image_bytes(study, view, "PNG", self.size)
                put_image(self.root / "PNG" / f"{place}.png", content, study.dirt)
                row = dict.fromkeys(CHEXPERT_COLUMNS) | sections | people
                row |= {
                    "path_to_image": f"{place}.jpg",
                    "path_to_dcm": f"{place}.dcm",
                    "frontal_lateral": side.capitalize(),
                    "ap_pa": view if side == "frontal" else None,
                    "deid_patient_id": patient,
                    "patient_report_date_order": study.order + 1,
                    # Captured for each image, and not always of the same moment.
                    "report": f"Image {number}. {sections['section_narrative']}",
                    "split": split,
                }
                if study.dirt == "sections_differ" and number == 2:
                    row["section_findings"] = f"Preliminary. {row['section_findings']}"
                rows.append(row)
                for section, lines in labels.items():
                    if study.dirt != "unlabeled":
                        written = section == "report" or sections[f"section_{section}"] is not None
                        values = to_chexpert(study.findings) if written else dict.fromkeys(CHEXPERT_ORDER)
                        lines.append(json.dumps({"path_to_image": f"{place}.jpg", **values}))
        table = self.root / "df_chexpert_plus_240401.csv"
        write_csv(table, CHEXPERT_COLUMNS, ([row[name] for name in CHEXPERT_COLUMNS] for row in rows))
        # A character that was lost on the way into the table: a byte that neither UTF-8 nor Windows-1252 has.
        table.write_bytes(table.read_bytes().replace("\ue000".encode(), b"\x81"))
        folder = self.root / "chexbert_labels"
        folder.mkdir()
        for section, lines in labels.items():
            (folder / f"{section}_fixed.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return identities

    def _people(self) -> dict[str, Any]:
        """Columns about the patient, none of which is used."""
        return {
            "section_accession_number": int(self.rng.integers(1000, 9999)),  # repeats: no key
            "age": int(self.rng.integers(18, 90)),
            "sex": ("Female", "Male")[self.rng.integers(2)],
            "recent_bmi": round(float(self.rng.uniform(18, 40)), 1),
            "interpreter_needed": "No",
            "deceased": "No",
        }


def chexpert_sections(study: Study) -> dict[str, str | None]:
    """The text columns of a study's rows; most rows of the real table have no findings either."""
    dirt, rng = study.dirt, study.rng
    findings: str | None = study.report
    impression: str | None = f"1. {study.impression}"
    if dirt is None and rng.random() < NULL_FINDINGS:
        findings = None
    if dirt == "no_impression":
        impression = None
    if dirt == "short":
        findings = "As above."
    if dirt == "deidentified":
        findings = f"{study.report} Compared with ___ there is no change."
    if dirt == "white_space":
        findings = "\n" + study.report.replace(". ", ".  \r\n\r\n") + "\n"
    if dirt == "undecodable":
        findings = study.report + " \ue000"
    reason = REASONS[rng.integers(len(REASONS))]
    return {
        "section_narrative": f"RADIOGRAPHIC EXAMINATION OF THE CHEST. HISTORY: {reason}. {study.impression}",
        "section_clinical_history": reason.capitalize() + "." if rng.random() < 0.7 else None,
        "section_history": reason.capitalize() + ".",
        "section_findings": findings,
        "section_impression": impression,
    }
