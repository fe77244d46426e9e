"""What config.yaml may say, checked before any job starts: every error at once, each with its dotted path.

No job imports this module: jobs get plain slices of the resolved configuration, so an edit here reruns nothing.
``python -m dive.config`` prints the JSON schema that lies in workflow/schemas.
"""

import difflib
import json
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

NAMED = ("datasets", "backbones", "methods")
"""Mappings whose entries are named by the user and may inherit from each other with ``like``."""

PRESENTATION = ("title", "note", "group")
"""Keys that only tables and reports read: they are kept apart, so that a new title reruns nothing else."""

CONVENTIONS = {"mimic_cxr": ("official", "own_split"), "chexpert_plus": ("official_valid", "own_split")}
"""What the splits can be: MIMIC-CXR has an official test split, CheXpert Plus has none."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """The configuration cannot be run; the message lists everything that is wrong with it."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Grid(Strict):
    """The rows of a table: every dataset with every backbone with every method."""

    datasets: Annotated[list[str], Field(min_length=1)]
    backbones: Annotated[list[str], Field(min_length=1)]
    methods: Annotated[list[str], Field(min_length=1)]


class World(Strict):
    """The synthetic world that synthetic datasets and tiny backbones share."""

    seed: Natural
    image_size: Annotated[int, Field(ge=16)]


class Patients(Strict):
    """Patients of each official split of a synthetic dataset."""

    train: Positive
    validate_: Annotated[int, Field(ge=1, alias="validate")]
    test: Natural


class Synthetic(Strict):
    """What makes a synthetic dataset."""

    style: Literal["site_a", "site_b"]
    patients: Patients


class Fractions(Strict):
    """Shares of patients, where the convention draws them; the rest trains."""

    validate_: Annotated[float, Field(gt=0, lt=1, alias="validate")]
    test: Annotated[float, Field(gt=0, lt=1)]


class Selection(Strict):
    """Which studies are used, and which of their text is the target."""

    section: Literal["findings", "impression", "both"]
    unit: Literal["study", "image"]
    views: Literal["frontal", "all"]
    unknown_views: Literal["keep", "drop"]
    min_words: Positive
    max_words: Positive
    deidentified: Literal["keep", "remove", "exclude"]
    duplicates: Literal["keep", "exclude"]
    convention: Literal["official", "official_valid", "own_split"]
    fractions: Fractions
    split_seed: Natural
    max_unreadable: Share
    labels: str | None
    reports: str | None


class Pool(Strict):
    """Studies of the pool; null takes all there are."""

    queries: Positive | None
    demonstrations: Positive | None
    validation: Positive | None
    test: Positive | None


class Dataset(Strict):
    """A dataset on disk; a synthetic one is first written there."""

    title: str
    note: str | None = None
    reader: Literal["mimic_cxr", "chexpert_plus"]
    root: str
    synthetic: Synthetic | None = None
    selection: Selection
    pool: Pool


class Tiny(Strict):
    """A tiny backbone of a real transformers class and its training."""

    family: Literal["gemma3", "qwen2_5_vl"]
    vocabulary: Annotated[int, Field(ge=300)]
    pixels: Annotated[int, Field(ge=24, multiple_of=12)]
    merge: Positive
    width: Positive
    layers: Positive
    heads: Positive
    mlp: Positive
    vision_width: Positive
    vision_layers: Positive
    images: Positive
    vision_steps: Positive
    vision_batch: Positive
    vision_rate: Rate
    steps: Positive
    batch: Positive
    length: Positive
    pairs: Annotated[int, Field(ge=2)]
    rate: Rate


class Batch(Strict):
    """Images or studies that a model sees at a time; a matter of memory."""

    vision: Positive
    teacher: Positive
    generation: Positive
    training: Positive


class Backbone(Strict):
    """A frozen vision-language model; a tiny one is first built."""

    title: str
    note: str | None = None
    path: str
    revision: str | None = None
    tiny: Tiny | None = None
    dtype: Literal["float32", "bfloat16", "float16"]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
    instruction: Annotated[str, Field(min_length=1)]
    image: dict[str, Any]
    batch: Batch


class Annotation(Strict):
    """Decisive tokens."""

    annotator: Literal["vocabulary"]
    include_cues: bool
    classes: Annotated[list[str], Field(min_length=1)]


