"""``dive score``: any CSV or JSON Lines file gets the scores of the workflow's tables, by the same code."""

import csv
import json
import subprocess
import sys

import pandas as pd
import pyarrow.parquet as pq
import pytest

from dive.command import main
from dive.packaged import VOCABULARY
from dive.scores.bleu import corpus_bleu
from dive.scores.lexicon import Lexicon
from dive.scores.score import score_reports
from tests.unit.tiny_scorers import write_chexbert, write_encoder, write_radgraph, write_reports

HYPOTHESES, REFERENCES = [*write_reports(12, 0), ""], [*write_reports(12, 1), 'No change, "as before".\nStable.']


@pytest.fixture
def files(tmp_path):
    """The same system as CSV and as JSON Lines."""
    rows = [
        {"study_uid": f"s{i}", "hypothesis": said, "reference": true, "note": "passed over"}
        for i, (said, true) in enumerate(zip(HYPOTHESES, REFERENCES, strict=True))
    ]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with (tmp_path / "b.jsonl").open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps({**row, "hypothesis": row["hypothesis"] or None}) + "\n\n")
    return tmp_path


def read_scores(path):
    with path.open(newline="", encoding="utf-8") as handle:
        return {row.pop("metric"): row for row in csv.DictReader(handle)}


def test_csv_and_json_lines_give_the_library_s_scores(files, capsys):
    systems = [str(files / "a.csv"), str(files / "b.jsonl")]
    assert (
        main(["score", *systems, "--out", str(files / "scores.csv"), "--reports", str(files / "reports.parquet")]) == 0
    )
    expected, statistics, columns = score_reports(HYPOTHESES, REFERENCES, Lexicon(VOCABULARY))
    assert expected["bleu4"] == pytest.approx(corpus_bleu(HYPOTHESES, REFERENCES))
    table = read_scores(files / "scores.csv")
    for metric, value in expected.items():
        for system in systems:
            assert table[metric][system] == ("" if value is None else repr(value)), metric
    assert table["reports"][systems[0]] == "13.0"
    assert table["radgraph_f1"][systems[0]] == table["stop_rate"][systems[0]] == ""
    assert "pycocoevalcap" in table["bleu4"]["convention"]
    printed = capsys.readouterr().out
    assert f"{expected['rouge_l']:.4f}" in printed
    assert "radgraph_f1" not in printed
    rows = pq.read_table(files / "reports.parquet").to_pandas()
    assert rows[list(columns)].to_numpy()[:13] == pytest.approx(statistics, nan_ok=True)
    assert not {"hypothesis", "reference"} & set(rows)


def test_references_of_their_own_are_paired_by_study(files, capsys):
    rows = pd.read_csv(files / "a.csv")
    rows[["study_uid", "reference"]].to_csv(files / "references.csv", index=False)
    said = rows[["study_uid", "hypothesis"]].assign(ended=[1, 0] * 6 + [""])[::-1]
    said.to_csv(files / "said.csv", index=False)
    arguments = ["--references", str(files / "references.csv"), "--out", str(files / "scores.csv")]
    assert main(["score", str(files / "said.csv"), *arguments]) == 0
    table = read_scores(files / "scores.csv")
    assert float(table["bleu4"][str(files / "said.csv")]) == pytest.approx(corpus_bleu(HYPOTHESES, REFERENCES))
    said[:-2].to_csv(files / "said.csv", index=False)
    assert main(["score", str(files / "said.csv"), *arguments]) == 1
    assert "lacks 2 studies (s0, s1)" in capsys.readouterr().err


def test_stopped_is_read_where_it_is_named(files):
    rows = pd.read_csv(files / "a.csv").assign(ended=[True] * 9 + [False] * 4)
    rows.to_csv(files / "a.csv", index=False)
    assert main(["score", str(files / "a.csv"), "--stopped", "ended", "--out", str(files / "scores.csv")]) == 0
    assert float(read_scores(files / "scores.csv")["stop_rate"][str(files / "a.csv")]) == pytest.approx(9 / 13)


def test_models_are_used_where_their_weights_are_given(files, capsys):
    pytest.importorskip("radgraph", reason='the package comes with "dive[metrics]"')
    encoder = write_encoder(files / "bert")
    chexbert = write_chexbert(files / "chexbert.pth", encoder)
    write_radgraph(files / "weights", encoder, "radgraph-xl")
    arguments = ["--radgraph", str(files / "weights"), "--chexbert", str(chexbert), "--encoder", str(encoder)]
    arguments += ["--device", "cpu", "--max-words", "20", "--out", str(files / "scores.csv")]
    assert main(["score", str(files / "a.csv"), *arguments]) == 0
    table = read_scores(files / "scores.csv")
    assert 0 < float(table["radgraph_f1"][str(files / "a.csv")]) < 100
    assert 0 < float(table["chexbert_f1"][str(files / "a.csv")]) < 100
    assert float(table["radgraph_capped"][str(files / "a.csv")]) == sum(len(text.split()) > 20 for text in HYPOTHESES)
    assert "hypotheses cut after 20 words" in table["radgraph_f1"]["convention"]
    assert "radgraph 0.1.18" in capsys.readouterr().out
    assert main(["score", str(files / "a.csv"), "--chexbert", str(files / "absent.pth")]) == 1
    assert "absent.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "hypothesis,truth\na,b\n", "has no column reference; it has hypothesis, truth"),
        ("a.csv", "hypothesis,reference\n", "has no reports"),
        ("a.jsonl", '{"hypothesis": "a", "reference": "b"}\n{"hypothesis": \n', "line 2: no JSON"),
        ("a.jsonl", "[1]\n", "line 1: an object is expected"),
        ("a.txt", "", r"read from .csv or .jsonl"),
        (None, None, "no file"),
    ],
)
def test_wrong_files_are_told_in_one_line(tmp_path, capsys, name, content, message):
    path = tmp_path / (name or "absent.csv")
    if content is not None:
        path.write_text(content)
    assert main(["score", str(path)]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert path.name in told
    assert told.count("\n") == 1


def test_the_command_imports_no_torch_without_weights(files):
    code = (
        f"import sys, dive.command as m; m.main(['score', {str(files / 'a.csv')!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
