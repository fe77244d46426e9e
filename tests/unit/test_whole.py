"""Folders of results from which a file is gone."""

import json

from dive.files import record_checksums, write_json
from dive.shards import ShardWriter
from dive.whole import absent_files


def test_what_is_gone_is_named_and_a_whole_folder_has_nothing_to_say(tmp_path):
    import torch

    with ShardWriter(tmp_path / "cache", {"code": "1"}, shard_bytes=4) as writer:
        for key in ("a", "b"):
            writer.add(key, torch.zeros(2))
    assert absent_files("cache_teacher", tmp_path / "cache") == []
    (tmp_path / "cache/shard-00001.safetensors").unlink()
    assert absent_files("cache_teacher", tmp_path / "cache") == ["shard-00001.safetensors"]
    (tmp_path / "cache/manifest.json").unlink()
    assert absent_files("cache_layers", tmp_path / "cache") == ["manifest.json"]

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "training.csv").write_text("step\n")
    record_checksums(adapter, "training.csv")
    write_json(adapter / "config.json", {"sha256": {"adapter.safetensors": "0" * 64}})
    assert absent_files("distill", adapter) == ["adapter.safetensors"]
    (adapter / "config.json").write_text('{"sha256": {"adapter.safetensors": ""}}')  # on one line
    assert absent_files("distill", adapter) == ["adapter.safetensors"]
    (adapter / "training.csv").unlink()
    (adapter / "adapter.safetensors").touch()
    assert absent_files("distill", adapter) == ["training.csv"]


def test_other_folders_and_damaged_lists_are_left_to_their_readers(tmp_path):
    assert absent_files("distill", tmp_path / "nothing") == []
    assert absent_files("synthesize", tmp_path) == []
    assert absent_files("build_backbone", tmp_path) == ["checksums.json"]
    for content in ("", "[1]", '{"sha256": 3}', json.dumps({"sha256": {}})[:-3], '{"shards": ["a"],'):
        (tmp_path / "checksums.json").write_text(content)
        assert absent_files("build_backbone", tmp_path) == []
