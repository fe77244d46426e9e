"""Tables beside the main one: their numbers, families, effects, shares; and that a real LaTeX accepts every table."""

import contextlib
import csv
import json
import re
import shutil

import pytest
from pydantic import TypeAdapter, ValidationError

from dive.bounds import Title
from dive.reporting.ablations import CELLS, EFFECTS, changes, contrasts_of, find_cells
from dive.reporting.claims import write_claims
from dive.reporting.comparison_tables import (
    EFFECT_TITLES,
    TABLES,
    describe_changes,
    read_shares,
    write_comparison_table,
)
from dive.reporting.latex import compile_tables, document, escape_latex, printed, stacked
from dive.reporting.tables import METRICS, read_csv, write_tables
from tests.unit.comparisons import LAYOUT, METHODS, SETTINGS, comparison, write

REAL = (*(metric.name for metric in METRICS), "premature_stop_rate", "repeated_4gram_rate")


def make(tmp_path, table, adapters=(), layout=LAYOUT, methods=SETTINGS, **settings):
    """Write a table; its LaTeX and the rows of its CSV."""
    paths = write(tmp_path, **settings)
    out = [str(tmp_path / f"main-{table}.{suffix}") for suffix in ("tex", "csv")]
    write_comparison_table(table, paths, layout, methods, dict(adapters), *out)
    with open(out[1], newline="") as handle:
        return (tmp_path / f"main-{table}.tex").read_text(), list(csv.DictReader(handle))


def effects(value=1.0):
    found = {metric: {"value": value, "low": value - 0.5, "high": value + 0.5} for metric in REAL}
    return {f"dive: {effect}": found for effect in EFFECTS}


def shares(folder, rows):
    folder.mkdir(parents=True)
    lines = [",".join(map(str, row)) for row in rows]
    (folder / "training.csv").write_text("\n".join(["step,share_other,share_pathology,share_term", *lines]) + "\n")
    return str(folder)


def test_the_cells_of_the_2x2_are_found_by_what_they_change():
    cells = find_cells(SETTINGS, "dive")
    assert cells == dict(zip(CELLS, ("dive", "dive_static", "dive_uniform", "dive_static_uniform"), strict=True))
    renamed = {{"dive_static": "x", "dive_uniform": "y"}.get(name, name): value for name, value in SETTINGS.items()}
    assert find_cells(renamed, "dive")["static_weighted"] == "x"
    other = {**SETTINGS, "dive_static": {**SETTINGS["dive_static"], "loss": {"kd": 0.5}}}
    assert find_cells(other, "dive") is None  # it changes more than the rank
    assert find_cells(SETTINGS, "dive_static") is None
    assert find_cells(SETTINGS, "live") is None
    contrasts = contrasts_of(SETTINGS, ["dive"])
    assert contrasts["dive: interaction"] == {
        "dive": 1.0, "dive_static": -1.0, "dive_uniform": -1.0, "dive_static_uniform": 1.0
    }  # fmt: skip
    assert set(EFFECT_TITLES) == set(EFFECTS)
    for weights in EFFECTS.values():
        assert sum(weights.values()) == 0
    assert contrasts_of(SETTINGS, []) == contrasts_of({"dive": SETTINGS["dive"]}, ["dive"]) == {}


def test_what_an_ablation_changes_is_read_off_its_settings():
    base = SETTINGS["dive"]
    assert changes(SETTINGS["dive_static"], base) == {"rank": (16, 0)}
    assert describe_changes(SETTINGS["dive_uniform"], base) == "pathology 3 → 1, eos 10 → 1"
    assert describe_changes({**base, "state": "shuffled"}, base) == "state none → shuffled"


def test_significance_has_every_published_method_and_corrects_within_its_block(tmp_path):
    differences = {("live", "bleu4"): (1.0, 0.5, 1.5, 0.01), ("lora", "rouge_l"): (-1.0, -1.5, -0.5, 0.004)}
    text, rows = make(tmp_path, "significance", a=comparison(differences, p=0.5), b=comparison())
    first = {(row["against"], row["metric"]): row for row in rows if row["dataset"] == "a"}
    # 2 published methods x 4 metrics that were measured and are ranked
    assert len(first) == 8
    assert float(first["lora", "rouge_l"]["p_holm"]) == pytest.approx(0.032)
    assert float(first["live", "bleu4"]["p_holm"]) == pytest.approx(0.07)
    assert first["lora", "rouge_l"]["resolved"] == "-1"
    assert first["live", "bleu4"]["resolved"] == "0"
    assert r"$\mathbf{-1.0}$&$\,^{-0.5}_{-1.5}$ & \scriptsize .032" in text
    assert r"$+1.0$&$\,^{+1.5}_{+0.5}$ & \scriptsize .070" in text
    assert r"DIVE $-$ LoRA 100 \%" in text
    assert "RadGraph F1 and CheXbert F1 were not measured" in text
    assert "p is from two-sided paired approximate randomization over patients (1,000 trials)" in text


