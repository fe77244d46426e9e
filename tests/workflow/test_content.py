"""What real data and real backbones rerun: their content decides, and neither their times nor where they lie.

A small dataset in the layout of MIMIC-CXR, a backbone with random weights and another system's reports go through the
flow once; every test edits a copy of all of that, in which each file has another inode and the same content. What of
the files counts is in tests/unit/test_contents.py.
"""

import csv
import io
import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dive.data.studies import read_studies
from dive.files import read_json
from tests.project import Project
from tests.unit.tiny_models import write_tiny
from tests.unit.trees import MimicTree, report

PATIENTS = {"train": 14, "validate": 4, "test": 4}
SCORES = "results/scores/chest/real"
SPANS = "results/annotations/chest/vocabulary/spans.parquet"
GOALS = (f"{SCORES}/zero_shot/summary.json", f"{SCORES}/other/summary.json", SPANS)
PLAN = ("--no-hooks", "--configfile", "changes.yaml", "--", *GOALS)

READ_AGAIN = {"split": 1, "select": 1, "annotate": 1, "cache_vision": 1, "generate": 1, "import_reports": 1, "score": 2}
"""What follows from the data's tables, reports, and images as they are listed."""
SEEN_AGAIN = {"cache_vision": 1, "generate": 1, "score": 2}
"""What follows from the content of the pool's images, and from the backbone; all rows say which images are readable."""


def changes() -> dict:
    """The overlay: a dataset and a backbone as real ones are described."""
    selection = {"section": "findings", "convention": "official", "min_words": 2}
    pool = {"queries": 4, "demonstrations": 4, "validation": 2, "test": 3}
    return {
        "seeds": [0],
        "grids": {"main": {"datasets": ["chest"], "backbones": ["real"], "methods": ["zero_shot", "other", "dive"]}},
        "training": {"validation_studies": 2},
        "decoding": {"max_new_tokens": 4},
        "shots": 2,
        "datasets": {
            "chest": {
                "title": "Chest",
                "reader": "mimic_cxr",
                "root": "given/chest",
                "selection": {**read_overlay()["datasets"]["mimic-cxr"]["selection"], **selection},
                "pool": pool,
            }
        },
        "backbones": {
            "real": {
                **read_overlay()["backbones"]["medgemma-4b"],
                "title": "Real",
                "note": None,
                "path": "given/weights",
                "dtype": "float32",
                "device": "cpu",
                "batch": {"vision": 4, "teacher": 2, "generation": 4, "training": 4},
            }
        },
        "methods": {
            "other": {"kind": "external", "title": "Other", "group": "published", "files": {"chest": "given/other.csv"}}
        },
    }


def read_overlay() -> dict:
    return yaml.safe_load((Path(__file__).parents[2] / "config/paper.yaml").read_text(encoding="utf-8"))


