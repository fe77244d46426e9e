"""Vision features of every image the experiments use, computed once: the tower is the expensive part."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dive.backbones.loading import ImageFeatures, load_backbone
from dive.files import read_json
from dive.progress import log, progress
from dive.provenance import record
from dive.shards import Shards, ShardWriter

BLANK = "__blank__"
"""Key of the control image that shows nothing: mid-gray, of the size of the first image of the pool."""


def open_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB; 16-bit gray is scaled, not clipped, as ``Image.convert`` would.

    Raises:
        OSError: the file is absent, truncated or no image; the message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith("I"):
                values = np.asarray(image, dtype=np.float64)
                image = Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise OSError(f"{path}: cannot be read as an image ({error})") from error


class VisionFeatures(Mapping[str, ImageFeatures]):
    """Read-only mapping from study_uid to ``ImageFeatures``, lazily from the shards of ``cache_vision``."""

    def __init__(self, folder: str | Path) -> None:
        self._shards = Shards(folder)
        self.n_tokens = {key: self._shards.notes(key)["shape"][0] for key in self._shards}

    def __getitem__(self, key: str) -> ImageFeatures:
        grid = self._shards.notes(key)["grid"]
        return ImageFeatures(self._shards[key], tuple(grid) if grid else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


def cache_vision(backbone: dict[str, Any], studies: str, pool: str, root: str, out: str) -> None:
    """Write the projected vision features of the pool's studies, and of the blank image, as shards.

    A study is represented by its first image, the one that the selection's view order puts first.

    Args:
        backbone: ``backbones.<name>`` of the config.
        studies: path of ``studies.parquet``.
        pool: path of the pool's JSON; every study in it is cached, so a new seed needs nothing new.
        root: the dataset's root, to which ``image_paths`` are relative.
        out: folder of the shards.
    """
    from dive.data.studies import read_studies

    members = read_json(pool)
    wanted = sorted({uid for group in members.values() for uid in group})
    table = read_studies(studies, columns=["study_uid", "image_paths"])
    first = {uid: paths[0] for uid, paths in zip(table["study_uid"], table["image_paths"], strict=True)}
    files = {uid: Path(root) / first[uid] for uid in wanted}
    loaded = load_backbone(backbone)
    size = backbone["batch"]["vision"]
    example = open_image(files[wanted[0]])
    blank = loaded.embed_images([Image.new("RGB", example.size, (128, 128, 128))])[0]
    bytes_each = blank.tokens.numel() * blank.tokens.element_size()
    log.info("vision features of %d images, about %.1f MB", len(wanted) + 1, bytes_each * (len(wanted) + 1) / 1e6)
    with ShardWriter(out, record(backbone=backbone)) as writer:
        writer.add(BLANK, blank.tokens, grid=blank.grid)
        batches = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        for batch in progress(batches, "vision batches"):
            images = [open_image(files[uid]) for uid in batch]
            for uid, feature in zip(batch, loaded.embed_images(images), strict=True):
                writer.add(uid, feature.tokens, grid=feature.grid)
