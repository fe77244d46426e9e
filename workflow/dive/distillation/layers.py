"""The teacher's states of all decoder layers, run once, for methods that align hidden states or average them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dive.backbones.loading import Backbone, ImageFeatures
from dive.backbones.prompts import Prompt
from dive.backbones.shared import Shared
from dive.distillation.cache import cache_states, finite_parts, predicting_mask
from dive.provenance import decisive, record
from dive.steering.recording import Recording


@torch.no_grad()
def layer_states(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: Mapping[str, ImageFeatures],
    shared: Shared | None = None,
) -> list[torch.Tensor]:
    """Outputs of all decoder layers (L, T+1, width) at the predicting positions of each full prompt (T where cut).

    Raises:
        RuntimeError: they are not finite; the message names a study and the setting.
    """
    batch = backbone.collate(prompts, features, part="full", shared=shared)
    with Recording(backbone.layers) as recording:
        backbone.prefill(batch, shared and shared.new_cache())
        states = recording.at(predicting_mask(prompts, batch.mask.shape[1]))
    return finite_parts(backbone, prompts, states, dim=1)


def cache_layers(
    backbone: dict[str, Any],
    studies: str,
    demonstrations: str,
    vision: str,
    training: dict[str, Any],
    out: str,
    partial: str | None = None,
) -> None:
    """Write the K-shot teacher's layer outputs (L, n, width) of every query as shards, under the query's study_uid.

    These are L times the bytes of ``cache_teacher``. For arguments and errors see ``cache_states``.
    """
    made = record(backbone=decisive(backbone), training=training)
    cache_states(
        backbone, studies, demonstrations, vision, training, out, partial, made, layer_states, every_layer=True
    )
