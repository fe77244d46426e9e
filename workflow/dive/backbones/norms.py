"""The RMS norms of a frozen backbone as one kernel each, where transformers runs seven; for GPUs.

A decoder layer of Gemma 3 has six of them: they are most of the kernels of a decoding step, and in training each kernel
passes over all states in float32. What a norm computes is found by trying: it is replaced only where the kernel gives
the same numbers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

FORMS = {"one plus the weight, in float32": True, "the weight, in the states' type": False}
"""Gemma's form and Llama's, which Qwen has too: whether 1 is added to the weight."""


@triton.jit
def _place(row, n1, n2, stride0, stride1, stride2):
    """Offset of a row of states with up to three dimensions before the last."""
    inner = row % n2
    middle = (row // n2) % n1
    outer = row // (n1 * n2)
    return outer.to(tl.int64) * stride0 + middle.to(tl.int64) * stride1 + inner.to(tl.int64) * stride2


@triton.jit
def _norm(
    states, weight, out, inverses, width, n1, n2, stride0, stride1, stride2, epsilon,
    PLUS_ONE: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row; out has the strides of states."""
    row = tl.program_id(0)
    begin = _place(row, n1, n2, stride0, stride1, stride2)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < width
    x = tl.load(states + begin + lanes, inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 0) / width + epsilon)
    w = tl.load(weight + lanes, inside, other=0.0).to(tl.float32)
    y = x * inverse
    y = y * (1.0 + w) if PLUS_ONE else y.to(out.dtype.element_ty).to(tl.float32) * w
    if KEEP:
        tl.store(inverses + row, inverse)
    tl.store(out + begin + lanes, y.to(out.dtype.element_ty), inside)


@triton.jit
def _unnorm(
    gradient, states, weight, inverses, out, width, n1, n2, stride0, stride1, stride2,
    PLUS_ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of one row of states; the weight is frozen."""
    row = tl.program_id(0)
    begin = _place(row, n1, n2, stride0, stride1, stride2)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < width
    inverse = tl.load(inverses + row)
    y = tl.load(states + begin + lanes, inside, other=0.0).to(tl.float32) * inverse
    w = tl.load(weight + lanes, inside, other=0.0).to(tl.float32)
    if PLUS_ONE:
        w += 1.0
    slope = tl.load(gradient + begin + lanes, inside, other=0.0).to(tl.float32) * w
    total = inverse * (slope - y * (tl.sum(slope * y, 0) / width))
    tl.store(out + begin + lanes, total.to(out.dtype.element_ty), inside)


class RMSNorm(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + epsilon)`` times the weight, or times 1 + the weight, over the last dimension.

    Args of ``apply``:
        states: x (..., d), at most four dimensions, the last of them contiguous, on a GPU.
        weight: (d,), without gradient.
        epsilon: added to the mean square.
        plus_one: see `FORMS`.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, epsilon: float, plus_one: bool) -> torch.Tensor:
        if states.stride(-1) != 1 or states.dim() > 4:
            states = states.contiguous()
        out = torch.empty_like(states)
        if out.stride() != states.stride():  # one with gaps or overlaps
            states = states.contiguous()
            out = torch.empty_like(states)
        keep = ctx.needs_input_grad[0]
        n = states.numel() // states.shape[-1]
        inverses = states.new_empty(n if keep else 1, dtype=torch.float32)
        layout, sizes = _layout(states), _sizes(states.shape[-1])
        _norm[(n,)](states, weight, out, inverses, *layout, epsilon, PLUS_ONE=plus_one, KEEP=keep, **sizes)
        if keep:
            ctx.save_for_backward(states, weight, inverses)
            ctx.plus_one = plus_one
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, inverses = ctx.saved_tensors
        out = torch.empty_like(states)
        if gradient.stride() != states.stride():
            gradient = torch.empty_like(states).copy_(gradient)
        layout, sizes = _layout(states), _sizes(states.shape[-1])
        _unnorm[(len(inverses),)](
            gradient, states, weight, inverses, out, *layout, PLUS_ONE=ctx.plus_one, **sizes
        )  # fmt: skip
        return out, None, None, None


def _layout(states: torch.Tensor) -> tuple[int, ...]:
    """Width, two inner sizes and three strides of up to three dimensions before the last."""
    sizes = [1] * (4 - states.dim()) + list(states.shape)
    strides = [0] * (4 - states.dim()) + list(states.stride())
    return (sizes[3], sizes[1], sizes[2], *strides[:3])


def _sizes(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(8, max(1, block // 256))}


def fuse_norms(model: nn.Module) -> int:
    """Have the RMS norms of a model run as one kernel each.

    Args:
        model: frozen, on a GPU.

    Returns:
        How many were replaced: those called RMSNorm for which one of `FORMS` gives the module's own numbers.
    """
    replaced = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not type(module).__name__.endswith("RMSNorm") or weight is None or epsilon is None or weight.dim() != 1:
            continue
        form = _form_of(module, weight, epsilon)
        if form is not None:
            module.forward = _forward(weight, epsilon, form)
            replaced += 1
    return replaced


def plain_norms(model: nn.Module) -> None:
    """Undo `fuse_norms`."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__module__", None) == __name__:
            del module.forward


def _forward(weight: torch.Tensor, epsilon: float, plus_one: bool) -> Any:
    return lambda states: RMSNorm.apply(states, weight, epsilon, plus_one)


@torch.no_grad()
def _form_of(module: nn.Module, weight: torch.Tensor, epsilon: float) -> bool | None:
    """Which of `FORMS` the module computes, to a unit in the last place; None for neither."""
    draw = torch.Generator().manual_seed(0)
    states = 3 * torch.randn(8, len(weight), generator=draw).to(weight.device, weight.dtype)
    expected = module(states)
    near = torch.finfo(weight.dtype).eps
    for plus_one in FORMS.values():
        found = RMSNorm.apply(states, weight, epsilon, plus_one)
        if torch.allclose(found.float(), expected.float(), rtol=2 * near, atol=near):
            return plus_one
    return None
