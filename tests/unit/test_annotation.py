"""The vocabulary's spans: what counts as a mention, its polarity, and the table that a radiologist edits."""

import csv
import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dive.annotation.annotate import annotate_studies
from dive.annotation.vocabulary import (
    CLASSES,
    COLUMNS,
    VocabularyAnnotator,
    expand,
    sentences,
    trie_pattern,
)
from dive.annotation.weights import token_weights, weight_shares, weight_sums
from dive.data.roots import DataError
from dive.data.studies import LABELS, write_studies
from dive.data.synthetic.findings import sample_findings
from dive.data.synthetic.language import target_style, write_report
from dive.packaged import VOCABULARY

DEFAULT = ("observation", "pathology")
annotate = VocabularyAnnotator(VOCABULARY, DEFAULT)
with_cues = VocabularyAnnotator(VOCABULARY, DEFAULT, include_cues=True)


def texts(spans, text):
    return [text[span.start : span.end] for span in spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Small left pleural effusion.", ["pleural effusion"]),
        ("PLEURAL EFFUSION", ["PLEURAL EFFUSION"]),
        ("Pleural\n effusions", ["Pleural\n effusions"]),
        ("ground-glass opacities", ["ground-glass opacities"]),
        ("ground glass opacity", ["ground glass opacity"]),
        ("air-space  disease", ["air-space  disease"]),
        ("opacities/nodule", ["opacities", "nodule"]),
        ("massive, masses and a mass", ["masses", "mass"]),
        ("midline, outlined, tubes", ["tubes"]),
        ("Consolidation. Lobar", ["Consolidation"]),
        ("There is pleural. Effusion follows.", ["Effusion"]),  # never across the end of a sentence
        ("pleural\n\neffusion", ["effusion"]),
        ("A 1.5 cm nodule", ["nodule"]),
        ("pulmonary vascular congestion and edema", ["pulmonary vascular congestion", "edema"]),
        ("No abnormal findings named here", []),
        ("", []),
        ("NODULE\u017f, l\u0131ne, effus\u0130on", ["NODULE\u017f", "l\u0131ne", "effus\u0130on"]),
        ("pleural\u00a0effusion", ["pleural\u00a0effusion"]),
    ],
)
def test_mentions(text, expected):
    assert texts(annotate(text), text) == expected


def test_overlapping_mentions_become_one_with_the_longest_observation(tmp_path):
    path = tmp_path / "vocabulary.csv"
    rows = [
        "A,left lower lobe,observation,own",
        "B,lobe consolidation with air,observation,own",
        "C,lobe,observation,own",
    ]
    path.write_text(",".join(COLUMNS) + "\n" + "\n".join(rows))
    spans = VocabularyAnnotator(path, DEFAULT)("The left lower lobe consolidation with air.")
    assert [(span.start, span.end, span.observation) for span in spans] == [(4, 42, "B")]


@pytest.mark.parametrize(
    ("text", "polarities"),
    [
        ("There is a pleural effusion.", "p"),
        ("There is no pleural effusion.", "n"),
        ("No effusion or pneumothorax.", "nn"),
        ("Neither effusion nor pneumothorax is shown.", "nn"),
        ("Without focal consolidation.", "n"),
        ("Negative for pneumonia.", "n"),
        ("No effusion, but a pneumothorax.", "np"),
        ("No effusion; pneumothorax persists.", "np"),
        ("No effusion. Pneumothorax persists.", "np"),
        ("Pneumothorax is no longer seen.", "n"),
        ("Effusion and pneumothorax have resolved.", "nn"),
        ("Pneumothorax persists and effusion has resolved.", "pn"),
        ("Possible pneumonia.", "u"),
        ("Opacity, likely atelectasis.", "pu"),
        ("Pneumonia cannot be excluded.", "u"),
        ("Cannot exclude a small effusion.", "u"),
        ("Opacity may represent pneumonia.", "pu"),
        ("Opacity suspicious for malignancy.", "pu"),
        ("No change in effusion.", "p"),
        ("No significant interval change of the opacities.", "p"),
        ("Heart size is normal.", "n"),
        ("Normal heart size.", "n"),
        ("Cardiac silhouette is enlarged.", "pp"),
        ("Cannotexclude knowing edema.", "p"),
    ],
)
def test_polarity(text, polarities):
    names = {"p": "positive", "n": "negative", "u": "uncertain"}
    assert [span.polarity for span in annotate(text)] == [names[letter] for letter in polarities]


