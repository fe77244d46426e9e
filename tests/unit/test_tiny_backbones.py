"""Tiny backbones: a few steps of the real training, then everything a loader relies on."""

import inspect

import numpy as np
import pytest
import torch

from dive.backbones.loading import ImageFeatures, load_backbone
from dive.backbones.tiny import SequenceWriter, build_backbone, draw_pool, embed_pixels, embed_pool, language_states
from dive.backbones.untrained import Recipe
from dive.data.synthetic.findings import sample_findings
from dive.data.synthetic.language import BOILERPLATE
from dive.data.synthetic.phantom import draw_image
from dive.files import sha256
from dive.generation import decode

FAMILIES = ("gemma3", "qwen2_5_vl")
INSTRUCTION = "Describe the findings."
WORLD = {"seed": 0, "image_size": 96}
SMALL = {
    "width": 32,
    "layers": 2,
    "heads": 2,
    "mlp": 48,
    "vision_width": 32,
    "vision_layers": 2,
    "images": 64,
    "vision_steps": 4,
    "vision_batch": 16,
    "steps": 3,
    "batch": 2,
    "length": 256,
    "pairs": 3,
}


def build(folder, family, **changes):
    build_backbone(str(folder), SMALL | {"family": family} | changes, WORLD, INSTRUCTION)
    return folder


def load(folder):
    return load_backbone({"path": str(folder), "instruction": INSTRUCTION, "device": "cpu", "dtype": "float32"})


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory):
    folder = build(tmp_path_factory.mktemp("models") / request.param, request.param)
    return Recipe(**SMALL, family=request.param), folder, load(folder)


@pytest.fixture(scope="module")
def written(trained):
    """A pool with features from the loaded backbone, and training sequences of it."""
    recipe, _, backbone = trained
    pool = draw_pool(recipe, backbone.image_processor, 32, np.random.default_rng(1), 96)
    pixels = pool.pixels.float()
    embed_pool(backbone.model, pool)
    writer = SequenceWriter(backbone, pool, recipe)
    rng = np.random.default_rng(2)
    return pool, pixels, [writer.draw(rng) for _ in range(12)]


def test_folder_is_loaded_by_the_general_loader(trained):
    recipe, folder, backbone = trained
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "preprocessor_config.json", "generation_config.json"} <= names
    assert not list(folder.parent.glob(".*tmp"))
    term = {"gemma3": "<end_of_turn>", "qwen2_5_vl": "<|im_end|>"}[recipe.family]
    assert backbone.term_id == backbone.tokenizer.convert_tokens_to_ids(term)
    assert backbone.term_id in backbone.model.generation_config.eos_token_id
    assert len(backbone.tokenizer) <= recipe.vocabulary
    assert len(backbone.layers) == recipe.layers


def test_image_tokens_follow_the_family_rule(trained):
    recipe, _, backbone = trained
    rng = np.random.default_rng(0)
    [features] = backbone.embed_images([draw_image(sample_findings(rng), rng).convert("RGB")])
    assert features.tokens.shape == (recipe.image_tokens, recipe.width)
    if recipe.family == "qwen2_5_vl":
        assert np.prod(features.grid) // recipe.merge**2 == recipe.image_tokens
    else:
        assert backbone.model.config.mm_tokens_per_image == recipe.image_tokens


