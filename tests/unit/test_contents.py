"""What counts of data and models, wherever they lie: every edit that a reader would see, and nothing else."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dive.annotation.scispacy import pipeline_files
from dive.backbones.files import check_model, describe_model, fetch_model, files_of
from dive.contents import SETTLED, Memory
from dive.data import listing
from dive.data.inventory import describe_dataset
from dive.scores.assets import model_files
from dive.sealed import DamageError
from tests.unit.tiny_models import write_tiny
from tests.unit.trees import ChexpertTree, MimicTree


@pytest.fixture
def old(monkeypatch):
    """All files were last changed long ago."""
    monkeypatch.setattr("dive.contents.SETTLED", -1e9)


def rewrite(path: Path, content: bytes) -> None:
    """Another content at the same time of modification."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# The memory.


def test_a_file_is_read_once_though_its_folder_moves_and_again_when_it_changes(tmp_path, old, monkeypatch):
    file = tmp_path / "folder/a"
    file.parent.mkdir()
    file.write_bytes(b"content")
    memory = Memory(tmp_path / "memory")
    expected = hashlib.sha256(b"content").digest()
    assert memory.digest(file) == expected
    memory.save()
    file.parent.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved/a")
    other = Memory(tmp_path / "memory")
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", None)  # nothing is read
        assert other.digest(tmp_path / "link") == expected
    rewrite(tmp_path / "moved/a", b"CONTENT")  # as long and as old, and changed after all
    assert other.digest(tmp_path / "link") == hashlib.sha256(b"CONTENT").digest()


def test_a_file_that_was_just_written_is_not_remembered(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"content")
    memory = Memory(tmp_path / "memory")
    memory.digest(file)
    memory.save()
    assert SETTLED > 1
    assert not memory.known
    assert not (tmp_path / "memory").exists()


def test_a_lost_or_damaged_memory_costs_time_alone(tmp_path, old):
    file, place = tmp_path / "a", tmp_path / "memory"
    file.write_bytes(b"content")
    memory = Memory(place)
    digest = memory.digest(file)
    memory.save()
    good = place.read_bytes()
    for index in range(len(good)):
        place.write_bytes(good[:index] + bytes([good[index] ^ 16]) + good[index + 1 :])
        assert Memory(place).digest(file) == digest
        place.write_bytes(good[:index])
        assert Memory(place).digest(file) == digest


def test_processes_keep_what_others_have_kept(tmp_path, old):
    code = (
        "import sys, dive.contents as c; c.SETTLED = -1e9; m = c.Memory(sys.argv[1]); "
        "[(m.digest(p), m.save()) for p in sys.argv[2:]]"
    )
    files = [tmp_path / str(number) for number in range(12)]
    for file in files:
        file.write_bytes(file.name.encode())
    place = tmp_path / "memory"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(place), *map(str, files[part::3])], env=environment)
        for part in range(3)
    ]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    memory = Memory(place)
    assert memory.known  # each of them is whole, whoever was last
    for file in files:
        assert memory.digest(file) == hashlib.sha256(file.name.encode()).digest()


# Datasets.


def mimic(root: Path, reports: str = "beside") -> Path:
    tree = MimicTree(root)
    for number in range(1, 4):
        tree.study(50000000 + number, 10000000 + number, views=("PA", "LATERAL"))
    return tree.write(reports)


def chexpert(root: Path) -> Path:
    tree = ChexpertTree(root)
    for patient in range(1, 4):
        tree.image(patient)
        tree.label(f"train/patient{patient:05d}/study1/view1_frontal.jpg", Edema=1.0)
    return tree.write()


def of_mimic(root: Path, **selection) -> dict[str, str]:
    return describe_dataset("mimic_cxr", root, selection, Memory())


