"""DIVE's state-conditioned steering of decoder layers and its static special case (2605.27194; our equations)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dive.devices import has_triton
from dive.steering.base import Intervention, steered_layers, torch_stream

OPTIONS = {"rank": "natural", "state": "own|shuffled"}

# States that a shuffled adapter is fed from, a layer.
BANK = 256

# The least rms: a state that is zero everywhere stays finite.
EPSILON = 1e-6


def rms_of(states: torch.Tensor) -> torch.Tensor:
    """Root mean square over the last dimension, which is kept: (..., d) -> (..., 1)."""
    return (torch.linalg.vector_norm(states, dim=-1, keepdim=True) / states.shape[-1] ** 0.5).clamp_min(EPSILON)


class DynamicSteering(nn.Module):
    """Steering of one layer's output h at one position, in float32::

        x  = h / rms(h)
        s  = v + U gelu(D x + b)
        h' = h + g * rms(h).detach() * s

    with D (r, d), b (r), U (d, r), v (d), g scalar: 2rd + r + d + 1 parameters. The residual is relative to the
    scale of h, so that one learning rate serves layers whose states differ by orders of magnitude. Initially U = 0
    and v = 0, hence h' = h bit for bit, while D ~ N(0, 1/sqrt(d)) and g = 1 let the gradient reach U at once. With
    r = 0 there is no D, b, U: a static vector in units of the state's rms (d + 1 parameters).

    A shuffled adapter (control: the same capacity, no state) is fed another position's x, out of a bank of zero-shot
    states of training positions. Which one depends on the bits of h alone: chance with respect to what h means, but
    the same in training, in decoding and in any batch.

    Args:
        width: d.
        rank: r.
        generator: source of D.
        shuffled: feed the states of a bank.
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator, shuffled: bool = False) -> None:
        super().__init__()
        self.rank = rank
        if shuffled:
            self.register_buffer("bank", torch.zeros(BANK, width))
        self.shuffled = shuffled
        self.v = nn.Parameter(torch.zeros(width))
        self.g = nn.Parameter(torch.ones(()))
        if rank:
            self.D = nn.Parameter(torch.randn(rank, width, generator=generator, device="cpu") / width**0.5)
            self.b = nn.Parameter(torch.zeros(rank))
            self.U = nn.Parameter(torch.zeros(width, rank))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, d) in the dtype of ``hidden``."""
        if not torch.compiler.is_compiling() and has_triton(hidden.device.type) and not self.shuffled:
            from dive.steering.fused import steer

            own = (self.D, self.b, self.U) if self.rank else (None, None, None)
            return steer(hidden, *own, self.v, self.g, EPSILON)
        h = hidden.float()
        rms = rms_of(h)
        s = self.v
        if self.rank:
            # D x as (D h) / rms: one pass less over the states, of which a decoding step has few and small ones.
            read = F.linear(self.bank[drawn_by(h, BANK)], self.D) if self.shuffled else F.linear(h, self.D) / rms
            s = F.linear(F.gelu(read + self.b), self.U, self.v)
        return torch.addcmul(h, self.g * rms.detach(), s).to(hidden.dtype)


def drawn_by(hidden: torch.Tensor, n: int) -> torch.Tensor:
    """A number below n for each state, from a hash of its first elements in bfloat16: (N, d) -> (N,), int64.

    Rounded, so that the noise of another batch or device rarely draws another number.
    """
    bits = hidden.detach()[:, :16].bfloat16().view(torch.int16).long()
    mixed = torch.zeros_like(bits[:, 0])
    for column in bits.unbind(1):
        mixed = (mixed * 31 + column + 32768) % 2147483647
    return mixed * 48271 % 2147483647 % n


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int) -> Intervention:
    """Untrained DIVE: ``rank`` (0 = static), ``state``, ``layers``, ``positions`` of ``method``."""
    generator = torch_stream(seed, "init")
    return Intervention(
        {
            index: DynamicSteering(width, method["rank"], generator, method.get("state") == "shuffled")
            for index in steered_layers(method.get("layers", "all"), n_layers)
        },
        positions=method.get("positions", "answer"),
        decayed=frozenset({"U", "D"}),
    )


def fit(intervention: Intervention, examples: Any) -> None:
    """Fill the banks of a shuffled adapter with states of the training queries; any other needs nothing."""
    if not any(module.shuffled for module in intervention.layers.values()):
        return
    pools = [states["layer"].float().cpu() for _, states in examples.zero_shot()]
    pool = torch.cat(pools, dim=1)
    pool = pool / rms_of(pool)
    generator = torch_stream(examples.seed, "fit")
    for index in intervention.sites:
        rows = torch.randint(pool.shape[1], (BANK,), generator=generator)
        intervention.layers[str(index)].bank.copy_(pool[index, rows])
