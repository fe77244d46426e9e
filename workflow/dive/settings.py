"""The schema of config.yaml as pydantic models: one class per mapping, one field per key. Steering modules add theirs.

No job imports this module: jobs get plain slices of the resolved configuration (``dive.config``).
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from dive.annotation.vocabulary import CLASSES
from dive.bounds import (
    Device,
    Few,
    Name,
    Natural,
    Note,
    Part,
    Place,
    Positive,
    Rate,
    Seed,
    SemanticType,
    Share,
    Size,
    Title,
    Weight,
    real,
    text,
    whole,
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Grid(Strict):
    """The rows of a table: every dataset with every backbone with every method.

    ``method@dataset`` is the method's adapter of another dataset, used on this one (transfer).
    """

    datasets: Annotated[list[str], Field(min_length=1, max_length=1000)]
    backbones: Annotated[list[str], Field(min_length=1, max_length=1000)]
    methods: Annotated[list[str], Field(min_length=1, max_length=1000)]


class World(Strict):
    """The synthetic world that synthetic datasets and tiny backbones share."""

    seed: Seed
    image_size: whole(16, 4096)


class Patients(Strict):
    """Patients of each official split of a synthetic dataset."""

    train: Positive
    validate_: Annotated[Positive, Field(alias="validate")]
    test: Natural


class Synthetic(Strict):
    """What makes a synthetic dataset."""

    style: Literal["site_a", "site_b"]
    patients: Patients


class Fractions(Strict):
    """Shares of patients, where the convention draws them; the rest trains."""

    validate_: Annotated[Part, Field(alias="validate")]
    test: Part


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
    split_seed: Seed
    max_unreadable: Share
    labels: Place | None
    reports: Place | None


class Pool(Strict):
    """Studies of the pool; null takes all there are."""

    queries: Positive | None
    demonstrations: Positive | None
    validation: Positive | None
    test: Positive | None


class Dataset(Strict):
    """A dataset on disk; a synthetic one is first written there."""

    title: Title
    note: Note | None = None
    reader: Literal["mimic_cxr", "chexpert_plus"]
    root: Place
    synthetic: Synthetic | None = None
    selection: Selection
    pool: Pool


class Tiny(Strict):
    """A tiny backbone of a real transformers class and its training."""

    family: Literal["gemma3", "qwen2_5_vl"]
    vocabulary: whole(300, 65_536)
    pixels: whole(24, 960, multiple_of=12)
    merge: Few
    width: Size
    layers: Few
    heads: Few
    mlp: Size
    vision_width: Size
    vision_layers: Few
    images: Positive
    vision_steps: Positive
    vision_batch: Size
    vision_rate: Rate
    steps: Positive
    batch: Few
    length: whole(1, 4096)
    pairs: whole(2, 1000)
    rate: Rate


class Batch(Strict):
    """Images or studies that a model sees at a time; a matter of memory."""

    vision: Size
    teacher: Size
    generation: Size
    training: Size


class Backbone(Strict):
    """A frozen vision-language model; a tiny one is first built."""

    title: Title
    note: Note | None = None
    path: Place
    revision: Place | None = None
    tiny: Tiny | None = None
    dtype: Literal["float32", "bfloat16", "float16"]
    device: text(r"^(auto|cpu|cuda(:\d{1,3})?|mps)$", 1000, "must be auto, cpu, cuda, cuda:<n> or mps")
    instruction: Annotated[str, Field(min_length=1)]
    image: dict[str, Any]
    compile: bool
    batch: Batch


SPANS = ("vocabulary", "scispacy", "radgraph", "idf", "union")
"""Annotators that write spans."""

STATISTICS = ("power_law", "surprisal", "value_at_risk")
"""Weightings that need no annotator."""

SpanAnnotator = Literal[SPANS]


class Scispacy(Strict):
    """A spaCy pipeline with entities."""

    path: Place | None
    labels: list[str]
    types: list[SemanticType]
    linker: Place | None


class RadGraphModel(Strict):
    """RadGraph's weights."""

    path: Place | None
    archive: Literal["radgraph", "radgraph-xl", "modern-radgraph-xl"]
    device: Device


class Observations(RadGraphModel):
    """RadGraph's observations: published, or read by its weights."""

    annotations: dict[str, Place]
    max_missing: Share


