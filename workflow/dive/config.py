"""The configuration, checked before any job starts: every error at once, each with its dotted path; then complete.

No job imports this module: jobs get plain slices of the resolved configuration, so an edit here reruns nothing.
``python -m dive.config`` prints the JSON schema that lies in workflow/schemas.
"""

import difflib
import json
import re
import sys
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dive.settings import METHODS, SAID, Config

NAMED = ("datasets", "backbones", "methods")
"""Mappings whose entries are named by the user and may inherit from each other with ``like``."""

PRESENTATION = ("title", "note", "group")
"""Keys that only tables and reports read: they are kept apart, so that a new title reruns nothing else."""

CONVENTIONS = {"mimic_cxr": ("official", "own_split"), "chexpert_plus": ("official_valid", "own_split")}
"""What the splits can be: MIMIC-CXR has an official test split, CheXpert Plus has none."""


class ConfigError(ValueError):
    """The configuration cannot be run; the message lists everything that is wrong with it."""


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
    inherited, errors = inherit(config)
    try:
        plain = Config.model_validate(inherited).model_dump(by_alias=True)
    except ValidationError as error:
        errors += [(path_of(item["loc"]), describe(item)) for item in error.errors()]
        plain = {}
    errors += cross_check(inherited)
    if errors:
        told: dict[str, list[str]] = {}
        for path, message in dict.fromkeys(without_inherited(errors, config)):
            told.setdefault(path, []).append(message)
        lines = "\n".join(f"  {path}: {', or '.join(messages)}" for path, messages in told.items())
        raise ConfigError(f"The configuration (config.yaml and its overlays) cannot be run:\n{lines}")
    plain["presentation"] = {
        kind: {
            name: {key: value for key in PRESENTATION if (value := entry.pop(key, None)) is not None}
            for name, entry in plain[kind].items()
        }
        for kind in NAMED
    }
    add_transfers(plain)
    return plain


def add_transfers(config: dict[str, Any]) -> None:
    """Add the methods that grids write as ``method@dataset``: the method's settings, and where it is trained."""
    shown = config["presentation"]
    for entry in dict.fromkeys(entry for grid in config["grids"].values() for entry in grid["methods"]):
        name, at, dataset = entry.partition("@")
        if at:
            config["methods"][entry] = {**config["methods"][name], "trained_on": dataset}
            title = f"{shown['methods'][name]['title']} from {shown['datasets'][dataset]['title']}"
            shown["methods"][entry] = {"title": title, "group": "transfer"}


Errors = list[tuple[str, str]]


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
                if parent in chain or parent not in entries:
                    problem = "inherits from itself" if parent in chain else f"is unknown{nearest(parent, entries)}"
                    errors.append((f"{kind}.{name}.like", f"{parent!r} {problem}"))
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


def overlay(base: Any, top: Any) -> Any:
    """``top`` over ``base``: mappings key by key, anything else replaces."""
    if isinstance(base, Mapping) and isinstance(top, Mapping):
        return {**base, **{key: overlay(base[key], top[key]) if key in base else top[key] for key in top}}
    return top


def without_inherited(errors: Errors, config: Mapping[str, Any]) -> Errors:
    """The errors without those that an entry only inherits: they are told once, where they are written."""
    kept = []
    for path, message in errors:
        kind, _, rest = path.partition(".")
        entries = mapping(config.get(kind)) if kind in NAMED else {}
        # Names may hold dots, so the entry is looked up rather than cut out of the path.
        name = max((name for name in entries if f"{rest}.".startswith(f"{name}.")), key=len, default=None)
        parent = mapping(entries.get(name)).get("like")
        if name is None or (f"{kind}.{parent}{rest[len(name) :]}", message) not in errors:
            kept.append((path, message))
    return kept


