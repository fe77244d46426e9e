"""``attach`` on plain transformers models of four families: generation from pixels equals the rule spelt out.

Nothing of this project but ``attach`` is between the test and transformers: models come from ``from_pretrained``,
prompts from the tokenizer's chat template, images as pixel values.
"""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.models.auto.modeling_auto import AutoModelForImageTextToText
from transformers.models.auto.tokenization_auto import AutoTokenizer

from dive.backbones.layers import find_decoder_layers
from dive.steering import attach
from dive.steering.attach import Steering
from dive.steering.attention import look_inside
from dive.steering.base import build_intervention
from tests.unit.tiny_models import REPORTS

METHODS = {
    "dive": {"module": "dive", "rank": 4},
    "live": {"module": "live"},
    "reft": {"module": "reft", "rank": 4},
    "hificl": {"module": "hificl", "pairs": 4, "rank": 4, "positions": "answer"},
}
FAMILIES = ("gemma3", "qwen2_5_vl", "llava", "idefics3")
# What the chat template writes for an image and what the model has to find there: 4 image tokens.
EXPANDED = {
    "gemma3": ("<start_of_image>", "\n\n<start_of_image>" + "<image_soft_token>" * 4 + "<end_of_image>\n\n"),
    "qwen2_5_vl": ("<|image_pad|>", "<|image_pad|>" * 4),
    "llava": ("<image>", "<image>" * 16),
    "idefics3": ("", ""),  # its template has them already
}
LAYERS = {"idefics3": "model.text_model.layers"}