class Idf(Strict):
    """The rarest words."""

    share: Part


class RandomTokens(Strict):
    """As many tokens as an annotator marks, at random places."""

    like: SpanAnnotator


class Annotation(Strict):
    """Decisive tokens."""

    annotator: SpanAnnotator
    include_cues: bool
    classes: Annotated[list[Literal[CLASSES]], Field(min_length=1)]
    scispacy: Scispacy
    radgraph: Observations
    idf: Idf
    union: Annotated[list[SpanAnnotator], Field(min_length=1)]
    random: RandomTokens


class View(Strict):
    """The page that shows reports token by token."""

    studies: Natural | list[str]
    credentialed: bool


class Analysis(Strict):
    """Whether a sparse set of tokens decides: measured on validation studies."""

    studies: Positive
    annotators: Annotated[list[Literal[(*SPANS, "random")]], Field(min_length=1)]
    statistics: list[Literal[STATISTICS]]
    method: str
    view: View


class Decoding(Strict):
    """Greedy decoding, the same for every method."""

    max_new_tokens: Size


class Training(Strict):
    """What all trained methods share."""

    max_report_tokens: Size
    validation_studies: Positive
    prefix_cache_gb: Weight
    checkpoint_seconds: Weight


class RadGraphF1(RadGraphModel):
    """RadGraph F1; without a path it is not measured."""

    max_words: Positive | None
    lower: bool


class CheXbert(Strict):
    """CheXbert F1; without a path it is not measured."""

    path: Place | None
    encoder: Place
    implementation: Literal["batched", "f1chexbert"]
    batch: Size
    device: Device


class Scores(Strict):
    """The scores that need a model; all others need nothing."""

    radgraph: RadGraphF1
    chexbert: CheXbert


class Significance(Strict):
    """How differences between methods are judged."""

    resamples: whole(100, 1_000_000)
    alpha: real(gt=0, lt=0.5)
    seed: Seed
    margin: Weight


class Constant(Strict):
    """One training report for everybody."""

    kind: Literal["constant"]
    title: Title
    group: Literal["control"]


Group = Literal["control", "reference", "published", "ours", "ablation"]


class Prompt(Strict):
    """The backbone as it is, with or without demonstrations in its context."""

    kind: Literal["prompt"]
    title: Title
    group: Group
    demonstrations: bool
    image: Literal["own", "blank"]


class External(Strict):
    """Reports of another system, read from a file a dataset (CSV or JSON Lines with study_uid and report)."""

    kind: Literal["external"]
    title: Title
    group: Group
    files: dict[str, Place]


class Loss(Strict):
    """L = kd * KL to the teacher + ce * weighted cross-entropy + hidden * relative error of hidden states."""

    kd: Weight
    ce: Weight
    hidden: Weight
    temperature: real(ge=0.01, le=100)


class Weights(Strict):
    """Weights in the cross-entropy; any other token has 1."""

    pathology: Rate
    eos: Rate
    source: Literal[(*SPANS, "random", *STATISTICS)] | None = None
    exponent: Weight = 1.0
    level: real(ge=0, lt=1) = 0.1


class Optimiser(Strict):
    """AdamW with warm-up and cosine."""

    lr: Rate
    weight_decay: Weight
    warmup: Share
    clip: Rate


class Steering(Strict):
    """A steering method."""

    kind: Literal["steering"]
    title: Title
    group: Group
    layers: Literal["all"] | Annotated[list[Natural], Field(min_length=1, max_length=1000)]
    positions: Literal["answer", "all"]


class Trained(Steering):
    """A steering method that is trained by gradients."""

    weights: Weights
    loss: Loss
    optimiser: Optimiser
    epochs: Size
    batch_size: Size


TYPES: dict[str, Any] = {
    "natural": whole(0, 65_536),
    "positive": Size,
    "number": real(),
    "weight": Weight,
    "rate": Rate,
    "share": Share,
    "rates": Annotated[list[Rate], Field(min_length=1)],
}
"""What a steering module may call the type of one of its options; ``a|b`` is a choice of words."""


