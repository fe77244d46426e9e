"""Weights: what would be fetched, that it is the expected file, and what a run says when it is not there."""

import hashlib
import io
import json
import re
import tarfile

import pytest

from dive.command import ASSETS, main
from dive.files import WeightsError, read_json
from dive.scores import assets
from dive.scores.assets import MANIFEST, absent_weights, located, weight_files


def settings(radgraph=None, chexbert=None):
    return {
        "radgraph": {"path": radgraph, "archive": "radgraph-xl", "max_words": 350, "lower": False, "device": "cpu"},
        "chexbert": {"path": chexbert, "encoder": "bert-base-uncased", "batch": 64, "device": "cpu"},
    }


def test_the_list_says_what_where_and_how_large_and_downloads_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(assets, "fetch", lambda *_: pytest.fail("something was fetched"))
    assert main(["fetch-assets", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "StanfordAIMI/RRG_scorers",
        "radgraph-xl.tar.gz",
        "chexbert.pth",
        "1,314 MB",
        "Nothing was downloaded",
    ):
        assert words in printed
    assert "To download: 1,731 MB" in printed
    assert list(tmp_path.iterdir()) == []
    assert main(["fetch-assets", "chexpert"]) == 2
    assert "chexbert" in capsys.readouterr().err


def test_the_manifest_pins_revisions_and_hashes():
    manifest = read_json(MANIFEST)
    assert tuple(manifest["assets"]) == ASSETS
    for name, asset in manifest["assets"].items():
        assert re.fullmatch(r"[0-9a-f]{40}", asset["revision"]), name
        assert asset["sha256"] is None or re.fullmatch(r"[0-9a-f]{64}", asset["sha256"]), name
    assert all(manifest["assets"][name]["sha256"] for name in manifest["default"])


def pack(path, **members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one archive; ``hub(sha256)`` is the asset that expects it."""
    config = {"dataset_reader": {"token_indexers": {"bert": {"model_name": "some/encoder"}}}}
    source = pack(tmp_path / "radgraph.tar.gz", **{"config.json": json.dumps(config).encode(), "weights.th": b"w"})
    encoders = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(source))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: encoders.append(name))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    asset = {"repository": "a/b", "revision": "0" * 40, "file": "radgraph.tar.gz", "target": "radgraph/radgraph"}

    def make(sha256=digest):
        return {**asset, "bytes": source.stat().st_size, "sha256": sha256}

    make.encoders, make.digest = encoders, digest
    return make


def test_an_archive_is_checked_unpacked_and_its_encoder_fetched(hub, tmp_path):
    said = assets.fetch("radgraph", hub(), str(tmp_path / "assets"))
    assert hub.digest in said
    assert (tmp_path / "assets/radgraph/radgraph/weights.th").read_bytes() == b"w"
    assert hub.encoders == ["some/encoder"]
    assert "is there" in assets.fetch("radgraph", hub(), str(tmp_path / "assets"))
    assert len(hub.encoders) == 1
    assert "no hash was known" in assets.fetch("radgraph", hub(None), str(tmp_path / "other"))


def test_another_file_is_not_used(hub, tmp_path):
    with pytest.raises(WeightsError, match=r"radgraph.tar.gz: \d+ bytes with sha256 .*expected .*000"):
        assets.fetch("radgraph", hub("0" * 64), str(tmp_path / "assets"))
    assert not (tmp_path / "assets").exists()


def test_an_archive_cannot_write_elsewhere(tmp_path):
    for members in ({"../escaped": b"x", "config.json": b"{}"}, {"weights.th": b"w"}):
        source = pack(tmp_path / "a.tar.gz", **members)
        with pytest.raises((WeightsError, tarfile.OutsideDestinationError)):
            assets.unpack(source, tmp_path / "deep/target")
        assert not (tmp_path / "deep/target").exists()
        assert not (tmp_path / "deep/escaped").exists()


def test_settings_without_a_path_are_nothing_to_depend_on(tmp_path):
    assert located(settings()) == {"radgraph": None, "chexbert": None}
    assert weight_files(located(settings())) == {}
    assert absent_weights(settings()) == []
    found = located(settings("hub", "hub"))
    assert (found["radgraph"]["path"], found["chexbert"]["path"]) == ("assets/radgraph", "assets/chexbert/chexbert.pth")
    assert weight_files(found)["radgraph"] == "assets/radgraph/radgraph-xl/weights.th"
    told = absent_weights(settings(str(tmp_path), str(tmp_path / "chexbert.pth")))
    assert len(told) == 2
    assert all("dive fetch-assets" in message and str(tmp_path) in message for message in told)
