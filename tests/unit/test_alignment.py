"""From characters to subwords, for the tokenizer families that the field uses, built here without the network."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dive.annotation.alignment import mark_tokens, require_fast
from dive.annotation.weights import token_weights
from dive.backbones.families import Family
from dive.backbones.prompts import PromptBuilder

CORPUS = [
    "There is a small left pleural effusion. No pneumothorax is seen; the heart size is normal.",
    "Ground-glass opacities/nodule in the right upper lobe, 1.5 cm. Atelectasis at both bases.",
    "The lungs are clear without consolidation or edema. ET tube ends 4 cm above the carina.",
] * 4
# The patterns that Llama 3 and Qwen 2.5 publish; they differ in how many digits make a token.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(split: str | None, trim: bool) -> Tokenizer:
    """Byte-level BPE: GPT-2 (trimmed offsets), Qwen 2.5 and Llama 3 (a pattern, the blank in the token)."""
    tokenizer = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None, trim_offsets=trim)
    if split is None:
        tokenizer.pre_tokenizer = bytes_only
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), behavior="isolated"), bytes_only]
        )
    if trim:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_bpe(prefix: bool) -> Tokenizer:
    """BPE with bytes as a last resort: Llama 2 (a blank is put before the text) and Gemma 3 (none is)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    tokenizer.decoder = decoders.ByteFallback()
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    return tokenizer


def unigram() -> Tokenizer:
    """T5: unigram pieces of a text that is normalised first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


FAMILIES = {
    "gemma3": sentencepiece_bpe(prefix=False),
    "qwen2.5": byte_level(PATTERN.replace("DIGITS", ""), trim=False),
    "llama2": sentencepiece_bpe(prefix=True),
    "llama3": byte_level(PATTERN.replace("DIGITS", "{1,3}"), trim=False),
    "gpt2": byte_level(None, trim=True),
    "t5": unigram(),
}


def brute_force(offsets, spans, text):
    """The definition, character by character."""
    decisive = {place for start, end in spans for place in range(start, end) if not text[place].isspace()}
    return [any(place in decisive for place in range(start, end)) for start, end in offsets]


TEXTS = st.text("abefgilnorstu ABI-.,/\n\t1éμ​½", max_size=60) | st.sampled_from(CORPUS)


@st.composite
def texts_with_spans(draw):
    text = draw(TEXTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return text, list(zip(cuts[::2], cuts[1::2], strict=False))


@pytest.mark.parametrize("family", list(FAMILIES))
@settings(deadline=None)
@given(case=texts_with_spans())
def test_spans_are_covered_and_nothing_else_is_marked(family, case):
    text, spans = case
    offsets = FAMILIES[family].encode(text, add_special_tokens=False).offsets
    marked = mark_tokens(offsets, spans, text)
    assert marked.tolist() == brute_force(offsets, spans, text)
    covered = {place for (start, end), mark in zip(offsets, marked, strict=True) if mark for place in range(start, end)}
    seen = {place for start, end in offsets for place in range(start, end)}
    for start, end in spans:
        for place in range(start, end):
            # Every character of a span that any token stands for is covered by a marked one.
            assert text[place].isspace() or place in covered or place not in seen


@pytest.mark.parametrize("family", list(FAMILIES))
def test_no_character_of_a_report_is_lost(family):
    for text in CORPUS[:3]:
        offsets = FAMILIES[family].encode(text, add_special_tokens=False).offsets
        seen = {place for start, end in offsets for place in range(start, end)}
        assert all(place in seen or text[place].isspace() for place in range(len(text)))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_first_token_of_a_span_is_marked(family):
    text = CORPUS[0]
    start = text.index("pleural effusion")
    offsets = FAMILIES[family].encode(text, add_special_tokens=False).offsets
    marked = mark_tokens(offsets, [(start, start + 16)], text)
    stretch = [text[a:b] for (a, b), mark in zip(offsets, marked, strict=True) if mark]
    assert "".join(stretch).replace(" ", "").rstrip(".") == "pleuraleffusion"  # small vocabularies join the full stop


def test_offsets_of_the_qwen_kind_begin_with_the_blank():
    """The case that a test of containment gets wrong; if this changes, the tokenizers above test nothing."""
    text = "left effusion"
    encoded = FAMILIES["qwen2.5"].encode(text)
    starts = [text[start] for start, end in encoded.offsets]
    assert " " in starts
    contained = [start >= 5 and end <= 13 for start, end in encoded.offsets]
    marked = mark_tokens(encoded.offsets, [(5, 13)], text)
    assert marked.sum() == sum(contained) + 1


def test_a_blank_alone_is_never_decisive():
    text = "pleural  effusion"
    offsets = [(0, 7), (7, 9), (9, 17)]
    assert mark_tokens(offsets, [(0, 17)], text).tolist() == [True, False, True]


def test_several_tokens_of_one_character_are_all_marked():
    encoded = FAMILIES["gemma3"].encode("é½", add_special_tokens=False)
    assert len(encoded.offsets) > 2
    marked = mark_tokens(encoded.offsets, [(0, 1)], "é½")
    assert marked.tolist() == [start == 0 for start, _ in encoded.offsets]


def test_truncation_marks_what_is_left():
    text = "No effusion and no pneumothorax"
    offsets = [(0, 2), (2, 11), (11, 15)]
    assert mark_tokens(offsets, [(3, 11), (19, 31)], text).tolist() == [False, True, False]
    assert mark_tokens([], [(3, 11)], text).shape == (0,)
    assert mark_tokens(offsets, [], text).tolist() == [False] * 3
    assert mark_tokens(offsets, [(3, 11)], text).dtype == np.bool_


PATHOLOGY = ("pleural effusion", "pneumothorax", "Ground-glass opacities", "nodule", "Atelectasis", "edema")


class Specials:
    """A chat in each family's own special tokens, as `PromptBuilder` needs it, without images."""

    def __init__(self, family):
        from transformers import PreTrainedTokenizerFast

        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=FAMILIES[family])
        self.tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<turn>", "<end>", "<img>"], "pad_token": "<pad>"}
        )
        self.tokenizer.chat_template = (
            "{% for m in messages %}<turn>{{ m.role }}\n{% for part in m.content %}"
            "{% if part.type == 'image' %}<img>{% else %}{{ part.text }}{% endif %}{% endfor %}<end>\n{% endfor %}"
            "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
        )
        self.term = self.tokenizer.convert_tokens_to_ids("<end>")

    def builder(self):
        image = self.tokenizer.convert_tokens_to_ids("<img>")
        return PromptBuilder(self.tokenizer, Family("<img>", "<img>"), image, {self.term}, "Describe.")


