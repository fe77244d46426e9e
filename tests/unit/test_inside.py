"""Acting inside decoder layers: what is found there, MimIC's gate against plain loops, and nothing left behind."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dive.backbones.loading import load_backbone
from dive.steering import attach
from dive.steering.attach import Steering
from dive.steering.attention import AttentionShape, look_inside
from dive.steering.base import Intervention, build_intervention
from dive.steering.recording import Recording
from tests.unit.tiny_models import FAMILIES, REPORTS

MIMIC = {"module": "mimic", "layers": "all", "positions": "all"}
LORA = {"module": "lora", "rank": 3, "like_dive": 0, "alpha": 6, "dropout": 0.05, "layers": "all", "positions": "all"}
SLIDING = {"gemma3": (24, None, 24), "qwen2_5_vl": (None,) * 3, "llava": (None,) * 3}
"""Window of each layer of the tiny models."""


@pytest.fixture(scope="module", params=[*FAMILIES, "llava"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(family, tiny_settings):
    """In float64, so that what is compared is not rounding."""
    return load_backbone(tiny_settings(family, dtype="float64"))


@pytest.fixture(scope="module")
def inside(backbone):
    return look_inside(backbone.model, backbone.layers)


def awake(method, backbone, inside, seed=0, scale=0.5):
    """An intervention away from its initial values."""
    intervention = build_intervention(method, 3, backbone.width, seed, lambda: inside[0].shape).double().eval()
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return intervention


def left_padded(backbone, *texts):
    """Ids (B, T) and mask of texts, padded on the left."""
    rows = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class Attended:
    """Queries, keys, values and scale of every decoder layer's attention, taken where torch computes it."""

    def __init__(self, monkeypatch, n_layers):
        self.calls = []
        original = F.scaled_dot_product_attention

        def attend(query, key, value, *args, **kwargs):
            self.calls.append((query, key, value, kwargs["scale"]))
            return original(query, key, value, *args, **kwargs)

        monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
        self.n_layers = n_layers

    def of_layer(self, index):
        query, key, value, scale = self.calls[-self.n_layers :][index]
        groups = query.shape[1] // key.shape[1]
        return query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), scale


def test_parts_and_shape_are_found_without_names(backbone, family, inside):
    text = backbone.model.config.get_text_config()
    head_dim = 12 if family == "gemma3" else 8
    widths = {"q": (32, 4 * head_dim), "k": (32, 2 * head_dim), "v": (32, 2 * head_dim), "o": (4 * head_dim, 32)}
    for layer, parts in zip(backbone.layers, inside, strict=True):
        assert parts.shape == AttentionShape(4, 2, head_dim, {f"{k}_proj": size for k, size in widths.items()})
        assert parts.attention is layer.self_attn
        assert parts.mlp is layer.mlp
        assert parts.projections["o_proj"] is layer.self_attn.o_proj
    # Defect 3: heads * head_dim is not the width in Gemma 3.
    assert (family == "gemma3") == (text.num_attention_heads * head_dim != backbone.width)


def test_another_attention_implementation_is_refused(family, tiny_settings, backbone):
    model = load_backbone(tiny_settings(family)).model
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        look_inside(model, load_backbone(tiny_settings(family)).layers)


