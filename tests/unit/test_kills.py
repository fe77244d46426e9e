"""Caching, training and generation end in the same bytes however often, and wherever, SIGKILL meets them.

The jobs run in forked children of one process of its own (``python -m tests.unit.test_kills``): torch is imported once
and has a single thread there, without which a fork would not be safe.
"""

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dive.files import read_json
from tests.unit.tiny_models import REPORTS, image, settings, write_tiny
from tests.unit.tiny_study import DIVE

POOL = {
    "queries": [f"q{i}" for i in range(6)],
    "validation": ["v0", "v1"],
    "demonstrations": ["d0", "d1", "d2"],
    "test": [f"t{i}" for i in range(6)],
}
LORA = {  # draws dropout in every step, so that the state of the generator has to be restored too
    **DIVE,
    "module": "lora",
    "rank": 2,
    "like_dive": 0,
    "alpha": 4,
    "dropout": 0.2,
    "positions": "all",
    "weights": {"pathology": 1, "eos": 1},
}
MEASURED = ("seconds", "tokens_per_second", "peak_memory_mib")


@pytest.mark.parametrize(("family", "method", "kills"), [("gemma3", "dive", 20), ("qwen2_5_vl", "lora", 10)])
def test_twenty_kills_leave_the_same_bytes(tmp_path, family, method, kills):
    command = [sys.executable, "-m", "tests.unit.test_kills", str(tmp_path), family, method, str(kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["distill"]["kills"] == kills
    assert counts["distill"]["at a write"] == kills // 2
    for job in ("cache_vision", "cache_teacher", "generate"):
        assert counts[job]["kills"] == 5
    for job, count in counts.items():
        assert count["wholes"] >= 1, job
        assert count["resumed"] >= 1, f"no kill left {job} anything to go on from"


# What follows runs in the process of its own.


class Writes:
    """Counts a child's acts of writing, and has it killed in the midst of one of them: of those, that number ``fatal``
    whose path has ``where`` in it."""

    def __init__(self, where: str = "", fatal: int = -1) -> None:
        self.where, self.fatal, self.count = where, fatal, 0

    def strike(self, path: Path) -> bool:
        self.count += self.where in str(path)
        return self.where in str(path) and self.count - 1 == self.fatal

    def install(self) -> None:
        """Wrap what the jobs write with; a fatal act leaves half of its bytes, or its file not yet renamed."""
        import safetensors.torch
        import torch

        from dive import files, shards
        from dive.steering import adapters

        def half_saved(save: Callable, value, path, **options) -> None:
            save(value, path, **options)
            if self.strike(path):
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        def not_replaced(replace: Callable, *paths) -> None:
            if self.strike(paths[0]):
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        def half_appended(append: Callable, journal: files.Journal, *entries) -> None:
            if self.strike(journal.path):
                whole = "".join(json.dumps(entry) + "\n" for entry in entries)
                with journal.path.open("a") as file:
                    file.write(whole[: len(whole) // 2])
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
            append(journal, *entries)

        append = files.Journal.append
        torch.save = functools.partial(half_saved, torch.save)
        shards.save_file = adapters.save_file = functools.partial(half_saved, safetensors.torch.save_file)
        os.replace = functools.partial(not_replaced, os.replace)
        files.Journal.append = lambda journal, *entries: half_appended(append, journal, *entries)


def child(job: Callable[[], None], seconds: float, writes: Writes, report: Path) -> bool:
    """Run ``job`` in a child that is killed after ``seconds`` or at an act of writing; was it?"""
    pid = os.fork()
    if pid == 0:
        try:
            writes.install()
            job()
            report.write_text(str(writes.count))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            break
        time.sleep(0.001)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 0, "the job failed"
    return False


def content(path: Path) -> dict[str, object]:
    """Every file of a result; of training.csv without the columns that a clock or the machine decides."""
    files = {"": path} if path.is_file() else {p.relative_to(path).as_posix(): p for p in path.rglob("*")}
    found: dict[str, object] = {name: file.read_bytes() for name, file in files.items()}
    if "training.csv" in files:
        with files["training.csv"].open() as file:
            rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)]
        assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
        found["training.csv"] = rows
        found["checksums.json"] = sorted(read_json(files["checksums.json"])["sha256"])  # of the clock's columns too
    return found


def survive(job: Callable[[Path, Path], None], folder: Path, kills: int, draw: np.random.Generator) -> dict[str, int]:
    """Kill ``job(out, left)`` until it has died ``kills`` times; every run that gets through must equal the first."""
    report = folder / "writes"
    begin = time.monotonic()
    assert not child(lambda: job(folder / "whole", folder / "whole-left"), 600, Writes(), report)
    seconds, n_writes = time.monotonic() - begin, int(report.read_text())
    expected = content(folder / "whole")
    out, left = folder / "killed", folder / "killed-left"
    counts = {"kills": 0, "at a write": 0, "wholes": 0, "resumed": 0}
    while True:
        last = counts["kills"] == kills
        at_a_write = not last and counts["kills"] % 2 == 0
        # A moment past the last act of writing, or past the job's end, kills nothing.
        allowed, writes = 600.0, Writes()
        if at_a_write and counts["kills"] % 4:
            writes = Writes(".killed.", int(draw.integers(4)))  # as the output itself is written
        elif at_a_write:
            writes = Writes("", int(draw.integers(n_writes)))
        elif not last:
            allowed = draw.uniform(0, seconds)
        # What a child finds: a checkpoint, a journal with entries.
        counts["resumed"] += any(path.stat().st_size > 80 for path in folder.glob("killed-left*") if path.is_file())
        if child(lambda: job(out, left), allowed, writes, report):
            counts["kills"] += 1
            counts["at a write"] += at_a_write
            continue
        found = content(out)
        different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        assert not different, f"{folder.name}: {different}"
        assert not [path for path in folder.iterdir() if path.name.startswith((".killed", "killed-left"))]
        counts["wholes"] += 1
        if last:
            return counts
        if out.is_dir():
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
        else:
            out.unlink()


def write_world(folder: Path) -> None:
    """Studies, one without a readable image and one with its first image broken, pool, demonstrations and spans."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dive.data.studies import LABELS, write_studies

    uids = [uid for group in POOL.values() for uid in group]
    paths = {uid: [f"{uid}.png"] for uid in uids}
    paths["q1"] = ["broken.png", "q1.png"]
    (folder / "broken.png").write_bytes(b"no image")
    for index, uid in enumerate(uids):
        image(index, 48 if index % 3 else 24).save(folder / f"{uid}.png")
    (folder / "t2.png").write_bytes(b"no image")
    targets = [" ".join(REPORTS[(i + j) % 5] for j in range(1 + i % 2)) for i in range(len(uids))]
    table = pd.DataFrame({"study_uid": uids, "patient_uid": uids, "image_paths": list(paths.values())})
    table = table.assign(split="train", views=table["image_paths"], findings=None, impression=None, indication=None)
    table = table.assign(target=targets, n_words=1)
    table[list(LABELS)] = np.nan
    write_studies(table, folder / "studies.parquet", {})
    (folder / "pool.json").write_text(json.dumps(POOL))
    shown = {group: {uid: ["d0", "d2"] for uid in POOL[group]} for group in ("queries", "test")}
    (folder / "drawn.json").write_text(json.dumps(shown))
    pq.write_table(pa.table({"study_uid": uids, "start": [0] * len(uids), "end": [9] * len(uids)}), folder / "spans")


def main(folder: Path, family: str, method: dict, kills: int) -> dict[str, dict[str, int]]:
    import torch

    torch.set_num_threads(1)
    # Loaded before any fork; the children find all of it in memory.
    from dive.backbones import vision as vision_module
    from dive.backbones.loading import load_backbone
    from dive.backbones.vision import cache_vision
    from dive.distillation import cache
    from dive.distillation.training import distill
    from dive.generation import generate_reports
    from dive.shards import ShardWriter

    # Shards of so few bytes that a cache consists of several.
    cache.ShardWriter = vision_module.ShardWriter = functools.partial(ShardWriter, shard_bytes=4000)
    backbone = settings(write_tiny(folder / "model", family))
    backbone["batch"] = {"vision": 3, "teacher": 2, "generation": 2, "training": 2}
    write_world(folder)
    load_backbone(backbone)
    studies, pool, drawn, spans = (
        str(folder / name) for name in ("studies.parquet", "pool.json", "drawn.json", "spans")
    )
    training = {"max_report_tokens": 64, "validation_studies": 2, "checkpoint_seconds": 0}
    whole = {job: str(folder / job / "whole") for job in ("cache_vision", "cache_teacher", "distill")}
    vision, teacher, adapter = whole.values()
    jobs = {
        "cache_vision": lambda out, left: cache_vision(backbone, studies, pool, str(folder), str(out), 0.5, str(left)),
        "cache_teacher": lambda out, left: cache.cache_teacher(
            backbone, studies, drawn, vision, training, str(out), str(left)
        ),
        "distill": lambda out, left: distill(
            backbone, method, studies, pool, spans, vision, teacher, training, 0, str(out), str(left)
        ),
        "generate": lambda out, left: generate_reports(
            backbone, method, studies, pool, None, vision, adapter, {"max_new_tokens": 12}, str(out), str(left)
        ),
    }  # fmt: skip
    counts = {}
    for number, (name, job) in enumerate(jobs.items()):
        (folder / name).mkdir()
        counts[name] = survive(job, folder / name, kills if name == "distill" else 5, np.random.default_rng(number))
    return counts


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], {"dive": DIVE, "lora": LORA}[sys.argv[3]], int(sys.argv[4]))))
