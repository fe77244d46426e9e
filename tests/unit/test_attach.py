"""``attach`` on plain transformers models of four families: generation from pixels equals the rule spelt out.

Nothing of this project but ``attach`` is between the test and transformers: models come from ``from_pretrained``,
prompts from the tokenizer's chat template, images as pixel values.
"""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
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


def test_detaching_leaves_no_trace(plain, rows):
    before = plain.model(**rows[0]).logits
    model = attach(plain.model, trained(plain, "reft"))
    assert not torch.equal(model(**rows[0]).logits, before)
    model.detach()
    assert torch.equal(plain.model(**rows[0]).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in find_decoder_layers(plain.model))
