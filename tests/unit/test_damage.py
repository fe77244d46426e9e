"""Whatever single bit of a result is flipped on the disk, reading it is an error that names the file."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dive.backbones.loading import load_backbone
from dive.backbones.vision import VisionFeatures
from dive.data.generations import read_generations, write_generations
from dive.data.studies import LABELS, read_notes, read_studies, write_studies
from dive.distillation.cache import read_targets
from dive.files import Journal, check_files, read_json, record_checksums, write_json
from dive.parquet import read_schema, read_table, write_table
from dive.remembered import annotate_once
from dive.sealed import MARK, DamageError, append_seal, checked_body
from dive.shards import ShardError, Shards, ShardWriter
from dive.steering.adapters import check_origin
from tests.project import ROOT
from tests.unit.tiny_models import settings, write_tiny
from tests.unit.tiny_study import DIVE

FLIPS = 300


def write_some_studies(path: Path) -> None:
    n = 40
    table = pd.DataFrame(
        {
            "study_uid": [f"s{i}" for i in range(n)],
            "patient_uid": [f"p{i}" for i in range(n)],
            "split": ["train"] * n,
            "image_paths": [[f"{i}.jpg"] for i in range(n)],
            "views": [["PA"]] * n,
            "findings": None,
            "impression": None,
            "target": [f"No effusion number {i}." for i in range(n)],
            "indication": None,
            "n_words": np.int32(4),
            **dict.fromkeys(LABELS, 1.0),
        }
    )
    write_studies(table, path, {"dataset": "chest"})


def write_some_reports(path: Path) -> None:
    write_generations(path, [(f"s{i}", f"p{i}", f"Small effusion {i}.", 4, True) for i in range(40)])


def write_a_table(path: Path) -> None:
    write_table(pa.table({"study_uid": ["s1", "s2"], "start": [1, 2]}), path, compression="zstd")


def write_an_object(path: Path) -> None:
    write_json(path, {"queries": [f"s{i}" for i in range(40)], "n": 1.5, "ä": "µ"})


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "studies": (write_some_studies, read_studies),
    "notes of studies": (write_some_studies, read_notes),
    "targets of some studies": (write_some_studies, lambda path: read_targets(str(path), ["s3"])),
    "generations": (write_some_reports, read_generations),
    "a table": (write_a_table, read_table),
    "a schema": (write_a_table, read_schema),
    "a JSON object": (write_an_object, read_json),
}


def flipped(path: Path, count: int = FLIPS):
    """Write the file with one bit changed, over and over; whole again at the end."""
    good, draw = path.read_bytes(), random.Random(0)
    places = range(8 * len(good)) if 8 * len(good) <= count else draw.sample(range(8 * len(good)), count)
    for place in places:
        path.write_bytes(good[: place // 8] + bytes([good[place // 8] ^ (1 << place % 8)]) + good[place // 8 + 1 :])
        yield place
    path.write_bytes(good)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_a_result_is_told(tmp_path, kind):
    write, read = KINDS[kind]
    path = tmp_path / "result"
    write(path)
    expected = repr(read(path))
    for place in flipped(path):
        with pytest.raises(DamageError, match=re.escape(f"{path}: ")):
            pytest.fail(f"bit {place}: {read(path)!r}")
    assert repr(read(path)) == expected
    again = tmp_path / "again"
    write(again)
    assert again.read_bytes() == path.read_bytes()  # equal results are equal files


@pytest.mark.parametrize("kind", ["studies", "generations", "a JSON object"])
def test_a_file_that_is_cut_off_is_told(tmp_path, kind):
    write, read = KINDS[kind]
    path = tmp_path / "result"
    write(path)
    good = path.read_bytes()
    for length in (0, 1, 7, len(good) // 2, len(good) - 3):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read(path)


def test_the_checksum_is_no_part_of_what_is_read(tmp_path):
    write_an_object(tmp_path / "json")
    assert list(read_json(tmp_path / "json")) == ["queries", "n", "ä"]
    assert MARK.decode() in json.loads((tmp_path / "json").read_text())["checksum"]
    write_a_table(tmp_path / "table")
    assert read_table(tmp_path / "table").schema.metadata is None
    write_some_studies(tmp_path / "studies")
    assert read_notes(tmp_path / "studies") == {"dataset": "chest"}
    # Any other reader reads the files too.
    assert pq.read_table(tmp_path / "table").to_pydict() == read_table(tmp_path / "table").to_pydict()


def test_what_was_written_by_hand_is_read_as_it_is(tmp_path):
    (tmp_path / "json").write_text('{"a": [1]}')
    assert read_json(tmp_path / "json") == {"a": [1]}
    pq.write_table(pa.table({"a": [1]}), tmp_path / "table")
    assert read_table(tmp_path / "table").to_pydict() == {"a": [1]}


def test_a_flipped_bit_of_a_manifest_or_a_shard_is_told(tmp_path):
    folder = tmp_path / "vision"
    with ShardWriter(folder, {"backbone": {}}) as writer:
        for i in range(4):
            writer.add(f"s{i}", torch.full((3, 8), float(i)), grid=[1, 2, 4])
    expected = {key: feature.tokens.tolist() for key, feature in VisionFeatures(folder).items()}
    for _ in flipped(folder / "manifest.json"):
        with pytest.raises(ShardError, match=re.escape(str(folder))):
            VisionFeatures(folder)
    shard = folder / "shard-00000.safetensors"
    header = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
    for place in flipped(shard):
        features = VisionFeatures(folder)
        if place < 8 * header:  # nobody reads it: the manifest says where tensors lie
            assert {key: feature.tokens.tolist() for key, feature in features.items()} == expected
            continue
        with pytest.raises(ShardError, match=re.escape(str(shard))):
            list(features.values())
    assert len(Shards(folder)) == 4


def test_a_damaged_line_of_a_journal_and_what_follows_are_made_again(tmp_path):
    entries = [[f"s{i}", f"Small effusion {i}.", 4, True] for i in range(5)]
    journal = Journal(tmp_path / "journal", "mine")
    journal.begin(entries[:2])
    journal.append(*entries[2:])
    assert journal.read() == entries
    for _ in flipped(journal.path):
        found = journal.read()
        assert found == entries[: len(found)]
        assert len(found) < 5
    assert journal.read() == entries


def test_a_damaged_memory_of_texts_is_asked_again(tmp_path):
    def annotate(texts):
        return [(text, text.upper()) for text in texts]

    def ask(annotate=annotate):
        return annotate_once(["one", "two"], annotate, {"scorer": "test"}, str(tmp_path))

    assert ask() == ask() == {"one": "ONE", "two": "TWO"}
    (path,) = tmp_path.rglob("*.tsv")
    for _ in flipped(path):
        assert ask() == {"one": "ONE", "two": "TWO"}
        for other in tmp_path.rglob("*.tsv"):
            other.unlink() if other != path else None


def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path):
    path = tmp_path / "checkpoint"
    torch.save({"step": torch.arange(5)}, path)
    content = path.read_bytes()
    append_seal(path)
    assert checked_body(path) == content
    for _ in flipped(path):
        with pytest.raises(DamageError, match="checkpoint"):
            checked_body(path)
    path.write_bytes(content)
    with pytest.raises(DamageError, match="cut off"):
        checked_body(path)


def test_a_flipped_byte_of_a_tiny_backbone_is_told_before_it_is_loaded(tmp_path):
    folder = write_tiny(tmp_path / "model", "gemma3", seed=1)
    record_checksums(folder)
    assert load_backbone(settings(folder)).width == 32
    assert {path.name for path in folder.iterdir()} == {
        *read_json(folder / "checksums.json")["sha256"],
        "checksums.json",
    }
    for path in sorted(folder.iterdir()):
        for place in flipped(path, 4):
            with pytest.raises(DamageError, match=re.escape(path.name)):
                pytest.fail(f"{path.name}, bit {place}: {load_backbone(settings(folder))}")
    shutil.copy(write_tiny(tmp_path / "other", "gemma3", seed=2) / "model.safetensors", folder)
    with pytest.raises(DamageError, match=r"model\.safetensors: absent, damaged or of another folder"):
        load_backbone(settings(folder))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"]
)
def test_a_json_file_of_a_model_that_is_cut_off_names_itself(tmp_path, name):
    folder = write_tiny(tmp_path / "model", "gemma3", seed=1)
    content = (folder / name).read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"[]", b"\xff" + content):
        (folder / name).write_bytes(damaged)
        with pytest.raises(
            DamageError, match=rf"model/{re.escape(name)}: cut off, damaged, or no JSON object; download"
        ):
            load_backbone(settings(folder))


def test_a_flipped_bit_of_the_course_of_training_is_told(tmp_path):
    (tmp_path / "training.csv").write_text("step,loss\n1,0.5\n2,0.4\n")
    record_checksums(tmp_path, "training.csv")
    check_files(tmp_path, "training.csv", "validation.csv")
    for _ in flipped(tmp_path / "training.csv"):
        with pytest.raises(DamageError, match=r"training\.csv"):
            check_files(tmp_path, "training.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {**DIVE, "module": "live"}}, "module live, not dive"),
        ({"data": {"dataset": "b"}}, "dataset b, not a"),
        ({"record": {"settings": {"seed": 1}}}, "seed 1, not 0"),
        ({"record": {}}, "seed None, not 0"),
    ],
)
def test_an_adapter_folder_of_another_job_is_told(tmp_path, change, message):
    config = {"method": DIVE, "data": {"dataset": "a"}, "record": {"settings": {"seed": 0}}}
    write_json(tmp_path / "config.json", config)
    check_origin(tmp_path, {**DIVE, "trained_on": "a"}, "a", 0)
    write_json(tmp_path / "config.json", {**config, **change})
    with pytest.raises(DamageError, match=f"of another job, trained with {message}; delete it"):
        check_origin(tmp_path, DIVE, "a", 0)


def test_every_table_and_every_object_is_read_with_its_checksum():
    """No module has a reader or a writer of its own."""
    own = {"parquet.py", "files.py"}
    for path in (ROOT / "workflow/dive").rglob("*.py"):
        if path.name not in own:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"pq\.(read|write)|read_parquet|to_parquet|json\.dump\(", text), path
