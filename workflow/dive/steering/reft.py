"""LoReFT, low-rank linear subspace representation finetuning (Wu et al., NeurIPS 2024, arXiv 2404.03592)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dive.steering.base import Intervention, steered_layers, torch_stream

OPTIONS = {"rank": "positive"}


class LowRankSubspace(nn.Module):
    """LoReFT's edit of one layer's output h inside the r-dimensional space of the rows of R, in float32::

        h' = h + R^T (W h + b - R h)

    with R (r, d) of orthonormal rows, W (r, d), b (r): 2rd + r parameters. R stays orthonormal because what is trained
    is A (r, d), and R are its rows after Gram and Schmidt: A^T = R^T T with T upper triangular and a positive diagonal.

    As published, A starts orthonormal (then R = A) and W, b as a linear layer's (uniform within 1/sqrt(d)), so that
    training does not start at the zero-shot model: W h takes the place of R h at once. Published positions are the
    first and last prompt tokens; here they are those of all methods.

    Args:
        width: d.
        rank: r, at most d.
        generator: source of A, W and b.
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        if not 0 < rank <= width:
            raise ValueError(f"methods.*.rank is {rank}; of {width} dimensions a subspace has 1 to {width}")
        self.A = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, width, device="cpu"), generator=generator))
        bound = width**-0.5
        self.W = nn.Parameter(torch.empty(rank, width, device="cpu").uniform_(-bound, bound, generator=generator))
        self.b = nn.Parameter(torch.empty(rank, device="cpu").uniform_(-bound, bound, generator=generator))
        self._kept: tuple[tuple[int, torch.device], torch.Tensor] | None = None

    @property
    def R(self) -> torch.Tensor:
        """The orthonormal rows (r, d); while nothing is trained they are computed once, not at every token."""
        if self.A.requires_grad and torch.is_grad_enabled():
            return self._orthonormal()
        # Whatever writes to A in place raises its version.
        key = (self.A._version, self.A.device)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self._orthonormal().detach())
        return self._kept[1]

    def _orthonormal(self) -> torch.Tensor:
        q, t = torch.linalg.qr(self.A.mT)
        # The factorisation is unique only up to signs.
        return q.mT * torch.where(t.diagonal() < 0, -1.0, 1.0)[:, None]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, d) in the dtype of ``hidden``."""
        h, rotation = hidden.float(), self.R
        edit = F.linear(h, self.W, self.b) - F.linear(h, rotation)
        return (h + edit @ rotation).to(hidden.dtype)


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int) -> Intervention:
    """Untrained LoReFT: ``rank`` (published: 8), ``layers``, ``positions`` of ``method``; decay on A, W and b."""
    generator = torch_stream(seed, "init")
    return Intervention(
        {
            index: LowRankSubspace(width, method["rank"], generator)
            for index in steered_layers(method.get("layers", "all"), n_layers)
        },
        positions=method.get("positions", "answer"),
        decayed=frozenset({"A", "W", "b"}),
    )
