"""Significance: equal to explicit resampling of texts, patients as units, seeds jointly, Holm, null metrics, time."""

import json
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dive.data.studies import LABELS
from dive.scores import bleu
from dive.scores.bleu import bleu_statistics
from dive.scores.multiplicity import family, holm, resolved
from dive.scores.rouge import rouge_l, rouge_tokens
from dive.scores.significance import (
    MEASURES,
    bootstrap,
    compare_methods,
    draw_weights,
    exchange,
    interval,
    random_statistics,
    randomize,
    read_statistics,
    score_weighted,
    stream,
)

REFERENCES = [
    "There is a small left pleural effusion .",
    "No pneumothorax . Heart size is normal .",
    "The lungs are clear .",
    "Severe cardiomegaly with edema .",
    "No focal consolidation or effusion .",
]
PATIENTS = ["p1", "p2", "p1", "p3", "p2"]
SETTINGS = {"resamples": 300, "alpha": 0.05, "seed": 3}
COUNTS = ("tp", "fp", "fn")


def reports(method: str, seed: int) -> list[str]:
    """Texts that differ between methods and seeds: words dropped from the references."""
    generator = np.random.default_rng([len(method), seed])
    keep = 0.85 if method == "dive" else 0.6
    return [" ".join(word for word in text.split() if generator.random() < keep) or "none" for text in REFERENCES]


def labels(method: str, seed: int) -> np.ndarray:
    """Invented counts (report, label, tp/fp/fn)."""
    return np.random.default_rng([len(method), seed, 7]).integers(0, 2, size=(len(REFERENCES), len(LABELS), 3))


def write(folder, method, seeds, missing=()):
    """A folder with the columns of reports.parquet that the measures read."""
    folder.mkdir()
    rows: dict[str, list] = {"seed": [], "study_uid": [], "patient_uid": []}
    for seed in seeds:
        found = labels(method, seed)
        for index, (text, reference) in enumerate(zip(reports(method, seed), REFERENCES, strict=True)):
            row = {"seed": seed, "study_uid": f"s{index}", "patient_uid": PATIENTS[index]}
            row |= {f"bleu_{k}": v for k, v in zip(bleu.STATISTICS, bleu_statistics(text, reference), strict=True)}
            row["rouge_l"] = 100 * rouge_l(rouge_tokens(text), rouge_tokens(reference)) / 100
            for place, label in enumerate(LABELS):
                for kind, count in enumerate(COUNTS):
                    row[f"label_{count}_{label}"] = int(found[index, place, kind])
            row |= {"graph_partial": float(len(text)), "radgraph_partial": None, "stopped": 1.0, "n_words": 5.0}
            row |= {"reference_words": 6.0, "over_length": 0.0, "under_length": 0.0, "premature_stop": 0.0}
            row |= {"repeated_4grams": 0.0, "first_occurrence": float(index > 0)}
            for name, value in row.items():
                rows.setdefault(name, []).append(None if name in missing else value)
    pq.write_table(pa.table(rows), folder / "reports.parquet")
    (folder / "summary.json").write_text(json.dumps({"conventions": {"radgraph_f1": "archive 1"}}))
    return str(folder)


@pytest.fixture
def scores(tmp_path):
    return {
        "dive": write(tmp_path / "dive", "dive", [0, 1, 2]),
        "live": write(tmp_path / "live", "live", [0, 1, 2]),
        "zero_shot": write(tmp_path / "zero_shot", "zero_shot", [0]),
    }


def explicit(texts: list[tuple[str, str]], counts: np.ndarray) -> dict[str, float]:
    """Scores of a list of (hypothesis, reference), computed from the texts; counts (n, 14, 3)."""
    tp, fp, fn = counts.sum(axis=(0, 1))
    return {
        "bleu4": bleu.corpus_bleu(*map(list, zip(*texts, strict=True))),
        "rouge_l": float(np.mean([rouge_l(rouge_tokens(h), rouge_tokens(r)) for h, r in texts])),
        "lexicon_label_f1": 200 * tp / (2 * tp + fp + fn),
        "lexicon_graph_f1": float(np.mean([len(h) for h, _ in texts])),
    }