class Plain(NamedTuple):
    """A model and tokenizer of transformers, as anybody loads them."""

    family: str
    model: Any
    tokenizer: Any

    def prompt(self, text: str, seed: int | None) -> dict[str, torch.Tensor]:
        """Inputs of one unpadded chat with an image of noise (none where ``seed`` is None)."""
        content = [{"type": "text", "text": text}]
        pixels: dict[str, torch.Tensor] = {}
        if seed is not None:
            content.insert(0, {"type": "image"})
            draw = torch.Generator().manual_seed(seed)
            if self.family == "qwen2_5_vl":  # 4 x 4 patches of 2 frames, 3 channels, 6 x 6 pixels
                pixels = {
                    "pixel_values": torch.randn(16, 2 * 3 * 6 * 6, generator=draw),
                    "image_grid_thw": torch.tensor([[1, 4, 4]]),
                }
            else:
                pixels = {"pixel_values": torch.randn(1, 3, 48, 48, generator=draw)}
                if self.family == "idefics3":
                    pixels["pixel_values"] = pixels["pixel_values"][None]
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        written, wanted = EXPANDED[self.family]
        chat = chat.replace(written, wanted) if written else chat
        ids = self.tokenizer(chat, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return self.typed({"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels})

    def typed(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """With what tells the model which tokens are an image's, under the name that the version has."""
        name = {"gemma3": "token_type_ids", "qwen2_5_vl": "mm_token_type_ids"}.get(self.family)
        if name in self.model.forward.__code__.co_varnames or self.family == "gemma3":
            inputs[name] = (inputs["input_ids"] == self.model.config.image_token_id).long()
        return inputs

    def settings(self, length: int) -> dict[str, Any]:
        """Of ``generate``: ``length`` tokens, none of them special (an image's, an end)."""
        return {"max_new_tokens": length, "do_sample": False, "suppress_tokens": self.special}

    @property
    def special(self) -> list[int]:
        return sorted(set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder))

    def batch(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Chats padded on the left to one length."""
        longest = max(row["input_ids"].shape[1] for row in rows)
        pad = self.model.generation_config.pad_token_id
        joined = {}
        for key in rows[0]:
            values = [row[key] for row in rows]
            if key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
                fill = pad if key == "input_ids" else 0
                values = [nn.functional.pad(v, (longest - v.shape[1], 0), value=fill) for v in values]
            joined[key] = torch.cat(values)
        return joined


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request, tiny_settings) -> Plain:
    folder = tiny_settings(request.param)["path"]
    model = AutoModelForImageTextToText.from_pretrained(folder).eval().requires_grad_(False)
    return Plain(request.param, model, AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def rows(plain) -> list[dict[str, torch.Tensor]]:
    """Two chats about two images, of different lengths."""
    return [plain.prompt("Write.", 1), plain.prompt(REPORTS[0], 2)]


def trained(plain: Plain, name: str, scale: float = 0.2):
    """An intervention that does something: every parameter is moved away from its initial value."""

    def shape():
        return look_inside(plain.model, find_decoder_layers(plain.model))[0].shape

    intervention = build_intervention(METHODS[name], 3, 32, 0, shape)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_({"live": 1.0, "hificl": 1.0}.get(name, scale) * torch.randn(parameter.shape, generator=draw))
    return intervention


@torch.no_grad()
def spelt_out(plain: Plain, intervention, row: dict[str, torch.Tensor], answer: list[int]) -> torch.Tensor:
    """Log-probabilities of ``answer`` after one unpadded chat: one full forward, no cache, positions named."""
    n_prompt = row["input_ids"].shape[1]
    ids = torch.cat([row["input_ids"], torch.tensor([answer])], dim=1)
    inputs = plain.typed({**row, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, n_prompt - 1 :] = True
    layers = find_decoder_layers(plain.model)
    with Steering(layers, intervention, look_inside(plain.model, layers)) as steering, steering.at(mask):
        logits = plain.model(**inputs, use_cache=False).logits
    return logits[0, n_prompt - 1 : -1].log_softmax(-1)


def test_the_layers_found_are_the_language_model_s(plain):
    path = LAYERS.get(plain.family, "model.language_model.layers")
    expected = list(plain.model.get_submodule(path))
    assert len(expected) == 3
    found = find_decoder_layers(plain.model)
    assert [id(layer) for layer in found] == [id(layer) for layer in expected]


@pytest.mark.parametrize("method", METHODS)
def test_greedy_generation_of_a_left_padded_batch_with_images(plain, rows, method):
    intervention = trained(plain, method)
    batch = plain.batch(rows)
    n_prompt = batch["input_ids"].shape[1]
    model = attach(plain.model, intervention)
    written = model.generate(**batch, **plain.settings(10))[:, n_prompt:]
    alone = model.generate(**rows[0], **plain.settings(10))
    assert model.detach() is plain.model
    assert alone[0, rows[0]["input_ids"].shape[1] :].tolist() == written[0].tolist()
    unsteered = plain.model.generate(**batch, **plain.settings(10))[:, n_prompt:]
    assert not torch.equal(written, unsteered)
    for row, answer in zip(rows, written.tolist(), strict=True):
        scores = spelt_out(plain, intervention, row, answer)
        scores[:, plain.special] = -math.inf
        assert scores.argmax(-1).tolist() == answer


def test_beam_search_with_images(plain, rows):
    intervention = trained(plain, "dive")
    batch = plain.batch(rows)
    n_prompt = batch["input_ids"].shape[1]
    model = attach(plain.model, intervention)
    found = model.generate(
        **batch, **plain.settings(6), num_beams=3, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    model.detach()
    for row, sequence, score in zip(rows, found.sequences, found.sequences_scores.tolist(), strict=True):
        answer = sequence[n_prompt:].tolist()
        scores = spelt_out(plain, intervention, row, answer)
        assert score == pytest.approx(float(sum(scores[i, token] for i, token in enumerate(answer))), abs=1e-3)


def test_a_chat_continued_on_its_cache(plain):
    intervention = trained(plain, "dive")
    row = plain.prompt(REPORTS[0], 2)
    n_prompt = row["input_ids"].shape[1]
    model = attach(plain.model, intervention)
    first = model.generate(**row, **plain.settings(5), return_dict_in_generate=True)
    follow_up = plain.tokenizer("And the lungs?", return_tensors="pt", add_special_tokens=False)["input_ids"]
    ids = torch.cat([first.sequences, follow_up], dim=1)
    second = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values,
        **plain.settings(5),
    )  # fmt: skip
    model.detach()
    answer = second[0, ids.shape[1] :].tolist()
    scores = spelt_out(plain, intervention, row, second[0, n_prompt:].tolist())[-len(answer) :]
    scores[:, plain.special] = -math.inf
    assert scores.argmax(-1).tolist() == answer


def test_a_detached_adapter_is_not_entered_again(plain):
    steered = attach(plain.model, trained(plain, "dive"))
    with steered:
        pass
    with pytest.raises(ValueError, match="call attach"), steered:
        pass


def test_detaching_leaves_no_trace(plain, rows):
    before = plain.model(**rows[0]).logits
    model = attach(plain.model, trained(plain, "reft"))
    assert not torch.equal(model(**rows[0]).logits, before)
    model.detach()
    assert torch.equal(plain.model(**rows[0]).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in find_decoder_layers(plain.model))


# Ways to decode: each writes what steered greedy decoding of the whole prompt writes, or says why it does not.


def text_alone(plain: Plain) -> list[dict[str, torch.Tensor]]:
    """Chats without an image; their words come twice, so that prompt lookup has what to look up."""
    return [plain.prompt(f"{report} {report}", None) for report in REPORTS[1:3]]


def part_of(row: dict[str, torch.Tensor], n: int) -> dict[str, torch.Tensor]:
    """The first tokens of a chat."""
    return {
        name: value[:, :n] if value.shape[1:] == row["input_ids"].shape[1:] else value for name, value in row.items()
    }


def prefilled(model: Any, row: dict[str, torch.Tensor], n: int) -> DynamicCache:
    """A cache of the first tokens of a chat."""
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(**part_of(row, n), past_key_values=cache, use_cache=True)
    return cache


@cache
def assistant(family: str, folder: str) -> Any:
    """The same backbone without an adapter, which drafts what the steered one often does not write."""
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


WAYS = {
    "prompt lookup": lambda plain, row: {"prompt_lookup_num_tokens": 3},
    "an assistant": lambda plain, row: {"assistant_model": assistant(plain.family, plain.model.name_or_path)},
    "chunks of five": lambda plain, row: {"prefill_chunk_size": 5},
    "chunks of one": lambda plain, row: {"prefill_chunk_size": 1},
    "a static cache": lambda plain, row: {"cache_implementation": "static"},
    "no cache": lambda plain, row: {"use_cache": False},
}


@pytest.mark.parametrize(("way", "method"), [*((way, "dive") for way in WAYS), ("prompt lookup", "hificl")])
def test_every_way_to_decode_steers_what_greedy_decoding_steers(plain, way, method):
    intervention = trained(plain, method)
    for row in text_alone(plain):
        n_prompt = row["input_ids"].shape[1]
        with attach(plain.model, intervention) as model:
            expected = model.generate(**row, **plain.settings(10))
            # Assisted generation of some versions writes a token or two more than it should.
            written = model.generate(**row, **plain.settings(10), **WAYS[way](plain, row))[:, : n_prompt + 10]
        assert written.tolist() == expected.tolist()
        assert plain.model.generate(**row, **plain.settings(10)).tolist() != expected.tolist()


@pytest.mark.parametrize("way", ["prompt lookup", "an assistant", "a static cache", "no cache"])
def test_with_an_image_too(plain, rows, way):
    with attach(plain.model, trained(plain, "dive")) as model:
        for row in rows:
            n_written = row["input_ids"].shape[1] + 8
            expected = model.generate(**row, **plain.settings(8))
            written = model.generate(**row, **plain.settings(8), **WAYS[way](plain, row))
            assert written[:, :n_written].tolist() == expected.tolist()


def test_a_prompt_with_an_image_is_not_cut_into_chunks(plain, rows):
    with attach(plain.model, trained(plain, "dive")) as model, pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**rows[0], **plain.settings(4), prefill_chunk_size=8)


@pytest.mark.parametrize("left", [1, 7])
@pytest.mark.parametrize("by", ["the backbone", "the paused model", "a copied cache"])
def test_a_cached_prefix_is_not_steered_and_the_rest_of_the_prompt_as_ever(plain, by, left):
    row = text_alone(plain)[0]
    n = row["input_ids"].shape[1] - left
    filled = prefilled(plain.model, row, n)
    with attach(plain.model, trained(plain, "dive")) as model:
        expected = model.generate(**row, **plain.settings(8))
        if by != "the backbone":
            with model.steering.paused():
                filled = prefilled(model, row, n)
        if by == "a copied cache":
            filled = copy.deepcopy(filled)
        assert model.generate(**row, **plain.settings(8), past_key_values=filled).tolist() == expected.tolist()


def test_a_cache_that_was_cropped_or_emptied_is_that_of_a_prefix(plain):
    with attach(plain.model, trained(plain, "dive")) as model:
        row = text_alone(plain)[0]
        n_prompt = row["input_ids"].shape[1]
        used = DynamicCache()  # of full layers, which can be cropped
        expected = model.generate(**row, **plain.settings(8), past_key_values=used)
        used.crop(n_prompt - 1 - used.get_seq_length())
        assert model.generate(**row, **plain.settings(8), past_key_values=used).tolist() == expected.tolist()
        used.crop(-used.get_seq_length())
        with model.steering.paused():
            model(**part_of(row, n_prompt - 3), past_key_values=used, use_cache=True)
        assert model.generate(**row, **plain.settings(8), past_key_values=used).tolist() == expected.tolist()


def test_a_prefix_that_a_steered_call_has_cached_is_refused_since_its_last_token_was_steered(plain):
    row = text_alone(plain)[0]
    with attach(plain.model, trained(plain, "dive")) as model:
        filled = prefilled(model, row, 9)
        for given in (filled, copy.deepcopy(filled)):
            with pytest.raises(ValueError, match=r"steering\.paused\(\)"):
                model.generate(**row, **plain.settings(4), past_key_values=given)


def test_an_adapter_of_all_positions_wants_a_cache_that_it_has_steered(plain):
    row = text_alone(plain)[0]
    intervention = build_intervention({**METHODS["live"], "positions": "all"}, 3, 32, 0)
    untouched = prefilled(plain.model, row, 9)
    with attach(plain.model, intervention) as model:
        expected = model.generate(**row, **plain.settings(6))
        with pytest.raises(ValueError, match="filled without this adapter"):
            model.generate(**row, **plain.settings(6), past_key_values=untouched)
        filled = prefilled(model, row, 9)
        assert model.generate(**row, **plain.settings(6), past_key_values=filled).tolist() == expected.tolist()


def test_a_prompt_that_is_all_in_the_cache_is_refused(plain):
    row = text_alone(plain)[0]
    filled = prefilled(plain.model, row, row["input_ids"].shape[1])
    with attach(plain.model, trained(plain, "dive")) as model, pytest.raises(ValueError, match="at least one token"):
        model.generate(**row, **plain.settings(4), past_key_values=filled)


def test_a_chat_continued_on_a_copied_cache_by_prompt_lookup(plain):
    intervention = trained(plain, "dive")
    row = text_alone(plain)[0]
    n_prompt = row["input_ids"].shape[1]

    def talk(model: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        given = {"past_key_values": DynamicCache(), "return_dict_in_generate": True}
        first = model.generate(**row, **plain.settings(5), **given)
        ids = torch.cat([first.sequences, row["input_ids"][:, :6]], dim=1)
        chat = plain.typed({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        copied = copy.deepcopy(first.past_key_values)
        return ids, model.generate(**chat, **plain.settings(8), past_key_values=copied, **settings)

    (_, greedy), (ids, looked_up) = talk(plain.model), talk(plain.model, prompt_lookup_num_tokens=3)
    if greedy.tolist() != looked_up[:, : ids.shape[1] + 8].tolist():
        pytest.skip("this version of transformers reads a chat's cache twice in prompt lookup, steered or not")
    with attach(plain.model, intervention) as model:
        ids, written = talk(model, prompt_lookup_num_tokens=3)
    answer = written[0, ids.shape[1] : ids.shape[1] + 8].tolist()
    scores = spelt_out(plain, intervention, row, ids[0, n_prompt:].tolist() + answer)[-len(answer) :]
    scores[:, plain.special] = -math.inf
    assert scores.argmax(-1).tolist() == answer


def test_sampled_sequences_have_the_steered_model_s_probabilities(plain, rows):
    intervention = trained(plain, "dive")
    settings = {**plain.settings(6), "do_sample": True, "num_return_sequences": 3, "top_k": 0}
    with attach(plain.model, intervention) as model:
        found = model.generate(**rows[1], **settings, return_dict_in_generate=True, output_logits=True)
    n_prompt = rows[1]["input_ids"].shape[1]
    logits = torch.stack(found.logits, dim=1).log_softmax(-1)
    for sequence, scores in zip(found.sequences, logits, strict=True):
        expected = spelt_out(plain, intervention, rows[1], sequence[n_prompt:].tolist())
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_embeddings_in_place_of_ids(plain):
    row = text_alone(plain)[0]
    n_prompt = row["input_ids"].shape[1]
    embeds = plain.model.get_input_embeddings()(row["input_ids"])
    inputs = {name: value for name, value in row.items() if name != "input_ids"}
    try:
        plain.model.generate(inputs_embeds=embeds, **inputs, **plain.settings(2))
    except ValueError:
        pytest.skip("this version's model does not generate from embeddings")
    with attach(plain.model, trained(plain, "dive")) as model:
        expected = model.generate(**row, **plain.settings(8))[:, n_prompt:]
        assert model.generate(inputs_embeds=embeds, **inputs, **plain.settings(8)).tolist() == expected.tolist()


def test_padding_on_the_right_is_refused(plain):
    short, long = text_alone(plain)[1], plain.prompt(" ".join(REPORTS), None)
    missing = long["input_ids"].shape[1] - short["input_ids"].shape[1]
    pad = plain.model.generation_config.pad_token_id
    ids = torch.cat([nn.functional.pad(short["input_ids"], (0, missing), value=pad), long["input_ids"]])
    mask = torch.cat([nn.functional.pad(short["attention_mask"], (0, missing)), long["attention_mask"]])
    batch = plain.typed({"input_ids": ids, "attention_mask": mask})
    with attach(plain.model, trained(plain, "dive")) as model:
        with pytest.raises(ValueError, match="pad on the left"):
            model.generate(**batch, **plain.settings(4))
        with pytest.raises(ValueError, match="pad on the left"):
            model.generate(input_ids=ids, **plain.settings(4))
        with pytest.raises(ValueError, match="pad on the left"):
            model(**batch)


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 1.5},
        {"custom_generate": lambda model, input_ids, **_: input_ids},
        {"custom_generate": "user/recipe"},
        {"penalty_alpha": 0.6, "top_k": 4, "trust_remote_code": True},
        {"dola_layers": "low", "trust_remote_code": True},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "trust_remote_code": True},
        {"cache_implementation": "paged"},
    ],
)
def test_what_cannot_be_steered_is_refused_by_name(plain, arguments):
    row = text_alone(plain)[0]
    with attach(plain.model, trained(plain, "dive")) as model:
        name = {"cache_implementation": "continuous batching"}.get(next(iter(arguments)), list(arguments)[-1])
        with pytest.raises(ValueError, match=name):
            model.generate(**row, **{**plain.settings(4), **arguments})
        if hasattr(plain.model, "generate_batch"):
            with pytest.raises(ValueError, match="continuous batching"):
                model.generate_batch([[1, 2, 3]])


def test_a_setting_of_the_model_s_own_configuration_counts(plain):
    row = text_alone(plain)[0]
    with attach(plain.model, trained(plain, "dive")) as model:
        expected = model.generate(**row, **plain.settings(6))
        n_written = expected.shape[1]
        chosen = copy.deepcopy(plain.model.generation_config)
        chosen.prompt_lookup_num_tokens = 3
        written = model.generate(**row, **plain.settings(6), generation_config=chosen)[:, :n_written]
        assert written.tolist() == expected.tolist()
        chosen.guidance_scale = 2.0
        with pytest.raises(ValueError, match="guidance_scale"):
            model.generate(**row, **plain.settings(6), generation_config=chosen)


def test_two_steered_models_and_an_adapter_each(plain):
    """The second one drafts for the first: its generate runs inside the other's."""
    row = text_alone(plain)[0]
    other = assistant(plain.family, plain.model.name_or_path)
    one, two = trained(plain, "dive"), trained(plain, "hificl")
    with attach(plain.model, one) as model:
        expected = model.generate(**row, **plain.settings(8))
        with attach(other, two) as draft:
            alone = draft.generate(**row, **plain.settings(8))
            written = model.generate(**row, **plain.settings(8), assistant_model=draft)[:, : expected.shape[1]]
            assert draft.generate(**row, **plain.settings(8)).tolist() == alone.tolist() != expected.tolist()
        assert written.tolist() == expected.tolist()
        assert model.generate(**row, **plain.settings(8)).tolist() == expected.tolist()


def test_threads_take_turns(plain):
    chats = text_alone(plain)
    with attach(plain.model, trained(plain, "dive")) as model, ThreadPoolExecutor(3) as pool:
        expected = [model.generate(**row, **plain.settings(6)).tolist() for row in chats]
        jobs = [pool.submit(lambda row=row: model.generate(**row, **plain.settings(6)).tolist()) for row in chats * 2]
        assert [job.result() for job in jobs] == expected * 2
