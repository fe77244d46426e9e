"""Copies of the datasets that went wrong: read right, refused in a sentence with file and remedy, or one study less.

Nothing else may happen: no other exception, and nothing that stands in a cell or a report in any message or list.
"""

import gzip
import io
import json
import logging
import re
import struct
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from dive.data.check import inspect
from dive.data.roots import DataError, check_root
from dive.data.splits import split_dataset
from dive.data.studies import read_studies
from tests.unit.trees import ChexpertTree, MimicTree, report

SECRET = "zyxsecret"
PAGE = f"<!DOCTYPE html>\n<html><body>Please log in, {SECRET}</body></html>".encode()
REMEDY = re.compile(
    r"(download it again|get (it|them|both|both tables|mimic-cxr-reports\.zip)|rename it|unpack it|save it|log in"
    r"|export it|remove one|is it another|put the|check the file|fetch the file|set selection|Then set)",
    re.IGNORECASE,
)
SELECTION = {
    "mimic_cxr": {"min_words": 1, "max_unreadable": 0.5},
    "chexpert_plus": {"min_words": 1, "convention": "own_split", "max_unreadable": 0.5},
}
SPLIT, METADATA, CHEXPERT = (f"mimic-cxr-2.0.0-{name}.csv.gz" for name in ("split", "metadata", "chexpert"))
ZIP, TABLE, LABELS_FILE = "mimic-cxr-reports.zip", "df_chexpert_plus_240401.csv", "chexbert_labels/findings_fixed.json"


def mimic(root: Path) -> Path:
    tree = MimicTree(root)
    for number in range(1, 5):
        split = ("train", "validate", "test", "train")[number - 1]
        text = report(f"The lungs are clear, {SECRET} {number}.")
        tree.study(50000000 + number, 10000000 + number, split, ("PA", "LATERAL"), text)
    return tree.write("zip")


def chexpert(root: Path) -> Path:
    tree = ChexpertTree(root)
    for patient in range(1, 21):
        text = f"The lungs are clear, {SECRET} {patient}."
        tree.image(patient, section_findings=text, section_impression="None,\nreally.").image(
            patient, 1, "view2_lateral"
        )
        tree.label(f"train/patient{patient:05d}/study1/view1_frontal.jpg", Edema=1.0)
    return tree.write()


MAKE = {"mimic_cxr": mimic, "chexpert_plus": chexpert}


def run(reader: str, root: Path, out: Path, **selection) -> pd.DataFrame:
    out.mkdir()
    paths = {name: str(out / name) for name in ("studies", "excluded", "counts")}
    split_dataset("mine", reader, str(root), {**SELECTION[reader], **selection}, **paths)
    return read_studies(paths["studies"])


