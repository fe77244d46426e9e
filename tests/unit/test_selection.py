"""Selection, splits, pool and demonstrations: every exclusion is listed, every draw is stable, no patient is on two
sides."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dive.data.draws import hashes, mix, uniforms
from dive.data.images import image_problem
from dive.data.pools import draw_demonstrations, select_pool
from dive.data.roots import DataError
from dive.data.selection import Selection
from dive.data.splits import split_dataset
from dive.data.studies import LABELS, SCHEMA, read_notes, read_studies, write_studies
from dive.files import read_json
from tests.unit.trees import ChexpertTree, MimicTree, image_bytes, report

LONG = "Word " * 301


def split(root, out, reader="mimic_cxr", **selection):
    """Run the stage; returns studies, {uid: rule}, counts."""
    out.mkdir(exist_ok=True, parents=True)
    paths = {name: str(out / name) for name in ("studies", "excluded", "counts")}
    split_dataset("name", reader, str(root), selection, **paths)
    with open(paths["excluded"], newline="") as handle:
        rows = list(csv.DictReader(handle))
    with open(paths["counts"]) as handle:
        counts = json.load(handle)
    return read_studies(paths["studies"]), {row["study_uid"]: row["rule"] for row in rows}, counts


def mimic(tmp_path, *studies, **settings):
    """A tree with one study for each dict, of patients of their own unless the dict says another."""
    tree = MimicTree(tmp_path / "data")
    for number, study in enumerate(studies, start=1):
        tree.study(**{"study": 50000000 + number, "subject": 10000000 + number} | study)
    return tree.write(**settings)


def test_every_rule_lists_what_it_leaves_out(tmp_path):
    root = mimic(
        tmp_path,
        {},
        {"views": ("LATERAL", "LL")},
        {"text": report(None)},
        {"text": report("Too short text here.")},
        {"text": report(LONG)},
        {"image": b""},
        {"text": False},
        {"views": ("",)},
    )
    studies, excluded, counts = split(root, tmp_path / "out", max_unreadable=0.5)
    assert studies["study_uid"].tolist() == ["s50000001", "s50000008"]
    assert excluded == {
        "s50000007": "no_report",
        "s50000002": "no_frontal_image",
        "s50000003": "no_findings",
        "s50000004": "too_short",
        "s50000005": "too_long",
        "s50000006": "unreadable_image",
    }
    # The flow is a chain from all studies to the used ones.
    remaining = counts["raw"]["studies"]
    assert remaining == 8
    for step in counts["flow"]:
        remaining -= step["left_out"]
        assert step["remaining"] == remaining
    assert remaining == counts["used"]["train"]["studies"] == len(studies)
    assert counts["images_left_out"][0]["problem"] == "zero bytes"


def test_frontal_views_come_in_order_and_unknown_ones_last(tmp_path):
    root = mimic(tmp_path, {"views": ("", "LATERAL", "AP AXIAL", "AP", "PA", "LL", "AP")})
    studies, _, counts = split(root, tmp_path / "out")
    assert studies["views"][0].tolist() == ["PA", "AP", "AP", "AP AXIAL", ""]
    numbers = [int(path.split("/")[-1][:8], 16) for path in studies["image_paths"][0]]
    assert numbers == [5, 4, 7, 3, 1]
    assert counts["notes"]["images_of_other_views"] == 2
    assert split(root, tmp_path / "out", unknown_views="drop")[0]["views"][0].tolist() == ["PA", "AP", "AP", "AP AXIAL"]
    assert split(root, tmp_path / "out", views="all")[0]["views"][0].tolist()[-2:] == ["LATERAL", "LL"]


def test_sections_and_text(tmp_path):
    root = mimic(
        tmp_path,
        {"text": report("Heart SIZE ___ is normal,  see   above!", "No acute disease is seen at all.")},
        {"text": report(None, "No acute disease is seen at all.")},
    )
    studies, excluded, _ = split(root, tmp_path / "out")
    assert studies["target"].tolist() == ["Heart SIZE ___ is normal, see above!"]
    assert studies["n_words"].tolist() == [7]
    assert excluded == {"s50000002": "no_findings"}
    assert len(split(root, tmp_path / "out", section="impression")[0]) == 2
    both = split(root, tmp_path / "out", section="both")[0]["target"].tolist()
    assert both[0] == "Heart SIZE ___ is normal, see above! No acute disease is seen at all."
    assert both[1] == "No acute disease is seen at all."
    removed = split(root, tmp_path / "out", deidentified="remove")[0]["target"].tolist()
    assert removed == ["Heart SIZE is normal, see above!"]
    _, excluded, _ = split(root, tmp_path / "out", section="both", deidentified="exclude")
    assert excluded == {"s50000001": "deidentified"}


def test_unit_image_makes_a_row_of_every_image(tmp_path):
    studies, _, counts = split(mimic(tmp_path, {"views": ("PA", "AP")}), tmp_path / "out", unit="image")
    assert studies["study_uid"].str.startswith("s50000001/0000000").all()
    assert [paths.tolist() for paths in studies["views"]] == [["PA"], ["AP"]]
    assert counts["unit"] == "image"


def test_an_unreadable_image_costs_a_study_only_when_no_other_is_left(tmp_path):
    root = mimic(tmp_path, {"views": ("PA", "AP")}, {})
    broken, lost = sorted(root.rglob("*.jpg"))[0], sorted(root.rglob("*.jpg"))[2]
    broken.write_bytes(broken.read_bytes()[:-40])
    lost.unlink()
    studies, excluded, counts = split(root, tmp_path / "out", max_unreadable=0.7)
    assert studies["views"][0].tolist() == ["AP"]
    assert excluded == {"s50000002": "unreadable_image"}
    problems = [item["problem"] for item in counts["images_left_out"]]
    assert problems[0] == "truncated JPEG: no end marker"
    assert problems[1].startswith("missing; tried files/p10/p10000002/s50000002/")
    with pytest.raises(DataError, match=r"2 of 3 selected images are unreadable, more than selection\.max_unreadable"):
        split(root, tmp_path / "out", max_unreadable=0.5)


def test_undecodable_reports_stop_the_run_above_the_limit(tmp_path):
    root = mimic(tmp_path, {"text": b"\n FINDINGS: \x81"}, {})
    assert split(root, tmp_path / "out", max_unreadable=0.5)[1] == {"s50000001": "undecodable_report"}
    with pytest.raises(DataError, match="1 of 2 reports cannot be read or decoded"):
        split(root, tmp_path / "out", max_unreadable=0.4)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (image_bytes("JPEG"), None),
        (image_bytes("JPEG", "CMYK"), None),
        (image_bytes("PNG"), None),
        (image_bytes("PNG", "I;16"), None),
        (image_bytes("JPEG") + b"\0\0\n", None),
        (image_bytes("JPEG") + b"exported by somebody\n", None),
        (image_bytes("JPEG") + b"\xff" * 70_000, None),
        (image_bytes("JPEG") + bytes(300), None),
        (image_bytes("PNG") + bytes(300), None),
        (image_bytes("PNG") + b"\xff", None),
        (image_bytes("PNG") + image_bytes("JPEG")[:-1], None),
        (b"", "zero bytes"),
        (image_bytes("JPEG")[:-1], "truncated JPEG: no end marker"),
        (image_bytes("PNG")[:-13], "truncated PNG: no end marker"),
        (image_bytes("PNG")[:20], "PNG without width or height"),
        (b"<html>not found</html>", "neither JPEG nor PNG"),
    ],
)
def test_both_ends_of_an_image(tmp_path, content, problem):
    path = tmp_path / "image"
    path.write_bytes(content)
    assert image_problem(path) == problem


def test_a_good_end_means_that_the_image_decodes(tmp_path):
    path = tmp_path / "image"
    whole = image_bytes("JPEG")
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert image_problem(path) is not None
    path.write_bytes(whole)
    Image.open(path).load()


def test_the_official_split_is_kept_and_patients_in_two_splits_are_refused(tmp_path):
    rows = [{"split": name} for name in ("train", "validate", "test", "train")]
    studies, _, counts = split(mimic(tmp_path, *rows), tmp_path / "out")
    assert studies["split"].tolist() == ["train", "validate", "test", "train"]
    assert counts["convention"] == "official"
    assert read_notes(tmp_path / "out/studies") == {
        "dataset": "name",
        "reader": "mimic_cxr",
        "convention": "official",
    }
    root = mimic(tmp_path / "b", {"split": "train"}, {"split": "test", "subject": 10000001})
    with pytest.raises(DataError, match="1 patients have studies in more than one split"):
        split(root, tmp_path / "out")


def chexpert(tmp_path, patients=300, valid=20):
    tree = ChexpertTree(tmp_path / "chexpert")
    for patient in range(patients):
        name = "valid" if patient < valid else "train"
        for study in range(1, 2 + patient % 2):
            tree.image(patient, study, split=name, place=f"PNG/{name}")
    return tree.write()


def test_chexperts_own_split_is_by_patient_and_stable(tmp_path):
    selection = {"convention": "own_split", "fractions": {"validate": 0.2, "test": 0.3}}
    studies, _, counts = split(chexpert(tmp_path), tmp_path / "out", "chexpert_plus", **selection)
    shares = {name: counts["used"][name]["patients"] / 300 for name in ("train", "validate", "test")}
    assert shares == pytest.approx({"train": 0.5, "validate": 0.2, "test": 0.3}, abs=0.08)
    fewer = split(chexpert(tmp_path / "b", patients=200), tmp_path / "out", "chexpert_plus", **selection)[0]
    both = studies.merge(fewer, on="study_uid")
    assert len(both) == len(fewer)
    assert (both["split_x"] == both["split_y"]).all()
    other = split(chexpert(tmp_path), tmp_path / "out", "chexpert_plus", **selection, split_seed=1)[0]
    assert (other["split"] != studies["split"]).any()


def test_chexperts_official_valid_is_the_test_set_and_its_size_is_warned_of(tmp_path, caplog):
    root = chexpert(tmp_path)
    studies, _, counts = split(root, tmp_path / "out", "chexpert_plus", convention="official_valid")
    assert counts["used"]["test"]["patients"] == 20
    assert counts["notes"]["small_test_set"] == 30
    assert "intervals will be wide" in caplog.text
    paths = studies["image_paths"].str[0]
    assert paths[studies["split"] == "test"].str.startswith("PNG/valid/").all()
    assert paths[studies["split"] != "test"].str.startswith("PNG/train/").all()
    assert 0 < counts["used"]["validate"]["patients"] < 60
    with pytest.raises(DataError, match="choose official_valid or own_split"):
        split(root, tmp_path / "out", "chexpert_plus", convention="official")


def test_texts_in_several_splits_are_counted_or_left_out(tmp_path):
    texts = [
        report("The same text in two splits."),
        report("A text of train only, twice."),
        report("And another one.!"),
    ]
    rows = [
        {"text": texts[0]},
        {"text": texts[0], "split": "test"},
        {"text": texts[1]},
        {"text": texts[1]},
        {"text": texts[2], "split": "validate"},
        {"text": texts[2], "split": "train"},
    ]
    root = mimic(tmp_path, *rows)
    studies, _, counts = split(root, tmp_path / "out", min_words=1)
    assert len(studies) == 6
    assert counts["notes"]["texts_in_several_splits"] == 2
    assert counts["notes"]["studies_whose_text_is_in_several_splits"] == 4
    _, excluded, _ = split(root, tmp_path / "out", min_words=1, duplicates="exclude")
    assert excluded == {"s50000001": "duplicate_text", "s50000006": "duplicate_text"}


def test_an_empty_selection_says_why(tmp_path):
    with pytest.raises(DataError, match=r"leaves no study of 1; left out: .*too_short 1"):
        split(mimic(tmp_path, {}), tmp_path / "out", min_words=100)


def test_settings_are_checked():
    with pytest.raises(DataError, match=r"selection has no key section_"):
        Selection.from_config({"section_": "findings"})
    with pytest.raises(DataError, match=r"selection\.views is 'front'"):
        Selection.from_config({"views": "front"})


def test_missing_data_are_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"(?s)datasets\.name.*physionet.*datasets\.name\.root"):
        split(tmp_path / "nowhere", tmp_path / "out")


def test_the_table_has_the_schema_and_null_labels(tmp_path):
    root = mimic(tmp_path, {}, {"labels": False})
    split(root, tmp_path / "out")
    table = pq.read_table(tmp_path / "out/studies")
    assert table.schema.remove_metadata().equals(SCHEMA)
    first, second = table["labels"].to_pylist()
    assert second is None
    assert list(first) == list(LABELS)
    assert first["Fracture"] is None
    with pytest.raises(DataError, match="has no column wrong"):
        read_studies(tmp_path / "out/studies", columns=["wrong"])


def frame(train=60, validate=20, test=30, patients_of=2):
    """Studies with ``patients_of`` each, without data on disk."""
    rows = []
    for name, number in (("train", train), ("validate", validate), ("test", test)):
        rows += [(f"{name}{i}", f"p{name}{i // patients_of}", name) for i in range(number)]
    studies = pd.DataFrame(rows, columns=["study_uid", "patient_uid", "split"])
    studies = studies.assign(findings=None, impression=None, indication=None, target="text", n_words=1)
    studies[list(LABELS)] = np.nan
    lists = [[uid] for uid in studies["study_uid"]]
    return studies.assign(image_paths=lists, views=lists)


def pool_of(tmp_path, studies, sizes, name="pool"):
    path, out = str(tmp_path / f"{name}.parquet"), str(tmp_path / f"{name}.json")
    write_studies(studies, path, {"dataset": "chest"})
    select_pool(path, sizes, out)
    return path, out, read_json(out)


SIZES = {"queries": 20, "demonstrations": 16, "validation": 10, "test": 12}


def test_the_pool_is_disjoint_by_patient_and_of_the_sizes(tmp_path):
    studies = frame()
    _, _, pool = pool_of(tmp_path, studies, SIZES)
    assert {name: len(uids) for name, uids in pool.items()} == SIZES
    patient = dict(zip(studies["study_uid"], studies["patient_uid"], strict=True))
    shown = {patient[uid] for uid in pool["demonstrations"]}
    assert not shown & {patient[uid] for name in ("queries", "validation", "test") for uid in pool[name]}
    assert all(uid.startswith("train") for uid in pool["queries"] + pool["demonstrations"])


def test_groups_do_not_disturb_each_other(tmp_path):
    _, _, pool = pool_of(tmp_path, frame(), SIZES)
    _, _, larger = pool_of(tmp_path, frame(), SIZES | {"test": 25, "queries": 22, "validation": 4})
    assert larger["test"][:12] == pool["test"]
    assert larger["queries"][:20] == pool["queries"]
    assert larger["demonstrations"] == pool["demonstrations"]
    assert larger["validation"] == pool["validation"][:4]
    # One more study is drawn or not; nobody else moves but the one it may replace.
    _, _, grown = pool_of(tmp_path, frame(test=32), SIZES)
    assert grown["demonstrations"] == pool["demonstrations"]
    assert grown["queries"] == pool["queries"]
    assert len(set(grown["test"]) - set(pool["test"])) <= 2


def test_null_takes_all(tmp_path):
    everything = dict.fromkeys(SIZES)
    _, _, pool = pool_of(tmp_path, frame(), everything)
    assert len(pool["queries"]) + len(pool["demonstrations"]) == 60
    assert (len(pool["validation"]), len(pool["test"])) == (20, 30)
    _, _, pool = pool_of(tmp_path, frame(), everything | {"queries": 10})
    patients = {int(uid.removeprefix("train")) // 2 for uid in pool["queries"]}
    assert len(pool["demonstrations"]) == 60 - 2 * len(patients)
    _, _, pool = pool_of(tmp_path, frame(patients_of=1), everything | {"demonstrations": 10})
    assert (len(pool["queries"]), len(pool["demonstrations"])) == (50, 10)


def test_too_few_studies_name_every_key(tmp_path):
    with pytest.raises(DataError) as caught:
        pool_of(tmp_path, frame(), {"queries": 50, "demonstrations": 16, "validation": 21, "test": 30})
    message = str(caught.value)
    assert "datasets.chest.pool.queries asks for 50 studies, but train has" in message
    assert "datasets.chest.pool.validation asks for 21 studies, but validate has 20" in message
    assert "pool.test" not in message


def demonstrations_of(tmp_path, path, pool, shots=4, seed=0, **options):
    out = tmp_path / "demonstrations.json"
    draw_demonstrations(pool, path, shots, seed, str(out), **options)
    return read_json(out)


def test_demonstrations_are_from_distinct_other_patients(tmp_path):
    studies = frame()
    path, out, pool = pool_of(tmp_path, studies, SIZES)
    drawn = demonstrations_of(tmp_path, path, out)
    patient = dict(zip(studies["study_uid"], studies["patient_uid"], strict=True))
    assert list(drawn) == ["queries", "validation", "test"]
    for group, draws in drawn.items():
        assert list(draws) == pool[group]
        for uid, shown in draws.items():
            assert len({patient[other] for other in shown} | {patient[uid]}) == 5
            assert set(shown) <= set(pool["demonstrations"])


def test_draws_depend_on_study_and_seed_alone(tmp_path):
    path, out, _ = pool_of(tmp_path, frame(), SIZES)
    drawn = demonstrations_of(tmp_path, path, out)
    assert demonstrations_of(tmp_path, path, out) == drawn
    other = demonstrations_of(tmp_path, path, out, seed=1)
    assert sum(other["test"][uid] == shown for uid, shown in drawn["test"].items()) < 4
    # Fewer shots begin the same way, more test studies change nothing, another candidate comes in at most once a study.
    fewer = demonstrations_of(tmp_path, path, out, shots=2)
    assert all(shown[:2] == fewer["test"][uid] for uid, shown in drawn["test"].items())
    path, out, _ = pool_of(tmp_path, frame(), SIZES | {"test": 30})
    more = demonstrations_of(tmp_path, path, out)
    assert {uid: more["test"][uid] for uid in drawn["test"]} == drawn["test"]
    path, out, _ = pool_of(tmp_path, frame(), SIZES | {"demonstrations": 17})
    wider = demonstrations_of(tmp_path, path, out)
    assert all(len(set(shown) - set(drawn["test"][uid])) <= 1 for uid, shown in wider["test"].items())


def test_further_draws_are_of_queries_alone_and_independent(tmp_path):
    path, out, pool = pool_of(tmp_path, frame(), SIZES)
    first = demonstrations_of(tmp_path, path, out)
    second, third = (demonstrations_of(tmp_path, path, out, draw=number) for number in (1, 2))
    assert set(first) == {"queries", "validation", "test"}
    assert set(second) == set(third) == {"queries"}
    for one, other in ((first, second), (first, third), (second, third)):
        assert list(one["queries"]) == list(other["queries"]) == pool["queries"]
        assert sum(one["queries"][uid] == shown for uid, shown in other["queries"].items()) < 4
    assert demonstrations_of(tmp_path, path, out, draw=1) == second
    assert demonstrations_of(tmp_path, path, out, draw=1, seed=1) != second


def test_shared_demonstrations_are_one_set_of_other_patients(tmp_path):
    studies = frame()
    path, out, pool = pool_of(tmp_path, studies, SIZES)
    patient = dict(zip(studies["study_uid"], studies["patient_uid"], strict=True))
    drawn = demonstrations_of(tmp_path, path, out, shared=True)
    groups = ("queries", "validation", "test")
    sets = {tuple(shown) for group in groups for shown in drawn[group].values()}
    assert all(list(drawn[group]) == pool[group] for group in groups)
    (shown,) = sets
    of_shown = [patient[uid] for uid in [*shown, *drawn["spare"]]]
    assert len(shown) == 4
    assert len(set(of_shown)) == len(of_shown) > 4
    assert not set(of_shown) & {patient[uid] for group in groups for uid in pool[group]}
    more = demonstrations_of(tmp_path, path, out, shots=6, shared=True)
    assert [*shown, *drawn["spare"]][:6] == next(iter(more["test"].values()))
    for other in (
        demonstrations_of(tmp_path, path, out, shared=True, seed=1),
        demonstrations_of(tmp_path, path, out, shared=True, draw=1),
    ):
        assert next(iter(other["queries"].values())) != list(shown)


def test_every_candidate_is_drawn_about_as_often(tmp_path):
    path, out, pool = pool_of(tmp_path, frame(patients_of=1, test=400), SIZES | {"test": 400})
    drawn = demonstrations_of(tmp_path, path, out)
    counts = pd.Series([uid for shown in drawn["test"].values() for uid in shown]).value_counts()
    assert len(counts) == len(pool["demonstrations"])
    assert counts.between(60, 140).all()  # 100 expected, standard deviation 9


def test_shots(tmp_path):
    path, out, _ = pool_of(tmp_path, frame(), SIZES)
    assert set(map(tuple, demonstrations_of(tmp_path, path, out, shots=0)["test"].values())) == {()}
    with pytest.raises(DataError, match=r"shots: 17 .*datasets\.chest\.pool\.demonstrations"):
        demonstrations_of(tmp_path, path, out, shots=17)


def test_hashes_are_fixed_for_all_time():
    assert hashes(0, "a", ["x", "y"]).tolist() == [6493047835133160415, 11407106605046668017]
    values = uniforms(3, "stream", [str(i) for i in range(4000)])
    assert 0 <= values.min() < values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(mix(np.arange(1000, dtype=np.uint64)))) == 1000