def steering_modules() -> dict[str, dict[str, Any]]:
    """What every module of dive/steering that is a method says of itself, in literals at its top.

    The text is read, not imported, since the modules import torch. ``OPTIONS`` maps the keys that only this method has
    to their types (``lr_<parameter>`` is a key of its optimiser); ``TRAINED`` is False for one without gradients,
    ``DRAWS`` False for one that no seed changes; ``READS_LAYERS`` is True for one that is fitted on the teacher's layer
    states, ``READS_DEMONSTRATIONS`` for one that runs the queries with their demonstrations itself.
    """
    found = {}
    for path in sorted((Path(__file__).parent / "steering").glob("*.py")):
        tree = ast.parse(path.read_bytes(), filename=str(path))
        said: dict[str, Any] = {"TRAINED": True, "DRAWS": True, "READS_LAYERS": False, "READS_DEMONSTRATIONS": False}
        said["title"] = ast.get_docstring(tree) or ""
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            name = target.id if isinstance(target, ast.Name) else None
            if name in ("OPTIONS", "TRAINED", "DRAWS", "READS_LAYERS", "READS_DEMONSTRATIONS"):
                said[name] = ast.literal_eval(node.value)
        if "OPTIONS" in said:
            found[path.stem] = said
    return found


def model_of(module: str, said: Mapping[str, Any]) -> type[Steering]:
    """The model of the settings of one steering method."""

    def type_of(word: str) -> Any:
        return (Literal[tuple(word.split("|"))] if "|" in word else TYPES[word], ...)

    own = {key: type_of(word) for key, word in said["OPTIONS"].items() if not key.startswith("lr_")}
    rates = {key: type_of(word) for key, word in said["OPTIONS"].items() if key.startswith("lr_")}
    if rates:
        own["optimiser"] = (create_model(f"{module.title()}Optimiser", __base__=Optimiser, **rates), ...)
    return create_model(
        module.title().replace("_", ""),
        __base__=Trained if said["TRAINED"] else Steering,
        __doc__=said["title"].partition("\n")[0],
        module=(Literal[module], ...),
        **own,
    )


SAID = steering_modules()


def reads_layers(method: Mapping[str, Any]) -> bool:
    """Whether a method reads the states of all the teacher's layers: to align its own to them, or to average them."""
    if method["kind"] != "steering":
        return False
    return bool(SAID[method["module"]]["READS_LAYERS"] or method.get("loss", {}).get("hidden"))


def reads_demonstrations(method: Mapping[str, Any]) -> bool:
    """Whether a method runs the training queries with their demonstrations itself."""
    return method["kind"] == "steering" and bool(SAID[method["module"]]["READS_DEMONSTRATIONS"])


def draws(method: Mapping[str, Any]) -> bool:
    """Whether a method draws anything at random, so that every seed is a run of its own."""
    if method["kind"] != "steering":
        return bool(method.get("demonstrations", False))
    return SAID[method["module"]]["DRAWS"]


def tag_of(method: Any) -> str | None:
    """Which model describes a method: its kind, or a steering method's module."""
    said = method if isinstance(method, Mapping) else vars(method) if isinstance(method, BaseModel) else {}
    tag = said.get("module") if said.get("kind") == "steering" else said.get("kind")
    return tag if isinstance(tag, str) else None


METHODS: dict[str, type[BaseModel]] = {
    "constant": Constant,
    "prompt": Prompt,
    "external": External,
    **{module: model_of(module, said) for module, said in SAID.items()},
}
Method = Annotated[
    Union[tuple(Annotated[model, Tag(tag)] for tag, model in METHODS.items())],  # noqa: UP007
    Discriminator(
        tag_of,
        custom_error_type="method_kind",
        custom_error_message="kind must be constant, prompt or steering, or external for reports of another system; "
        "module of a steering method must be one of " + ", ".join(SAID),
    ),
]


class Config(Strict):
    """The whole configuration."""

    experiments: Annotated[list[str], Field(min_length=1, max_length=1000)]
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)]
    shots: Few
    draws: Few
    demonstrations: Literal["per_query", "shared"]
    grids: dict[Name, Grid]
    world: World
    datasets: dict[Name, Dataset]
    backbones: dict[Name, Backbone]
    annotation: Annotation
    analysis: Analysis
    decoding: Decoding
    training: Training
    scores: Scores
    significance: Significance
    methods: dict[Name, Method]