def content_of(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def edit(name, change):
    """An edit of the text of a table, whether it is gzipped or not."""

    def edited(root: Path) -> None:
        path = root / name
        content = change(content_of(path))
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    return edited


def replace(name, content):
    """Other bytes in place of a file: given, or made from its bytes."""

    def replaced(root: Path) -> None:
        path = root / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return replaced


def swap(old, new, count=-1):
    return lambda content: content.replace(old, new, count)


def header(change):
    def changed(content: bytes) -> bytes:
        first, rest = content.split(b"\n", 1)
        return change(first.rstrip(b"\r")) + b"\n" + rest

    return changed


def folder_in_place(name):
    def put(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return put


def zipped(*entries, **flags):
    """A zip of other entries."""

    def write(root: Path) -> None:
        with zipfile.ZipFile(root / ZIP, "w") as archive:
            for name, content in entries:
                archive.writestr(name, content)
        content = bytearray((root / ZIP).read_bytes())
        for place in (place for place in range(len(content) - 4) if content[place : place + 2] == b"PK"):
            local, central = content[place + 2 : place + 4] == b"\3\4", content[place + 2 : place + 4] == b"\1\2"
            if local or central:
                start = place + (6 if local else 8)
                bits, method = struct.unpack("<HH", content[start : start + 4])
                values = bits | flags.get("bits", 0), flags.get("method", method)
                content[start : start + 4] = struct.pack("<HH", *values)
        (root / ZIP).write_bytes(content)

    return write


def excel(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", content)
    return buffer.getvalue()


def stem(name):
    return lambda root: (root / name).rename(root / name.removesuffix(".gz"))


FIRST = b"00000001-00000000-00000000-00000000-00000000"
PLACE = "files/p10/p10000001/s50000001.txt"

MIMIC_REFUSED = {
    "plain csv under gz": (SPLIT, replace(SPLIT, gzip.decompress)),
    "plain metadata under gz": (METADATA, replace(METADATA, gzip.decompress)),
    "login page for a table": (CHEXPERT, replace(CHEXPERT, PAGE)),
    "login page, packed": (SPLIT, replace(SPLIT, gzip.compress(PAGE))),
    "xml error page": (METADATA, replace(METADATA, b"<?xml version='1.0'?><Error>AccessDenied</Error>")),
    "empty table": (SPLIT, replace(SPLIT, b"")),
    "empty packed table": (SPLIT, replace(SPLIT, gzip.compress(b""))),
    "header only": (SPLIT, edit(SPLIT, lambda content: content.split(b"\n")[0] + b"\n")),
    "header without line end": (METADATA, edit(METADATA, lambda content: content.split(b"\n")[0].strip())),
    "only blank lines": (SPLIT, edit(SPLIT, lambda _: b"\n\n\n")),
    "truncated gz": (SPLIT, replace(SPLIT, lambda content: content[:-12])),
    "gz cut to its header": (SPLIT, replace(SPLIT, lambda content: content[:12])),
    "gz with a wrong checksum": (
        METADATA,
        replace(METADATA, lambda content: content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]),
    ),
    "gz damaged inside": (SPLIT, replace(SPLIT, lambda content: content[:30] + bytes(40) + content[70:])),
    "packed twice": (SPLIT, replace(SPLIT, gzip.compress)),
    "gz under csv": (SPLIT.removesuffix(".gz"), stem(SPLIT)),
    "spreadsheet": (CHEXPERT, replace(CHEXPERT, excel)),
    "bzip2": (CHEXPERT, replace(CHEXPERT, b"BZh91AY&SY" + bytes(range(200)))),
    "xz": (CHEXPERT, replace(CHEXPERT, b"\xfd7zXZ\0" + bytes(200))),
    "binary": (SPLIT, replace(SPLIT, bytes(range(256)))),
    "utf-16": (SPLIT, edit(SPLIT, lambda content: content.decode().encode("utf-16"))),
    "git lfs": (SPLIT, replace(SPLIT, b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n")),
    "folder": (SPLIT, folder_in_place(SPLIT)),
    "no header": (SPLIT, edit(SPLIT, lambda content: content.split(b"\n", 1)[1])),
    "another table": (SPLIT, edit(SPLIT, lambda _: f"name,text\n1,{SECRET}\n".encode())),
    "column twice": (SPLIT, edit(SPLIT, header(lambda first: first.replace(b"subject_id", b"study_id")))),
    "wanted column twice": (METADATA, edit(METADATA, header(swap(b"Rows", b"ViewPosition")))),
    "no column": (METADATA, edit(METADATA, header(swap(b"ViewPosition", b"View")))),
    "label missing": (CHEXPERT, edit(CHEXPERT, header(swap(b"Edema", b"Oedema")))),
    "open quote": (SPLIT, edit(SPLIT, swap(b",test", b',"test', 1))),
    "open quote in a column that nobody reads": (METADATA, edit(METADATA, swap(b"CHEST", b'"CHEST', 1))),
    "open quote in the last cell": (METADATA, edit(METADATA, swap(b",21800506", b',"21800506', 1))),
    "unquoted comma": (METADATA, edit(METADATA, swap(b"CHEST", b"CHEST, PA", 1))),
    "row cut off": (SPLIT, edit(SPLIT, lambda content: content[: content.rindex(b",") - 3])),
    "id as text": (SPLIT, edit(SPLIT, swap(b"50000001", SECRET.encode(), 1))),
    "ids in scientific notation": (CHEXPERT, edit(CHEXPERT, swap(b"50000001", b"5.00E+07"))),
    "fractional id": (METADATA, edit(METADATA, swap(b"50000001", b"50000001.5"))),
    "huge id": (SPLIT, edit(SPLIT, swap(b"50000001", b"9" * 40))),
    "negative id": (SPLIT, edit(SPLIT, swap(b"50000001", b"-50000001"))),
    "image without study": (SPLIT, edit(SPLIT, swap(b"50000001", b"", 1))),
    "study without image": (METADATA, edit(METADATA, swap(FIRST, b""))),
    "contradicting split": (SPLIT, edit(SPLIT, lambda content: content + FIRST + b",50000001,10000001,test\n")),
    "contradicting metadata": (METADATA, edit(METADATA, lambda content: content + FIRST + b",1,2,,AP,1,1\n")),
    "contradicting labels": (
        CHEXPERT,
        edit(CHEXPERT, lambda content: content + b"10000001,50000001" + b",1" * 14 + b"\n"),
    ),
    "label as text": (CHEXPERT, edit(CHEXPERT, swap(b",5.0,", f",{SECRET},".encode(), 1))),
    "label infinite": (CHEXPERT, edit(CHEXPERT, swap(b",5.0,", b",inf,", 1))),
    "labels without a row": (CHEXPERT, edit(CHEXPERT, lambda content: content.split(b"\n")[0] + b"\n")),
    "labels without an id": (CHEXPERT, edit(CHEXPERT, lambda content: re.sub(rb"\d{8},\d{8}", b",", content))),
    "labels of others": (CHEXPERT, edit(CHEXPERT, swap(b",5000", b",5900"))),
    "metadata of others": (METADATA, edit(METADATA, swap(b"-00000000", b"-11111111"))),
    "no views": (
        METADATA,
        edit(METADATA, lambda content: content.replace(b",PA,", b",,").replace(b",LATERAL,", b",,")),
    ),
    "no split": (
        SPLIT,
        edit(SPLIT, lambda content: re.sub(rb",(train|validate|test)", b"," + SECRET.encode(), content)),
    ),
    "zip cut off": (ZIP, replace(ZIP, lambda content: content[:-30])),
    "empty zip file": (ZIP, replace(ZIP, b"")),
    "login page for the zip": (ZIP, replace(ZIP, PAGE)),
    "encrypted zip": (ZIP, zipped((PLACE, SECRET), bits=1)),
    "encrypted zip with folders": (ZIP, zipped(("files/", ""), ("files/p10/", ""), (PLACE, SECRET), bits=1)),
    "deflate64 zip": (ZIP, zipped((PLACE, SECRET), method=9)),
    "zip of something else": (ZIP, zipped(("readme.md", SECRET))),
    "zip without anything": (ZIP, zipped()),
    "zip in a zip": (ZIP, zipped(("mimic-cxr-reports.zip", SECRET))),
}

MIMIC_READ = {
    "byte-order mark": edit(SPLIT, lambda content: b"\xef\xbb\xbf" + content),
    "CRLF and CR": edit(SPLIT, swap(b"\r\n", b"\r")),
    "LF": edit(METADATA, swap(b"\r\n", b"\n")),
    "semicolons": edit(METADATA, swap(b",", b";")),
    "tabs": edit(SPLIT, swap(b",", b"\t")),
    "header in capitals": edit(SPLIT, header(bytes.upper)),
    "header with blanks": edit(METADATA, header(swap(b",", b" , "))),
    "header in quotes": edit(SPLIT, header(lambda first: b'"' + first.replace(b",", b'","') + b'"')),
    "labels in small letters": edit(CHEXPERT, header(bytes.lower)),
    "labels with underscores": edit(CHEXPERT, header(swap(b" ", b"_"))),
    "float ids": edit(CHEXPERT, lambda content: re.sub(rb"(\d{8}),(\d{8})", rb"\1.0,\2.0", content)),
    "ids in quotes": edit(SPLIT, lambda content: re.sub(rb",(\d{8})", rb',"\1"', content)),
    "ids with letters": edit(METADATA, lambda content: content.replace(b",100", b",p100").replace(b",500", b",s500")),
    "identical rows": edit(SPLIT, lambda content: content + b"".join(content.splitlines(keepends=True)[1:3])),
    "rows that only capitals and blanks tell apart": lambda root: (
        edit(SPLIT, lambda content: content + FIRST + b", 50000001.0,p10000001, TRAIN\n")(root),
        edit(METADATA, lambda content: content + FIRST + b",10000001,50000001,,pa,1,1\n")(root),
    ),
    "laterals under longer names": edit(METADATA, swap(b"LATERAL", b"AP LATERAL")),
    "laterals, abbreviated": edit(METADATA, swap(b"LATERAL", b"PA/LAT")),
    "row of commas": edit(SPLIT, lambda content: content + b",,,\n"),
    "label row without id": edit(CHEXPERT, lambda content: content + b"," * 15 + b"\n"),
    "blank lines": edit(SPLIT, swap(b"\n", b"\n\n")),
    "dates of any kind": edit(METADATA, swap(b"21800506", b"the 6th of May")),
    "split in capitals": edit(
        SPLIT, lambda content: content.replace(b",train", b", Train ").replace(b",test", b",TEST")
    ),
    "views in small letters": edit(
        METADATA, lambda content: content.replace(b"PA", b" pa").replace(b"LATERAL", b"lateral")
    ),
    "latin-1 in a column that nobody reads": edit(METADATA, swap(b"CHEST", b"CHEST \xe9", 1)),
    "unpacked table": lambda root: (
        (root / SPLIT.removesuffix(".gz")).write_bytes(content_of(root / SPLIT)),
        (root / SPLIT).unlink(),
    ),
    "gz in parts": replace(
        SPLIT, lambda content: b"".join(gzip.compress(line) for line in gzip.decompress(content).splitlines(True))
    ),
    "bytes after the image": lambda root: [
        path.write_bytes(path.read_bytes() + b"exported\n" + b"\xff" * 9 + bytes(400)) for path in root.rglob("*.jpg")
    ],
    "stray report": lambda root: zipfile.ZipFile(root / ZIP, "a").writestr("old/s50000001.txt", SECRET),
}

ONE = "files/p10/p10000001/s50000001/00000001-00000000-00000000-00000000-00000000.jpg"


def picture(**options) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", options.pop("size", (24, 20)), 90).save(buffer, options.pop("kind", "JPEG"), **options)
    return buffer.getvalue()


def entry(content: bytes, method: int = zipfile.ZIP_STORED):
    """The first study's report with another content."""

    def write(root: Path) -> None:
        with zipfile.ZipFile(root / ZIP) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(root / ZIP, "w") as archive:
            for name, text in entries.items():
                archive.writestr(name, content if "s50000001" in name else text, method)

    return write


MIMIC_LEFT_OUT = {
    "image of zero bytes": ("unreadable_image", replace(ONE, b"")),
    "image truncated": ("unreadable_image", replace(ONE, lambda content: content[:-20])),
    "image truncated and padded": ("unreadable_image", replace(ONE, lambda content: content[:-20] + bytes(900))),
    "image a pixel high": ("unreadable_image", replace(ONE, picture(size=(30, 1)))),
    "image of one column": ("unreadable_image", replace(ONE, picture(size=(1, 30), kind="PNG"))),
    "image is a page": ("unreadable_image", replace(ONE, PAGE)),
    "image is a TIFF": ("unreadable_image", replace(ONE, picture(kind="TIFF"))),
    "image is a folder": ("unreadable_image", folder_in_place(ONE)),
    "image is missing": ("unreadable_image", lambda root: (root / ONE).unlink()),
    "report of undefined bytes": ("undecodable_report", entry(f"FINDINGS: {SECRET} \x81".encode("latin-1"))),
    "report of zeros": ("unreadable_report", entry(bytes(900))),
    "empty report": ("unreadable_report", entry(b"")),
    "report is a page": ("unreadable_report", entry(PAGE)),
    "report damaged": ("unreadable_report", replace(ZIP, swap(f"{SECRET} 1".encode(), b"zyxsicret 1"))),
}

CHEXPERT_REFUSED = {
    "login page": (TABLE, replace(TABLE, PAGE)),
    "empty table": (TABLE, replace(TABLE, b"")),
    "header only": (TABLE, edit(TABLE, lambda content: content.split(b"\n")[0] + b"\n")),
    "utf-16": (TABLE, edit(TABLE, lambda content: content.decode().encode("utf-16"))),
    "plain under gz": (f"{TABLE}.gz", lambda root: (root / TABLE).rename(root / f"{TABLE}.gz")),
    "gz under csv": (TABLE, replace(TABLE, gzip.compress)),
    "truncated gz": (
        f"{TABLE}.gz",
        lambda root: (root / f"{TABLE}.gz").write_bytes(gzip.compress((root / TABLE).read_bytes())[:-9]),
    ),
    "zip": (TABLE, replace(TABLE, excel)),
    "row cut off": (TABLE, replace(TABLE, lambda content: content[:-120])),
    "open quote": (TABLE, edit(TABLE, swap(b"Cough", b'"Cough', 1))),
    "quote within a text": (TABLE, edit(TABLE, swap(b'"The lungs are clear', b'"The "lungs are clear', 1))),
    "unquoted comma": (TABLE, edit(TABLE, swap(b"Cough", b"Cough, fever", 1))),
    "no header": (TABLE, edit(TABLE, lambda content: content.split(b"\n", 1)[1])),
    "column missing": (TABLE, edit(TABLE, header(swap(b"ap_pa", b"projection")))),
    "column twice": (TABLE, edit(TABLE, header(swap(b"report,", b"split,")))),
    "paths of something else": (TABLE, edit(TABLE, swap(b"/study", b"/s"))),
    "splits of something else": (TABLE, edit(TABLE, swap(b",train\n", b"," + SECRET.encode() + b"\n"))),
    "labels are a page": (LABELS_FILE, replace(LABELS_FILE, PAGE)),
    "labels cut off": (LABELS_FILE, replace(LABELS_FILE, lambda content: content[:-9])),
    "labels as a list cut off": (LABELS_FILE, replace(LABELS_FILE, b'[{"path_to_image": 1},\n')),
    "labels as text": (LABELS_FILE, replace(LABELS_FILE, swap(b'"Edema": 1.0', f'"Edema": "{SECRET}"'.encode(), 1))),
    "labels as lists": (LABELS_FILE, replace(LABELS_FILE, swap(b'"Edema": 1.0', b'"Edema": [1.0]', 1))),
    "a label twice": (LABELS_FILE, replace(LABELS_FILE, swap(b'"Edema": 1.0', b'"Edema": 1.0, "Edema": 0.0', 1))),
    "a label twice, in another case": (
        LABELS_FILE,
        replace(LABELS_FILE, swap(b'"Edema": 1.0', b'"Edema": 1.0, "edema": 0.0', 1)),
    ),
    "labels true": (LABELS_FILE, replace(LABELS_FILE, swap(b'"Edema": 1.0', b'"Edema": true', 1))),
    "labels huge": (LABELS_FILE, replace(LABELS_FILE, swap(b'"Edema": 1.0', b'"Edema": 1' + b"0" * 400, 1))),
    "labels infinite": (LABELS_FILE, replace(LABELS_FILE, swap(b'"Edema": 1.0', b'"Edema": 1e999', 1))),
    "labels under other names": (
        LABELS_FILE,
        replace(LABELS_FILE, lambda content: re.sub(rb'"[A-Z]([^"]*)":', rb'"x\1":', content)),
    ),
    "labels that are no objects": (LABELS_FILE, replace(LABELS_FILE, f'"{SECRET}"\n'.encode())),
    "labels without path": (LABELS_FILE, replace(LABELS_FILE, swap(b"path_to_image", b"path", 1))),
    "labels of others": (LABELS_FILE, replace(LABELS_FILE, swap(b"patient000", b"patient999"))),
    "labels in latin-1": (LABELS_FILE, replace(LABELS_FILE, swap(b'"Edema"', b'"\xe9"', 1))),
    "labels packed": (LABELS_FILE, replace(LABELS_FILE, gzip.compress)),
    "labels nested": (LABELS_FILE, replace(LABELS_FILE, b"[" * 100_000)),
    "labels are a folder": (LABELS_FILE, folder_in_place(LABELS_FILE)),
}
CHEXPERT_READ = {
    "byte-order mark": edit(TABLE, lambda content: b"\xef\xbb\xbf" + content),
    "CRLF": edit(TABLE, swap(b"\n", b"\r\n")),
    "header in capitals": edit(TABLE, header(bytes.upper)),
    "gzipped": lambda root: (
        (root / f"{TABLE}.gz").write_bytes(gzip.compress((root / TABLE).read_bytes())),
        (root / TABLE).unlink(),
    ),
    "labels with a byte-order mark": replace(LABELS_FILE, lambda content: b"\xef\xbb\xbf" + content),
    "labels with blank lines": replace(LABELS_FILE, swap(b"\n", b"\r\n\r\n")),
    "labels as numbers in text": replace(LABELS_FILE, swap(b'"Edema": 1.0', b'"Edema": "1.0"')),
    "labels in small letters": replace(LABELS_FILE, lambda content: content.lower()),
    "labels as a list": replace(
        LABELS_FILE, lambda content: json.dumps([json.loads(line) for line in content.splitlines()], indent=1).encode()
    ),
    "NaN in columns that say nothing": edit(TABLE, swap(b",,", b",NaN,")),
}

PATIENT = "PNG/train/patient00001/study1/view1_frontal.png"

CHEXPERT_LEFT_OUT = {
    "image truncated": ("unreadable_image", replace(PATIENT, lambda content: content[:-20])),
    "image a pixel high": ("unreadable_image", replace(PATIENT, picture(size=(30, 1), kind="PNG"))),
    "image beyond all size": (
        "unreadable_image",
        replace(PATIENT, lambda content: content[:16] + struct.pack(">II", 40_000, 40_000) + content[24:]),
    ),
    "name too long for the disk": ("bad_path", edit(TABLE, swap(b"view1_frontal", b"view1_" + b"x" * 300, 1))),
    "number too large": ("bad_path", edit(TABLE, swap(b"patient00001/", b"patient" + b"1" * 30 + b"/", 1))),
    "path is a text": ("bad_path", edit(TABLE, swap(b"train/patient00001/", SECRET.encode() + b" says: ", 1))),
    "bytes without a meaning": ("undecodable_report", edit(TABLE, swap(f"{SECRET} 1.".encode(), b"\x81", 1))),
    "split is a text": (
        "unknown_split",
        edit(
            TABLE,
            lambda content: re.sub(
                rb"(patient00001/[^\n]*(?:\nreally[^\n]*)?),train\n", rb"\1," + SECRET.encode() + b"\n", content
            ),
        ),
    ),
}


def cases(**tables):
    return [
        pytest.param(reader, *(case if isinstance(case, tuple) else (case,)), id=f"{reader}: {name}")
        for reader, table in tables.items()
        for name, case in table.items()
    ]


@pytest.mark.parametrize(("reader", "file", "change"), cases(mimic_cxr=MIMIC_REFUSED, chexpert_plus=CHEXPERT_REFUSED))
def test_it_is_refused_in_a_sentence_with_file_and_remedy(tmp_path, caplog, reader, file, change):
    caplog.set_level(logging.DEBUG)
    root = MAKE[reader](tmp_path / "data")
    change(root)
    with pytest.raises(DataError) as refused:
        run(reader, root, tmp_path / "out")
    (problem,) = inspect("mine", {"reader": reader, "root": str(root), "selection": SELECTION[reader]}).problems
    for told in (str(refused.value), problem):
        assert Path(file).name in told
        assert REMEDY.search(told), told
        assert told.startswith("datasets.mine: ")
        assert "Error" not in told.replace("DataError", "")
        assert len(told) < 700
    assert SECRET not in caplog.text + str(refused.value) + problem


@pytest.mark.parametrize(("reader", "change"), cases(mimic_cxr=MIMIC_READ, chexpert_plus=CHEXPERT_READ))
def test_it_is_read_right(tmp_path, caplog, reader, change):
    sound, root = MAKE[reader](tmp_path / "sound"), MAKE[reader](tmp_path / "data")
    change(root)
    pd.testing.assert_frame_equal(run(reader, root, tmp_path / "out"), run(reader, sound, tmp_path / "expected"))
    assert SECRET not in caplog.text


@pytest.mark.parametrize(("reader", "rule", "change"), cases(mimic_cxr=MIMIC_LEFT_OUT, chexpert_plus=CHEXPERT_LEFT_OUT))
def test_it_costs_a_study_with_a_named_reason(tmp_path, caplog, reader, rule, change):
    sound, root = MAKE[reader](tmp_path / "sound"), MAKE[reader](tmp_path / "data")
    change(root)
    kept = run(reader, root, tmp_path / "out")
    expected = run(reader, sound, tmp_path / "expected")
    pd.testing.assert_frame_equal(kept, expected.iloc[1:].reset_index(drop=True))
    listed = (tmp_path / "out/excluded").read_text()
    assert f",{rule}," in listed
    assert SECRET not in listed + caplog.text + (tmp_path / "out/counts").read_text()


@pytest.mark.parametrize("file", [SPLIT, METADATA, CHEXPERT, ZIP])
def test_a_wrong_download_is_told_before_any_job(tmp_path, file):
    root = mimic(tmp_path)
    (root / file).write_bytes(PAGE)
    (message,) = check_root("mimic_cxr", root, "mine")
    assert f"{file}: is a web page, perhaps the login page, in place of the file; log in, then download it" in message
    assert "Missing there" not in message


def test_a_copy_that_was_only_begun_is_no_wrong_download(tmp_path):
    root = mimic(tmp_path)
    for content in (b"", gzip.compress(b"")):
        for file in (SPLIT, METADATA, CHEXPERT):
            (root / file).write_bytes(content)
        assert check_root("mimic_cxr", root, "mine") == []
