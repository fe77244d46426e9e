"""Train the tiny backbones of config.yaml and put them among those that come with the project (`make backbones`).

This is needed when the recipe or the code that decides the weights has changed, and takes minutes for each backbone. If
the code has only been rearranged, training on the processor of the last time gives the same files as before.
"""

import logging
import tempfile
from pathlib import Path

import yaml

from dive.backbones.shipped import SHIPPED, ship_backbone
from dive.backbones.tiny import build_backbone
from dive.config import resolve
from dive.progress import log


def main() -> None:
    """Train and ship every tiny backbone of ``config.yaml`` in the present folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = resolve(yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8")))
    for name, backbone in config["backbones"].items():
        if not backbone["tiny"]:
            continue
        recipe = (backbone["tiny"], config["world"], backbone["instruction"])
        with tempfile.TemporaryDirectory() as place:
            build_backbone(f"{place}/{name}", *recipe)
            changed = ship_backbone(f"{place}/{name}", name, *recipe)
        log.info("%s: %s", SHIPPED / name, "new files" if changed else "the same files as before")
    log.info("Now run `python -m pytest -m long`, which measures whether the world still meets its criteria.")


if __name__ == "__main__":
    main()
