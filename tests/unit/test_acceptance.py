"""The judgement of the synthetic world on made-up probes whose numbers are known."""

import numpy as np
import pytest

from dive.acceptance import ARMS, accept_world
from dive.data.synthetic.findings import LABELS
from dive.files import read_json, write_json
from dive.scores.bleu import bleu_statistics, corpus_bleu

REFERENCE = "There is a small left pleural effusion. The heart size is normal. There is no pneumothorax."
NEAR = "There is a small left pleural effusion. The heart size is normal. No pneumothorax is present."
FAR = "There is a pacemaker. Clear lungs are present. Portable chest radiograph."


def make_probe(**changes):
    """Sixty studies of thirty patients; the teacher writes the reference but for one label in ten."""
    rng = np.random.default_rng(0)
    truth = rng.random((60, len(LABELS))) < 0.4
    said = {
        "zero_shot": truth ^ (rng.random(truth.shape) < 0.1),
        "icl": truth ^ (rng.random(truth.shape) < 0.1),
        "blank_query": rng.random(truth.shape) < 0.2,
        "constant": np.zeros_like(truth),
    }
    texts = {"zero_shot": FAR, "icl": REFERENCE, "blank_query": NEAR, "constant": NEAR}
    stopped = {"zero_shot": [1] * 48 + [0] * 12, "icl": [1] * 60, "blank_query": [1] * 60, "constant": [1] * 60}
    probe = {
        "dataset": "data",
        "backbone": "model",
        "max_new_tokens": 128,
        "longest_reference": 60,
        "labels": list(LABELS),
        "patients": [f"p{i // 2}" for i in range(60)],
        "truth": truth.astype(int).tolist(),
        "arms": {
            arm: {
                "bleu": [bleu_statistics(texts[arm], REFERENCE).tolist()] * 60,
                "labels": said[arm].astype(int).tolist(),
                "stopped": stopped[arm],
            }
            for arm in ARMS
        },
    }
    return probe | changes


@pytest.fixture
def judge(tmp_path):
    def run(**changes):
        write_json(tmp_path / "probe.json", make_probe(**changes))
        accept_world([str(tmp_path / "probe.json")], str(tmp_path / "out.json"), str(tmp_path / "out.md"))
        verdict = read_json(tmp_path / "out.json")
        return verdict, {row["criterion"]: row for row in verdict["rows"]}, (tmp_path / "out.md").read_text()

    return run


def test_values_are_the_definitions(judge):
    verdict, rows, text = judge()
    assert verdict["met"] == verdict["criteria"] == len(rows) == 8
    gain = corpus_bleu([REFERENCE], [REFERENCE]) - corpus_bleu([FAR], [REFERENCE])
    assert rows["1. K-shot minus zero-shot BLEU-4"]["value"] == pytest.approx(gain, abs=1e-3)
    margin = corpus_bleu([REFERENCE], [REFERENCE]) - corpus_bleu([NEAR], [REFERENCE])
    assert rows["2. K-shot minus constant BLEU-4"]["value"] == pytest.approx(margin, abs=1e-3)
    assert rows["4. zero-shot stop rate"]["value"] == 0.8
    assert rows["4. K-shot minus zero-shot stop rate"]["value"] == pytest.approx(0.2)
    probe = make_probe()
    truth, said = np.array(probe["truth"], bool), np.array(probe["arms"]["icl"]["labels"], bool)
    f1 = 200 * (truth & said).sum() / (truth.sum() + said.sum())
    assert rows["3. K-shot micro label F1"]["value"] == pytest.approx(f1, abs=1e-3)
    assert "8 of 8 criteria are met" in text


def test_intervals_hold_the_value_and_vary_by_patient(judge):
    _, rows, _ = judge()
    low, high = rows["4. zero-shot stop rate"]["interval"]
    assert low < 0.8 < high
    # Thirty patients of two studies with equal outcomes: the interval of thirty draws, not of sixty.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 30), rel=0.15)


def test_a_finding_at_chance_is_named(judge):
    probe = make_probe()
    for row in probe["arms"]["icl"]["labels"]:
        row[LABELS.index("edema")] = 1
    verdict, rows, text = judge(arms=probe["arms"])
    row = rows["3. lowest AUROC of a finding (edema)"]
    assert row["value"] == 0.5
    assert not row["met"]
    assert verdict["met"] == 7
    assert "**no**" in text


def test_a_short_limit_is_not_accepted(judge):
    _, rows, _ = judge(max_new_tokens=100)
    assert not rows["4. generation limit / longest reference"]["met"]
