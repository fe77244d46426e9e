"""Jobs that need not import: one process loads the heavy libraries once, and each job goes on in a fork of it.

Importing torch and transformers takes two and a half seconds of a processor, in the embedded world more than the work
of most jobs. So the first job of a run of Snakemake starts a process that imports them and then waits at a socket until
the run ends. The script of every later job asks it for a fork (``dive.job.logged``) and sends what makes it that
job: arguments, folder, environment, module path and the three standard files. The fork runs the script from its
beginning; the process that Snakemake started waits for it, passes signals on and ends as it ends.

The warm process holds libraries, never code of this project or data: a job reads the code that is on disk. Where there
is none a job imports for itself and makes the same bytes: on a cluster, where jobs take GPUs, since what has touched
CUDA cannot be forked, while the warm process is importing, and with an empty ``DIVE_WARM`` in the environment.
"""

import gc
import json
import os
import runpy
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import NoReturn

from dive import runs

ADDRESS = "DIVE_WARM"
"""Environment variable of jobs: ``<process of the run>:<folder of the socket>``."""

LIBRARIES = (
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "safetensors.torch",
    "snakemake.script",
    "torch._dynamo",
    "transformers.models.auto.image_processing_auto",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.gemma3.modeling_gemma3",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
)
"""What is imported once. None of them may leave a thread: a fork has only the one that forks."""

ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""Environment of the warm process, so that none of them does."""

KILLED = 128 + signal.SIGKILL
"""Exit status, by the shell's convention, of a job that ended without saying how."""


def allow() -> list[Path]:
    """Let the jobs that this process starts have a warm process, which ends with this one, however that ends.

    Returns:
        The folder that the warm process has while it lives; none where there will be none.
    """
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # not Linux, or one before 5.3
        return []
    # Nobody can be at this place before: who listens there is given the jobs.
    folder = Path(tempfile.gettempdir()) / f"dive-warm-{secrets.token_hex(8)}"
    return [folder] if os.environ.setdefault(ADDRESS, f"{os.getpid()}:{folder}").endswith(str(folder)) else []


def forbid() -> None:
    """Have the jobs that this process starts import for themselves."""
    os.environ.pop(ADDRESS, None)


LONGEST_ADDRESS = 100
"""Bytes of a socket's path; the kernel takes 107."""


def hand_over() -> None:
    """Have this script run by a fork of the warm process and end with its exit status; return where there is none."""
    run, _, folder = os.environ.pop(ADDRESS, "").partition(":")
    if not run:
        return
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(f"{folder}/socket")
        except OSError:
            _start(folder, run)
            return
        job = {"arguments": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ), "path": sys.path}
        message = json.dumps(job).encode()
        socket.send_fds(connection, [struct.pack("!I", len(message))], [0, 1, 2])
        connection.sendall(message)
        while True:
            try:
                status = connection.recv(1)
                break
            except KeyboardInterrupt:
                connection.sendall(bytes([signal.SIGINT]))
    if not status:
        print("the job was killed (possibly out of memory)", file=sys.stderr)
    sys.exit(status[0] if status else KILLED)


def _start(folder: str, run: str) -> None:
    """Start the warm process, unless another job did; one that cannot import leaves its folder with what it said."""
    if len(os.fsencode(f"{folder}/socket")) > LONGEST_ADDRESS:
        return  # a long TMPDIR: jobs import for themselves
    try:
        os.mkdir(folder, mode=0o700)  # for this user alone: who reaches the socket runs what they like
    except FileExistsError:
        return
    with open(f"{folder}/log", "wb") as log:  # not the terminal's pipe: who reads that waits until it is closed
        subprocess.Popen(
            [sys.executable, "-m", "dive.warm", folder, run],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,  # Ctrl-C is for the jobs' own processes, which pass it on
        )


def serve(folder: str, run: int) -> None:
    """Import the libraries, then fork for every job that asks at the socket in ``folder``, while process ``run`` is."""
    try:
        of_run = os.pidfd_open(run)
    except ProcessLookupError:  # killed before this process was there
        _leave(folder, run)
        return
    for name in LIBRARIES:
        import_module(name)
    if not Path(folder).is_dir():  # the jobs of a killed run remove it
        return
    gc.collect()
    gc.freeze()  # a fork's collector then touches, and so copies, nothing of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(64)
        while of_run not in select.select([listener, of_run], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                os.close(of_run)
                _become_job(connection)
            connection.close()
    _leave(folder, run)


def _leave(folder: str, run: int) -> None:
    """Remove this process's folder, and what a killed run could not remove."""
    shutil.rmtree(folder, ignore_errors=True)
    runs.clear_after(run)


def _become_job(connection: socket.socket) -> NoReturn:
    """Be the job of the process at the other end of ``connection``."""
    status = 1
    try:
        _take_over(connection)
        Thread(target=_obey, args=(connection,), daemon=True).start()
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        if isinstance(end.code, int) or end.code is None:
            status = (end.code or 0) & 0xFF
        else:
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        with suppress(OSError):  # of an other end that is gone
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(bytes([status]))
        os._exit(status)


def _take_over(connection: socket.socket) -> None:
    """Make of this process what the message says."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, 4, 3)
    job = json.loads(connection.recv(*struct.unpack("!I", length), socket.MSG_WAITALL))
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv, sys.path[:] = job["arguments"], job["path"]
    import torch  # which read the variable when it was imported

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


def _obey(connection: socket.socket) -> None:
    """Take the signals that the job's first process passes on; without it there is nobody to work for."""
    while number := connection.recv(1):
        os.kill(os.getpid(), number[0])
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
