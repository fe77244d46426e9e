"""The lexicon proxies: labels and graphs read by hand, rewards counted by hand, agreement with the truth."""

import random
import time

import numpy as np
import pytest

from dive.annotation.vocabulary import CLASSES, CONTRAST, Cues, VocabularyAnnotator
from dive.data.generations import LONGEST
from dive.data.studies import LABELS
from dive.data.synthetic.findings import sample_findings
from dive.data.synthetic.language import sample_style, write_report
from dive.packaged import VOCABULARY
from dive.scores.graphs import graph_rewards
from dive.scores.labels import COUNTS, label_counts, label_scores
from dive.scores.lexicon import Lexicon


@pytest.fixture(scope="module")
def words():
    return Lexicon(VOCABULARY)


def named(states):
    """{label: state} of the labels that are not blank."""
    names = ("blank", "positive", "negative", "uncertain")
    return {label: names[state] for label, state in zip(LABELS, states, strict=True) if state}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Small left pleural effusion. No pneumothorax. Heart size is normal.",
            {"Pleural Effusion": "positive", "Pneumothorax": "negative", "Cardiomegaly": "negative"},
        ),
        ("Heart with mild enlargement.", {"Cardiomegaly": "positive"}),
        ("The cardiac silhouette is moderately enlarged.", {"Cardiomegaly": "positive"}),
        ("The heart is not enlarged.", {"No Finding": "positive", "Cardiomegaly": "negative"}),
        ("Heart size is stable.", {"No Finding": "positive"}),  # named, but not judged
        ("Pneumonia cannot be excluded.", {"Pneumonia": "uncertain"}),
        # Positive goes before uncertain, uncertain before negative, wherever they stand.
        ("Effusion is present. No effusion on the right. Possible effusion.", {"Pleural Effusion": "positive"}),
        ("No pneumonia on the left. Possible pneumonia on the right.", {"Pneumonia": "uncertain"}),
        ("Endotracheal tube in place.", {"No Finding": "positive", "Support Devices": "positive"}),
        ("", {}),
        (" \n ", {}),
    ],
)
def test_labels_read_by_hand(words, text, expected):
    assert named(words.labels(text)) == expected


def test_uncertain_counts_as_positive(words):
    reference = words.labels("Pneumonia cannot be excluded. Edema.")
    hypothesis = words.labels("Pneumonia. Atelectasis. No edema.")
    counts = label_counts(hypothesis, reference)
    assert counts.shape == (14, len(COUNTS))
    assert counts[LABELS.index("Pneumonia")].tolist() == [1, 0, 0]
    assert counts[LABELS.index("Atelectasis")].tolist() == [0, 1, 0]
    assert counts[LABELS.index("Edema")].tolist() == [0, 0, 1]
    assert counts.sum() == 3


def test_label_scores_counted_by_hand():
    counts = np.zeros((14, 3), dtype=int)
    counts[LABELS.index("Edema")] = 3, 1, 1  # 6 / 8
    counts[LABELS.index("Fracture")] = 0, 2, 0  # 0
    counts[LABELS.index("Atelectasis")] = 1, 0, 0  # 1
    scores = label_scores(counts, "lexicon_label")
    assert scores["lexicon_label_f1"] == pytest.approx(100 * 8 / 12)
    assert scores["lexicon_label_f1_macro"] == pytest.approx(100 * (0.75 + 0 + 1) / 14)
    assert scores["lexicon_label_f1_micro5"] == pytest.approx(100 * 8 / 10)
    assert scores["lexicon_label_f1_macro5"] == pytest.approx(100 * 1.75 / 5)
    assert scores["lexicon_label_f1/Edema"] == pytest.approx(75)
    assert scores["lexicon_label_f1/Fracture"] == 0
    assert scores["lexicon_label_f1/Pneumonia"] is None


def test_graph_has_radgraphs_form(words):
    text = "There is a small left pleural effusion. No consolidation in the right lower lobe."
    entities = words.graph(text)["entities"]
    by_tokens = {entity["tokens"]: entity for entity in entities.values()}
    effusion, lobe = by_tokens["pleural effusion"], by_tokens["lower lobe"]
    assert list(entities) == [str(number) for number in range(1, len(entities) + 1)]
    assert (effusion["label"], effusion["start_ix"], effusion["end_ix"]) == ("Observation::definitely present", 5, 6)
    assert lobe["label"] == "Anatomy::definitely present"
    assert [entities[target]["tokens"] for _, target in by_tokens["small"]["relations"]] == ["pleural effusion"]
    consolidation = by_tokens["consolidation"]
    assert consolidation["label"] == "Observation::definitely absent"
    assert [(kind, entities[target]["tokens"]) for kind, target in consolidation["relations"]] == [
        ("located_at", "lower lobe")
    ]
    for entity in entities.values():
        assert all(target in entities for _, target in entity["relations"])


