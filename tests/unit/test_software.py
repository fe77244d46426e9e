"""Notes of the packages with which results were computed, and what is said of them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.persistence.file import FilePersistence

from dive import provenance, software
from dive.job import logged

NO_NUMBERS = {
    *("click", "huggingface_hub", "jinja2", "matplotlib", "pydantic", "pydantic_core", "rich", "safetensors"),
    *("snakemake", "snakemake_interface_logger_plugins", "yaml"),
}
"""Packages that fetch, check, store, draw or print; another version of them changes no number."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(rule: str, name: str, *packages: str, there: bool = True) -> software.Job:
    """A job, with what it makes in its place."""
    made = software.Job(rule, f"logs/{rule}/{name}.log", [f"results/{rule}/{name}"], packages)
    if there:
        Path(made.outputs[0]).parent.mkdir(parents=True, exist_ok=True)
        Path(made.outputs[0]).touch()
    return made


def noted(made: software.Job, **versions: str) -> software.Job:
    """The same with a note of other versions than are installed."""
    software.note(made.log)
    file = software.note_file(made.log)
    file.write_text(json.dumps({**json.loads(file.read_text()), **versions}))
    return made


def test_a_job_that_ends_well_notes_its_packages(folder: Path) -> None:
    with logged("logs/split/set-2.5.log"):
        pass
    assert json.loads((folder / "results/software/split/set-2.5.json").read_text()) == software.installed()
    with pytest.raises(ValueError, match="no"), logged("logs/claim.log"):
        raise ValueError("no")
    assert not (folder / "results/software/claim.json").exists()


def test_every_package_that_is_imported_is_one_that_computes_or_one_that_does_not() -> None:
    names = {
        name.partition(".")[0] for path in provenance.PACKAGE.rglob("*.py") for name in provenance._imported_names(path)
    }
    assert names - {"", "dive"} - set(sys.stdlib_module_names) - NO_NUMBERS <= set(software.COMPUTING)
    assert {"torch", "transformers", "numpy", "PIL", "rouge_score", "radgraph"} <= set(software.COMPUTING)


def test_packages_are_those_that_the_code_of_a_rule_imports() -> None:
    assert {"pandas", "pyarrow"} <= provenance.packages_of("scripts/split.py")
    assert not {"torch", "transformers"} & provenance.packages_of("scripts/split.py")
    assert {"torch", "transformers", "tokenizers"} <= provenance.packages_of("scripts/distill.py")
    assert "spacy" not in provenance.packages_of("scripts/annotate.py")
    assert "spacy" in provenance.packages_of("scripts/annotate.py", "dive.annotation.scispacy")


def test_what_differs_is_said_with_the_result_and_both_versions(folder: Path) -> None:
    now = software.installed()
    jobs = [
        noted(job("distill", "a", "torch", "numpy"), torch="1.0", numpy="0.9"),
        noted(job("distill", "b", "torch", "numpy"), torch="1.0", numpy="0.9"),
        noted(job("split", "a", "numpy"), torch="1.0"),  # does not compute with it
        noted(job("score", "a", "torch")),
        noted(job("generate", "a", "torch", there=False), torch="1.0"),  # will be made anyway
        job("compare", "a", "torch"),  # of before there were notes
    ]
    told = list(software.warnings(jobs, None))
    assert (
        told[1]
        == f"  distill (results/distill/a and 1 more): numpy 0.9, now {now['numpy']}; torch 1.0, now {now['torch']}"
    )
    assert told[2:] == [
        "  To make them again: snakemake --forcerun distill",
        "  To keep them for good: rm -r results/software/distill",
    ]
    assert list(software.warnings(jobs[2:], None)) == []


def test_metadata_are_where_snakemake_keeps_them(folder: Path) -> None:
    """Long paths too, which it cuts into folders."""
    keeper = SimpleNamespace(_max_len=255)
    keeper._fetch_max_len = lambda subject: FilePersistence._fetch_max_len(keeper, subject)
    for path in ("results/a.csv", "results/" + "long-name/" * 60 + "b"):
        assert software.metadata_file(path, Path("m")) == FilePersistence._record_path(keeper, "m", path)
    kept, lost = job("split", "a"), job("split", "b")
    place = Path(software.metadata_file(kept.outputs[0], Path("m")))
    place.parent.mkdir()
    place.touch()
    told = list(software.warnings([kept, lost], Path("m")))
    assert told[1:3] == ["  split (results/split/b)", "  To make them again: snakemake --forcerun split"]
    assert list(software.warnings([kept], Path("m"))) == []
