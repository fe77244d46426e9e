"""What a user sees of errors and of runs that were killed: sentences, and nothing left over."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dive.runs import RUN
from tests.project import ROOT, Project

FEW = {"datasets": {"synthetic-mimic-cxr": {"synthetic": {"patients": {"train": 12, "validate": 6, "test": 6}}}}}
DATASET = "data/synthetic-mimic-cxr"
SNAKEMAKE = Path(sys.executable).parent / "snakemake"


def refused(project: Project, *arguments: str) -> str:
    """What a dry run says that must not come to its plan, without a stack and before any job."""
    done = project.run("snakemake", "--dry-run", *arguments)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout
    assert "Job stats" not in done.stdout
    assert not (project.folder / "logs").exists()
    return done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'methods: {dive: {title: "Dïve"}}'.encode("latin-1"),
            "over.yaml: line 1 is not UTF-8 (perhaps Latin-1); save",
        ),
        ("shots: 2".encode("utf-16"), "over.yaml: the file is binary, or a text in UTF-16"),
        (
            b"methods: &m\n  dive: {title: x}\n  other: *m",
            "over.yaml, line 1: methods.other: the anchor contains itself",
        ),
        (
            b"shots: 2\nshots: 3",
            "over.yaml, line 2: the file: the key 'shots' is there twice, first in line 1; keep one",
        ),
        (b"1: 2\nnull: 3", "  1: the key 1 is not a text; put it in quotes or remove it\n  null: the key null"),
        (b"methods: {dive: {title: '{dataset}', rank: 10000000}}", "methods.dive.title: must be one line"),
    ],
    ids=["latin-1", "utf-16", "itself", "doubled", "keys", "late"],
)
def test_an_overlay_that_cannot_be_run_is_a_sentence(fresh: Project, content: bytes, message: str) -> None:
    (fresh.folder / "over.yaml").write_bytes(content)
    assert message in refused(fresh, "--configfile", "over.yaml")


def test_config_yaml_itself_and_runs_without_the_profile_are_read_as_strictly(fresh: Project) -> None:
    with (fresh.folder / "config.yaml").open("a") as file:
        file.write("\nshots: 2\n")
    for options in ((), ("--workflow-profile", "none")):
        assert "the file: the key 'shots' is there twice, first in line" in refused(fresh, *options)


@pytest.mark.parametrize("cores", ["0", "-2"])
def test_a_run_without_cores_does_not_wait_for_ever(fresh: Project, cores: str) -> None:
    assert f"--cores {cores}: no job can run on that" in refused(fresh, "--cores", cores)


def test_backbones_are_checked_where_the_data_are(fresh: Project) -> None:
    models = {
        "llama": {"model_type": "llama"},
        "gemma": {"model_type": "gemma3", "num_hidden_layers": 2, "hidden_size": 8},
    }
    backbones = {}
    for name, config in models.items():
        (fresh.folder / "somewhere" / name).mkdir(parents=True)
        (fresh.folder / "somewhere" / name / "config.json").write_text(json.dumps(config))
        backbones[name] = {"like": "tiny-gemma3", "tiny": None, "path": f"somewhere/{name}", "image": {"max_pixels": 9}}
    over = {"backbones": backbones, "grids": {"main": {"backbones": list(models)}}}
    (fresh.folder / "over.yaml").write_text(yaml.safe_dump(over))
    said = refused(fresh, "--configfile", "over.yaml")
    assert "backbones.llama.path: model_type 'llama' is not supported; choose a model whose type is gemma3" in said
    assert "backbones.gemma.image.max_pixels: cannot be set for the image processor of gemma3" in said
    assert "methods.dive.rank: must be at most 8, the width of gemma, not 16" in said
    checked = fresh.run("dive", "check-data", "--configfile", "over.yaml")
    assert checked.returncode == 1
    assert "PROBLEM: backbones.llama.path: model_type 'llama' is not supported" in checked.stdout
    assert "Traceback" not in checked.stdout


def test_without_activation_and_of_a_job_s_error_only_the_sentence(fresh: Project) -> None:
    """One project for both, since each run costs seconds."""
    (fresh.folder / "few.yaml").write_text(yaml.safe_dump(FEW))
    command = [str(SNAKEMAKE), "--cores", "1", "--configfile", "few.yaml"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(fresh.folder / "workflow"), "HOME": os.environ["HOME"]}
    done = subprocess.run(
        [*command, "--", DATASET], cwd=fresh.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not found" not in done.stdout + done.stderr
    assert "Where everything is:" in done.stdout

    table = fresh.folder / DATASET / "mimic-cxr-2.0.0-split.csv.gz"
    table.write_bytes(table.read_bytes()[:100])
    split = "results/splits/synthetic-mimic-cxr/studies.parquet"
    done = fresh.run("snakemake", "--cores", "1", "--configfile", "few.yaml", "--", split)
    assert done.returncode == 1
    assert "mimic-cxr-2.0.0-split.csv.gz" in done.stdout
    assert "Traceback" not in done.stdout
    assert "Traceback" in (fresh.folder / "logs/split/synthetic-mimic-cxr.log").read_text(encoding="utf-8")


def processes_of(folder: Path) -> list[int]:
    """Processes that belong to a run in this folder."""
    wanted = f"{RUN}={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def left_in(folder: Path) -> str:
    """What stayed in a folder, with the end of each file."""
    return "".join(f"; {path}: {path.read_text()[-500:]}" for path in folder.rglob("*") if path.is_file())


def wait_for(condition: Callable[[], object], seconds: float = 60.0, said: Callable[[], str] = str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain{said()}"
        time.sleep(0.1)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="what is asserted here reads /proc")
def test_a_killed_run_leaves_no_process_no_folder_and_no_riddle(fresh: Project, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    long = {"backbones": {"tiny-gemma3": {"tiny": {"vision_steps": 100_000}}}}
    (fresh.folder / "few.yaml").write_text(yaml.safe_dump({**FEW, **long}))
    environment = {
        **os.environ,
        "PATH": f"{SNAKEMAKE.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(fresh.folder / "workflow"),
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
    }
    command = ["snakemake", "--cores", "1", "--no-hooks", "--configfile", "few.yaml"]
    with (fresh.folder / "said.txt").open("w") as said:
        run = subprocess.Popen(
            [*command, "--", "models/tiny-gemma3"], cwd=fresh.folder, env=environment, stdout=said, stderr=said
        )
        wait_for((fresh.folder / "logs/build_backbone/tiny-gemma3.log").exists)
        assert processes_of(fresh.folder)
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert list((fresh.folder / ".snakemake/locks").iterdir())
    wait_for(lambda: not processes_of(fresh.folder), 30)
    wait_for(lambda: not list(temporary.iterdir()), 30, lambda: left_in(temporary))
    done = subprocess.run(
        [*command, "--", DATASET], cwd=fresh.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "An earlier run was killed. Its lock is removed; this run continues where it stopped." in done.stderr
    wait_for(lambda: not processes_of(fresh.folder), 30)
    wait_for(lambda: not list(temporary.iterdir()), 30, lambda: left_in(temporary))


@pytest.mark.parametrize("names", ["main,baselines", "main baselines", "main, baselines,"])
def test_make_runs_and_shows_every_grid_that_is_named(names: str) -> None:
    done = subprocess.run(
        ["make", "-n", "reproduce", f"EXPERIMENTS={names}", "OPTIONS=--cores 1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "--config 'experiments=[main,baselines]' --prioritize results/tables/main.csv --cores 1" in done.stdout
    assert "dive show main,baselines --options '--cores 1'" in done.stdout