def test_a_side_at_the_end_is_where_the_finding_is(words):
    entities = words.graph("Small effusion on the left.")["entities"]
    relations = {entity["tokens"]: entity["relations"] for entity in entities.values()}
    assert relations["effusion"] == [["located_at", "3"]]
    assert relations["left"] == []


def entity(tokens, label, *relations):
    return {"tokens": tokens, "label": label, "relations": list(relations)}


def test_rewards_counted_by_hand():
    present, anatomy = "Observation::definitely present", "Anatomy::definitely present"
    reference = {
        "entities": {
            "1": entity("small", present, ["modify", "2"]),
            "2": entity("effusion", present, ["located_at", "3"]),
            "3": entity("left", anatomy),
        }
    }
    hypothesis = {
        "entities": {
            "1": entity("effusion", present, ["located_at", "2"]),
            "2": entity("right", anatomy),
            "3": entity("small", present),
            "4": entity("left", anatomy),
        }
    }
    # simple: small, effusion, left of 3 and 4; partial: effusion and left; complete: left only, of 3 facts and 4
    assert graph_rewards(hypothesis, reference) == pytest.approx((100 * 6 / 7, 100 * 4 / 7, 100 * 2 / 7))
    assert graph_rewards(reference, reference) == (100, 100, 100)
    assert graph_rewards({"entities": {}}, reference) == (0, 0, 0)
    assert graph_rewards({"entities": {}}, {"entities": {}}) == (0, 0, 0)


def test_identical_texts_score_100_and_empty_ones_0(words):
    text = "Moderate right pleural effusion with basilar atelectasis."
    assert graph_rewards(words.graph(text), words.graph(text)) == (100, 100, 100)
    assert graph_rewards(words.graph(""), words.graph(text)) == (0, 0, 0)


def test_labels_agree_with_the_truth_behind_synthetic_reports(words):
    observations = {
        "cardiomegaly": "Cardiomegaly",
        "edema": "Edema",
        "tube": "Support Devices",
        "line": "Support Devices",
        "pacemaker": "Support Devices",
        "effusion": "Pleural Effusion",
        "consolidation": "Consolidation",
        "pneumothorax": "Pneumothorax",
        "nodule": "Lung Lesion",
        "atelectasis": "Atelectasis",
    }
    rng = np.random.default_rng(0)
    counts = np.zeros((14, 3), dtype=int)
    for _ in range(300):
        findings = sample_findings(rng)
        truth = {observations[label.split("_")[-1]] for label in findings.labels()}
        if not truth - {"Support Devices"}:
            truth.add("No Finding")
        said = words.labels(write_report(findings, sample_style(rng), rng))
        counts += label_counts(said, np.array([int(label in truth) for label in LABELS]))
    assert label_scores(counts, "lexicon_label")["lexicon_label_f1"] > 99


PIECES = (
    "effusion and ",
    "left ",
    "left effusion but ",
    "possible ",
    "no change in ",
    "heart is not ",
    "lung ",
    "....x",
)
PIECES += ("pleural  -", "cannot be excluded; ", "\n ", "- ", "has now since ", "edema. ", "y", "opaci\u017f ")


@pytest.mark.parametrize("piece", PIECES)
def test_the_longest_text_is_read_in_seconds_whatever_it_repeats(piece):
    """Each took the square of the length, or a multiple of it, in one of its steps: minutes for such a text."""
    text = (piece * LONGEST)[:LONGEST]
    words, annotate = Lexicon(VOCABULARY), VocabularyAnnotator(VOCABULARY, CLASSES, include_cues=True)
    began = time.process_time()
    words.labels(text), words.graph(text), annotate(text)
    assert time.process_time() - began < 3


def test_cues_are_those_of_a_search_around_every_mention():
    """By definition: no cue across a contrast, cues behind up to the limit, uncertain before negative."""
    draw = random.Random(0)
    pieces = [
        "no",
        "possible",
        "but",
        "effusion",
        "edema",
        "is absent",
        "there is",
        "unlikely",
        ",",
        "and",
        "; ",
        "has",
    ]
    pieces += ["cannot be excluded", "resolved", "no change in", "apart from", "normal", "without", "versus", "left"]
    for _ in range(500):
        sentence = " ".join(draw.choice(pieces) for _ in range(draw.randrange(1, 15)))
        cues = Cues(sentence)
        begins = [index for index in range(len(sentence)) if not index or sentence[index - 1] == " "]
        for start in begins:
            end = start + len(sentence[start:].split(" ")[0])
            limit = draw.choice([len(sentence), *(begin for begin in begins if begin > end)])
            first = max((match.end() for match in CONTRAST.finditer(sentence, 0, start)), default=0)
            stop = CONTRAST.search(sentence, end, limit)
            last = stop.start() if stop else limit
            expected = next(
                (
                    (polarity, place)
                    for polarity, forward, places in cues._cues
                    for place in places
                    if (first <= place[0] and place[1] <= start if forward else end <= place[0] and place[1] <= last)
                ),
                ("positive", None),
            )
            assert cues.polarity_of(start, end, limit) == expected, sentence
