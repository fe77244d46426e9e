"""Runs that were killed: their jobs end, their temporary folders go, and the next run knows a dead lock."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dive import runs

RUN = """
import sys
from dive import runs
runs.begin(sys.argv[1:])
print("begun", flush=True)
sys.stdin.read()
"""

JOB = """
import time
from dive.runs import end_with_run
end_with_run()
print("working", flush=True)
time.sleep(60)
"""


def start(code: str, folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    return process


def record_of(folder: Path, process: "subprocess.Popen[str]") -> Path:
    return folder / ".snakemake/runs" / f"{platform.node()}.{process.pid}.json"


def lock(folder: Path) -> Path:
    path = folder / ".snakemake/locks/0.output.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("results\n")
    return path


def test_a_job_ends_with_its_killed_run_and_removes_what_it_left(tmp_path: Path) -> None:
    left = tmp_path / "snakemake123"
    left.mkdir()
    run = start(RUN, tmp_path, str(left))
    job = start(JOB, tmp_path, **{runs.RUN: str(record_of(tmp_path, run))})
    run.kill()
    run.wait()
    assert job.wait(20) == -signal.SIGTERM
    assert not left.exists()
    assert record_of(tmp_path, run).is_file()  # for the next run, which finds the lock


def test_a_run_that_ends_by_itself_leaves_no_record(tmp_path: Path) -> None:
    run = start(RUN, tmp_path)
    assert record_of(tmp_path, run).is_file()
    run.communicate("")
    assert not list((tmp_path / ".snakemake/runs").iterdir())


def test_the_next_run_removes_a_killed_one_s_lock_and_says_so(tmp_path: Path) -> None:
    left = tmp_path / "dive-warm-1"
    left.mkdir()
    held = lock(tmp_path)
    run = start(RUN, tmp_path, str(left))
    run.kill()
    run.wait()
    said = start(RUN, tmp_path).communicate("")[1]
    assert said == "An earlier run was killed. Its lock is removed; this run continues where it stopped.\n"
    assert not held.exists()
    assert not left.exists()
    assert not list((tmp_path / ".snakemake/runs").iterdir())


def test_the_lock_of_a_run_that_lives_stays(tmp_path: Path) -> None:
    held = lock(tmp_path)
    killed, alive = start(RUN, tmp_path), start(RUN, tmp_path)
    killed.kill()
    killed.wait()
    said = start(RUN, tmp_path).communicate("")[1]
    assert said == ""  # Snakemake says enough, where it wants the lock
    assert held.exists()
    alive.communicate("")


@pytest.mark.parametrize("machine", ["another", None])
def test_of_another_machine_s_lock_nothing_is_assumed(tmp_path: Path, machine: str | None) -> None:
    held = lock(tmp_path)
    if machine:
        (tmp_path / ".snakemake/runs").mkdir()
        record = {"machine": machine, "process": 1, "started": "", "folders": ["/"]}
        (tmp_path / ".snakemake/runs/another.1.json").write_text(json.dumps(record))
    said = start(RUN, tmp_path).communicate("")[1]
    assert ("locked by a run (process 1 on another)" if machine else "by a run that left no record") in said
    assert "run `snakemake --unlock` once" in said
    assert held.exists()


def test_a_single_job_on_a_node_of_a_cluster_leaves_locks_alone(tmp_path: Path) -> None:
    killed = start(RUN, tmp_path)
    held = lock(tmp_path)
    killed.kill()
    killed.wait()
    said = start(RUN.replace("sys.argv[1:]", "sys.argv[1:], locks=False"), tmp_path).communicate("")[1]
    assert said == ""
    assert held.exists()


def test_a_number_that_another_process_has_now_is_dead(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(
        json.dumps({"machine": platform.node(), "process": os.getpid(), "started": "1", "folders": []})
    )
    assert runs.is_dead(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("{}")
    assert not runs.is_dead(tmp_path / "r.json")


def test_only_folders_of_runs_are_removed(tmp_path: Path) -> None:
    mine = tmp_path / "results"
    mine.mkdir()
    record = {"machine": platform.node(), "process": 1, "started": "", "folders": [str(mine)]}
    (tmp_path / "r.json").write_text(json.dumps(record))
    runs.clear(tmp_path / "r.json")
    assert mine.is_dir()


def test_a_process_of_no_run_watches_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runs.RUN, raising=False)
    runs.end_with_run()
    monkeypatch.setenv(runs.RUN, str(tmp_path / "absent.json"))
    runs.end_with_run()
    time.sleep(0.1)
