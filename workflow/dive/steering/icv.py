"""ICV, in-context vectors (Liu et al., ICML 2024, arXiv 2311.06668)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dive.steering.base import Intervention, steered_layers

OPTIONS = {"scales": "rates"}
TRAINED = False
DRAWS = False


class DirectedShift(nn.Module):
    """ICV's shift of one layer's output x at one position, which keeps its norm::

        x' = |x| normalize(normalize(x) + s (1 + max(0, cos(x, -v))) normalize(v))

    with s = 0.1 as published (lambda): states that point away from v are moved more. The published site is every
    MLP's output; ours is the decoder layer's, as for every method of the residual stream.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("v", torch.zeros(width))
        self.register_buffer("scale", torch.tensor(0.1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, d) in the dtype of ``hidden``."""
        x = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        norm = x.norm(dim=-1, keepdim=True)
        strength = self.scale * (1 + F.cosine_similarity(x, -self.v, dim=-1).clamp(min=0))
        moved = F.normalize(x, dim=-1) + strength[:, None] * F.normalize(self.v, dim=-1)
        return (F.normalize(moved, dim=-1) * norm).to(hidden.dtype)


def direction(differences: torch.Tensor) -> torch.Tensor:
    """First principal component plus mean of paired state differences: (N, m) -> (m,), float64.

    The component has length 1, and the sign that makes the largest of its N scores positive, as in the published code
    (scikit-learn's rule). A single difference has no component, only a mean.
    """
    rows = differences.double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    # The small (N, N) problem: m is layers times width.
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    if len(rows) < 2 or values[-1] <= 0:
        return mean
    scores = vectors[:, -1]
    scores = scores * scores[scores.abs().argmax()].sign()
    return centred.T @ scores / values[-1].sqrt() + mean


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int) -> Intervention:
    """ICV before it is fitted: ``layers``, ``positions`` of ``method``."""
    sites = {index: DirectedShift(width) for index in steered_layers(method.get("layers", "all"), n_layers)}
    return Intervention(sites, positions=method.get("positions", "answer"))


def fit(intervention: Intervention, examples: Any) -> None:
    """Set v of every steered layer from the training queries (``dive.distillation.examples.Examples``).

    A query's difference is h(with report) - h(without) at the last token of each: of the report, and of the prompt;
    the layers are flattened, so that one component is shared by all.
    """
    differences = []
    for _, states in examples.zero_shot():
        of_query = states["layer"].float()
        differences.append((of_query[:, -1] - of_query[:, 0]).flatten().cpu())
    found = direction(torch.stack(differences)).view(len(examples.backbone.layers), -1)
    for index in intervention.sites:
        intervention.layers[str(index)].v.copy_(found[index])
