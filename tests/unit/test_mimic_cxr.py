"""MIMIC-CXR's reader: every layout of the reports, and tables and files that disagree."""

import random
import subprocess
import sys
import zipfile

import pandas as pd
import pytest

from dive.data.mimic_cxr import read
from dive.data.roots import DataError, check_root, find_reports
from dive.data.sections import SECTIONED_BY_HAND
from dive.data.studies import LABELS
from tests.unit.trees import MimicTree, report, write_csv


def excluded(reading):
    return {uid: rule for uid, rule, _ in reading.excluded}


@pytest.mark.parametrize("packed", [True, False], ids=["csv.gz", "csv"])
@pytest.mark.parametrize("reports", ["beside", "folder", "top", "zip"])
def test_reports_in_every_layout(tmp_path, reports, packed):
    root = MimicTree(tmp_path).study(split="validate").write(reports, packed=packed)
    reading = read(root, {})
    (study,) = reading.studies.to_dict("records")
    assert (study["study_uid"], study["patient_uid"], study["split"]) == ("s50000001", "p10000001", "validate")
    assert study["findings"] == "The lungs are clear without effusion."
    assert study["impression"] == "Normal."
    assert study["indication"] == "___ with cough."
    assert study["image_paths"] == ["files/p10/p10000001/s50000001/00000001-00000000-00000000-00000000-00000000.jpg"]
    assert reading.locate(study["image_paths"][0])[0] == study["image_paths"][0]
    assert reading.excluded == []


def test_reports_elsewhere(tmp_path):
    root = MimicTree(tmp_path / "jpg").study().write("zip")
    (root / "mimic-cxr-reports.zip").rename(tmp_path / "texts.zip")
    selection = {"reports": str(tmp_path / "texts.zip")}
    assert len(read(root, selection).studies) == 1
    assert check_root("mimic_cxr", root, "x", selection) == []
    assert "the reports" in check_root("mimic_cxr", root, "x", {})[0]


def test_a_folder_is_read_before_the_zip(tmp_path):
    tree = MimicTree(tmp_path).study()
    tree.write("zip")
    root = tree.write("folder")
    assert [source.name for source in find_reports(root)] == ["files", "mimic-cxr-reports.zip"]


def test_a_report_missing_from_the_folder_is_found_in_the_zip(tmp_path):
    tree = MimicTree(tmp_path).study().study(50000002, 10000002)
    tree.write("zip")
    root = tree.write("beside")
    (root / "files/p10/p10000002/s50000002.txt").unlink()
    assert read(root, {}).excluded == []


@pytest.mark.parametrize("order", [sorted(LABELS), LABELS[::-1], [*LABELS[3:], *LABELS[:3]]])
def test_labels_are_read_by_name(tmp_path, order):
    root = MimicTree(tmp_path).study().write(label_order=order)
    study = read(root, {}).studies.iloc[0]
    for index, label in enumerate(LABELS):
        assert pd.isna(study[label]) if label == "Fracture" else study[label] == index


def test_other_label_tables(tmp_path):
    root = MimicTree(tmp_path).study(split="test").write()
    names = ["Airspace Opacity" if label == "Lung Opacity" else label for label in sorted(LABELS)]
    write_csv(root / "mimic-cxr-2.1.0-test-set-labeled.csv", ("study_id", *names), [(50000001, *[1.0] * 14)])
    assert read(root, {"labels": "test_set_labeled"}).studies["Lung Opacity"].tolist() == [1.0]
    assert read(root, {"labels": None}).studies[list(LABELS)].isna().all(axis=None)
    with pytest.raises(DataError, match="negbio"):
        read(root, {"labels": "negbio"})


def test_a_label_table_without_a_label_is_refused(tmp_path):
    root = MimicTree(tmp_path).study().write()
    write_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ("subject_id", "study_id", *LABELS[1:]), [])
    with pytest.raises(DataError, match="has no column No Finding"):
        read(root, {})


def test_an_unlabeled_study_is_kept(tmp_path):
    root = MimicTree(tmp_path).study().study(50000002, 10000002, labels=False).write()
    reading = read(root, {})
    assert len(reading.studies) == 2
    assert reading.notes["studies_without_labels"] == 1


