"""check-data: what is missing is said, sizes are compared, and the estimates follow their formulas."""

import copy
import json
import re

import pytest
import yaml

from dive.command import main
from dive.data import check
from dive.data.check import compare_sizes, count_pool, inspect, print_estimates, split_sizes
from dive.data.estimates import GEMMA3, QWEN25_VL, Counts, Machine, estimate, missing_shape, read_shape, shape_of
from dive.data.roots import CHEXPERT_PLUS_SIZES, MIMIC_CXR_SIZES
from dive.data.selection import Selection
from tests.project import ROOT
from tests.unit.trees import ChexpertTree, MimicTree, report

SELECTION = {"min_words": 1, "max_unreadable": 0.05, "convention": "official", "section": "findings"}


@pytest.fixture(scope="module")
def paper():
    """The resolved configuration of the paper's world."""
    return check.read_config([str(ROOT / "config.yaml"), str(ROOT / "config/paper.yaml")])


def dataset(root, reader="mimic_cxr", **selection):
    return {"reader": reader, "root": str(root), "selection": {**SELECTION, **selection}}


def mimic(folder, n=8):
    tree = MimicTree(folder)
    for number in range(n):
        split = ("train", "validate", "test")[number % 4 % 3]
        tree.study(50000000 + number, 10000000 + number, split, text=report(f"Report number {number}."))
    return tree


def test_a_sound_copy_is_told_in_numbers(tmp_path):
    found = inspect("m", dataset(mimic(tmp_path).write()))
    assert found.problems == []
    assert "train: 4 patients, 4 studies, 4 images" in found.lines[0]
    assert "differs from the release: patients -64,582" in found.lines[0]
    assert "reports on disk: 8 of 8 studies" in found.lines
    assert found.usable == {"train": 4, "validate": 2, "test": 2}
    assert found.words == 3
    assert found.pixels == 120


def test_missing_files_are_listed_and_sizes_guessed(tmp_path):
    found = inspect("m", dataset(tmp_path / "nowhere"))
    assert "mimic-cxr-2.0.0-metadata.csv.gz" in found.problems[0]
    assert found.usable is None
    assert found.guessed["test"] == round(0.6 * 3269)


def test_missing_reports_and_broken_images_are_problems(tmp_path):
    tree = mimic(tmp_path)
    del tree.reports["p10/p10000003/s50000003.txt"]
    root = tree.write()
    for study in ("p10000000/s50000000", "p10000001/s50000001"):
        for path in root.glob(f"files/p10/{study}/*.jpg"):
            path.write_bytes(b"")
    problems = inspect("m", dataset(root)).problems
    assert "1 of 8 studies have no report on disk" in problems[0]
    assert "2 of 7 sampled images are missing or broken" in problems[1]
    assert "zero bytes" in problems[1]
    # Where the configuration allows it, it is told but stops nobody.
    assert inspect("m", dataset(root, max_unreadable=0.5)).problems == []


def test_a_sample_stands_for_the_whole(tmp_path):
    found = inspect("m", dataset(mimic(tmp_path, 40).write()), sample=10)
    assert any("a sample of 10 studies: 100.0 % usable" in line for line in found.lines)
    assert found.usable == {"train": 20, "validate": 10, "test": 10}


def test_chexpert_plus_is_inspected(tmp_path):
    tree = ChexpertTree(tmp_path)
    for patient in range(1, 21):
        tree.image(patient, section_findings="" if patient % 4 else "The lungs are clear.")
    found = inspect("c", dataset(tree.write(), "chexpert_plus", convention="own_split"))
    assert found.problems == []
    assert any("25.0 % usable; left out: no findings 75.0 %" in line for line in found.lines)
    assert sum(found.usable.values()) == pytest.approx(5, abs=2)


def test_a_damaged_table_is_a_problem_not_a_crash(tmp_path):
    root = mimic(tmp_path).write()
    table = root / "mimic-cxr-2.0.0-split.csv.gz"
    table.write_bytes(table.read_bytes()[:-9])
    assert "split.csv.gz: cannot be read" in inspect("m", dataset(root)).problems[0]


def test_official_sizes():
    lines = compare_sizes(MIMIC_CXR_SIZES, MIMIC_CXR_SIZES, ("patients", "studies", "images"))
    assert len(lines) == 3
    assert all(line.endswith("(as released)") for line in lines)
    assert sum(size["studies"] for size in MIMIC_CXR_SIZES.values()) == 227_835
    images = compare_sizes(CHEXPERT_PLUS_SIZES, CHEXPERT_PLUS_SIZES, ("images",))  # nothing else is published by split
    assert all(line.endswith("(images as released)") for line in images)
    assert "0 studies" in compare_sizes({}, MIMIC_CXR_SIZES, ("studies",))[0]


