"""Muon: gradient descent along orthogonalised momentum (Jordan et al. 2024), with all arithmetic in float32.

``torch.optim.Muon`` orthogonalises in bfloat16 and has no option for another type. A processor without instructions for
bfloat16 (AVX-512 BF16 or AMX) computes such a product about ten times more slowly than the same product in float32.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of a Newton-Schulz step ``X <- a X + (b A + c A A) X`` with ``A = X X'``; from Jordan et al."""


def orthogonalise(matrix: torch.Tensor, steps: int = 5, eps: float = 1e-7) -> torch.Tensor:
    """Bring all singular values of a matrix near 1 by Newton-Schulz iterations; its singular vectors stay.

    The steps are chosen to lift small singular values fast: the result's lie between about 0.7 and 1.2.

    Args:
        matrix: (rows, columns).
        steps: number of iterations.
        eps: lower bound of the norm by which the matrix is divided first.

    Returns:
        (rows, columns), in the type of ``matrix``.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # the products are smaller this way round
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, in the scaling of Liu et al. (arXiv 2502.16982).

    With the gradient ``G`` of a matrix ``W`` of shape (rows, columns):

        M <- momentum M + (1 - momentum) G
        W <- (1 - lr weight_decay) W - 0.2 sqrt(max(rows, columns)) lr orthogonalise(momentum M + (1 - momentum) G)

    The factor 0.2 sqrt(max(rows, columns)) gives updates the root mean square that AdamW's have, so that both may share
    a learning rate. The same as ``torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")`` up to bfloat16's rounding.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        weight_decay: share of a weight, times the learning rate, that every step removes.
        momentum: of the running mean of gradients.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon trains matrices, not a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all matrices that have a gradient; returns the loss of ``closure``, where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                mean = state["momentum"].lerp_(parameter.grad, 1 - momentum)
                update = orthogonalise(parameter.grad.lerp(mean, momentum))
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * math.sqrt(max(parameter.shape)) * lr)
        return loss
