"""The objective equals its plain definition, whatever the chunks and micro-batches."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from dive.distillation.losses import distillation_loss, hidden_alignment, token_cross_entropy

N, WIDTH, VOCABULARY = 23, 16, 57


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY).requires_grad_(False)
    head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=draw))
    # From the global generator, whose state is what earlier tests left, it would be another in every run.
    head.bias.copy_(torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1)) / WIDTH**0.5)
    return {
        "student": torch.randn(N, WIDTH, generator=draw).requires_grad_(),
        "teacher": torch.randn(N, WIDTH, generator=draw),
        "labels": torch.randint(VOCABULARY, (N,), generator=draw),
        "weights": torch.tensor([1.0, 3.0, 10.0])[torch.randint(3, (N,), generator=draw)],
        "head": head,
    }


def totals(batch):
    return {"total_weight": float(batch["weights"].sum()), "total_positions": N}


def plain(batch, ce=0.5, kd=1.0, temperature=1.0):
    """The equations with all logits in memory, in float64."""
    head = batch["head"]
    logits = F.linear(batch["student"].double(), head.weight.double(), head.bias.double())
    goal = F.linear(batch["teacher"].double(), head.weight.double(), head.bias.double())
    weights = batch["weights"].double()
    log_p = torch.log(torch.softmax(logits, -1))
    cross_entropy = -(weights * log_p[torch.arange(N), batch["labels"]]).sum() / weights.sum()
    p, q = torch.softmax(logits / temperature, -1), torch.softmax(goal / temperature, -1)
    divergence = temperature**2 * (q * (q.log() - p.log())).sum(-1).mean()
    return ce * cross_entropy + kd * divergence, cross_entropy, divergence


def gradient_of(loss, states):
    (gradient,) = torch.autograd.grad(loss, states)
    return gradient


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 5, N, 1000])
@pytest.mark.parametrize(("ce", "kd"), [(0.5, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_loss_and_gradient_equal_the_plain_definition(batch, chunk, temperature, ce, kd):
    found = distillation_loss(**batch, **totals(batch), ce=ce, kd=kd, temperature=temperature, chunk=chunk)
    total, cross_entropy, divergence = plain(batch, ce, kd, temperature)
    torch.testing.assert_close(found.total, total.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.cross_entropy, cross_entropy.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.distillation, divergence.float() if kd else torch.zeros(()), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        gradient_of(found.total, batch["student"]), gradient_of(total, batch["student"]).float(), atol=1e-5, rtol=0
    )


def test_micro_batches_add_up_to_the_batch(batch):
    # Equal weights of the parts would be wrong: the last one is small and has another mean weight.
    whole = distillation_loss(**batch, **totals(batch))
    expected = gradient_of(whole.total, batch["student"])
    sums, gradient = torch.zeros(3), torch.zeros(N, WIDTH)
    for part in (slice(0, 10), slice(10, 20), slice(20, N)):
        rows = {k: v[part] for k, v in batch.items() if k != "head"}
        losses = distillation_loss(**rows, head=batch["head"], **totals(batch))
        sums += torch.stack(list(losses)).detach()
        gradient += gradient_of(losses.total, batch["student"])
    torch.testing.assert_close(sums, torch.stack(list(whole)).detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


def test_no_logits_are_kept_for_the_backward_pass(batch):
    loss = distillation_loss(**batch, **totals(batch), chunk=4).total
    waiting, saved = [loss.grad_fn], []
    while waiting:
        node = waiting.pop()
        saved += [tuple(t.shape) for t in getattr(node, "saved_tensors", ())]
        waiting += [following for following, _ in node.next_functions if following is not None]
    assert saved == [(N, WIDTH)]


def test_a_student_equal_to_its_teacher_has_no_divergence(batch):
    batch["teacher"] = batch["student"].detach()
    found = distillation_loss(**batch, **totals(batch), ce=0.0)
    assert float(found.distillation) == pytest.approx(0, abs=1e-6)
    assert gradient_of(found.total, batch["student"]).abs().max() < 1e-6


def test_bfloat16_states_are_compared_in_float32(batch):
    exact = distillation_loss(**batch, **totals(batch))
    low = {k: v.detach().bfloat16() if k in ("student", "teacher") else v for k, v in batch.items()}
    low["student"].requires_grad_()
    low["head"] = batch["head"].bfloat16()
    found = distillation_loss(**low, **totals(batch))
    assert found.total.dtype == torch.float32
    assert gradient_of(found.total, low["student"]).dtype == torch.bfloat16
    assert float(found.total.detach()) == pytest.approx(float(exact.total.detach()), rel=0.05)


def test_without_gradient_the_values_are_the_same(batch):
    expected = distillation_loss(**batch, **totals(batch))
    with torch.no_grad():
        found = distillation_loss(**batch, **totals(batch))
    assert not found.total.requires_grad
    assert float(found.total) == float(expected.total.detach())


def test_distillation_needs_a_teacher_of_the_same_positions(batch):
    with pytest.raises(ValueError, match="no teacher states"):
        distillation_loss(**{**batch, "teacher": None}, **totals(batch))
    with pytest.raises(ValueError, match="teacher states are"):
        distillation_loss(**{**batch, "teacher": batch["teacher"][1:]}, **totals(batch))
    alone = distillation_loss(**{**batch, "teacher": None}, **totals(batch), kd=0.0)
    assert float(alone.total.detach()) == pytest.approx(0.5 * float(alone.cross_entropy))


def test_token_cross_entropy_is_each_labels_own(batch):
    each = token_cross_entropy(batch["student"], batch["labels"], batch["head"], chunk=4)
    expected = F.cross_entropy(batch["head"](batch["student"]), batch["labels"], reduction="none")
    torch.testing.assert_close(each, expected.detach(), atol=1e-6, rtol=0)


def test_hidden_alignment_is_relative(batch):
    """Defect 9: a plain mean squared error is all massive activations."""
    student, teacher = batch["student"].detach(), batch["teacher"].clone()
    teacher[3] *= 1000
    expected = sum(
        sum((s - t) ** 2 for s, t in zip(a, b, strict=True)) / sum(t * t for t in b)
        for a, b in zip(student.tolist(), teacher.tolist(), strict=True)
    )
    assert float(hidden_alignment(student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert float(hidden_alignment(50 * student, 50 * teacher)) == pytest.approx(expected, rel=1e-5)
    share = float(hidden_alignment(student[3:4], teacher[3:4])) / expected
    assert share < 2 / N


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("taught", [True, False])
def test_the_kernel_for_gpus_computes_what_the_operations_do(dtype, temperature, taught):
    """In Triton's interpreter, in a process of its own, since Triton asks for it once, when it is imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: it comes with torch's CUDA builds")
    code = f"""
import torch
from dive.distillation.fused import loss_and_slope
from dive.distillation.losses import _loss_and_slope
draw = torch.Generator().manual_seed(0)
n, vocabulary = 5, 9001  # more than two blocks, the last one partly filled
student, teacher = (5 * torch.randn(n, vocabulary, generator=draw).to(torch.{dtype}) for _ in range(2))
student[0, :10] = float("-inf")
labels, weights = torch.tensor([10, 4095, 4096, 9000, -1]), 3 * torch.rand(n, generator=draw)  # the last is padding
for sloped in (True, False):
    given = student, teacher if {taught} else None, labels, weights, torch.tensor([0.3, 0.7]), {temperature}, sloped
    if {taught}:
        teacher[0, :10] = float("-inf")
    kernel, operations = loss_and_slope(*given), _loss_and_slope(*given)
    finite = slice(1 if {taught} else 0, None)  # 0 (log 0 - log 0) is not a number in the operations
    torch.testing.assert_close(kernel[0], operations[0], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(kernel[1][finite], operations[1][finite], atol=1e-5, rtol=1e-6)
    assert kernel[1].isfinite().all()
    assert (kernel[2] is None) == (operations[2] is None) == (not sloped)
    if sloped:
        near = 1e-6 if student.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(kernel[2][:, 10:], operations[2][:, 10:], atol=1e-6, rtol=near)
        assert not kernel[2][-1].any() and not kernel[0][-1] and not kernel[1][-1]
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
