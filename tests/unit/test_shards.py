"""Shards: whole or absent, checked by readers, and deterministic."""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dive.files import Journal, atomic_path, sha256
from dive.shards import ShardError, Shards, ShardWriter


def write(folder, n=5, shard_bytes=90):
    with ShardWriter(folder, {"made": "by a test"}, shard_bytes) as writer:
        for i in range(n):
            writer.add(f"patient{i}/study1", torch.full((3, 4), float(i)), grid=[1, i, i])


def test_tensors_come_back_from_several_shards(tmp_path):
    write(tmp_path / "cache")
    shards = Shards(tmp_path / "cache")
    assert list(shards) == [f"patient{i}/study1" for i in range(5)]
    assert len(shards.manifest["shards"]) == 3  # 48 bytes each, closed at 90
    for i, key in enumerate(shards):
        assert torch.equal(shards[key], torch.full((3, 4), float(i)))
        assert shards.notes(key) == {"grid": [1, i, i]}
        assert shards.shape(key) == shards[key].shape
    assert shards.manifest["record"] == {"made": "by a test"}


def test_an_interrupted_writer_leaves_nothing_and_keeps_what_was_there(tmp_path):
    write(tmp_path / "cache", n=1)
    before = sha256(tmp_path / "cache" / "manifest.json")
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "cache", {}) as writer:
        writer.add("a", torch.zeros(3))
        raise KeyboardInterrupt
    assert sha256(tmp_path / "cache" / "manifest.json") == before
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_finished_shards_outlive_an_interruption_of_the_same_maker_only(tmp_path):
    def writer(made_by):
        return ShardWriter(tmp_path / "cache", {"made": "by a test"}, 90, tmp_path / "left", made_by)

    def begin(made_by):
        """Five of seven tensors, so two shards of two; returns what was there before."""
        with pytest.raises(KeyboardInterrupt), writer(made_by) as begun:
            there = [i for i in range(5) if f"patient{i}/study1" in begun]
            for i in set(range(5)) - set(there):
                begun.add(f"patient{i}/study1", torch.full((3, 4), float(i)), grid=[1, i, i])
            raise KeyboardInterrupt
        assert not (tmp_path / "cache").exists()
        return there

    assert begin("mine") == []
    assert begin("mine") == [0, 1, 2, 3]
    assert begin("other") == []
    assert begin("mine") == []
    (tmp_path / "left" / "shard-00000.safetensors").write_bytes(b"")  # a disk that was full
    assert begin("mine") == []
    with writer("mine") as continued:
        for i in range(4, 7):
            continued.add(f"patient{i}/study1", torch.full((3, 4), float(i)), grid=[1, i, i])
    write(tmp_path / "whole", n=7)
    assert {p.name: sha256(p) for p in (tmp_path / "cache").iterdir()} == {
        p.name: sha256(p) for p in (tmp_path / "whole").iterdir()
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "whole"]


def test_room_on_the_disk_is_asked_for_what_is_not_there_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 1000))
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "cache", {}, 90, tmp_path / "left") as writer:
        writer.require(1000, "something")
        with pytest.raises(RuntimeError, match=r"needs 0\.00 GB .* or lower something"):
            writer.require(1001, "something")
        writer.add("a", torch.zeros(30))
        raise KeyboardInterrupt
    with ShardWriter(tmp_path / "cache", {}, 90, tmp_path / "left") as writer:
        writer.require(1001, "something")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to look at")
def test_reading_keeps_no_file_open_and_reads_no_tensor_that_is_not_asked_for(tmp_path):
    write(tmp_path / "cache")
    shards = Shards(tmp_path / "cache")
    before = len(os.listdir("/proc/self/fd"))
    assert shards["patient2/study1"].sum() == 24
    assert len(os.listdir("/proc/self/fd")) == before
    assert "shard-00001" not in Path("/proc/self/maps").read_text()
    # The rest of that shard is not looked at before it is asked for.
    path = tmp_path / "cache" / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-48] + bytes(48))
    assert shards["patient2/study1"].sum() == 24
    with pytest.raises(ShardError, match="patient3/study1 differs from its manifest"):
        shards["patient3/study1"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 4), (3,), (2, 3, 4)])
def test_every_dtype_and_shape_comes_back_in_its_bits(tmp_path, dtype, shape):
    tensor = (torch.randn(shape) > 0).to(dtype) if dtype == torch.bool else (100 * torch.randn(shape)).to(dtype)
    with ShardWriter(tmp_path / "cache", {}) as writer:
        writer.add("other", torch.zeros(5))
        writer.add("x", tensor.t() if len(shape) == 2 else tensor)
    found = Shards(tmp_path / "cache")["x"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor.t() if len(shape) == 2 else tensor)


def test_a_manifest_has_a_line_for_each_tensor(tmp_path):
    write(tmp_path / "cache", n=50)
    lines = (tmp_path / "cache" / "manifest.json").read_text().splitlines()
    assert sum('"patient' in line for line in lines) == 50
    assert sum('"sha256"' in line for line in lines) == 50
    assert len(lines) < 50 + 25 + 10


def test_equal_tensors_make_equal_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert [sha256(p) for p in sorted((tmp_path / "a").iterdir())] == [
        sha256(p) for p in sorted((tmp_path / "b").iterdir())
    ]


def test_a_key_written_twice_is_refused(tmp_path):
    with pytest.raises(ShardError, match="written twice"), ShardWriter(tmp_path / "cache", {}) as writer:
        writer.add("a", torch.zeros(1))
        writer.add("a", torch.zeros(1))


@pytest.mark.parametrize("damage", ["no manifest", "foreign manifest", "no shard", "cut shard", "changed shard"])
def test_a_damaged_cache_is_refused_with_file_and_remedy(tmp_path, damage):
    folder = tmp_path / "cache"
    write(folder)
    shard = folder / "shard-00001.safetensors"
    if damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "foreign manifest":
        (folder / "manifest.json").write_text(json.dumps({"format": "other"}))
    elif damage == "no shard":
        shard.unlink()
    elif damage == "cut shard":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    with pytest.raises(ShardError, match=r"delete .* run"):
        dict(Shards(folder))


def test_atomic_path_replaces_files_and_folders_whole(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    with atomic_path(tmp_path / "x") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["new"]
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "deep" / "file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert not list((tmp_path / "deep").iterdir())


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    living = os.getppid()
    here = platform.node()
    others = [f".x.{here}.{living}.tmp", f".x.elsewhere.{gone}.tmp", f".x.y.{here}.{gone}.tmp"]
    for name in (f".x.{here}.{gone}.tmp", f".x.{here}.{os.getpid()}.tmp", *others):
        (tmp_path / name).mkdir()
    with atomic_path(tmp_path / "x") as temporary:
        temporary.mkdir()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["x", *others])


def test_a_journal_drops_a_cut_line_and_another_makers_entries(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, "mine")
    assert journal.read() == []
    journal.begin([["a", 1]])
    journal.append({"b": "\u2028"}, 3)
    assert Journal(path, "mine").read() == [["a", 1], {"b": "\u2028"}, 3]
    whole = path.read_text()
    for cut in range(len(whole)):
        path.write_text(whole[:cut])
        assert journal.read() == [["a", 1], {"b": "\u2028"}, 3][: max(whole[:cut].count("\n") - 1, 0)]
    path.write_text(whole)
    assert Journal(path, "other").read() == []
    journal.remove()
    assert not path.exists()