class Decoding(Strict):
    """Greedy decoding, the same for every method."""

    max_new_tokens: Positive


class Training(Strict):
    """What all trained methods share."""

    max_report_tokens: Positive
    validation_studies: Positive
    prefix_cache_gb: Weight
    checkpoint_seconds: Weight


class Significance(Strict):
    """How differences between methods are judged."""

    resamples: Annotated[int, Field(ge=100)]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    seed: Natural
    margin: Weight


class Constant(Strict):
    """One training report for everybody."""

    kind: Literal["constant"]
    title: str
    group: Literal["control"]


Group = Literal["control", "reference", "published", "ours", "ablation"]


class Prompt(Strict):
    """The backbone as it is, with or without demonstrations in its context."""

    kind: Literal["prompt"]
    title: str
    group: Group
    demonstrations: bool
    image: Literal["own", "blank"]


class Loss(Strict):
    """L = kd * KL to the teacher + ce * weighted cross-entropy + hidden * relative error of hidden states."""

    kd: Weight
    ce: Weight
    hidden: Weight
    temperature: Rate


class Weights(Strict):
    """Weights in the cross-entropy; any other token has 1."""

    pathology: Weight
    eos: Weight


class Optimiser(Strict):
    """AdamW with warm-up and cosine."""

    lr: Rate
    weight_decay: Weight
    warmup: Share
    clip: Rate


class LiveOptimiser(Optimiser):
    """LIVE's scale a has a rate of its own."""

    lr_a: Rate


class Steering(Strict):
    """A trained intervention on the residual stream."""

    kind: Literal["steering"]
    title: str
    group: Group
    layers: Literal["all"] | Annotated[list[Natural], Field(min_length=1)]
    positions: Literal["answer", "all"]
    weights: Weights
    loss: Loss
    epochs: Positive
    batch_size: Positive


class Dive(Steering):
    """h' = h + g rms(h) (v + U gelu(D h / rms(h) + b)); rank 0 leaves v."""

    module: Literal["dive"]
    rank: Natural
    optimiser: Optimiser


class Live(Steering):
    """h' = (h + a v) |h| / |h + a v|."""

    module: Literal["live"]
    alpha: float
    std: Weight
    optimiser: LiveOptimiser


def tag_of(method: Any) -> str | None:
    """Which model describes a method: its kind, or a steering method's module."""
    said = method if isinstance(method, Mapping) else vars(method) if isinstance(method, BaseModel) else {}
    return said.get("module") if said.get("kind") == "steering" else said.get("kind")


METHODS = {"constant": Constant, "prompt": Prompt, "dive": Dive, "live": Live}
Method = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[Prompt, Tag("prompt")]
    | Annotated[Dive, Tag("dive")]
    | Annotated[Live, Tag("live")],
    Discriminator(
        tag_of,
        custom_error_type="method_kind",
        custom_error_message="kind must be constant, prompt or steering, and module of a steering method dive or live",
    ),
]


class Config(Strict):
    """The whole configuration."""

    experiments: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Natural], Field(min_length=1)]
    shots: Positive
    grids: dict[Name, Grid]
    world: World
    datasets: dict[Name, Dataset]
    backbones: dict[Name, Backbone]
    annotation: Annotation
    decoding: Decoding
    training: Training
    significance: Significance
    methods: dict[Name, Method]


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
    return plain


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
                merged = overlay(merged, entries[ancestor])
            if isinstance(merged, Mapping):
                merged = {key: value for key, value in merged.items() if key != "like"}
            resolved[kind][name] = merged
    return resolved, errors


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
            elif kind and name not in named[kind]:
                errors.append((f"{path}.{index}", f"{name!r} is not among {kind}{nearest(name, named[kind])}"))

    refer("experiments", config.get("experiments"), "grids")
    refer("seeds", config.get("seeds"), "")
    for grid, lists in named["grids"].items():
        for kind in NAMED:
            refer(f"grids.{grid}.{kind}", mapping(lists).get(kind), kind)

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
        if loss.get("hidden"):
            errors.append(
                (f"methods.{name}.loss.hidden", "needs the teacher's states of all layers, which no rule caches; set 0")
            )
        if loss and all(loss.get(term) == 0 for term in ("kd", "ce", "hidden")):
            errors.append((f"methods.{name}.loss", "kd, ce and hidden are all 0: nothing would be learned"))
    return errors


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


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
