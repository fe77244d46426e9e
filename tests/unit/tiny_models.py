"""Random, untrained backbones of the real transformers classes, small enough for tests.

Each is a folder as ``save_pretrained`` leaves it (model, tokenizer with chat template, image processor), so
that tests load it by the code that loads MedGemma and Lingshu. The shapes are chosen to be awkward where
the real ones are: Gemma 3 has heads * head_dim != width and a sliding window shorter than a prompt, Qwen
pads with a token that also ends generation.
"""

import inspect
import json
from importlib import import_module
from pathlib import Path

import torch

from dive.backbones.untrained import QWEN_TEMPLATE, SPECIAL_TOKENS, TEMPLATES, learn_tokenizer

FAMILIES = ("gemma3", "qwen2_5_vl")
INSTRUCTION = "Write the findings."

REPORTS = [
    "The heart is enlarged. Small left pleural effusion. No pneumothorax.",
    "Lungs are clear. No effusion or pneumothorax. Normal heart size.",
    "Right lower lobe consolidation, concerning for pneumonia.",
    "Mild pulmonary edema with moderate cardiomegaly. Bilateral effusions.",
    "Left chest tube in place. Small apical pneumothorax remains.",
]

SEEN = "<|vision_start|><|image_pad|><|vision_end|>"
LLAVA_TEMPLATE = QWEN_TEMPLATE.replace(SEEN, "<image>")
# An image that is not split into tiles, as Idefics 3's processor writes it, with 4 image tokens.
IDEFICS_TEMPLATE = QWEN_TEMPLATE.replace(
    SEEN, f"<fake_token_around_image><global-img>{'<image>' * 4}<fake_token_around_image>"
)

# The first ids, in this order: what the real tokenizers reserve.
SPECIAL = {
    **SPECIAL_TOKENS,
    "llava": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"),
    "idefics3": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>"),
}


def tokenizer(family: str):
    """Byte-level BPE learned from ``REPORTS``, with the family's special tokens and chat template."""
    texts = [*REPORTS, INSTRUCTION, "system user assistant model You are a helpful assistant.\n"] * 2
    template = {**TEMPLATES, "llava": LLAVA_TEMPLATE, "idefics3": IDEFICS_TEMPLATE}[family]
    return learn_tokenizer(texts, 400, SPECIAL[family], template)


def _gemma3(ids: dict[str, int], vocabulary: int):
    from transformers.models.gemma3.configuration_gemma3 import Gemma3Config
    from transformers.models.gemma3.modeling_gemma3 import Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,  # 4 * 12 != 32, as 8 * 256 != 2560
            "query_pre_attn_scalar": 12,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "max_position_embeddings": 2048,
            "pad_token_id": ids["<pad>"],
            "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]],
            "bos_token_id": ids["<bos>"],
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 12,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )
    return Gemma3ForConditionalGeneration(config)


def _qwen2_5_vl(ids: dict[str, int], vocabulary: int):
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 6,
            "spatial_merge_size": 2,
            "window_size": 24,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 32,
        },
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _llava(ids: dict[str, int], vocabulary: int):
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llava.configuration_llava import LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                bos_token_id=ids["<|endoftext|>"],
                eos_token_id=ids["<|im_end|>"],
                pad_token_id=ids["<|endoftext|>"],
            ),
            vision_config=CLIPVisionConfig(
                hidden_size=24,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=48,
                patch_size=12,
            ),
            image_token_index=ids["<image>"],
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
    )


def _idefics3(ids: dict[str, int], vocabulary: int):
    from transformers.models.idefics3.configuration_idefics3 import Idefics3Config
    from transformers.models.idefics3.modeling_idefics3 import Idefics3ForConditionalGeneration

    config = Idefics3Config(
        text_config={
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 12,
        },
        image_token_id=ids["<image>"],
        pad_token_id=ids["<|endoftext|>"],
        scale_factor=2,
    )
    return Idefics3ForConditionalGeneration(config)


