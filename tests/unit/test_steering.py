"""Steering equals its equations, starts at the zero-shot model, acts where it should and leaves nothing behind."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dive.backbones.loading import load_backbone
from dive.files import read_json, write_json
from dive.steering import attach
from dive.steering.adapters import describe_backbone, load_adapter, save_adapter
from dive.steering.attach import Steering
from dive.steering.base import build_intervention
from tests.unit.tiny_models import FAMILIES, REPORTS, image, plain_inputs

DIVE = {"module": "dive", "rank": 4, "layers": "all", "positions": "answer"}
STATIC = {**DIVE, "rank": 0}
LIVE = {"module": "live", "alpha": 0.1, "std": 0.01, "layers": "all", "positions": "answer"}
OPTIMISER = {"lr": 1e-3, "weight_decay": 1e-2}


@pytest.fixture(scope="module", params=[*FAMILIES, "llava"])
def backbone(request, tiny_settings):
    return load_backbone(tiny_settings(request.param))


def trained(method, n_layers=3, width=32, seed=0, scale=0.5):
    """An intervention that does something: every parameter moved away from its initial value."""
    intervention = build_intervention(method, n_layers, width, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return intervention


def inputs_of(backbone, *texts):
    """Left-padded text prompts for plain transformers calls."""
    chats = [
        backbone.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in texts
    ]
    backbone.tokenizer.padding_side = "left"
    return dict(backbone.tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False))


def only_text(inputs):
    return {key: inputs[key] for key in ("input_ids", "attention_mask")}


# The equations


@pytest.mark.parametrize("method", [DIVE, STATIC])
def test_dive_is_its_equation(method):
    module = trained(method).layers["1"]
    hidden = 7 * torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    p = {name: value.detach().double().tolist() for name, value in module.named_parameters()}
    for h, found in zip(hidden.double().tolist(), module(hidden).tolist(), strict=True):
        rms = math.sqrt(sum(x * x for x in h) / 32)
        bottleneck = [
            sum(D * x / rms for D, x in zip(row, h, strict=True)) + b
            for row, b in zip(p.get("D", []), p.get("b", []), strict=True)
        ]
        gelu = [z * 0.5 * (1 + math.erf(z / math.sqrt(2))) for z in bottleneck]
        for i in range(32):
            s = p["v"][i] + (sum(u * z for u, z in zip(p["U"][i], gelu, strict=True)) if gelu else 0.0)
            assert found[i] == pytest.approx(h[i] + p["g"] * rms * s, abs=1e-4)


def test_dives_scale_carries_no_gradient():
    module = trained(STATIC).layers["0"]
    hidden = torch.randn(4, 32).requires_grad_()
    (gradient,) = torch.autograd.grad(module(hidden).sum(), hidden)
    torch.testing.assert_close(gradient, torch.ones(4, 32))


def test_live_is_its_equation_and_keeps_the_norm():
    module = trained(LIVE).layers["1"]
    hidden = 7 * torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    a, v = float(module.a.detach()), module.v.detach().double().tolist()
    for h, found in zip(hidden.double().tolist(), module(hidden).tolist(), strict=True):
        shifted = [x + a * y for x, y in zip(h, v, strict=True)]
        ratio = math.hypot(*h) / math.hypot(*shifted)
        assert found == pytest.approx([x * ratio for x in shifted], abs=1e-4)
        assert math.hypot(*found) == pytest.approx(math.hypot(*h), rel=1e-5)
    with torch.no_grad():
        module.v.zero_()
    assert torch.equal(module(hidden), hidden)


@pytest.mark.parametrize("method", [DIVE, STATIC, LIVE])
def test_a_zero_state_stays_finite_under_dive_and_types_are_kept(method):
    module = trained(method).layers["0"]
    assert module(torch.zeros(1, 32)).isfinite().all()
    assert module(torch.randn(2, 32).bfloat16()).dtype == torch.bfloat16


def test_initial_values_are_the_published_ones():
    wide = build_intervention({**DIVE, "rank": 64}, 2, 512, seed=0)
    site = wide.layers["0"]
    assert float(site.D.detach().std()) == pytest.approx(512**-0.5, rel=0.05)
    assert not site.U.any()
    assert not site.v.any()
    assert not site.b.any()
    assert site.g == 1
    live = build_intervention(LIVE, 2, 4096, seed=0)
    assert float(live.layers["0"].v.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert float(live.layers["0"].a.detach()) == pytest.approx(0.1)


def test_a_seed_fixes_the_initial_values():
    states = [build_intervention(DIVE, 3, 32, seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["layers.0.D"], states[2]["layers.0.D"])
    assert not torch.equal(states[0]["layers.0.D"], states[0]["layers.1.D"])


@pytest.mark.parametrize(
    ("n_layers", "width", "dive", "live"), [(34, 2560, 2_872_898, 87_074), (28, 3584, 3_312_092, 100_380)]
)
def test_parameter_counts_at_the_published_shapes(n_layers, width, dive, live):
    """MedGemma-4B and Lingshu-7B; method.md's figures are L(2rd + r + d + 1) and L(d + 1)."""
    assert build_intervention({**DIVE, "rank": 16}, n_layers, width, 0).n_parameters == dive
    assert dive == n_layers * (2 * 16 * width + 16 + width + 1)
    assert build_intervention(LIVE, n_layers, width, 0).n_parameters == live
    assert build_intervention(STATIC, n_layers, width, 0).n_parameters == live


