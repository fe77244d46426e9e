"""The main table: marks, empty cells, escaping, order, notes, and the text form."""

import csv
import json
import re
import subprocess
import sys

import pytest

from dive.reporting.tables import METRICS, WIDTH, escape_latex, format_table, marks, write_tables

GROUPS = {
    "dive_static": ("DIVE, static & 100 %", "ablation"),
    "constant": ("constant report", "control"),
    "icl": ("4-shot (teacher)", "reference"),
    "live": ("LIVE", "published"),
    "dive": ("DIVE", "ours"),
}
LAYOUT = {
    "datasets": {"synthetic-mimic-cxr": {"title": "MIMIC-CXR (synthetic)", "note": "Made here."}},
    "backbones": {"tiny-gemma3": {"title": "Gemma_3 (tiny)"}, "unused": {"title": "Unused", "note": "never shown"}},
    "methods": {name: {"title": title, "group": group} for name, (title, group) in GROUPS.items()},
    "shots": 4,
    "notes": ["A note with 5 % in it."],
}
BLEU = {"constant": [70.0], "icl": [51.0], "live": [42.04, 42.0], "dive": [58.0, 60.0], "dive_static": [61.0, 61.2]}


@pytest.fixture
def scores(tmp_path):
    """Folders of summaries: one seed for the deterministic rows, two for the others; no model metrics."""
    folders = {}
    for method, values in BLEU.items():
        folder = tmp_path / method
        folder.mkdir()
        mean = sum(values) / len(values)
        spread = abs(values[0] - values[-1]) / 2**0.5 if len(values) > 1 else None
        measured = {"mean": mean, "sd": spread, "seeds": {str(i): v for i, v in enumerate(values)}, "n": 256}
        metrics = {metric.name: measured for metric in METRICS}
        for name in ("radgraph_f1", "chexbert_f1"):
            metrics[name] = {"mean": None, "sd": None, "seeds": {}, "n": 0}
        metrics["stop_rate"] = {"mean": 0.0, "sd": spread and 0.0, "seeds": {}, "n": 256}
        (folder / "summary.json").write_text(json.dumps({"metrics": metrics}))
        folders["synthetic-mimic-cxr", "tiny-gemma3", method] = str(folder)
    return folders


@pytest.fixture
def table(scores, tmp_path):
    paths = tmp_path / "main.tex", tmp_path / "main.csv"
    write_tables(scores, LAYOUT, *map(str, paths))
    return paths


def test_rows_are_grouped_and_absent_metrics_are_empty_not_zero(table):
    with table[1].open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["method"] for row in rows] == ["constant", "icl", "live", "dive", "dive_static"]
    for row in rows:
        assert row["radgraph_f1"] == row["chexbert_f1"] == row["radgraph_f1_sd"] == ""
        assert row["stop_rate"] == "0.0000"
        assert row["n"] == "256"
    assert rows[0]["bleu4_sd"] == ""
    assert float(rows[3]["bleu4_sd"]) == pytest.approx(2**0.5, abs=1e-4)


def test_best_and_second_are_marked_among_published_and_ours_only(table):
    text = table[0].read_text()
    assert re.search(r"LIVE & \\underline\{42\.0\}&\$_\{\\pm 0\.0\}\$", text)
    assert re.search(r"DIVE & \\textbf\{59\.0\}&\$_\{\\pm 1\.4\}\$", text)
    assert "constant report & 70.0&" in text  # the highest number, and a control
    assert r"\textbf{61.1}" not in text  # an ablation
    assert text.count(r"\textit{Ours}") == 1


def test_values_that_print_alike_are_marked_alike_and_a_lone_method_is_not_marked():
    rows = [
        {"method": name, "group": group, **{metric.name: None for metric in METRICS}, "bleu4": value}
        for name, group, value in [("a", "published", 41.96), ("b", "ours", 42.04), ("c", "published", 40.0)]
    ]
    assert marks(rows) == {("a", "bleu4"): "best", ("b", "bleu4"): "best"}
    assert marks(rows[:1]) == {}


