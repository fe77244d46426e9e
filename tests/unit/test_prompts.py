"""Prompts: equal to the processor class where that loads, and exact about where the report lies."""

import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dive.backbones.loading import load_backbone
from dive.backbones.prompts import PromptBuilder, PromptStore
from tests.unit import tiny_models

FAMILIES = [*tiny_models.FAMILIES, "llava"]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    return {f: load_backbone(tiny_models.settings(tiny_models.write_tiny(root / f, f))) for f in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_term_is_the_templates_end_of_turn_and_not_the_tokenizers_eos(backbones, family):
    backbone = backbones[family]
    expected = "<end_of_turn>" if family == "gemma3" else "<|im_end|>"
    assert backbone.tokenizer.convert_ids_to_tokens(backbone.term_id) == expected
    if family == "gemma3":  # defect 6: the tokenizer's EOS is another token, which the template never emits
        assert backbone.term_id != backbone.tokenizer.eos_token_id
    prompt = backbone.prompts.render("q", {"q": 4}, report=tiny_models.REPORTS[0])
    assert prompt.labels[-1] == backbone.term_id


@pytest.mark.parametrize("family", FAMILIES)
def test_terminator_that_would_not_stop_generation_is_refused(backbones, family):
    backbone = backbones[family]
    with pytest.raises(ValueError, match="generation would never stop"):
        PromptBuilder(backbone.tokenizer, backbone.family, backbone.image_token_id, {backbone.image_token_id}, "Write.")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_end_tokens_is_refused(tiny_settings, tmp_path, family):
    folder = tmp_path / "model"
    shutil.copytree(tiny_settings(family)["path"], folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    del generation["eos_token_id"]
    (folder / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(ValueError, match=r"not in eos_token_id \[\] of generation_config\.json"):
        load_backbone(tiny_models.settings(folder))
    # Without that file, transformers takes them from config.json, and so does generation.
    (folder / "generation_config.json").unlink()
    backbone = load_backbone(tiny_models.settings(folder))
    eos = backbone.model.generation_config.eos_token_id
    assert backbone.stop_ids == set(eos if isinstance(eos, list) else [eos])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padding_terminator_is_refused(backbones, family, tmp_path):
    tokenizer = tiny_models.tokenizer(family)
    backbone = backbones[family]
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(backbone.term_id)
    with pytest.raises(ValueError, match="also the padding token"):
        PromptBuilder(tokenizer, backbone.family, backbone.image_token_id, {backbone.term_id}, "Write.")


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(
    report=st.lists(
        st.sampled_from(["Heart", "is", "large.", "No", "effusion,", "5-mm", "é", "µ", "___", "(left)"]),
        min_size=1,
        max_size=12,
    ),
    shots=st.integers(0, 2),
    tokens=st.integers(1, 9),
)
def test_rendering_a_report_continues_its_own_generation_prompt(backbones, family, report, shots, tokens):
    backbone, text = backbones[family], " ".join(report)
    counts = {"a": tokens, "q": tokens + 1}
    demonstrations = [("a", tiny_models.REPORTS[i]) for i in range(shots)]
    asked = backbone.prompts.render("q", counts, demonstrations)
    taught = backbone.prompts.render("q", counts, demonstrations, report=text)
    assert taught.ids[: taught.prompt_length] == asked.ids
    assert taught.labels == [*taught.ids[taught.prompt_length :], backbone.term_id]
    assert taught.ids.count(backbone.image_token_id) == sum(counts[key] for key in taught.images)
    # the offsets tile the report: every non-blank character belongs to a token
    covered = {i for start, end in taught.offsets for i in range(start, end)}
    assert all(i in covered for i, character in enumerate(text) if not character.isspace())
    assert backbone.tokenizer.decode(taught.labels[:-1]).strip() == text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_report_teaches_no_stop(backbones, family):
    whole = backbones[family].prompts.render("q", {"q": 4}, report=tiny_models.REPORTS[0])
    cut = backbones[family].prompts.render("q", {"q": 4}, report=tiny_models.REPORTS[0], max_report_tokens=5)
    assert whole.complete
    assert not cut.complete
    assert cut.labels == whole.labels[:5]
    assert cut.ids == whole.ids[: whole.prompt_length + 5]
    at_limit = backbones[family].prompts.render(
        "q", {"q": 4}, report=tiny_models.REPORTS[0], max_report_tokens=whole.n_labels - 1
    )
    assert at_limit.complete


def test_a_report_that_holds_an_image_placeholder_is_refused(backbones):
    with pytest.raises(ValueError, match="image placeholders"):
        backbones["gemma3"].prompts.render("q", {"q": 4}, report="No <start_of_image> here.")


def test_gemma_prompt_equals_its_processor(backbones):
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    backbone = backbones["gemma3"]
    processor = Gemma3Processor(
        backbone.image_processor, backbone.tokenizer, chat_template=backbone.tokenizer.chat_template, image_seq_length=4
    )
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": tiny_models.INSTRUCTION}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": tiny_models.REPORTS[1]}]}
    text = processor.apply_chat_template([turn, answer, turn], tokenize=False, add_generation_prompt=True)
    images = [tiny_models.image(1).convert("RGB"), tiny_models.image(2).convert("RGB")]
    expected = processor(text=[text], images=[images], add_special_tokens=False)["input_ids"][0]
    prompt = backbone.prompts.render("q", {"a": 4, "q": 4}, [("a", tiny_models.REPORTS[1])])
    assert prompt.ids == list(expected)


def test_qwen_image_tokens_are_grid_over_merge_squared(backbones):
    backbone = backbones["qwen2_5_vl"]
    for size in (24, 36, 48):
        features = backbone.embed_images([tiny_models.image(0, size).convert("RGB")])[0]
        t, h, w = features.grid
        assert len(features.tokens) == t * h * w // backbone.model.config.vision_config.spatial_merge_size**2


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_prompts_are_what_was_rendered(backbones, family):
    backbone = backbones[family]
    rendered = [
        backbone.prompts.render("q", {"q": 4, "d": 3}, [("d", "One.")] * shots, report, limit)
        for shots in (0, 2)
        for report, limit in [(None, None), (tiny_models.REPORTS[0], None), (tiny_models.REPORTS[1], 3)]
    ]
    store = PromptStore(backbone.term_id)
    for prompt in rendered:
        store.append(prompt)
    assert list(store) == [replace(prompt, offsets=[]) for prompt in rendered]
    assert list(store[2:5]) == list(store)[2:5]
    assert [prompt.report_length for prompt in store] == [len(prompt.offsets) for prompt in rendered]
    assert store[-1] == list(store)[-1]
    with pytest.raises(IndexError):
        store[len(rendered)]
