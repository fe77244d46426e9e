"""A GPU is waited for at most twice in a training step; counted on a pretend one, at the published depth."""

from dataclasses import replace

import pytest
import torch

from dive.distillation.run import Run
from dive.distillation.student import Student
from dive.shards import Shards, ShardWriter
from dive.steering.attach import Steering
from dive.steering.base import build_intervention
from tests.benchmarks.models import (
    LINGSHU_7B,
    MEDGEMMA_4B,
    METHOD,
    draw_features,
    draw_study,
    random_backbone,
    shrunk,
    supervision_of,
)
from tests.unit.pretend_gpu import counted, pretended, put

STATIC = {**METHOD, "rank": 0}
LIVE = {"module": "live", "positions": "answer", "optimiser": {"lr": 1e-3, "lr_a": 1e-2}}


@pytest.fixture(params=[MEDGEMMA_4B, LINGSHU_7B], ids=lambda shape: shape.family)
def on_device(request, monkeypatch):
    """A small model with as many layers as the published one, on the device, and queries with cached states."""
    shape = replace(shrunk(request.param), layers=request.param.layers)
    backbone = random_backbone(shape)
    study = draw_study(shape, 5, 8)
    features = draw_features(shape, backbone, study.queries)
    with pretended(monkeypatch):
        put(backbone.model)
        yield shape, backbone, study, features


@pytest.mark.parametrize("kept", [1e9, 0], ids=["prefixes kept", "prefixes recomputed"])
@pytest.mark.parametrize("method", [METHOD, STATIC, {**METHOD, "positions": "all"}], ids=["dive", "static", "all"])
def test_a_training_step_waits_at_most_twice(on_device, tmp_path, method, kept):
    shape, backbone, study, features = on_device
    prompts = study.render(backbone)
    with ShardWriter(tmp_path / "teacher", {}) as writer:
        for uid, prompt in zip(study.queries, prompts, strict=True):
            writer.add(uid, torch.randn(prompt.n_labels, shape.width))
    with Steering(backbone.layers, build_intervention(method, shape.layers, shape.width, seed=0)) as steering:
        student = Student(backbone, steering, prompts, features, 5, kept)
        run = Run(
            student, supervision_of(prompts, METHOD["weights"]), study.queries, Shards(tmp_path / "teacher"),
            {**method, "batch_size": 5}, METHOD["loss"], 5, 0,
        )  # fmt: skip
        first = run.step(range(5), 0)
        with counted() as counts:
            run.step(range(5), 1)
    assert first[0] > 0
    assert counts.waits.total() <= 2, counts.waits
    assert all(line.startswith("devices.py") for line in counts.uploads), counts.uploads  # and so do not wait either


def test_the_pretend_device_refuses_what_a_gpu_refuses(monkeypatch):
    with pretended(monkeypatch):
        there = torch.ones(3, device="pretend")
        with pytest.raises(RuntimeError, match="one device"):
            there + torch.ones(3)
        with counted() as counts:
            assert float(there.sum()) == 3
            assert len(there[there > 0]) == 3
            there.cpu()
        assert counts.waits.total() == 3
