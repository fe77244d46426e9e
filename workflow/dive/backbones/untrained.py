"""Untrained tiny backbones of real families: tokenizer with chat template, image processor and model."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from dive.data.draws import stream
from dive.data.synthetic.findings import sample_findings
from dive.data.synthetic.language import BOILERPLATE, sample_style, write_report

GEMMA_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""

QWEN_TEMPLATE = """{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {%- endif -%}
    {{ '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['content'] is string -%}{{ message['content'] }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""

# The first token ids, in this order.
SPECIAL_TOKENS = {
    "gemma3": (
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    ),
    "qwen2_5_vl": (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
}
TEMPLATES = {"gemma3": GEMMA_TEMPLATE, "qwen2_5_vl": QWEN_TEMPLATE}


@dataclass(frozen=True)
class Recipe:
    """Sizes and training of a tiny backbone (config ``backbones.<name>.tiny``).

    Attributes:
        family: gemma3 or qwen2_5_vl.
        vocabulary: cap of the byte-pair vocabulary.
        pixels: side of the image that the tower sees; patches are 12 pixels wide.
        merge: patches merged along each side into one image token: (pixels / 12 / merge)^2 tokens an image.
        width, layers, heads, mlp: of the language model.
        vision_width, vision_layers: of the tower.
        images: size of the image pool.
        vision_steps, vision_batch, vision_rate: warm-up of the tower; learning rate of AdamW.
        steps, batch, length, rate: language model: sequences a step, longest sequence in tokens, learning rate.
        pairs: (image, report) pairs a sequence, at most.
    """

    family: str
    vocabulary: int = 1024
    pixels: int = 48
    merge: int = 2
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 384
    vision_width: int = 96
    vision_layers: int = 3
    images: int = 12000
    vision_steps: int = 400
    vision_batch: int = 96
    vision_rate: float = 2e-3
    steps: int = 880
    batch: int = 4
    length: int = 384
    pairs: int = 6
    rate: float = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in SPECIAL_TOKENS:
            raise ValueError(f"backbones.*.tiny.family must be one of {sorted(SPECIAL_TOKENS)}, not {self.family!r}")
        if self.pixels % (PATCH * self.merge):
            raise ValueError(f"backbones.*.tiny.pixels must be a multiple of {PATCH} * merge, not {self.pixels}")

    @property
    def image_tokens(self) -> int:
        return (self.pixels // PATCH // self.merge) ** 2


PATCH = 12


def build_tokenizer(recipe: Recipe, instruction: str) -> Any:
    """A byte-level byte-pair tokenizer learned from reports of many sites, with the family's chat template."""
    rng = stream(recipe.seed, "tokenizer")
    texts = [write_report(sample_findings(rng), sample_style(rng), rng) for _ in range(2000)]
    chat = ["system\nYou are a helpful assistant.\n", "user\n\n\n", "\n\n" + instruction, "assistant\n", "model\n"]
    texts += [*chat, *BOILERPLATE] * 200
    template = TEMPLATES[recipe.family]
    return learn_tokenizer(texts, recipe.vocabulary, SPECIAL_TOKENS[recipe.family], template, min_frequency=2)


def learn_tokenizer(
    texts: Sequence[str], vocabulary: int, special: Sequence[str], template: str, min_frequency: int = 0
) -> Any:
    """A byte-level byte-pair tokenizer learned from texts.

    Args:
        texts: what is counted.
        vocabulary: cap of the vocabulary.
        special: the first tokens, in this order: Gemma's, which begin with ``<pad>``, or in Qwen's manner.
        template: the chat template.
        min_frequency: of a pair that is merged.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=min_frequency,
            special_tokens=list(special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if special[0] == "<pad>":
        from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="<pad>",
            eos_token="<eos>",
            bos_token="<bos>",
            unk_token="<unk>",
            extra_special_tokens={
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
            chat_template=template,
        )
    from transformers import Qwen2TokenizerFast

    return Qwen2TokenizerFast(
        tokenizer_object=core,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(special[1:]),
        chat_template=template,
    )


def build_image_processor(recipe: Recipe) -> Any:
    """The family's image processor at the tiny size; both resize whatever lies on disk to ``pixels`` x ``pixels``."""
    if recipe.family == "gemma3":
        size = {"height": recipe.pixels, "width": recipe.pixels}
        return processor_class("gemma3", "Gemma3ImageProcessor")(size=size, image_seq_length=recipe.image_tokens)
    return processor_class("qwen2_vl", "Qwen2VLImageProcessor")(
        patch_size=PATCH,
        merge_size=recipe.merge,
        temporal_patch_size=2,
        min_pixels=recipe.pixels**2,
        max_pixels=recipe.pixels**2,
    )


def processor_class(family: str, name: str) -> Any:
    """The class that needs PIL alone; transformers 5 has it in a module of its own, and the other needs torchvision."""
    package = f"transformers.models.{family}"
    try:
        return getattr(import_module(f"{package}.image_processing_pil_{family}"), f"{name}Pil")
    except ModuleNotFoundError:
        return getattr(import_module(f"{package}.image_processing_{family}"), name)


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """An untrained model of the family; weights are drawn from torch's global generator."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS[recipe.family]}
    model = (_gemma3 if recipe.family == "gemma3" else _qwen2_5_vl)(recipe, ids, len(tokenizer))
    generation = model.generation_config
    generation.do_sample = False
    if recipe.family == "gemma3":
        generation.eos_token_id = [ids["<eos>"], ids["<end_of_turn>"]]
        generation.pad_token_id, generation.bos_token_id = ids["<pad>"], ids["<bos>"]
    else:
        generation.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
        generation.pad_token_id = ids["<|endoftext|>"]
    return model


def _decoder_sizes(recipe: Recipe, vocabulary: int) -> dict[str, Any]:
    """What the text configurations of both families call alike."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": recipe.width,
        "intermediate_size": recipe.mlp,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
    }


def _gemma3(recipe: Recipe, ids: dict[str, int], vocabulary: int) -> Any:
    from transformers.models.gemma3.configuration_gemma3 import Gemma3Config
    from transformers.models.gemma3.modeling_gemma3 import Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={
                **_decoder_sizes(recipe, vocabulary),
                "head_dim": recipe.width // recipe.heads,
                "query_pre_attn_scalar": recipe.width // recipe.heads,
                "sliding_window": 1024,
                "pad_token_id": ids["<pad>"],
                "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]],
                "bos_token_id": ids["<bos>"],
            },
            vision_config={
                "hidden_size": recipe.vision_width,
                "intermediate_size": 4 * recipe.vision_width,
                "num_hidden_layers": recipe.vision_layers,
                "num_attention_heads": 4,
                "image_size": recipe.pixels,
                "patch_size": PATCH,
                "vision_use_head": False,
            },
            mm_tokens_per_image=recipe.image_tokens,
            boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
            image_token_index=ids["<image_soft_token>"],
            eos_token_id=[ids["<eos>"], ids["<end_of_turn>"]],
        )
    )
    # transformers leaves the projection at zero, from where nothing would be learned.
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.05)
    return model


def _qwen2_5_vl(recipe: Recipe, ids: dict[str, int], vocabulary: int) -> Any:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

    head = recipe.width // recipe.heads
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                **_decoder_sizes(recipe, vocabulary),
                "rope_scaling": {"type": "mrope", "mrope_section": [head // 8, head // 16 * 3, head // 16 * 3]},
                "tie_word_embeddings": True,
                "bos_token_id": ids["<|endoftext|>"],
                "eos_token_id": ids["<|im_end|>"],
                "pad_token_id": ids["<|endoftext|>"],
            },
            vision_config={
                "depth": recipe.vision_layers,
                "hidden_size": recipe.vision_width,
                "intermediate_size": 3 * recipe.vision_width,
                "num_heads": 4,
                "patch_size": PATCH,
                "spatial_merge_size": recipe.merge,
                "window_size": recipe.pixels,
                "fullatt_block_indexes": [recipe.vision_layers - 1],
                "out_hidden_size": recipe.width,
            },
            tie_word_embeddings=True,
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
        )
    )
