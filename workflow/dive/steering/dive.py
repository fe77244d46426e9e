"""DIVE's state-conditioned steering of decoder layers and its static special case (2605.27194; our equations)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dive.steering.base import Intervention, steered_layers, torch_stream

SETTINGS = {"rank": "natural"}

# Added under the root: a state that is zero everywhere stays finite, any other is unchanged in float32.
EPSILON = 1e-12


class DynamicSteering(nn.Module):
    """Steering of one layer's output h at one position, in float32::

        x  = h / rms(h)
        s  = v + U gelu(D x + b)
        h' = h + g * rms(h).detach() * s

    with D (r, d), b (r), U (d, r), v (d), g scalar: 2rd + r + d + 1 parameters. The residual is relative to the
    scale of h, so that one learning rate serves layers whose states differ by orders of magnitude. Initially U = 0
    and v = 0, hence h' = h bit for bit, while D ~ N(0, 1/sqrt(d)) and g = 1 let the gradient reach U at once. With
    r = 0 there is no D, b, U: a static vector in units of the state's rms (d + 1 parameters).

    Args:
        width: d.
        rank: r.
        generator: source of D.
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.rank = rank
        self.v = nn.Parameter(torch.zeros(width))
        self.g = nn.Parameter(torch.ones(()))
        if rank:
            self.D = nn.Parameter(torch.randn(rank, width, generator=generator, device="cpu") / width**0.5)
            self.b = nn.Parameter(torch.zeros(rank))
            self.U = nn.Parameter(torch.zeros(width, rank))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, d) in the dtype of ``hidden``."""
        h = hidden.float()
        rms = (h.square().mean(-1, keepdim=True) + EPSILON).sqrt()
        s = self.v
        if self.rank:
            s = s + F.linear(F.gelu(F.linear(h / rms, self.D, self.b)), self.U)
        return (h + self.g * rms.detach() * s).to(hidden.dtype)


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int) -> Intervention:
    """Untrained DIVE: ``rank`` (0 = static), ``layers`` (``all`` or indices), ``positions`` of ``method``."""
    generator = torch_stream(seed, "init")
    return Intervention(
        {
            index: DynamicSteering(width, method["rank"], generator)
            for index in steered_layers(method.get("layers", "all"), n_layers)
        },
        positions=method.get("positions", "answer"),
        decayed=frozenset({"U", "D"}),
    )