def test_negated_mentions_stay_and_their_cues_by_flag():
    text = "There is no effusion or pneumothorax. Possible edema. A nodule."
    assert texts(annotate(text), text) == ["effusion", "pneumothorax", "edema", "nodule"]
    spans = with_cues(text)
    assert texts(spans, text) == ["no", "effusion", "pneumothorax", "Possible", "edema", "nodule"]
    assert [span.source for span in spans] == ["cue", "vocabulary", "vocabulary", "cue", "vocabulary", "vocabulary"]
    assert spans[0].polarity == "negative"


def test_classes_by_config():
    text = "Stable small left effusion at the lung base."
    assert texts(annotate(text), text) == ["effusion"]
    everything = VocabularyAnnotator(VOCABULARY, CLASSES)
    assert texts(everything(text), text) == ["Stable", "small", "left", "effusion", "lung base"]


def test_expansion():
    assert expand("opaci(ty|ties)") == ["opacity", "opacities"]
    assert expand("pleural-effusion(s)") == ["pleural effusion", "pleural effusions"]
    assert expand("Kerley  B line(s)") == ["kerley b line", "kerley b lines"]
    for wrong in ("effusion(s", "a|b", "a)", " "):
        with pytest.raises(ValueError, match="malformed"):
            expand(wrong)


def test_the_vocabulary_is_sound():
    with open(VOCABULARY, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert all(row["source"] and row["class"] in CLASSES for row in rows)
    # All fourteen observations have forms, under CheXpert's names.
    assert {row["observation"] for row in rows if row["class"] == "observation"} == set(LABELS)
    assert len({row["surface"] for row in rows}) == len(rows)
    VocabularyAnnotator(VOCABULARY, CLASSES)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Edema,edema,disease,own", "line 2: class 'disease'"),
        ("Edema,edema(,observation,own", "line 2: surface form 'edema\\(' is malformed"),
        ("Edema,Edema,observation,own\nOther,edema,pathology,own", "line 3: 'edema' stands for Edema already"),
        ("Heart,heart,anatomy,own", "no form of the classes observation, pathology"),
    ],
)
def test_mistakes_in_the_table_are_named_by_line(tmp_path, row, message):
    path = tmp_path / "vocabulary.csv"
    path.write_text(",".join(COLUMNS) + "\n" + row + "\n")
    with pytest.raises(DataError, match=message):
        VocabularyAnnotator(path, DEFAULT)


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(DataError, match=r"annotation\.classes has diseases"):
        VocabularyAnnotator(VOCABULARY, ["diseases"])
    path = tmp_path / "vocabulary.csv"
    path.write_text("observation,form\n")
    with pytest.raises(DataError, match="must have the columns"):
        VocabularyAnnotator(path, DEFAULT)


FORMS = st.lists(st.text("ab ", min_size=1, max_size=5).map(str.strip).filter(bool), min_size=1, max_size=8)


@settings(deadline=None)
@given(FORMS, st.text("ab -", max_size=20))
def test_the_trie_matches_the_longest_form(forms, text):
    forms = [" ".join(form.split()) for form in forms]
    match = re.match(f"(?:{trie_pattern(forms)})(?!\\w)", text)
    ends = [
        found.end()
        for form in forms
        if (found := re.match(r"[\s-]+".join(map(re.escape, form.split())) + r"(?!\w)", text))
    ]
    assert (match.end() if match else None) == (max(ends) if ends else None)


WORDS = st.sampled_from(
    ["no", "pleural", "effusion", "edema,", "or", "nodule.", "\n", "heart", "size", "is", "normal", "lobe"]
)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=25).map(" ".join))
def test_spans_are_disjoint_trimmed_and_within_a_sentence(text):
    for annotator in (annotate, with_cues):
        last = 0
        for span in annotator(text):
            assert last <= span.start < span.end <= len(text)
            last = span.end
            inside = text[span.start : span.end]
            assert inside == inside.strip()
            assert any(start <= span.start and span.end <= end for start, end in sentences(text))


