"""The warm process: a fork is the job that its script asked for, and neither side outlives its purpose."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dive import warm
from dive.progress import cost_file, logged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is kept warm elsewhere")


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a warm process listens."""
    warm.start()
    path = os.environ.pop(warm.ADDRESS)
    process = warm._started.pop()
    wait_for(lambda: Path(path).exists() or process.poll() is not None)
    assert Path(f"/proc/{process.pid}/status").read_text().split("Threads:")[1].split()[0] == "1"
    yield path
    process.stdin.close()
    assert process.wait(30) == 0
    assert not Path(path).parent.exists()


class Scripts:
    """Jobs in a folder of their own."""

    def __init__(self, folder: Path, address: str | None) -> None:
        self.folder, self.address = folder, address

    def begin(self, text: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        script = self.folder / "script.py"
        script.write_text(f"from dive.warm import hand_over\nhand_over()\n{text}")
        paths = {warm.ADDRESS: self.address} if self.address else {}
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **paths, **environment},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, text: str, *arguments: str, said: str = "", **environment: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        process = self.begin(text, *arguments, **environment)
        out, err = process.communicate(said, timeout=60)
        return process.returncode, out, err


@pytest.fixture
def scripts(tmp_path: Path, address: str) -> Scripts:
    return Scripts(tmp_path, address)


WHO = """
import os, sys
print("torch" in sys.modules, os.getppid())
import torch
print(sys.argv[1:], os.getcwd(), os.environ["COLOUR"], sys.stdin.read(), torch.get_num_threads(), __name__)
print(os.environ.get("DIVE_WARM"), os.path.dirname(os.path.abspath(__file__)), file=sys.stderr)
"""


def test_a_fork_is_the_job_that_asked(scripts: Scripts) -> None:
    status, out, err = scripts.run(WHO, "a", "b c", said="hello", COLOUR="blue", OMP_NUM_THREADS="2")
    imported, description = out.splitlines()
    assert (status, imported.split()[0]) == (0, "True")
    assert int(imported.split()[1]) != os.getpid()
    assert description == f"['a', 'b c'] {scripts.folder} blue hello 2 __main__"
    assert err == f"None {scripts.folder}\n"


@pytest.mark.parametrize("address", [None, "/nowhere/socket"])
def test_without_a_warm_process_the_script_runs_itself(tmp_path: Path, address: str | None) -> None:
    status, out, _ = Scripts(tmp_path, address).run(WHO, COLOUR="red", OMP_NUM_THREADS="1")
    assert (status, out.splitlines()[0]) == (0, f"False {os.getpid()}")


@pytest.mark.parametrize(
    ("ending", "status", "message"),
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no such file')", 1, "no such file\n"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "the job was killed, perhaps for want of memory\n"),
    ],
)
def test_a_job_ends_as_its_fork_does(scripts: Scripts, ending: str, status: int, message: str) -> None:
    found, out, err = scripts.run(f"import os, signal, sys\nprint('begun', flush=True)\n{ending}")
    assert (found, out) == (status, "begun\n")
    assert err.endswith(message)
    assert bool(err) == bool(message)


def test_each_job_reads_the_code_that_is_on_disk(scripts: Scripts) -> None:
    for answer in ("1", "2"):
        (scripts.folder / "changing.py").write_text(f"answer = {answer}{' ' * int(answer)}")
        assert scripts.run("import changing\nprint(changing.answer)")[1] == f"{answer}\n"


WAITING = """
import os, time
print(os.getpid(), flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
"""


def test_an_interrupt_is_passed_on_and_waited_for(scripts: Scripts) -> None:
    process = scripts.begin(WAITING)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "interrupted\n")
    assert err.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_fork_ends_with_the_process_that_it_works_for(scripts: Scripts, number: int) -> None:
    process = scripts.begin(WAITING)
    fork = int(process.stdout.readline())
    assert fork != process.pid
    assert is_running(fork)
    process.send_signal(number)
    wait_for(lambda: not is_running(fork))
    assert process.wait(10) == -number


def test_the_warm_process_ends_with_its_starter(tmp_path: Path) -> None:
    text = f"""
import os, sys, time
from dive import warm
warm.start()
print(warm._started[0].pid, os.environ[warm.ADDRESS], flush=True)
while not os.path.exists(os.environ[warm.ADDRESS]):
    time.sleep(0.02)
os.kill(os.getpid(), {signal.SIGKILL:d})
"""
    status, out, _ = Scripts(tmp_path, None).run(text)
    pid, address = out.split()
    assert status == -signal.SIGKILL
    wait_for(lambda: not is_running(int(pid)) and not Path(address).parent.exists())


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
    assert memory > 10
    with pytest.raises(ValueError, match="no"), logged("logs/claim.log"):
        raise ValueError("no")
    assert not Path("benchmarks/claim.tsv").exists()
