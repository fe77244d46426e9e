"""A finished run without the hours: every output is a placeholder, its metadata are what Snakemake itself records."""

from pathlib import Path

import pytest

from tests.project import Project

FOLDERS = ("data/synthetic-", "models/", "results/vision/", "results/teacher/", "results/layers/", "results/adapters/")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default configuration with a single seed, as after a complete run; not to be changed."""
    project = Project(tmp_path_factory.mktemp("finished") / "dive")
    project.change("seeds", "[0]")
    for path in project.planned_files():
        place = project.folder / path
        if path.startswith(FOLDERS):
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    project.snakemake("--touch", "--forceall", "--no-hooks", "--cores", "1")
    assert project.planned() == {}
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished run to edit."""
    return finished.copy(tmp_path / "dive")


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """A copy of the project in which nothing was run."""
    return Project(tmp_path / "dive")