def write_data(root: Path) -> list[str]:
    """The dataset; returns the test studies."""
    tree, number, test = MimicTree(root), 0, []
    for split, patients in PATIENTS.items():
        for _ in range(patients):
            number += 1
            picture = io.BytesIO()
            Image.new("L", (60 + number, 50), 3 * number).save(picture, "JPEG")
            text = report(f"The heart is normal, number {number}. No effusion.")
            study, subject = 50000000 + number, 10000000 + number
            tree.study(study, subject, split, text=text, image=picture.getvalue())
            if split == "test":
                test.append(f"s{study}")
    tree.write()
    return test


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """After a complete run; not to be changed."""
    project = Project(tmp_path_factory.mktemp("content") / "dive")
    given = project.folder / "given"
    test = write_data(given / "chest")
    write_tiny(given / "weights", "gemma3", seed=1)
    with (given / "other.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("study_uid", "report"), *((uid, "No effusion.") for uid in test)])
    (project.folder / "changes.yaml").write_text(yaml.safe_dump(changes()), encoding="utf-8")
    project.snakemake("--cores", "2", *PLAN)
    return project


@pytest.fixture
def copy(ran: Project, tmp_path: Path) -> Project:
    """A copy of the run and of its data to edit."""
    return ran.copy(tmp_path / "dive")


def rewrite(path: Path, content: bytes) -> None:
    """Give a file another content behind Snakemake's back: it is as old as it was."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(path: Path, place: int = -20) -> None:
    """Change one byte of a file and nothing else that is listed of it."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    rewrite(path, bytes(content))


def images(project: Project) -> tuple[Path, Path]:
    """An image of the pool, and one that the pool does not hold."""
    members = read_json(project.folder / "results/pools/chest.json")
    table = read_studies(project.folder / "results/splits/chest/studies.parquet", ["study_uid", "image_paths"])
    drawn = table["study_uid"].isin({uid for group in members.values() for uid in group})
    return tuple(project.folder / "given/chest" / table["image_paths"][which].iloc[0][0] for which in (drawn, ~drawn))


def test_what_no_reader_opens_times_places_and_links_rerun_nothing(copy: Project, tmp_path: Path) -> None:
    given = copy.folder / "given"
    for place in ("chest", "chest/files/p10/p10000001", "chest/files/p10/p10000001/s50000001", "weights"):
        (given / place / "note.txt").write_text("seen")
        (given / place / "README.md").write_text("seen")
    table = next((given / "chest").glob("*-split.csv.gz"))
    shutil.copy(table, table.with_suffix(".new"))
    table.with_suffix(".new").replace(table)
    for path in [*given.rglob("*"), *(copy.folder / "workflow/dive/resources").glob("*.*")]:
        os.utime(path)
    _, other = images(copy)
    flip(other)  # not of the pool
    (given / "chest").rename(tmp_path / "moved")
    (given / "chest").symlink_to(tmp_path / "moved")
    model = given / "weights/model.safetensors"
    model.rename(tmp_path / "blob")
    model.symlink_to(tmp_path / "blob")
    assert copy.planned(*PLAN) == {}
    assert (copy.folder / ".snakemake/contents").is_file()
    # Named by its new place; and what is remembered of it may be lost.
    (given / "weights").rename(tmp_path / "weights")
    (given / "other.csv").rename(tmp_path / "other.csv")
    text = (copy.folder / "changes.yaml").read_text(encoding="utf-8")
    for old, new in (("given/chest", "moved"), ("given/weights", "weights"), ("given/other.csv", "other.csv")):
        assert old in text
        text = text.replace(old, str(tmp_path / new))
    (copy.folder / "changes.yaml").write_text(text, encoding="utf-8")
    (copy.folder / ".snakemake/contents").write_bytes(b"damaged")
    assert copy.planned(*PLAN) == {}


def test_an_edited_report_is_read_again(copy: Project) -> None:
    text = copy.folder / "given/chest/files/p10/p10000003/s50000003.txt"
    rewrite(text, text.read_bytes().replace(b"normal", b"larger"))
    assert copy.planned(*PLAN) == READ_AGAIN


def test_the_pool_s_images_and_weights_rerun_what_sees_them(copy: Project) -> None:
    drawn, _ = images(copy)
    flip(drawn)
    assert copy.planned(*PLAN) == SEEN_AGAIN
    flip(drawn)
    flip(copy.folder / "given/weights/model.safetensors")
    assert copy.planned(*PLAN) == SEEN_AGAIN


def test_another_system_s_file_and_the_vocabulary_rerun_what_reads_them(copy: Project) -> None:
    file = copy.folder / "given/other.csv"
    rewrite(file, file.read_bytes().replace(b"No effusion.", b"An effusion."))
    assert copy.planned(*PLAN) == {"import_reports": 1, "score": 1}
    vocabulary = copy.folder / "workflow/dive/resources/vocabulary.csv"
    rewrite(vocabulary, vocabulary.read_bytes() + b"\n")
    assert copy.planned(*PLAN) == {"annotate": 1, "import_reports": 1, "score": 2}
    file.unlink()
    told = copy.run("snakemake", "--dry-run", *PLAN).stdout
    assert "methods.other.files.chest: no file given/other.csv" in told


def test_a_pool_that_is_drawn_within_the_run_is_described_as_it_was_read(copy: Project) -> None:
    """The images are only known once rule select has run: what is recorded then must be what the next run finds."""
    text = (copy.folder / "changes.yaml").read_text(encoding="utf-8")
    (copy.folder / "changes.yaml").write_text(text.replace("queries: 4", "queries: 5"), encoding="utf-8")
    features = copy.folder / "results/vision/chest/real/manifest.json"
    goal = (*PLAN[: PLAN.index("--") + 1], "results/vision/chest/real")
    before = read_json(features)["record"]["settings"]["images"]
    copy.snakemake("--cores", "2", *goal)
    assert read_json(features)["record"]["settings"]["images"] != before
    assert copy.planned(*goal) == {}