def of_chexpert(root: Path, **selection) -> dict[str, str]:
    return describe_dataset("chexpert_plus", root, selection, Memory())


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("reports", ["beside", "folder", "top", "zip"])
def test_what_counts_of_mimic_cxr(tmp_path, reports):
    root = mimic(tmp_path / "root", reports)
    before = of_mimic(root)
    study = root / "files/p10/p10000002/s50000002"
    image = sorted(study.iterdir())[0]
    # Another copy, behind a link, with other times, and with what no reader opens.
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    for place in ("", "files", "files/p10", "files/p10/p10000001", "files/p10/p10000001/s50000001"):
        (tmp_path / "copy" / place / "note.txt").write_text("x")
        (tmp_path / "copy" / place / "LICENSE").write_text("x")
    (tmp_path / "copy/mimic-cxr-2.0.0-negbio.csv.gz").write_bytes(b"x")
    assert of_mimic(tmp_path / "link") == before
    # Tables.
    for name in ("metadata", "split", "chexpert"):
        table = root / f"mimic-cxr-2.0.0-{name}.csv.gz"
        good = table.read_bytes()
        rewrite(table, gzip.compress(gzip.decompress(good).replace(b"1", b"2", 1)))
        assert changed(before, of_mimic(root)) == {"tables"}, name
        rewrite(table, good)
    assert of_mimic(root, labels=None)["tables"] != before["tables"]
    # Reports.
    if reports == "zip":
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "a") as archive:
            archive.writestr("files/p10/p10000001/s59999999.txt", "x")
    else:
        report = next(root.rglob("s50000002.txt"))
        rewrite(report, report.read_bytes().replace(b"clear", b"white"))
    after = of_mimic(root)
    assert changed(before, after) == {"reports"}
    # Images: which there are, and how large.
    content = image.read_bytes()
    rewrite(image, bytes(reversed(content)))
    assert of_mimic(root) == after
    rewrite(image, content + b"\0")
    assert changed(after, of_mimic(root)) == {"images"}
    rewrite(image, content)
    assert of_mimic(root) == after
    image.rename(image.with_suffix(".png"))
    assert changed(after, of_mimic(root)) == {"images"}
    image.with_suffix(".png").unlink()
    assert changed(after, of_mimic(root)) == {"images"}
    (root / "files/p10/p10000001/s59999998").mkdir()  # a study folder that no table names is counted
    assert len({of_mimic(root)["images"], after["images"], before["images"]}) == 2


def test_reports_elsewhere_count_where_they_are_said_to_lie(tmp_path):
    root = mimic(tmp_path / "root", "zip")
    (root / "mimic-cxr-reports.zip").rename(tmp_path / "reports.zip")
    before = of_mimic(root, reports=str(tmp_path / "reports.zip"))
    (tmp_path / "reports.zip").rename(tmp_path / "moved.zip")
    assert of_mimic(root, reports=str(tmp_path / "moved.zip")) == before
    with zipfile.ZipFile(tmp_path / "moved.zip", "a") as archive:
        archive.writestr("files/p10/p10000001/s59999999.txt", "x")
    assert changed(before, of_mimic(root, reports=str(tmp_path / "moved.zip"))) == {"reports"}


def test_what_counts_of_chexpert_plus(tmp_path):
    root = chexpert(tmp_path / "root")
    before = of_chexpert(root)
    shutil.copytree(root, tmp_path / "copy")
    for place in ("", "PNG", "PNG/train", "PNG/train/patient00001", "PNG/train/patient00001/study1"):
        (tmp_path / "copy" / place / "note.txt").write_text("x")
    shutil.copytree(root / "PNG", tmp_path / "copy/DICOM")
    (tmp_path / "copy/chexbert_labels/report_fixed.json").write_text("")  # of another section
    assert of_chexpert(tmp_path / "copy") == before
    table, labels = root / "df_chexpert_plus_240401.csv", root / "chexbert_labels/findings_fixed.json"
    for path, old, new in ((table, b"clear", b"white"), (labels, b"1.0", b"0.0")):
        good = path.read_bytes()
        assert old in good
        rewrite(path, good.replace(old, new, 1))
        assert changed(before, of_chexpert(root)) == {"tables"}
        rewrite(path, good)
    assert of_chexpert(root, labels=None)["tables"] != before["tables"]
    image = next(root.rglob("view1_frontal.png"))
    rewrite(image, image.read_bytes() + b"\0")
    assert changed(before, of_chexpert(root)) == {"images"}
    image.unlink()
    assert changed(before, of_chexpert(root)) == {"images"}