def cross_check(config: Mapping[str, Any]) -> Errors:
    """What no single key can tell: names that refer to nothing, and places that rules rely on.

    Runs beside the model on whatever was given, so it passes over what has another shape than it should.
    """
    errors = []
    named = {kind: mapping(config.get(kind)) for kind in (*NAMED, "grids")}

    def refer(path: str, given: Any, kind: str) -> None:
        names = given if isinstance(given, list) else []
        for index, name in enumerate(names):
            if name in names[:index]:
                errors.append((f"{path}.{index}", f"{name!r} is there twice; once is enough"))
            elif kind == "methods" and "@" in str(name):
                refer_transfer(f"{path}.{index}", *name.split("@", 1))
            elif kind and name not in named[kind]:
                errors.append((f"{path}.{index}", f"{name!r} is not among {kind}{nearest(name, named[kind])}"))

    def refer_transfer(path: str, method: str, dataset: str) -> None:
        for name, kind in ((method, "methods"), (dataset, "datasets")):
            if name not in named[kind]:
                errors.append((path, f"{name!r} is not among {kind}{nearest(name, named[kind])}"))
        if mapping(named["methods"].get(method)).get("kind", "steering") != "steering":
            errors.append((path, f"{method!r} is not trained, so that nothing of it can be transferred"))

    refer("experiments", config.get("experiments"), "grids")
    refer("seeds", config.get("seeds"), "")
    for grid, lists in named["grids"].items():
        for kind in NAMED:
            refer(f"grids.{grid}.{kind}", mapping(lists).get(kind), kind)

    errors += check_annotators(config, named["methods"])
    for name, dataset in named["datasets"].items():
        dataset = mapping(dataset)
        path = f"datasets.{name}"
        if name == "truth":
            errors.append((path, "data/truth holds the truth of synthetic datasets; choose another name"))
        if dataset.get("synthetic") and dataset.get("root") != f"data/{name}":
            errors.append((f"{path}.root", f"must be data/{name}, where the synthetic dataset is written"))
        selection, pool = mapping(dataset.get("selection")), mapping(dataset.get("pool"))
        offered = CONVENTIONS.get(dataset.get("reader"), ())
        if offered and selection.get("convention") not in offered:
            message = f"{dataset['reader']} offers {' and '.join(offered)}"
            errors.append((f"{path}.selection.convention", message))
        if exceeds(selection.get("min_words"), selection.get("max_words")):
            errors.append((f"{path}.selection.min_words", "must not exceed max_words"))
        if exceeds(config.get("shots"), pool.get("demonstrations")):
            errors.append((f"{path}.pool.demonstrations", f"must be at least shots, which is {config['shots']}"))
        validation = mapping(config.get("training")).get("validation_studies")
        if exceeds(validation, pool.get("validation")):
            errors.append((f"{path}.pool.validation", f"must be at least training.validation_studies, {validation}"))
    for name, backbone in named["backbones"].items():
        backbone = mapping(backbone)
        if backbone.get("tiny") and backbone.get("path") != f"models/{name}":
            errors.append((f"backbones.{name}.path", f"must be models/{name}, where the tiny backbone is built"))
    for name, method in named["methods"].items():
        loss = mapping(mapping(method).get("loss"))
        if loss and all(loss.get(term) == 0 for term in ("kd", "ce", "hidden")):
            errors.append((f"methods.{name}.loss", "kd, ce and hidden are all 0: nothing would be learned"))
        files = mapping(mapping(method).get("files"))
        errors += [
            (
                f"methods.{name}.files.{dataset}",
                f"{dataset!r} is not among datasets{nearest(dataset, named['datasets'])}",
            )
            for dataset in files
            if dataset not in named["datasets"]
        ]
        for grid, lists in named["grids"].items():
            lists = mapping(lists)
            if mapping(method).get("kind") == "external" and name in (lists.get("methods") or ()):
                errors += [
                    (f"methods.{name}.files.{dataset}", f"is missing: grid {grid} has this method on that dataset")
                    for dataset in lists.get("datasets") or ()
                    if dataset not in files
                ]
    return errors


