"""Another system's file as a method: every test study once, whatever else is there, and nothing known of endings."""

import json

import pandas as pd
import pytest

from dive.data.generations import read_generations
from dive.data.reports import import_reports
from dive.data.roots import DataError
from dive.scores.score import score_method
from tests.unit.test_score import TARGETS, VOCABULARY


@pytest.fixture
def world(tmp_path):
    uids = list(TARGETS)
    table = {"study_uid": uids, "patient_uid": [f"p{uid}" for uid in uids], "target": [TARGETS[uid] for uid in uids]}
    pd.DataFrame(table).to_parquet(tmp_path / "studies.parquet")
    (tmp_path / "pool.json").write_text(json.dumps({"test": ["t1", "t2", "t3"]}))
    return tmp_path


def take(world, rows):
    (world / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("studies.parquet", "pool.json", "reports.jsonl", "seed0.parquet")
    import_reports(*(str(world / name) for name in names))
    return read_generations(world / "seed0.parquet")


def test_reports_of_the_test_studies_in_the_order_of_the_pool(world):
    rows = [{"study_uid": uid, "report": TARGETS[uid], "model": "other"} for uid in ("t3", "q1", "t2")]
    columns = take(world, [*rows, {"study_uid": "t1", "report": None}])
    assert columns["study_uid"] == ["t1", "t2", "t3"]
    assert columns["patient_uid"] == ["pt1", "pt2", "pt3"]
    assert columns["report"] == ["", TARGETS["t2"], TARGETS["t3"]]
    assert columns["n_tokens"] == [0, 4, 4]
    assert columns["stopped"] == [None] * 3
    names = ("studies.parquet", "pool.json")
    score_method(*(str(world / n) for n in names), {0: str(world / "seed0.parquet")}, VOCABULARY, str(world / "scores"))
    metrics = json.loads((world / "scores/summary.json").read_text())["metrics"]
    assert metrics["stop_rate"]["mean"] is metrics["premature_stop_rate"]["mean"] is None
    assert metrics["rouge_l"]["mean"] == pytest.approx(200 / 3)
    assert metrics["under_length_rate"]["mean"] == pytest.approx(1 / 3)


def test_missing_and_repeated_studies_are_listed(world):
    row = {"study_uid": "t2", "report": "Clear."}
    with pytest.raises(DataError, match=r"reports.jsonl lacks 2 studies \(t1, t3\) of the 3 test studies"):
        take(world, [row])
    with pytest.raises(DataError, match=r"1 study \(t2\) more than once"):
        take(world, [row, row])
    assert not (world / "seed0.parquet").exists()
