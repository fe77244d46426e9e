"""What a backbone must be and which settings it takes, told from its ``config.json`` before anything is loaded.

No torch, so that asking costs nothing: the configuration's checks, ``make check-data`` and the job itself ask here.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

FAMILIES = ("gemma3", "qwen2_5_vl", "llava")
"""Values of ``model_type`` whose conventions `dive.backbones.families` has."""

PIXELS = {"min_pixels": "pixels", "max_pixels": "pixels"}
OPTIONS = {
    "do_normalize": "truth",
    "do_rescale": "truth",
    "image_mean": "channels",
    "image_std": "spread",
    "rescale_factor": "factor",
    "resample": "filter",
}
PROCESSORS: dict[str, dict[str, str]] = {
    "gemma3": OPTIONS,
    "qwen2_5_vl": {**OPTIONS, **PIXELS},
    "llava": OPTIONS,
}
"""Family -> what ``backbones.<name>.image`` may set of its image processor, and the kind of each value.

Left out is what gives an image another number of tokens than the model is made for: ``size``, crops and patch sizes,
and Gemma 3's ``do_pan_and_scan``, which makes several images of one. Qwen's size is ``min_pixels`` to ``max_pixels``.
"""

KINDS = {
    "truth": "must be true or false",
    "channels": "must be a list of three numbers, one for each colour, each from -1000 to 1000",
    "spread": "must be a list of three numbers, one for each colour, each above 0 and at most 1000",
    "factor": "must be a number above 0 and at most 1000",
    "filter": "must be a whole number from 0 to 5, one of Pillow's filters",
    "pixels": "must be a whole number of pixels from 1 to 100,000,000",
}


def image_errors(model_type: str, image: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(setting, message) of every setting of ``backbones.<name>.image`` that the family's image processor refuses."""
    known = PROCESSORS.get(model_type)
    if known is None:
        return []
    errors = []
    for name, value in image.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
            errors.append((name, f"cannot be set for the image processor of {model_type}; {remedy}"))
        elif not _is(known[name], value):
            hint = "; write it without quotes, in a file: --config makes texts" if isinstance(value, str) else ""
            errors.append((name, f"{KINDS[known[name]]}, not {shown(value)}{hint}"))
    wrong = {name for name, _ in errors}
    if {"min_pixels", "max_pixels"} <= set(image) - wrong and image["min_pixels"] > image["max_pixels"]:
        errors.append(("min_pixels", f"must not exceed max_pixels, which is {image['max_pixels']}"))
    return errors


def shown(value: Any) -> str:
    """A value of an error, not longer than a line takes."""
    return repr(value)[:60] if isinstance(value, str | int | float | None) else type(value).__name__


def _is(kind: str, value: Any) -> bool:
    if kind == "truth":
        return isinstance(value, bool)
    if kind in ("channels", "spread"):
        least = -1000 if kind == "channels" else 1e-6
        return isinstance(value, list | tuple) and len(value) == 3 and all(_is_number(v, least) for v in value)
    if kind == "factor":
        return _is_number(value, 1e-12)
    if not _is_number(value):
        return False
    return isinstance(value, int) and (0 <= value <= 5 if kind == "filter" else 1 <= value <= 100_000_000)


def _is_number(value: Any, least: float = -math.inf) -> bool:
    """A number, from ``least`` to a thousand where that is given: float32 ends somewhere."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return False
    return least == -math.inf or least <= value <= 1000


def unsupported(model_type: Any) -> str:
    """Why a ``model_type`` cannot be a backbone; an empty string where it can."""
    if model_type in FAMILIES:
        return ""
    return f"model_type {model_type!r} is not supported; choose a model whose type is {', '.join(FAMILIES)}"


def method_errors(method: Mapping[str, Any], backbone: str, layers: int, width: int) -> list[tuple[str, str]]:
    """(key, message) of what a steering method asks of a backbone that has not as much of it.

    Args:
        method: ``methods.<name>``; values of another type than they should have are passed over.
        backbone: its name, for the message.
        layers, width: of its decoder.
    """
    errors = []
    steered = method.get("layers")
    listed = steered if isinstance(steered, Sequence) and not isinstance(steered, str) else ()
    if wrong := [layer for layer in listed if isinstance(layer, int) and layer >= layers]:
        errors.append(("layers", f"{wrong[0]} is no layer of {backbone}, whose layers are 0 to {layers - 1}"))
    for key in ("rank", "like_dive"):
        rank = method.get(key)
        if isinstance(rank, int) and rank > width:
            errors.append((key, f"must be at most {width}, the width of {backbone}, not {rank}"))
    return errors