def check_annotators(config: Mapping[str, Any], methods: Mapping[str, Any]) -> Errors:
    """Annotators that something uses but that lack what they read, and an analysis of a method without weights."""
    errors = []
    annotation, analysis = mapping(config.get("annotation")), mapping(config.get("analysis"))
    used, datasets = annotators_used(config), mapping(config.get("datasets"))
    if "union" in items(annotation.get("union")):
        errors.append(("annotation.union", "cannot hold itself; list other annotators"))
    scispacy = mapping(annotation.get("scispacy"))
    if "scispacy" in used and not scispacy.get("path"):
        errors.append(("annotation.scispacy.path", f"must be the folder of a pipeline, as {used['scispacy']} uses it"))
    if "scispacy" in used and scispacy.get("types") and not scispacy.get("linker"):
        errors.append(("annotation.scispacy.linker", "must be the folder of a linker, as types are asked for"))
    radgraph = mapping(annotation.get("radgraph"))
    published = mapping(radgraph.get("annotations"))
    errors += [
        (f"annotation.radgraph.annotations.{name}", f"{name!r} is not among datasets{nearest(name, datasets)}")
        for name in published
        if name not in datasets
    ]
    without = [name for name in listed_by_grids(config, "datasets") if name in datasets and name not in published]
    if "radgraph" in used and without and not radgraph.get("path"):
        message = f"must be hub or the folder of RadGraph's archives, as {used['radgraph']} uses it and annotations has"
        errors.append(("annotation.radgraph.path", f"{message} no file of {', '.join(without)}"))
    method = mapping(methods.get(analysis.get("method")))
    if analysis and methods and "weights" not in method:
        weighted = [name for name, method in methods.items() if "weights" in mapping(method)]
        errors.append(
            ("analysis.method", f"{analysis.get('method')!r} has no weights{nearest(analysis.get('method'), weighted)}")
        )
    return errors


def annotators_used(config: Mapping[str, Any]) -> dict[str, str]:
    """Annotator -> the key that asks for it, of all that the configured experiments use."""
    annotation, analysis = mapping(config.get("annotation")), mapping(config.get("analysis"))
    methods = mapping(config.get("methods"))
    weighted = [*(entry.partition("@")[0] for entry in listed_by_grids(config, "methods")), analysis.get("method")]
    asked = [(annotation.get("annotator"), "annotation.annotator")]
    asked += [(name, "analysis.annotators") for name in items(analysis.get("annotators"))]
    asked += [
        (mapping(mapping(methods.get(name)).get("weights")).get("source"), f"methods.{name}.weights.source")
        for name in weighted
        if isinstance(name, str)
    ]
    if any(name == "random" for name, _ in asked):
        asked.append((mapping(annotation.get("random")).get("like"), "annotation.random.like"))
    if any(name == "union" for name, _ in asked):
        asked += [(name, "annotation.union") for name in items(annotation.get("union"))]
    return {name: key for name, key in reversed(asked) if isinstance(name, str)}


def listed_by_grids(config: Mapping[str, Any], kind: str) -> list[str]:
    """Entries of ``kind`` in the grids of the configured experiments."""
    grids = mapping(config.get("grids"))
    chosen = [mapping(grids.get(name)) for name in items(config.get("experiments")) if isinstance(name, str)]
    entries = [entry for grid in chosen for entry in items(grid.get(kind))]
    return list(dict.fromkeys(entry for entry in entries if isinstance(entry, str)))


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def exceeds(value: Any, limit: Any) -> bool:
    return isinstance(value, int) and isinstance(limit, int) and value > limit


def nearest(name: Any, known: Any) -> str:
    """ "; did you mean X?", or what there is."""
    close = difflib.get_close_matches(str(name), list(map(str, known)), n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(map(str, known)) or 'none'}"


def path_of(location: tuple[str | int, ...]) -> str:
    """Dotted path of an error: the tags of the method union and pydantic's ``[key]`` are no keys of the file."""
    parts = []
    for index, part in enumerate(location):
        is_tag = index == 2 and location[0] == "methods" and part in METHODS
        if not is_tag and part != "[key]" and not str(part).startswith(("literal[", "list[", "constrained-")):
            parts.append(str(part))
    return ".".join(parts)


def describe(error: Mapping[str, Any]) -> str:
    """One error of pydantic in the words of somebody who edits a YAML file."""
    if error["type"] == "extra_forbidden":
        known = known_keys(error["loc"][:-1])
        return f"unknown key{nearest(error['loc'][-1], known)}"
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "method_kind":
        return error["msg"]
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] == "[key]":
        return "a name becomes a folder: only letters, digits, and . _ - after the first"
    given = error["input"]
    shown = json.dumps(given, default=str) if not isinstance(given, Mapping | list) else type(given).__name__
    wanted = re.sub(r"^(Input|String|List|Value) should", "must", error["msg"])
    wanted = re.sub(r"be a valid dictionary( or instance of \w+)?", "be a mapping", wanted)
    wanted = re.sub(r"(be a valid \w+).*", r"\1", wanted)
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