def test_label_rows_without_a_study_are_counted(tmp_path):
    tree = MimicTree(tmp_path).study()
    tree.labels.append((10000009, 50000009))
    assert read(tree.write(), {}).notes["label_rows_without_study"] == 1


def test_an_empty_view_position_is_unknown(tmp_path):
    reading = read(MimicTree(tmp_path).study(views=("", "LATERAL")).write(), {})
    assert reading.studies["views"].tolist() == [["", "LATERAL"]]
    assert reading.notes["images_without_view"] == 1


def test_images_of_one_table_only(tmp_path):
    tree = MimicTree(tmp_path).study(views=("PA", "AP")).study(50000002, 10000002)
    del tree.metadata[1]  # the first study's second image
    del tree.split[2]  # the second study
    reading = read(tree.write(), {})
    assert reading.studies["views"].tolist() == [["PA", ""]]
    assert excluded(reading) == {"s50000002": "no_split"}
    assert reading.notes["images_without_metadata"] == 1
    assert reading.notes["images_without_split"] == 1


def test_tables_that_name_another_patient_or_split(tmp_path):
    tree = MimicTree(tmp_path)
    for number in range(1, 5):
        tree.study(50000000 + number, 10000000 + number, views=("PA", "LATERAL"))
    tree.split[0] = (*tree.split[0][:2], 10000009, "train")
    tree.split[2] = (*tree.split[2][:3], "test")
    reading = read(tree.write(), {})
    assert excluded(reading) == {"s50000001": "tables_disagree", "s50000002": "tables_disagree"}
    assert reading.studies["study_uid"].tolist() == ["s50000003", "s50000004"]


def test_rows_that_repeat_are_one_and_rows_that_contradict_are_refused_with_the_image(tmp_path):
    tree = MimicTree(tmp_path / "a").study(views=("PA", "LATERAL"))
    tree.split *= 2
    tree.metadata.append(tree.metadata[0])
    reading = read(tree.write(), {})
    assert reading.studies["views"].tolist() == [["PA", "LATERAL"]]
    assert reading.notes["repeated_rows"] == 3
    assert reading.sizes["train"]["images"] == 2
    tree.metadata.append((*tree.metadata[0][:4], "LATERAL", 1, 1))
    with pytest.raises(DataError, match=rf"metadata\.csv\.gz: two rows of the image {tree.metadata[0][0]} contradict"):
        read(tree.write(), {})


@pytest.mark.parametrize("of", ["p{}", "P{}", " {} ", "{}.0", "{}.", "0{}"])
def test_ids_that_programs_rewrote_are_the_same_ids(tmp_path, of):
    tree = MimicTree(tmp_path).study(views=("PA", "LATERAL"))
    subject, study = of.format(10000001), of.replace("p", "s").replace("P", "S").format(50000001)
    tree.metadata = [(row[0], subject, study, *row[3:]) for row in tree.metadata]
    tree.split = [(row[0], study, subject, *row[3:]) for row in tree.split]
    tree.labels = [(subject, study)]
    reading = read(tree.write(), {})
    assert reading.studies[["study_uid", "patient_uid"]].to_numpy().tolist() == [["s50000001", "p10000001"]]
    assert reading.studies["Cardiomegaly"].tolist() == [2.0]
    assert reading.studies["image_paths"][0][0].startswith("files/p10/p10000001/s50000001/")


def test_a_label_row_without_an_id_costs_nobody_else_his_labels(tmp_path):
    tree = MimicTree(tmp_path).study().study(50000002, 10000002)
    tree.labels = [(subject, f"{study}.0") for subject, study in tree.labels] + [("", "")]
    reading = read(tree.write(), {})
    assert reading.studies["Cardiomegaly"].tolist() == [2.0, 2.0]
    assert reading.notes["label_rows_without_id"] == 1
    assert reading.notes["studies_without_labels"] == 0


