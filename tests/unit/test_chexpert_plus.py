"""CheXpert Plus' reader: keys from the path, images wherever they lie, sections that differ, labels as JSON Lines."""

import json

import pytest

from dive.data.chexpert_plus import read
from dive.data.roots import DataError, check_root
from dive.data.studies import LABELS
from tests.unit.trees import ChexpertTree


def test_rows_become_studies_by_the_path(tmp_path):
    tree = ChexpertTree(tmp_path).image(2, 1).image(1, 10).image(1, 2, "view2_lateral").image(1, 2)
    studies = read(tree.write(), {}).studies
    # Accession numbers are equal in all four rows: no key. Studies and views are in the order of their numbers.
    assert studies["study_uid"].tolist() == [
        "patient00001/study2",
        "patient00001/study10",
        "patient00002/study1",
    ]
    assert studies["patient_uid"].tolist() == ["patient00001", "patient00001", "patient00002"]
    assert studies["views"][0] == ["PA", "LATERAL"]
    assert [path.split("/")[-1] for path in studies["image_paths"][0]] == ["view1_frontal.jpg", "view2_lateral.jpg"]
    assert studies["indication"].tolist() == ["Cough."] * 3


@pytest.mark.parametrize(
    ("place", "suffix", "found"),
    [
        ("PNG/train", ".png", "PNG/train/patient00001/study1/view1_frontal.png"),
        ("PNG/PNG/train", ".png", "PNG/PNG/train/patient00001/study1/view1_frontal.png"),
        ("PNG", ".png", "PNG/patient00001/study1/view1_frontal.png"),
        ("train", ".jpg", "train/patient00001/study1/view1_frontal.jpg"),
        ("", ".png", "patient00001/study1/view1_frontal.png"),
    ],
)
def test_images_are_found_wherever_the_copy_keeps_them(tmp_path, place, suffix, found):
    root = ChexpertTree(tmp_path).image(place=place, suffix=suffix).write()
    path, _ = read(root, {}).locate("train/patient00001/study1/view1_frontal.jpg")
    assert path == found


def test_a_missing_image_lists_what_was_tried(tmp_path):
    reading = read(ChexpertTree(tmp_path).image(place=None).write(), {})
    path, tried = reading.locate("train/patient00001/study1/view1_frontal.jpg")
    assert path is None
    assert "PNG/PNG/train/patient00001/study1/view1_frontal.png" in tried
    assert "patient00001/study1/view1_frontal.jpg" in tried
    assert len(tried) == len(set(tried)) == 18


def test_a_regular_copy_costs_one_look_an_image(tmp_path):
    tree = ChexpertTree(tmp_path)
    for study in range(1, 4):
        tree.image(1, study, place="PNG/PNG/train")
    locate = read(tree.write(), {}).locate
    looks = [len(locate(f"train/patient00001/study{study}/view1_frontal.jpg")[1]) for study in range(1, 4)]
    assert looks[0] > 1
    assert looks[1:] == [1, 1]


def test_null_and_differing_sections(tmp_path):
    tree = ChexpertTree(tmp_path)
    tree.image(1, 1, "view2_frontal", section_findings="of view two").image(1, 1, "view1_frontal", section_findings="")
    tree.image(2, 1, "view1_frontal", section_findings="first  \n one").image(
        2, 1, "view2_lateral", section_findings="b"
    )
    tree.image(3, 1, section_findings="", section_impression="")
    reading = read(tree.write(), {})
    findings = reading.studies["findings"]
    # The text of the lowest view number that has one.
    assert findings[:2].tolist() == ["of view two", "first one"]
    assert findings.isna().tolist() == [False, False, True]
    assert reading.notes["studies_whose_section_findings_differ"] == 1
    assert reading.notes["studies_without_findings"] == 1


def test_words_that_look_like_nulls_are_text(tmp_path):
    studies = read(ChexpertTree(tmp_path).image(section_findings="None").write(), {}).studies
    assert studies["findings"].tolist() == ["None"]


