"""The claims: every verdict from numbers, overall from the settings, ablations above ours, nothing assumed."""

import csv

import pytest

from dive.reporting.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    UNMEASURED,
    UNRESOLVED,
    ablation_claim,
    judge_all,
    judge_claims,
    merge_settings,
    shown_cells,
    write_claims,
)
from dive.reporting.tables import METRICS as COLUMNS
from tests.unit.comparisons import LAYOUT, METRICS, comparison, write

REAL = (*METRICS, "radgraph_f1", "chexbert_f1")


def lines(tmp_path, **settings):
    """(line, metric, dataset) -> row of the claims table."""
    paths = write(tmp_path, **settings)
    rows, notes = judge_claims(merge_settings([(*pair, path) for pair, path in paths.items()], LAYOUT), LAYOUT)
    return {(row["line"], row["metric"], row.get("dataset")): row for row in rows}, notes


@pytest.mark.parametrize(
    ("live", "lora", "verdict"),
    [
        (2.0, 3.0, HOLDS),
        ((0.4, -0.1, 0.9, 0.001), 3.0, UNRESOLVED),  # the interval, which knows of the seeds, holds 0
        ((0.4, 0.1, 0.9, 0.2), 3.0, UNRESOLVED),  # randomization is not sure
        ((-0.4, -0.9, 0.1, 0.001), 3.0, UNRESOLVED),
        (-2.0, 3.0, FAILS),
        (-2.0, (0.4, -0.1, 0.9, 0.5), FAILS),
    ],
)
def test_best_needs_every_published_method_and_fails_by_one(tmp_path, live, lora, verdict):
    found, _ = lines(tmp_path, a=comparison({("live", "bleu4"): live, ("lora", "bleu4"): lora}))
    row = found["setting", "bleu4", "a"]
    assert row["verdict"] == verdict
    assert found["overall", "bleu4", None]["verdict"] == verdict
    assert row["comparators"] == 2
    nearest = min(
        ("live", live), ("lora", lora), key=lambda pair: pair[1][0] if isinstance(pair[1], tuple) else pair[1]
    )
    assert row["comparator"] == nearest[0]


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ((-0.5, -0.9, 0.2, 0.9), HOLDS),  # at most one point below, resolved or not
        ((-0.5, -0.9, -0.2, 0.001), HOLDS),  # worse, and competitive
        ((-0.5, -1.2, 0.2, 0.9), UNRESOLVED),
        ((-2.0, -2.5, -1.5, 0.001), FAILS),
        ((3.0, 2.0, 4.0, 0.001), HOLDS),
    ],
)
def test_competitive_is_a_margin_on_the_interval(tmp_path, difference, verdict):
    found, _ = lines(tmp_path, a=comparison({("live", "chexbert_f1"): difference}, metrics=REAL))
    assert found["setting", "chexbert_f1", "a"]["verdict"] == verdict
    assert found["setting", "chexbert_f1", "a"]["margin"] == 1.0


def test_controls_references_and_ablations_are_no_comparators(tmp_path):
    worse = {(method, "bleu4"): -9.0 for method in ("constant", "zero_shot", "dive_static")}
    found, _ = lines(tmp_path, a=comparison(worse))
    assert found["setting", "bleu4", "a"]["verdict"] == HOLDS


def test_over_settings_a_claim_holds_where_all_hold_and_fails_where_one_fails(tmp_path):
    unsure, below = (0.1, -0.4, 0.6, 0.8), -2.0
    assert lines(tmp_path, a=comparison(), b=comparison())[0]["overall", "bleu4", None]["settings_held"] == 2
    for other, verdict in ((unsure, UNRESOLVED), (below, FAILS)):
        found, _ = lines(tmp_path, a=comparison(), b=comparison({("live", "bleu4"): other}))
        row = found["overall", "bleu4", None]
        assert (row["verdict"], row["settings_held"], row["settings"]) == (verdict, 1, 2)
    found, _ = lines(tmp_path, a=comparison(), b=comparison(metrics=("rouge_l",)))
    assert found["overall", "bleu4", None]["verdict"] == UNRESOLVED  # what was not measured is not assumed
    assert found["setting", "bleu4", "b"]["verdict"] == UNMEASURED
    _, notes = lines(tmp_path, a=comparison(), b=comparison(metrics=("rouge_l",)))
    assert "Not measured in 1 of 2 settings: best BLEU-4 (the metric was not measured)." in notes


