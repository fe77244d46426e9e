"""Task vector: the mean shift of hidden states that demonstrations cause, added back without them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dive.steering.base import Intervention, steered_layers

OPTIONS = {"scales": "rates"}
TRAINED = False
READS_LAYERS = True


class MeanShift(nn.Module):
    """Shift of one layer's output h at one position::

        h' = h + s v,    v = mean_{i,t} (h_T - h_S)

    v is the mean, over the predicting positions t of all training queries i, of the layer's output with demonstrations
    (teacher) minus that without (zero-shot). The one scale s is the same for all layers and chosen on validation;
    s = 0 is the zero-shot model. Nothing is trained by gradients.

    Hendel et al. (2310.15916) replace, rather than shift, the last token's state of one layer; built for one-token
    answers, for a report that acts on its first token alone. This is the mean-shift form.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("v", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, d) in the dtype of ``hidden``."""
        return (hidden.float() + self.scale * self.v).to(hidden.dtype)


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int) -> Intervention:
    """Task vector before it is fitted: ``layers``, ``positions`` of ``method``."""
    sites = {index: MeanShift(width) for index in steered_layers(method.get("layers", "all"), n_layers)}
    return Intervention(sites, positions=method.get("positions", "answer"))


def fit(intervention: Intervention, examples: Any) -> None:
    """Set v of every steered layer from the training queries (``dive.distillation.examples.Examples``)."""
    total, count = 0.0, 0
    for uid, states in examples.zero_shot():
        shift = examples.teacher(uid).double() - states["layer"].double()
        total = total + shift.sum(dim=1)
        count += shift.shape[1]
    for index in intervention.sites:
        intervention.layers[str(index)].v.copy_(total[index] / count)
