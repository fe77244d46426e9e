"""The backbone's interface equals the plain transformers forward: cached features, padding, cached prefixes."""

import numpy as np
import pytest
import torch
from PIL import Image

from dive.backbones.layers import find_decoder_layers
from dive.backbones.loading import load_backbone
from dive.backbones.vision import open_image
from tests.unit import tiny_models

FAMILIES = [*tiny_models.FAMILIES, "llava"]
ATOL = 1e-5


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request, tmp_path_factory):
    folder = tiny_models.write_tiny(tmp_path_factory.mktemp("backbone"), request.param)
    return load_backbone(tiny_models.settings(folder))


@pytest.fixture(scope="module")
def world(backbone):
    """Images of several sizes (Qwen's grids differ), their features, and prompts with 0, 1 and 2 demonstrations."""
    images = {f"s{i}": tiny_models.image(i, size).convert("RGB") for i, size in enumerate([48, 36, 48])}
    features = {key: backbone.embed_images([image])[0] for key, image in images.items()}
    counts = {key: len(feature.tokens) for key, feature in features.items()}
    reports = tiny_models.REPORTS
    prompts = [
        backbone.prompts.render("s0", counts, [("s1", reports[3]), ("s2", reports[4])][:shots], report=reports[shots])
        for shots in (0, 1, 2)
    ]
    return images, features, prompts


def plain_hidden(backbone, prompt, images):
    """Final hidden states of one unpadded prompt from pixel values, by the model's own forward."""
    return backbone.model.model(**tiny_models.plain_inputs(backbone, prompt, images)).last_hidden_state[0]


def test_cached_features_and_left_padding_equal_the_full_forward(backbone, world):
    images, features, prompts = world
    batch = backbone.collate(prompts, features, part="full")
    hidden = backbone.prefill(batch)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(
            hidden[row, batch.mask[row]], plain_hidden(backbone, prompt, images), atol=ATOL, rtol=0
        )


def test_a_cached_prefix_continued_equals_the_full_forward(backbone, world):
    images, features, prompts = world
    prefix = backbone.collate(prompts, features, part="prefix")
    answers = backbone.collate_answers(prompts, prefix)
    cache = backbone.new_cache()
    backbone.prefill(prefix, cache)
    hidden = backbone.extend(answers.ids, torch.cat([prefix.mask, answers.mask], dim=1), answers.next_position, cache)
    for row, prompt in enumerate(prompts):
        expected = plain_hidden(backbone, prompt, images)[prompt.prompt_length - 1 :]
        torch.testing.assert_close(hidden[row, : prompt.n_labels], expected, atol=ATOL, rtol=0)


def test_gemma_reads_an_image_in_both_directions(backbone, world):
    if not backbone.family.token_types:
        assert backbone.collate(world[2], world[1]).token_types is None
        return
    _, features, prompts = world
    batch = backbone.collate(prompts[:1], features)
    both = backbone.prefill(batch)
    batch.token_types = torch.zeros_like(batch.token_types)
    assert (backbone.prefill(batch) - both).abs().max() > 0.1


def test_labels_start_with_the_first_report_token_and_end_with_term(backbone, world):
    _, features, prompts = world
    answers = backbone.collate_answers(prompts, backbone.collate(prompts, features, part="prefix"))
    labels = answers.labels.split([prompt.n_labels for prompt in prompts])  # nothing after TERM
    for row, (prompt, of_row) in enumerate(zip(prompts, labels, strict=True)):
        p = prompt.prompt_length
        assert answers.ids[row, 0] == prompt.ids[p - 1]  # the last prompt token predicts y_1 (defect 1)
        assert of_row[0] == prompt.ids[p]
        assert of_row[-1] == backbone.term_id
        assert answers.mask[row].nonzero()[:, 0].tolist() == list(range(prompt.n_labels))


def test_decoder_layers_are_those_of_the_language_model(backbone):
    layers = find_decoder_layers(backbone.model)
    assert len(layers) == backbone.model.config.get_text_config().num_hidden_layers
    assert [id(layer) for layer in layers] == [id(layer) for layer in backbone.model.model.language_model.layers]


def test_the_head_on_the_final_normed_state_is_the_models_logits(backbone, world):
    _, features, prompts = world
    batch = backbone.collate(prompts[:1], features, part="prompt")
    hidden = backbone.prefill(batch)
    arguments = {"token_type_ids": batch.token_types} if batch.token_types is not None else {}
    logits = backbone.model(
        inputs_embeds=batch.embeds, attention_mask=batch.mask.long(), position_ids=batch.positions, **arguments
    ).logits
    assert torch.equal(backbone.head(hidden), logits)


def test_nothing_of_the_backbone_is_trainable(backbone):
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "I;16", "1"])
def test_odd_image_modes_are_read_right(tmp_path, mode):
    gray = np.tile(np.linspace(0, 255, 32), (32, 1)).astype(np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(gray)
        picture = picture.convert("RGB").convert("CMYK") if mode == "CMYK" else picture.convert(mode)
    # MIMIC-CXR-JPG's kind of file has CMYK, with Adobe's inverted values; PNG has all else.
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    picture.save(path, **({"quality": 100} if mode == "CMYK" else {}))
    read = np.asarray(open_image(path))
    assert read.shape == (32, 32, 3)
    if mode != "1":
        assert np.abs(read.astype(int) - gray[..., None]).max() <= 3


def test_an_unreadable_image_is_named(tmp_path):
    path = tmp_path / "cut.png"
    tiny_models.image(0).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OSError, match=r"cut\.png"):
        open_image(path)


def test_a_missing_model_folder_names_the_config_key(tmp_path):
    with pytest.raises(OSError, match="backbones"):
        load_backbone({**tiny_models.settings("models/none"), "path": "models/none"})
