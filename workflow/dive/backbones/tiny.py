"""Tiny backbones of real families, trained in minutes: a vision tower that sees findings, in-context report writers.

A tiny backbone is a folder as ``save_pretrained`` leaves it (weights, tokenizer with chat template, image processor,
generation config), which the general loader reads as it reads MedGemma or Lingshu. It is trained in three steps:

1. the vision tower and its projector learn to tell the findings of phantoms (one softmax a kind of finding);
2. they are frozen and the features of a pool of images are computed once;
3. the language model learns to write reports on sequences of several (image, report) pairs of one site, with a loss
   on the reports and their terminators. What a site's reports have in common can only be known from the pairs before,
   so learning in context pays; reports that run on into boilerplate have no terminator to learn.

Weight matrices are trained with Muon (momentum orthogonalised by Newton-Schulz iterations; Jordan et al. 2024, scaled
as in 2502.16982), everything else with AdamW. One thread and fixed seeds: two runs give the same weights to the byte.
"""

import io
import json
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from dive.backbones.families import rotary_positions
from dive.backbones.loading import Backbone
from dive.backbones.muon import Muon
from dive.backbones.untrained import Recipe, build_image_processor, build_model, build_tokenizer
from dive.data.draws import stream
from dive.data.synthetic.findings import KINDS, Findings, class_targets, sample_findings
from dive.data.synthetic.language import (
    runs_on,
    sample_style,
    write_boilerplate,
    write_report,
)
from dive.data.synthetic.phantom import draw_image
from dive.files import atomic_path, record_checksums
from dive.progress import log, progress


