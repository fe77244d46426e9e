"""Whether the backbones of the configuration can be used, asked of their ``config.json`` before any job starts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dive.backbones.requirements import image_errors, method_errors, unsupported
from dive.data.estimates import GEMMA3, PUBLISHED, find_config


def check_backbones(config: Mapping[str, Any], rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """A message for everything that the real backbones of a run are not, or do not have.

    Of one that is not on this machine yet only what is published of it is checked.

    Args:
        config: the resolved configuration.
        rows: (dataset, backbone, method) of every row that is run.
    """
    methods: dict[str, dict[str, None]] = {}
    for _, backbone, method in rows:
        methods.setdefault(backbone, {})[method] = None
    messages: list[str] = []
    for name, used in methods.items():
        settings = config["backbones"][name]
        if not settings["tiny"]:
            messages += check_backbone(name, settings, {method: config["methods"][method] for method in used})
    return list(dict.fromkeys(messages))


def check_backbone(name: str, settings: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same of one backbone and the methods that are run with it."""
    key = f"backbones.{name}"
    folder = Path(settings["path"])
    try:
        found = find_config(settings["path"], settings["revision"])
    except (OSError, ValueError) as error:  # ValueError: no JSON, or no UTF-8
        return [f"{key}.path: config.json of {folder} cannot be read ({type(error).__name__}); fetch the model again"]
    if found is None and folder.is_dir():
        return [f"{key}.path: {folder} has no config.json; give a folder that save_pretrained wrote"]
    if found is None and (folder.is_absolute() or folder.parts[0] in (".", "..", "models")):
        return [f"{key}.path: there is no folder {folder}; correct the path, or give a name on the Hugging Face hub"]
    if found is None:
        shape = PUBLISHED.get(settings["path"])
        if shape is None:
            return []
        family, layers, width = "gemma3" if shape is GEMMA3 else "qwen2_5_vl", shape.layers, shape.width
    else:
        text = found.get("text_config", {}) if isinstance(found, dict) else None
        if not isinstance(text, dict):
            return [f"{key}.path: config.json of {folder} is not what transformers writes; fetch the model again"]
        if problem := unsupported(found.get("model_type")):
            return [f"{key}.path: {problem}"]
        text = {**found, **text}
        family, layers, width = found["model_type"], text.get("num_hidden_layers"), text.get("hidden_size")
    messages = [f"{key}.image.{setting}: {message}" for setting, message in image_errors(family, settings["image"])]
    if isinstance(layers, int) and isinstance(width, int):
        for method, said in methods.items():
            plain = method.partition("@")[0]
            messages += [
                f"methods.{plain}.{option}: {text}" for option, text in method_errors(said, name, layers, width)
            ]
    return messages
