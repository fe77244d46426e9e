"""Randomly initialised backbones of any size, the two of the paper's among them, and prompts of exact lengths for them.

Speed and memory depend on shapes, not on what a model knows: no weights are needed. A word is a token here, so that a
report of T tokens is one of T words. Needs torch, transformers and the package alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from dive.backbones.loading import Backbone, ImageFeatures
from dive.backbones.prompts import Prompt
from dive.backbones.untrained import processor_class
from dive.distillation.supervision import SupervisionStore

INSTRUCTION = "Describe the findings of this chest radiograph ."
WORDS = [f"w{i}" for i in range(400)]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "<end>", "<before>", "<after>", "<|image_pad|>", "<video>"]
TEMPLATE = """{%- for message in messages -%}
    {{ '<turn> ' + message['role'] + ' ' }}
    {%- for item in message['content'] -%}{{ IMAGE if item['type'] == 'image' else item['text'] }}{%- endfor -%}
    {{ ' <end> ' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn> assistant ' }}{%- endif -%}"""
IMAGE = {"gemma3": "'<before>'", "qwen2_5_vl": "'<before><|image_pad|><after>'"}


METHOD = {
    "module": "dive",
    "rank": 16,
    "layers": "all",
    "positions": "answer",
    "weights": {"pathology": 3.0, "eos": 10.0},
    "loss": {"kd": 1.0, "ce": 0.5, "hidden": 0.0, "temperature": 1.0},
    "optimiser": {"lr": 1e-3, "weight_decay": 1e-3, "warmup": 0.1, "clip": 1.0},
    "epochs": 1,
    "batch_size": 4,
}
"""The method that is timed: ``methods.dive`` of config.yaml, but for epochs and batch size."""


@dataclass(frozen=True)
class Shape:
    """All sizes of a backbone.

    Attributes:
        family: gemma3 or qwen2_5_vl.
        width, layers, mlp, heads, kv_heads, head_dim, vocabulary: of the language model.
        window: of Gemma 3's local layers, five to a global one.
        vision_width, vision_layers, vision_mlp, vision_heads: of the tower.
        pixels, patch: sides of image and patch.
        image_tokens: of one image.
    """

    family: str
    width: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    vision_width: int
    vision_layers: int
    vision_mlp: int
    vision_heads: int
    pixels: int
    patch: int
    image_tokens: int
    window: int = 1024

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """(t, h, w) of an image in patches, where positions depend on it."""
        side = self.pixels // self.patch
        return (1, side, side) if self.family == "qwen2_5_vl" else None

    @property
    def layer_weights(self) -> int:
        """Weights of one decoder layer's matrices: each costs two operations a token."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.width * self.mlp

    @property
    def parameters(self) -> int:
        """All parameters, counted from the published architecture."""
        d, v = self.width, self.vision_width
        if self.family == "gemma3":
            small = 4 * d + 2 * self.head_dim  # norms around both sub-modules, norms of queries and keys
            block = 4 * (v * v + v) + 2 * v * self.vision_mlp + self.vision_mlp + v + 4 * v
            patches = 3 * self.patch**2 * v + v + (self.pixels // self.patch) ** 2 * v
            tower = patches + self.vision_layers * block + 2 * v
            projector, head = v * d + v, 0  # the head is the embedding
        else:
            small = 2 * d + (self.heads + 2 * self.kv_heads) * self.head_dim  # norms, biases of q, k, v
            block = 2 * v + 4 * v * v + 4 * v + 3 * v * self.vision_mlp + 2 * self.vision_mlp + v
            tower = 3 * 2 * self.patch**2 * v + self.vision_layers * block
            projector, head = v + (4 * v) ** 2 + 4 * v + 4 * v * d + d, self.vocabulary * d
        language = self.vocabulary * d + self.layers * (self.layer_weights + small) + d + head
        return language + tower + projector


MEDGEMMA_4B = Shape("gemma3", 2560, 34, 10240, 8, 4, 256, 262208, 1152, 27, 4304, 16, 896, 14, 256)
# The processor of Qwen 2.5-VL keeps the size of an image within limits; 448 pixels make 256 tokens.
LINGSHU_7B = Shape("qwen2_5_vl", 3584, 28, 18944, 28, 4, 128, 152064, 1280, 32, 3420, 16, 448, 14, 256)

# An image of the paper's 256 tokens on a model that two cores can run: one block of five local layers and a global one,
# a tower that costs as much a picture as the language model does (MedGemma's costs more).
SMALL = Shape("gemma3", 256, 6, 1024, 4, 2, 64, 32768, 96, 3, 384, 4, 384, 12, 256)
# The synthetic world's language model, with 16 tokens an image.
WORLD = Shape("gemma3", 128, 4, 384, 4, 4, 32, 1024, 96, 3, 384, 4, 96, 12, 16)


def shrunk(shape: Shape) -> Shape:
    """The same family and proportions at a size for tests."""
    language = {"width": 64, "layers": 6, "mlp": 128, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocabulary": 512}
    vision = {"vision_width": 16, "vision_layers": 2, "vision_mlp": 32, "vision_heads": 2}
    return replace(shape, **language, **vision, pixels=shape.patch * 8, image_tokens=16)


def build_tokenizer(family: str) -> Any:
    """A tokenizer whose tokens are words, with a chat template that has the family's image placeholder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

    words = [*SPECIAL, "user", "assistant", *INSTRUCTION.split(), *WORDS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens={"boi_token": "<before>", "eoi_token": "<after>", "image_token": "<|image_pad|>"},
        chat_template=TEMPLATE.replace("IMAGE", IMAGE[family]),
    )


def build_model(shape: Shape) -> Any:
    """A random model in torch's default dtype and device; ``torch.device("meta")`` allocates nothing."""
    token = {name: SPECIAL.index(name) for name in SPECIAL}
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 32768,
        "initializer_range": shape.width**-0.5,  # logits of unit scale at any width
        "bos_token_id": token["<bos>"],
        "eos_token_id": token["<end>"],
        "pad_token_id": token["<pad>"],
    }
    vision = {"hidden_size": shape.vision_width, "intermediate_size": shape.vision_mlp, "patch_size": shape.patch}
    if shape.family == "gemma3":
        from transformers.models.gemma3.configuration_gemma3 import Gemma3Config
        from transformers.models.gemma3.modeling_gemma3 import Gemma3ForConditionalGeneration

        model = Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config={
                    **text,
                    "head_dim": shape.head_dim,
                    "query_pre_attn_scalar": shape.head_dim,
                    "sliding_window": shape.window,
                    "layer_types": [
                        "sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(shape.layers)
                    ],
                },
                vision_config={
                    **vision,
                    "num_hidden_layers": shape.vision_layers,
                    "num_attention_heads": shape.vision_heads,
                    "image_size": shape.pixels,
                    "vision_use_head": False,
                },
                mm_tokens_per_image=shape.image_tokens,
                boi_token_index=token["<before>"],
                eoi_token_index=token["<after>"],
                image_token_index=token["<|image_pad|>"],
                eos_token_id=[token["<eos>"], token["<end>"]],
            )
        )
        # Left at zero by transformers: no image would make a difference.
        torch.nn.init.normal_(
            model.model.multi_modal_projector.mm_input_projection_weight, std=shape.vision_width**-0.5
        )
    else:
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

        eighth = shape.head_dim // 8
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={
                    **text,
                    "rope_scaling": {"type": "mrope", "mrope_section": [eighth, eighth * 3 // 2, eighth * 3 // 2]},
                },
                vision_config={
                    **vision,
                    "depth": shape.vision_layers,
                    "num_heads": shape.vision_heads,
                    "spatial_merge_size": 2,
                    "window_size": 8 * shape.patch,
                    "fullatt_block_indexes": [i for i in range(shape.vision_layers) if i % 8 == 7],
                    "out_hidden_size": shape.width,
                },
                vision_start_token_id=token["<before>"],
                vision_end_token_id=token["<after>"],
                image_token_id=token["<|image_pad|>"],
                video_token_id=token["<video>"],
            )
        )
    model.generation_config.eos_token_id = [token["<eos>"], token["<end>"]]
    model.generation_config.pad_token_id = token["<pad>"]
    return model


