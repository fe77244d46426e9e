"""The kernel of RMS norms gives the numbers of the modules that it replaces; in Triton's interpreter on the CPU."""

import importlib.util
import os
import subprocess
import sys

import pytest

CODE = """
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from dive.backbones.norms import fuse_norms, plain_norms

class OtherRMSNorm(Qwen2RMSNorm):
    def forward(self, states):
        return super().forward(states) + 1

def outcome(module, states):
    given = states.clone(memory_format=torch.preserve_format).requires_grad_()
    out = module(given)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype))
    with torch.no_grad():
        assert torch.equal(module(states), out)
    return out.detach(), given.grad

draw = torch.Generator().manual_seed(1)
for kind in (Gemma3RMSNorm, Qwen2RMSNorm):
    for dtype in (torch.float32, torch.bfloat16):
        module = kind(40, eps=1e-6).to(dtype).requires_grad_(False)
        module.weight.data = torch.randn(40, generator=draw).to(dtype)
        flat = torch.randn(7, 40, generator=draw) * torch.logspace(-3, 3, 7)[:, None]
        heads = torch.randn(2, 5, 3, 40, generator=draw).transpose(1, 2)  # as queries and keys come
        gaps = torch.randn(3, 4, 80, generator=draw)[..., :40]
        for states in (flat, heads, gaps):
            states = states.to(dtype)
            expected = outcome(module, states)
            assert fuse_norms(nn.ModuleList([module])) == 1
            assert "forward" in vars(module)
            near = 2 * torch.finfo(dtype).eps
            for ours, plain in zip(outcome(module, states), expected, strict=True):
                assert ours.dtype == plain.dtype
                torch.testing.assert_close(ours, plain, rtol=4 * near, atol=near * float(plain.abs().max()))
            plain_norms(nn.ModuleList([module]))
            assert "forward" not in vars(module)
assert fuse_norms(nn.ModuleList([OtherRMSNorm(40), nn.LayerNorm(40)])) == 0
"""


def test_the_kernel_equals_the_modules():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: it comes with torch's CUDA builds")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # read once, when Triton is imported
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
