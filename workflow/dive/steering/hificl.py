"""HiFICL, in-context learning approximated by virtual key-value pairs in attention (published code, 2025)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dive.steering.attention import AttentionShape, Heads
from dive.steering.base import Intervention, steered_layers, torch_stream

OPTIONS = {"pairs": "positive", "rank": "positive"}


class VirtualPairs(nn.Module):
    """HiFICL's n virtual keys and values of each head, which take part in the head's softmax, in float32::

        K  = K_A K_B,   V = V_A V_B                                   (n, h) each
        Z1 = sum_j exp(s q K_j),   Z2 = sum_i exp(s q k_i)
        o' = (Z2 o + sum_j exp(s q K_j) V_j) / (Z1 + Z2)

    where q is the head's query, o its output, k_i the keys that the position attends to under the layer's own causal,
    sliding and padding mask (the published code sums over all), and s the layer's own scaling (1 / sqrt(h) in most
    families). K_A, V_A (H, n, r) and K_B, V_B (H, r, h): 2 H (n r + r h) parameters.

    As published, K_A, V_A ~ N(0, 1), K_B ~ N(0, 0.01) (standard deviation) and V_B = 0. That is not the zero-shot model
    at step 0, since o is scaled by Z2 / (Z1 + Z2) < 1.

    Args:
        shape: H and h of the attention.
        pairs: n.
        rank: r.
        generator: source of K_A, K_B and V_A.
    """

    site = "heads"

    def __init__(self, shape: AttentionShape, pairs: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(shape.heads, *size, generator=generator, device="cpu")

        self.K_A = nn.Parameter(normal(pairs, rank))
        self.K_B = nn.Parameter(0.01 * normal(rank, shape.head_dim))
        self.V_A = nn.Parameter(normal(pairs, rank))
        self.V_B = nn.Parameter(torch.zeros(shape.heads, rank, shape.head_dim))

    def forward(self, heads: Heads) -> torch.Tensor:
        """(N, H, h) -> (N, H, h) in the dtype of the heads' output."""
        scores = heads.scaling * torch.einsum("nhd,hpd->nhp", heads.query.float(), self.K_A @ self.K_B)
        real = heads.log_partition.float()
        total = torch.logaddexp(scores.logsumexp(-1), real)
        kept = (real - total).exp()[..., None] * heads.output.float()
        added = torch.einsum("nhp,hpd->nhd", (scores - total[..., None]).exp(), self.V_A @ self.V_B)
        return (kept + added).to(heads.output.dtype)


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int, shape: AttentionShape) -> Intervention:
    """Untrained HiFICL: ``pairs`` and ``rank`` (published: 8, 8), ``layers``, ``positions``; decay on all."""
    generator = torch_stream(seed, "init")
    return Intervention(
        {
            index: VirtualPairs(shape, method["pairs"], method["rank"], generator)
            for index in steered_layers(method.get("layers", "all"), n_layers)
        },
        positions=method.get("positions", "answer"),
        decayed=frozenset({"K_A", "K_B", "V_A", "V_B"}),
    )
