"""What the statistics of `dive.annotation.weights` are computed from: tokens and the zero-shot backbone's losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dive.annotation.weights import power_law, surprisal
from dive.backbones.loading import Backbone, ImageFeatures
from dive.backbones.prompts import Prompt
from dive.devices import explained_memory
from dive.distillation.cache import teacher_states
from dive.distillation.losses import token_cross_entropy


def report_labels(prompt: Prompt) -> list[int]:
    """y_1 .. y_T of a supervised prompt, without TERM."""
    return prompt.labels[: prompt.report_length]


def zero_shot_losses(
    backbone: Backbone, prompts: Sequence[Prompt], features: Mapping[str, ImageFeatures], batch_size: int
) -> list[torch.Tensor]:
    """-log p of every label of each prompt, TERM included: (T + 1,), float32, CPU. Nothing may steer the backbone."""
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row].ids))
    found: dict[int, torch.Tensor] = {}
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        with explained_memory("backbones.*.batch.training"):
            states = teacher_states(backbone, [prompts[row] for row in rows], features)
            for row, of_row in zip(rows, states, strict=True):
                labels = torch.tensor(prompts[row].labels, device=of_row.device)
                found[row] = token_cross_entropy(of_row, labels, backbone.head).cpu()
    return [found[row] for row in range(len(prompts))]


def relevance_of(
    weights: Mapping[str, Any],
    prompts: Sequence[Prompt],
    backbone: Backbone,
    features: Mapping[str, ImageFeatures],
    batch_size: int,
) -> list[np.ndarray | None]:
    """Relevance of the report tokens of the training queries by ``weights.source``; None where it is uniform.

    ``value_at_risk`` is uniform here: it follows the student and is decided in every step.
    """
    if weights.get("source") == "power_law":
        labels = [report_labels(prompt) for prompt in prompts]
        return power_law(labels, labels, weights["exponent"])
    if weights.get("source") == "surprisal":
        losses = zero_shot_losses(backbone, prompts, features, batch_size)
        return surprisal(
            [of_one[: p.report_length].numpy() for of_one, p in zip(losses, prompts, strict=True)], weights["exponent"]
        )
    return [None] * len(prompts)