def image_processor(shape: Shape) -> Any:
    """The family's processor, for pictures of any size, at the size that the shape's image tokens take."""
    if shape.family == "gemma3":
        size = {"height": shape.pixels, "width": shape.pixels}
        return processor_class("gemma3", "Gemma3ImageProcessor")(size=size, image_seq_length=shape.image_tokens)
    return processor_class("qwen2_vl", "Qwen2VLImageProcessor")(
        patch_size=shape.patch, merge_size=2, min_pixels=shape.pixels**2, max_pixels=shape.pixels**2
    )


def random_backbone(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Backbone:
    """A frozen random backbone, drawn on the device and in the dtype that it stays in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            model = build_model(shape)
    finally:
        torch.set_default_dtype(before)
    return Backbone(model, build_tokenizer(shape.family), INSTRUCTION)


class Study(NamedTuple):
    """Queries with random reports, and demonstrations drawn for them.

    Attributes:
        queries: keys of the queries.
        reports: text by key, of queries and demonstrations.
        drawn: K demonstration keys by query.
        n_tokens: image tokens by key.
    """

    queries: list[str]
    reports: dict[str, str]
    drawn: dict[str, list[str]]
    n_tokens: dict[str, int]

    @property
    def shown(self) -> list[str]:
        """Keys of the demonstrations."""
        return sorted({other for others in self.drawn.values() for other in others})

    def render(self, backbone: Backbone, shots: int = 0, report: bool = True) -> list[Prompt]:
        """Prompts of the queries with the first ``shots`` of their demonstrations, with or without their reports."""
        return [
            backbone.prompts.render(
                uid,
                self.n_tokens,
                [(other, self.reports[other]) for other in self.drawn[uid][:shots]],
                self.reports[uid] if report else None,
            )
            for uid in self.queries
        ]


def draw_study(shape: Shape, n_queries: int, length: int, n_shots: int = 0, spread: float = 0.25) -> Study:
    """Queries with reports of about ``length`` tokens, and as many demonstrations as queries, or K if that is more.

    Args:
        shape: of the backbone.
        n_queries: N.
        length: mean tokens of a report.
        n_shots: K.
        spread: reports are up to this share shorter or longer.
    """
    draw = np.random.default_rng(0)
    queries = [f"q{i}" for i in range(n_queries)]
    others = [f"d{i}" for i in range(max(n_queries, n_shots) if n_shots else 0)]
    keys = [*queries, *others]
    lengths = np.rint(length * (1 + spread * draw.uniform(-1, 1, len(keys)))).astype(int)
    return Study(
        queries,
        {key: " ".join(draw.choice(WORDS, n)) for key, n in zip(keys, lengths, strict=True)},
        {uid: draw.choice(others, n_shots, replace=False).tolist() if n_shots else [] for uid in queries},
        dict.fromkeys(keys, shape.image_tokens),
    )


def draw_features(shape: Shape, backbone: Backbone, keys: Sequence[str]) -> dict[str, ImageFeatures]:
    """Random image features of the right shape, for what does not run the tower."""
    generator = torch.Generator().manual_seed(1)
    size = (shape.image_tokens, shape.width)
    return {
        key: ImageFeatures(torch.randn(size, generator=generator).to(backbone.device, backbone.dtype), shape.grid)
        for key in keys
    }


def supervision_of(prompts: Sequence[Prompt], weights: dict[str, float]) -> SupervisionStore:
    """Weights of the reports' labels, every third token of a report being decisive."""
    marked = [np.arange(prompt.report_length) % 3 == 0 for prompt in prompts]
    return SupervisionStore(marked, [prompt.complete for prompt in prompts], weights, [None] * len(prompts))
