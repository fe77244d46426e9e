"""Runs of Snakemake that were killed: their jobs end, their lock and their temporary folders go.

A run leaves a record in ``.snakemake/runs``: its process, its machine, its temporary folders. SIGKILL lets it clean up
nothing. Its jobs then see that it is gone (`end_with_run`), remove what it left in the temporary directory and end; the
next run removes the lock, which only the record tells from the lock of a run that lives. The standard library only.
"""

import atexit
import json
import os
import platform
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

RUN = "DIVE_RUN"
"""Environment variable of jobs: the record of their run."""

FOLDER = Path(".snakemake")


def begin(folders: Iterable[str | Path], locks: bool = True) -> None:
    """Tell the jobs of this process whose they are, and clear what killed runs on this machine left.

    Args:
        folders: temporary folders of this process, which it removes itself unless it is killed.
        locks: whether it will lock the folder; what runs a single job on a node of a cluster does not.
    """
    place = (FOLDER / "runs").absolute()
    place.mkdir(parents=True, exist_ok=True)
    own = place / f"{platform.node()}.{os.getpid()}.json"
    said = {
        "machine": platform.node(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "folders": [str(folder) for folder in folders],
    }
    temporary = own.with_suffix(".tmp")
    temporary.write_text(json.dumps(said), encoding="utf-8")
    os.replace(temporary, own)
    atexit.register(_forget, own, os.getpid())
    os.environ[RUN] = str(own)
    others = [path for path in sorted(place.glob("*.json")) if path != own]
    dead = [path for path in others if is_dead(path)]
    left = sorted((FOLDER / "locks").glob("*.lock")) if locks else []
    if left and dead and dead == others:
        for lock in left:
            lock.unlink(missing_ok=True)
        print("An earlier run was killed. Its lock is removed; this run continues where it stopped.", file=sys.stderr)
    elif left and not any(is_here(path) for path in others if path not in dead):
        # Of a run that lives here Snakemake says enough, and a dry run beside it needs no word.
        print(told_of_lock(others), file=sys.stderr)
    for path in dead:
        clear(path)
        path.unlink(missing_ok=True)


def told_of_lock(others: Iterable[Path]) -> str:
    """What to do about a lock that may be of a run that lives."""
    owners = [record for path in others if (record := _read(path))]
    named = ", ".join(f"process {record['process']} on {record['machine']}" for record in owners)
    of = f"by a run ({named})" if named else "by a run that left no record"
    return (
        f"This folder is locked {of}. If that run lives, wait until it ends or stop it by Ctrl-C; if it was killed, "
        "run `snakemake --unlock` once, and then start again: what is done stays done."
    )


def end_with_run() -> None:
    """Have this process end when the run that started it is gone, whatever it does then."""
    path = os.environ.get(RUN)
    record = _read(Path(path)) if path else None
    # On a node of a cluster the run that this process belongs to is another, which says so; or it is far away.
    if record and record["machine"] == platform.node() and record["process"] != os.getpid():
        Thread(target=_watch, args=(Path(path), record), daemon=True).start()


def _watch(path: Path, record: dict[str, Any]) -> None:
    wait_for_end(record["process"])
    clear(path)
    os.kill(os.getpid(), signal.SIGTERM)


def wait_for_end(process: int) -> None:
    """Return when a process of this machine is gone."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # not Linux, or one before 5.3
        while _lives(process):
            time.sleep(1)
        return
    with os.fdopen(handle, closefd=True):
        select.select([handle], [], [])


def is_dead(path: Path) -> bool:
    """Whether the record is of a process of this machine that is gone; of another machine's nobody here can know."""
    record = _read(path)
    if record is None or not is_here(path):
        return False
    return not _lives(record["process"]) or _started(record["process"]) != record["started"]


def is_here(path: Path) -> bool:
    """Whether the record is of a process of this machine."""
    record = _read(path)
    return record is not None and record["machine"] == platform.node()


def clear(path: Path) -> None:
    """Remove the temporary folders of a run that is gone; its record stays, for the next run to judge the lock by."""
    record = _read(path)
    for folder in record["folders"] if record else ():
        place = Path(folder)
        if place.name.startswith(("snakemake", "dive-warm-")) or place.parent.name == "snakemake-runtime-cache":
            shutil.rmtree(folder, ignore_errors=True)


def clear_after(process: int) -> None:
    """What `clear` does, for a process that jobs of a run started and that has seen this run end."""
    path = os.environ.get(RUN)
    record = _read(Path(path)) if path else None
    if record and record["process"] == process:
        clear(Path(path))


def _forget(path: Path, process: int) -> None:
    if os.getpid() == process:  # and not in a fork of it
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and {"machine", "process", "started", "folders"} <= set(record):
            return record
    return None


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return _stat(process)[:1] != ["Z"]


def _started(process: int) -> str:
    """When a process was started, in the kernel's words: its number may be another's by now. Empty where unknown."""
    return "".join(_stat(process)[19:20])


def _stat(process: int) -> list[str]:
    """What Linux says of a process, from its state on."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return []
