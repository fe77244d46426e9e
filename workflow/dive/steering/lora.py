"""LoRA on the attention's projections (Hu et al., ICLR 2022, arXiv 2106.09685), as PEFT defines it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dive.steering.attention import AttentionShape
from dive.steering.base import Intervention, steered_layers, torch_stream

OPTIONS = {"rank": "positive", "like_dive": "natural", "alpha": "rate", "dropout": "share"}


class LowRank(nn.Module):
    """LoRA's update of one linear module y = W x + c at one position::

        y' = y + (alpha / r) B A dropout(x)

    with A (r, d_in), B (d_out, r): r (d_in + d_out) parameters. As in PEFT, A is uniform in +-1 / sqrt(d_in) and
    B = 0, hence y' = y at first. The weights stay as they are, nothing is merged; the update is float32.

    Args:
        width_in: d_in.
        width_out: d_out.
        rank: r.
        alpha: scale; 32 with r = 16.
        dropout: share of x's elements dropped in training.
        generator: source of A.
    """

    def __init__(
        self, width_in: int, width_out: int, rank: int, alpha: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.scaling, self.dropout = alpha / rank, dropout
        uniform = torch.rand(rank, width_in, generator=generator, device="cpu")
        self.A = nn.Parameter((2 * uniform - 1) / width_in**0.5)
        self.B = nn.Parameter(torch.zeros(width_out, rank))

    def forward(self, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """x (N, d_in), y (N, d_out) -> y' (N, d_out) in the dtype of y."""
        x = F.dropout(given.to(self.A.dtype), self.dropout, self.training)
        update = F.linear(F.linear(x, self.A), self.B) * self.scaling
        return (output.to(torch.promote_types(output.dtype, update.dtype)) + update).to(output.dtype)


def rank_like_dive(dive_rank: int, width: int, shape: AttentionShape) -> int:
    """The rank that gives a layer about as many parameters as DIVE's 2 r d + r + d + 1 at rank ``dive_rank``."""
    dive = 2 * dive_rank * width + dive_rank + width + 1
    return max(1, round(dive / sum(into + out for into, out in shape.projections.values())))


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int, shape: AttentionShape) -> Intervention:
    """Untrained LoRA on q, k, v, o: ``rank``, ``alpha``, ``dropout``, ``layers``, ``positions`` of ``method``.

    ``like_dive`` other than 0 replaces the rank by the one with as many parameters as DIVE of that rank; the factor
    alpha / r then stays that of ``rank``.
    """
    generator = torch_stream(seed, "init")
    rank, alpha = method["rank"], method["alpha"]
    if like := method.get("like_dive", 0):
        rank, alpha = (found := rank_like_dive(like, width, shape)), alpha * found / rank

    def projections() -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                name: LowRank(into, out, rank, alpha, method["dropout"], generator)
                for name, (into, out) in shape.projections.items()
            }
        )

    return Intervention(
        {
            index: nn.ModuleDict({"projections": projections()})
            for index in steered_layers(method.get("layers", "all"), n_layers)
        },
        positions=method.get("positions", "all"),
        decayed=frozenset({"A", "B"}),
    )
