"""What lies in the folders of patients: names and sizes of images, names and content of reports.

A dataset has hundreds of thousands of folders, and to look into each of them takes seconds, so that several processes
share them: ``python -m dive.data.listing`` reads paths of patients' folders and answers with two digests for each, and
with what it had to read of reports. The standard library only.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence

from dive.contents import Memory

IMAGES = (".jpg", ".jpeg", ".png")
FEW = 2000
"""Folders that are not worth another process."""

WIDTH = 64  # bytes of an answer: sha256 of images, sha256 of reports


def list_patient(folder: str, memory: Memory) -> bytes:
    """Digest of the images' names and sizes and the studies' names, and of the reports' names and content.

    Args:
        folder: of a patient, with a folder for each study (``s...``), and reports ``s<digits>.txt`` beside them. What
            has another name is of no dataset.
        memory: of the reports' content.

    Returns:
        64 bytes.
    """
    images: list[str] = []
    reports: list[tuple[str, bytes]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.endswith(".txt"):
                if name[0] == "s" and name[1:-4].isdigit():
                    reports.append((name, _report(entry, memory)))
            elif name[0] == "s" and entry.is_dir():
                images.append(name)
                with os.scandir(entry.path) as files:
                    images += [f"{name}/{file.name} {_size(file)}" for file in files if file.name.endswith(IMAGES)]
    reports.sort()
    of_images = hashlib.sha256("\n".join(sorted(images)).encode("utf-8", "surrogateescape"))
    of_reports = hashlib.sha256(b"".join(name.encode() + b" " + digest for name, digest in reports))
    return of_images.digest() + of_reports.digest()


def _size(file: os.DirEntry) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a link to nothing
        return -1


def _report(entry: os.DirEntry, memory: Memory) -> bytes:
    try:
        return memory.digest(entry.path, entry.stat())
    except OSError:  # which the reader lists with its study
        return b"unreadable"


def list_patients(folders: Sequence[str], memory: Memory) -> bytes:
    """`list_patient` of every folder, one answer after the other, by as many processes as there are processors."""
    n = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
    if len(folders) < FEW or n == 1:
        return b"".join(list_patient(folder, memory) for folder in folders)
    memory.save()
    step = -(-len(folders) // n)
    parts = [folders[begin : begin + step] for begin in range(0, len(folders), step)]
    command = [sys.executable, "-m", "dive.data.listing", str(memory.path or "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = []
    for part in parts[1:]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        process.stdin.write("\0".join(part).encode("utf-8", "surrogateescape"))
        process.stdin.close()
        running.append(process)
    answers = [b"".join(list_patient(folder, memory) for folder in parts[0])]
    for part, process in zip(parts[1:], running, strict=True):
        answer = process.stdout.read()
        if process.wait() or len(answer) < WIDTH * len(part):
            raise OSError(f"{len(part)} folders from {part[0]} on cannot be listed")
        answers.append(answer[: WIDTH * len(part)])
        memory.learn(answer[WIDTH * len(part) :])
    return b"".join(answers)


if __name__ == "__main__":
    remembered = Memory(sys.argv[1] or None)
    asked = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").split("\0")
    sys.stdout.buffer.write(b"".join(list_patient(one, remembered) for one in asked))
    sys.stdout.buffer.write(remembered.learned())