def test_label_rows_that_contradict_are_refused_with_the_study(tmp_path):
    root = MimicTree(tmp_path).study().write()
    rows = [(50000001, *[1.0] * 14), (50000001, *[1] * 14)]
    path = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    write_csv(path, ("study_id", *LABELS), rows)
    assert read(root, {}).studies["Edema"].tolist() == [1.0]
    write_csv(path, ("study_id", *LABELS), [*rows, (50000001, *[0.0] * 14)])
    with pytest.raises(DataError, match=r"chexpert\.csv\.gz: two rows of the study s50000001 contradict"):
        read(root, {})


def test_metadata_of_other_images_are_refused_and_so_are_metadata_without_views(tmp_path):
    tree = MimicTree(tmp_path).study(views=("PA", "LATERAL")).study(50000002, 10000002, views=("AP",))
    whole, blank = list(tree.metadata), [(*row[:4], "NaN", *row[5:]) for row in tree.metadata]
    tree.metadata = [(f"{row[0]}.dcm", *row[1:]) for row in whole[:2]] + whole[2:]
    with pytest.raises(DataError, match=r"metadata\.csv\.gz has rows for 1 of the 3 images of the split table"):
        read(tree.write(), {})
    tree.metadata = blank
    with pytest.raises(DataError, match=r"metadata\.csv\.gz: its ViewPosition is empty .* selection\.views to all"):
        read(tree.write(), {})
    assert read(tree.write(), {"views": "all"}).studies["views"].tolist() == [["", ""], [""]]


def test_metadata_that_were_cut_are_refused_before_laterals_pass_as_frontal(tmp_path):
    """A table that is cut at the end of a line is whole to look at."""
    tree = MimicTree(tmp_path)
    for number in range(1, 11):
        tree.study(50000000 + number, 10000000 + number, views=("PA", "LATERAL"))
    del tree.metadata[-2:]
    root = tree.write()
    with pytest.raises(DataError, match=r"metadata\.csv\.gz lacks 2 of the 20 images of the split table"):
        read(root, {})
    assert read(root, {"max_unreadable": 0.1}).notes["images_without_metadata"] == 2
    assert read(root, {"views": "all"}).notes["images_without_metadata"] == 2


def test_reports_that_cannot_be_used_are_listed(tmp_path):
    by_hand = int(sorted(SECTIONED_BY_HAND)[0][1:])
    tree = MimicTree(tmp_path).study(text=False).study(50000002, text=b"\n FINDINGS: w\x81th")
    tree.study(by_hand).study(50000004)
    tree.study(50000005, text=b"").study(50000006, text=b"<!DOCTYPE html><html>log in</html>")
    reading = read(tree.study(50000007, text=bytes(2000)).write(), {})
    assert excluded(reading) == {
        "s50000001": "no_report",
        "s50000002": "undecodable_report",
        f"s{by_hand}": "sectioned_by_hand",
        "s50000005": "unreadable_report",
        "s50000006": "unreadable_report",
        "s50000007": "unreadable_report",
    }
    assert reading.studies["study_uid"].tolist() == ["s50000004"]


@pytest.mark.parametrize("reports", ["beside", "zip"])
def test_a_report_in_another_decoding_is_kept_and_counted(tmp_path, reports):
    tree = MimicTree(tmp_path).study(text=report().replace("cough", "co\x92gh \xb0").encode("latin-1"))
    tree.study(50000002, text=report("Temperature 38\xb0.").encode("latin-1")).study(50000003, text=report("38\xb0"))
    tree.study(50000004, text=report("Marks.").encode("utf-16"))
    tree.study(50000005, text=b"\xef\xbb\xbf" + report("Marked.").encode())
    reading = read(tree.write(reports), {})
    assert reading.excluded == []
    assert reading.studies["findings"].tolist() == [
        "The lungs are clear without effusion.",
        "Temperature 38\xb0.",
        "38\xb0",
        "Marks.",
        "Marked.",
    ]
    assert reading.studies["indication"][0] == "___ with co\u2019gh \xb0."
    assert reading.notes["reports_not_utf_8"] == 3


def rezip(root, names):
    """Write the zip anew: entry's name -> content, where True stands for the report."""
    texts = {True: report("The right one."), False: report("The wrong one.")}
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        for name, content in names:
            archive.writestr(name, texts.get(content, content))


