"""The teacher's states of all decoder layers, run once, for methods that align hidden states or average them."""

import shutil
from pathlib import Path
from typing import Any

import torch

from dive.backbones.loading import load_backbone
from dive.backbones.vision import VisionFeatures
from dive.data.readable import readable_demonstrations
from dive.devices import explained_memory
from dive.distillation.cache import predicting_mask, read_targets, render_supervised
from dive.progress import log, progress
from dive.provenance import record
from dive.shards import ShardWriter
from dive.steering.recording import Recording


@torch.no_grad()
def cache_layers(
    backbone: dict[str, Any],
    studies: str,
    demonstrations: str,
    vision: str,
    training: dict[str, Any],
    out: str,
) -> None:
    """Write the K-shot teacher's layer outputs of every query as shards, under the query's study_uid.

    Each is (L, n, width) in the backbone's dtype: the outputs of all decoder layers at the n positions that predict
    report and terminator. These are L times the bytes of ``cache_teacher``; they are announced, and refused where the
    disk has no room, before the model runs.

    Args:
        backbone: ``backbones.<name>`` of the config; ``batch.teacher`` prompts are run at once.
        studies: path of ``studies.parquet``.
        demonstrations: path of the drawn demonstrations; ``queries`` maps a study to its K.
        vision: folder of the vision features.
        training: ``max_report_tokens``.
        out: folder of the shards.

    Raises:
        RuntimeError: no room on the disk, out of device memory, or states that are not finite.
    """
    drawn = readable_demonstrations(demonstrations, studies, vision)["queries"]
    targets = read_targets(studies)
    features = VisionFeatures(vision)
    loaded = load_backbone(backbone)
    layers = loaded.layers
    prompts = render_supervised(
        loaded, list(drawn), targets, features.n_tokens, training.get("max_report_tokens"), drawn
    )
    n_positions = sum(prompt.n_labels for prompt in prompts)
    n_bytes = len(layers) * n_positions * loaded.width * torch.finfo(loaded.dtype).bits // 8
    log.info(
        "states of %d layers at %d positions of %d queries: %.1f MB will be written, %.2f MB a query",
        len(layers), n_positions, len(prompts), n_bytes / 1e6, n_bytes / 1e6 / max(len(prompts), 1),
    )  # fmt: skip
    folder = Path(out).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < n_bytes:
        raise RuntimeError(
            f"{out} needs {n_bytes / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB; make room, or lower "
            "datasets.*.pool.queries or training.max_report_tokens"
        )
    # The longest first: too large a batch fails at once, not after hours.
    keyed = sorted(zip(drawn, prompts, strict=True), key=lambda item: -len(item[1].ids))
    size = backbone["batch"]["teacher"]
    shared = loaded.share(prompts, features)
    with ShardWriter(out, record(backbone=backbone, training=training)) as writer, Recording(layers) as recording:
        for begin in progress(range(0, len(keyed), size), "teacher batches"):
            batch = keyed[begin : begin + size]
            shown = [prompt for _, prompt in batch]
            with explained_memory("backbones.*.batch.teacher"):
                collated = loaded.collate(shown, features, part="full", shared=shared)
                loaded.prefill(collated, shared and shared.new_cache())
                mask = predicting_mask(shown, collated.mask.shape[1]).to(collated.mask.device)
                states = recording.at(mask).split([prompt.n_labels for prompt in shown], dim=1)
            for (uid, _), of_query in zip(batch, states, strict=True):
                if not of_query.isfinite().all():
                    raise RuntimeError(f"the teacher's layer states of {uid} are not finite; try dtype: float32")
                writer.add(uid, of_query)
