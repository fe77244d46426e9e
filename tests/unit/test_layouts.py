"""The synthetic data lie as the real ones do, carry every kind of dirt, and read back as what was written."""

import csv
import gzip
import hashlib
import json
import re

import pandas as pd
import pytest
from PIL import Image

from dive.data.roots import check_root, find_reports
from dive.data.splits import split_dataset
from dive.data.studies import LABELS, read_studies
from dive.data.synthetic import findings as world
from dive.data.synthetic.language import read_labels
from dive.data.synthetic.layouts import (
    CHEXPERT_COLUMNS,
    CHEXPERT_DIRT,
    DIRT_EVERY,
    MIMIC_DIRT,
    MIMIC_METADATA,
    draw_studies,
    mimic_report,
    synthesize,
    target_style,
)

LAYOUTS = {
    "mimic_cxr": ("site_a", {"train": 60, "validate": 25, "test": 40}, {"convention": "official"}),
    "chexpert_plus": (
        "site_b",
        {"train": 120, "validate": 6},
        {"convention": "own_split", "fractions": {"validate": 0.2, "test": 0.4}},
    ),
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def made(request, tmp_path_factory):
    """(layout, folder with data/, truth.parquet and the split stage's outputs)."""
    folder = tmp_path_factory.mktemp(request.param)
    selection = LAYOUTS[request.param][2]
    write(request.param, folder)
    outputs = {name: str(folder / name) for name in ("studies", "excluded", "counts")}
    split_dataset("synthetic", request.param, str(folder / "data"), selection, **outputs)
    return request.param, folder


def write(layout, folder, seed=0, **changes):
    style, patients, _ = LAYOUTS[layout]
    settings = {"patients": patients, "world": {}, "seed": seed} | changes
    synthesize(layout, str(folder / "data"), str(folder / "truth.parquet"), style, **settings)


def drawn(layout):
    style, patients, _ = LAYOUTS[layout]
    return draw_studies(layout, target_style(style), patients, 0)


def test_the_same_seed_writes_the_same_bytes(made, tmp_path):
    layout, folder = made
    write(layout, tmp_path)

    def content(root):
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert content(tmp_path / "data") == content(folder / "data")
    assert (tmp_path / "truth.parquet").read_bytes() == (folder / "truth.parquet").read_bytes()
    write(layout, tmp_path, seed=1)
    assert content(tmp_path / "data") != content(folder / "data")


def test_the_readers_find_nothing_missing(made):
    layout, folder = made
    assert check_root(layout, folder / "data", "synthetic") == []


def test_every_study_is_used_or_listed(made):
    _, folder = made
    truth = pd.read_parquet(folder / "truth.parquet")
    used = read_studies(folder / "studies")
    with open(folder / "excluded", newline="") as handle:
        left_out = [row["study_uid"] for row in csv.DictReader(handle)]
    assert sorted([*used["study_uid"], *left_out]) == sorted(truth["study_uid"])
    assert truth["study_uid"].is_unique
    patients = dict(zip(truth["study_uid"], truth["patient_uid"], strict=True))
    assert [patients[uid] for uid in used["study_uid"]] == used["patient_uid"].tolist()
    assert truth.groupby("patient_uid").size().max() == 3


def test_reports_say_what_is_true(made):
    _, folder = made
    truth = pd.read_parquet(folder / "truth.parquet").set_index("study_uid")
    used = read_studies(folder / "studies")
    for uid, target in zip(used["study_uid"], used["target"], strict=True):
        assert read_labels(target) == {label for label in world.LABELS if truth.loc[uid, label]}


def test_labels_are_those_of_the_study(made):
    _, folder = made
    truth = pd.read_parquet(folder / "truth.parquet").set_index("study_uid")
    used = read_studies(folder / "studies")
    labeled = 0
    for uid, labels in zip(used["study_uid"], used["labels"], strict=True):
        if labels is not None:
            labeled += 1
            assert list(labels) == list(LABELS)
            assert labels["Cardiomegaly"] == float(truth.loc[uid, "cardiomegaly"])
            assert (labels["Edema"] == 1.0) == truth.loc[uid, "edema"]
    assert 0.9 * len(used) < labeled < len(used)


def test_images_are_readable_and_frontal(made):
    _, folder = made
    used = read_studies(folder / "studies")
    for paths, views in zip(used["image_paths"], used["views"], strict=True):
        assert len(paths) == len(views) > 0
        assert "LATERAL" not in views
        with Image.open(folder / "data" / paths[0]) as image:
            image.load()
            assert image.size == (96, 96)
    assert (used["views"].str.len() == 2).any()


def test_the_dirt_costs_what_it_should(made):
    layout, folder = made
    with open(folder / "excluded", newline="") as handle:
        rules = {row["study_uid"]: row["rule"] for row in csv.DictReader(handle)}
    truth = pd.read_parquet(folder / "truth.parquet")
    expected = {
        "lateral_only": "no_frontal_image",
        "missing_image": "unreadable_image",
        "truncated_image": "unreadable_image",
        "empty_image": "unreadable_image",
        "short": "too_short",
        "undecodable": "undecodable_report",
        "no_report": "no_report",
        "not_in_split": "no_split",
        "no_findings": "no_findings",
        "no_sections": "no_findings",
        "flush_left_header": "no_findings",
        "findings_and_impression": "no_findings",
    }
    studies = drawn(layout)
    assert len(studies) == len(truth)
    kinds = {study.dirt for study in studies} - {None}
    assert kinds == set(MIMIC_DIRT if layout == "mimic_cxr" else CHEXPERT_DIRT)
    for study, uid in zip(studies, truth["study_uid"], strict=True):
        if study.dirt is None and layout == "chexpert_plus":
            assert rules.get(uid) in (None, "no_findings")
        else:
            assert rules.get(uid) == expected.get(study.dirt), study.dirt


def test_notes_count_what_costs_nothing(made):
    layout, folder = made
    counts = json.loads((folder / "counts").read_text())
    notes = counts["notes"]
    assert notes["images_without_view"] > 0
    assert notes["studies_without_labels"] > 0
    assert notes["images_of_other_views"] > 0
    used = read_studies(folder / "studies")
    assert used["target"].duplicated().any()
    assert notes["unreadable_images"] == len(counts["images_left_out"]) >= 3
    if layout == "mimic_cxr":
        assert notes["images_without_metadata"] > 0
        assert notes["images_without_split"] > 0
    else:
        assert notes["studies_whose_section_findings_differ"] > 0
        assert notes["studies_without_findings"] > 0.2 * counts["raw"]["studies"]


def test_two_frontals_are_turned_round(made):
    _, folder = made
    used = read_studies(folder / "studies")
    pairs = used["views"][used["views"].str.len() == 2]
    assert {tuple(views) for views in pairs} == {("PA", "AP")}


def test_mimic_tables_are_the_real_ones(tmp_path):
    write("mimic_cxr", tmp_path, patients={"train": 8, "test": 4})
    headers = {}
    for path in tmp_path.glob("data/*.csv*"):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as handle:
            headers[path.name] = next(csv.reader(handle))
    assert tuple(headers["mimic-cxr-2.0.0-metadata.csv.gz"]) == MIMIC_METADATA
    assert headers["mimic-cxr-2.0.0-split.csv.gz"] == ["dicom_id", "study_id", "subject_id", "split"]
    orders = [
        headers["mimic-cxr-2.0.0-chexpert.csv.gz"][2:],
        headers["mimic-cxr-2.0.0-negbio.csv.gz"][2:],
        headers["mimic-cxr-2.1.0-test-set-labeled.csv"][1:],
    ]
    assert len({tuple(order) for order in orders}) == 3
    assert {frozenset(order) for order in orders} == {frozenset(LABELS)}
    images = [str(path.relative_to(tmp_path / "data")) for path in tmp_path.rglob("*.jpg")]
    assert all(re.fullmatch(r"files/p1\d/p1\d{7}/s5\d{7}/[0-9a-f]{8}(-[0-9a-f]{8}){4}\.jpg", path) for path in images)
    reports = [str(path.relative_to(tmp_path / "data")) for path in tmp_path.rglob("*.txt")]
    assert all(re.fullmatch(r"files/p1\d/p1\d{7}/s5\d{7}\.txt", path) for path in reports)


@pytest.mark.parametrize("reports", ["beside", "folder", "zip"])
def test_mimic_reports_in_their_three_layouts(tmp_path, reports):
    write("mimic_cxr", tmp_path, patients={"train": 30}, reports=reports)
    outputs = {name: str(tmp_path / name) for name in ("studies", "excluded", "counts")}
    split_dataset("synthetic", "mimic_cxr", str(tmp_path / "data"), {}, **outputs)
    first, second = tmp_path / "studies", tmp_path / "beside"
    write("mimic_cxr", second, patients={"train": 30})
    outputs = {name: str(second / name) for name in ("studies", "excluded", "counts")}
    split_dataset("synthetic", "mimic_cxr", str(second / "data"), {}, **outputs)
    pd.testing.assert_frame_equal(read_studies(first), read_studies(second / "studies"))
    (source,) = find_reports(tmp_path / "data")
    assert (source.suffix == ".zip") == (reports == "zip")


def test_mimic_reports_carry_their_dirt():
    texts = {study.dirt: mimic_report(study) for study in drawn("mimic_cxr")}
    assert b"\r\n" in texts["crlf"]
    assert b"\n" not in texts["crlf"].replace(b"\r\n", b"")
    assert texts["two_findings"].count(b"\n FINDINGS:") == 2
    assert b"\n ADDENDUM:" in texts["addendum"]
    assert b"\n WET READ:" in texts["wet_read"]
    assert b"\n ET TUBE:" in texts["device_header"]
    assert b"FINDINGS:" not in texts["misspelt_header"]
    assert b"\nFINDINGS:" in texts["flush_left_header"]
    assert b"FINDINGS" not in texts["no_findings"]
    assert b"Compared with ___" in texts["deidentified"]
    assert all(max(map(len, text.splitlines())) < 81 for dirt, text in texts.items() if dirt != "flush_left_header")


def test_chexperts_table_is_the_real_one(tmp_path):
    write("chexpert_plus", tmp_path, patients={"train": 40, "validate": 5})
    root = tmp_path / "data"
    table = pd.read_csv(root / "df_chexpert_plus_240401.csv", encoding_errors="replace")
    assert tuple(table.columns) == CHEXPERT_COLUMNS
    assert len(CHEXPERT_COLUMNS) == 27
    assert set(table["split"]) == {"train", "valid"}
    assert (
        table["path_to_image"].str.fullmatch(r"(train|valid)/patient\d{5}/study\d/view\d_(frontal|lateral)\.jpg").all()
    )
    assert all(path.startswith(split) for path, split in zip(table["path_to_image"], table["split"], strict=True))
    assert not (root / "train").exists()
    assert list(root.glob("PNG/train/patient*/study*/view1_frontal.png"))
    for section in ("findings", "impression", "report"):
        lines = (root / f"chexbert_labels/{section}_fixed.json").read_text().splitlines()
        assert len(json.loads(lines[0])) == 15
    per_study = table.assign(study=table["path_to_image"].str.rsplit("/", n=1).str[0]).groupby("study")["report"]
    assert (per_study.nunique() == per_study.size()).all()


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_one_more_patient_changes_nobody_else(layout):
    style, patients, _ = LAYOUTS[layout]
    more = draw_studies(layout, target_style(style), patients | {"train": patients["train"] + 1}, 0)
    extra = len(more) - len(drawn(layout))
    train = [study.report for study in drawn(layout) if study.split == "train" and study.dirt is None]
    same = {study.report for study in more if study.split == "train"}
    assert 1 <= extra <= 3
    assert set(train) <= same


def test_dirt_comes_round():
    assert len(MIMIC_DIRT) * DIRT_EVERY <= len(drawn("mimic_cxr"))
    unreadable = {"missing_image", "truncated_image", "empty_image"}
    for kinds in (MIMIC_DIRT, CHEXPERT_DIRT):
        # Below the default limit of 5 %, also of the fewer studies that have findings.
        assert sum(kind in unreadable for kind in kinds) / (DIRT_EVERY * len(kinds)) < 0.05 * 0.6
