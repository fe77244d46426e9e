"""Steps at shapes that never change, as a GPU replays them, equal the plain ones; the graph itself needs a GPU."""

import pytest
import torch

from dive.backbones.loading import load_backbone
from dive.backbones.steps import RecordedSteps, Steps, grouped_queries, steps_for
from dive.steering.attach import Steering
from dive.steering.base import build_intervention
from tests.unit import tiny_models
from tests.unit.tiny_study import DIVE

FAMILIES = [*tiny_models.FAMILIES, "llava"]
LENGTH = 40  # more than Gemma's window of 24, so that windows come to begin in what was written


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request, tmp_path_factory):
    folder = tiny_models.write_tiny(tmp_path_factory.mktemp("backbone"), request.param, seed=3)
    return load_backbone(tiny_models.settings(folder))


@pytest.fixture(scope="module")
def world(backbone):
    """Five prompts of several lengths behind the same two demonstrations."""
    images = [tiny_models.image(i, size).convert("RGB") for i, size in enumerate([48, 36, 24, 48, 24, 48, 36])]
    features = {f"s{i}": backbone.embed_images([image])[0] for i, image in enumerate(images)}
    counts = {key: len(feature.tokens) for key, feature in features.items()}
    shown = [(uid, tiny_models.REPORTS[0]) for uid in ("s5", "s6")]
    return [backbone.prompts.render(f"s{i}", counts, shown) for i in range(5)], features


@torch.no_grad()
def states(kind, backbone, world, shared):
    """States after each of LENGTH tokens, of which the batch's last three rows see half."""
    prompts, features = world
    shared = backbone.share(prompts, features) if shared else None
    batch = backbone.collate(prompts, features, shared=shared)
    cache = shared.new_cache() if shared else backbone.new_cache()
    backbone.prefill(batch, cache)
    steps = kind(backbone, cache, batch.mask, batch.next_position, LENGTH)
    draw, found = torch.Generator().manual_seed(0), []
    for step in range(LENGTH):
        if step == LENGTH // 2:
            steps.keep(torch.tensor([0, 3]))
        n = 5 if step < LENGTH // 2 else 2
        found.append(steps(torch.randint(20, 300, (n,), generator=draw)).clone())
    return found


@pytest.mark.parametrize("shared", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("steered", [False, True], ids=["plain", "steered"])
def test_steps_at_fixed_shapes_equal_plain_ones(backbone, world, shared, steered):
    if steered:
        intervention = build_intervention(DIVE, len(backbone.layers), backbone.width, seed=0)
        for parameter in intervention.parameters():
            parameter.data += 0.1
        with Steering(backbone.layers, intervention):
            expected, found = (states(kind, backbone, world, shared) for kind in (Steps, RecordedSteps))
    else:
        expected, found = (states(kind, backbone, world, shared) for kind in (Steps, RecordedSteps))
    for step, (ours, plain) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0, msg=lambda text, step=step: f"step {step}: {text}")


def test_nothing_is_recorded_without_a_gpu(backbone, world):
    prompts, features = world
    batch = backbone.collate(prompts, features)
    cache = backbone.new_cache()
    with torch.no_grad():
        backbone.prefill(batch, cache)
    assert type(steps_for(backbone, cache, batch.mask, batch.next_position, 100)) is Steps


def test_grouped_queries_are_used_and_leave_nothing_behind(monkeypatch):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, n, 8, generator=draw) for heads, n in ((6, 1), (2, 5), (2, 5)))
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    layer = torch.nn.Module()
    layer.num_key_value_groups = 3
    expected, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=0.3)
    with grouped_queries():
        assert functions["sdpa"] is not sdpa_attention_forward
        # Copies of keys and values are what is saved.
        monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", None)
        found, _ = functions["sdpa"](layer, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert functions["sdpa"] is sdpa_attention_forward