def test_a_weighted_column_sum_is_the_score_of_the_resampled_texts(scores):
    statistics = read_statistics(scores)
    weights = draw_weights(stream(0, "test"), 20, 3)
    fast = score_weighted(statistics, weights)
    for method in scores:
        for seed, run in zip(statistics.seeds[method], statistics.runs[method], strict=True):
            hypotheses, counts = reports(method, seed), labels(method, seed)
            for resample, drawn in enumerate(weights):
                rows = [
                    row
                    for patient, times in zip(("p1", "p2", "p3"), drawn, strict=True)
                    for _ in range(int(times))
                    for row in np.flatnonzero(np.array(PATIENTS) == patient)
                ]
                slow = explicit([(hypotheses[row], REFERENCES[row]) for row in rows], counts[rows])
                for name, value in slow.items():
                    assert fast[name][resample, run] == pytest.approx(value, rel=1e-9), (method, seed, name)


def test_an_exchange_is_the_difference_after_texts_change_sides(scores):
    statistics = read_statistics(scores)
    swapped = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=float)
    for a, b in (("dive", "live"), ("dive", "zero_shot"), ("zero_shot", "live")):
        fast = exchange(statistics, a, b, swapped)
        for trial, moved in enumerate(swapped):
            differences = []
            for seed in (0, 1, 2):
                sides = []
                for method in (a, b):
                    seed_of = seed if len(statistics.seeds[method]) > 1 else 0
                    sides.append((reports(method, seed_of), labels(method, seed_of)))
                texts, counts = [[], []], [[], []]
                for row, patient in enumerate(PATIENTS):
                    first = int(moved[("p1", "p2", "p3").index(patient)])
                    for side in (0, 1):
                        source = sides[side ^ first]
                        texts[side].append((source[0][row], REFERENCES[row]))
                        counts[side].append(source[1][row])
                one, other = (explicit(texts[side], np.array(counts[side])) for side in (0, 1))
                differences.append({name: one[name] - other[name] for name in one})
            for name in differences[0]:
                slow = np.mean([difference[name] for difference in differences])
                assert fast[name][trial] == pytest.approx(slow, rel=1e-9, abs=1e-9), (a, b, trial, name)


def test_p_values_count_trials_that_are_as_extreme(scores):
    """With 3 patients there are 8 exchanges, drawn equally often: p is close to the exact permutation test's."""
    statistics = read_statistics(scores)
    found = randomize(statistics, [("dive", "live")], 4000, 0)["dive", "live"]
    every = np.array([[i >> bit & 1 for bit in range(3)] for i in range(8)], dtype=float)
    for name in ("bleu4", "rouge_l", "lexicon_label_f1"):
        differences = np.abs(exchange(statistics, "dive", "live", every)[name])
        assert found[name] == pytest.approx(np.mean(differences >= differences[0] - 1e-9), abs=0.03)
    assert randomize(statistics, [("dive", "live")], 4000, 0)["dive", "live"] == found
    assert randomize(statistics, [("dive", "live")], 4000, 1)["dive", "live"] != found


def test_seeds_and_patients_are_drawn_jointly_and_shared_by_all_methods(scores):
    statistics = read_statistics(scores)
    drawn = bootstrap(statistics, 500, 5)
    patients, seeds = stream(5, "patients"), stream(5, "seeds")
    weights = draw_weights(patients, 500, 3)
    shares = draw_weights(seeds, 500, 3) / 3
    by_run = score_weighted(statistics, weights)["bleu4"]
    for method in ("dive", "live"):
        expected = (by_run[:, statistics.runs[method]] * shares).sum(axis=1)
        np.testing.assert_allclose(drawn.resampled["bleu4"][method], expected)
    np.testing.assert_allclose(drawn.resampled["bleu4"]["zero_shot"], by_run[:, statistics.runs["zero_shot"][0]])
    whole = [bleu.corpus_bleu(reports("dive", seed), REFERENCES) for seed in (0, 1, 2)]
    assert drawn.observed["bleu4"]["dive"] == pytest.approx(np.mean(whole))
    estimate, resampled = drawn.contrast("bleu4", {"dive": 1, "live": -1})
    assert estimate == pytest.approx(drawn.observed["bleu4"]["dive"] - drawn.observed["bleu4"]["live"])
    np.testing.assert_allclose(resampled, drawn.resampled["bleu4"]["dive"] - drawn.resampled["bleu4"]["live"])