@pytest.mark.parametrize(
    "names",
    [
        [("files/p10/p10000001/s50000001.txt", True), ("s50000001.txt", False)],
        [("files/p10/p10000001/s50000001.txt", True), ("notes/drafts/s50000001.txt", False)],
        [("files/p10/p10000001/s50000001.txt", True), ("files/p11/p11000001/s50000001.txt", False)],
        [("files/p10/p10000001/s50000001.txt", True), ("a/p10/p10000001/s50000001.txt", False)],
        [("a/p10/p10000001/s50000001.txt", False), ("files/p10/p10000001/s50000001.txt", True)],
        [("files/p10/p10000001/s50000001.txt", True), ("__MACOSX/files/p10/p10000001/s50000001.txt", False)],
        [("mimic/2.0/files/p10/p10000001/s50000001.txt", True), ("old/s50000001.txt", False)],
        [("files\\p10\\p10000001\\s50000001.txt", True)],
        [("p10/p10000001/s50000001.txt", True)],
        [("reports/s50000001.txt", True), ("reports/s50000002.txt", False)],
        [("files/", ""), ("files/p10/", ""), ("files/p10/p10000001/s50000001.txt", True)],
    ],
)
def test_the_report_in_its_patient_s_folder_is_the_one_that_is_read(tmp_path, names):
    root = MimicTree(tmp_path).study(text=False).write()
    rezip(root, names)
    assert read(root, {}).studies["findings"].tolist() == ["The right one."]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_path_are_a_report_only_if_they_are_equal(tmp_path):
    root = MimicTree(tmp_path).study(text=False).study(50000002, 10000002, text=False).write()
    first, second = "files/p10/p10000001/s50000001.txt", "files/p10/p10000002/s50000002.txt"
    rezip(root, [(first, True), (second, True), (first, False), (second, True)])
    reading = read(root, {})
    assert excluded(reading) == {"s50000001": "unreadable_report"}
    assert reading.studies["findings"].tolist() == ["The right one."]


@pytest.mark.parametrize("reports", ["beside", "folder", "zip"])
def test_a_backup_beside_the_reports_replaces_none(tmp_path, reports):
    """Folders were read in the order of their names, and before the zip."""
    root = MimicTree(tmp_path).study(text=report("The right one.")).write(reports)
    backup = root / "backup/files/p10/p10000001/s50000001.txt"
    backup.parent.mkdir(parents=True)
    backup.write_text(report("The wrong one."))
    assert read(root, {}).studies["findings"].tolist() == ["The right one."]


def test_the_folder_with_most_reports_has_them_all(tmp_path):
    root = MimicTree(tmp_path).study(text=False).study(50000002, 10000002, text=False).write()
    first, second = "p10/p10000001/s50000001.txt", "p10/p10000002/s50000002.txt"
    rezip(root, [(f"v2/{first}", True), (f"v2/{second}", True), (f"files/{first}", False)])
    assert read(root, {}).studies["findings"].tolist() == ["The right one."] * 2


def test_two_files_of_one_name_without_a_place_are_no_report(tmp_path):
    root = MimicTree(tmp_path).study(text=False).study(50000002, 10000002, text=False).write()
    rezip(root, [("a/s50000001.txt", True), ("b/s50000001.txt", False), ("a/s50000002.txt", True)])
    assert excluded(read(root, {})) == {"s50000001": "unreadable_report"}


def test_files_that_no_table_names_are_counted(tmp_path, caplog):
    root = MimicTree(tmp_path).study().study(50000002, text=False).write("folder")
    group = root / "mimic-cxr-reports/files/p10"
    (group / "p10000001/s59999999.txt").write_text(report())
    (group / "p10000077").mkdir()
    (group / "p10000077/s59999998.txt").write_text(report())
    (root / "files/p10/p10000001/s59999997").mkdir()
    (root / "files/p10/p10000001/notes.txt").write_text("not a report")
    reading = read(root, {})
    assert reading.notes["stray_reports"] == 2
    assert reading.notes["stray_study_folders"] == 1
    assert "2 reports are named by no table, s59999998 the first" in caplog.text
    assert reading.studies["study_uid"].tolist() == ["s50000001"]


