"""Vision features of every image the experiments use, computed once: the tower is the expensive part."""

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dive.backbones.files import describe_model
from dive.backbones.finite import require_finite
from dive.backbones.loading import ImageFeatures, load_backbone
from dive.contents import memory_of_workflow
from dive.data.pixels import open_image
from dive.data.readable import UNREADABLE
from dive.devices import explained_memory
from dive.files import DataError, read_json, write_json
from dive.progress import log, progress
from dive.provenance import decisive, fingerprint, record
from dive.shards import Shards, ShardWriter

BLANK = "__blank__"
"""Key of the control image that shows nothing: mid-gray, of the size of the first image of the pool."""


class VisionFeatures(Mapping[str, ImageFeatures]):
    """Read-only mapping from study_uid to ``ImageFeatures``, lazily from the shards of ``cache_vision``."""

    def __init__(self, folder: str | Path) -> None:
        self._shards = Shards(folder)
        self.n_tokens = {key: self._shards.shape(key)[0] for key in self._shards}

    def __getitem__(self, key: str) -> ImageFeatures:
        grid = self._shards.notes(key)["grid"]
        return ImageFeatures(self._shards[key], tuple(grid) if grid else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


class Decoder:
    """Decodes each study's first readable image, and keeps account of those that are not.

    Args:
        root: the dataset's root.
        paths: study_uid -> its images under the root, best view first.
        total: studies that will be asked for.
        limit: share of undecodable images, of ``total``, above which decoding stops.
    """

    def __init__(self, root: str, paths: Mapping[str, Sequence[str]], total: int, limit: float) -> None:
        self.root, self.paths, self.total, self.limit = Path(root), paths, total, limit
        self.decoded = 0
        self.unreadable: list[dict[str, str]] = []
        self.studies: list[str] = []

    def __call__(self, study: str) -> Image.Image | None:
        """The study's image; None, and the study noted, where none of its images can be decoded."""
        for path in self.paths[study]:
            self.decoded += 1
            try:
                return open_image(self.root / path)
            except OSError as error:
                self.unreadable.append({"study_uid": study, "path": path, "problem": str(error.__cause__ or error)})
                self._stop_above_limit()
        self.studies.append(study)
        return None

    def recall(self, unreadable: Sequence[dict[str, str]]) -> None:
        """Count a study whose image an earlier process decoded, after those that it could not."""
        self.decoded += len(unreadable) + 1
        self.unreadable += unreadable
        self._stop_above_limit()

    def _stop_above_limit(self) -> None:
        if len(self.unreadable) <= self.limit * self.total:
            return
        examples = "\n".join(f"  {bad['study_uid']}: {bad['path']}: {bad['problem']}" for bad in self.unreadable[:5])
        raise DataError(
            f"{len(self.unreadable)} images of a pool of {self.total} studies cannot be decoded, more than "
            f"datasets.*.selection.max_unreadable = {self.limit:g} allows. The first:\n{examples}\n"
            "Get them again, or raise the limit if they are to be left out."
        )

    def account(self) -> dict[str, Any]:
        """What ``unreadable.json`` says; by study, whatever the order in which a resumed job came to them."""
        return {
            "decoded": self.decoded,
            "images": sorted(self.unreadable, key=itemgetter("study_uid")),
            "studies": sorted(self.studies),
        }


def cache_vision(
    backbone: dict[str, Any],
    studies: str,
    pool: str,
    root: str,
    out: str,
    max_unreadable: float = 0.05,
    partial: str | None = None,
) -> None:
    """Write the projected vision features of the pool's studies, and of the blank image, as shards.

    A study is represented by its first image, the one that the selection's view order puts first; where that cannot be
    decoded, by its next one. A study without any has no features: it is listed in ``unreadable.json`` beside the
    shards, and `dive.data.readable` takes it out of everything that follows.

    Args:
        backbone: ``backbones.<name>`` of the config, without ``instruction``, which the tower does not read.
        studies: path of ``studies.parquet``.
        pool: path of the pool's JSON; every study in it is cached, so a new seed needs nothing new.
        root: the dataset's root, to which ``image_paths`` are relative.
        out: folder of the shards.
        max_unreadable: share of undecodable images above which nothing is written.
        partial: folder outside the declared outputs, in which finished shards outlive a kill; None keeps nothing.

    Raises:
        DataError: too many images cannot be decoded; the first are named.
        RuntimeError: no room on the disk, out of device memory, or features that are not finite; the message names the
            setting.
    """
    from dive.data.studies import read_studies

    members = read_json(pool)
    wanted = sorted({uid for group in members.values() for uid in group})
    table = read_studies(studies, columns=["study_uid", "image_paths"])
    decoder = Decoder(
        root, dict(zip(table["study_uid"], table["image_paths"], strict=True)), len(wanted), max_unreadable
    )
    loaded = load_backbone({"instruction": "", **backbone})
    size = backbone["batch"]["vision"]
    batches = [wanted[i : i + size] for i in range(0, len(wanted), size)]
    content = memory_of_workflow().content_below(root, {path for uid in wanted for path in decoder.paths[uid]})
    made = record(backbone=decisive(backbone), images=content)
    made_by = fingerprint([made, describe_model(backbone["path"], backbone.get("revision"))], [studies, pool])
    with ShardWriter(out, made, partial=partial, made_by=made_by) as writer:
        if len(writer):
            log.info("continuing: the features of %d images are already cached", len(writer))
        announced = False
        for batch in progress(batches, "vision batches"):
            images = {uid: decoder(uid) for uid in batch if uid not in writer}
            if not any(images.values()):
                for uid in batch:
                    if uid in writer:
                        decoder.recall(writer.notes(uid).get("unreadable", []))
                continue
            # The whole batch, though a kill may have left a part of it: other batches are other rounding.
            images = {uid: images[uid] if uid in images else decoder(uid) for uid in batch}
            images = {uid: image for uid, image in images.items() if image is not None}
            if BLANK not in writer:
                example = next(iter(images.values()))
                with explained_memory("backbones.*.batch.vision"):
                    blank = loaded.embed_images([Image.new("RGB", example.size, (128, 128, 128))])[0]
                require_finite({"the blank image": blank.tokens}, loaded.dtype)
                writer.add(BLANK, blank.tokens, grid=blank.grid)
            if not announced:
                of_one = math.prod(writer.notes(BLANK)["shape"]) * torch.finfo(loaded.dtype).bits // 8
                n_bytes = of_one * (len(wanted) + 1)
                log.info("vision features of %d images, about %.1f MB will be written", len(wanted) + 1, n_bytes / 1e6)
                writer.require(n_bytes, "datasets.*.pool")
                announced = True
            with explained_memory("backbones.*.batch.vision"):
                embedded = loaded.embed_images(list(images.values()))
            require_finite(dict(zip(images, (feature.tokens for feature in embedded), strict=True)), loaded.dtype)
            for uid, feature in zip(images, embedded, strict=True):
                if uid not in writer:
                    failed = [bad for bad in decoder.unreadable if bad["study_uid"] == uid]
                    notes = {"unreadable": failed} if failed else {}
                    writer.add(uid, feature.tokens, grid=feature.grid, **notes)
        write_json(writer.target / UNREADABLE, decoder.account())
    if decoder.unreadable:
        log.warning(
            "%d images cannot be decoded, listed in %s/%s; %d studies are left out",
            *(len(decoder.unreadable), out, UNREADABLE, len(decoder.studies)),
        )
