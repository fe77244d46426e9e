"""The package as it is installed from its wheel: in a fresh environment without Snakemake, from any folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.project import ROOT

# A fresh environment has what the current one has, Snakemake aside; nothing is downloaded.
BORROWED = "import sys; sys.modules.update(snakemake=None, resource=None)\n{folder}\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, sources / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "workflow", sources / "workflow", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(sources / "wheels"), str(sources)], check=True)
    (built,) = (sources / "wheels").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory) -> Path:
    """The folder of commands of an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(BORROWED.format(folder=sysconfig.get_path("purelib")), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True)
    return folder / "bin"


def run(folder: Path, *command: str) -> str:
    """What a command prints, run in ``folder`` without this project on its path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    data = {name.removeprefix("dive/resources/") for name in names if name.startswith("dive/resources/")}
    there = {
        path.relative_to(ROOT / "workflow/dive/resources").as_posix()
        for path in (ROOT / "workflow/dive/resources").rglob("*")
        if path.is_file()
    }
    assert data == there
    assert {"vocabulary.csv", "assets.json", "templates/report.html.j2"} <= data
    assert not [name for name in names if not name.startswith(("dive/", "dive-", "snakemake_logger_plugin_dive/"))]


def test_the_command_scores_a_file_from_any_folder(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("hypothesis,reference\nNo effusion.,No effusion.\n", encoding="utf-8")
    printed = run(tmp_path, str(fresh / "dive"), "score", "a.csv", "--out", "scores.csv")
    assert "lexicon_graph_f1" in printed
    assert (tmp_path / "scores.csv").is_file()
    assert "radgraph-xl.tar.gz" in run(tmp_path, str(fresh / "dive"), "fetch-assets")
    assert run(tmp_path, str(fresh / "dive"), "--version").startswith("dive, version ")


API = """
import sys
from pathlib import Path
import dive
assert Path(dive.__path__[0]).is_relative_to(sys.prefix), dive.__path__
from dive.scores.lexicon import Lexicon
from dive.scores.score import score_reports
from dive.packaged import VOCABULARY
scores, *_ = score_reports(["No effusion."], ["No effusion."], Lexicon(VOCABULARY))
assert scores["rouge_l"] == 100, scores
assert "torch" not in sys.modules
from dive.steering import attach
assert not {"dive.job", "dive.warm", "dive.runs"} & set(sys.modules), "the frame of jobs is imported"
import torch
from transformers.models.auto.modeling_auto import AutoModelForImageTextToText
from dive.packaged import packaged
from dive.steering.base import build_intervention
torch.manual_seed(0)
model = AutoModelForImageTextToText.from_pretrained(str(packaged("backbones/tiny-gemma3")))
ids = torch.tensor([[2, 17, 18]])
plain = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
method = {"module": "dive", "rank": 2, "layers": "all", "positions": "answer", "state": "own"}
intervention = build_intervention(method, 4, 128, 0)
for parameter in intervention.parameters():
    torch.nn.init.normal_(parameter)
with attach(model, intervention) as steered:
    changed = steered.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
assert not torch.equal(plain, changed)
assert torch.equal(plain, model.generate(input_ids=ids, max_new_tokens=4, do_sample=False))
print("ok")
"""


def test_the_public_api_needs_neither_the_workflow_nor_its_folder(fresh: Path, tmp_path: Path) -> None:
    assert run(tmp_path, str(fresh / "python"), "-c", API).strip() == "ok"
