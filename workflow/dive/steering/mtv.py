"""MTV, multimodal task vectors (Huang et al., NeurIPS 2024, arXiv 2406.15334)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dive.progress import progress
from dive.steering.attention import AttentionShape, Heads
from dive.steering.base import Intervention, steered_layers, torch_stream

OPTIONS = {"prompts": "positive", "steps": "positive", "samples": "positive", "rate": "rate", "draws": "positive"}
TRAINED = False
READS_DEMONSTRATIONS = True

# As published: keeps probabilities off 0 and 1, and a standard deviation of 0 harmless.
EPSILON = 1e-3
# Training queries on which the draws are compared, as published.
COMPARED = 50


class ReplacedHeads(nn.Module):
    """MTV's replacement of chosen heads' outputs o, before the output projection, by their mean in context::

        o'_h = v_h where s_h = 1, o_h elsewhere,    v_h = mean_i o_h(i)

    v is the mean, over training queries i, of the head's output at the last prompt token with K demonstrations in the
    context. Which heads are replaced (s, one bit a head) is searched for; see ``fit``. Nothing is trained by gradients
    through the model, and with s = 0 this is the zero-shot model.

    Args:
        shape: H and h of the attention.
    """

    site = "heads"

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.register_buffer("v", torch.zeros(shape.heads, shape.head_dim))
        self.register_buffer("s", torch.zeros(shape.heads))

    def forward(self, heads: Heads) -> torch.Tensor:
        """(N, H, h) -> (N, H, h) in the dtype of the heads' output; s is (H) or, in the search, (N, H)."""
        return torch.where(self.s[..., None] > 0, self.v.to(heads.output.dtype), heads.output)


def build(n_layers: int, width: int, method: Mapping[str, Any], seed: int, shape: AttentionShape) -> Intervention:
    """MTV before its search: ``layers``, ``positions`` of ``method``, and how it searches (see ``fit``)."""
    if method.get("positions", "answer") != "answer":
        raise ValueError("methods.*.positions is all; MTV replaces heads at answer positions: set answer")
    sites = {index: ReplacedHeads(shape) for index in steered_layers(method.get("layers", "all"), n_layers)}
    intervention = Intervention(sites)
    intervention.search = {key: method[key] for key in OPTIONS}
    return intervention


def fit(intervention: Intervention, examples: Any) -> None:
    """Take the mean outputs from the training queries in context, and search for the heads by REINFORCE.

    Each of ``steps`` steps draws ``samples`` selections from Bernoulli(sigmoid(theta)), theta = -1 at first, and costs
    each on one training query without demonstrations: the mean cross-entropy of all its report's tokens (published for
    long answers). Adam at ``rate`` follows sum_k c_k d log p(s_k) / d theta, c_k being the costs less their mean, over
    their standard deviation. Of ``draws`` selections drawn in the end the cheapest on 50 training queries is kept.

    Published code replaces, while it searches, at the last token of question and answer alone; here, as in
    generation, at every predicting position.

    Args:
        intervention: from ``build``.
        examples: ``dive.distillation.examples.Examples``.
    """
    search = intervention.search
    sites = [intervention.at(index)["heads"] for index in intervention.sites]
    total, count = 0.0, 0
    for _, states in examples.in_context(("heads",), search["prompts"]):
        total, count = total + states["heads"][:, 0].double(), count + 1
    for index, site in zip(intervention.sites, sites, strict=True):
        site.v.copy_((total[index] / count).view_as(site.v))

    generator = torch_stream(examples.seed, "fit")
    theta = torch.full((len(sites), len(sites[0].s)), -1.0, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=search["rate"])
    for _ in progress(range(search["steps"]), "REINFORCE steps"):
        row = int(torch.randint(len(examples.prompts), (), generator=generator))
        probability = theta.sigmoid().clamp(EPSILON, 1 - EPSILON)
        drawn = torch.bernoulli(probability.detach().expand(search["samples"], -1, -1), generator=generator)
        costs = torch.cat([cost(sites, part, intervention, examples, row) for part in drawn.split(examples.batch_size)])
        costs = (costs - costs.mean()) / (costs.std(correction=min(1, len(costs) - 1)) + EPSILON)
        log_probability = torch.distributions.Bernoulli(probability).log_prob(drawn).sum((1, 2))
        optimiser.zero_grad()
        (costs * log_probability).sum().backward()
        optimiser.step()

    probability = theta.detach().sigmoid().clamp(EPSILON, 1 - EPSILON)
    drawn = torch.bernoulli(probability.expand(search["draws"], -1, -1), generator=generator)
    compared = range(min(COMPARED, len(examples.prompts)))
    each = [sum(float(cost(sites, one[None], intervention, examples, row)) for row in compared) for one in drawn]
    select(sites, drawn[each.index(min(each))])


def select(sites: list[ReplacedHeads], chosen: torch.Tensor) -> None:
    """Give every site its bits: ``chosen`` (sites, H), or (sites, N, H) with other bits for every position."""
    for site, bits in zip(sites, chosen, strict=True):
        site.s = bits.to(site.v.device)


def cost(
    sites: list[ReplacedHeads], drawn: torch.Tensor, intervention: Intervention, examples: Any, row: int
) -> torch.Tensor:
    """Costs on one query of several selections (S, sites, H), all in one batch: (S,)."""
    positions = examples.n_positions[row]
    select(sites, drawn.transpose(0, 1).repeat_interleave(positions, dim=1))
    return examples.cross_entropy(intervention, [row] * len(drawn)).cpu()
