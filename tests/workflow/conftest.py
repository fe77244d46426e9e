"""A finished run without the hours: every output is a placeholder, its metadata are what Snakemake itself records."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from dive.whole import LISTS
from tests.project import Project

FOLDERS = ("data/synthetic-", "models/", "results/vision/", "results/teacher/", "results/layers/", "results/adapters/")

END_OF_MAIN = "  baselines:  "
"""What follows the last method of grid main in config.yaml."""

ABLATIONS = ("dive_static", "dive_uniform", "dive_static_uniform", "dive_no_teacher")


def place(project: Project, paths: Iterable[str]) -> None:
    """Put placeholders where jobs would have left results."""
    for path in paths:
        where = project.folder / path
        if path.startswith(FOLDERS):
            where.mkdir(parents=True)
            for name in {name for names in LISTS.values() for name in names}:
                (where / name).write_text("{}\n")
        else:
            where.parent.mkdir(parents=True, exist_ok=True)
            where.touch()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default configuration with a single seed and four ablations in its main grid, as after a complete run.

    Not to be changed. The ablations share settings with DIVE, so that a test sees who inherits a changed value.
    """
    project = Project(tmp_path_factory.mktemp("finished") / "dive")
    project.edit("config.yaml", END_OF_MAIN, "".join(f"      - {name}\n" for name in ABLATIONS) + END_OF_MAIN)
    project.change("seeds", "[0]")
    place(project, project.files())
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
