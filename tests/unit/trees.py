"""Hand-made copies of the two datasets, as small as a case needs; the layouts' facts are written out once more here."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from dive.data.studies import LABELS

METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "StudyDate",
)


def image_bytes(kind: str = "JPEG", mode: str = "L") -> bytes:
    """A small encoded image."""
    buffer = io.BytesIO()
    Image.new(mode, (12, 10)).save(buffer, kind)
    return buffer.getvalue()


def report(findings: str | None = "The lungs are clear without effusion.", impression: str | None = "Normal.") -> str:
    """A MIMIC-CXR report with the given sections."""
    text = "                                 FINAL REPORT\n INDICATION: ___ with cough.\n \n"
    text += f" FINDINGS: \n \n {findings}\n \n" if findings is not None else ""
    return text + (f" IMPRESSION: \n \n {impression}\n" if impression is not None else "")


class MimicTree:
    """Collects studies, then writes MIMIC-CXR-JPG with its reports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metadata, self.split, self.labels, self.reports = [], [], [], {}
        self.images = 0

    def study(self, study=50000001, subject=10000001, split="train", views=("PA",), text=None, labels=True, image=None):
        """Add a study; ``text`` may be bytes, or False for no report."""
        for view in views:
            self.images += 1
            dicom = f"{self.images:08x}-00000000-00000000-00000000-00000000"
            self.metadata.append((dicom, subject, study, "CHEST", view, 10, 21800506))
            self.split.append((dicom, study, subject, split))
            path = self.root / f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes() if image is None else image)
        if labels:
            self.labels.append((subject, study))
        if text is not False:
            text = report() if text is None else text
            content = text if isinstance(text, bytes) else text.encode()
            self.reports[f"p{str(subject)[:2]}/p{subject}/s{study}.txt"] = content
        return self

    def write(self, reports="beside", label_order=LABELS, packed=True) -> Path:
        """Write the tables and the reports: ``beside`` the studies, in a ``folder``, another ``top``, or a ``zip``."""
        ending = ".csv.gz" if packed else ".csv"
        write_csv(self.root / f"mimic-cxr-2.0.0-metadata{ending}", METADATA, self.metadata)
        write_csv(
            self.root / f"mimic-cxr-2.0.0-split{ending}", ("dicom_id", "study_id", "subject_id", "split"), self.split
        )
        values = {label: float(index) for index, label in enumerate(LABELS)} | {"Fracture": ""}
        rows = [(subject, study, *(values[label] for label in label_order)) for subject, study in self.labels]
        write_csv(self.root / f"mimic-cxr-2.0.0-chexpert{ending}", ("subject_id", "study_id", *label_order), rows)
        if reports == "zip":
            with zipfile.ZipFile(self.root / "mimic-cxr-reports.zip", "w") as archive:
                for place, content in self.reports.items():
                    archive.writestr(f"files/{place}", content)
        else:
            top = {"beside": "files", "folder": "mimic-cxr-reports/files", "top": "texts"}[reports]
            for place, content in self.reports.items():
                path = self.root / top / place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return self.root


class ChexpertTree:
    """Collects rows, then writes CheXpert Plus."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows, self.labels = [], []

    def image(
        self, patient=1, study=1, view="view1_frontal", split="train", place="PNG/train", suffix=".png", **columns
    ):
        """Add a row and, with a ``place``, its image file under that folder."""
        path = f"{split}/patient{patient:05d}/study{study}/{view}.jpg"
        row = {
            "path_to_image": path,
            "frontal_lateral": "Lateral" if "lateral" in view else "Frontal",
            "ap_pa": "" if "lateral" in view else "PA",
            "section_findings": "The lungs are clear without effusion.",
            "section_impression": "1. Normal chest.",
            "section_clinical_history": "",
            "section_history": "Cough.",
            "section_accession_number": "7",
            "report": f"report of {view}",
            "split": split,
        }
        self.rows.append(row | columns)
        if place is not None:
            file = self.root / place / f"patient{patient:05d}/study{study}/{view}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image_bytes("PNG"))
        return self

    def label(self, path, **values):
        """Add CheXbert labels of an image."""
        self.labels.append({"path_to_image": path, **dict.fromkeys(LABELS), **values})
        return self

    def write(self, encoding="utf-8") -> Path:
        """Write the table and the labels."""
        self.root.mkdir(parents=True, exist_ok=True)
        header = list(self.rows[0])
        text = io.StringIO()
        writer = csv.DictWriter(text, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        (self.root / "df_chexpert_plus_240401.csv").write_bytes(text.getvalue().encode(encoding))
        folder = self.root / "chexbert_labels"
        folder.mkdir(exist_ok=True)
        for section in ("findings", "impression", "report"):
            lines = "".join(json.dumps(row) + "\n" for row in self.labels)
            (folder / f"{section}_fixed.json").write_text(lines)
        return self.root


def write_csv(path: Path, header, rows) -> None:
    """Write a table, gzipped when its name says so."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
