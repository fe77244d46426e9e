"""The default's tiny backbones trained anew, as on a machine that has only their recipe: some minutes on two cores.

python -m pytest -m long -s
"""

from pathlib import Path

import pytest

from dive.files import read_json
from tests.project import LINKED, Project

pytestmark = pytest.mark.long


def test_a_world_with_backbones_trained_anew_meets_every_criterion(tmp_path: Path) -> None:
    project = Project(tmp_path / "dive")
    (project.folder / LINKED).unlink()
    project.snakemake("--cores", "2", "--no-hooks", "results/world/acceptance.json", timeout=3600)
    for log in (project.folder / "logs/build_backbone").iterdir():
        assert "vision tower trained" in log.read_text(encoding="utf-8")
    verdict = read_json(project.folder / "results/world/acceptance.json")
    print((project.folder / "results/world/acceptance.md").read_text(encoding="utf-8"))
    assert verdict["met"] == verdict["criteria"] == 4 * 8