def test_several_processes_list_what_one_lists_and_hand_on_what_they_read(tmp_path, old, monkeypatch):
    root = mimic(tmp_path / "root")
    alone = of_mimic(root)
    monkeypatch.setattr(listing, "FEW", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.chdir(tmp_path)
    memory = Memory(tmp_path / "memory")
    assert describe_dataset("mimic_cxr", root, {}, memory) == alone
    again = Memory(tmp_path / "memory")
    assert describe_dataset("mimic_cxr", root, {}, again) == alone


# Models.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "weights", "gemma3", seed=1)


@pytest.fixture
def hub(weights, tmp_path, monkeypatch):
    """The same model in a Hugging Face cache: blobs named by their checksums, and links to them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub/models--user--model"
    snapshot = place / "snapshots" / ("a" * 40)
    for folder in (place / "blobs", place / "refs", snapshot):
        folder.mkdir(parents=True)
    (place / "refs/main").write_text("a" * 40)
    for file in weights.iterdir():
        content = file.read_bytes()
        name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if file.suffix == ".safetensors":
            name = hashlib.sha256(content).hexdigest()
        (place / "blobs" / name).write_bytes(content)
        (snapshot / file.name).symlink_to(place / "blobs" / name)
    return snapshot


def test_every_file_that_loading_reads_counts_and_no_other(weights, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    before = describe_model(str(folder), None, Memory())
    for name in ("README.md", "note.txt", "pytorch_model.bin", "model.gguf"):
        (folder / name).write_text("x")
    assert describe_model(str(folder), None, Memory()) == before
    names = {file.name for file in files_of(folder)}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"preprocessor_config.json", "generation_config.json"} <= names
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        shutil.copy(folder / name, tmp_path / "good")
        rewrite(folder / name, bytes(content))
        assert describe_model(str(folder), None, Memory()) != before, name
        shutil.copy(tmp_path / "good", folder / name)
    assert describe_model(str(folder), None, Memory()) == before


def test_a_model_on_the_hub_is_the_same_as_in_a_folder(weights, hub):
    name = "user/model"
    assert describe_model(name, None, Memory()) == describe_model(str(weights), None, Memory())
    assert describe_model(name, "a" * 40, Memory()) == describe_model(str(weights), None, Memory())
    assert describe_model("user/absent", None, Memory()) is None
    check_model(name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_of_the_cache_is_told_before_it_is_read(hub, name):
    blob = (hub / name).resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    rewrite(blob, bytes(content))
    with pytest.raises(DamageError, match=f"{blob.name}: this file of user/model is damaged"):
        check_model("user/model")


def test_all_files_of_a_pipeline_and_of_an_archive_count(tmp_path):
    for file in ("config.cfg", "meta.json", "tokenizer", "README.md", "vocab/strings.json", "ner/model"):
        (tmp_path / "ner_model" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ner_model" / file).touch()
    for file in ("nmslib_index.bin", "tfidf_vectorizer.joblib", "tfidf_vectors_sparse.npz", "umls.jsonl", "note.txt"):
        (tmp_path / "linker").mkdir(exist_ok=True)
        (tmp_path / "linker" / file).touch()
    settings = {"path": str(tmp_path / "ner_model"), "types": ["T047"], "linker": str(tmp_path / "linker")}
    named = {Path(path).name for path in pipeline_files(settings)}
    pipeline = {"config.cfg", "meta.json", "tokenizer", "vocab", "ner"}
    assert named == pipeline | {"nmslib_index.bin", "tfidf_vectorizer.joblib", "tfidf_vectors_sparse.npz", "umls.jsonl"}
    assert {Path(path).name for path in pipeline_files({**settings, "types": []})} == pipeline
    (tmp_path / "radgraph/vocabulary").mkdir(parents=True)
    (tmp_path / "radgraph/vocabulary/labels.txt").touch()
    files = model_files("radgraph", {"path": str(tmp_path), "archive": "radgraph"})
    assert [Path(path).name for path in files] == ["config.json", "weights.th", "labels.txt"]


def test_what_is_not_in_the_cache_is_downloaded_without_other_formats(weights, hub, monkeypatch):
    import huggingface_hub

    asked = []
    known = huggingface_hub.snapshot_download

    def pretend(name, **options):
        if options.get("local_files_only"):
            return known(name, **options)
        asked.append((name, options["revision"], options["allow_patterns"]))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", pretend)
    fetch_model("user/model")
    fetch_model(str(weights))
    assert asked == []
    fetch_model("user/absent", "main")
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("user/absent", "main")
    assert "model*.safetensors" in patterns
    assert not any(pattern.endswith((".bin", ".py", ".pth", "*")) for pattern in patterns)
