"""One epoch of the same distillation, computed by the engine, with a live teacher, and as the peers' loops do."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from dive.backbones.loading import ImageFeatures
from dive.backbones.prompts import Prompt
from dive.backbones.vision import VisionFeatures
from dive.distillation.cache import predicting_mask, teacher_states
from dive.distillation.run import Run, batches_of_epoch, learning_rate_factor
from dive.distillation.student import Student
from dive.shards import Shards, ShardWriter
from dive.steering.attach import Steering
from dive.steering.base import build_intervention
from tests.benchmarks.models import METHOD, Shape, draw_study, random_backbone, supervision_of


class Epoch(NamedTuple):
    """One epoch: its time, the time spent before it on what is kept for all epochs, and loss and KL of every step."""

    seconds: float
    before: float
    losses: list[float]
    divergences: list[float]


class Epochs:
    """One epoch of the same training, computed by the engine, with a live teacher, and as the peers' loops do.

    Same initial values, same batches, same objective in each: their losses must agree.

    Args:
        shape: of the backbone.
        n_queries: N, of an epoch.
        length: mean tokens of a report.
        batch: queries a step.
        n_shots: the largest K.
    """

    def __init__(self, shape: Shape, n_queries: int, length: int, batch: int, n_shots: int) -> None:
        self.shape, self.method = shape, {**METHOD, "batch_size": batch}
        self.backbone = random_backbone(shape)
        self.study = draw_study(shape, n_queries, length, n_shots)
        generator = torch.Generator().manual_seed(2)
        size = (3, shape.pixels, shape.pixels)
        self.pixels = {key: torch.randn(size, generator=generator) for key in self.study.reports}
        self.prompts = self.study.render(self.backbone)
        self.supervision = supervision_of(self.prompts, self.method["weights"])
        self.batches = batches_of_epoch([p.n_labels for p in self.prompts], batch, seed=0, epoch=0)

    @torch.no_grad()
    def embed(self, keys: Sequence[str]) -> dict[str, ImageFeatures]:
        """Run the tower."""
        found = self.backbone.model.get_image_features(pixel_values=torch.stack([self.pixels[key] for key in keys]))
        found = getattr(found, "pooler_output", found)  # transformers 5 wraps the tensors
        return {key: ImageFeatures(tokens, None) for key, tokens in zip(keys, found, strict=True)}

    def build_vision(self, folder: Path) -> float:
        """Write the features of all images; returns seconds."""
        begin = time.perf_counter()
        with ShardWriter(folder, {}) as writer:
            keys = list(self.pixels)
            for i in range(0, len(keys), 8):
                for key, feature in self.embed(keys[i : i + 8]).items():
                    writer.add(key, feature.tokens, grid=None)
        return time.perf_counter() - begin

    def build_teacher(self, folder: Path, vision: Path, shots: int) -> float:
        """Write the teacher's states; returns seconds."""
        begin = time.perf_counter()
        features = VisionFeatures(vision)
        keyed = sorted(zip(self.study.queries, self.study.render(self.backbone, shots), strict=True), key=by_length)
        with ShardWriter(folder, {}) as writer:
            for i in range(0, len(keyed), 4):
                uids, prompts = zip(*keyed[i : i + 4], strict=True)
                for uid, states in zip(uids, teacher_states(self.backbone, prompts, features), strict=True):
                    writer.add(uid, states)
        return time.perf_counter() - begin

    @contextmanager
    def run(self, features: Any, teacher: Any, limit_bytes: float) -> Iterator[Run]:
        """The engine's training from the start."""
        intervention = build_intervention(self.method, len(self.backbone.layers), self.backbone.width, seed=0)
        batch = self.method["batch_size"]
        with Steering(self.backbone.layers, intervention) as steering:
            student = Student(self.backbone, steering, self.prompts, features, batch, limit_bytes)
            loss = self.method["loss"]
            yield Run(student, self.supervision, self.study.queries, teacher, self.method, loss, batch, seed=0)

    def cached(self, vision: Path, teacher: Path, limit_bytes: float) -> Epoch:
        """The engine: from caches; prompt prefixes are kept in memory, or computed in every step."""
        start = time.perf_counter()
        with self.run(VisionFeatures(vision), Shards(teacher), limit_bytes) as run:
            begin = time.perf_counter()
            rows = [run.step(batch, step) for step, batch in enumerate(self.batches)]
            return Epoch(time.perf_counter() - begin, begin - start, [row[0] for row in rows], [row[2] for row in rows])

    def live(self, shots: int) -> Epoch:
        """The engine without caches: tower on all images and teacher with K demonstrations in every step."""
        taught = self.study.render(self.backbone, shots)
        features: dict[str, ImageFeatures] = {}
        teacher: dict[str, torch.Tensor] = {}
        with self.run(features, teacher, 0) as run:
            begin, rows = time.perf_counter(), []
            for step, batch in enumerate(self.batches):
                features.update(self.embed([key for row in batch for key in taught[row].images]))
                with run.student.steering.paused():
                    states = teacher_states(self.backbone, [taught[row] for row in batch], features)
                teacher.update(zip([self.study.queries[row] for row in batch], states, strict=True))
                rows.append(run.step(batch, step))
            return Epoch(time.perf_counter() - begin, 0.0, [row[0] for row in rows], [row[2] for row in rows])

    def whole(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Logits of all positions (B, T, V) of full prompts, from ids and pixels through the whole model."""
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.tensor([[0] * (longest - len(prompt.ids)) + prompt.ids for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts])
        return self.backbone.model(
            input_ids=ids,
            attention_mask=mask,
            token_type_ids=(ids == self.backbone.image_token_id).long(),
            pixel_values=torch.stack([self.pixels[key] for prompt in prompts for key in prompt.images]),
            use_cache=False,
        ).logits

    def peers(self, shots: int) -> Epoch:
        """As in LIVE's and MimIC's code: teacher and student from ids and pixels, all logits, gradient throughout.

        Their image processing, done in every step too, is left out: pixels are ready. Objective and steered positions
        are ours, so that the losses can be compared; they cost the same as theirs.
        """
        taught = self.study.render(self.backbone, shots)
        intervention = build_intervention(self.method, len(self.backbone.layers), self.backbone.width, seed=0)
        settings, loss_of = self.method["optimiser"], self.method["loss"]
        groups = intervention.parameter_groups(settings)
        optimiser = torch.optim.AdamW(groups)
        losses, divergences = [], []
        with Steering(self.backbone.layers, intervention) as steering:
            begin = time.perf_counter()
            for step, batch in enumerate(self.batches):
                for group in optimiser.param_groups:
                    factor = learning_rate_factor(step, len(self.batches), settings["warmup"])
                    group["lr"] = settings["lr"] * factor
                shown, own = [taught[row] for row in batch], [self.prompts[row] for row in batch]
                with torch.no_grad(), steering.paused():
                    logits = self.whole(shown)
                    teacher = logits[predicting_mask(shown, logits.shape[1])]
                mask = predicting_mask(own, max(len(prompt.ids) for prompt in own))
                with steering.at(mask):
                    student = self.whole(own)[mask]
                labels = torch.tensor([label for prompt in own for label in prompt.labels])
                weights = torch.cat([self.supervision[row].weights for row in batch])
                entropy = (weights * F.cross_entropy(student, labels, reduction="none")).sum() / weights.sum()
                kd = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
                loss = loss_of["kd"] * kd + loss_of["ce"] * entropy
                loss.backward()
                torch.nn.utils.clip_grad_norm_(intervention.parameters(), settings["clip"])
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                losses.append(float(loss.detach()))
                divergences.append(float(kd.detach()))
            return Epoch(time.perf_counter() - begin, 0.0, losses, divergences)


def by_length(keyed: tuple[str, Prompt]) -> int:
    """Longest first."""
    return -len(keyed[1].ids)


def agreeing(epochs: Sequence[Epoch], atol: float = 1e-4) -> str:
    """Assert that all took the same steps; says how far the losses are apart.

    Raises:
        AssertionError: they differ, or the teacher says what the student says, so that nothing was compared.
    """
    first, *others = epochs
    assert min(first.divergences) > 1e-2, f"teacher and student are alike: {first.divergences}"
    apart = max(abs(a - b) for other in others for a, b in zip(first.losses, other.losses, strict=True))
    assert apart <= atol, f"losses differ by {apart}: {[epoch.losses for epoch in epochs]}"
    return f"losses of {len(first.losses)} steps, to {apart:.0e}"
