"""The configuration, checked before any job starts: every error at once, each with its dotted path; then complete.

No job imports this module: jobs get plain slices of the resolved configuration, so an edit here reruns nothing.
``python -m dive.config`` prints the JSON schema that lies in dive/resources.
"""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dive.bounds import PATTERNS
from dive.configfiles import ConfigError, Errors, kind_of, overlay, plain_errors, shortened
from dive.crosschecks import NAMED, cross_check, mapping, nearest
from dive.settings import METHODS, SAID, Config

PRESENTATION = ("title", "note", "group")
"""Keys that only tables and reports read: they are kept apart, so that a new title reruns nothing else."""


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration and return it complete: ``like`` resolved, numbers of one type, keys in one order.

    Args:
        config: config.yaml with its overlays, as parsed.

    Returns:
        A plain dict of the same structure. Titles, notes and groups are moved from ``datasets``, ``backbones`` and
        ``methods`` to ``presentation``, which has the same three mappings.

    Raises:
        ConfigError: with every error found, one a line: dotted path, what is wrong and what would be right.
    """
    if errors := plain_errors(config) + crowded(config):
        raise ConfigError(told(errors))
    inherited, errors = inherit(config)
    try:
        plain = Config.model_validate(inherited).model_dump(by_alias=True)
    except ValidationError as error:
        errors += [(path_of(item["loc"]), describe(item)) for item in error.errors()]
        plain = {}
    errors += cross_check(plain or inherited)  # once validated, texts of --config are the numbers that they stand for
    if errors:
        raise ConfigError(told(without_inherited(errors, config)))
    plain["presentation"] = {
        kind: {
            name: {key: value for key in PRESENTATION if (value := entry.pop(key, None)) is not None}
            for name, entry in plain[kind].items()
        }
        for kind in NAMED
    }
    add_transfers(plain)
    return plain


SHOWN = 50
"""Lines of a message; who mends so many sees the others next."""


def told(errors: Errors) -> str:
    """The message of a ConfigError: a line for every key."""
    by_path: dict[str, list[str]] = {}
    for path, message in dict.fromkeys(errors):
        by_path.setdefault(path, []).append(message)
    lines = [f"  {path}: {', or '.join(messages[:5])}" for path, messages in by_path.items()]
    more = [f"  ... and {len(lines) - SHOWN} more keys"] if len(lines) > SHOWN else []
    return "\n".join(["The configuration (config.yaml and its overlays) cannot be run:", *lines[:SHOWN], *more])


def crowded(config: Mapping[str, Any]) -> Errors:
    """Mappings of named entries that have more than anybody names, before `inherit` goes through all of them."""
    many = [kind for kind in (*NAMED, "grids") if len(mapping(config.get(kind))) > 1000]
    return [(kind, f"has {len(config[kind]):,} entries; at most 1,000 are allowed") for kind in many]


def add_transfers(config: dict[str, Any]) -> None:
    """Add the methods that grids write as ``method@dataset``: the method's settings, and where it is trained."""
    shown = config["presentation"]
    for entry in dict.fromkeys(entry for grid in config["grids"].values() for entry in grid["methods"]):
        name, at, dataset = entry.partition("@")
        if at:
            config["methods"][entry] = {**config["methods"][name], "trained_on": dataset}
            title = f"{shown['methods'][name]['title']} from {shown['datasets'][dataset]['title']}"
            shown["methods"][entry] = {"title": title, "group": "transfer"}


def inherit(config: Mapping[str, Any]) -> tuple[dict[str, Any], Errors]:
    """Replace ``like: other`` by what the other entry says, overlaid key by key with the entry's own values."""
    resolved, errors = dict(config), []
    for kind in NAMED:
        entries = config.get(kind)
        if not isinstance(entries, Mapping):
            continue
        resolved[kind] = {}
        for name in entries:
            chain, current = [name], entries[name]
            while isinstance(current, Mapping) and "like" in current:
                parent = current["like"]
                if not isinstance(parent, str):
                    errors.append((f"{kind}.{name}.like", f"must be the name of another entry, not {kind_of(parent)}"))
                    break
                if parent in chain or parent not in entries:
                    problem = "inherits from itself" if parent in chain else f"is unknown{nearest(parent, entries)}"
                    errors.append((f"{kind}.{name}.like", f"{shortened(parent)} {problem}"))
                    break
                chain.append(parent)
                current = entries[parent]
            merged: Any = {}
            for ancestor in reversed(chain):
                merged = overlay(without_options(merged, entries[ancestor]), entries[ancestor])
            if isinstance(merged, Mapping):
                merged = {key: value for key, value in merged.items() if key != "like"}
            resolved[kind][name] = merged
    return resolved, errors


