"""Loading a checkpoint whole: each weight of the model is in the files, each of the files in the model, all finite.

transformers draws what a checkpoint lacks at random and leaves out what it does not know, with a warning at most.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dive.backbones.finite import not_finite
from dive.devices import explained_memory
from dive.progress import log

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights, as safetensors names them."""

UNTRAINED = ("mm_input_projection_weight",)
"""Matrices with which transformers begins a model that was never trained as zeros."""

NAMED = 5
"""How many weights an error names."""


def load_checkpoint(
    path: str,
    revision: str | None,
    config: Any,
    dtype: torch.dtype,
    device: str,
    unread: Sequence[str] = (),
) -> Any:
    """Load an image-text-to-text model from safetensors, and refuse a checkpoint that does not fill it exactly.

    Args:
        path: a ``save_pretrained`` folder, or a hub id.
        revision: hub revision, or None.
        config: its configuration.
        dtype: of the weights.
        device: where to put them.
        unread: patterns of weights that the model never reads, so that a checkpoint may have them or not.

    Raises:
        ValueError: weights are missing, unexpected, of another shape or type, not finite, or zeros alone, a file is
            damaged, or an adapter lies beside the weights; the message names them and the remedy.
        OSError: no weights at ``path``.
        RuntimeError: the device has no room for the model.
    """
    from transformers.models.auto.modeling_auto import AutoModelForImageTextToText
    from transformers.utils.hub import cached_file

    def find(name: str) -> str | None:
        return cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)

    if find("adapter_config.json"):
        raise ValueError(
            f"backbones.*.path {path}: adapter_config.json belongs to a PEFT adapter, which would not be applied; "
            "merge it into the weights and save those (merge_and_unload, save_pretrained), or remove its files"
        )
    stored = _stored_weights(path, find)
    if getattr(config, "quantization_config", None) is None:
        _refuse_integers(path, stored)
    model, info = AutoModelForImageTextToText.from_pretrained(
        path,
        config=config,
        dtype=dtype,
        revision=revision,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported by name, and refused below
    )
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]  # promised by an index alone
    _refuse_incomplete(path, info, left, unread)
    _refuse_two_heads(path, model, stored)
    with explained_memory("backbones.*.dtype to bfloat16, or give the device to this job alone"):
        model = model.to(device)
    kept = model.state_dict().keys()  # without buffers that are computed, in which an infinity may be meant
    weights = dict(model.named_parameters()) | {name: b for name, b in model.named_buffers() if name in kept}
    if bad := not_finite(weights):
        remedy = "download or build the checkpoint again"
        if dtype == torch.float16:
            remedy += ", or set backbones.*.dtype to bfloat16 or float32 if its values are beyond float16"
        raise ValueError(f"backbones.*.path {path}: {_listed(bad)} with values that are not finite; {remedy}")
    matrices = {n: tensor for n, tensor in weights.items() if tensor.ndim > 1 and not n.endswith(UNTRAINED)}
    if empty := [name for name, tensor in matrices.items() if not bool(tensor.any())]:
        raise ValueError(
            f"backbones.*.path {path}: {_listed(empty)} with zeros alone, as in a file that was downloaded in part; "
            "download or build the checkpoint again"
        )
    return model


def _stored_weights(path: str, find: Callable[[str], str | None]) -> dict[str, str]:
    """Name of every weight in the files, and its file; {} where there are none, which transformers explains.

    Args:
        path: for the errors.
        find: where a file of the checkpoint lies on this machine, by name; None for one that is not there.

    Raises:
        ValueError: a file is absent, or no safetensors file, or two files have other values of one weight.
    """
    names = ["model.safetensors"]
    if not find(names[0]):
        if not (index := find("model.safetensors.index.json")):
            return {}
        try:
            names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: not readable as an index of weights ({error}); download it again") from error
    again = "download or build the checkpoint again"
    stored = {}
    for name in names:
        if not (file := find(name)):
            raise ValueError(f"backbones.*.path {path}: {name} is absent, though its index names it; {again}")
        try:
            with safe_open(file, framework="pt") as weights:
                for key in list(weights.keys()):
                    if key in stored and not _is_same(key, stored[key], weights.get_tensor(key)):
                        raise ValueError(
                            f"backbones.*.path {path}: {Path(stored[key]).name} and {name} differ in {key}, so they "
                            f"are of two checkpoints; {again}"
                        )
                    stored[key] = file
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: cut off, damaged, or no safetensors file ({error}); {again}") from error
    return stored


def _is_same(name: str, file: str, other: torch.Tensor) -> bool:
    with safe_open(file, framework="pt") as weights:
        return torch.equal(weights.get_tensor(name), other)


def _refuse_integers(path: str, stored: Mapping[str, str]) -> None:
    """Raise ValueError where weights are of a type that only a quantised model computes with."""
    names = []
    for file in dict.fromkeys(stored.values()):
        with safe_open(file, framework="pt") as weights:
            names += [key for key in list(weights.keys()) if weights.get_slice(key).get_dtype() not in FLOATS]
    if names:
        raise ValueError(
            f"backbones.*.path {path}: {_listed(names)} that are no floating-point numbers of 16 or more bits, and "
            "config.json has no quantization_config that explains them; get the checkpoint that is not quantised"
        )


def _refuse_incomplete(path: str, info: Mapping[str, Any], left: Sequence[str], unread: Sequence[str]) -> None:
    """Raise ValueError unless model and checkpoint have the same weights, those that nothing reads aside."""
    unread_weight = re.compile("|".join(unread) or r"(?!)")
    mismatched = info["mismatched_keys"]  # names, or from transformers 5 on with shapes
    found = {
        "missing": {*info["missing_keys"], *left},
        "unexpected": {*info["unexpected_keys"]},
        "with another shape": {key if isinstance(key, str) else key[0] for key in mismatched},
    }
    ignored = sorted(key for keys in found.values() for key in keys if unread_weight.search(key))
    if ignored:
        log.info("%s: the model never reads %s, which the checkpoint lacks or has beside it", path, _listed(ignored))
    problems = [f"{what} {_listed(rest)}" for what, keys in found.items() if (rest := keys.difference(ignored))]
    if problems:
        raise ValueError(
            f"backbones.*.path {path}: the checkpoint does not hold the model that its config.json describes: "
            f"{'; '.join(problems)}. Download or build it again, or save the whole model with save_pretrained"
        )


def _refuse_two_heads(path: str, model: Any, stored: Mapping[str, str]) -> None:
    """Raise ValueError where input and output embeddings are one tensor in the model, and two in the files.

    transformers 5 keeps both then; before, whichever was read last took the place of the other.
    """
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        return
    names = [name for name in stored if re.search(r"(^|\.)(lm_head|embed_tokens)\.weight$", name)]
    values = []
    for name in names:
        with safe_open(stored[name], framework="pt") as weights:
            values.append(weights.get_tensor(name))
    if not all(value.shape == values[0].shape and torch.equal(value, values[0]) for value in values[1:]):
        raise ValueError(
            f"backbones.*.path {path}: config.json ties the embeddings, but {' and '.join(names)} differ; set "
            "tie_word_embeddings to false there, or save the model again"
        )


def _listed(names: Iterable[str]) -> str:
    """``7 weights (a, b, c, d, e and 2 more)``."""
    names = sorted(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {'weight' if len(names) == 1 else 'weights'} ({', '.join(names[:NAMED])}{more})"
