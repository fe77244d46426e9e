"""A GPU is waited for at most twice in a training step, once in a decoded token and once in a
batch of the teacher; counted on a pretend one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.unit.waiting import TOKENS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counts():
    """By case: lines that waited, and lines that uploaded, with how often."""
    path = os.pathsep.join([str(ROOT / "workflow"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.waiting"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_training_step_waits_at_most_twice(counts):
    cases = {case: found for case, found in counts.items() if case.startswith("training")}
    assert len(cases) == 2 * 3 * 2  # families, methods, prefixes kept or not
    for case, (waits, uploads) in cases.items():
        assert 1 <= sum(waits.values()) <= 2, (case, waits)
        # A plain upload waits too: all go through what queues them.
        assert all(line.startswith("devices.py") for line in uploads), (case, uploads)


def test_a_decoded_token_waits_once(counts):
    cases = {case: found for case, found in counts.items() if case.startswith("decoding")}
    assert len(cases) == 6
    for case, (waits, _) in cases.items():
        assert TOKENS - 1 <= sum(waits.values()) <= TOKENS, (case, waits)


def test_a_batch_of_the_teacher_waits_once_whatever_its_prompts_and_layers(counts):
    cases = {case: found for case, found in counts.items() if "_states" in case}
    assert len(cases) == 4
    for case, (waits, _) in cases.items():
        assert sum(waits.values()) == 1, (case, waits)


def test_the_pretend_device_refuses_what_a_gpu_refuses():
    code = """
import torch
from tests.unit.pretend_gpu import counted, pretend
with pretend():
    there = torch.ones(3, device="pretend")
    try:
        there + torch.ones(3)
    except RuntimeError as error:
        assert "one device" in str(error)
    else:
        raise AssertionError("mixed devices pass")
    with counted() as counts:
        assert float(there.sum()) == 3
        assert len(there[there > 0]) == 3
        there.cpu()
    assert counts.waits.total() == 3, counts
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not hasattr(torch, "pretend")  # and nothing of it is left in this process
