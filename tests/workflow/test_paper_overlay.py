"""config/paper.yaml up to the demonstrations, on synthetic trees in the layouts of MIMIC-CXR and CheXpert Plus.

At the datasets' full sizes, outside the default run, since the trees take minutes and a million inodes to write:

    python -m pytest -m full_size -s

Wall and CPU seconds and peak memory of every job are printed with their share of what is allowed; of these only the
memory is asserted, since seconds depend on what else the machine does.
"""

import csv
import shutil
import time
from pathlib import Path

import pytest
import yaml

from dive.data.roots import CHEXPERT_PLUS_SIZES, MIMIC_CXR_SIZES
from dive.data.studies import read_studies
from dive.data.synthetic.fullsize import NO_FINDINGS, VIEWS, write_full_size
from dive.files import read_json
from tests.project import Project

LAYOUTS = {"mimic-cxr": "mimic_cxr", "chexpert-plus": "chexpert_plus"}
OFFICIAL = {"mimic-cxr": MIMIC_CXR_SIZES, "chexpert-plus": CHEXPERT_PLUS_SIZES}

ALLOWED = {"s": 600.0, "cpu_time": 300.0, "max_rss": 4096.0}
"""Seconds of wall and CPU time ("minutes"), and MB, of a job at full size; names are of what a job leaves."""


def run_overlay(project: Project, share: float, changes: dict | None = None) -> dict[str, dict]:
    """Write both trees, run what needs no backbone, and return the counts of each dataset."""
    start = time.perf_counter()
    for dataset, layout in LAYOUTS.items():
        write_full_size(layout, project.folder / "data" / dataset, share)
    print(f"writing the trees: {time.perf_counter() - start:.1f} s")
    overlays = ["config/paper.yaml"]
    if changes:
        (project.folder / "changes.yaml").write_text(yaml.safe_dump(changes))
        overlays.append("changes.yaml")
    start = time.perf_counter()
    check = project.run("python", "-m", "dive", "check-data", "--configfile", *overlays)
    print(f"check-data: {time.perf_counter() - start:.1f} s")
    assert check.returncode == 0, check.stdout
    assert "PROBLEM" not in check.stdout
    assert all(f"{dataset}, {backbone}: h: " in check.stdout for dataset in LAYOUTS for backbone in BACKBONES)
    start = time.perf_counter()
    project.snakemake(
        "--cores", "2", "--no-hooks", "--until", "annotate", "demonstrate", "--configfile", *overlays, timeout=3600
    )
    print(f"splits, annotations, pools, demonstrations: {time.perf_counter() - start:.1f} s")
    print(check.stdout)
    return {dataset: checked_counts(project.folder / "results", dataset, check.stdout) for dataset in LAYOUTS}


BACKBONES = ("medgemma-4b", "lingshu-7b")


def checked_counts(results: Path, dataset: str, check: str) -> dict:
    """Counts of a dataset after what must hold at any size."""
    counts = read_json(results / f"splits/{dataset}/counts.json")
    studies = read_studies(results / f"splits/{dataset}/studies.parquet", ["study_uid", "patient_uid", "split"])
    with (results / f"splits/{dataset}/excluded.csv").open() as file:
        excluded = list(csv.DictReader(file))
    # Every study is either used or listed with its rule.
    assert len(studies) + len({row["study_uid"] for row in excluded}) == counts["raw"]["studies"]
    assert (studies.groupby("patient_uid")["split"].nunique() == 1).all()
    pool = read_json(results / f"pools/{dataset}.json")
    drawn = read_json(results / f"demonstrations/{dataset}/k4/seed0.json")
    assert {group: len(draws) for group, draws in drawn.items()} == {group: len(pool[group]) for group in drawn}
    assert pool["test"]
    assert (results / f"annotations/{dataset}/vocabulary/spans.parquet").stat().st_size
    return counts


def test_the_overlay_runs_up_to_the_demonstrations(tmp_path):
    pool = {"queries": 40, "demonstrations": 40, "validation": 8, "test": None}
    changes = {
        "seeds": [0],
        "training": {"validation_studies": 8},
        "datasets": {"mimic-cxr": {"pool": pool}, "chexpert-plus": {"selection": {"fractions": {"validate": 0.1}}}},
    }
    counts = run_overlay(Project(tmp_path / "dive"), 0.01, changes)
    assert counts["mimic-cxr"]["convention"] == "official"
    assert counts["chexpert-plus"]["convention"] == "own_split"


def measured_costs(folder: Path) -> dict[str, dict[str, float]]:
    """Job -> what it says of its cost, of the keys of ALLOWED; printed with its share of these."""
    costs = {}
    for path in sorted(folder.rglob("*.tsv")):
        with path.open() as file:
            (row,) = csv.DictReader(file, delimiter="\t")
        found = {name: float(row[name]) for name in ALLOWED}
        job = str(path.relative_to(folder).with_suffix(""))
        costs[job] = found
        told = (f"{name} {value:.1f} ({100 * value / ALLOWED[name]:.0f} %)" for name, value in found.items())
        print(f"{job}: {', '.join(told)}")
    return costs


@pytest.mark.full_size
def test_the_overlay_runs_at_full_size(tmp_path):
    """All but the roots is as config/paper.yaml says, and these are where it looks for them."""
    project = Project(tmp_path / "dive")
    try:
        counts = run_overlay(project, 1.0)
    finally:
        shutil.rmtree(project.folder / "data")  # pytest keeps the folders of its last runs
    frontal = 1 - dict(VIEWS)["LATERAL"]
    for dataset, official in OFFICIAL.items():
        found = counts[dataset]
        for name in ("studies", "patients", "images"):
            assert found["raw"][name] == sum(size[name] for size in official.values())
        used = sum(split["studies"] for split in found["used"].values())
        usable = (1 - NO_FINDINGS[LAYOUTS[dataset]]) * frontal
        print(f"{dataset}: {used} of {found['raw']['studies']} studies used")
        assert used / found["raw"]["studies"] == pytest.approx(usable, abs=0.01)
        pool = read_json(project.folder / f"results/pools/{dataset}.json")
        assert {group: len(pool[group]) for group in ("queries", "demonstrations", "validation")} == {
            "queries": 1000,
            "demonstrations": 1000,
            "validation": 128,
        }
        assert len(pool["test"]) == found["used"]["test"]["studies"]
    costs = measured_costs(project.folder / "benchmarks")
    assert {job.split("/")[0] for job in costs} == {"split", "annotate", "select", "demonstrate"}
    assert all(cost["max_rss"] < ALLOWED["max_rss"] for cost in costs.values())