def test_notes_and_escaping(table):
    text = table[0].read_text()
    assert r"Gemma\_3 (tiny)" in text
    assert r"DIVE, static \& 100 \%" in text
    assert r"A note with 5 \% in it." in text
    assert "K = 4" in text
    assert "n = 256" in text
    assert "MIMIC-CXR (synthetic): Made here." in text
    assert "never shown" not in text
    assert "RadGraph F1 and CheXbert F1 were not measured, because the weights of their models were not given." in text
    assert escape_latex(r"a_b\c~^{#}$") == r"a\_b\textbackslash{}c\textasciitilde{}\textasciicircum{}\{\#\}\$"
    assert text.count("{") == text.count("}")
    rows = [line.replace(r"\&", "") for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    measured = len(METRICS) - 2  # RadGraph F1 and CheXbert F1 take no width
    assert {row.count("&") for row in rows} == {1 + 2 * measured}
    assert "RadGraph" not in text.partition(r"\midrule")[0]


def test_an_unknown_stop_rate_is_not_laid_to_missing_weights(scores, tmp_path):
    """As in a table of other systems' reports alone."""
    for folder in scores.values():
        path = tmp_path / folder / "summary.json"
        summary = json.loads(path.read_text())
        summary["metrics"]["stop_rate"] = {"mean": None, "sd": None, "seeds": {}, "n": 0}
        path.write_text(json.dumps(summary))
    files = [str(tmp_path / name) for name in ("x.tex", "x.csv")]
    write_tables(scores, LAYOUT, *files)
    text = (tmp_path / "x.tex").read_text()
    absent = "RadGraph F1 and CheXbert F1 were not measured, because the weights of their models were not given."
    assert absent in text
    assert "The stop rate was not measured, because a file of reports does not say how each report ended." in text
    assert absent in format_table(files[1])


def test_methods_scored_on_different_studies_are_refused(scores, tmp_path):
    path = tmp_path / "dive" / "summary.json"
    path.write_text(path.read_text().replace('"n": 256', '"n": 255'))
    with pytest.raises(ValueError, match=r"different studies.*dive 255"):
        write_tables(scores, LAYOUT, str(tmp_path / "x.tex"), str(tmp_path / "x.csv"))
    assert not (tmp_path / "x.csv").exists()


def test_unknown_names_and_groups_are_named(scores, tmp_path):
    outputs = str(tmp_path / "x.tex"), str(tmp_path / "x.csv")
    fewer = {name: method for name, method in LAYOUT["methods"].items() if name != "live"}
    with pytest.raises(ValueError, match="methods live"):
        write_tables(scores, {**LAYOUT, "methods": fewer}, *outputs)
    strange = {**LAYOUT["methods"], "live": {"title": "LIVE", "group": "peer"}}
    with pytest.raises(ValueError, match=r"methods.live.group is 'peer'"):
        write_tables(scores, {**LAYOUT, "methods": strange}, *outputs)


def test_text_form_fits_a_terminal(table):
    text = format_table(str(table[1]))
    assert max(map(len, text.splitlines())) <= WIDTH
    line = next(line for line in text.splitlines() if line.startswith("DIVE "))
    assert "*59.0±1.4" in line
    assert "RadGraph F1 and CheXbert F1 were not measured" in text
    module = subprocess.run(
        [sys.executable, "-m", "dive.reporting.tables", str(table[1])], capture_output=True, text=True, check=True
    )
    assert module.stdout == text


def test_text_form_fits_with_every_metric_measured_and_long_titles(table):
    text = table[1].read_text().replace("constant report", "a control with a rather long and winding title")
    lines = text.splitlines()
    head = lines[0].split(",")
    filled = [lines[0]]
    for row in csv.reader(lines[1:]):
        filled.append(",".join(cell or "9.9" for cell in row).replace("DIVE, static", "DIVE; static"))
        assert len(row) == len(head)
    table[1].write_text("\n".join(filled) + "\n")
    assert max(map(len, format_table(str(table[1])).splitlines())) <= WIDTH


def test_equal_scores_give_equal_bytes(scores, tmp_path, table):
    again = tmp_path / "again.tex", tmp_path / "again.csv"
    write_tables(scores, LAYOUT, *map(str, again))
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in table]


@pytest.mark.parametrize(
    ("convention", "told"),
    [
        ("official", "official split"),
        ("own_split", r"own split by patient (10 \% validation, 20 \% test)"),
        ("official_valid", r"official validation set as test (validation: 10 \% of the training patients)"),
    ],
)
def test_notes_name_convention_section_unit_and_views(scores, tmp_path, convention, told):
    selection = {"section": "findings", "unit": "study", "views": "frontal", "convention": convention}
    name = "synthetic-mimic-cxr"
    entry = {**LAYOUT["datasets"][name], "selection": {**selection, "fractions": {"validate": 0.1, "test": 0.2}}}
    write_tables(scores, {**LAYOUT, "datasets": {name: entry}}, str(tmp_path / "x.tex"), str(tmp_path / "x.csv"))
    wanted = f"MIMIC-CXR (synthetic): {told}, findings, one row per study, frontal views; Made here."
    assert wanted in (tmp_path / "x.tex").read_text()
