"""The trained tiny backbones that come with the project, so that every machine starts from the same bytes.

Trained on two processors, the same recipe gives weights that differ by rounding, and then reports that differ in words.
So the folders of the default's backbones lie under ``dive/resources/backbones``, each with a ``fingerprint.json``: the
recipe, a hash of the code that trained it, and the SHA-256 of every file. A backbone with another recipe is trained.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dive.files import WeightsError, atomic_path, read_json, sha256, write_json
from dive.progress import log
from dive.provenance import code_alone

SHIPPED = Path(__file__).resolve().parent.parent / "resources" / "backbones"
FINGERPRINT = "fingerprint.json"

DECISIVE = (
    "dive.backbones.muon",
    "dive.backbones.tiny",
    "dive.backbones.untrained",
    "dive.data.draws",
    "dive.data.synthetic.findings",
    "dive.data.synthetic.language",
    "dive.data.synthetic.phantom",
)
"""Modules whose code decides the weights. How prompts are rendered also does: `sequences_hash` stands for that."""


def find_recipe(tiny: Mapping[str, Any], world: Mapping[str, Any], instruction: str) -> Path | None:
    """The shipped folder that was trained by this recipe, whatever the code was; None where there is none."""
    for file in sorted(SHIPPED.glob(f"*/{FINGERPRINT}")):
        if read_json(file)["recipe"] == {"tiny": tiny, "world": world, "instruction": instruction}:
            return file.parent
    return None


def shipped_hash(tiny: Mapping[str, Any], world: Mapping[str, Any], instruction: str) -> str | None:
    """Hash of the files of the shipped backbone that was trained by this recipe and the present code.

    Args:
        tiny: ``backbones.<name>.tiny`` of the config.
        world: config ``world``.
        instruction: ``backbones.<name>.instruction``.

    Returns:
        64 hexadecimal digits. None where the backbone has to be trained: no backbone is shipped for the recipe, or the
        code that decides the weights has changed since.
    """
    folder = find_recipe(tiny, world, instruction)
    if folder is None or read_json(folder / FINGERPRINT)["code"] != code_alone(*DECISIVE):
        return None
    return _hash(read_json(folder / FINGERPRINT)["files"])


def provide_backbone(
    out: str, tiny: dict[str, Any], world: dict[str, Any], instruction: str, shipped: str | None
) -> None:
    """Write the folder of a tiny backbone: a copy of the shipped one, or trained.

    Args:
        out: folder to write.
        tiny, world, instruction: see `dive.backbones.tiny.build_backbone`.
        shipped: `shipped_hash` of these; None trains.

    Raises:
        WeightsError: a shipped file is missing or damaged.
    """
    folder = find_recipe(tiny, world, instruction)
    if shipped is not None and folder is not None:
        copy_backbone(folder, out)
        log.info("%s: copied the trained backbone that comes with the project", Path(out).name)
        return
    if folder is not None:
        log.warning(
            "%s: training takes minutes. The code that decides the weights has changed since the backbone that comes "
            "with the project was trained; `make backbones` trains it anew and puts it into the project.",
            Path(out).name,
        )
    from dive.backbones.tiny import build_backbone

    build_backbone(out, tiny, world, instruction)


def copy_backbone(folder: Path, out: str | Path) -> None:
    """Copy the files that a fingerprint lists, and check them.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    with atomic_path(out) as temporary:
        temporary.mkdir()
        for name, digest in read_json(folder / FINGERPRINT)["files"].items():
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
            if not (temporary / name).is_file() or sha256(temporary / name) != digest:
                raise WeightsError(
                    f"{folder / name} is missing or damaged: its content differs from {FINGERPRINT} beside it. "
                    f"Restore it (git checkout -- {folder}), or train the backbones anew (make backbones)."
                )


def ship_backbone(
    trained: str | Path, name: str, tiny: dict[str, Any], world: dict[str, Any], instruction: str
) -> None:
    """Put a trained folder among the shipped ones, with its fingerprint.

    Args:
        trained: a folder of `dive.backbones.tiny.build_backbone`, trained by the present code.
        name: of the backbone in the configuration.
        tiny, world, instruction: what it was trained from.
    """
    with atomic_path(SHIPPED / name) as temporary:
        shutil.copytree(trained, temporary, copy_function=shutil.copyfile)
        write_fingerprint(temporary, tiny, world, instruction)


def write_fingerprint(folder: Path, tiny: dict[str, Any], world: dict[str, Any], instruction: str) -> None:
    """Write the fingerprint of a folder that the present code has trained, or would train, by this recipe."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != FINGERPRINT}
    fingerprint = {
        "recipe": {"tiny": tiny, "world": world, "instruction": instruction},
        "code": code_alone(*DECISIVE),
        "sequences": sequences_hash(str(folder), tiny, world, instruction),
        "files": files,
    }
    write_json(folder / FINGERPRINT, fingerprint)


def sequences_hash(folder: str, tiny: dict[str, Any], world: dict[str, Any], instruction: str) -> str:
    """Hash of eight training sequences as the present code renders them for a trained backbone.

    They depend on the reports' language, the tokenizer, the chat template, the prompts and the family's positions, and
    not on the machine: whole numbers alone are hashed.

    Args:
        folder: of the trained backbone.
        tiny, world, instruction: what it was trained from.
    """
    from dive.backbones.loading import load_backbone
    from dive.backbones.tiny import SequenceWriter, draw_pool
    from dive.backbones.untrained import Recipe
    from dive.data.draws import stream

    recipe = Recipe(**{"seed": world["seed"], **tiny})
    backbone = load_backbone({"path": folder, "instruction": instruction, "device": "cpu", "dtype": "float32"})
    rng = stream(recipe.seed, "sequences")
    pool = draw_pool(recipe, backbone.image_processor, 64, rng, world["image_size"])
    writer = SequenceWriter(backbone, pool, recipe)
    sequences = [writer.draw(rng) for _ in range(8)]
    return _hash([[s.ids.tolist(), s.labels.tolist(), s.positions.tolist(), s.images] for s in sequences])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