def test_without_weights_or_baselines_nothing_is_said_and_proxies_never_stand_in(tmp_path):
    found, notes = lines(tmp_path, a=comparison())
    for metric in ("radgraph_f1", "chexbert_f1"):
        assert found["overall", metric, None]["verdict"] == UNMEASURED
        assert found["setting", metric, "a"]["why"] == "the metric was not measured"
        assert "estimate" not in found["setting", metric, "a"]
    assert any("best RadGraph F1 (the metric was not measured)" in note for note in notes)
    for row in found.values():
        assert row["line"].startswith("proxy") == row["metric"].startswith("lexicon") or row["line"].startswith("abl")
        if row["line"].startswith("proxy"):
            assert row["claim"].startswith("proxy: ")
    alone = {name: value for name, value in LAYOUT["methods"].items() if value["group"] != "published"}
    found, _ = lines(tmp_path, a=comparison(methods=alone))
    assert {row["verdict"] for row in found.values()} == {UNMEASURED}
    assert found["setting", "bleu4", "a"]["why"] == "no published baseline here"
    found, _ = lines(tmp_path, a=comparison(methods={"live": None}))
    assert found["setting", "bleu4", "a"]["why"] == "no method of ours here"


def test_an_ablation_above_ours_is_its_own_line(tmp_path):
    better = {("dive_static", "bleu4"): -2.0, ("dive_static", "rouge_l"): (-0.3, -0.8, 0.2, 0.4)}
    found, notes = lines(tmp_path, a=comparison(better), b=comparison())
    row = found["ablation_setting", "bleu4", "a"]
    assert row["claim"] == "On BLEU-4, the static ablation scores above DIVE"
    assert (row["estimate"], row["comparator"]) == (-2.0, "dive_static")
    assert found["ablation", "bleu4", None]["settings_held"] == 1
    assert ("ablation_setting", "rouge_l", "a") not in found
    assert any("In 1 further case (" in note for note in notes)
    assert not any(line.startswith("ablation") for line, _, _ in lines(tmp_path, a=comparison())[0])


def test_experiments_that_share_a_setting_are_judged_together(tmp_path):
    few = dict.fromkeys(("live", "dive"))
    more = dict.fromkeys(("lora", "dive"))
    first = write(tmp_path, a=comparison(methods=few))["a", "tiny"]
    (tmp_path / "second").mkdir()
    second = write(tmp_path / "second", a=comparison({("lora", "bleu4"): -3.0}, methods=more))["a", "tiny"]
    settings = merge_settings([("a", "tiny", first), ("a", "tiny", second)], LAYOUT)
    assert len(settings) == 1
    rows, _ = judge_claims(settings, LAYOUT)
    assert rows[0]["verdict"] == FAILS
    assert rows[1]["comparators"] == 2


def test_files(tmp_path):
    paths = write(tmp_path, a=comparison({("dive_static", "bleu4"): -2.0}), b=comparison())
    out = [str(tmp_path / f"claims.{suffix}") for suffix in ("tex", "csv", "md")]
    write_claims([(*pair, path) for pair, path in paths.items()], LAYOUT, *out)
    with open(out[1], newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(CLAIMS) * 3 + 2
    assert rows[0] | {"verdict": HOLDS, "settings_held": "2", "settings": "2", "estimate": ""} == rows[0]
    text = (tmp_path / "claims.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    assert max(map(len, text.splitlines())) <= 120
    assert "| holds in 2 of 2 settings |" in text
    assert "| not measured" in text
    assert "- On BLEU-4, the static ablation scores above DIVE in 1 of 2 settings: Set A, Tiny_1 (+2.0)." in text
    assert "Set A, Tiny_1" in text
    tex = (tmp_path / "claims.tex").read_text()
    assert r"{\textbf{On BLEU-4, the static ablation scores above DIVE}} & \textbf{in 1 of 2 settings} \\" in tex
    assert r"Set A, Tiny\_1 & LIVE & $+2.0$&$\,^{+2.5}_{+1.5}$" in tex
    assert "n = 256 test studies of 200 patients" in tex


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([HOLDS] * 4, "holds in 4 of 4 settings"),
        ([HOLDS] * 3 + [FAILS], "fails: holds in 3 of 4 settings"),
        ([HOLDS, UNRESOLVED], "not resolved: holds in 1 of 2 settings"),
        ([HOLDS, UNMEASURED], "not resolved: holds in 1 of 2 settings"),
        ([FAILS], "fails: holds in 0 of 1 setting"),
        ([UNMEASURED] * 2, "not measured"),
    ],
)
def test_a_verdict_says_in_how_many_settings_the_claim_holds(verdicts, said):
    row = judge_all(CLAIMS[0], [{"verdict": verdict, "why": "because", "margin": None} for verdict in verdicts])
    assert shown_cells(row, LAYOUT)["verdict"] == said


@pytest.mark.parametrize(
    ("title", "named"),
    [
        ("DIVE uniform weights", "the uniform-weights ablation"),
        ("DIVE static", "the static ablation"),
        ("DIVE no teacher (kd = 0)", "the ablation DIVE no teacher (kd = 0)"),
        ("DIVE static, uniform weights", "the ablation DIVE static, uniform weights"),
    ],
)
def test_an_ablation_above_ours_is_a_sentence(title, named):
    metric = next(metric for metric in COLUMNS if metric.name == "lexicon_graph_f1")
    assert ablation_claim(title, "DIVE", metric) == f"On lexicon graph F1, {named} scores above DIVE"
