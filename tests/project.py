"""A copy of the project that a test may run, edit and spoil."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Megabytes that no test changes in a copy: a link leads to them.
LINKED = "workflow/dive/resources/backbones"
PARTS = ("Snakefile", "config.yaml", "config", "profiles", "rules", "scripts", "workflow", "dvc.yaml", ".dvcignore")


class Project:
    """The workflow in a folder of its own, with its own copy of the package ``dive``.

    Args:
        folder: where the copy goes; must not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        others = shutil.ignore_patterns("__pycache__", "*.egg-info")

        def ignored(place: str, names: list[str]) -> set[str]:
            return others(place, names) | {name for name in names if Path(place, name) == ROOT / LINKED}

        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=ignored)
            else:
                shutil.copy2(ROOT / part, folder / part)
        (folder / LINKED).symlink_to(ROOT / LINKED)

    def copy(self, folder: Path) -> "Project":
        """The same with everything that was made in it; times of modification are kept."""
        other = object.__new__(Project)
        other.folder = folder
        shutil.copytree(self.folder, folder, symlinks=True)
        return other

    def run(self, *command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment in the folder; the package is the copy's."""
        tools = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "workflow"),
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
        }
        environment.pop("SNAKEMAKE_PROFILE", None)
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )

    def snakemake(self, *arguments: str, timeout: float = 600) -> str:
        """Run snakemake, which must succeed; what it printed."""
        done = self.run("snakemake", *arguments, timeout=timeout)
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace text that must be in a file."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {file}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def change(self, key: str, value: str) -> None:
        """Give a key of config.yaml another value, wherever the key stands with a value on its line."""
        path = self.folder / "config.yaml"
        pattern = rf"(?<=\b{key}: )(\[[^\]]*\]|\{{[^}}]*\}}|[^\s,}}]+)"
        text, changes = re.subn(pattern, value, path.read_text(encoding="utf-8"), count=1)
        assert changes, f"{key} has no value in config.yaml"
        path.write_text(text, encoding="utf-8")

    def planned(self, *arguments: str) -> dict[str, int]:
        """Rule -> number of jobs that a dry run lists, the final target aside."""
        printed = self.snakemake("--dry-run", *arguments)
        if "Nothing to be done" in printed:
            return {}
        table = re.findall(r"^(\w+) +(\d+)$", printed.rpartition("Job stats:")[2], flags=re.MULTILINE)
        return {rule: int(count) for rule, count in table if rule not in ("all", "total")}

    def remove(self, *paths: str) -> None:
        """Delete files and folders, which must be there."""
        for path in paths:
            place = self.folder / path
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink()

    def files(self, *arguments: str) -> set[str]:
        """What the jobs of a complete run make."""
        return {row[0] for row in self._summary(*arguments)}

    def planned_files(self, *arguments: str) -> set[str]:
        """Files that a run would make anew."""
        return {row[0] for row in self._summary(*arguments) if row[5] != "no update"}

    def _summary(self, *arguments: str) -> list[list[str]]:
        lines = self.snakemake("--summary", *arguments).splitlines()
        return [line.split("\t") for line in lines if line.count("\t") == 5][1:]