def test_pool_features_are_those_of_the_general_interface(trained, written):
    _, _, backbone = trained
    pool, pixels, _ = written
    arguments = {"pixel_values": pixels if pool.grid is None else pixels.flatten(0, 1)}
    if pool.grid is not None:
        arguments["image_grid_thw"] = torch.tensor([pool.grid] * len(pixels))
    plain = backbone.model.get_image_features(**arguments)
    plain = getattr(plain, "pooler_output", plain)
    for one, other in zip(plain, pool.features, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_training_forward_equals_the_plain_forward(trained, written):
    """Cached features and explicit masks (Gemma 3) or positions (Qwen) against pixels and the model's own ones."""
    _, _, backbone = trained
    pool, pixels, sequences = written
    for sequence in sequences[:3]:
        ours = language_states(backbone, [sequence], pool.features[sequence.images])[0]
        ids, images = sequence.ids[None], pixels[sequence.images]
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if pool.grid is None:
            arguments |= {"pixel_values": images, "token_type_ids": (ids == backbone.image_token_id).long()}
        else:
            arguments["pixel_values"] = images.flatten(0, 1)
            arguments["image_grid_thw"] = torch.tensor([pool.grid] * len(images))
            if "mm_token_type_ids" in inspect.signature(backbone.model.forward).parameters:  # transformers 5
                arguments["mm_token_type_ids"] = (ids == backbone.image_token_id).long()
        plain = backbone.model(**arguments).logits[0]
        torch.testing.assert_close(backbone.head(ours), plain, atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing(trained, written):
    _, _, backbone = trained
    pool, _, sequences = written
    pair = sorted(sequences, key=lambda s: len(s.ids))[:: len(sequences) - 1]
    together = language_states(backbone, pair, pool.features[[case for s in pair for case in s.images]])
    alone = language_states(backbone, pair[:1], pool.features[pair[0].images])
    torch.testing.assert_close(together[0, : len(pair[0].ids)], alone[0], atol=1e-5, rtol=1e-4)


def test_labels_are_reports_and_the_terminators_of_those_that_end(trained, written):
    _, _, backbone = trained
    _, _, sequences = written
    endings = set()
    for sequence in sequences:
        learned = (sequence.labels >= 0).nonzero()[:, 0].tolist()
        # The label at a position is the next token.
        assert all(sequence.labels[i] == sequence.ids[i + 1] for i in learned)
        runs = [[i] for i in learned if i - 1 not in learned]
        for run in runs:
            while run[-1] + 1 in learned:
                run.append(run[-1] + 1)
        assert len(runs) == len(sequence.images)
        for run in runs:
            labels = sequence.labels[run].tolist()
            ended = labels[-1] == backbone.term_id
            text = backbone.tokenizer.decode(labels[:-1] if ended else labels)
            assert backbone.term_id not in labels[:-1]
            assert text[0].isupper()
            assert (BOILERPLATE[0].split()[1] in text) is not ended
            assert sequence.ids[run[-1] + 1 if ended else run[-1] + 2] == backbone.term_id
            endings.add(ended)
    assert endings == {True, False}


def test_sequences_have_the_layout_of_prompts(trained, written):
    """Up to the last report a training sequence is, token for token, what generation prefills."""
    recipe, _, backbone = trained
    _, _, sequences = written
    opening = {"gemma3": "model\n", "qwen2_5_vl": "assistant\n"}[recipe.family]
    for sequence in sequences:
        ids = sequence.ids.tolist()
        turns = backbone.tokenizer.decode(ids).split(opening)[1:]
        texts = [turn.split(backbone.tokenizer.decode([backbone.term_id]))[0] for turn in turns]
        keys = [str(case) for case in sequence.images]
        prompt = backbone.prompts.render(
            keys[-1],
            dict.fromkeys(keys, recipe.image_tokens),
            demonstrations=list(zip(keys, texts, strict=True))[:-1],
        )
        assert ids[: prompt.prompt_length] == prompt.ids


def test_reports_can_be_generated(trained, written):
    recipe, _, backbone = trained
    pool, _, _ = written
    features = {"a": ImageFeatures(pool.features[0], pool.grid)}
    prompt = backbone.prompts.render("a", {"a": recipe.image_tokens})
    [report] = decode(backbone, [prompt], features, max_new_tokens=8, batch_size=1)
    assert len(report.ids) <= 8


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_weights(family, tmp_path):
    weights = [
        sha256(build(tmp_path / str(i), family, seed=seed, vision_steps=2, steps=2) / "model.safetensors")
        for i, seed in enumerate((5, 5, 6))
    ]
    assert weights[0] == weights[1] != weights[2]


def test_tower_is_frozen_while_the_language_model_learns(tmp_path):
    from safetensors.torch import load_file

    short, long = (
        load_file(build(tmp_path / str(steps), "gemma3", steps=steps) / "model.safetensors") for steps in (1, 2)
    )
    for name, weight in short.items():
        is_language = "language_model" in name or "lm_head" in name
        assert torch.equal(weight, long[name]) is not is_language, name


def test_unknown_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="stepz"):
        build(tmp_path / "a", "gemma3", stepz=1)
    with pytest.raises(ValueError, match="qwen2_5_vl"):
        build(tmp_path / "a", "llama")
    with pytest.raises(ValueError, match="pixels"):
        build(tmp_path / "a", "gemma3", pixels=50)


def test_gradients_reach_the_tower(trained):
    _, _, backbone = trained
    parameter = next(p for n, p in backbone.model.named_parameters() if "patch_embed" in n)
    parameter.requires_grad_(True)
    try:
        recipe = trained[0]
        pool = draw_pool(recipe, backbone.image_processor, 4, np.random.default_rng(1), 96)
        embed_pixels(backbone.model, pool.pixels.float(), pool.grid).square().sum().backward()
        assert parameter.grad.abs().sum() > 0
    finally:
        parameter.grad = None
        parameter.requires_grad_(False)
