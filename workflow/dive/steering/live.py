"""LIVE, the learnable in-context vector (Peng et al., NeurIPS 2024, arXiv 2406.13185)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dive.steering.base import Intervention, steered_layers, torch_stream

OPTIONS = {"alpha": "number", "std": "weight", "lr_a": "rate"}


class InContextVector(nn.Module):
    """LIVE's shift of one layer's output h, which keeps its norm, in float32::

        h' = (h + a v) * |h| / |h + a v|

    with v (d) and a scalar: d + 1 parameters. As published, v ~ N(0, 0.01) (standard deviation) and a = 0.1, so that
    training does not start at the zero-shot model. The site is the decoder layer's output, as published for
    idefics-9b (for idefics2 it was the MLP's).

    Args:
        width: d.
        alpha: initial a.
        std: standard deviation of v.
        generator: source of v.
    """

    def __init__(self, width: int, alpha: float, std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.v = nn.Parameter(std * torch.randn(width, generator=generator, device="cpu"))
        self.a = nn.Parameter(torch.tensor(float(alpha)))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, d) in the dtype of ``hidden``."""
        h = hidden.float()
        shifted = h + self.a * self.v
        # The quotient first: with v = 0 it is exactly 1, and h' is exactly h.
        return (shifted * (h.norm(dim=-1, keepdim=True) / shifted.norm(dim=-1, keepdim=True))).to(hidden.dtype)


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int) -> Intervention:
    """Untrained LIVE: ``alpha`` (0.1), ``std`` (0.01), ``layers``, ``positions`` of ``method``; decay on v and a."""
    generator = torch_stream(seed, "init")
    return Intervention(
        {
            index: InContextVector(width, method.get("alpha", 0.1), method.get("std", 0.01), generator)
            for index in steered_layers(method.get("layers", "all"), n_layers)
        },
        positions=method.get("positions", "answer"),
        decayed=frozenset({"v", "a"}),
    )
