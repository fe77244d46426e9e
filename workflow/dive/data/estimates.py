"""What a configured run will take: bytes of its caches and hours of a GPU, from shapes and counts alone.

The formulas count floating-point operations, bytes moved and calls of layers; what a machine does of each in a second
is assumed, and said. With P the parameters of the decoder layers, L layers, d their width, V the vocabulary, K
demonstrations, n tokens an image, i tokens of the instruction, T tokens of a report, the prompt of a student has
p_0 = n + i tokens and that of a teacher p_K = (K + 1) (n + i) + K T.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dive.settings import draws, reads_demonstrations, reads_layers

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """Sizes of a vision-language model, as its ``config.json`` gives them.

    Attributes:
        layers, width, mlp, heads, kv_heads, head_dim, vocabulary: of the decoder.
        tied: the head is the embedding.
        vision_layers, vision_width, vision_mlp: of the tower.
        vision_matrices: matrices in its MLP, 2, or 3 where it is gated.
        patches_each: patches that become one image token.
        image_tokens: tokens of an image, at most.
        pixels_each: pixels of one image token; None where all images have ``image_tokens``.
    """

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    vision_layers: int
    vision_width: int
    vision_mlp: int
    vision_matrices: int
    patches_each: int
    image_tokens: int
    pixels_each: int | None = None

    @property
    def decoder(self) -> int:
        """P, parameters of the decoder layers: L (2 d h (H + H_kv) + 3 d m)."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.mlp)

    @property
    def tower(self) -> int:
        """Parameters of the vision tower's layers: L_v (4 w^2 + matrices w m_v)."""
        return self.vision_layers * (
            4 * self.vision_width**2 + self.vision_matrices * self.vision_width * self.vision_mlp
        )

    @property
    def parameters(self) -> int:
        """All that is stored, embedding and head included."""
        return self.decoder + self.tower + (1 if self.tied else 2) * self.vocabulary * self.width

    def tokens(self, pixels: float | None) -> int:
        """n, tokens of an image with so many pixels; the most there can be where that is unknown."""
        if self.pixels_each is None or pixels is None:
            return self.image_tokens
        return int(max(4, min(self.image_tokens, pixels / self.pixels_each)))

    def forward(self, tokens: float, before: float = 0.0) -> float:
        """Operations of a forward over ``tokens`` that follow ``before`` others.

        2 P a token, and 4 H h for every pair of a token and one that it attends to (half the square of its own).
        """
        pairs = tokens * (before + tokens / 2)
        return 2 * self.decoder * tokens + 4 * self.layers * self.heads * self.head_dim * pairs

    def head(self, tokens: float) -> float:
        """Operations of the output head: 2 V d a token."""
        return 2 * self.vocabulary * self.width * tokens

    def vision(self, n: float) -> float:
        """Operations of the tower over an image of ``n`` tokens; windowed attention is counted as full: a bound."""
        patches = n * self.patches_each
        return 2 * self.tower * patches + 4 * self.vision_layers * self.vision_width * patches**2

    def key_values(self, itemsize: int) -> int:
        """Bytes of one token in the cache of keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize


GEMMA3 = Shape(34, 2560, 10240, 8, 4, 256, 262_208, True, 27, 1152, 4304, 2, 16, 256)
"""Gemma 3 4B: SigLIP at 896 x 896, 64 x 64 patches pooled to 256 tokens."""

QWEN25_VL = Shape(28, 3584, 18944, 28, 4, 128, 152_064, False, 32, 1280, 3420, 3, 4, 16_384, 28 * 28)
"""Qwen 2.5-VL 7B: one token for 28 x 28 pixels, at most 16,384 unless ``image.max_pixels`` says less."""

FAMILIES = {"gemma3": GEMMA3, "qwen2_5_vl": QWEN25_VL}
"""Shapes by ``model_type``, for what a ``config.json`` leaves out."""

PUBLISHED = {
    "google/medgemma-4b-it": GEMMA3,
    "google/medgemma-1.5-4b-it": GEMMA3,
    "google/gemma-3-4b-it": GEMMA3,
    "lingshu-medical-mllm/Lingshu-7B": QWEN25_VL,
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN25_VL,
}
"""Shapes by hub name, for where no ``config.json`` is on this machine yet."""


def shape_of(backbone: Mapping[str, Any]) -> Shape | None:
    """Shape of ``backbones.<name>``: by its tiny settings, its ``config.json``, or as published; None if unknown."""
    if backbone.get("tiny"):
        return tiny_shape(backbone["tiny"])
    try:
        config = find_config(backbone["path"], backbone.get("revision"))
        shape = read_shape(config) if config else PUBLISHED.get(backbone["path"])
    except (OSError, ValueError, TypeError, AttributeError):  # `dive.backbones.check` says what is wrong with it
        return None
    limit = backbone.get("image", {}).get("max_pixels")
    if shape is not None and shape.pixels_each and limit:
        shape = replace(shape, image_tokens=int(limit // shape.pixels_each))
    return shape


def missing_shape(backbone: Mapping[str, Any], name: str) -> str:
    """Why `shape_of` knows no shape of ``backbones.<name>``, and what to do."""
    try:
        config = find_config(backbone["path"], backbone.get("revision"))
    except (OSError, ValueError):
        config = {}
    if config is None:
        return (
            f"no config.json of backbones.{name}.path ({backbone['path']}) is on this machine; fetch the model or "
            "correct the path"
        )
    if not isinstance(config, dict) or not config:
        return f"the config.json of backbones.{name}.path is not what transformers writes; fetch the model again"
    if isinstance(config.get("model_type"), str) and config["model_type"] in FAMILIES:
        return f"the config.json of backbones.{name}.path has a size that is no whole number; fetch the model again"
    return (
        f"its config.json has model_type {config.get('model_type')!r}, and estimates are made for "
        f"{' and '.join(FAMILIES)} alone"
    )


def tiny_shape(tiny: Mapping[str, Any]) -> Shape:
    """Shape of a tiny backbone; patches have 12 pixels a side."""
    heads = tiny["heads"]
    side = tiny["pixels"] // 12
    gated = 3 if tiny["family"] == "qwen2_5_vl" else 2
    return Shape(
        tiny["layers"], tiny["width"], tiny["mlp"], heads, heads, tiny["width"] // heads, tiny["vocabulary"], True,
        tiny["vision_layers"], tiny["vision_width"], 4 * tiny["vision_width"], gated, tiny["merge"] ** 2,
        (side // tiny["merge"]) ** 2,
    )  # fmt: skip


def find_config(path: str, revision: str | None) -> dict[str, Any] | None:
    """``config.json`` of a folder or of a model in the Hugging Face cache; None where there is none."""
    folder = Path(path)
    if not folder.is_dir():
        home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{path.replace('/', '--')}"
        name = hub / "refs" / (revision or "main")
        commit = name.read_text().strip() if name.is_file() else revision or ""
        folder = hub / "snapshots" / commit
    file = folder / "config.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return {} if found is None else found  # a file that says null is there


def read_shape(config: Mapping[str, Any]) -> Shape | None:
    """Shape from a ``config.json``; what a Gemma 3 or Qwen 2.5-VL configuration leaves out is its family's default."""
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        return None
    text, tower = {**config, **config.get("text_config", {})}, config.get("vision_config", {})
    names = {
        "layers": "num_hidden_layers", "width": "hidden_size", "mlp": "intermediate_size",
        "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
        "vocabulary": "vocab_size",
    }  # fmt: skip
    found = {ours: text[theirs] for ours, theirs in names.items() if text.get(theirs) is not None}
    if "head_dim" not in found and config["model_type"] == "qwen2_5_vl" and {"width", "heads"} <= set(found):
        found["head_dim"] = found["width"] // found["heads"]
    towers = {
        "vision_layers": ("num_hidden_layers", "depth"),
        "vision_width": ("hidden_size",),
        "vision_mlp": ("intermediate_size",),
    }
    for ours, theirs in towers.items():
        present = [tower[name] for name in theirs if tower.get(name)]
        if present:
            found[ours] = present[0]
    if config["model_type"] == "gemma3":
        found["image_tokens"] = config.get("mm_tokens_per_image", GEMMA3.image_tokens)
        side = tower.get("image_size", 896) // tower.get("patch_size", 14)
        found["patches_each"] = max(1, side**2 // found["image_tokens"])
    if not all(type(value) is int and value > 0 for value in found.values()):
        raise TypeError("a size is no whole number above 0")
    return replace(family, **found)


@dataclass(frozen=True)
class Machine:
    """What is assumed of the GPU.

    Attributes:
        tflops: 1e12 operations a second that large matrix products reach (an A100 in bfloat16 about 150 of its 312).
        bandwidth: bytes a second from its memory, in GB.
        layer_ms: least time of a decoder layer's forward when it is called from Python: bounds small batches.
    """

    tflops: float = 150.0
    bandwidth: float = 1500.0
    layer_ms: float = 0.8

    def seconds(self, operations: float, layers: float = 0.0, bytes_read: float = 0.0) -> float:
        """The longest of computing, calling ``layers`` layers, and reading."""
        return max(operations / (self.tflops * 1e12), layers * self.layer_ms / 1e3, bytes_read / (self.bandwidth * 1e9))


@dataclass(frozen=True)
class Counts:
    """What of a dataset a run uses.

    Attributes:
        queries, demonstrations, validation, test: studies of the pool.
        words: mean words of a report.
        pixels: of an image in the middle; None where unknown.
    """

    queries: int
    demonstrations: int
    validation: int
    test: int
    words: float
    pixels: float | None

    @property
    def pool(self) -> int:
        """Studies whose images are encoded."""
        return self.queries + self.demonstrations + self.validation + self.test


@dataclass(frozen=True)
class Estimate:
    """Of one dataset with one backbone: GPU seconds and bytes by stage, and all seconds if no report ever stopped."""

    seconds: dict[str, float]
    bytes: dict[str, float]
    longest: float


def estimate(
    counts: Counts, backbone: Mapping[str, Any], shape: Shape, config: Mapping[str, Any], methods: list[str],
    machine: Machine, tokens_a_word: float = 1.5, instruction: int = 30,
) -> Estimate:  # fmt: skip
    """Add up a grid's stages for one dataset and one backbone.

    Seconds, with B the batch of a stage and F = 2 P a token (and attention, see `Shape.forward`):

    - ``cache_vision``: pool x tower(n);
    - ``cache_teacher``: seeds x M x N x F(p_K + T), once for all methods whose ``loss.kd`` is not 0, with M draws of
      demonstrations; where all queries share theirs, N x F(n + i + T) after them instead;
    - ``distill``, a method and seed: E x (N x (F(p_0) + 2 F(T + 1) + 3 head(T + 1)) + validation x (F(p_0) + F(T + 1) +
      head(T + 1))): the prompt without a gradient, the report forward and backward to its inputs (as much again, since
      no weight of the backbone has a gradient), the head forward, backward, and for the teacher; without gradients
      one forward over the queries and one over validation for every scale, and for MTV's search ``prompts`` in context
      and ``steps`` x ``samples`` + 50 ``draws`` without;
    - ``generate``, a method and seed: test x F(p), with shared demonstrations as above, then T + 1 steps a batch, each
      the longest of computing 2 P B, reading the weights and the batch's keys and values, and calling L layers.

    Bytes, with b a number's:

    - ``vision``: (pool + 1) n d b; ``teacher``: seeds M N (T + 1) d b; ``layers``, where a method learns from the
      teacher's states of all layers: seeds N L (T + 1) d b; ``backbone``: all parameters, in the Hugging Face cache.

    Args:
        counts: the dataset's part in it.
        backbone: ``backbones.<name>`` of the resolved configuration.
        shape: of `shape_of`.
        config: the resolved configuration: seeds, shots, draws, demonstrations, training, decoding, methods.
        methods: names of the grid's methods.
        machine: what is assumed of the GPU.
        tokens_a_word: of the tokenizer on reports; about 1.5 for both families.
        instruction: i, tokens of instruction and chat template an image.
    """
    n, size = shape.tokens(counts.pixels), BYTES[backbone["dtype"]]
    limits = config["training"]["max_report_tokens"], config["decoding"]["max_new_tokens"]
    report, shots, batch = min(limits[0], tokens_a_word * counts.words), config["shots"], backbone["batch"]
    zero_shot, in_context = n + instruction, (shots + 1) * (n + instruction) + shots * report
    once = in_context - zero_shot if config["demonstrations"] == "shared" else 0
    labels = report + 1
    seconds = {"cache_vision": counts.pool * machine.seconds(shape.vision(n))}
    on_disk = {
        "backbone": float(shape.parameters * size),
        "vision": float((counts.pool + 1) * n * shape.width * size),
    }
    seeds = len(config["seeds"])
    teachers = seeds * config["draws"]
    longest = 0.0
    taught, layered = False, False
    for name in methods:
        method = config["methods"][name]
        if method["kind"] in ("constant", "external"):
            continue
        prompt = in_context if method.get("demonstrations") else zero_shot
        runs = seeds if draws(method) else 1
        # A transferred adapter is another dataset's: it is trained there, and only writes here.
        own = "trained_on" not in method
        taught |= own and bool(method.get("loss", {}).get("kd"))
        layered |= own and reads_layers(method)
        checked = min(counts.validation, config["training"]["validation_studies"])
        if own and "epochs" in method:
            steps = counts.queries / batch["training"]
            operations = counts.queries * (
                shape.forward(zero_shot) + 2 * shape.forward(labels, zero_shot) + 3 * shape.head(labels)
            )
            operations += checked * (shape.forward(zero_shot) + shape.forward(labels, zero_shot) + shape.head(labels))
            calls = (4 * steps + 2 * checked / batch["training"]) * shape.layers
            spent = runs * method["epochs"] * machine.seconds(operations, calls)
            seconds["distill"] = seconds.get("distill", 0.0) + spent
            longest += spent
        elif own and method["kind"] == "steering":
            passes = counts.queries + len(method.get("scales", ())) * checked
            in_demonstrations = 0
            if reads_demonstrations(method):
                in_demonstrations = method["prompts"]
                passes = method["steps"] * method["samples"] + 50 * method["draws"]
            operations = passes * (shape.forward(zero_shot + labels) + shape.head(labels))
            operations += in_demonstrations * shape.forward(in_context)
            calls = (passes / batch["training"] + in_demonstrations / batch["teacher"]) * shape.layers
            spent = runs * machine.seconds(operations, calls)
            seconds["distill"] = seconds.get("distill", 0.0) + spent
            longest += spent
        batches = counts.test / batch["generation"]
        before = once if method.get("demonstrations") else 0
        first = counts.test * machine.seconds(shape.forward(prompt - before, before) + shape.head(1))
        for written, is_bound in ((min(labels, limits[1]), False), (limits[1], True)):
            context = batch["generation"] * (prompt + written / 2)
            step = machine.seconds(
                batch["generation"] * (2 * shape.decoder + shape.head(1)),
                shape.layers,
                (shape.decoder + shape.vocabulary * shape.width) * size + context * shape.key_values(size),
            )
            spent = runs * (first + batches * written * step)
            if is_bound:
                longest += spent
            else:
                seconds["generate"] = seconds.get("generate", 0.0) + spent
    if taught:
        operations = counts.queries * shape.forward(in_context + report - once, once)
        seconds["cache_teacher"] = teachers * machine.seconds(
            operations, shape.layers * counts.queries / batch["teacher"]
        )
        on_disk["teacher"] = teachers * counts.queries * labels * shape.width * size
    if layered:
        on_disk["layers"] = seeds * counts.queries * labels * shape.width * size * shape.layers
    longest += seconds["cache_vision"] + seconds.get("cache_teacher", 0.0)
    return Estimate(seconds, on_disk, longest)