@pytest.mark.parametrize("site", ["site_a", "site_b"])
def test_every_synthetic_finding_is_decisive(site):
    rng = np.random.default_rng(0)
    names = {"effusion": "Pleural Effusion", "pneumothorax": "Pneumothorax", "consolidation": "Consolidation"}
    names |= {"nodule": "Lung Lesion", "atelectasis": "Atelectasis", "edema": "Edema", "cardiomegaly": "Cardiomegaly"}
    names |= dict.fromkeys(("tube", "line", "pacemaker"), "Support Devices")
    for _ in range(200):
        findings = sample_findings(rng)
        spans = annotate(write_report(findings, target_style(site), rng))
        positive = {span.observation for span in spans if span.polarity == "positive"}
        negative = {span.observation for span in spans if span.polarity == "negative"}
        present = {names[label.removeprefix("left_").removeprefix("right_")] for label in findings.labels()}
        if "Enlargement" in positive:  # of the heart: nothing else is enlarged in this world
            positive.add("Cardiomegaly")
        assert present <= positive
        assert not negative & present


def test_spans_file(tmp_path):
    targets = ["No effusion. There is a nodule.", "Nothing to name.", "Edema."]
    studies = pd.DataFrame(
        {
            "study_uid": ["a", "b", "c"],
            "patient_uid": ["a", "b", "c"],
            "split": "train",
            "image_paths": [["x"]] * 3,
            "views": [["PA"]] * 3,
            "findings": targets,
            "impression": None,
            "target": targets,
            "indication": None,
            "n_words": 1,
        }
    ).assign(**dict.fromkeys(LABELS, np.nan))
    write_studies(studies, tmp_path / "studies.parquet", {})
    settings = {"annotator": "vocabulary", "include_cues": False, "classes": list(DEFAULT)}
    files = {"vocabulary": VOCABULARY}
    annotate_studies(str(tmp_path / "studies.parquet"), settings, files, str(tmp_path / "spans.parquet"))
    spans = pd.read_parquet(tmp_path / "spans.parquet")
    assert list(spans.columns) == ["study_uid", "start", "end", "text", "observation", "polarity", "source"]
    assert spans.values.tolist() == [
        ["a", 3, 11, "effusion", "Pleural Effusion", "negative", "vocabulary"],
        ["a", 24, 30, "nodule", "Lung Lesion", "positive", "vocabulary"],
        ["c", 0, 5, "Edema", "Edema", "positive", "vocabulary"],
    ]


def test_the_time_of_different_reports_grows_with_their_number():
    rng = np.random.default_rng(0)
    styles = [target_style("site_a"), target_style("site_b")]
    reports = [write_report(sample_findings(rng), styles[i % 2], rng) for i in range(1000)]
    annotator = VocabularyAnnotator(VOCABULARY, DEFAULT)

    def seconds(n):
        start = time.process_time()
        for report in reports[-n:]:
            annotator(report)
        return time.process_time() - start

    few = seconds(100)
    assert seconds(1000) < 40 * few  # ten times as many; BENCHMARKS.md has the time of all reports of MIMIC-CXR


def test_weights():
    marked = np.array([False, True, True, False])
    assert token_weights(marked, True, 3, 10).tolist() == [1, 3, 3, 1, 10]
    assert token_weights(marked, False, 3, 10).tolist() == [1, 3, 3, 1]  # a truncated report has no TERM
    assert token_weights(np.zeros(0, dtype=bool), True, 3, 10).tolist() == [10]
    with pytest.raises(ValueError, match="must be positive"):
        token_weights(marked, True, 0, 10)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [((1, 1), (67.5, 31.2, 1.2)), ((3, 10), (38.8, 54.0, 7.2)), ((3, 1), (41.5, 57.7, 0.8))],
)
def test_weights_redistribute(weights, shares):
    """80 tokens, 25 of pathology: TERM gains from its own weight and loses by pathology's alone."""
    marked = np.arange(79) < 25
    found = weight_shares(marked, True, *weights)
    assert [round(100 * found[part], 3) for part in ("other", "pathology", "term")] == pytest.approx(shares, abs=0.06)
    assert sum(found.values()) == pytest.approx(1)
    assert sum(weight_sums(marked, True, *weights).values()) == token_weights(marked, True, *weights).sum()