def test_weight_decay_is_on_matrices_only_and_live_has_its_own_rate():
    groups = {group["name"]: group for group in build_intervention(DIVE, 3, 32, 0).parameter_groups(OPTIMISER)}
    assert {name for name, group in groups.items() if group["weight_decay"]} == {"U", "D"}
    assert {group["lr"] for group in groups.values()} == {1e-3}
    assert len(groups["v"]["params"]) == 3
    live = build_intervention(LIVE, 3, 32, 0)
    groups = {group["name"]: group for group in live.parameter_groups({**OPTIMISER, "lr_a": 1e-2})}
    assert (groups["a"]["lr"], groups["v"]["lr"]) == (1e-2, 1e-3)
    with pytest.raises(ValueError, match=r"lr_q.*parameters are v, a"):
        live.parameter_groups({**OPTIMISER, "lr_q": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [0, 3]}, "0 to 2"),
        ({"layers": [1, 1]}, "different layer indices"),
        ({"layers": []}, "different layer indices"),
        ({"layers": "some"}, "different layer indices"),
        ({"positions": "prompt"}, "one of answer, all"),
        ({"module": "no_such"}, "no steering method"),
        ({"module": "base"}, "no steering method"),
        ({"module": "../files"}, "no steering method"),
    ],
)
def test_settings_that_cannot_be_built_say_so(change, message):
    with pytest.raises(ValueError, match=message):
        build_intervention({**DIVE, **change}, 3, 32, 0)


# Step 0 and detach


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [DIVE, STATIC, {**DIVE, "positions": "all"}])
def test_step_zero_is_the_zero_shot_model_bit_for_bit(tiny_settings, backbone, method, dtype):
    model = backbone.model.to(dtype)
    try:
        inputs = only_text(inputs_of(backbone, "Write.", REPORTS[0]))
        expected = model(**inputs).logits
        steered = attach(model, build_intervention(method, 3, 32, 0), layers=backbone.layers)
        found = steered(**inputs).logits
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        # Also where every position is steered explicitly, as in training.
        with steered.steering.at(torch.ones_like(inputs["input_ids"], dtype=torch.bool)):
            assert torch.equal(steered(**inputs).logits, expected)
        steered.detach()
    finally:
        model.float()


@pytest.mark.parametrize("method", [DIVE, LIVE])
def test_detaching_restores_the_model_exactly(backbone, method):
    inputs = only_text(inputs_of(backbone, REPORTS[1]))
    expected = backbone.model(**inputs).logits
    weights = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    hooks = [dict(layer._forward_hooks) for layer in backbone.layers]
    steered = attach(backbone.model, trained(method), layers=backbone.layers)
    assert (steered(**inputs).logits - expected)[:, -1].abs().max() > 1e-3
    model = steered.detach()
    assert model is backbone.model
    assert torch.equal(model(**inputs).logits, expected)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [dict(layer._forward_hooks) for layer in backbone.layers] == hooks
    assert not any(layer._forward_pre_hooks for layer in backbone.layers)


