"""The command line ``dive``: fast, with help that has examples, and errors in one sentence."""

import errno
import os
import signal
import subprocess
import sys

import click
import pytest
import yaml

from dive.command import commands, main
from dive.reporting.changes import describe_setting
from dive.reporting.examples import plain, side_by_side
from tests.project import ROOT
from tests.unit.example_run import DATASET, write_run


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_every_command_has_help_with_examples(name, capsys):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Examples:" in printed
    assert f"  dive {name}" in printed
    options = [option for option in commands.commands[name].params if isinstance(option, click.Option)]
    assert all(option.help for option in options)


def test_help_imports_nothing_heavy():
    code = "import sys; from dive.command import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], text=True, capture_output=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("[")[2].replace("'", "").rstrip("]\n").split(", ")}
    assert not loaded & {"numpy", "pandas", "pyarrow", "pydantic", "snakemake", "torch", "transformers", "yaml"}
    assert "dive" in loaded


def test_a_wrong_name_is_corrected(capsys):
    assert main(["scroe"]) == 2
    assert "'score'" in capsys.readouterr().err
    assert main(["score", "a.csv", "--device", "gpu"]) == 2
    assert "none of auto, cpu" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--configfile"], ["--profile", "--results", "x"], ["main", "--configfile"]])
def test_an_option_without_its_value_is_refused(arguments, capsys):
    assert main(["show", *arguments]) == 2
    assert "requires an argument" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["show"], ["reports", "dive"], ["check-data"], ["why"], ["demo"]])
def test_a_folder_without_the_workflow_is_told_as_such(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) in (1, 2)
    told = capsys.readouterr().err
    assert "in this folder" in told
    assert "in the folder of the workflow" in told


def test_a_closed_pipe_is_no_error(monkeypatch):
    def closed(*_):
        raise BrokenPipeError(errno.EPIPE, "closed")

    ends = os.pipe()
    os.close(ends[0])
    monkeypatch.setattr("dive.scores.assets.plan", closed)
    with os.fdopen(ends[1], "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["fetch-assets"]) == 0


@pytest.mark.parametrize("cores", ["0", "-3", "two", "1.5", ""])
def test_the_demo_needs_a_core(cores, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("dive.demo.run_to_end", lambda command: pytest.fail("it was started"))
    assert main(["demo", "--cores", cores]) == 1
    assert "a number from 1 on, or all" in capsys.readouterr().err


def test_an_interrupted_command_gets_the_time_to_end(tmp_path):
    ended = tmp_path / "ended"
    inner = f"""
import pathlib, signal, sys, time
def end(*_):
    time.sleep(1)
    pathlib.Path({str(ended)!r}).touch()
    sys.exit(1)
signal.signal(signal.SIGINT, end)
print("ready", flush=True)
time.sleep(60)
"""
    outer = f"import sys; from dive.demo import run_to_end; run_to_end([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", outer], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert ended.is_file()
    assert "the same command continues it" in told


def test_the_make_targets_call_commands_that_exist():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = {line.split()[1] for line in text.splitlines() if line.strip().startswith(("@dive ", "dive "))}
    assert called
    assert called <= set(commands.commands)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with results of two methods on five synthetic studies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    write_run(tmp_path / "results")
    return tmp_path


def test_reports_stand_beside_their_references_best_median_and_worst(run, capsys):
    assert main(["reports", "dive", "zero_shot"]) == 0
    printed = capsys.readouterr().out
    for words in ("s4: best of 5 by ROUGE-L", "s2: median of 5 by ROUGE-L", "s0: worst of 5 by ROUGE-L", "Reference"):
        assert words in printed
    assert "DIVE (40.0)" in printed
    assert "Zero-shot (20.0, cut)" in printed
    assert "truth 4" in printed
    assert "dive writes 4" in printed
    assert "\x1b" not in printed
    assert all(len(line) <= 120 for line in printed.splitlines())


def test_reports_of_chosen_studies_and_of_a_number(run, capsys):
    assert main(["reports", "dive", "--study", "s3", "--study", "s1"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("dive writes 3") < printed.index("dive writes 1")
    assert "dive writes 2" not in printed
    assert main(["reports", "dive", "--number", "9", "--by", "lexicon_graph_f1"]) == 0
    printed = capsys.readouterr().out
    assert all(f"dive writes {number}" in printed for number in range(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dvie"], "methods: there is no dvie; the configuration has"),
        (["dive", "--dataset", "elsewhere"], "datasets: there is no elsewhere"),
        (["live"], "live has no scores on synthetic-mimic-cxr with tiny-gemma3"),
        (["dive", "--seed", "7"], "dive has no seed 7 on synthetic-mimic-cxr with tiny-gemma3; it has 0, 1"),
        (["dive", "--study", "s99"], "there is no report of study s99 by dive"),
        (["dive", "--by", "radgraph_f1"], "radgraph_f1 was not measured"),
        (["dive", "--dataset", "synthetic-chexpert-plus"], "run the workflow first"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(run, capsys, arguments, message):
    assert main(["reports", *arguments]) == 1
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert not told.out


def test_reports_of_patients_are_shown_only_where_the_settings_say_so(run, capsys):
    real = {"datasets": {"real": {"like": DATASET, "synthetic": None}}}
    (run / "real.yaml").write_text(yaml.safe_dump(real))
    write_run(run / "results", "real")
    asked = ["reports", "dive", "--dataset", "real", "--configfile", "real.yaml"]
    assert main(asked) == 1
    told = capsys.readouterr()
    assert "real holds reports of patients" in told.err
    assert "analysis.view.credentialed" in told.err
    assert "truth" not in told.out + told.err
    (run / "seen.yaml").write_text("analysis: {view: {credentialed: true}}\n")
    assert main([*asked, "seen.yaml"]) == 0
    assert "truth 4" in capsys.readouterr().out


def test_texts_in_columns_keep_all_words_and_obey_no_escape():
    shown = side_by_side(["Reference", "A long heading that wraps"], ["one two " * 40, "\x1b[31mred"])
    assert shown.count("one") == shown.count("two") == 40
    assert "\x1b" not in shown
    assert plain("a\tb\nc\x07") == "a\tb\nc\ufffd"


def test_show_says_when_there_is_nothing_to_show(run, capsys):
    assert main(["show"]) == 1
    assert "there is no results/tables/main.csv" in capsys.readouterr().err


def test_a_change_is_the_variant_minus_ours_with_interval_and_p():
    rows = [
        {"method": name, "title": title, "group": group, "dataset_title": "Set", "backbone_title": "Tiny"}
        for name, title, group in (("dive", "DIVE", "ours"), ("dive_small", "DIVE rank 8", "ablation"))
    ]
    found = [
        {"metric": "bleu4", "difference": 1.5, "low": 0.4, "high": 2.6, "p": 0.001},
        {"metric": "rouge_l", "difference": -0.2, "low": -1.0, "high": 0.6, "p": 0.6},
    ]
    comparison = {
        "comparisons": [{"method": "dive", "against": "dive_small", **row} for row in found],
        "provenance": {"settings": {"significance": {"alpha": 0.05}}},
    }
    title, head, line, _ = describe_setting(rows, comparison)
    assert title == "Set, Tiny: difference to DIVE [95 % interval] and p"
    assert head.split() == ["BLEU-4", "ROUGE-L"]
    assert line.startswith("DIVE rank 8   -1.5 [-2.6, -0.4]  .002*")
    assert line.endswith("+0.2 [-0.6, +1.0]  .600")