def test_the_number_of_rows_in_memory_changes_nothing(scores, monkeypatch):
    statistics = read_statistics(scores)
    whole = bootstrap(statistics, 100, 0), randomize(statistics, [("dive", "live")], 100, 0)
    monkeypatch.setattr("dive.scores.significance.CHUNK", 21)
    parts = bootstrap(statistics, 100, 0), randomize(statistics, [("dive", "live")], 100, 0)
    np.testing.assert_array_equal(whole[0].resampled["bleu4"]["dive"], parts[0].resampled["bleu4"]["dive"])
    assert whole[1] == parts[1]


def test_intervals_cover_and_a_true_null_is_rarely_rejected():
    """300 worlds in which two methods draw from one distribution: 5 % are rejected, 95 % of the intervals hold 0."""
    generator, rejected, covered, worlds = np.random.default_rng(0), 0, 0, 300
    for _ in range(worlds):
        statistics = random_statistics(60, 60, 1, 2)
        sums = statistics.sums.copy()
        sums[..., statistics.part(MEASURES[1])] = generator.normal(30, 10, size=(60, 2, 1))
        statistics = type(statistics)(sums, np.ones(60), statistics.runs, statistics.seeds, (MEASURES[0], MEASURES[1]))
        low, high = interval(bootstrap(statistics, 200, 0).contrast("rouge_l", {"method0": 1, "method1": -1})[1], 0.05)
        covered += low <= 0 <= high
        rejected += randomize(statistics, [("method0", "method1")], 200, 0)["method0", "method1"]["rouge_l"] < 0.05
    assert 0.01 < rejected / worlds < 0.10
    assert 0.90 < covered / worlds < 0.99


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
    assert [resolved(*case, 0.05) for case in ((1, 2, 0.01), (-2, -1, 0.01), (1, 2, 0.06), (-1, 2, 0.01))] == [
        1,
        -1,
        0,
        0,
    ]


def test_a_family_is_what_a_table_shows():
    row = {"method": "dive", "difference": 1.0, "low": 0.5, "high": 1.5, "p": 0.02}
    rows = [{**row, "against": against, "metric": metric} for against in ("a", "b") for metric in ("bleu4", "rouge_l")]
    comparison = {"comparisons": [*rows, {**row, "method": "other", "against": "a", "metric": "bleu4"}]}
    alone = family(comparison, "dive", ["a"], ["bleu4"], 0.05)
    assert list(alone) == [("a", "bleu4")]
    assert (alone["a", "bleu4"]["p_holm"], alone["a", "bleu4"]["resolved"]) == (0.02, 1)
    together = family(comparison, "dive", ["a", "b"], ["bleu4", "rouge_l"], 0.05)
    assert len(together) == 4
    assert {(row["p_holm"], row["resolved"]) for row in together.values()} == {(0.08, 0)}


