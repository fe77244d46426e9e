"""The frame of a job: what it leaves of its cost."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dive.job import cost_file, logged, peak_memory


def test_a_job_that_ends_well_leaves_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cost_file("logs/distill/set/tiny-2.5/seed0.log") == Path("benchmarks/distill/set/tiny-2.5/seed0.tsv")
    with logged("logs/plot.log"):
        time.sleep(0.05)
    names, values = (line.split("\t") for line in Path("benchmarks/plot.tsv").read_text().splitlines())
    assert names == ["s", "cpu_time", "max_rss"]
    seconds, processor, memory = map(float, values)
    assert 0.05 <= seconds < 30
    assert processor > 0
    assert memory == pytest.approx(peak_memory(), rel=0.1)
    with pytest.raises(ValueError, match="no"), logged("logs/claim.log"):
        raise ValueError("no")
    assert not Path("benchmarks/claim.tsv").exists()


def test_an_interrupted_job_tells_no_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="interrupted"), logged("logs/plot.log"):
        raise KeyboardInterrupt
    assert "KeyboardInterrupt" in Path("logs/plot.log").read_text()


def test_memory_is_that_of_the_job_alone() -> None:
    of_this_one = bytearray(300 * 2**20)
    of_this_one[:: 2**12] = b"1" * (len(of_this_one) // 2**12)
    code = "from dive.job import peak_memory; print(peak_memory())"
    job = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < float(job.stdout) < 100 < peak_memory()