@pytest.mark.parametrize("cell", ["NaN", "nan", " NaN ", "null", "<NA>", " "])
def test_cells_that_programs_write_for_nothing_are_no_text(tmp_path, cell):
    sections = dict.fromkeys(("section_findings", "section_impression", "section_clinical_history"), cell)
    tree = ChexpertTree(tmp_path).image(1, 1, ap_pa=cell, **sections).image(1, 1, "view2_frontal")
    (study,) = read(tree.write(), {}).studies.to_dict("records")
    assert study["findings"] == "The lungs are clear without effusion."
    assert study["impression"] == "1. Normal chest."
    assert study["indication"] == "Cough."
    assert study["views"] == ["FRONTAL", "PA"]


def test_what_a_spreadsheet_makes_of_a_text_with_a_dash_is_no_text(tmp_path):
    tree = ChexpertTree(tmp_path).image(1, 1, section_findings="#NAME?").image(2, 1, section_findings="#VALUE!")
    assert read(tree.write(), {}).notes["studies_without_findings"] == 2


def test_cells_in_another_decoding_are_kept_and_counted(tmp_path):
    tree = ChexpertTree(tmp_path).image(1, 1, section_findings="38\xb0").image(2, 1, section_history="caf\xe9")
    reading = read(tree.write("latin-1"), {})
    assert reading.studies["findings"].tolist() == ["38\xb0", "The lungs are clear without effusion."]
    assert reading.studies["indication"].tolist() == ["Cough.", "caf\xe9"]
    assert reading.notes["cells_not_utf_8"] == 2
    assert reading.excluded == []


def test_what_is_no_split_is_left_out_without_being_told(tmp_path):
    tree = ChexpertTree(tmp_path).image(1, 1, split=" Train", path_to_image="patient00001/study1/view1_frontal.jpg")
    tree.image(2, 1, split="The lungs.", path_to_image="train/patient00002/study1/view1_frontal.jpg")
    assert read(tree.write(), {}).studies["split"].tolist() == ["train", "other"]


def test_views(tmp_path):
    tree = ChexpertTree(tmp_path).image(1, 1, ap_pa="").image(2, 1, ap_pa="ap", frontal_lateral="")
    tree.image(3, 1, "view1_lateral", frontal_lateral="", ap_pa="")
    tree.image(4, 1, "view1", frontal_lateral="", ap_pa="").image(5, 1, ap_pa="The lungs are clear.")
    reading = read(tree.write(), {})
    assert reading.studies["views"].tolist() == [["FRONTAL"], ["AP"], ["LATERAL"], [""], ["OTHER"]]
    assert reading.notes["images_without_view"] == 2  # of a lateral image ap_pa says nothing


def test_labels_by_study_from_json_lines(tmp_path):
    tree = ChexpertTree(tmp_path).image(1, 1).image(1, 1, "view2_frontal").image(2, 1).image(3, 1)
    tree.label("train/patient00001/study1/view1_frontal.jpg")
    tree.label("train/patient00001/study1/view2_frontal.jpg", Edema=-1.0, Fracture=0)
    tree.label("train/patient00002/study1/view1_frontal.jpg", **{"No Finding": 1})
    tree.label("train/patient00009/study1/view1_frontal.jpg", Edema=1)
    reading = read(tree.write(), {})
    studies = reading.studies
    assert studies["Edema"][0] == -1.0
    assert studies["Fracture"][0] == 0.0
    assert studies["No Finding"][1] == 1.0
    assert studies.loc[2, list(LABELS)].isna().all()
    assert reading.notes["studies_without_labels"] == 1
    assert reading.notes["label_rows_without_study"] == 1


def test_rows_and_labels_that_repeat_or_differ_are_counted(tmp_path):
    tree = ChexpertTree(tmp_path).image(1, 1).image(1, 1, ap_pa="AP").image(1, 1, "view2_frontal").image(2, 1)
    tree.label("train/patient00001/study1/view1_frontal.jpg", Edema=1)
    tree.label("train/patient00001/study1/view2_frontal.jpg", Edema=0)
    tree.label("train/patient00002/study1/view1_frontal.jpg", Edema=0)
    tree.label("train/patient00002/study1/view1_frontal.jpg", Edema=0.0)
    tree.label("train/patient00002/study1/view1_frontal.jpg")
    reading = read(tree.write(), {})
    assert reading.notes["repeated_rows"] == 1
    assert reading.notes["studies_whose_labels_differ"] == 1
    assert reading.studies["views"].tolist() == [["PA", "PA"], ["PA"]]
    assert reading.studies["Edema"].tolist() == [1.0, 0.0]


