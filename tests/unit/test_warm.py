"""The warm process: a fork is the job that its script asked for, and neither side outlives its purpose."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dive import runs, warm
from tests.project import Project

pytest.importorskip("snakemake", reason="the warm process has it, too")
pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing is kept warm but on Linux")


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


def warm_processes(address: str) -> list[int]:
    """Processes with the address's folder among their arguments: a fork still has those of the process it is of."""
    folder = os.fsencode(address.partition(":")[2])
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if is_running(pid)]


RUN = f"""
import os, sys
from dive import runs, warm
warm.allow()
print(os.environ["{warm.ADDRESS}"], flush=True)
sys.stdin.read()
"""


def begin_run(**environment: str) -> "tuple[subprocess.Popen[str], str]":
    """A process that allows its jobs a warm one, and what it tells them; it ends with its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    return process, process.stdout.readline().strip()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What jobs are told of a run whose first job has started the warm process."""
    run, told = begin_run()
    folder = Path(told.partition(":")[2])
    first = Scripts(tmp_path_factory.mktemp("first"), told)
    assert first.run("import sys\nprint('torch' in sys.modules)")[:2] == (0, "False\n")
    wait_for((folder / "socket").exists)
    assert folder.stat().st_mode & 0o777 == 0o700
    (pid,) = warm_processes(told)
    assert Path(f"/proc/{pid}/status").read_text().split("Threads:")[1].split()[0] == "1"
    yield told
    run.communicate()
    wait_for(lambda: not warm_processes(told) and not folder.exists())


def hear_interrupts() -> None:
    """What a shell starts in the background ignores them, and with it all that it starts, as these tests may be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Scripts:
    """Jobs in a folder of their own."""

    def __init__(self, folder: Path, address: str | None) -> None:
        self.folder, self.address = folder, address

    def begin(self, text: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        script = self.folder / "script.py"
        script.write_text(f"from dive.warm import hand_over\nhand_over()\n{text}")
        told = {} if self.address is None else {warm.ADDRESS: self.address}
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **told, **environment},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=hear_interrupts,
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


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_warm_process_the_script_runs_itself(tmp_path: Path, address: str | None) -> None:
    status, out, _ = Scripts(tmp_path, address).run(WHO, COLOUR="red", OMP_NUM_THREADS="1")
    assert (status, out.splitlines()[0]) == (0, f"False {os.getpid()}")


def test_two_first_jobs_start_one_warm_process(tmp_path: Path) -> None:
    run, told = begin_run()
    jobs = [Scripts(tmp_path, told).begin("import time\ntime.sleep(0.5)") for _ in range(2)]
    assert [job.wait(60) for job in jobs] == [0, 0]
    assert len(warm_processes(told)) == 1
    run.kill()
    run.wait()
    wait_for(lambda: not warm_processes(told) and not Path(told.partition(":")[2]).exists())


def test_one_that_cannot_import_says_why_and_jobs_go_on(tmp_path: Path) -> None:
    run, told = begin_run()
    folder = Path(told.partition(":")[2])
    (tmp_path / "pandas.py").write_text("raise ImportError('no pandas here')")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    assert Scripts(tmp_path, told).run("print('first')", PYTHONPATH=path)[:2] == (0, "first\n")
    wait_for(lambda: "ImportError: no pandas here" in (folder / "log").read_text())
    assert Scripts(tmp_path, told).run("print('second')")[:2] == (0, "second\n")
    assert warm_processes(told) == []
    run.communicate()
    shutil.rmtree(folder)


def test_a_run_may_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    run, told = begin_run(**{warm.ADDRESS: ""})
    run.communicate()
    assert told == ""
    monkeypatch.setenv(warm.ADDRESS, "1:/somewhere")
    warm.forbid()
    assert warm.ADDRESS not in os.environ


@pytest.mark.parametrize(
    ("ending", "status", "message"),
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no such file')", 1, "no such file\n"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "the job was killed (possibly out of memory)\n"),
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
try:
    print(os.getpid(), flush=True)
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


def test_snakemake_tells_its_jobs(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm.ADDRESS, address)  # kept, where it is set
    project = Project(tmp_path / "dive")
    project.edit(
        "scripts/synthesize.py", "    from dive", "    import sys\n    print('torch' in sys.modules)\n    from dive"
    )
    target = "data/synthetic-mimic-cxr"
    assert "\nTrue\n" in project.snakemake("--cores", "1", target)
    # As on a node of a cluster, whose share of the machine a fork would not be held to.
    assert "\nFalse\n" in project.snakemake("--mode", "remote", "--cores", "1", "--force", target)
    project.edit("config.yaml", "    device: cpu ", "    device: auto ")
    assert "\nFalse\n" in project.snakemake("--cores", "1", "--force", target)


def test_one_whose_run_is_gone_before_it_starts_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder, of_run, record = tmp_path / "dive-warm-1", tmp_path / "snakemake1", tmp_path / "record.json"
    folder.mkdir()
    of_run.mkdir()
    said = {"machine": platform.node(), "process": gone.pid, "started": "", "folders": [str(of_run)]}
    record.write_text(json.dumps(said))
    monkeypatch.setenv(runs.RUN, str(record))
    warm.serve(str(folder), gone.pid)
    assert not folder.exists()
    assert not of_run.exists()