def test_splits_of_every_convention():
    sizes = {"train": {"studies": 1000}, "valid": {"studies": 100}}
    fractions = {"validate": 0.1, "test": 0.2}
    own = Selection.from_config({"convention": "own_split", "fractions": fractions})
    assert split_sizes(sizes, 0.5, own) == {"train": 385, "validate": 55, "test": 110}
    valid = Selection.from_config({"convention": "official_valid", "fractions": fractions})
    assert split_sizes(sizes, 0.5, valid) == {"train": 450, "validate": 50, "test": 50}


def test_a_pool_that_asks_for_too_much_is_a_problem():
    found = check.Inspection(usable={"train": 100, "validate": 10, "test": 10})
    pool = {"queries": 60, "demonstrations": 30, "validation": 12, "test": None}
    counts = count_pool("m", pool, found)
    assert (counts.queries, counts.test) == (60, 10)
    (problem,) = found.problems
    assert "datasets.m.pool.validation asks for 12 studies, but about 10" in problem


def test_shapes_have_the_published_sizes():
    assert GEMMA3.parameters == pytest.approx(4.3e9, rel=0.01)
    assert QWEN25_VL.parameters == pytest.approx(8.3e9, rel=0.02)
    assert QWEN25_VL.tokens(28 * 28 * 50) == 50
    assert QWEN25_VL.tokens(None) == 16_384
    assert GEMMA3.tokens(10.0) == 256


def test_a_shape_is_read_from_the_models_own_file(tmp_path):
    text = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 99}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"image_size": 56, "patch_size": 14}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "mm_tokens_per_image": 4}))
    shape = shape_of({"path": str(tmp_path)})
    assert (shape.width, shape.layers, shape.vocabulary, shape.heads) == (64, 3, 99, 8)
    assert (shape.image_tokens, shape.patches_each) == (4, 4)
    assert read_shape({"model_type": "other"}) is None
    assert shape_of({"path": "somebody/unknown"}) is None
    assert shape_of({"path": "Qwen/Qwen2.5-VL-7B-Instruct", "image": {"max_pixels": 401_408}}).image_tokens == 512


COUNTS = Counts(queries=10, demonstrations=5, validation=4, test=6, words=20, pixels=None)


def estimated(paper, names, **changes):
    config = copy.deepcopy(paper) | {"seeds": [0, 1], "shots": 2} | changes
    return estimate(COUNTS, config["backbones"]["medgemma-4b"], GEMMA3, config, names, Machine())


def test_bytes_are_those_of_the_formulas(paper):
    spent = estimated(paper, ["constant", "zero_shot", "dive"])
    # 25 studies and the blank image, 256 tokens of width 2560 in bfloat16; 30 tokens a report and its end.
    assert spent.bytes["vision"] == 26 * 256 * 2560 * 2
    assert spent.bytes["teacher"] == 2 * 10 * 31 * 2560 * 2
    assert spent.bytes["backbone"] == 2 * GEMMA3.parameters
    assert "layers" not in spent.bytes
    config = copy.deepcopy(paper)
    config["methods"]["dive"]["loss"]["hidden"] = 1.0
    config["seeds"] = [0, 1]
    layered = estimate(COUNTS, config["backbones"]["medgemma-4b"], GEMMA3, config, ["dive"], Machine())
    assert layered.bytes["layers"] == 34 * spent.bytes["teacher"]


def test_hours_grow_with_what_is_run(paper):
    alone, more = estimated(paper, ["dive"]), estimated(paper, ["dive", "live", "icl", "constant"])
    assert more.seconds["distill"] == pytest.approx(2 * alone.seconds["distill"])
    assert more.seconds["cache_teacher"] == alone.seconds["cache_teacher"]  # one cache for all methods
    assert more.seconds["generate"] > 2 * alone.seconds["generate"]
    assert more.longest > sum(more.seconds.values())
    assert estimated(paper, ["dive_no_teacher"]).seconds.get("cache_teacher") is None
    assert set(estimated(paper, ["constant"]).seconds) == {"cache_vision"}
    assert estimated(paper, ["dive"], seeds=[0]).seconds["distill"] == pytest.approx(alone.seconds["distill"] / 2)


def test_draws_multiply_the_teacher_and_sharing_saves_the_demonstrations(paper):
    one, three = (estimated(paper, ["dive", "icl"], draws=draws) for draws in (1, 3))
    assert three.bytes["teacher"] == 3 * one.bytes["teacher"]
    assert three.seconds["cache_teacher"] == pytest.approx(3 * one.seconds["cache_teacher"])
    for stage in ("distill", "generate"):
        assert three.seconds[stage] == one.seconds[stage]
    shared = estimated(paper, ["dive", "icl"], demonstrations="shared")
    assert shared.bytes == one.bytes
    # Two demonstrations and the query are three images: two thirds of the prompt are computed once, not for each query.
    assert shared.seconds["cache_teacher"] < 0.45 * one.seconds["cache_teacher"]
    assert shared.seconds["generate"] < one.seconds["generate"]