def test_a_model_is_steered_once_at_a_time(backbone):
    steered = attach(backbone.model, build_intervention(DIVE, 3, 32, 0))
    for other in (steered, backbone.model):
        with pytest.raises(ValueError, match="steered already"):
            attach(other, build_intervention(LIVE, 3, 32, 0))
    with pytest.raises(ValueError, match="steered already"):
        Steering(backbone.layers, build_intervention({**LIVE, "layers": [1]}, 3, 32, 0))
    steered.detach()
    attach(backbone.model, build_intervention(LIVE, 3, 32, 0)).detach()


def test_live_starts_away_from_the_zero_shot_model(backbone):
    inputs = only_text(inputs_of(backbone, REPORTS[1]))
    expected = backbone.model(**inputs).logits
    with Steering(backbone.layers, build_intervention(LIVE, 3, 32, 0)):
        assert not torch.equal(backbone.model(**inputs).logits, expected)
    assert torch.equal(backbone.model(**inputs).logits, expected)


# Which positions and layers


def states_of(backbone, inputs):
    return backbone.model(**inputs, output_hidden_states=True).hidden_states[-1]


def test_of_a_prompt_only_the_last_token_is_steered(backbone):
    inputs = only_text(inputs_of(backbone, "Write.", REPORTS[0]))
    before = states_of(backbone, inputs)
    with Steering(backbone.layers, trained(DIVE)):
        after = states_of(backbone, inputs)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert (before[:, -1] - after[:, -1]).abs().amax(-1).min() > 1e-2


def test_a_mask_steers_exactly_its_positions(backbone):
    inputs = only_text(inputs_of(backbone, REPORTS[0]))
    n = inputs["input_ids"].shape[1]
    mask = torch.zeros(1, n, dtype=torch.bool)
    mask[0, [n - 9, n - 4]] = True
    layers = backbone.layers
    before = [None] * 3
    after = [None] * 3

    def keep(where, index):
        def hook(layer, args, output):
            where[index] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    handles = [layer.register_forward_hook(keep(before, i)) for i, layer in enumerate(layers)]
    backbone.model(**inputs)
    for handle in handles:
        handle.remove()
    steering = Steering(layers, trained({**DIVE, "layers": [0]}))
    handles = [layer.register_forward_hook(keep(after, i)) for i, layer in enumerate(layers)]
    with steering.at(mask):
        backbone.model(**inputs)
    changed = (before[0] != after[0]).any(-1)
    assert torch.equal(changed, mask)
    expected = steering.intervention(0, before[0][mask])
    torch.testing.assert_close(after[0][mask], expected, atol=0, rtol=0)
    with steering.at(mask), steering.paused():
        backbone.model(**inputs)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    for handle in handles:
        handle.remove()
    with steering.at(mask), pytest.raises(ValueError, match="mask of steered positions"):
        backbone.model(input_ids=inputs["input_ids"][:, :-1])
    steering.detach()


def test_chosen_layers_only(backbone):
    inputs = only_text(inputs_of(backbone, REPORTS[0]))
    hidden = [backbone.model(**inputs, output_hidden_states=True).hidden_states]
    with Steering(backbone.layers, trained({**DIVE, "layers": [1]})) as steering:
        assert steering.intervention.sites == [1]
        hidden.append(backbone.model(**inputs, output_hidden_states=True).hidden_states)
    # transformers records a layer's output before hooks see it, so layer 1's steering shows from layer 2 on.
    assert torch.equal(hidden[0][1], hidden[1][1])
    assert not torch.equal(hidden[0][3], hidden[1][3])


def test_without_a_cache_the_rule_of_generation_cannot_be_known(backbone):
    inputs = only_text(inputs_of(backbone, REPORTS[0]))
    with Steering(backbone.layers, trained(DIVE)), pytest.raises(RuntimeError, match=r"use_cache=True|Steering\.at"):
        backbone.model(**inputs, use_cache=False)


