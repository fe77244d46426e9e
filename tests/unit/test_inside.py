"""Acting inside decoder layers: what is found there, MimIC's gate against plain loops, and nothing left behind."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dive.backbones.layers import find_decoder_layers
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


@pytest.mark.parametrize("method", [MIMIC, LORA, {**MIMIC, "positions": "answer"}], ids=["mimic", "lora", "answer"])
def test_generate_with_left_padding_and_beams_is_the_full_forward_pass(backbone, inside, method):
    texts = ("Write.", REPORTS[3])
    ids, mask = left_padded(backbone, *texts)
    intervention = awake(method, backbone, inside, scale=0.3)
    model = attach(backbone.model, intervention, layers=backbone.layers)
    arguments = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    greedy = model.generate(input_ids=ids, attention_mask=mask, **arguments).sequences[:, ids.shape[1] :]
    beams = model.generate(
        input_ids=ids[1:], attention_mask=mask[1:], num_beams=3, output_scores=True, **arguments, length_penalty=0.0
    )
    model.detach()
    n_prompt = [int(row.sum()) for row in mask]

    def scored(row, answer):
        """log p of each token of ``answer``, from one pass without cache or padding."""
        full = torch.cat([ids[row][mask[row].bool()], answer])[None]
        steered = torch.ones_like(full, dtype=torch.bool)
        if method["positions"] == "answer":
            steered[:, : n_prompt[row] - 1] = False
        with Steering(backbone.layers, intervention, inside) as steering, steering.at(steered), torch.no_grad():
            return backbone.model(input_ids=full, use_cache=False).logits[0, n_prompt[row] - 1 : -1].log_softmax(-1)

    for row, answer in enumerate(greedy):
        logits = scored(row, answer)
        stops = set(backbone.model.generation_config.eos_token_id)
        end = next((t + 1 for t, token in enumerate(answer.tolist()) if token in stops), len(answer))
        assert torch.equal(logits.argmax(-1)[:end], answer[:end])
    answer = beams.sequences[0, ids.shape[1] :]
    total = scored(1, answer).gather(1, answer[:, None]).sum()
    if not set(answer.tolist()) & set(backbone.model.generation_config.eos_token_id):
        torch.testing.assert_close(beams.sequences_scores[0].double(), total, atol=1e-3, rtol=0)


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


def published(family):
    """MedGemma-4B's and Lingshu-7B's classes at their published shapes; no memory is taken under fake tensors."""
    if family == "gemma3":
        from transformers.models.gemma3.configuration_gemma3 import Gemma3Config
        from transformers.models.gemma3.modeling_gemma3 import Gemma3ForConditionalGeneration

        text = {"vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
        text |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 1024}
        return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text))
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

    text = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4}
    text |= {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text))


@pytest.mark.parametrize(
    ("family", "mimic", "lora", "dive"),
    [("gemma3", 139_536, 8_912_896, 2_872_898), ("qwen2_5_vl", 201_488, 10_092_544, 3_312_092)],
    ids=["medgemma-4b", "lingshu-7b"],
)
def test_parameter_counts_at_the_published_shapes(family, mimic, lora, dive, monkeypatch):
    """Counts of method.md: MimIC L H (2h + 1), LoRA r (d_in + d_out) over q, k, v, o; r = 5 is DIVE-sized."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers.modeling_utils import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "init_weights", lambda model: None)  # its draws look at values
    with FakeTensorMode():
        model = published(family)
        layers = find_decoder_layers(model)
        shape = look_inside(model, layers)[0].shape
    n_layers, width = len(layers), model.config.get_text_config().hidden_size

    def count(method):
        return build_intervention(method, n_layers, width, 0, lambda: shape).n_parameters

    assert count(MIMIC) == mimic == n_layers * shape.heads * (2 * shape.head_dim + 1)
    per_rank = n_layers * sum(sum(sizes) for sizes in shape.projections.values())
    assert count({**LORA, "rank": 16}) == lora == 16 * per_rank
    assert count({"module": "dive", "rank": 16}) == dive
    assert count({**LORA, "rank": 16, "like_dive": 16}) == 5 * per_rank
    assert abs(5 * per_rank - dive) / dive < 0.06
    for fitted in ("task_vector", "icv"):
        assert count({"module": fitted}) == 0


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


def test_lora_is_pefts(family, tiny_settings):
    """The same weights in PEFT's own layers give the same logits; its initial values have the same law."""
    peft = pytest.importorskip("peft")
    backbone = load_backbone(tiny_settings(family))
    inside = look_inside(backbone.model, backbone.layers)
    ids, mask = left_padded(backbone, REPORTS[0], REPORTS[3])
    intervention = build_intervention(LORA, 3, backbone.width, 0, lambda: inside[0].shape).eval()
    draw = torch.Generator().manual_seed(1)
    for site in intervention.layers.values():
        for projection in site["projections"].values():
            assert projection.A.abs().max() <= projection.A.shape[1] ** -0.5
            projection.B.data.normal_(generator=draw)
    with Steering(backbone.layers, intervention, inside), torch.no_grad():
        ours = backbone.model(input_ids=ids, attention_mask=mask).logits
    names = {module: name for name, module in backbone.model.named_modules()}
    targets = [names[module] for parts in inside for module in parts.projections.values()]
    config = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.05, target_modules=targets)
    model = peft.inject_adapter_in_model(config, backbone.model).eval()
    modules = dict(model.named_modules())
    assert sum(p.numel() for name, p in model.named_parameters() if "lora_" in name) == intervention.n_parameters
    for index, parts in enumerate(inside):
        for name, module in parts.projections.items():
            theirs, site = modules[names[module]], intervention.layers[str(index)]["projections"][name]
            first = theirs.lora_A["default"].weight
            assert first.abs().max() <= first.shape[1] ** -0.5
            assert not theirs.lora_B["default"].weight.any()
            first.data.copy_(site.A)
            theirs.lora_B["default"].weight.data.copy_(site.B)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, ours, atol=1e-5, rtol=0)