def _image_processor(family: str):
    """The processor class that needs PIL alone; transformers 5 has it in a module of its own."""
    arguments = {
        "gemma3": {"size": {"height": 48, "width": 48}, "image_seq_length": 4},
        "qwen2_5_vl": {
            "patch_size": 6,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "min_pixels": 24 * 24,
            "max_pixels": 48 * 48,
        },
        "llava": {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}},
    }[family]
    name, module = {
        "gemma3": ("Gemma3ImageProcessor", "gemma3"),
        "qwen2_5_vl": ("Qwen2VLImageProcessor", "qwen2_vl"),
        "llava": ("CLIPImageProcessor", "clip"),
    }[family]
    package = f"transformers.models.{module}"
    try:
        found = getattr(import_module(f"{package}.image_processing_pil_{module}"), f"{name}Pil")
    except ModuleNotFoundError:
        found = getattr(import_module(f"{package}.image_processing_{module}"), name)
    return found(**arguments)


def write_tiny(folder: str | Path, family: str, seed: int = 0, scale: float = 0.25) -> Path:
    """Write an untrained backbone of ``family`` (``FAMILIES``, llava or idefics3) into ``folder``; a seed fixes the
    weights. Idefics 3 comes without an image processor, whose classes need torchvision.

    ``scale`` is the standard deviation of every weight matrix: transformers' own 0.02 makes nearly uniform
    logits, under which differences between two paths through the model would be hard to see.
    """
    folder = Path(folder)
    text = tokenizer(family)
    ids = {token: text.convert_tokens_to_ids(token) for token in SPECIAL[family]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made_by = {"gemma3": _gemma3, "qwen2_5_vl": _qwen2_5_vl, "llava": _llava, "idefics3": _idefics3}
        model = made_by[family](ids, len(text))
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # A smaller embedding, or a tied head only ever repeats the last token.
                torch.nn.init.normal_(parameter, std=scale / 2 if "embed_tokens" in name else scale)
            else:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
                if "post_" in name and family == "gemma3":
                    parameter.data.add_(1.0)
    generation = model.generation_config
    generation.do_sample = False
    if family == "gemma3":
        generation.eos_token_id = [ids["<eos>"], ids["<end_of_turn>"]]
        generation.pad_token_id, generation.bos_token_id = ids["<pad>"], ids["<bos>"]
    else:
        generation.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
        generation.pad_token_id = ids["<|endoftext|>"]
    model.eval().save_pretrained(folder)
    text.save_pretrained(folder)
    if family != "idefics3":
        _image_processor(family).save_pretrained(folder)
    if family == "gemma3":  # what AutoProcessor reads: 4 tokens an image instead of 256
        settings = {"processor_class": "Gemma3Processor", "image_seq_length": 4}
        (folder / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def settings(folder: str | Path) -> dict:
    """The slice of config.yaml that describes the backbone in ``folder``."""
    return {
        "title": "Tiny",
        "path": str(folder),
        "revision": None,
        "dtype": "float32",
        "device": "cpu",
        "instruction": INSTRUCTION,
        "image": {},
        "batch": {"vision": 8, "teacher": 3, "generation": 4, "training": 4},
    }


def image(seed: int, size: int = 48):
    """A grayscale picture of smooth noise, different for each seed."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(coarse, mode="L").resize((size, size), Image.Resampling.BICUBIC)


def plain_inputs(backbone, prompt, images: dict) -> dict:
    """What transformers' own classes take for one prompt: ids, mask, pixel values, and what tells image tokens."""
    pixels = dict(backbone.image_processor(images=[images[key] for key in prompt.images], return_tensors="pt"))
    pixels.pop("num_crops", None)
    ids = torch.tensor([prompt.ids])
    # Gemma 3 is told which tokens are an image's; so is Qwen from transformers 5 on, under another name.
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inspect.signature(backbone.model.forward).parameters:
            pixels[name] = (ids == backbone.image_token_id).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