def scores_with_masks(backbone, intervention, prompt, answer):
    """Log-probabilities of ``answer`` after ``prompt`` (ids), from one full forward pass without any cache."""
    ids = torch.tensor([prompt + answer])
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, len(prompt) - 1 :] = True
    with Steering(backbone.layers, intervention) as steering, steering.at(mask), torch.no_grad():
        logits = backbone.model(input_ids=ids, use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("method", [DIVE, LIVE])
def test_greedy_generation_with_cache_and_left_padding_is_the_explicit_rule(backbone, method):
    intervention = trained(method, scale=0.2 if method is DIVE else 1.0)
    inputs = only_text(inputs_of(backbone, "Write.", REPORTS[0]))
    n_prompt = inputs["input_ids"].shape[1]
    model = attach(backbone.model, intervention, layers=backbone.layers)
    generated = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, n_prompt:]
    plain = model.detach().generate(**inputs, max_new_tokens=12, do_sample=False)[:, n_prompt:]
    assert not torch.equal(generated, plain)
    ends = set(backbone.model.generation_config.eos_token_id)
    for row, mask, answer in zip(inputs["input_ids"], inputs["attention_mask"], generated.tolist(), strict=True):
        prompt = row[mask.bool()].tolist()
        stop = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
        scores = scores_with_masks(backbone, intervention, prompt, answer[:stop])
        assert scores.argmax(-1).tolist() == answer[:stop]


def test_beam_search_scores_are_those_of_the_explicit_rule(backbone):
    intervention = trained(DIVE, scale=0.2)
    inputs = only_text(inputs_of(backbone, REPORTS[0], "Write."))
    n_prompt = inputs["input_ids"].shape[1]
    model = attach(backbone.model, intervention, layers=backbone.layers)
    found = model.generate(
        **inputs,
        max_new_tokens=6,
        min_new_tokens=6,
        num_beams=3,
        length_penalty=0.0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    model.detach()
    for row, mask, sequence, score in zip(
        inputs["input_ids"], inputs["attention_mask"], found.sequences, found.sequences_scores.tolist(), strict=True
    ):
        answer = sequence[n_prompt:].tolist()
        scores = scores_with_masks(backbone, intervention, row[mask.bool()].tolist(), answer)
        assert score == pytest.approx(float(sum(scores[i, token] for i, token in enumerate(answer))), abs=1e-4)


def test_a_continued_chat_is_steered_from_the_first_answer_on(backbone):
    intervention = trained(DIVE, scale=0.2)
    inputs = only_text(inputs_of(backbone, REPORTS[0]))
    n_prompt = inputs["input_ids"].shape[1]
    model = attach(backbone.model, intervention, layers=backbone.layers)
    first = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, return_dict_in_generate=True)
    follow_up = backbone.tokenizer("And the lungs?", return_tensors="pt", add_special_tokens=False)["input_ids"]
    ids = torch.cat([first.sequences, follow_up], dim=1)
    second = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=first.past_key_values,
        max_new_tokens=5,
        min_new_tokens=5,
    )
    model.detach()
    answer = second[0, ids.shape[1] :].tolist()
    scores = scores_with_masks(backbone, intervention, ids[0, :n_prompt].tolist(), second[0, n_prompt:].tolist())
    ends = list(backbone.model.generation_config.eos_token_id)
    expected = scores[-len(answer) :].clone()
    expected[:, ends] = -math.inf
    assert expected.argmax(-1).tolist() == answer


def test_generation_from_pixels_equals_our_decoding(backbone, monkeypatch):
    """Which ends at any end token of the checkpoint, here at one that the steered model writes."""
    from dive.generation import decode

    picture = image(1).convert("RGB")
    features = {"s": backbone.embed_images([picture])[0]}
    prompt = backbone.prompts.render("s", {"s": len(features["s"].tokens)})
    model = attach(backbone.model, trained(DIVE, scale=0.2), layers=backbone.layers)
    inputs = plain_inputs(backbone, prompt, {"s": picture})
    (decoded,) = decode(backbone, [prompt], features, 8, 1)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [backbone.term_id, decoded.ids[-2]])
    generated = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(prompt.ids) :].tolist()
    (ended,) = decode(backbone, [prompt], features, 8, 1)
    assert generated == [*ended.ids, ended.ended_by]
    assert ended.ended_by == decoded.ids[-2]
    model.detach()
    (plain,) = decode(backbone, [prompt], features, 8, 1)
    assert decoded.ids != plain.ids


