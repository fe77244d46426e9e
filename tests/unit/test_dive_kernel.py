"""DIVE's kernels for GPUs compute what its plain operations do; run in Triton's interpreter on the CPU."""

import importlib.util
import os
import subprocess
import sys

import pytest

CODE = """
import torch
from dive.steering.dive import EPSILON, DynamicSteering
from dive.steering.fused import FEW, steer

def outcome(steer, states, module):
    hidden = states.clone().requires_grad_()
    module.zero_grad()
    out = steer(hidden)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype))
    return [out.detach(), hidden.grad, *[parameter.grad for parameter in module.parameters()]]

draw = torch.Generator().manual_seed(1)
module = DynamicSteering(200, RANK, torch.Generator().manual_seed(0))  # no multiple of a block
own = (module.D, module.b, module.U) if RANK else (None, None, None)
kernel = lambda hidden: steer(hidden, *own, module.v, module.g, EPSILON)
for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    # Rows of scales that differ as layers' do, one massive element, one row of zeros; 37 rows are no multiple either.
    states = torch.randn(37, 200, generator=draw) * torch.logspace(-2, 3, 37)[:, None]
    states[3, 7], states[5] = 4000.0, 0.0
    states = states.to(dtype)
    assert torch.equal(kernel(states), states)  # untrained, it is the identity
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    for ours, plain in zip(outcome(kernel, states, module), outcome(module, states, module), strict=True):
        assert ours.dtype == plain.dtype
        assert (ours.float() - plain.float()).norm() <= near * plain.float().norm()
    with torch.no_grad():  # few positions have a kernel of their own, many the one of training
        few, many = kernel(states), kernel(states.repeat(FEW // 37 + 1, 1))
        for ours in (few, many[:37]):
            assert (ours.float() - module(states).float()).norm() <= near * few.float().norm()
    torch.nn.init.zeros_(module.v)
    if RANK:
        torch.nn.init.zeros_(module.U)
"""


@pytest.mark.parametrize("rank", [0, 3, 16, 20])
def test_the_kernels_equal_the_plain_operations(rank):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: it comes with torch's CUDA builds")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # read once, when Triton is imported
    command = [sys.executable, "-c", CODE.replace("RANK", str(rank))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