def test_a_method_without_gradients_costs_its_search_and_another_s_reports_nothing(paper):
    other = {"kind": "external", "title": "Other", "group": "published", "files": {}}
    others = {**paper["methods"], "other": other}
    assert set(estimated(paper, ["other"], methods=others).seconds) == {"cache_vision"}
    fitted = {name: estimated(paper, [name]) for name in ("icv", "task_vector", "mtv")}
    # Only the task vector reads the teacher's layers; MTV's search is by far the longest.
    assert [name for name, spent in fitted.items() if "layers" in spent.bytes] == ["task_vector"]
    assert 0 < fitted["icv"].seconds["distill"] < fitted["task_vector"].seconds["distill"]
    assert fitted["mtv"].seconds["distill"] > 100 * fitted["task_vector"].seconds["distill"]


def test_a_transfer_trains_elsewhere_and_writes_here(tmp_path, capsys):
    grid = {"datasets": ["mimic-cxr"], "backbones": ["medgemma-4b"], "methods": ["live@chexpert-plus"]}
    (tmp_path / "transfer.yaml").write_text(yaml.safe_dump({"grids": {"main": grid}}))
    files = [ROOT / "config.yaml", ROOT / "config/paper.yaml", tmp_path / "transfer.yaml"]
    config = check.read_config([str(file) for file in files])
    here = estimated(config, ["live@chexpert-plus"])
    assert set(here.seconds) == {"cache_vision", "generate"}
    assert "teacher" not in here.bytes
    counts = {"mimic-cxr": COUNTS, "chexpert-plus": COUNTS}
    print_estimates(config, [config["grids"]["main"]], counts, Machine(), 1.5)
    printed = capsys.readouterr().out
    assert "mimic-cxr, medgemma-4b: h: cache_vision 0.00, generate" in printed
    assert re.search(r"chexpert-plus, medgemma-4b: h: .*distill.*cache_teacher", printed)


def test_why_there_is_no_estimate_is_said_as_it_is(tmp_path, capsys):
    """A folder whose family is unknown has a config.json, and is not told that it has none."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    config = check.read_config([str(ROOT / "config.yaml"), str(ROOT / "config/paper.yaml")])
    backbone = config["backbones"]["medgemma-4b"]
    config["backbones"] |= {"other": {**backbone, "path": str(folder)}, "absent": {**backbone, "path": "some/body"}}
    grid = {"datasets": ["mimic-cxr"], "backbones": ["other", "absent"], "methods": ["zero_shot"]}
    print_estimates(config, [grid], {"mimic-cxr": COUNTS}, Machine(), 1.5)
    lines = capsys.readouterr().out.splitlines()
    known = "its config.json has model_type 'llava', and estimates are made for gemma3 and qwen2_5_vl alone"
    assert f"  mimic-cxr, other: no estimate: {known}" in lines
    absent = (
        "no config.json of backbones.absent.path (some/body) is on this machine; fetch the model or correct the path"
    )
    assert f"  mimic-cxr, absent: no estimate: {absent}" in lines
    assert lines[-1].startswith("  all without the 2 that have no estimate: 0.0 GPU hours")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("null", "is not what transformers writes"),
        ('{"model_type": "gemma3", "text_config": null}', "has a size that is no whole number"),
        ('{"model_type": "gemma3", "text_config": {"hidden_size": "2560"}}', "has a size that is no whole number"),
        ('{"model_type": "qwen2_5_vl", "num_hidden_layers": 0}', "has a size that is no whole number"),
    ],
)
def test_a_config_that_says_no_sizes_is_neither_absent_nor_of_another_family(tmp_path, content, reason):
    (tmp_path / "config.json").write_text(content)
    backbone = {"path": str(tmp_path), "revision": None}
    assert shape_of(backbone) is None
    assert missing_shape(backbone, "mine").startswith(f"the config.json of backbones.mine.path {reason};")


def test_computing_bounds_large_work_and_calls_small():
    machine = Machine(tflops=100, bandwidth=1000, layer_ms=1.0)
    assert machine.seconds(1e15, layers=10) == 10.0
    assert machine.seconds(1e9, layers=10) == 0.01
    assert machine.seconds(1e9, bytes_read=5e12) == 5.0


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    assert main(["check-data"]) == 0
    printed = capsys.readouterr().out
    assert "synthetic-mimic-cxr (mimic_cxr)" in printed
    assert "runs on the CPU" in printed
    overlay = tmp_path / "paper.yaml"
    overlay.write_text((ROOT / "config/paper.yaml").read_text())
    assert main(["check-data", "--configfile", "paper.yaml", "--tflops", "300"]) == 1
    printed = capsys.readouterr().out
    assert "PROBLEM: datasets.mimic-cxr" in printed
    assert "assumed: 300 TFLOP/s" in printed
    assert "chexpert-plus, lingshu-7b: h: cache_vision" in printed
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/config.yaml").write_text("configfile: [paper.yaml]\ncores: all\n")
    assert main(["check-data", "--profile", "profile"]) == 1
    assert "mimic-cxr, medgemma-4b: h: " in capsys.readouterr().out
    overlay.write_text(yaml.safe_dump({"shots": 0}))
    assert main(["check-data", "--configfile", "paper.yaml"]) == 2
    assert "shots" in capsys.readouterr().err
