"""The training loop: optimiser steps on effective batches, validation after every epoch, checkpoints to go on from."""

import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dive.data.draws import stream
from dive.devices import explained_memory, upload
from dive.distillation.losses import distillation_loss, hidden_alignment, token_cross_entropy
from dive.distillation.recorded import Filled, MicroBatch, recorded_gradient
from dive.distillation.student import Student
from dive.distillation.supervision import Supervision, riskiest
from dive.files import atomic_path
from dive.job import peak_memory
from dive.progress import log, progress
from dive.sealed import DamageError, append_seal, checked_body

TRAINING_COLUMNS = (
    "step", "epoch", "loss", "cross_entropy", "distillation", "hidden", "share_other", "share_pathology", "share_term",
    "gradient_norm", "learning_rate", "tokens", "seconds", "tokens_per_second", "peak_memory_mib",
)  # fmt: skip
VALIDATION_COLUMNS = ("epoch", "step", "cross_entropy", "term_cross_entropy", "studies", "best")


@dataclass
class Progress:
    """All of a run that a resumed one needs, besides adapter and optimiser.

    Attributes:
        step: optimiser steps done; with the seed it fixes the position in the data.
        training: rows of training.csv.
        validation: rows of validation.csv.
        best: least validation cross-entropy so far.
        best_epoch: when it was reached.
        best_state: the adapter then.
    """

    step: int
    training: list[list[float]]
    validation: list[list[float]]
    best: float
    best_epoch: int
    best_state: dict[str, torch.Tensor]

    def keep(self, criterion: float, epoch: int, intervention: torch.nn.Module) -> None:
        """Keep the intervention's state if it is the best so far."""
        if criterion < self.best:
            self.best, self.best_epoch = criterion, epoch
            self.best_state = {key: value.detach().cpu().clone() for key, value in intervention.state_dict().items()}


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over the first ``warmup`` (a fraction) of ``total`` steps, then cosine to 0 (step from 0)."""
    rising = round(total * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))


def batches_of_epoch(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, window: int = 4
) -> list[list[int]]:
    """Shuffled effective batches of one epoch, of alike lengths; the last drawn may be smaller, none is dropped.

    Examples are shuffled, sorted by length within ``window`` batches (at most half of all), cut, and the batches
    shuffled: less padding, while what meets in a batch still changes from epoch to epoch.
    """
    window = max(1, min(window, math.ceil(len(lengths) / batch_size) // 2))
    draw = stream(seed, "order", epoch)
    order = draw.permutation(len(lengths)).tolist()
    batches = []
    for begin in range(0, len(order), batch_size * window):
        alike = sorted(order[begin : begin + batch_size * window], key=lambda row: (lengths[row], row))
        batches += [alike[i : i + batch_size] for i in range(0, len(alike), batch_size)]
    return [batches[i] for i in draw.permutation(len(batches))]


def device_peak_memory() -> float:
    """Largest memory so far in MiB: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory()