def test_the_2x2_has_cells_effects_and_interaction(tmp_path):
    text, rows = make(tmp_path, "factorial", a=comparison(contrasts=effects(), values={("dive", "bleu4"): 61.0}))
    cells = {row["row"]: row for row in rows if row["kind"] == "cell" and row["metric"] == "bleu4"}
    assert list(cells) == list(CELLS)
    assert cells["dynamic_weighted"]["value"] == "61.0000"
    assert {row["row"] for row in rows if row["kind"] == "effect"} == set(EFFECTS)
    assert r"\textit{interaction} & $\mathbf{+1.0}$&$\,^{+1.5}_{+0.5}$" in text
    assert r"dynamic $-$ static, decisive weights &" in text
    assert "mean of both" not in text


def test_mechanisms_show_what_changes_shares_and_differences(tmp_path):
    adapters = {
        ("a", "tiny", "dive", 0): shares(tmp_path / "d0", [(1, 0.5, 0.4, 0.1), (2, 0.3, 0.6, 0.1)]),
        ("a", "tiny", "dive", 1): shares(tmp_path / "d1", [(1, 0.2, 0.7, 0.1)]),
        ("b", "tiny", "dive", 0): shares(tmp_path / "other", [(1, 0.9, 0.1, 0.0)]),
    }
    assert read_shares([adapters["a", "tiny", "dive", seed] for seed in (0, 1)]) == pytest.approx(
        {"other": 0.3, "pathology": 0.6, "term": 0.1}
    )
    found = comparison({("dive_static", "bleu4"): (3.0, 2.0, 4.5, 0.0001)})
    text, rows = make(tmp_path, "mechanisms", adapters, a=found)
    by = {(row["method"], row["metric"]): row for row in rows}
    assert {method for method, _ in by} == {"dive", "dive_static", "dive_uniform", "dive_static_uniform"}
    row = by["dive_static", "bleu4"]
    assert (row["changes"], row["difference_value"], row["difference_low"]) == ("rank 16 → 0", "-3.0000", "-4.5000")
    assert row["resolved"] == "-1"
    assert by["dive", "bleu4"]["share_pathology"] == "0.6000"
    assert by["dive_static", "bleu4"]["share_other"] == ""
    assert "DIVE & 30.0 & 60.0 & 10.0 & $50.0$&" in text
    assert r"DIVE static &  &  &  & $\mathbf{-3.0}$&$\,^{-2.0}_{-4.5}$" in text
    assert r"DIVE static: rank 16 $\to$ 0." in text


def test_termination_has_every_method_and_no_interval_where_there_is_none(tmp_path):
    text, rows = make(tmp_path, "termination", a=comparison(values={("dive", "stop_rate"): 0.9}), b=comparison())
    assert len(rows) == 2 * len(METHODS)
    row = next(row for row in rows if row["method"] == "dive")
    assert (row["stop_rate"], row["stop_rate_low"], row["unique_report_rate_low"]) == ("0.9000", "0.4000", "")
    assert r"DIVE & $0.90$&$\,^{1.40}_{0.40}$" in text
    assert r"Constant\_report \& co" in text


def test_main_table_gets_intervals_and_says_from_whom_ours_is_resolved(tmp_path):
    scores = summaries(tmp_path, ("a",))
    differences = {("live", "bleu4"): (1.0, 0.5, 1.5, 0.0001), ("lora", "bleu4"): (1.0, -0.5, 1.5, 0.0001)}
    paths = write(tmp_path, a=comparison(differences, metrics=REAL))
    write_tables(scores, LAYOUT, str(tmp_path / "main.tex"), str(tmp_path / "main.csv"), paths)
    text, rows = (tmp_path / "main.tex").read_text(), read_csv(str(tmp_path / "main.csv"))
    by = {row["method"]: row for row in rows}
    assert [by[name]["bleu4_resolved"] for name in ("live", "lora", "dive", "zero_shot")] == [1, 0, None, None]
    assert by["dive"]["bleu4_low"] == 49.5
    assert by["dive"]["patients"] == "200"
    assert re.search(
        r"LIVE & \\underline\{48\.0\}\\rlap\{\$\^\{\\dagger\}\$\}&\\hspace\{.35em\}\$\\,\^\{50\.5\}_\{49\.5\}", text
    )
    assert re.search(r"LoRA 100 \\% & 47\.0&\$\\,\^", text)
    assert "a paired bootstrap over patients and seeds with 1,000 resamples" in text
    assert "seeds (0, 1, 2)" in text
    assert "RadGraph F1: archive of RadGraph 1." in text


