"""The lexicon proxies against the synthetic truth: counted by hand on a few reports."""

import json
from pathlib import Path

import pandas as pd
import pytest

from dive.data.synthetic.findings import LABELS as WORLD
from dive.packaged import VOCABULARY
from dive.scores.agreement import compare_lexicon


def test_agreement_counted_by_hand(tmp_path):
    reports = {
        # text, true findings
        "a": ("Small left pleural effusion. No pneumothorax.", ["left_effusion"]),
        "b": ("Moderate right pleural effusion.", ["left_effusion", "edema"]),  # wrong side, edema unsaid
        "c": ("Endotracheal tube in place. The lungs are clear.", ["tube"]),
        "d": ("Bilateral pleural effusions.", ["left_effusion", "right_effusion"]),
    }
    texts = {"study_uid": list(reports), "target": [text for text, _ in reports.values()]}
    pd.DataFrame(texts).to_parquet(tmp_path / "studies.parquet")
    truth = [{"study_uid": uid, **{name: name in true for name in WORLD}} for uid, (_, true) in reports.items()]
    pd.DataFrame(truth).assign(patient_uid="p").to_parquet(tmp_path / "truth.parquet")
    out = [str(tmp_path / name) for name in ("out.json", "out.md")]
    compare_lexicon({"s": str(tmp_path / "studies.parquet")}, {"s": str(tmp_path / "truth.parquet")}, VOCABULARY, *out)
    found = json.loads(Path(out[0]).read_text())["s"]
    labels, graph = found["labels"], found["graph"]
    # labels: effusion of a, b, d; devices and no finding of c; edema missed
    assert [labels["all"][count] for count in ("tp", "fp", "fn")] == [5, 0, 1]
    assert labels["Edema"]["recall"] == 0
    assert labels["all"]["f1"] == pytest.approx(200 * 5 / 11)
    # graph: left of a, device of c, both of d; right of b is wrong, its left and edema are missed
    assert [graph["all"][count] for count in ("tp", "fp", "fn")] == [4, 1, 2]
    assert [graph["Pleural Effusion"][count] for count in ("tp", "fp", "fn")] == [3, 1, 1]
    assert labels["reports"] == 4
    page = Path(out[1]).read_text()
    assert "| Edema |  | 0.0 | 0.0 |" in page
    assert "not on real reports" in page