class Run:
    """The training of one intervention.

    Args:
        student: the steered backbone over the queries' prompts, followed by the validation studies'.
        supervision: of every prompt.
        queries: study_uid of the queries.
        teacher: states (n_labels, width) by study_uid, or None where kd is 0; read batch by batch.
        method: optimiser, weights, epochs, batch_size.
        loss: kd, ce, hidden, temperature.
        micro_batch: examples in memory at once; the effective batch is accumulated from them.
        seed: fixes the order.
        layers: the teacher's layer states (L, n_labels, width) by study_uid, or None where hidden is 0.
        redrawn: the teacher's states with further draws of demonstrations: of M draws in all, epoch e (from 0) learns
            from draw e mod M, the first being ``teacher``.
    """

    def __init__(
        self,
        student: Student,
        supervision: Sequence[Supervision],
        queries: Sequence[str],
        teacher: Mapping[str, torch.Tensor] | None,
        method: Mapping[str, Any],
        loss: Mapping[str, float],
        micro_batch: int,
        seed: int,
        layers: Mapping[str, torch.Tensor] | None = None,
        redrawn: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> None:
        self.student, self.queries, self.layers = student, queries, layers
        self.teachers = [teacher, *redrawn]
        loss = dict(loss)
        self.hidden = loss.pop("hidden", 0.0)
        self.supervision, self.lengths = supervision, [prompt.n_labels for prompt in student.prompts]
        self.method, self.loss, self.micro_batch, self.seed = method, loss, micro_batch, seed
        self.backbone, self.intervention = student.backbone, student.steering.intervention
        self.settings = method["optimiser"]
        groups = self.intervention.parameter_groups(self.settings)
        self.rates = [group["lr"] for group in groups]
        self.recorded = None if self.hidden else recorded_gradient(student, self.loss)
        self._ready: tuple[Sequence[int], Filled] | None = None  # the beginning of the next batch
        self.optimiser = torch.optim.AdamW(groups, fused=self.backbone.device.type == "cuda" or None)
        self.steps_per_epoch = math.ceil(len(queries) / method["batch_size"])
        self.total_steps = self.steps_per_epoch * method["epochs"]

    def train(self, checkpoint: Path, made_by: str, checkpoint_seconds: float = 60.0) -> Progress:
        """Run, or go on with, all epochs.

        Args:
            checkpoint: file that a killed run left, or will leave; written every ``checkpoint_seconds``.
            made_by: what determines the result; a checkpoint of anything else is ignored.
            checkpoint_seconds: 0 writes after every step.
        """
        done = self._resume(checkpoint, made_by)
        if done is None:
            done = Progress(0, [], [], math.inf, 0, {})
            self._validate(done)
        lengths = self.lengths[: len(self.queries)]
        batches: list[list[int]] = []
        saved = time.monotonic()
        for step in progress(range(done.step, self.total_steps), "distillation steps"):
            epoch, within = divmod(step, self.steps_per_epoch)
            if not (batches and within):
                batches = batches_of_epoch(lengths, self.method["batch_size"], self.seed, epoch)
            upcoming = batches[within + 1] if within + 1 < len(batches) else None
            done.training.append([step + 1, epoch + 1, *self.step(batches[within], step, upcoming)])
            done.step = step + 1
            if within == self.steps_per_epoch - 1:
                self._validate(done)
            if time.monotonic() - saved >= checkpoint_seconds:
                self._save(done, checkpoint, made_by)
                saved = time.monotonic()
        return done

    def step(self, batch: Sequence[int], step: int, upcoming: Sequence[int] | None = None) -> list[float]:
        """One optimiser step on an effective batch of examples; the rest of its row of training.csv.

        Args:
            batch: rows of the examples.
            step: counted from 0.
            upcoming: the next batch of the epoch, which may be prepared while a GPU computes this one.
        """
        begin = time.perf_counter()
        factor = learning_rate_factor(step, self.total_steps, self.settings.get("warmup", 0.0))
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        epoch = step // self.steps_per_epoch
        supervision = self.supervision_of(batch)
        sums = self.accumulate_gradient(batch, supervision, epoch)
        clipped = torch.nn.utils.clip_grad_norm_(
            self.intervention.parameters(), self.settings.get("clip") or math.inf, error_if_nonfinite=False
        )
        numbers = torch.cat([sums, clipped.double()[None]])
        if upcoming and self.recorded is not None and not self._by_loss:
            first = next(self._micro_batches(upcoming, self.supervision_of(upcoming), epoch))
            self._ready = first.rows, self.recorded.fill(*first)
        *losses, norm = numbers.tolist()  # all that a GPU is waited for in a step
        if not math.isfinite(losses[0]) or not math.isfinite(norm):
            raise RuntimeError(
                f"loss {losses[0]} and gradient norm {norm} in step {step + 1}; "
                "lower methods.*.optimiser.lr, or set backbones.*.dtype to float32"
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=self.recorded is None)
        parts = [sum(part) for part in zip(*(of_one.sums for of_one in supervision), strict=True)]
        shares = [part / sum(parts) for part in parts]
        tokens = sum(self.lengths[row] for row in batch)
        seconds = time.perf_counter() - begin
        return [
            *losses, *shares, norm, self.rates[0] * factor, tokens, seconds, tokens / seconds,
            device_peak_memory(),
        ]  # fmt: skip

    @torch.no_grad()
    def supervision_of(self, batch: Sequence[int]) -> list[Supervision]:
        """How the labels of an effective batch count in this step.

        Fixed, but for ``value_at_risk``: its threshold is that of the whole batch under the present student, which
        takes one more forward pass.
        """
        supervision = [self.supervision[row] for row in batch]
        if not self._by_loss:
            return supervision
        losses = []
        for begin in range(0, len(batch), self.micro_batch):
            with explained_memory("backbones.*.batch.training"):
                predictions = self.student(batch[begin : begin + self.micro_batch])
                losses.append(token_cross_entropy(predictions.states, predictions.labels, self.backbone.head))
        return riskiest(supervision, torch.cat(losses), self.method["weights"]["level"])

    @property
    def _by_loss(self) -> bool:
        """Whether the weights depend on the student's present loss."""
        return self.method.get("weights", {}).get("source") == "value_at_risk"

    def _micro_batches(
        self, batch: Sequence[int], supervision: Sequence[Supervision], epoch: int
    ) -> Iterator[MicroBatch]:
        """The parts of an effective batch, of alike lengths."""
        weights = dict(zip(batch, supervision, strict=True))
        total_weight = sum(sum(of_one.sums) for of_one in weights.values())
        total_positions = sum(self.lengths[row] for row in batch)
        teacher = self.teachers[epoch % len(self.teachers)]
        batch = sorted(batch, key=lambda row: (self.lengths[row], row))
        for begin in range(0, len(batch), self.micro_batch):
            rows = batch[begin : begin + self.micro_batch]
            each = torch.cat([weights[row].weights for row in rows])
            yield MicroBatch(rows, self._teacher_of(rows, teacher), each, total_weight, total_positions)

    def accumulate_gradient(
        self, batch: Sequence[int], supervision: Sequence[Supervision] | None = None, epoch: int = 0
    ) -> torch.Tensor:
        """Gradient of the objective over an effective batch; returns loss, L_wce, L_kd, L_hid: (4,), float64.

        Micro-batches hold alike lengths; since each is divided by the totals of the whole batch, they add up to it.
        """
        device = self.backbone.device
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        ready, self._ready = self._ready, None
        for part in self._micro_batches(batch, supervision or self.supervision_of(batch), epoch):
            with explained_memory("backbones.*.batch.training"):
                if self.recorded is not None:
                    filled = ready[1] if ready and ready[0] == part.rows else self.recorded.fill(*part)
                    sums[:3] += self.recorded.add(filled)
                    continue
                predictions = self.student(part.rows, layers=bool(self.hidden))
                losses = distillation_loss(
                    predictions.states,
                    None if part.teacher is None else upload(part.teacher, device),
                    predictions.labels,
                    upload(part.weights, device),
                    self.backbone.head,
                    part.total_weight,
                    part.total_positions,
                    **self.loss,
                )
                total, alignment = losses.total, torch.zeros((), device=device)
                if self.hidden:
                    taught = upload(self._teacher_of(part.rows, self.layers), device)
                    n_terms = len(taught) * part.total_positions
                    alignment = hidden_alignment(predictions.layers, taught) / n_terms
                    total = total + self.hidden * alignment
                total.backward()
            sums += torch.stack([total, losses.cross_entropy, losses.distillation, alignment]).detach()
        return sums

    def _teacher_of(self, rows: Sequence[int], states: Mapping[str, torch.Tensor] | None) -> torch.Tensor | None:
        """The cached states (N, width), or of all layers (L, N, width), of some queries; on the CPU."""
        if states is None:
            return None
        parts = []
        for row in rows:
            part = states[self.queries[row]]
            if part.shape[-2] != self.lengths[row]:
                raise ValueError(
                    f"{self.queries[row]}: the teacher has {part.shape[-2]} states, the student {self.lengths[row]}; "
                    "the cache was made with another tokenizer or max_report_tokens: remove it and run again"
                )
            parts.append(part)
        return torch.cat(parts, dim=-2)

    def _validate(self, done: Progress) -> None:
        """Ask the validation studies; keeps the best state."""
        rows = range(len(self.queries), len(self.lengths))
        criterion, of_term = self.student.validate(rows)
        epoch = done.step // self.steps_per_epoch
        if not math.isfinite(criterion):
            raise RuntimeError(
                f"validation cross-entropy {criterion} after epoch {epoch}; "
                "lower methods.*.optimiser.lr, or set backbones.*.dtype to float32"
            )
        done.validation.append([epoch, done.step, criterion, of_term, len(rows)])
        done.keep(criterion, epoch, self.intervention)

    def _save(self, done: Progress, checkpoint: Path, made_by: str) -> None:
        with atomic_path(checkpoint) as temporary:
            torch.save(
                {
                    "made_by": made_by,
                    "progress": vars(done),
                    "adapter": self.intervention.state_dict(),
                    "optimiser": self.optimiser.state_dict(),
                    "random": torch.get_rng_state(),
                    "random_cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
                },
                temporary,
            )
            append_seal(temporary)

    def _resume(self, checkpoint: Path, made_by: str) -> Progress | None:
        if not checkpoint.is_file():
            return None
        try:
            content = checked_body(checkpoint)
        except DamageError as error:
            log.warning("training starts from the beginning, because the checkpoint is damaged: %s", error)
            return None
        # Tensors and plain values only: loading runs no code.
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if saved["made_by"] != made_by:
            log.info("%s was made with other settings, data or code; training starts from the beginning", checkpoint)
            return None
        self.intervention.load_state_dict(saved["adapter"])
        self.optimiser.load_state_dict(saved["optimiser"])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved["random_cuda"])  # of the present GPU: a resumed job may have got another one
        done = Progress(**saved["progress"])
        log.info("training resumes after step %d of %d", done.step, self.total_steps)
        return done