def test_mimic_is_its_equation_under_causal_sliding_and_padding_masks(backbone, family, inside, monkeypatch):
    """Defects 2 and 3. Plain loops over every row, head and position; what is compared is what o_proj is given."""
    ids, mask = left_padded(backbone, f"{REPORTS[0]} {REPORTS[1]}", REPORTS[3])
    assert ids.shape[1] > 24 > 0
    assert not mask.all()
    intervention = awake(MIMIC, backbone, inside)
    attended, projected = Attended(monkeypatch, 3), {}
    handles = [
        parts.projections["o_proj"].register_forward_pre_hook(lambda _, args, i=i: projected.update({i: args[0]}))
        for i, parts in enumerate(inside)
    ]
    with Steering(backbone.layers, intervention, inside) as steering, steering.at(mask.bool()), torch.no_grad():
        backbone.model(input_ids=ids, attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    for index in range(3):
        query, key, value, scale = attended.of_layer(index)
        site = intervention.layers[str(index)]
        found = projected[index].view(*ids.shape, 4, -1)
        window = SLIDING[family][index]
        # Every fifth position and the last; every head.
        for row in range(2):
            for t in {*range(0, ids.shape[1], 5), ids.shape[1] - 1}:
                if not mask[row, t]:
                    continue
                seen = [j for j in range(t + 1) if mask[row, j] and (window is None or t - j < window)]
                for head in range(4):
                    q = query[row, head, t]
                    scores = [scale * sum(float(a) * float(b) for a, b in zip(q, key[row, head, j])) for j in seen]  # noqa: B905
                    total = sum(math.exp(score) for score in scores)
                    plain = sum(math.exp(s) / total * value[row, head, j] for s, j in zip(scores, seen, strict=True))
                    mass = math.exp((site.w[head] @ q + site.b[head]).item())
                    expected = plain + mass / (mass + total) * site.v[head]
                    torch.testing.assert_close(found[row, t, head], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("method", [MIMIC, LORA], ids=["mimic", "lora"])
@pytest.mark.parametrize("positions", ["all", "answer"])
def test_cached_decoding_with_padding_equals_the_full_forward_pass(backbone, inside, method, positions):
    """Defect 2: a gate over future or padded keys would differ here."""
    texts = (f"{REPORTS[0]} {REPORTS[1]}", REPORTS[3])
    ids, mask = left_padded(backbone, *texts)
    n_prompt = ids.shape[1] - 8
    intervention = awake({**method, "positions": positions}, backbone, inside)
    steered = torch.zeros_like(mask, dtype=torch.bool)
    steered[:, 0 if positions == "all" else n_prompt - 1 :] = True
    logits = []
    with torch.no_grad(), Steering(backbone.layers, intervention, inside) as steering:
        for row, text in enumerate(texts):  # singly, without padding or cache
            own = backbone.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with steering.at(steered[row : row + 1, -own.shape[1] :]):
                logits.append(backbone.model(input_ids=own, use_cache=False).logits[0, -9:])
        cache = backbone.new_cache()
        inputs = {"past_key_values": cache, "use_cache": True}
        positions_of = (mask.cumsum(1) - 1).clamp(min=0)
        begin = 0
        found = []
        for end in range(n_prompt, ids.shape[1] + 1):
            part = slice(begin, end)
            out = backbone.model(
                input_ids=ids[:, part], attention_mask=mask[:, :end], position_ids=positions_of[:, part], **inputs
            )
            found.append(out.logits[:, -1])
            begin = end
    torch.testing.assert_close(torch.stack(found, 1), torch.stack(logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", [MIMIC, LORA], ids=["mimic", "lora"])
def test_detaching_restores_model_and_library(backbone, inside, method):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ids, mask = left_padded(backbone, REPORTS[1])
    expected = backbone.model(input_ids=ids, attention_mask=mask).logits
    steered = attach(backbone.model, awake(method, backbone, inside), layers=backbone.layers)
    assert (steered(input_ids=ids, attention_mask=mask).logits - expected).abs().max() > 1e-3
    with pytest.raises(ValueError, match="steered already"):
        attach(backbone.model, awake(MIMIC, backbone, inside), layers=backbone.layers)
    steered.detach()
    assert torch.equal(backbone.model(input_ids=ids, attention_mask=mask).logits, expected)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is function
    assert not any(m._forward_hooks or m._forward_pre_hooks for layer in backbone.layers for m in layer.modules())


def test_lora_is_its_equation_and_starts_at_zero_shot(backbone, inside):
    ids, mask = left_padded(backbone, REPORTS[0], REPORTS[2])
    with torch.no_grad():
        zero_shot = backbone.model(input_ids=ids, attention_mask=mask).logits
        untrained = build_intervention(LORA, 3, 32, 0, lambda: inside[0].shape)
        with Steering(backbone.layers, untrained.eval(), inside):
            assert torch.equal(backbone.model(input_ids=ids, attention_mask=mask).logits, zero_shot)
        site = awake(LORA, backbone, inside).layers["1"]["projections"]
        for name, module in inside[1].projections.items():
            x = torch.randn(2, module.in_features, dtype=torch.float64)
            y = module(x)
            for n in range(2):
                low = [sum(float(a) * float(b) for a, b in zip(row, x[n])) for row in site[name].A]  # noqa: B905
                for i in range(module.out_features):
                    expected = float(y[n, i]) + 6 / 3 * sum(float(site[name].B[i, r]) * low[r] for r in range(3))
                    assert float(site[name](x, y)[n, i]) == pytest.approx(expected, abs=1e-9)


def test_lora_drops_inputs_in_training_only(backbone, inside):
    site = awake({**LORA, "dropout": 0.5}, backbone, inside).layers["0"]["projections"]["q_proj"]
    x, y = torch.randn(4, 32, dtype=torch.float64), torch.zeros(4, site.B.shape[0], dtype=torch.float64)
    assert torch.equal(site(x, y), site(x, y))
    site.train()
    assert not torch.equal(site(x, y), site(x, y))


@pytest.mark.parametrize(
    ("shape", "n_layers", "width", "mimic", "lora"),
    [
        ((8, 4, 256), 34, 2560, 139_536, 8_912_896),
        ((28, 4, 128), 28, 3584, 201_488, 10_092_544),
    ],
    ids=["medgemma-4b", "lingshu-7b"],
)
def test_parameter_counts_at_the_published_shapes(shape, n_layers, width, mimic, lora):
    """method.md's figures: MimIC L H (2h + 1), LoRA r (d_in + d_out) over q, k, v, o; r = 5 is DIVE-sized."""
    heads, kv_heads, head_dim = shape
    inner, kv = heads * head_dim, kv_heads * head_dim
    sizes = {"q": (width, inner), "k": (width, kv), "v": (width, kv), "o": (inner, width)}
    measured = AttentionShape(heads, kv_heads, head_dim, sizes)

    def count(method):
        return build_intervention(method, n_layers, width, 0, lambda: measured).n_parameters

    assert count(MIMIC) == mimic == n_layers * heads * (2 * head_dim + 1)
    assert count({**LORA, "rank": 16}) == lora == n_layers * 16 * sum(sum(size) for size in sizes.values())
    dive = build_intervention({"module": "dive", "rank": 16}, n_layers, width, 0).n_parameters
    like = count({**LORA, "rank": 16, "like_dive": 16})
    assert like * 16 == lora * 5
    assert abs(like - dive) / dive < 0.06


class Doubled(nn.Module):
    """Twice the output of the sub-module that it is on."""

    def __init__(self, site):
        super().__init__()
        self.site = site

    def forward(self, hidden):
        return 2 * hidden


@pytest.mark.parametrize("site", ["attention", "mlp"])
def test_the_outputs_of_attention_and_mlp_can_be_steered(backbone, inside, site):
    ids, mask = left_padded(backbone, REPORTS[1])
    found = {}
    module = getattr(inside[1], site)
    handle = module.register_forward_hook(lambda *a: found.update(plain=a[2][0] if isinstance(a[2], tuple) else a[2]))
    with Recording(backbone.layers, [site, "heads"], inside) as recording, torch.no_grad():
        backbone.model(input_ids=ids, attention_mask=mask)
        before = recording.at(mask.bool(), site)
        assert recording.at(mask.bool(), "heads").shape[2] == inside[0].shape.heads * inside[0].shape.head_dim
    assert torch.equal(before[1], found["plain"][mask.bool()])
    handle.remove()
    doubling = Intervention({1: nn.ModuleDict({site: Doubled(site)})}, positions="all")
    layers = backbone.layers
    with Steering(layers, doubling, inside), Recording(layers, [site], inside) as recording, torch.no_grad():
        backbone.model(input_ids=ids, attention_mask=mask)
        after = recording.at(mask.bool(), site)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], 2 * before[1])
