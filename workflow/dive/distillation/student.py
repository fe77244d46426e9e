"""The student: a steered backbone that continues cached prompt prefixes with reports."""

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from dive.backbones.layers import states_at
from dive.backbones.loading import Backbone, Batch, ImageFeatures
from dive.backbones.prompts import Prompt
from dive.devices import explained_memory, upload
from dive.distillation.cache import predicting_mask
from dive.distillation.losses import token_cross_entropy
from dive.progress import log
from dive.steering.attach import Steering
from dive.steering.recording import Recording


class Prefix(NamedTuple):
    """Prompts up to, and without, their last token.

    Attributes:
        mask: (B, T) bool, left-padded.
        next_position: (B,) position of the last prompt token.
        cache: keys and values of the T positions; appended to in place by who uses it.
    """

    mask: torch.Tensor
    next_position: torch.Tensor
    cache: Any


class Prefixes:
    """Keys and values of the prompts without their last token, which no steering touches and no gradient needs.

    They are the same in every epoch, so they are kept in memory while they fit, and recomputed batch by batch
    otherwise. A batch uses copies of its rows of the kept prefixes, because the forward pass appends
    to the cache in place.

    Args:
        backbone: the frozen model; nothing may steer it while prefixes are computed.
        prompts: all prompts.
        features: image features by key.
        batch_size: prompts computed at once.
        limit_bytes: the largest memory to spend; 0 recomputes always.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Prompt],
        features: Mapping[str, ImageFeatures],
        batch_size: int,
        limit_bytes: float,
    ) -> None:
        self.backbone, self.prompts, self.features = backbone, prompts, features
        self._kept: Prefix | None = None
        if limit_bytes <= 0:
            return
        longest = max(p.prompt_length for p in prompts) - 1
        parts: list[Prefix] = []
        for begin in range(0, len(prompts), batch_size):
            parts.append(self._compute(range(begin, min(begin + batch_size, len(prompts))), longest))
            layers = parts[0].cache.layers
            n_bytes = sum(t.nbytes for layer in layers for t in (layer.keys, layer.values))
            expected = n_bytes / len(parts[0].mask) * len(prompts)
            if expected > limit_bytes:
                log.info(
                    "prompt prefixes (%.1f GB) exceed training.prefix_cache_gb; each step recomputes them",
                    expected / 1e9,
                )
                return
        for index, layer in enumerate(layers):
            # Layer by layer, so that no more than one of them is in memory twice.
            for name in ("keys", "values"):
                whole = torch.cat([getattr(part.cache.layers[index], name) for part in parts])
                for part in parts:
                    setattr(part.cache.layers[index], name, None)
                setattr(layer, name, whole)
        self._kept = Prefix(
            torch.cat([part.mask for part in parts]), torch.cat([part.next_position for part in parts]), parts[0].cache
        )

    @torch.no_grad()
    def _compute(self, rows: Sequence[int], longest: int = 0) -> Prefix:
        batch = self.backbone.collate([self.prompts[row] for row in rows], self.features, part="prefix")
        batch = _padded(batch, longest)
        cache = self.backbone.new_cache()
        self.backbone.prefill(batch, cache)
        return Prefix(batch.mask, batch.next_position, cache)

    def __call__(self, rows: Sequence[int]) -> Prefix:
        """The prefixes of the prompts in ``rows``, with a cache that may be appended to."""
        if self._kept is None:
            return self._compute(rows)
        return self.of(upload(torch.tensor(rows), self._kept.mask.device))

    @property
    def kept(self) -> bool:
        """Whether they are in memory."""
        return self._kept is not None

    def of(self, index: torch.Tensor) -> Prefix:
        """The kept prefixes of the prompts in ``index`` (B,), on the device."""
        cache = copy.copy(self._kept.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(index)
        return Prefix(self._kept.mask[index], self._kept.next_position[index], cache)


def _padded(batch: Batch, longest: int) -> Batch:
    """``batch`` with more padding on the left, up to ``longest`` positions."""
    n = longest - batch.mask.shape[1]
    if n <= 0:
        return batch
    return Batch(
        embeds=F.pad(batch.embeds, (0, 0, n, 0)),
        mask=F.pad(batch.mask, (n, 0)),
        positions=F.pad(batch.positions, (n, 0)),
        next_position=batch.next_position,
        token_types=None if batch.token_types is None else F.pad(batch.token_types, (n, 0)),
        own_masks=batch.token_types is None or batch.own_masks,
    )


class Predictions(NamedTuple):
    """What the student says at the predicting positions of a batch, examples one after another.

    Attributes:
        states: final normed states (N, width).
        labels: y_1 .. y_T and TERM of each example (N,).
        layers: outputs of all decoder layers there (L, N, width), where they were asked for.
    """

    states: torch.Tensor
    labels: torch.Tensor
    layers: torch.Tensor | None = None


class Student:
    """A steered backbone that reads prompt and report and is asked for its states at the predicting positions.

    Args:
        backbone: the frozen model.
        steering: the intervention on it.
        prompts: examples with reports.
        features: image features by key.
        batch_size: prompts a prefix is computed for at once.
        limit_bytes: memory for prompt prefixes, see ``Prefixes``.
    """

    def __init__(
        self,
        backbone: Backbone,
        steering: Steering,
        prompts: Sequence[Prompt],
        features: Mapping[str, ImageFeatures],
        batch_size: int,
        limit_bytes: float,
    ) -> None:
        self.backbone, self.steering, self.prompts, self.features = backbone, steering, prompts, features
        self.batch_size = batch_size
        self._prefixes = None
        if steering.intervention.positions == "answer":
            with steering.paused(), explained_memory("training.prefix_cache_gb, or backbones.*.batch.training"):
                self._prefixes = Prefixes(backbone, prompts, features, batch_size, limit_bytes)

    def __call__(self, rows: Sequence[int], layers: bool = False) -> Predictions:
        """Predictions for the examples in ``rows``; gradients flow to the intervention.

        Args:
            rows: indices of the prompts.
            layers: return the (steered) outputs of all decoder layers as well.
        """
        prompts = [self.prompts[row] for row in rows]
        with ExitStack() as stack:
            recording = stack.enter_context(Recording(self.backbone.layers)) if layers else None
            if self._prefixes is None:  # the prompt is steered too, so all of it is in the graph
                batch = self.backbone.collate(prompts, self.features, part="full")
                stops = torch.tensor([len(prompt.ids) for prompt in prompts])
                longest = batch.mask.shape[1]
                labels = torch.tensor([label for prompt in prompts for label in prompt.labels])
                labels = upload(labels, self.backbone.device)
                mask = predicting_mask(prompts, longest)
                with self.steering.at(torch.arange(longest) >= longest - stops[:, None]):
                    hidden = self.backbone.prefill(batch)
                return Predictions(states_at(hidden, mask), labels, recording and recording.at(mask))
            with self.steering.paused():
                prefix = self._prefixes(rows)
            answers = self.backbone.collate_answers(prompts, prefix)
            seen = torch.cat([prefix.mask, upload(answers.mask, prefix.mask.device)], dim=1)
            with self.steering.at(answers.mask):
                hidden = self.backbone.extend(answers.ids, seen, answers.next_position, prefix.cache)
            states = states_at(hidden, answers.mask)
            return Predictions(states, answers.labels, recording and recording.at(answers.mask))

    @property
    def keeps_prefixes(self) -> bool:
        """Whether prompt prefixes are in memory, so that `at_fixed_shapes` can be called."""
        return self._prefixes is not None and self._prefixes.kept

    def at_fixed_shapes(self, index: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Final normed states (B, A, width) of padded answers, padding included; all arguments are on the device.

        Args:
            index: of the prompts (B,).
            ids: (B, A), see ``Answers``.
            mask: (B, A) bool, True where a label is.
        """
        prefix = self._prefixes.of(index)
        seen = torch.cat([prefix.mask, mask], dim=1)
        # No state that counts sees padding, which lies on the right: it may be steered, and no row need be chosen.
        with self.steering.at(torch.ones(mask.shape, dtype=torch.bool)):
            return self.backbone.extend(ids, seen, prefix.next_position, prefix.cache)

    @torch.no_grad()
    def validate(self, rows: Sequence[int]) -> tuple[float, float]:
        """Uniform cross-entropy of report and terminator, and of the terminator alone, of the examples in ``rows``."""
        intervention = self.steering.intervention
        was_training = intervention.training
        intervention.eval()  # no dropout
        rows = sorted(rows, key=lambda row: (self.prompts[row].n_labels, row))
        values, terms = [], []
        for begin in range(0, len(rows), self.batch_size):
            part = rows[begin : begin + self.batch_size]
            with explained_memory("backbones.*.batch.training"):
                predictions = self(part)
                values.append(token_cross_entropy(predictions.states, predictions.labels, self.backbone.head))
            prompts = [self.prompts[row] for row in part]
            ends = itertools.accumulate(prompt.n_labels for prompt in prompts)
            terms += [values[-1][end - 1] for prompt, end in zip(prompts, ends, strict=True) if prompt.complete]
        intervention.train(was_training)
        return float(torch.cat(values).mean()), _mean(terms)


def _mean(values: Sequence[torch.Tensor]) -> float:
    return float(torch.stack(list(values)).mean()) if values else math.nan
