"""Is the sparsity in the reports or in the measure: numbers by hand, table, figure and the view of reports."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from dive.analyses.sparsity import (
    Tokens,
    concentration,
    densities,
    half_share,
    oracle_share,
    read_tokens,
    share,
    sparsity_rows,
    token_f1,
    verdict,
)
from dive.analyses.tokens import analyse_tokens, token_divergence
from dive.annotation.alignment import mark_tokens
from dive.backbones.loading import load_backbone
from dive.backbones.vision import VisionFeatures
from dive.distillation.cache import render_supervised
from dive.distillation.supervision import spans_of
from dive.reporting.html import decisive_section
from dive.reporting.sparsity import compare_annotators, read_sparsity
from dive.reporting.tokens import choose, pieces_of, write_view
from tests.unit.tiny_models import FAMILIES
from tests.unit.tiny_study import write_study

SETTINGS = {
    "studies": 3,
    "max_report_tokens": 64,
    "seed": 0,
    "annotator": "vocabulary",
    "statistics": {"power_law": 1.0, "surprisal": 1.0, "value_at_risk": 0.5},
    "weights": {"pathology": 3.0, "eos": 10.0, "source": None},
}


def test_divergence_is_the_kl_over_the_vocabulary():
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(8, 30, generator=draw)
    student, teacher = torch.randn(2, 7, 8, generator=draw)
    log_p, log_q = (torch.log_softmax(states @ head, -1) for states in (student, teacher))
    expected = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    found = token_divergence(student, teacher, lambda states: states @ head, chunk=3)
    torch.testing.assert_close(found, expected)
    assert token_divergence(student, student, lambda states: states @ head).abs().max() < 1e-6


class Analysed:
    """The files of an analysis on a tiny backbone."""

    def __init__(self, settings, folder, **changes):
        self.backbone = load_backbone(settings)
        self.study = write_study(folder, self.backbone)
        members = self.study.members
        table = pq.read_table(self.study.studies)
        patients = pa.array([f"p{i // 2}" for i in range(len(table))])
        pq.write_table(table.append_column("patient_uid", patients), self.study.studies)
        spans = pq.read_table(self.study.spans)
        said = {name: pa.array([name] * len(spans)) for name in ("observation", "source")}
        said["polarity"] = pa.array(["negative"] * len(spans))
        for name, column in said.items():
            spans = spans.append_column(name, column)
        pq.write_table(spans, self.study.spans)
        self.drawn = dict.fromkeys(members["validation"], members["demonstrations"][:2])
        demonstrations = folder / "validation.json"
        demonstrations.write_text(json.dumps({"validation": self.drawn}))
        self.tokens = str(folder / "tokens.parquet")
        analyse_tokens(
            backbone=settings,
            studies=self.study.studies,
            pool=self.study.pool,
            demonstrations=str(demonstrations),
            vision=self.study.vision,
            spans={"vocabulary": self.study.spans, "random": self.study.spans},
            settings={**SETTINGS, **changes},
            out=self.tokens,
        )
        self.rows = pq.read_table(self.tokens).to_pylist()


@pytest.fixture(scope="module", params=FAMILIES)
def analysed(request, tiny_settings, tmp_path_factory):
    return Analysed(tiny_settings(request.param), tmp_path_factory.mktemp("analysed"))


def test_losses_and_divergence_equal_plain_forward_passes(analysed):
    backbone, features = analysed.backbone, VisionFeatures(analysed.study.vision)
    uids = analysed.study.members["validation"]
    for uid in uids:
        logits = []
        for drawn in (None, analysed.drawn):
            (prompt,) = render_supervised(backbone, [uid], analysed.study.targets, features.n_tokens, 64, drawn)
            hidden = backbone.prefill(backbone.collate([prompt], features, part="full"))[0]
            logits.append(backbone.head(hidden[prompt.prompt_length - 1 :]).log_softmax(-1))
        rows = [row for row in analysed.rows if row["study_uid"] == uid]
        labels = torch.tensor(prompt.labels)
        for name, log_p in zip(("loss", "teacher_loss"), logits, strict=True):
            expected = F.nll_loss(log_p, labels, reduction="none")
            torch.testing.assert_close(torch.tensor([row[name] for row in rows]), expected, atol=1e-5, rtol=0)
        expected = F.kl_div(logits[0], logits[1], log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(torch.tensor([row["kl"] for row in rows]), expected, atol=1e-5, rtol=0)
        assert [row["term"] for row in rows] == [False] * (len(labels) - 1) + [True]


def test_marks_relevance_and_weights_are_those_of_training(analysed):
    backbone, features = analysed.backbone, VisionFeatures(analysed.study.vision)
    uids = analysed.study.members["validation"]
    prompts = render_supervised(backbone, uids, analysed.study.targets, features.n_tokens, 64)
    for uid, prompt, spans in zip(uids, prompts, spans_of(analysed.study.spans, uids), strict=True):
        rows = [row for row in analysed.rows if row["study_uid"] == uid]
        marked = mark_tokens(prompt.offsets, spans, analysed.study.targets[uid])
        assert [row["decisive_vocabulary"] for row in rows] == [*marked, False]
        assert sum(row["decisive_random"] for row in rows) == marked.sum() > 0
        assert [row["weight"] for row in rows] == [*np.where(marked, 3.0, 1.0), 10.0]
        assert [(row["start"], row["end"]) for row in rows] == [*prompt.offsets, (None, None)]
    report = [row for row in analysed.rows if not row["term"]]
    for name in ("surprisal", "value_at_risk"):
        assert np.mean([row[f"relevance_{name}"] for row in report]) == pytest.approx(1, abs=1e-5)
    losses = np.array([row["loss"] for row in report])
    kept = np.array([row["relevance_value_at_risk"] for row in report]) > 0
    assert losses[kept].min() >= losses[~kept].max()
    assert "text" not in analysed.rows[0]


def test_a_statistic_and_a_control_can_be_the_weights_shown(tiny_settings, tmp_path):
    weights = {**SETTINGS["weights"], "pathology": 1.0, "source": "surprisal"}
    rows = Analysed(tiny_settings("gemma3"), tmp_path / "a", weights=weights).rows
    assert all(row["weight"] == pytest.approx(row["relevance_surprisal"]) for row in rows if not row["term"])
    weights = {**SETTINGS["weights"], "source": "random"}
    rows = Analysed(tiny_settings("gemma3"), tmp_path / "b", weights=weights).rows
    assert all((row["weight"] == 3) == row["decisive_random"] for row in rows if not row["term"])


def planted(n_patients=30, density=3.0, seed=0):
    """Tokens of which a quarter is marked, with ``density`` times the loss of the others on average."""
    rng = np.random.default_rng(seed)
    n = 40 * n_patients
    marked = np.arange(n) % 4 == 1
    term = np.arange(n) % 40 == 39
    loss = rng.exponential(np.where(marked, density, 1.0))
    random = np.zeros(n, dtype=bool)
    random[rng.choice(np.flatnonzero(~term), marked.sum(), replace=False)] = True
    measures = {"loss": loss, "kl": rng.exponential(1.0, n)}
    marks = {"vocabulary": marked, "random": random}
    return Tokens(np.arange(n) // 40, term, measures, marks, {"power_law": np.where(marked, 2.0, 0.5)})


def test_shares_by_hand():
    values = np.array([4.0, 1.0, 1.0, 2.0])
    marked = np.array([True, False, False, True])
    assert share(values, marked) == 0.75
    assert share(values, marked, np.array([1.0, 3.0, 3.0, 1.0])) == 0.5
    assert share(np.zeros(4), marked) == 0.0
    assert half_share(values) == 0.25
    assert oracle_share(values, 2) == 0.75
    tokens, held = concentration(values)
    assert tokens.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert held.tolist() == [0, 0.5, 0.75, 0.875, 1]
    assert half_share(np.ones(10)) == 0.5
    assert token_f1(marked, np.array([True, True, True, False])) == pytest.approx(2 / 5)
    assert token_f1(np.zeros(4, dtype=bool), np.zeros(4, dtype=bool)) is None


def test_densities_find_what_was_planted_and_nothing_else():
    tokens = planted()
    found, low, high = densities(tokens, tokens.marks["vocabulary"], tokens.measures["loss"])
    assert low < 3.0 / 1.5 < high  # 3 against a mean of 0.25 * 3 + 0.75 * 1
    assert low < found < high
    _, low, high = densities(tokens, tokens.marks["random"], tokens.measures["loss"])
    assert low < 1 < high
    assert densities(tokens, np.zeros(len(tokens.term), dtype=bool), tokens.measures["loss"]) is None


def test_rows_before_and_after_weighting():
    tokens = planted()
    rows = {row["row"]: row for row in sparsity_rows(tokens, "vocabulary", {"pathology": 3.0, "eos": 10.0})}
    assert list(rows) == ["all", "vocabulary", "random", "term", "power_law"]
    marked = rows["vocabulary"]
    n = len(tokens.term)
    assert marked["tokens"] == 0.25
    assert marked["weight"] == pytest.approx(3 * n / 4 / (3 * n / 4 + 10 * n / 40 + (n - n / 4 - n / 40)))
    assert marked["weighted_loss"] > marked["loss"] > marked["tokens"]
    assert marked["loss_oracle"] >= marked["loss"]
    assert marked["f1"]["vocabulary"] == 1
    assert marked["f1"]["random"] == rows["random"]["f1"]["vocabulary"] < 0.5
    assert rows["term"]["tokens"] == pytest.approx(1 / 40)
    assert rows["power_law"]["tokens"] == marked["tokens"]
    assert rows["power_law"]["weight"] > rows["power_law"]["tokens"]


@pytest.mark.parametrize(("density", "words"), [(3.0, "more than"), (1.0, "not resolved from"), (0.3, "less than")])
def test_the_verdict_follows_the_interval(density, words):
    tokens = planted(density=density)
    rows = sparsity_rows(tokens, "vocabulary", {"pathology": 3.0, "eos": 10.0})
    said = verdict(rows, "vocabulary")
    loss = said[said.index("the loss at") : said.index("the divergence at")]
    assert words in loss
    assert "not resolved from" in said[said.index("the divergence at") :]


def test_table_figure_and_view(analysed, tmp_path):
    layout = {
        "dataset": "A & B",
        "method": "DIVE",
        "shots": 2,
        "annotator": "vocabulary",
        "weights": {"pathology": 3.0, "eos": 10.0},
    }
    outputs = []
    for turn in ("first", "second"):
        paths = [str(tmp_path / turn / f"sparsity.{suffix}") for suffix in ("tex", "csv", "pdf", "svg")]
        compare_annotators([analysed.tokens] * 2, ["One", "Two"], layout, paths[0], paths[1], paths[2:])
        outputs.append([Path(path).read_bytes() for path in paths])
    assert outputs[0] == outputs[1]
    tex, _, _, svg = outputs[0]
    assert rb"A \& B" in tex
    assert tex.count(rb"\midrule") == 2
    body = [line for line in tex.decode().splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len({line.count("&") for line in body}) == 1
    ET.fromstring(svg)
    rows = read_sparsity(paths[1])
    tokens = read_tokens(analysed.tokens)
    expected = sparsity_rows(tokens, "vocabulary", layout["weights"])
    assert [row["row"] for row in rows] == 2 * [row["row"] for row in expected]
    for row, wanted in zip(rows, expected, strict=False):
        assert row["loss"] == pytest.approx(wanted["loss"], abs=1e-4)
    assert rows[0]["verdict"].startswith("The measure: half of the loss lies in")

    section = decisive_section({"title": "A & B", "table": paths[1], "figure": paths[3], "view": "tokens/a.html"})
    assert [block["title"] for block in section["blocks"]] == ["One", "Two"]
    assert section["blocks"][0]["rows"][0]["title"] == "Vocabulary"
    assert section["blocks"][0]["rows"][0]["cells"][0] == f"{100 * rows[1]['tokens']:.1f}"
    assert section["blocks"][1]["said"] == rows[0]["verdict"]

    view = tmp_path / "view.html"
    arguments = {
        "studies": analysed.study.studies,
        "analyses": [analysed.tokens],
        "backbones": ["<One>"],
        "spans": [analysed.study.spans],
        "title": "A & B",
        "out": str(view),
    }
    write_view(**arguments, chosen=1)
    page = view.read_text()
    first, second, *_ = analysed.study.members["validation"]
    assert f"<h2>{first}</h2>" in page
    assert f"<h2>{second}</h2>" not in page
    assert "&lt;One&gt;" in page
    assert "vocabulary, random" in page or "<td>vocabulary</td>" in page
    assert "source: observation, negative" in page
    assert "http" not in page
    write_view(**arguments, chosen=[second])
    assert f"<h2>{second}</h2>" in view.read_text()
    with pytest.raises(ValueError, match=r"analysis\.view\.studies: s99 not among the 3 validation studies"):
        write_view(**arguments, chosen=["s99"])


def test_the_view_shows_the_report_whole():
    def token(start, end, term=False, **marks):
        return {
            "start": start,
            "end": end,
            "term": term,
            "loss": 1.0,
            "teacher_loss": 1.0,
            "kl": 0.0,
            "weight": 1.0,
            **marks,
        }

    text = "No é effusion and more"
    span = {"start": 5, "end": 13, "source": "vocabulary", "observation": "Pleural Effusion", "polarity": "negative"}
    tokens = [token(0, 2), token(3, 4), token(3, 4), token(4, 13, decisive_vocabulary=True)]
    pieces = pieces_of(text, tokens, [span])
    assert "".join(piece["before"] + piece["text"] for piece in pieces) == text
    assert [piece["text"] for piece in pieces] == ["No", "é", "", "effusion", ""]  # bytes of one letter, then the cut
    assert pieces[3]["polarity"] == "negative"
    assert pieces[3]["decisive"] == ["vocabulary"]
    assert pieces[3]["said"] == ["vocabulary: Pleural Effusion, negative"]
    assert pieces[4]["cut"]
    assert choose(2, ["a", "b", "c"]) == ["a", "b"]