@pytest.fixture(scope="module", params=FAMILIES)
def chat(request):
    return Specials(request.param)


@pytest.mark.parametrize("text", CORPUS[:3])
def test_the_rendered_chat_has_the_report_s_spans_and_the_terminator_by_index(chat, text):
    """Offsets come from the whole chat; TERM is the last label, in no span, and weighted by its place alone."""
    spans = [(at, at + len(word)) for word in PATHOLOGY if (at := text.find(word)) >= 0]
    prompt = chat.builder().render("q", {"q": 3}, report=text)
    assert prompt.labels[-1] == chat.term
    assert prompt.n_labels == len(prompt.offsets) + 1
    seen = {place for start, end in prompt.offsets for place in range(start, end)}
    assert all(place in seen or text[place].isspace() for place in range(len(text)))
    marked = mark_tokens(prompt.offsets, spans, text)
    assert marked.tolist() == brute_force(prompt.offsets, spans, text)
    covered = {place for (a, b), mark in zip(prompt.offsets, marked, strict=True) if mark for place in range(a, b)}
    assert all(place in covered or text[place].isspace() for start, end in spans for place in range(start, end))
    weights = token_weights(marked, prompt.complete, 3, 10)
    assert weights[-1] == 10
    assert set(weights[:-1]) <= {1.0, 3.0}


def test_a_cut_report_marks_what_is_left_and_has_no_terminator(chat):
    text = CORPUS[0]
    whole = chat.builder().render("q", {"q": 3}, report=text)
    spans = [(at, at + len(word)) for word in PATHOLOGY if (at := text.find(word)) >= 0]
    marked = mark_tokens(whole.offsets, spans, text)
    for limit in range(1, len(whole.offsets) + 1):
        prompt = chat.builder().render("q", {"q": 3}, report=text, max_report_tokens=limit)
        assert prompt.labels == whole.labels[: limit + (limit == len(whole.offsets))]
        found = mark_tokens(prompt.offsets, spans, text)
        assert found.tolist() == marked[:limit].tolist()
        assert len(token_weights(found, prompt.complete, 3, 10)) == prompt.n_labels
        assert prompt.complete == (limit == len(whole.offsets))


def test_a_slow_tokenizer_is_refused_before_any_prompt():
    from transformers import ByT5Tokenizer

    with pytest.raises(ValueError, match=r"fast tokenizer is needed.*offsets"):
        PromptBuilder(ByT5Tokenizer(), Family("<img>", "<img>"), 0, {1}, "Describe.")


def test_places_outside_the_text_are_refused():
    with pytest.raises(ValueError, match=r"span 0\.\.5"):
        mark_tokens([(0, 3)], [(0, 5)], "abc")
    with pytest.raises(ValueError, match="of another text"):
        mark_tokens([(0, 9)], [(0, 3)], "abc")


def test_slow_tokenizers_are_refused():
    from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

    require_fast(PreTrainedTokenizerFast(tokenizer_object=FAMILIES["gpt2"]))
    with pytest.raises(ValueError, match=r"ByT5Tokenizer is a slow tokenizer.*use_fast=True"):
        require_fast(ByT5Tokenizer())
