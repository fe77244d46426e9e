"""Make the tiny backbones that come with the project those of the present recipe and code (`make backbones`).

Needed when the recipe or the code that decides the weights has changed. Training takes minutes for each backbone, and
gives other bytes on another processor. So if only the code has changed, a short training by the old code and one by the
new code are compared first: where both give the same bytes, the shipped files stay and their fingerprint is renewed.
"""

import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import yaml

from dive.backbones.shipped import FINGERPRINT, SHIPPED, find_recipe, ship_backbone, write_fingerprint
from dive.backbones.tiny import build_backbone
from dive.config import resolve
from dive.files import sha256
from dive.progress import log

SHORT = {"images": 400, "vision_steps": 12, "steps": 12}
"""Changes of the recipe for the short training, which passes through every stage."""

PACKAGE = Path(__file__).resolve().parents[2]
"""The folder from which the present code is imported."""


def train_short(package: Path, tiny: dict[str, Any], world: dict[str, Any], instruction: str) -> dict[str, str]:
    """SHA-256 of every file that the code in a folder leaves after a few steps, run by a process of its own.

    Args:
        package: folder that holds the package ``dive``.
        tiny, world, instruction: what is trained from, see `build_backbone`; ``tiny`` is changed by `SHORT`.
    """
    call = "import json, sys; from dive.backbones.tiny import build_backbone; build_backbone(*json.loads(sys.argv[1]))"
    with tempfile.TemporaryDirectory() as place:
        arguments = json.dumps([f"{place}/short", {**tiny, **SHORT}, world, instruction])
        environment = {**os.environ, "PYTHONPATH": str(package)}
        subprocess.run([sys.executable, "-c", call, arguments], env=environment, check=True)
        return {path.name: sha256(path) for path in Path(place, "short").iterdir()}


def still_trained(folder: Path, recipe: tuple[dict[str, Any], dict[str, Any], str]) -> bool:
    """Whether the present code trains what the code of the commit trained that last wrote a shipped folder.

    False also where there is no such commit.
    """
    git = ["git", "-C", str(folder)]
    found = subprocess.run([*git, "log", "-1", "--format=%H", "--", FINGERPRINT], capture_output=True, text=True)
    if found.returncode or not found.stdout.strip():
        return False
    with tempfile.TemporaryDirectory() as place:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True)
        archive = ["git", "-C", top.stdout.strip(), "archive", found.stdout.strip(), "workflow/dive"]
        content = subprocess.run(archive, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(content)) as files:
            files.extractall(place, filter="data")
        return train_short(Path(place, "workflow"), *recipe) == train_short(PACKAGE, *recipe)


def main() -> None:
    """Renew what is shipped of every tiny backbone of ``config.yaml`` in the present folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = resolve(yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8")))
    for name, backbone in config["backbones"].items():
        if not backbone["tiny"]:
            continue
        recipe = (backbone["tiny"], config["world"], backbone["instruction"])
        if find_recipe(*recipe) == SHIPPED / name and still_trained(SHIPPED / name, recipe):
            write_fingerprint(SHIPPED / name, *recipe)
            log.info("%s: a short training by the present code gives the same bytes, so the files stay", SHIPPED / name)
            continue
        with tempfile.TemporaryDirectory() as place:
            build_backbone(f"{place}/{name}", *recipe)
            ship_backbone(f"{place}/{name}", name, *recipe)
        log.info("%s: trained anew. Now run `python -m pytest -m long`.", SHIPPED / name)


if __name__ == "__main__":
    main()
