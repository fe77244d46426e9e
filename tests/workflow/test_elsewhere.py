"""The workflow run from another folder, as a module of another workflow, and as the demo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dive.data.check import read_config
from tests.project import ROOT, Project


def snakemake(project: Project, folder: Path, *arguments: str) -> str:
    """Run snakemake in a folder that is not the project's; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(project.folder / "workflow"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "snakemake", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_run_in_another_folder_needs_nothing_there(fresh: Project, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    goal = "results/annotations/synthetic-mimic-cxr/vocabulary/spans.parquet"
    small = str(ROOT / "tests/end_to_end/config.yaml")
    options = ["--snakefile", str(fresh.folder / "Snakefile"), "--directory", str(place), "--cores", "2", "--no-hooks"]
    snakemake(fresh, tmp_path, *options, "--logger", "dive", "--configfile", small, "--", goal)
    assert (place / goal).is_file()
    assert not (fresh.folder / "results").exists()
    (place / "config.yaml").write_text("seeds: []\n")
    with pytest.raises(AssertionError, match="seeds"):
        snakemake(fresh, tmp_path, *options, "--dry-run")


def test_the_workflow_is_a_module_of_another_one(fresh: Project, tmp_path: Path) -> None:
    lines = [
        "import yaml",
        "module dive:",
        f'    snakefile: "{fresh.folder}/Snakefile"',
        f'    config: yaml.safe_load(open("{fresh.folder}/config.yaml"))',
        "use rule * from dive as dive_*",
        "rule first:",
        "    default_target: True",
        '    input: "results/annotations/synthetic-mimic-cxr/idf/spans.parquet"',
    ]
    other = tmp_path / "other"
    other.mkdir()
    (other / "Snakefile").write_text("\n".join(lines) + "\n")
    printed = snakemake(fresh, other, "--dry-run", "--cores", "1")
    for rule in ("dive_synthesize", "dive_split", "dive_annotate"):
        assert rule in printed


def test_the_demo_changes_what_is_run_and_not_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run of the main table continues with what the demo has computed."""
    monkeypatch.chdir(ROOT)
    default, demo = read_config(["config.yaml"]), read_config(["config.yaml", "config/demo.yaml"])
    changed = {key for key in default if default[key] != demo[key]}
    assert changed <= {"experiments", "grids", "seeds"}
    assert demo["seeds"] == default["seeds"][:1]
    grid = demo["grids"]["demo"]
    assert grid["methods"] == ["zero_shot", "icl", "live", "reft", "dive"]
    assert set(grid["datasets"]) <= set(default["grids"]["main"]["datasets"])
    assert set(grid["backbones"]) <= set(default["grids"]["main"]["backbones"])


def test_the_demo_and_why_say_where_they_work(tmp_path: Path, monkeypatch, capsys) -> None:
    from dive.command import main

    monkeypatch.chdir(tmp_path)
    for command in ("demo", "why"):
        assert main([command]) == 1
        told = capsys.readouterr().err
        assert f"run `dive {command}` in the folder of the workflow" in told
        assert told.count("\n") == 1
