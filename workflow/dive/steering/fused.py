"""DIVE's steering of one layer as one Triton kernel forwards and one backwards; for GPUs.

As separate operations of torch the module is about a dozen kernels forwards and three times as many backwards, on every
layer. Each kernel does little work, so that a GPU waits for the next one to be launched. The equations are those of
`dive.steering.dive`, whose plain operations run on a CPU and under torch.compile. All arithmetic is float32; a product
of rank r is three TF32 products, which reach float32's precision on tensor cores.
"""

from typing import Any

import torch
import triton
import triton.language as tl

ROWS = 16
"""Positions of one program: the smallest side of a product on tensor cores."""

BLOCK = 128
"""Width that a program reads at once."""

FEW = 256
"""Positions up to which each has a program of its own: above it, reading D and U for each costs more."""


@triton.jit
def _gelu(z):
    return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _steer(
    hidden, down, bias, up, shift, gain, out, inner, scales, n, width, rank, epsilon,
    RANK: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h' of ROWS positions; with KEEP also z = D h / rms + b and rms, which the backward pass needs."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, BLOCK)
    in_rows = rows < n
    begin_of = rows.to(tl.int64) * width
    ranks = tl.arange(0, 16 if RANK == 0 else RANK)
    in_rank = ranks < rank
    squares = tl.zeros([ROWS], tl.float32)
    read = tl.zeros([ROWS, 16 if RANK == 0 else RANK], tl.float32)
    for begin in range(0, width, BLOCK):
        columns = begin + lanes
        inside = in_rows[:, None] & (columns < width)[None, :]
        h = tl.load(hidden + begin_of[:, None] + columns[None, :], inside, other=0.0).to(tl.float32)
        squares += tl.sum(h * h, 1)
        if RANK > 0:
            weights = in_rank[None, :] & (columns < width)[:, None]
            d = tl.load(down + ranks[None, :] * width + columns[:, None], weights, other=0.0)
            read = tl.dot(h, d, read, input_precision=PRECISION)
    rms = tl.maximum(tl.sqrt(squares) / tl.sqrt(width.to(tl.float32)), epsilon)
    g = tl.load(gain)
    active = read
    if RANK > 0:
        z = read / rms[:, None] + tl.load(bias + ranks, in_rank, other=0.0)[None, :]
        active = _gelu(z)
        if KEEP:
            tl.store(inner + rows[:, None] * rank + ranks[None, :], z, in_rows[:, None] & in_rank[None, :])
    if KEEP:
        tl.store(scales + rows, rms, in_rows)
    for begin in range(0, width, BLOCK):
        columns = begin + lanes
        inside = in_rows[:, None] & (columns < width)[None, :]
        h = tl.load(hidden + begin_of[:, None] + columns[None, :], inside, other=0.0).to(tl.float32)
        s = tl.zeros([ROWS, BLOCK], tl.float32) + tl.load(shift + columns, columns < width, other=0.0)[None, :]
        if RANK > 0:
            weights = in_rank[:, None] & (columns < width)[None, :]
            u = tl.load(up + columns[None, :] * rank + ranks[:, None], weights, other=0.0)
            s = tl.dot(active, u, s, input_precision=PRECISION)
        steered = h + g * rms[:, None] * s
        tl.store(out + begin_of[:, None] + columns[None, :], steered.to(out.dtype.element_ty), inside)


@triton.jit
def _steer_one(
    hidden, down, bias, up, shift, gain, out, width, rank, epsilon, RANK: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """h' of one position, for decoding: with few positions, one program for several of them leaves the GPU idle."""
    begin_of = tl.program_id(0).to(tl.int64) * width
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float32)
    ranks = tl.arange(0, 16 if RANK == 0 else RANK)
    in_rank = ranks < rank
    products = tl.zeros([16 if RANK == 0 else RANK, BLOCK], tl.float32)
    for begin in range(0, width, BLOCK):
        columns = begin + lanes
        h = tl.load(hidden + begin_of + columns, columns < width, other=0.0).to(tl.float32)
        squares += h * h
        if RANK > 0:
            weights = in_rank[:, None] & (columns < width)[None, :]
            products += h[None, :] * tl.load(down + ranks[:, None] * width + columns[None, :], weights, other=0.0)
    rms = tl.maximum(tl.sqrt(tl.sum(squares, 0)) / tl.sqrt(width.to(tl.float32)), epsilon)
    active = tl.zeros([16 if RANK == 0 else RANK], tl.float32)
    if RANK > 0:
        active = _gelu(tl.sum(products, 1) / rms + tl.load(bias + ranks, in_rank, other=0.0))
    scale = tl.load(gain) * rms
    for begin in range(0, width, BLOCK):
        columns = begin + lanes
        h = tl.load(hidden + begin_of + columns, columns < width, other=0.0).to(tl.float32)
        s = tl.load(shift + columns, columns < width, other=0.0)
        if RANK > 0:
            weights = (columns < width)[:, None] & in_rank[None, :]
            u = tl.load(up + columns[:, None] * rank + ranks[None, :], weights, other=0.0)
            s += tl.sum(u * active[None, :], 1)
        tl.store(out + begin_of + columns, (h + scale * s).to(out.dtype.element_ty), columns < width)


@triton.jit
def _unsteer(
    gradient, hidden, down, bias, up, shift, gain, inner, scales, out, of_read, of_up, of_gain, n, width, rank, epsilon,
    RANK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of h, and the rows whose products with h' gradient and h are the gradients of U, v and D."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, BLOCK)
    in_rows = rows < n
    begin_of = rows.to(tl.int64) * width
    ranks = tl.arange(0, 16 if RANK == 0 else RANK)
    in_rank = ranks < rank
    rms = tl.load(scales + rows, in_rows, other=1.0)
    g = tl.load(gain)
    along_shift = tl.zeros([ROWS], tl.float32)
    along_up = tl.zeros([ROWS, 16 if RANK == 0 else RANK], tl.float32)
    for begin in range(0, width, BLOCK):
        columns = begin + lanes
        inside = in_rows[:, None] & (columns < width)[None, :]
        slope = tl.load(gradient + begin_of[:, None] + columns[None, :], inside, other=0.0).to(tl.float32)
        along_shift += tl.sum(slope * tl.load(shift + columns, columns < width, other=0.0)[None, :], 1)
        if RANK > 0:
            weights = in_rank[None, :] & (columns < width)[:, None]
            u = tl.load(up + columns[:, None] * rank + ranks[None, :], weights, other=0.0)
            along_up = tl.dot(slope, u, along_up, input_precision=PRECISION)
    of_rms = tl.zeros([ROWS], tl.float32)
    slope_of_read = along_up
    if RANK > 0:
        pairs = rows[:, None] * rank + ranks[None, :]
        both = in_rows[:, None] & in_rank[None, :]
        z = tl.load(inner + pairs, both, other=0.0)
        active = _gelu(z)
        density = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
        of_z = g * rms[:, None] * along_up * density
        along_shift += tl.sum(tl.where(both, active * along_up, 0.0), 1)
        slope_of_read = of_z / rms[:, None]
        b = tl.load(bias + ranks, in_rank, other=0.0)[None, :]
        # The rms also divides what D reads; where it is held at its least value it does not depend on h.
        free = rms > epsilon
        of_rms = tl.where(free, -tl.sum(tl.where(both, of_z * (z - b), 0.0), 1) / rms, 0.0)
        tl.store(of_read + pairs, slope_of_read, both)
        wide = rows[:, None] * (rank + 1) + ranks[None, :]
        tl.store(of_up + wide, active * (g * rms)[:, None], both)
    tl.store(of_up + rows * (rank + 1) + rank, g * rms, in_rows)
    tl.store(of_gain + rows, rms * along_shift, in_rows)
    for begin in range(0, width, BLOCK):
        columns = begin + lanes
        inside = in_rows[:, None] & (columns < width)[None, :]
        at = begin_of[:, None] + columns[None, :]
        total = tl.load(gradient + at, inside, other=0.0).to(tl.float32)
        if RANK > 0:
            h = tl.load(hidden + at, inside, other=0.0).to(tl.float32)
            weights = in_rank[:, None] & (columns < width)[None, :]
            d = tl.load(down + ranks[:, None] * width + columns[None, :], weights, other=0.0)
            total = tl.dot(slope_of_read, d, total, input_precision=PRECISION)
            total += (of_rms / (width * rms))[:, None] * h
        tl.store(out + at, total.to(out.dtype.element_ty), inside)


def steer(
    hidden: torch.Tensor,
    down: torch.Tensor | None,
    bias: torch.Tensor | None,
    up: torch.Tensor | None,
    shift: torch.Tensor,
    gain: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """``h' = h + g rms(h).detach() (v + U gelu(D h / rms(h) + b))`` of N positions.

    Args:
        hidden: h (N, d), on a GPU, in any floating-point type.
        down: D (r, d), float32 as all parameters; None for a static shift.
        bias: b (r,), or None.
        up: U (d, r), or None.
        shift: v (d,).
        gain: g, a scalar.
        epsilon: the least rms.

    Returns:
        h' (N, d) in the type of ``hidden``.
    """
    if torch.is_grad_enabled():
        return _Steer.apply(hidden, down, bias, up, shift, gain, epsilon)
    return _forward(hidden.contiguous(), _or_none(down, bias, up, shift), shift, gain, epsilon, keep=False)[0]


def _or_none(down: Any, bias: Any, up: Any, shift: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """D, b and U; a kernel needs tensors in their place where there are none, and does not read them."""
    return (shift, shift, shift) if down is None else (down, bias, up)


def _forward(
    hidden: torch.Tensor,
    given: tuple[torch.Tensor, ...],
    shift: torch.Tensor,
    gain: torch.Tensor,
    epsilon: float,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """h', and z (N, r) and rms (N,) where they are kept for the backward pass."""
    n, width = hidden.shape
    rank = 0 if given[0] is shift else given[0].shape[0]
    sizes, out = _sizes(rank), torch.empty_like(hidden)
    inner = hidden.new_empty((n, rank) if keep else (1, 1), dtype=torch.float32)
    scales = hidden.new_empty(n if keep else 1, dtype=torch.float32)
    if not keep and n <= FEW:
        _steer_one[(n,)](
            hidden, *given, shift, gain, out, width, rank, epsilon, RANK=sizes["RANK"], BLOCK=1024, num_warps=8
        )
    else:
        _steer[(triton.cdiv(n, ROWS),)](
            hidden, *given, shift, gain, out, inner, scales, n, width, rank, epsilon, KEEP=keep, **sizes
        )
    return out, inner, scales


class _Steer(torch.autograd.Function):
    """`steer` with its gradients."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, *parameters: Any) -> torch.Tensor:
        *given, shift, gain, epsilon = parameters
        hidden, given = hidden.contiguous(), _or_none(*given, shift)
        out, inner, scales = _forward(hidden, given, shift, gain, epsilon, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(hidden, *given, shift, gain, inner, scales)
        ctx.rank, ctx.epsilon = 0 if given[0] is shift else given[0].shape[0], epsilon
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, down, bias, up, shift, gain, inner, scales = ctx.saved_tensors
        gradient = gradient.contiguous()
        (n, width), rank = hidden.shape, ctx.rank
        of_hidden = torch.empty_like(hidden)
        of_read = hidden.new_empty((n, max(rank, 1)), dtype=torch.float32)
        of_up = hidden.new_empty((n, rank + 1), dtype=torch.float32)
        of_gain = hidden.new_empty(n, dtype=torch.float32)
        _unsteer[(triton.cdiv(n, ROWS),)](
            gradient, hidden, down, bias, up, shift, gain, inner, scales, of_hidden, of_read, of_up, of_gain, n, width,
            rank, ctx.epsilon, **_sizes(rank),
        )  # fmt: skip
        of_both = of_up.T @ gradient.float()  # (r + 1, d): U's columns, then v
        if rank == 0:
            return of_hidden, None, None, None, of_both[0], of_gain.sum(), None
        of_down = of_read.T @ hidden.float()
        of_bias = (of_read * scales[:, None]).sum(0)
        return of_hidden, of_down, of_bias, of_both[:rank].T, of_both[rank], of_gain.sum(), None


def _sizes(rank: int) -> dict[str, Any]:
    padded = 0 if rank == 0 else max(16, triton.next_power_of_2(rank))
    # AMD's tensor cores have no TF32 in three products.
    precision = "ieee" if torch.version.hip else "tf32x3"
    return {"RANK": padded, "ROWS": ROWS, "BLOCK": BLOCK, "PRECISION": precision, "num_warps": 4}