def test_the_first_image_with_a_label_speaks_for_its_study_whatever_line_it_is_on(tmp_path):
    tree = ChexpertTree(tmp_path)
    for view in ("view1_frontal", "view2_frontal", "view10_frontal"):
        tree.image(1, 1, view)
    tree.label("train/patient00001/study1/view10_frontal.jpg", Edema=0)
    tree.label("train/patient00001/study1/view2_frontal.jpg", Edema=1)
    tree.label("train/patient00001/study1/view1_frontal.jpg")
    reading = read(tree.write(), {})
    assert reading.studies["Edema"].tolist() == [1.0]
    assert reading.notes["studies_whose_labels_differ"] == 1


@pytest.mark.parametrize("rename", [str.lower, str.upper, lambda key: f" {key.replace(' ', '_')} "])
def test_labels_under_names_in_another_case_are_the_same_labels(tmp_path, rename):
    tree = ChexpertTree(tmp_path).image()
    tree.label("train/patient00001/study1/view1_frontal.jpg", **{"Pleural Effusion": 1, "No Finding": "0.0"})
    tree.labels = [{key if "path" in key else rename(key): value for key, value in row.items()} for row in tree.labels]
    studies = read(tree.write(), {}).studies
    assert studies[["Pleural Effusion", "No Finding"]].to_numpy().tolist() == [[1.0, 0.0]]


def test_labels_as_one_list_and_broken_labels(tmp_path):
    root = ChexpertTree(tmp_path).image().write()
    row = {"path_to_image": "train/patient00001/study1/view1_frontal.jpg", "Edema": 1.0}
    path = root / "chexbert_labels/findings_fixed.json"
    path.write_text(json.dumps([row], indent=1))
    assert read(root, {}).studies["Edema"].tolist() == [1.0]
    path.write_text(json.dumps(row) + "\n{half")
    with pytest.raises(DataError, match=r"findings_fixed\.json, line 2"):
        read(root, {})


def test_the_label_file_follows_the_section(tmp_path):
    root = ChexpertTree(tmp_path).image().write()
    (root / "chexbert_labels/impression_fixed.json").unlink()
    assert check_root("chexpert_plus", root, "c", {"section": "findings"}) == []
    (message,) = check_root("chexpert_plus", root, "c", {"section": "impression"})
    assert "impression_fixed.json" in message
    assert "stanford" in message
    assert check_root("chexpert_plus", root, "c", {"section": "impression", "labels": None}) == []
    with pytest.raises(DataError, match="impression_fixed"):
        read(root, {"section": "impression"})


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    tree = ChexpertTree(tmp_path).image(1, 1).image(2, 1, section_findings="w\x81th")
    tree.image(3, 1).image(
        3, 1, "view2_frontal", split="valid", path_to_image="train/patient00003/study1/view2_frontal.jpg"
    )
    tree.image(4, 1, path_to_image="somewhere/else.jpg").image(5, 1, path_to_image="The lungs are clear.")
    reading = read(tree.write("latin-1"), {})
    assert {uid: rule for uid, rule, _ in reading.excluded} == {
        "patient00002/study1": "undecodable_report",
        "patient00003/study1": "tables_disagree",
        "somewhere/else.jpg": "bad_path",
        "row 7": "bad_path",
    }
    assert reading.studies["study_uid"].tolist() == ["patient00001/study1"]


def test_a_table_without_a_column_is_refused(tmp_path):
    tree = ChexpertTree(tmp_path).image()
    del tree.rows[0]["section_findings"]
    with pytest.raises(DataError, match=r"df_chexpert_plus_240401\.csv.*section_findings"):
        read(tree.write(), {})


def test_a_missing_copy_is_said_at_once(tmp_path):
    (message,) = check_root("chexpert_plus", tmp_path / "nowhere", "chexpert-plus")
    for part in (
        "df_chexpert_plus_240401.csv",
        "chexbert_labels/findings_fixed.json",
        "PNG/train",
        "aimi.stanford.edu",
    ):
        assert part in message