@dataclass
class ImagePool:
    """Phantoms as a reader and the image processor deliver them.

    Attributes:
        findings: what each shows.
        pixels: processor output, float16, (N, ...).
        grid: (t, h, w) in patches of every image (Qwen), else None.
        features: (N, image tokens, width) once the tower is trained.
    """

    findings: list[Findings]
    pixels: torch.Tensor
    grid: tuple[int, int, int] | None
    features: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def _as_stored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An image as it comes back from disk: every second one through JPEG, as the data sets have JPEG and PNG."""
    if rng.random() < 0.5:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95)
        image = Image.open(file)
    return image.convert("RGB")


def draw_pool(recipe: Recipe, processor: Any, count: int, rng: np.random.Generator, disk_size: int) -> ImagePool:
    """Draw ``count`` phantoms, store and preprocess them."""
    findings = [sample_findings(rng) for _ in range(count)]
    parts, grid = [], None
    for begin in progress(range(0, count, 256), "drawing images, batch"):
        images = [_as_stored(draw_image(case, rng, disk_size), rng) for case in findings[begin : begin + 256]]
        encoded = processor(images=images, return_tensors="pt")
        pixels = encoded["pixel_values"]
        parts.append(pixels.reshape(len(images), -1, *pixels.shape[1:]).squeeze(1).half())
        if "image_grid_thw" in encoded:
            grid = tuple(encoded["image_grid_thw"][0].tolist())
    return ImagePool(findings, torch.cat(parts), grid)


def embed_pixels(model: Any, pixels: torch.Tensor, grid: tuple[int, int, int] | None) -> torch.Tensor:
    """Projected image features (N, tokens, width) of preprocessed images of equal size; gradients flow."""
    if grid is None:
        features = model.get_image_features(pixel_values=pixels)
        return getattr(features, "pooler_output", features)
    grids = torch.tensor([grid] * len(pixels))
    features = model.model.visual(pixels.flatten(0, 1), grid_thw=grids)
    features = getattr(features, "pooler_output", features)
    return features.reshape(len(pixels), -1, features.shape[-1])


def train_vision(model: Any, pool: ImagePool, recipe: Recipe) -> None:
    """Train tower and projector to tell the class of every kind of finding from max- and mean-pooled image tokens."""
    rng = stream(recipe.seed, "vision")
    classes = [count + 1 for _, count in KINDS.values()]
    head = nn.Linear(2 * recipe.width, sum(classes))
    language = {id(p) for p in model.model.language_model.parameters()}
    tower = [p for p in model.parameters() if id(p) not in language]
    optimiser = torch.optim.AdamW([*tower, *head.parameters()], lr=recipe.vision_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 20, 1.25 * (1 - step / recipe.vision_steps))
    )
    targets = torch.from_numpy(np.stack([class_targets(case) for case in pool.findings]))
    order = np.concatenate(
        [rng.permutation(len(targets)) for _ in range(-(-recipe.vision_steps * recipe.vision_batch // len(targets)))]
    )
    model.train()
    total = 0.0
    for step in progress(range(recipe.vision_steps), "vision warm-up, step"):
        chosen = torch.from_numpy(order[step * recipe.vision_batch : (step + 1) * recipe.vision_batch])
        tokens = embed_pixels(model, pool.pixels[chosen].float(), pool.grid)
        logits = head(torch.cat([tokens.amax(1), tokens.mean(1)], dim=-1)).split(classes, dim=-1)
        loss = sum(cross_entropy(part, targets[chosen, i]) for i, part in enumerate(logits)) / len(classes)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower, 1.0)
        optimiser.step()
        schedule.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            log.info("vision warm-up, step %d: loss %.3f", step + 1, total / 100)
            total = 0.0


@torch.no_grad()
def embed_pool(model: Any, pool: ImagePool) -> None:
    """Fill ``pool.features`` with the frozen tower and let the pixels go."""
    model.eval()
    batches = [embed_pixels(model, part.float(), pool.grid) for part in pool.pixels.split(512)]
    pool.features, pool.pixels = torch.cat(batches), torch.empty(0)


@dataclass
class Sequence:
    """One training sequence.

    Attributes:
        ids: token ids (T,).
        labels: (T,) id that each position predicts, -1 where nothing is learned.
        images: pool indices of its images in order.
        positions: (T,) or (3, T).
    """

    ids: torch.Tensor
    labels: torch.Tensor
    images: list[int]
    positions: torch.Tensor


class SequenceWriter:
    """Draws training sequences: pairs of one site, rendered by the prompt builder that inference uses."""

    def __init__(self, backbone: Backbone, pool: ImagePool, recipe: Recipe) -> None:
        self.backbone, self.pool, self.recipe = backbone, pool, recipe
        messages = [{"role": "user", "content": [{"type": "text", "text": "."}]}]
        render = backbone.tokenizer.apply_chat_template
        opened = render(messages, tokenize=False, add_generation_prompt=True)
        closed = render(messages, tokenize=False, add_generation_prompt=False)
        self.header = backbone.tokenizer(opened[len(closed) :], add_special_tokens=False)["input_ids"]

    def draw(self, rng: np.random.Generator) -> Sequence:
        """One sequence of at most ``recipe.pairs`` pairs, fewer where ``recipe.length`` tokens would be exceeded."""
        style = sample_style(rng)
        cases = [int(i) for i in rng.choice(len(self.pool.findings), self.recipe.pairs, replace=False)]
        texts, ended = [], []
        for case in cases:
            findings = self.pool.findings[case]
            text = write_report(findings, style, rng)
            run_on = runs_on(findings, style, rng)
            texts.append(f"{text} {write_boilerplate(rng)}" if run_on else text)
            ended.append(not run_on)
        keys = [str(case) for case in cases]
        for count in range(len(cases), 0, -1):
            prompt = self.backbone.prompts.render(
                keys[count - 1],
                dict.fromkeys(keys, self.recipe.image_tokens),
                demonstrations=list(zip(keys, texts, strict=True))[: count - 1],
                report=texts[count - 1],
            )
            if len(prompt.ids) < self.recipe.length or count == 1:
                break
        ids = [*prompt.ids, self.backbone.term_id]
        return Sequence(
            ids=torch.tensor(ids),
            labels=self._labels(ids, ended[:count]),
            images=cases[:count],
            positions=self._positions(torch.tensor(ids), count),
        )

    def _labels(self, ids: list[int], ended: list[bool]) -> torch.Tensor:
        """Labels of every report in ``ids``, and of its terminator where ``ended``."""
        labels = torch.full((len(ids),), -1)
        begin, width = 0, len(self.header)
        for terminated in ended:
            while ids[begin : begin + width] != self.header:
                begin += 1
            first = begin + width
            stop = ids.index(self.backbone.term_id, first)
            last = stop + 1 if terminated else stop
            labels[first - 1 : last - 1] = torch.tensor(ids[first:last])
            begin = stop
        return labels

    def _positions(self, ids: torch.Tensor, count: int) -> torch.Tensor:
        if not self.backbone.family.rotary_3d:
            return torch.arange(len(ids))
        return rotary_positions(self.backbone.model, ids, self.backbone.image_token_id, [self.pool.grid] * count)


def language_states(backbone: Backbone, sequences: list[Sequence], features: torch.Tensor) -> torch.Tensor:
    """Final normed states (B, T, width) of right-padded training sequences, from cached image features (M, n, width).

    Right padding needs no mask under causal attention; Gemma 3's image tokens also see the later ones of their image,
    which is said by explicit masks, one for both of its layer types (the window is longer than a sequence).
    """
    model = backbone.model.model
    longest = max(len(s.ids) for s in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    shape = (3, len(sequences), longest) if backbone.family.rotary_3d else (len(sequences), longest)
    positions = torch.zeros(shape, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = sequence.ids
        positions[..., row, : len(sequence.ids)] = sequence.positions
    is_image = ids == backbone.image_token_id
    embeds = model.get_input_embeddings()(ids.masked_fill(is_image, 0))
    embeds = embeds.masked_scatter(is_image[..., None], features.flatten(0, 1))
    mask: Any = None
    if backbone.family.token_types:
        starts = is_image & ~torch.nn.functional.pad(is_image, (1, 0))[:, :-1]
        block = torch.where(is_image, starts.cumsum(1), -1)
        same_image = (block[:, :, None] == block[:, None, :]) & is_image[:, :, None]
        allowed = (torch.ones(longest, longest, dtype=torch.bool).tril() | same_image)[:, None]
        mask = {"full_attention": allowed, "sliding_attention": allowed}
    states = model.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
    return states.last_hidden_state


def train_language(backbone: Backbone, pool: ImagePool, recipe: Recipe) -> None:
    """Train the language model to write reports in context; the tower stays as it is."""
    rng = stream(recipe.seed, "language")
    writer = SequenceWriter(backbone, pool, recipe)
    model = backbone.model
    parameters = list(model.model.language_model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in parameters if p.ndim == 2 and p is not embedding]
    others = [p for p in parameters if p.ndim != 2 or p is embedding]
    optimisers = [
        Muon(matrices, lr=recipe.rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.rate, weight_decay=0.01, betas=(0.9, 0.95)),
    ]

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 30, (1 - step / recipe.steps) / 0.8)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, factor) for optimiser in optimisers]
    model.train()
    total = 0.0
    for step in progress(range(recipe.steps), "language model, step"):
        sequences = [writer.draw(rng) for _ in range(recipe.batch)]
        features = pool.features[[case for sequence in sequences for case in sequence.images]]
        states = language_states(backbone, sequences, features)
        labels = nn.utils.rnn.pad_sequence([s.labels for s in sequences], batch_first=True, padding_value=-1)
        learned = labels >= 0
        loss = cross_entropy(backbone.head(states[learned]), labels[learned])
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        total += loss.item()
        if (step + 1) % 50 == 0:
            log.info("language model, step %d: loss %.3f", step + 1, total / 50)
            total = 0.0
    model.eval().requires_grad_(False)


def build_backbone(out: str, tiny: dict[str, Any], world: dict[str, Any], instruction: str) -> None:
    """Train a tiny backbone and write its folder.

    Args:
        out: folder to write.
        tiny: ``backbones.<name>.tiny`` of the config: the fields of `Recipe` that differ from its defaults.
        world: config ``world``: ``seed``, and ``image_size``, the side of the images on disk.
        instruction: ``backbones.<name>.instruction``: what the user's turn says beside the image.
    """
    unknown = set(tiny) - {item.name for item in fields(Recipe)}
    if unknown:
        raise ValueError(f"backbones.*.tiny: unknown {sorted(unknown)}; see dive.backbones.untrained.Recipe")
    recipe = Recipe(**{"seed": world["seed"], **tiny})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.monotonic()
    try:
        with atomic_path(out) as folder, torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            tokenizer = build_tokenizer(recipe, instruction)
            processor = build_image_processor(recipe)
            model = build_model(recipe, tokenizer)
            log.info("%s: %.2f M parameters, %d tokens", recipe.family, model.num_parameters() / 1e6, len(tokenizer))
            pool = draw_pool(recipe, processor, recipe.images, stream(recipe.seed, "images"), world["image_size"])
            log.info("%d images after %.0f s", recipe.images, time.monotonic() - began)
            train_vision(model, pool, recipe)
            log.info("vision tower trained after %.0f s", time.monotonic() - began)
            embed_pool(model, pool)
            train_language(Backbone(model, tokenizer, instruction), pool, recipe)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            processor.save_pretrained(folder)
            if recipe.family == "gemma3":
                # For users of AutoProcessor, which would otherwise take 256 tokens an image.
                settings = {"processor_class": "Gemma3Processor", "image_seq_length": recipe.image_tokens}
                (folder / "processor_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            record_checksums(folder)
    finally:
        torch.set_num_threads(threads)
    log.info("%s written after %.0f s", Path(out).name, time.monotonic() - began)
