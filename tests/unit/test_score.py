"""Scoring a method: additive statistics, the same studies for all, absent metrics, the constant report, no torch."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dive.data.generations import LONGEST, read_generations, write_generations
from dive.packaged import VOCABULARY
from dive.scores.bleu import corpus_bleu
from dive.scores.constant import best_report, repeat_best_report
from dive.scores.lexicon import Lexicon
from dive.scores.rouge import rouge_l, rouge_tokens
from dive.scores.score import STATISTICS, report_statistics, score_method, score_reports, scores_from_statistics

TARGETS = {
    "q1": "There is no pleural effusion. No pneumothorax.",
    "q2": "There is no pleural effusion. Small pneumothorax.",
    "d1": "There is a large pleural effusion. No pneumothorax.",
    "v1": "A validation report that must not be read.",
    "t1": "Small left pleural effusion. Heart size is normal.",
    "t2": "No pneumothorax. Severe cardiomegaly.",
    "t3": "The lungs are clear.",
}


@pytest.fixture
def world(tmp_path):
    """A studies table and a pool."""
    uids = list(TARGETS)
    table = pd.DataFrame(
        {"study_uid": uids, "patient_uid": [f"p{uid}" for uid in uids], "target": [TARGETS[uid] for uid in uids]}
    )
    table.to_parquet(tmp_path / "studies.parquet")
    pool = {"queries": ["q1", "q2"], "demonstrations": ["d1"], "validation": ["v1"], "test": ["t1", "t2", "t3"]}
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    return tmp_path


def generate(folder, seed, reports, stopped=True):
    path = folder / f"seed{seed}.parquet"
    write_generations(path, [(uid, f"p{uid}", text, len(text), stopped) for uid, text in reports])
    return str(path)


def score(world, generations):
    score_method(
        str(world / "studies.parquet"), str(world / "pool.json"), generations, VOCABULARY, str(world / "scores")
    )
    return json.loads((world / "scores/summary.json").read_text())


def test_the_stop_rate_counts_every_end_token_and_the_summary_names_them(world):
    ends = {"t1": (True, "<end_of_turn>"), "t2": (False, None), "t3": (True, "<eos>")}
    path = world / "seed0.parquet"
    write_generations(path, [(uid, f"p{uid}", TARGETS[uid], 4, *end) for uid, end in ends.items()])
    assert read_generations(path)["ended_by"] == ["<end_of_turn>", None, "<eos>"]
    summary = score(world, {0: str(path), 1: generate(world, 1, [(uid, TARGETS[uid]) for uid in ends], stopped=None)})
    assert summary["metrics"]["stop_rate"]["seeds"] == {"0": pytest.approx(2 / 3)}
    assert summary["provenance"]["endings"] == {
        "0": {"<end_of_turn>": 1, "length limit": 1, "<eos>": 1},
        "1": {"unknown": 3},
    }


def test_perfect_and_empty_seeds(world):
    test = ["t1", "t2", "t3"]
    perfect = generate(world, 0, [(uid, TARGETS[uid]) for uid in reversed(test)])  # order does not matter
    empty = generate(world, 1, [(uid, "") for uid in test], stopped=False)
    summary = score(world, {0: perfect, 1: empty})
    metrics = summary["metrics"]
    for name in ("bleu4", "bleu4_raw", "rouge_l", "rouge_l_unstemmed", "lexicon_label_f1", "lexicon_graph_f1"):
        assert metrics[name]["seeds"] == pytest.approx({"0": 100, "1": 0}, abs=1e-4), name
        assert metrics[name]["mean"] == pytest.approx(50, abs=1e-4)
        assert metrics[name]["sd"] == pytest.approx(100 / 2**0.5, abs=1e-4)
        assert metrics[name]["n"] == 3
    assert metrics["stop_rate"]["seeds"] == {"0": 1, "1": 0}
    assert metrics["length_ratio"]["seeds"] == {"0": 1, "1": 0}
    assert metrics["unique_report_rate"]["seeds"] == pytest.approx({"0": 1, "1": 1 / 3})
    assert summary["provenance"]["seeds"] == [0, 1]
    assert summary["provenance"]["patients"] == 3
    assert "lower-cased" in summary["conventions"]["bleu4"]


def test_model_metrics_without_weights_are_null_and_one_seed_has_no_spread(world):
    metrics = score(world, {0: generate(world, 0, [("t1", "a"), ("t2", "b"), ("t3", "c")])})["metrics"]
    for name in ("radgraph_f1", "chexbert_f1"):
        assert metrics[name]["mean"] is None
        assert "weights" in metrics[name]["why"]
    assert metrics["bleu4"]["sd"] is None


def test_rows_add_up_to_the_summary(world):
    reports = [("t1", "Small left effusion."), ("t2", "No pneumothorax."), ("t3", "The lungs are clear. " * 3)]
    summary = score(world, {0: generate(world, 0, reports), 2: generate(world, 2, reports[::-1])})
    table = pq.read_table(world / "scores/reports.parquet").to_pandas()
    assert list(table.columns) == ["seed", "study_uid", "patient_uid", "n_tokens", *STATISTICS]
    assert table["seed"].tolist() == [0, 0, 0, 2, 2, 2]
    assert table["study_uid"].tolist() == ["t1", "t2", "t3"] * 2
    assert not {"report", "target"} & set(table.columns)
    total = table.loc[table["seed"] == 2, list(STATISTICS)].to_numpy().sum(axis=0)
    for name, value in scores_from_statistics(total, 3).items():
        assert summary["metrics"][name]["seeds"].get("2") == (None if value is None else pytest.approx(value))
    hypotheses, references = [text for _, text in reports], [TARGETS[uid] for uid, _ in reports]
    metrics = summary["metrics"]
    assert metrics["bleu4"]["seeds"]["0"] == pytest.approx(corpus_bleu(hypotheses, references))
    expected = np.mean([rouge_l(rouge_tokens(h), rouge_tokens(r)) for h, r in zip(hypotheses, references, strict=True)])
    assert metrics["rouge_l"]["seeds"]["0"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([("t1", "a"), ("t2", "b")], r"1 studies are missing \(first: t3\)"),
        ([("t1", "a"), ("t2", "b"), ("t3", "c"), ("t2", "d")], r"1 studies are repeated \(first: t2\)"),
        ([("t1", "a"), ("t2", "b"), ("t3", "c"), ("q1", "d")], r"1 studies are not in the test set \(first: q1\)"),
    ],
)
def test_every_method_is_scored_on_the_same_studies(world, reports, message):
    """Defect 8 of the peers: methods evaluated on different test subsets."""
    good = generate(world, 0, [("t1", "a"), ("t2", "b"), ("t3", "c")])
    with pytest.raises(ValueError, match=rf"seed1.parquet: {message}.*generate it again"):
        score(world, {0: good, 1: generate(world, 1, reports)})
    assert not (world / "scores").exists()


def test_a_study_twice_or_under_another_patient_is_refused(world):
    reports = [("t1", "a"), ("t2", "b"), ("t3", "c")]
    write_generations(world / "foreign.parquet", [(uid, "pt1", text, 1, True) for uid, text in reports])
    with pytest.raises(ValueError, match=r"foreign.parquet: 2 studies are under another patient \(first: t2\)"):
        score(world, {0: str(world / "foreign.parquet")})
    good = generate(world, 0, reports)
    pool = json.loads((world / "pool.json").read_text())
    (world / "pool.json").write_text(json.dumps({**pool, "test": ["t1", "t2", "t3", "t2"]}))
    with pytest.raises(ValueError, match=r"pool.json lists 1 studies more than once \(first: t2\)"):
        score(world, {0: good})
    (world / "pool.json").write_text(json.dumps(pool))
    table = pd.read_parquet(world / "studies.parquet")
    pd.concat([table, table[table["study_uid"] == "t1"].assign(target="b")]).to_parquet(world / "studies.parquet")
    with pytest.raises(ValueError, match=r"studies.parquet lists 1 studies more than once \(first: t1\)"):
        score(world, {0: good})


def test_a_text_too_long_is_named_and_not_scored(world):
    reports = [("t1", "a"), ("t2", "b " * LONGEST), ("t3", "c")]
    with pytest.raises(ValueError, match=r"1 studies are longer than 100,000 characters \(first: t2\)"):
        score(world, {0: generate(world, 0, reports)})
    with pytest.raises(ValueError, match="reference 2 has 100,001 characters; shorten it to the 100,000"):
        score_reports(["a", "b"], ["a", "b" * (LONGEST + 1)], Lexicon(VOCABULARY))


def test_equal_inputs_give_equal_bytes(world):
    path = generate(world, 0, [("t1", "Edema."), ("t2", "No edema."), ("t3", "")])
    contents = []
    for _ in range(2):
        score(world, {0: path})
        contents.append([file.read_bytes() for file in sorted((world / "scores").iterdir())])
    assert contents[0] == contents[1]


def test_a_resample_is_a_weighted_sum_of_rows():
    words = Lexicon(VOCABULARY)
    hypotheses = ["No effusion.", "Large effusion on the left.", "Edema. Edema. Edema.", ""]
    references = ["No pleural effusion.", "Large left effusion.", "Pulmonary edema.", "Clear lungs."]
    rows = report_statistics(hypotheses, references, [True, True, False, True], words)
    draw = [1, 1, 3, 0, 2]
    weights = np.bincount(draw, minlength=4)
    explicit = report_statistics(
        [hypotheses[i] for i in draw],
        [references[i] for i in draw],
        [bool(rows[i, STATISTICS.index("stopped")]) for i in draw],
        words,
    )
    weighted, resampled = scores_from_statistics(weights @ rows, 5), scores_from_statistics(explicit.sum(axis=0), 5)
    # Which of two equal reports or words comes first is a property of the whole set, not of a report.
    for scores in (weighted, resampled):
        for name in ("unique_report_rate", "distinct_1", "distinct_2"):
            scores.pop(name)
    assert weighted == pytest.approx(resampled)


def plain_best(reports):
    """The best report by scoring every pair explicitly."""
    scores = [
        corpus_bleu([reports[i]] * (len(reports) - 1), [text for j, text in enumerate(reports) if j != i])
        for i in range(len(reports))
    ]
    return int(np.argmax(scores)), max(scores)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["no", "effusion", ".", "heart", "normal"]), max_size=9).map(" ".join),
        min_size=2,
        max_size=7,
    )
)
def test_best_report_equals_the_explicit_search(reports):
    index, value = best_report(reports)
    _, expected = plain_best(reports)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    others = [text for place, text in enumerate(reports) if place != index]
    assert corpus_bleu([reports[index]] * len(others), others) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_constant_report_is_of_training_and_the_same_for_all(world):
    out = world / "constant.parquet"
    repeat_best_report(str(world / "studies.parquet"), str(world / "pool.json"), str(out))
    columns = read_generations(out)
    assert columns["study_uid"] == ["t1", "t2", "t3"]
    assert columns["patient_uid"] == ["pt1", "pt2", "pt3"]
    assert columns["report"] == [TARGETS["q1"]] * 3  # shares most with the two other training reports
    assert columns["stopped"] == [True] * 3
    assert columns["n_tokens"] == [7] * 3
    with pytest.raises(ValueError, match="at least 2 training reports"):
        best_report(["one"])


def test_scoring_does_not_import_torch():
    code = (
        "import sys, dive.scores.score, dive.scores.constant; sys.exit('torch' in sys.modules or 'nltk' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
