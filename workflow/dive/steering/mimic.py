"""MimIC: the shift that demonstrations cause in attention, learned per head (Jiang et al., CVPR 2025, 2504.08851)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dive.steering.attention import AttentionShape, Heads
from dive.steering.base import Intervention, steered_layers, torch_stream

OPTIONS: dict[str, str] = {}


class GatedShift(nn.Module):
    """MimIC's shift of each head's output o before the output projection, at one position with query q::

        o' = o + mu v,   mu = exp(z1 - logaddexp(z1, z2)),   z1 = w q + b,   z2 = logsumexp_j(s q k_j)

    mu is the share of attention that demonstrations would have had: their unnormalised mass exp(z1), which a linear
    map of the query approximates, over the whole. z2 is over the keys that this position attends to under the layer's
    own causal, sliding and padding mask, and s is the layer's own factor (1 / sqrt(h)). w and v are (H, h), b is (H):
    H (2h + 1) parameters. As published, v = 0.001 randn, w ~ N(0, 0.02) (standard deviation), b = 0.

    Published code takes z2 over all keys, future and padding included, so that its gate differs between training and
    decoding; ours does not.

    Args:
        heads: H.
        head_dim: h.
        generator: source of v and w.
    """

    site = "heads"

    def __init__(self, heads: int, head_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        shape = (heads, head_dim)
        self.v = nn.Parameter(0.001 * torch.randn(shape, generator=generator, device="cpu"))
        self.w = nn.Parameter(0.02 * torch.randn(shape, generator=generator, device="cpu"))
        self.b = nn.Parameter(torch.zeros(heads))

    def forward(self, heads: Heads) -> torch.Tensor:
        """Heads at N positions -> their outputs (N, H, h), in the dtype that they had."""
        kind = torch.promote_types(heads.output.dtype, torch.float32)
        z1 = (heads.query.to(kind) * self.w).sum(-1) + self.b
        mu = (z1 - torch.logaddexp(z1, heads.log_partition)).exp()
        return (heads.output.to(kind) + mu[..., None] * self.v).to(heads.output.dtype)


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int, shape: AttentionShape) -> Intervention:
    """Untrained MimIC: ``layers``, ``positions`` of ``method`` (published: ``all``); decay on w and v."""
    generator = torch_stream(seed, "init")
    return Intervention(
        {
            index: GatedShift(shape.heads, shape.head_dim, generator)
            for index in steered_layers(method.get("layers", "all"), n_layers)
        },
        positions=method.get("positions", "all"),
        decayed=frozenset({"v", "w"}),
    )
