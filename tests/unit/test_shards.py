"""Shards: whole or absent, checked by readers, and deterministic."""

import json

import pytest
import torch

from dive.files import atomic_path, sha256
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
        assert shards.notes(key)["grid"] == [1, i, i]
        assert shards.notes(key)["dtype"] == "float32"
    assert shards.manifest["record"] == {"made": "by a test"}


def test_an_interrupted_writer_leaves_nothing_and_keeps_what_was_there(tmp_path):
    write(tmp_path / "cache", n=1)
    before = sha256(tmp_path / "cache" / "manifest.json")
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "cache", {}) as writer:
        writer.add("a", torch.zeros(3))
        raise KeyboardInterrupt
    assert sha256(tmp_path / "cache" / "manifest.json") == before
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


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
        Shards(folder)["patient2/study1"]


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
