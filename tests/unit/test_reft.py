"""LoReFT equals its equation, in plain loops, and its subspace keeps an orthonormal basis."""

import math

import pytest
import torch

from dive.steering.base import build_intervention

REFT = {"module": "reft", "rank": 4, "layers": "all", "positions": "answer"}
WIDTH = 32


def trained(seed: int = 0) -> torch.nn.Module:
    """One site after some training: every parameter moved, so that A is no longer orthonormal."""
    site = build_intervention(REFT, 2, WIDTH, seed).layers["1"]
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in site.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return site


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def gram_schmidt(rows: list[list[float]]) -> list[list[float]]:
    basis: list[list[float]] = []
    for row in rows:
        for known in basis:
            along = dot(row, known)
            row = [x - along * y for x, y in zip(row, known, strict=True)]
        length = math.sqrt(dot(row, row))
        basis.append([x / length for x in row])
    return basis


def test_reft_is_its_equation():
    """h' = h + R^T (W h + b - R h), computed in float64 by plain loops."""
    site = trained()
    hidden = 7 * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
    p = {name: value.detach().double().tolist() for name, value in site.named_parameters()}
    R = gram_schmidt(p["A"])
    for h, found in zip(hidden.double().tolist(), site(hidden).tolist(), strict=True):
        edit = [dot(p["W"][k], h) + p["b"][k] - dot(R[k], h) for k in range(4)]
        expected = [h[i] + sum(R[k][i] * edit[k] for k in range(4)) for i in range(WIDTH)]
        assert found == pytest.approx(expected, abs=1e-4)


def test_inside_the_subspace_the_state_is_replaced_and_outside_it_is_kept():
    site = trained()
    hidden = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        changed, R = site(hidden), site.R
        torch.testing.assert_close(changed @ R.mT, hidden @ site.W.mT + site.b, atol=1e-4, rtol=0)
        outside = torch.eye(WIDTH) - R.mT @ R
        torch.testing.assert_close(changed @ outside, hidden @ outside, atol=1e-5, rtol=0)


def test_the_basis_is_orthonormal_at_the_start_and_after_training_steps():
    site = build_intervention(REFT, 1, WIDTH, 0).layers["0"]
    with torch.no_grad():
        torch.testing.assert_close(site.R, site.A, atol=1e-6, rtol=0)  # as published: A starts orthonormal
    optimiser = torch.optim.AdamW(site.parameters(), lr=0.05)
    hidden, wanted = torch.randn(2, 16, WIDTH, generator=torch.Generator().manual_seed(5))
    losses = []
    for _ in range(20):
        loss = (site(hidden) - wanted).square().mean()
        losses.append(float(loss.detach()))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            torch.testing.assert_close(site.R @ site.R.mT, torch.eye(4), atol=1e-5, rtol=0)
    assert losses[-1] < losses[0]


def test_what_is_kept_while_nothing_is_trained_follows_the_parameters():
    site = trained()
    with torch.no_grad():
        before = site.R
        assert site.R is before
        site.load_state_dict(trained(seed=7).state_dict())
        assert not torch.equal(site.R, before)
        torch.testing.assert_close(site.R, trained(seed=7).R)
    assert site.R.requires_grad


def test_start_and_types():
    intervention = build_intervention({**REFT, "rank": 8}, 2, 4096, 0)
    site = intervention.layers["0"]
    # A linear layer's start, uniform within 1 / sqrt(d); so the zero-shot model is left at once.
    assert float(site.W.detach().abs().max()) == pytest.approx(4096**-0.5, rel=0.01)
    hidden = torch.randn(3, 4096)
    assert not torch.equal(site(hidden), hidden)
    assert site(hidden.bfloat16()).dtype == torch.bfloat16
    (group,) = {(g["lr"], g["weight_decay"]) for g in intervention.parameter_groups({"lr": 9e-4, "weight_decay": 0.0})}
    assert group == (9e-4, 0.0)
    with pytest.raises(ValueError, match="1 to 8"):
        build_intervention({**REFT, "rank": 9}, 1, 8, 0)


@pytest.mark.parametrize(("n_layers", "width", "expected"), [(34, 2560, 1_392_912), (28, 3584, 1_605_856)])
def test_parameter_count_at_the_published_shapes(n_layers, width, expected):
    """MedGemma-4B and Lingshu-7B: L (2rd + r)."""
    assert build_intervention({**REFT, "rank": 8}, n_layers, width, 0).n_parameters == expected
    assert expected == n_layers * (16 * width + 8)
