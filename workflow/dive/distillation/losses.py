"""The objective: decisive-token cross-entropy, exact distillation through the frozen head, hidden alignment."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from dive.devices import has_triton, upload

Head = Callable[[torch.Tensor], torch.Tensor]

CHUNK = 1024
"""Positions whose logits are in memory at once; 262,208 logits in float32 are 1.1 GB for 1024 positions."""


class Losses(NamedTuple):
    """Parts of the objective, each a scalar already divided by the totals of the effective batch.

    Attributes:
        total: kd * L_kd + ce * L_wce; carries the gradient.
        cross_entropy: L_wce.
        distillation: L_kd; 0 without a teacher.
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor
    distillation: torch.Tensor


def _loss_and_slope(
    student: torch.Tensor,
    teacher: torch.Tensor | None,
    labels: torch.Tensor,
    weights: torch.Tensor,
    factors: Sequence[float] | torch.Tensor,
    temperature: float,
    sloped: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`dive.distillation.fused.loss_and_slope` by operations of torch, on any device."""
    ce_factor, kd_factor = map(float, factors)
    padding = labels < 0
    label, weight = labels.clamp(min=0)[:, None], weights.masked_fill(padding, 0)[:, None]
    # A pass over the vocabulary costs as much as the head does: in place where that can be.
    log_p = log_r = F.log_softmax(student, dim=-1, dtype=torch.float32)
    cross_entropies = -(weight * log_p.gather(1, label))[:, 0]
    divergences, q = torch.zeros_like(cross_entropies), None
    if teacher is not None:
        log_q = _log_softmax_at(teacher, temperature)
        q = log_q.exp()
        if temperature != 1:
            log_r = _log_softmax_at(student, temperature)
        divergences = temperature**2 * torch.linalg.vecdot(q, log_q.sub_(log_r)).masked_fill(padding, 0)
    if not sloped:
        return cross_entropies, divergences, None
    # d(-w log p_y)/d(logits) = w (p - 1_y), and d(tau^2 KL)/d(logits) = tau (r - q), where r is p at tau
    if q is None:
        slope = log_p.exp_().mul_(ce_factor * weight)
    elif log_r is log_p:
        slope = log_p.exp_().mul_(ce_factor * weight + kd_factor).sub_(q, alpha=kd_factor)
    else:
        slope = log_p.exp_().mul_(ce_factor * weight)
        slope.add_(log_r.exp_().sub_(q), alpha=kd_factor * temperature)
    slope.scatter_add_(1, label, -ce_factor * weight)
    if padding.device.type != "cpu" or padding.any():  # elsewhere, asking costs more than a pass
        slope.masked_fill_(padding[:, None], 0)
    return cross_entropies, divergences, slope.to(student.dtype)


def _log_softmax_at(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(logits / tau), float32."""
    if temperature != 1:
        logits = logits.float() / temperature
    return F.log_softmax(logits, dim=-1, dtype=torch.float32)


def _loss_and_slope_on(device: torch.device) -> Callable[..., Any]:
    """The kernel where there is a GPU and Triton, the operations of torch elsewhere."""
    if not has_triton(device.type):
        return _loss_and_slope
    from dive.distillation.fused import loss_and_slope

    return loss_and_slope


class _ThroughFrozenHead(torch.autograd.Function):
    """Loss of states through the head, whose gradient with respect to the states is computed in the same pass.

    Only the states' gradient (N, d) is kept for the backward pass, never logits (N, V).
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        teacher: torch.Tensor | None,
        labels: torch.Tensor,
        weights: torch.Tensor,
        head: Head,
        coefficients: tuple[float | torch.Tensor, float | torch.Tensor],
        temperature: float,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ce_factor, kd_factor = coefficients
        gradient = torch.empty_like(student) if student.requires_grad else None
        loss_and_slope, factors = _loss_and_slope_on(student.device), coefficients
        if has_triton(student.device.type):
            factors = (
                upload(torch.tensor(factors), student.device) if isinstance(ce_factor, float) else torch.stack(factors)
            )
        # On the device: a number that is read makes a GPU wait.
        sums = torch.zeros(2, dtype=torch.float64, device=student.device)
        for begin in range(0, len(student), chunk):
            part = slice(begin, begin + chunk)
            with torch.set_grad_enabled(gradient is not None):
                states = student[part].detach().requires_grad_(gradient is not None)
                logits = head(states)
            taught = None if teacher is None else head(teacher[part])
            *terms, slope = loss_and_slope(
                logits.detach(), taught, labels[part], weights[part], factors, temperature, gradient is not None
            )
            sums += torch.stack(terms).sum(1, dtype=torch.float64)
            if gradient is not None:
                (gradient[part],) = torch.autograd.grad(logits, states, slope)
        ctx.save_for_backward(gradient)
        ce, kd = sums.float().unbind()
        ctx.mark_non_differentiable(ce, kd)
        return ce_factor * ce + kd_factor * kd, ce, kd

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else gradient * total.to(gradient.dtype), *[None] * 7)


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor | None,
    labels: torch.Tensor,
    weights: torch.Tensor,
    head: Head,
    total_weight: float | torch.Tensor,
    total_positions: float | torch.Tensor,
    ce: float = 0.5,
    kd: float = 1.0,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Losses:
    """Decisive-token cross-entropy and distillation of one micro-batch, at its predicting positions::

        L     = kd * L_kd + ce * L_wce
        L_wce = sum_t w_t (-log p_S(y_t)) / sum_t w_t
        L_kd  = tau^2 * mean_t KL(p_T || p_S),   p = softmax(logits / tau)

    The teacher's distribution over the full vocabulary is exact: the head is frozen, so its final normed states
    determine its logits. Both means are over the whole effective batch, so the values (and gradients) of
    micro-batches add up to the batch's: pass the batch's totals.

    Args:
        student: final normed states (N, d) that predict y_1 .. y_T and TERM; gradients flow to them.
        teacher: the same positions' states under demonstrations, (N, d), or None (kd must be 0).
        labels: the tokens predicted (N,); -1 at positions that are padding and do not count.
        weights: w_t (N,), float32.
        head: frozen output head, (n, d) -> (n, V).
        total_weight: sum of w_t over the effective batch; both totals are numbers or float32 scalars on the device.
        total_positions: number of predicting positions of the effective batch.
        ce: weight of L_wce.
        kd: weight of L_kd.
        temperature: tau.
        chunk: positions whose logits are held at once.

    Raises:
        ValueError: kd > 0 without a teacher, or states of different shapes.
    """
    if kd and teacher is None:
        raise ValueError("methods.*.loss.kd is not 0 but there are no teacher states")
    if teacher is not None and teacher.shape != student.shape:
        raise ValueError(f"teacher states are {tuple(teacher.shape)}, student states {tuple(student.shape)}")
    total, ce_sum, kd_sum = _ThroughFrozenHead.apply(
        student,
        teacher if kd else None,
        labels,
        weights,
        head,
        (ce / total_weight, kd / total_positions),
        temperature,
        chunk,
    )
    return Losses(total, ce_sum / total_weight, kd_sum / total_positions)


@torch.no_grad()
def token_cross_entropy(states: torch.Tensor, labels: torch.Tensor, head: Head, chunk: int = CHUNK) -> torch.Tensor:
    """-log p(label) of each position, (N,) float32, from final normed states (N, d)."""
    return torch.cat(
        [
            F.cross_entropy(head(states[i : i + chunk]).float(), labels[i : i + chunk], reduction="none")
            for i in range(0, len(states), chunk)
        ]
    )


def hidden_alignment(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Relative squared error of hidden states, summed over positions::

        sum_t |h_S - h_T|^2 / |h_T|^2

    Relative, because a few massive activations would dominate a plain mean squared error. L_hid is this, summed over
    layers and divided by layers times positions of the effective batch.

    Args:
        student: one layer's output (N, d) at the predicting positions.
        teacher: the teacher's, (N, d).

    Returns:
        Scalar, float32.
    """
    target = teacher.float()
    return ((student.float() - target).square().sum(-1) / target.square().sum(-1)).sum()