def summaries(tmp_path, datasets, methods=METHODS):
    """Folders of summaries with every metric measured."""
    scores = {}
    values = {"dive": 50.0, "live": 48.0, "lora": 47.0}
    for dataset in datasets:
        for method in methods:
            folder = tmp_path / "scores" / dataset / method
            folder.mkdir(parents=True)
            value = {"mean": values.get(method, 40.0), "sd": 1.0, "seeds": {"0": 1, "1": 2, "2": 3}, "n": 256}
            said = {"metrics": {metric.name: value for metric in METRICS}, "conventions": {}}
            said["conventions"]["radgraph_f1"] = "archive of RadGraph 1."
            (folder / "summary.json").write_text(json.dumps(said))
            scores[dataset, "tiny", method] = str(folder)
    return scores


def test_numbers_and_escapes():
    assert [printed(value, 1, signed=True) for value in (1.26, -1.26, -0.04, 0.0)] == ["+1.3", "-1.3", "0.0", "0.0"]
    assert stacked(-0.04, 2.0, 1) == r"$\,^{2.0}_{0.0}$"
    assert escape_latex("a_b - c → 5 %") == r"a\_b $-$ c $\to$ 5 \%"


def test_without_latex_it_is_said_what_to_install(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="run the workflow first"):
        compile_tables(str(tmp_path), str(tmp_path / "out.pdf"))
    (tmp_path / "x.tex").write_text("x")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="texlive-latex-base texlive-latex-recommended"):
        compile_tables(str(tmp_path), str(tmp_path / "out.pdf"))
    assert document(["a", "b"]).count(r"\clearpage") == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_a_real_latex_typesets_every_character_of_a_title(tmp_path):
    allowed = TypeAdapter(Title)
    letters = []
    for letter in map(chr, range(32, 0x3000)):
        with contextlib.suppress(ValidationError):
            letters.append(allowed.validate_python(f"a{letter}")[1:])
    assert {*"xßΩλ→&%#<"} <= {*letters}
    (tmp_path / "all.tex").write_text("\n\n".join(f"a{escape_latex(letter)}b" for letter in letters))
    compile_tables(str(tmp_path), str(tmp_path / "out.pdf"))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_a_real_latex_accepts_every_table(tmp_path):
    """With every metric measured and sixteen methods in each of four blocks, each table still fits its page."""
    extra = {f"peer{i}": (f"Peer_{i} & sons", "published") for i in range(5)}
    extra |= {f"mechanism{i}": (f"DIVE, mechanism #{i}", "ablation") for i in range(3)}
    methods = {**METHODS, **extra}
    names = ("a", "b", "c", "d")
    selection = {"section": "findings", "unit": "study", "views": "frontal", "convention": "official"}
    layout = {
        **LAYOUT,
        "datasets": {name: {"title": f"Set {name}_&%", "selection": selection, "note": "a ~ b^2"} for name in names},
        "methods": {name: {"title": title, "group": group} for name, (title, group) in methods.items()},
    }
    settings = {**SETTINGS, **{name: {**SETTINGS["dive"], "state": name} for name in extra}}
    found = comparison({("dive_static", "bleu4"): -3.0}, metrics=REAL, methods=methods, contrasts=effects())
    found["archives"] = {"radgraph_f1": "modern-radgraph-xl 0.1.18", "chexbert_f1": "chexbert.pth"}
    folder = tmp_path / "tables"
    folder.mkdir()
    every = dict.fromkeys(names, found)
    for table in TABLES:
        text, _ = make(tmp_path, table, layout=layout, methods=settings, **every)
        (folder / f"main-{table}.tex").write_text(text)
    paths = write(tmp_path, **every)
    write_tables(summaries(tmp_path, names, methods), layout, str(folder / "main.tex"), str(folder / "main.csv"), paths)
    text = (folder / "main.tex").read_text()
    assert text.count(r"\begin{table}") == 2  # two blocks each, the notes once
    assert text.count("K = 4") == 1
    assert r"\label{tab:main-2}" in text
    assert r"Notes: below Table~\ref{tab:main-2}." in text
    out = [str(folder / f"claims.{suffix}") for suffix in ("tex", "csv", "md")]
    write_claims([(*pair, path) for pair, path in paths.items()], layout, *out)
    compile_tables(str(folder), str(tmp_path / "out.pdf"))
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")
    (folder / "broken.tex").write_text(r"\undefined")
    with pytest.raises(RuntimeError, match="LaTeX does not accept"):
        compile_tables(str(folder), str(tmp_path / "other.pdf"))
    assert not (tmp_path / "other.pdf").exists()
