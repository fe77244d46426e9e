"""What differs between the families of vision-language models: image placeholders, attention types, positions."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Family:
    """The conventions of one family.

    Attributes:
        placeholder: what the chat template writes for an image.
        expansion: what the placeholder becomes, with one image token (repeated later).
        token_types: the model attends to the tokens of one image in both directions and is told which they are.
        rotary_3d: positions are (temporal, height, width) triples (M-RoPE, Qwen2-VL, 2409.12191).
        masks_by_layer_type: ready attention masks are given as a mapping from layer type; else as one tensor.
        unread: patterns of weights that the model never reads, so that checkpoints may have them or not.
    """

    placeholder: str
    expansion: str
    token_types: bool = False
    rotary_3d: bool = False
    masks_by_layer_type: bool = True
    unread: tuple[str, ...] = ()


# SigLIP's head pools an image into one vector, and both families read the states of its patches. Whether a model has
# it is said by `vision_use_head` of the vision configuration, which not every checkpoint's agrees with.
_POOLING_HEAD = r"\bvision_tower\.(vision_model\.)?head\."


def family_of(model_type: str, tokenizer: Any) -> Family:
    """Conventions of ``config.model_type``.

    Raises:
        ValueError: the family is not known here.
    """
    if model_type == "gemma3":
        begin, token, end = tokenizer.boi_token, tokenizer.image_token, tokenizer.eoi_token
        return Family(begin, f"\n\n{begin}{token}{end}\n\n", token_types=True, unread=(_POOLING_HEAD,))
    if model_type == "qwen2_5_vl":
        return Family("<|image_pad|>", "<|image_pad|>", rotary_3d=True)
    if model_type == "llava":
        return Family("<image>", "<image>", masks_by_layer_type=False, unread=(_POOLING_HEAD,))
    raise ValueError(
        f"model_type {model_type!r} is not supported; known: gemma3, qwen2_5_vl, llava (dive/backbones/families.py)"
    )


def rotary_positions(
    model: Any, ids: torch.Tensor, image_token_id: int, grids: list[tuple[int, int, int]]
) -> torch.Tensor:
    """Positions of one unpadded sequence by the model's own rule: (3, T).

    Args:
        model: a model whose base has ``get_rope_index`` (arguments are given by name: 5.x reordered them).
        ids: token ids (T,).
        image_token_id: the id that stands for one image token.
        grids: (t, h, w) patch grid of each image, in order.
    """
    rule = model.model.get_rope_index
    arguments: dict[str, Any] = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    if grids:
        arguments["image_grid_thw"] = torch.tensor(grids, device=ids.device)
    if "mm_token_type_ids" in inspect.signature(rule).parameters:
        arguments["mm_token_type_ids"] = (ids == image_token_id).long()[None]
    return rule(**arguments)[0][:, 0]