def test_a_comparison_says_how_it_was_made_and_leaves_out_what_was_not_measured(scores, tmp_path):
    out = tmp_path / "out.json"
    contrasts = {"interaction": {"dive": 1.0, "live": -1.0, "zero_shot": -0.5}, "absent": {"dive": 1.0, "other": -1.0}}
    compare_methods(scores, ["dive"], contrasts, SETTINGS, str(out))
    found = json.loads(out.read_text())
    assert (found["n"], found["patients"], found["seeds"]) == (5, 3, [0, 1, 2])
    assert found["provenance"]["settings"]["significance"] == SETTINGS
    assert {(row["method"], row["against"]) for row in found["comparisons"]} == {
        ("dive", "live"),
        ("dive", "zero_shot"),
    }
    metrics = {row["metric"] for row in found["comparisons"]}
    assert {"bleu4", "rouge_l", "lexicon_label_f1", "stop_rate"} <= metrics
    assert not {"radgraph_f1", "chexbert_f1"} & metrics  # null, and no such column
    assert "low" not in found["methods"]["dive"]["metrics"]["unique_report_rate"]
    assert found["methods"]["dive"]["metrics"]["unique_report_rate"]["value"] == pytest.approx(0.8)
    row = found["methods"]["dive"]["metrics"]["bleu4"]
    assert row["low"] <= row["value"] <= row["high"]
    values = {method: found["methods"][method]["metrics"]["bleu4"]["value"] for method in scores}
    expected = values["dive"] - values["live"] - 0.5 * values["zero_shot"]
    assert found["contrasts"]["interaction"]["bleu4"]["value"] == pytest.approx(expected)
    assert found["contrasts"]["absent"] == {}
    assert found["archives"] == {}
    compare_methods(scores, ["dive"], contrasts, SETTINGS, str(tmp_path / "again.json"))
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()


def test_what_cannot_be_paired_is_refused(scores, tmp_path):
    other = write(tmp_path / "other", "live", [0, 5])
    with pytest.raises(ValueError, match="the same seeds"):
        bootstrap(read_statistics({"dive": scores["dive"], "other": other}), 10, 0)
    with pytest.raises(ValueError, match="the same seeds"):
        randomize(read_statistics({"dive": scores["dive"], "other": other}), [("dive", "other")], 10, 0)
    table = pq.read_table(tmp_path / "other/reports.parquet")
    pq.write_table(table.slice(1), tmp_path / "other/reports.parquet")
    with pytest.raises(ValueError, match=r"other/reports.parquet: seed 0 was scored on 4 studies.*the 5 of"):
        read_statistics({"dive": scores["dive"], "other": other})
    values = [None, *table["rouge_l"].to_pylist()[1:]]
    index = table.column_names.index("rouge_l")
    pq.write_table(table.set_column(index, "rouge_l", pa.array(values)), tmp_path / "other/reports.parquet")
    with pytest.raises(ValueError, match="column rouge_l is null in some rows"):
        read_statistics({"other": other})


def test_a_study_twice_or_under_another_patient_is_refused(scores, tmp_path):
    """Either would put a patient's reports into another's resample, or twice into every sum."""
    other = write(tmp_path / "other", "live", [0])
    path = tmp_path / "other/reports.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), path)
    for methods in ({"other": other}, {"dive": scores["dive"], "other": other}):
        with pytest.raises(
            ValueError, match=r"other/reports.parquet: seed 0 has 1 studies more than once \(first: s3\)"
        ):
            read_statistics(methods)
    owners = [*PATIENTS[:4], "p1"]
    index = table.column_names.index("patient_uid")
    pq.write_table(table.set_column(index, "patient_uid", pa.array(owners)), path)
    with pytest.raises(ValueError, match=r"has 1 studies under another patient than the other methods \(first: s4\)"):
        read_statistics({"dive": scores["dive"], "other": other})
    # The order of rows says nothing.
    pq.write_table(table.take(pa.array([3, 1, 4, 0, 2])), path)
    read_statistics({"dive": scores["dive"], "other": other})


def test_ten_thousand_resamples_of_three_thousand_reports_take_seconds():
    statistics = random_statistics(3000, 293, 1, 2)
    started = time.process_time()
    bootstrap(statistics, 10_000, 0)
    randomize(statistics, [("method0", "method1")], 10_000, 0)
    assert time.process_time() - started < 5


def test_the_benchmark_runs_and_torch_is_not_imported():
    command = (
        "import sys; from dive.scores import significance; "
        "significance.main(['--resamples', '50', '--reports', '40', '--patients', '30', '--seeds', '2']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert "50 resamples x 5 metrics x 40 reports of 30 patients" in done.stdout