# Adapter folders


@pytest.fixture
def adapter(backbone, tmp_path):
    intervention = trained(DIVE)
    described = describe_backbone(backbone.model, backbone.layers, backbone.source)
    data = {"dataset": "mimic-cxr", "queries": 100}
    save_adapter(tmp_path, intervention, DIVE, described, data, epoch=3, record={"seed": 0})
    return tmp_path, intervention


def test_an_adapter_folder_comes_back_as_it_was(backbone, adapter):
    folder, intervention = adapter
    inputs = only_text(inputs_of(backbone, REPORTS[0]))
    with Steering(backbone.layers, intervention):
        expected = backbone.model(**inputs).logits
    model = attach(backbone.model, folder)  # layers found by probing
    assert torch.equal(model(**inputs).logits, expected)
    assert model.config is backbone.model.config
    model.detach()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter.safetensors", "config.json"]
    config = json.loads((folder / "config.json").read_text())
    assert config["backbone"]["layers"] == 3
    assert config["backbone"]["width"] == 32
    assert config["parameters"] == intervention.n_parameters
    assert config["sites"] == [0, 1, 2]
    card = (folder / "README.md").read_text()
    assert f"{intervention.n_parameters:,} parameters" in card
    assert "100 studies of mimic-cxr" in card
    assert str(Path(backbone.source).parent) not in card + json.dumps(config)


def rewritten(folder, **changes):
    config = read_json(folder / "config.json")
    for key, value in changes.items():
        inner = config
        *path, last = key.split("__")
        for part in path:
            inner = inner[part]
        inner[last] = value
    write_json(folder / "config.json", config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone__layers": 34}, "layers 34 there, 3 here"),
        ({"backbone__width": 2560}, "width 2560 there, 32 here"),
        ({"backbone__model_type": "idefics3"}, "model_type idefics3 there"),
        ({"backbone__weights": "0" * 16}, "weights 0000"),
        ({"format": "other/9"}, "not a readable adapter folder"),
        ({"method__rank": 5}, "does not fit its config.json"),
        ({"method__layers": [0, 1]}, "does not fit its config.json"),
        ({"method__module": "os"}, "no steering method"),
        ({"method__module": "..files"}, "no steering method"),
    ],
)
def test_a_foreign_adapter_is_refused_with_the_difference(backbone, adapter, changes, message):
    folder, _ = adapter
    rewritten(folder, **changes)
    with pytest.raises(ValueError, match=message):
        attach(backbone.model, folder, layers=backbone.layers)


def test_a_quantised_copy_may_be_steered_knowingly(backbone, adapter):
    folder, intervention = adapter
    rewritten(folder, backbone__weights="0" * 16)
    loaded = load_adapter(folder, backbone.model, backbone.layers, strict=False)
    assert torch.equal(loaded.layers["0"].U, intervention.layers["0"].U)


def test_a_backbone_has_one_fingerprint_in_float32_and_bfloat16(backbone, adapter):
    folder, _ = adapter
    try:
        load_adapter(folder, backbone.model.bfloat16(), backbone.layers)
    finally:
        backbone.model.float()


def test_a_corrupt_or_pickled_adapter_is_refused(backbone, adapter):
    folder, _ = adapter
    tensors = load_file(folder / "adapter.safetensors")
    rewritten(folder, sha256={})
    save_file({"layers.0.v": tensors["layers.0.v"]}, folder / "adapter.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        load_adapter(folder, backbone.model, backbone.layers)
    torch.save(tensors, folder / "adapter.safetensors")
    with pytest.raises(ValueError, match="not a readable adapter folder"):
        load_adapter(folder, backbone.model, backbone.layers)
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(ValueError, match="not a readable adapter folder"):
        attach(backbone.model, folder)
