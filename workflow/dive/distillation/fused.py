"""Loss and gradient of the logits in two passes over them, as one Triton kernel; for GPUs.

A vocabulary of 262,208 makes the logits of 1,024 positions 0.5 GB in bfloat16. Softmax, cross-entropy, divergence and
gradient as separate operations read and write them, mostly as float32, about thirty times; here they are read twice and
the gradient is written once. The numbers are those of `dive.distillation.losses`, which runs the separate operations on
a CPU: float32 sums of the same terms in another order.
"""

import torch
import triton
import triton.language as tl

BLOCK = 4096
"""Logits that one program reads at once."""


@triton.jit
def _loss_and_slope(
    student, teacher, labels, weights, factors, slope, cross_entropies, divergences, vocabulary, temperature,
    TAUGHT: tl.constexpr, TEMPERED: tl.constexpr, SLOPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One position: the softmax normalisers in the first pass, KL(q || r) and the gradient in the second."""
    row = tl.program_id(0).to(tl.int64)
    student += row * vocabulary
    teacher += row * vocabulary
    slope += row * vocabulary
    label = tl.load(labels + row)
    counted = (label >= 0).to(tl.float32)
    label = tl.maximum(label, 0)
    weight = tl.load(weights + row) * counted
    ce_factor = tl.load(factors)
    kd_factor = tl.load(factors + 1) * counted
    inverse = 1.0 / temperature
    lanes = tl.arange(0, BLOCK)

    # Each lane keeps a running maximum and a sum of exponentials relative to it: p of the student, r = p at tau, q.
    p_max = tl.full([BLOCK], -1e30, tl.float32)
    p_sum = tl.zeros([BLOCK], tl.float32)
    r_sum = tl.zeros([BLOCK], tl.float32)
    q_max = tl.full([BLOCK], -1e30, tl.float32)
    q_sum = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, vocabulary, BLOCK):
        inside = begin + lanes < vocabulary
        x = tl.load(student + begin + lanes, inside, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(p_max, x)
        p_sum = p_sum * tl.exp(p_max - higher) + tl.exp(x - higher)
        if TEMPERED:
            r_sum = r_sum * tl.exp((p_max - higher) * inverse) + tl.exp((x - higher) * inverse)
        p_max = higher
        if TAUGHT:
            y = tl.load(teacher + begin + lanes, inside, other=float("-inf")).to(tl.float32) * inverse
            higher = tl.maximum(q_max, y)
            q_sum = q_sum * tl.exp(q_max - higher) + tl.exp(y - higher)
            q_max = higher
    top = tl.max(p_max, 0)
    log_p_sum = top + tl.log(tl.sum(p_sum * tl.exp(p_max - top), 0))
    log_r_sum = log_p_sum
    if TEMPERED:
        log_r_sum = top * inverse + tl.log(tl.sum(r_sum * tl.exp((p_max - top) * inverse), 0))
    log_q_sum = 0.0
    if TAUGHT:
        q_top = tl.max(q_max, 0)
        log_q_sum = q_top + tl.log(tl.sum(q_sum * tl.exp(q_max - q_top), 0))

    at_label = tl.load(student + label).to(tl.float32)
    tl.store(cross_entropies + row, weight * (log_p_sum - at_label))

    divergence = tl.zeros([BLOCK], tl.float32)
    if TAUGHT or SLOPED:
        for begin in range(0, vocabulary, BLOCK):
            inside = begin + lanes < vocabulary
            x = tl.load(student + begin + lanes, inside, other=float("-inf")).to(tl.float32)
            p = tl.exp(x - log_p_sum)
            gradient = ce_factor * weight * (p - tl.where(begin + lanes == label, 1.0, 0.0))
            if TAUGHT:
                y = tl.load(teacher + begin + lanes, inside, other=float("-inf")).to(tl.float32) * inverse
                log_q = y - log_q_sum
                log_r = x * inverse - log_r_sum
                q = tl.exp(log_q)
                r = tl.exp(log_r) if TEMPERED else p
                # 0 log 0 = 0, where a logit is -inf or lies beyond the vocabulary.
                divergence += tl.where(q > 0, q * (log_q - log_r), 0.0)
                gradient += kd_factor * temperature * (r - q)
            if SLOPED:
                tl.store(slope + begin + lanes, gradient.to(slope.dtype.element_ty), inside)
    tl.store(divergences + row, counted * temperature * temperature * tl.sum(divergence, 0))


def loss_and_slope(
    student: torch.Tensor,
    teacher: torch.Tensor | None,
    labels: torch.Tensor,
    weights: torch.Tensor,
    factors: torch.Tensor,
    temperature: float,
    sloped: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Cross-entropy and divergence of each position, and the gradient of the objective with respect to its logits::

        ce_t    = w_t (-log p(y_t))
        kd_t    = tau^2 KL(q || r),   r and q: softmax(logits / tau) of student and teacher
        slope_t = ce_factor w_t (p - 1_y) + kd_factor tau (r - q)

    Args:
        student: logits (N, V), contiguous, on a GPU.
        teacher: logits (N, V) of the same dtype, or None: kd_t is 0.
        labels: y_t (N,), int64; a position with -1 is padding, and all of its numbers are 0.
        weights: w_t (N,), float32.
        factors: ce_factor and kd_factor (2,), float32, on the device.
        temperature: tau.
        sloped: whether the gradient is wanted.

    Returns:
        ce (N,) and kd (N,), float32, and the gradient (N, V) in the dtype of the logits, or None.
    """
    n, vocabulary = student.shape
    cross_entropies = torch.empty(n, dtype=torch.float32, device=student.device)
    divergences = torch.empty_like(cross_entropies)
    slope = torch.empty_like(student) if sloped else None
    _loss_and_slope[(n,)](
        student, student if teacher is None else teacher, labels, weights, factors, student if slope is None else slope,
        cross_entropies, divergences, vocabulary, float(temperature),
        TAUGHT=teacher is not None, TEMPERED=temperature != 1, SLOPED=sloped, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return cross_entropies, divergences, slope