def without_options(base: Any, top: Any) -> Any:
    """``base`` as an entry with another steering module inherits it: without what only its own module reads."""
    old, new = (mapping(SAID.get(str(mapping(entry).get("module")))).get("OPTIONS") for entry in (base, top))
    if old is None or new is None:
        return base
    lost = set(old) - set(new)
    kept = {key: value for key, value in base.items() if key not in lost}
    if isinstance(kept.get("optimiser"), Mapping):
        kept["optimiser"] = {key: value for key, value in kept["optimiser"].items() if key not in lost}
    return kept


def without_inherited(errors: Errors, config: Mapping[str, Any]) -> Errors:
    """The errors without those that an entry only inherits: they are told once, where they are written."""
    kept, all_told = [], set(errors)
    for path, message in errors:
        kind, _, rest = path.partition(".")
        entries = mapping(config.get(kind)) if kind in NAMED else {}
        # Names may hold dots, so the entry is looked up rather than cut out of the path.
        name = max((name for name in entries if f"{rest}.".startswith(f"{name}.")), key=len, default=None)
        parent = mapping(entries.get(name)).get("like")
        if name in (None, parent) or (f"{kind}.{parent}{rest[len(name) :]}", message) not in all_told:
            kept.append((path, message))
    return kept


def path_of(location: tuple[str | int, ...]) -> str:
    """Dotted path of an error: the tags of the method union and pydantic's ``[key]`` are no keys of the file."""
    parts = []
    for index, part in enumerate(location):
        is_tag = index == 2 and location[0] == "methods" and part in METHODS
        if (
            not is_tag
            and part != "[key]"
            and not str(part).startswith(("literal[", "list[", "constrained-", "function-"))
        ):
            parts.append(shortened(str(part), ""))
    return ".".join(parts)


def describe(error: Mapping[str, Any]) -> str:
    """One error of pydantic in the words of somebody who edits a YAML file."""
    if error["type"] == "extra_forbidden":
        known = known_keys(error["loc"][:-1])
        return f"unknown key{nearest(error['loc'][-1], known)}"
    if error["type"] == "missing":
        return (
            "is missing; add it, or `like` an entry that has it" if error["loc"][0] in NAMED else "is missing; add it"
        )
    if error["type"] == "method_kind":
        return error["msg"]
    if error["loc"][-1] == "[key]":
        return "a name becomes a folder: only letters, digits, and . _ - after the first, and at most 60 of them"
    given, limits = error["input"], error.get("ctx") or {}
    shown = kind_of(given) if isinstance(given, Mapping | list) else shortened(json.dumps(given, default=str), "")
    if error["type"] == "string_pattern_mismatch":
        return f"{PATTERNS[limits['pattern']]}, not {shown}"
    if error["type"] == "string_too_long":
        return f"has {len(given):,} characters; at most {limits['max_length']} are allowed"
    wanted = re.sub(r"^(Input|String|List|Value) should", "must", error["msg"])
    wanted = re.sub(r"be a valid dictionary( or instance of \w+)?", "be a mapping", wanted)
    wanted = re.sub(r"(be a valid \w+).*", r"\1", wanted)
    wanted = re.sub(r"( items?| characters?) after validation", r"\1", wanted)
    if error["type"] in ("too_short", "too_long"):
        return wanted
    if error["type"] == "list_type" and isinstance(given, str):
        return f"{wanted}, as [{shown}], not {shown}"
    return f"{wanted}, not {shown}"


def known_keys(location: tuple[str | int, ...]) -> list[str]:
    """Keys that the model knows at a location."""
    current: Any = Config
    for part in location:
        if get_origin(current) is dict:
            current = get_args(current)[1]
        elif location[0] == "methods" and part in METHODS:
            current = METHODS[str(part)]
        else:
            current = fields_of(current)[str(part)]
    return list(fields_of(current))


def fields_of(annotation: Any) -> dict[str, Any]:
    """Key -> annotation of the model that an annotation is or, as in ``Model | None``, contains."""
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return {field.alias or name: field.annotation for name, field in option.model_fields.items()}
    return {}


def json_schema() -> dict[str, Any]:
    """JSON schema of config.yaml as it is written: an entry with ``like`` need not repeat what it inherits."""
    schema = Config.model_json_schema(by_alias=True)
    partial = {"type": "object", "properties": {"like": {"type": "string"}}, "required": ["like"]}
    for kind in NAMED:
        patterns = schema["properties"][kind]["patternProperties"]
        for pattern, entry in patterns.items():
            patterns[pattern] = {"anyOf": [partial, entry]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
