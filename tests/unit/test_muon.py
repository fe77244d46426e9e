"""Muon against its equations in float64, and against torch's, which orthogonalises in bfloat16."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dive.backbones.muon import COEFFICIENTS, Muon, orthogonalise
from dive.backbones.tiny import build_backbone
from tests.unit.test_tiny_backbones import FAMILIES, INSTRUCTION, SMALL, WORLD

SHAPES = [(128, 128), (384, 128), (128, 384), (1, 7)]


def matrices(shape, count=4, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for _ in range(count)]


def train(optimiser, gradients, **settings):
    """Where a matrix of ones comes to under these gradients."""
    weight = torch.nn.Parameter(torch.ones_like(gradients[0]))
    chosen = optimiser([weight], **settings)
    for gradient in gradients:
        weight.grad = gradient.clone()
        chosen.step()
    return weight.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalising_is_the_published_polynomial_of_the_singular_values(shape):
    [matrix] = matrices(shape, 1)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalise(matrix), ((left * values) @ right).float(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_nesterov_momentum_orthogonalised_scaled_and_decayed(shape):
    gradients = matrices(shape)
    mean, weight = torch.zeros(shape).double(), torch.ones(shape).double()
    for gradient in gradients:
        mean = 0.95 * mean + 0.05 * gradient.double()
        update = orthogonalise(0.95 * mean + 0.05 * gradient.double())
        weight = (1 - 0.02 * 0.01) * weight - 0.2 * math.sqrt(max(shape)) * 0.02 * update
    torch.testing.assert_close(train(Muon, gradients, lr=0.02), weight.float(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torch_s_up_to_the_rounding_of_bfloat16(shape):
    gradients = matrices(shape)
    settings = {"lr": 0.02, "weight_decay": 0.01}
    theirs = train(torch.optim.Muon, gradients, adjust_lr_fn="match_rms_adamw", **settings)
    moved = (theirs - 1).norm()
    assert (train(Muon, gradients, **settings) - theirs).norm() < 0.02 * moved
    # A difference in the scaling, the momentum or the coefficients is larger than that.
    assert (train(Muon, gradients, momentum=0.9, **settings) - theirs).norm() > 0.02 * moved


def test_a_matrix_without_gradient_stays_and_a_gradient_of_zero_only_decays():
    still, decayed = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    decayed.grad = torch.zeros(2, 2)
    Muon([still, decayed], lr=0.5, weight_decay=0.1).step()
    assert torch.equal(still, torch.ones(2, 2))
    assert torch.equal(decayed, torch.full((2, 2), 1 - 0.5 * 0.1))


def test_a_parameter_that_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"matrices.*\(3,\)"):
        Muon([torch.nn.Parameter(torch.ones(3))], lr=0.1)


class Types(TorchDispatchMode):
    """Collects the types of floating point that operations give."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.seen.setdefault(tensor.dtype, set()).add(str(func))
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_training_a_backbone_computes_nothing_in_bfloat16(family, tmp_path):
    """Slow on a processor without instructions for it; half precision only stores the pixels of the pool."""
    with Types() as types:
        short = {"family": family, "images": 32, "vision_steps": 1, "steps": 1}
        build_backbone(str(tmp_path / "a"), SMALL | short, WORLD, INSTRUCTION)
    assert torch.bfloat16 not in types.seen
    assert torch.float32 in types.seen
    assert not any("mm" in name for name in types.seen.get(torch.float16, ()))
