"""HiFICL equals its equation, in plain loops, under the model's own masks and with cached decoding."""

import math

import pytest
import torch

from dive.backbones.loading import load_backbone
from dive.steering import attach
from dive.steering.attach import Steering
from dive.steering.attention import AttentionShape, Heads, look_inside
from dive.steering.base import build_intervention
from tests.unit.tiny_models import FAMILIES, REPORTS

HIFICL = {"module": "hificl", "pairs": 3, "rank": 2, "layers": "all", "positions": "answer"}
SHAPE = AttentionShape(heads=4, kv_heads=2, head_dim=6, projections={})


def trained(shape, method=HIFICL, n_layers=3, scale=0.5):
    """An intervention that does something: every parameter is moved away from its initial value."""
    intervention = build_intervention(method, n_layers, 32, 0, lambda: shape)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return intervention


@pytest.mark.parametrize("masked", [False, True])
def test_hificl_is_its_equation(masked):
    """o' = (sum_i exp(s q k_i) v_i + sum_j exp(s q K_j) V_j) / (Z1 + Z2), over real and virtual pairs, in float64."""
    site = trained(SHAPE).layers["1"]
    draw = torch.Generator().manual_seed(3)
    n_batch, n_query, n_key, scaling = 2, 3, 5, 0.3
    query = 2 * torch.randn(n_batch, 4, n_query, 6, generator=draw)
    key, value = 2 * torch.randn(2, n_batch, 2, n_key, 6, generator=draw)
    mask = torch.rand(n_batch, 1, n_query, n_key, generator=draw) < 0.6
    mask[..., 0] = True
    mask = mask if masked else torch.ones_like(mask)
    weights = scaling * query @ key.repeat_interleave(2, 1).mT
    weights = weights.masked_fill(~mask, -math.inf).softmax(-1)
    output = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
    found = site(Heads(output, query, key, mask if masked else None, scaling)).view(n_batch, n_query, 4, 6)

    p = {name: tensor.detach().double().tolist() for name, tensor in site.named_parameters()}
    q, k, v = query.double().tolist(), key.double().tolist(), value.double().tolist()
    for b in range(n_batch):
        for t in range(n_query):
            for h in range(4):
                pairs = [
                    (k[b][h // 2][i], v[b][h // 2][i]) for i in range(n_key) if mask[b, 0, t, i]
                ]  # two query heads share a key head
                for j in range(3):
                    K = [sum(p["K_A"][h][j][r] * p["K_B"][h][r][c] for r in range(2)) for c in range(6)]
                    V = [sum(p["V_A"][h][j][r] * p["V_B"][h][r][c] for r in range(2)) for c in range(6)]
                    pairs.append((K, V))
                each = [math.exp(scaling * sum(x * y for x, y in zip(q[b][h][t], K, strict=True))) for K, _ in pairs]
                expected = [sum(e * V[c] for e, (_, V) in zip(each, pairs, strict=True)) / sum(each) for c in range(6)]
                assert found[b, t, h].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_start_is_the_published_one():
    wide = AttentionShape(heads=8, kv_heads=4, head_dim=256, projections={})
    site = build_intervention({**HIFICL, "pairs": 8, "rank": 8}, 1, 2560, 0, lambda: wide).layers["0"]
    assert float(site.K_A.detach().std()) == pytest.approx(1, rel=0.1)
    assert float(site.V_A.detach().std()) == pytest.approx(1, rel=0.1)
    assert float(site.K_B.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not site.V_B.any()
    # Not the zero-shot model: the output is scaled by Z2 / (Z1 + Z2).
    heads = Heads(torch.ones(1, 1, 8, 256), torch.zeros(1, 8, 1, 256), torch.zeros(1, 4, 8, 256), None, 1.0)
    torch.testing.assert_close(site(heads), torch.full((1, 8, 256), 0.5))


@pytest.mark.parametrize(
    ("n_layers", "heads", "kv_heads", "head_dim", "expected"), [(34, 8, 4, 256, 1_148_928), (28, 28, 4, 128, 1_705_984)]
)
def test_parameter_count_at_the_published_shapes(n_layers, heads, kv_heads, head_dim, expected):
    """MedGemma-4B and Lingshu-7B, 8 pairs of rank 8: L H 2 (n r + r h)."""
    shape = AttentionShape(heads, kv_heads, head_dim, {})
    built = build_intervention({**HIFICL, "pairs": 8, "rank": 8}, n_layers, heads * head_dim, 0, lambda: shape)
    assert built.n_parameters == expected == n_layers * heads * 2 * (64 + 8 * head_dim)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_of_a_padded_batch_equals_the_full_forward(family, tiny_settings):
    """Grouped heads, head_dim * heads != width, a sliding window shorter than the prompt (Gemma 3)."""
    backbone = load_backbone(tiny_settings(family))
    tokenizer, model = backbone.tokenizer, backbone.model
    inside = look_inside(model, backbone.layers)
    intervention = trained(inside[0].shape, scale=1.5)
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in ("Write.", " ".join(REPORTS[:2]))
    ]
    tokenizer.padding_side = "left"
    batch = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    n_prompt = inputs["input_ids"].shape[1]
    steered = attach(model, intervention)
    written = steered.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)[:, n_prompt:]
    steered.detach()
    plain = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)[:, n_prompt:]
    assert not torch.equal(written, plain)
    ends = list(model.generation_config.eos_token_id)
    for row, answer in enumerate(written.tolist()):
        prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        ids = torch.tensor([prompt + answer])
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, len(prompt) - 1 :] = True
        with Steering(backbone.layers, intervention, inside) as steering, steering.at(mask), torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logits[:, ends] = -math.inf
        assert logits.argmax(-1).tolist() == answer
