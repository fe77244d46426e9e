"""I2CL, implicit in-context learning (Li et al., ICLR 2025, arXiv 2405.14660)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dive.steering.base import Intervention, steered_layers

OPTIONS = {"strength": "number", "noise": "weight"}


class ContextVector(nn.Module):
    """I2CL's mix of one sub-module's output o (attention or MLP) with its context vector, in float32::

        o' = beta o + lambda v,    v = mean_i o_i

    v is the mean, over the training queries i, each read with its own report, of the sub-module's output at the
    report's last token; it is not trained. beta and lambda are scalars: with attention and MLP, 4 parameters a layer.
    As published, beta = 1 and lambda = 0.1 at first (not the zero-shot model), and while it is trained, noise of
    ``noise`` |o'| is added to every element. In Gemma 3 o passes a norm before it joins the residual stream; this acts
    before that norm. Published positions are all; here they are those of all methods.

    Args:
        width: d.
        strength: initial lambda.
        noise: factor of the noise.
    """

    def __init__(self, width: int, strength: float, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.register_buffer("v", torch.zeros(width))
        self.beta = nn.Parameter(torch.ones(()))
        self.lam = nn.Parameter(torch.tensor(float(strength)))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, d) in the dtype of ``output``."""
        mixed = self.beta * output.float() + self.lam * self.v
        if self.training and self.noise:
            scale = self.noise * mixed.detach().norm(dim=-1, keepdim=True)
            mixed = mixed + scale * torch.randn_like(mixed)
        return mixed.to(output.dtype)


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int) -> Intervention:
    """I2CL before it is fitted: ``strength``, ``noise``, ``layers``, ``positions`` of ``method``; decay on both."""
    return Intervention(
        {
            index: nn.ModuleDict(
                {site: ContextVector(width, method["strength"], method["noise"]) for site in ("attention", "mlp")}
            )
            for index in steered_layers(method.get("layers", "all"), n_layers)
        },
        positions=method.get("positions", "answer"),
        decayed=frozenset({"beta", "lam"}),
    )


def fit(intervention: Intervention, examples: Any) -> None:
    """Set the context vectors from the training queries (``dive.distillation.examples.Examples``)."""
    total, count = dict.fromkeys(("attention", "mlp"), 0.0), 0
    for _, states in examples.zero_shot(("attention", "mlp")):
        count += 1
        for site in total:
            total[site] = total[site] + states[site][:, -1].double()
    for index in intervention.sites:
        for site, module in intervention.at(index).items():
            module.v.copy_(total[site][index] / count)