@pytest.mark.parametrize("reports", ["beside", "zip"])
def test_strays_in_every_layout(tmp_path, reports):
    tree = MimicTree(tmp_path).study()
    tree.reports["p10/p10000001/s59999999.txt"] = report().encode()
    notes = read(tree.write(reports), {}).notes
    assert (notes["stray_reports"], notes["stray_study_folders"]) == (1, 0)


def test_a_report_that_cannot_be_read_is_listed(tmp_path):
    root = MimicTree(tmp_path).study().study(50000002, 10000002).write("beside")
    path = root / "files/p10/p10000002/s50000002.txt"
    path.unlink()
    path.mkdir()
    assert excluded(read(root, {})) == {"s50000002": "unreadable_report"}


def test_a_report_damaged_in_the_zip_is_listed(tmp_path):
    text = report("The lungs are clear and this is the one.")
    root = MimicTree(tmp_path).study().study(50000002, 10000002, text=text).write("zip")
    archive = root / "mimic-cxr-reports.zip"
    content = archive.read_bytes()
    assert content.count(b"this is the one") == 1
    archive.write_bytes(content.replace(b"this is the one", b"this is the two"))
    assert excluded(read(root, {})) == {"s50000002": "unreadable_report"}


@pytest.mark.parametrize("name", ["metadata", "split", "chexpert"])
def test_a_table_that_was_cut_off_is_named(tmp_path, name):
    root = MimicTree(tmp_path).study().write()
    path = root / f"mimic-cxr-2.0.0-{name}.csv.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=rf"{name}\.csv\.gz: cannot be read"):
        read(root, {})


def test_labels_of_other_studies_are_refused(tmp_path):
    tree = MimicTree(tmp_path).study(labels=False)
    tree.labels.append((10000001, 59000001))
    with pytest.raises(DataError, match=r"chexpert\.csv\.gz: its study_id"):
        read(tree.write(), {})


def test_line_ends_and_white_space(tmp_path):
    text = report("The lungs\n are   clear.").replace("\n", "\r\n")
    assert read(MimicTree(tmp_path).study(text=text).write(), {}).studies["findings"].tolist() == [
        "The lungs are clear."
    ]


def test_findings_may_be_absent_or_repeated(tmp_path):
    tree = MimicTree(tmp_path).study(text=report(None)).study(50000002, text=report("first") + report("second"))
    findings = read(tree.study(50000003, text=report(" ")).write(), {}).studies["findings"]
    assert findings.isna().tolist() == [True, False, True]
    assert findings[1] == "second"


def test_the_order_of_the_tables_does_not_matter(tmp_path):
    trees = [MimicTree(tmp_path / name) for name in ("a", "b")]
    for tree in trees:
        for number in range(1, 8):
            tree.study(50000000 + number, 10000000 + number % 3, views=("PA", "AP")[: 1 + number % 2])
    for rows in (trees[1].metadata, trees[1].split, trees[1].labels):
        random.Random(0).shuffle(rows)
    first, second = (read(tree.write(), {}).studies for tree in trees)
    pd.testing.assert_frame_equal(first, second)


def test_what_is_missing_is_said_at_once(tmp_path):
    (message,) = check_root("mimic_cxr", tmp_path / "nowhere", "mimic-cxr")
    for part in (
        "does not exist",
        "2.0.0-metadata.csv.gz",
        "2.0.0-split",
        "2.0.0-chexpert",
        "reports",
        "physionet.org",
    ):
        assert part in message
    assert "datasets.mimic-cxr.root" in message
    root = MimicTree(tmp_path).study().write("zip")
    assert check_root("mimic_cxr", root, "mimic-cxr") == []
    (root / "mimic-cxr-reports.zip").write_bytes(b"PK half a downlo")
    (root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    (message,) = check_root("mimic_cxr", root, "mimic-cxr")
    assert "interrupted download" in message
    assert "2.0.0-split" in message
    assert "2.0.0-metadata" not in message


def test_asking_for_the_data_costs_no_imports():
    code = (
        "import sys; from dive.data.roots import check_root; check_root('mimic_cxr', '/nowhere', 'x'); "
        "sys.exit(bool({'numpy', 'pandas', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
