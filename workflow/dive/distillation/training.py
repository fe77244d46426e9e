"""Distillation: train or fit an intervention on a frozen backbone, from cached teacher states and prompt prefixes."""

import csv
import math
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dive.backbones.loading import Backbone, load_backbone
from dive.backbones.prompts import PromptStore
from dive.backbones.vision import VisionFeatures
from dive.data.readable import readable_demonstrations, readable_pool
from dive.devices import explained_memory
from dive.distillation.cache import read_targets, render_supervised
from dive.distillation.examples import Examples
from dive.distillation.losses import distillation_loss, hidden_alignment, token_cross_entropy
from dive.distillation.relevance import relevance_of
from dive.distillation.student import Student
from dive.distillation.supervision import Supervision, SupervisionStore, mark_decisive, riskiest, spans_of
from dive.files import atomic_path
from dive.progress import log, progress
from dive.provenance import code_version, fingerprint, module_of, record
from dive.shards import Shards
from dive.steering.adapters import describe_backbone, save_adapter
from dive.steering.attach import Steering
from dive.steering.attention import look_inside
from dive.steering.base import build_intervention, fit_of, stream

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
        self.optimiser = torch.optim.AdamW(groups)
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
            done.training.append([step + 1, epoch + 1, *self.step(batches[within], step)])
            done.step = step + 1
            if within == self.steps_per_epoch - 1:
                self._validate(done)
            if time.monotonic() - saved >= checkpoint_seconds:
                self._save(done, checkpoint, made_by)
                saved = time.monotonic()
        return done

    def step(self, batch: Sequence[int], step: int) -> list[float]:
        """One optimiser step on an effective batch of examples; the rest of its row of training.csv."""
        begin = time.perf_counter()
        factor = learning_rate_factor(step, self.total_steps, self.settings.get("warmup", 0.0))
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        supervision = self.supervision_of(batch)
        losses = self.accumulate_gradient(batch, supervision, epoch=step // self.steps_per_epoch)
        norm = torch.nn.utils.clip_grad_norm_(
            self.intervention.parameters(), self.settings.get("clip") or math.inf, error_if_nonfinite=False
        )
        if not math.isfinite(losses[0]) or not math.isfinite(norm):
            raise RuntimeError(
                f"loss {losses[0]} and gradient norm {float(norm)} in step {step + 1}; "
                "lower methods.*.optimiser.lr, or set backbones.*.dtype to float32"
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        parts = [sum(part) for part in zip(*(of_one.sums for of_one in supervision), strict=True)]
        shares = [part / sum(parts) for part in parts]
        tokens = sum(self.lengths[row] for row in batch)
        seconds = time.perf_counter() - begin
        return [
            *losses, *shares, float(norm), self.rates[0] * factor, tokens, seconds, tokens / seconds, peak_memory()
        ]  # fmt: skip

    @torch.no_grad()
    def supervision_of(self, batch: Sequence[int]) -> list[Supervision]:
        """How the labels of an effective batch count in this step.

        Fixed, but for ``value_at_risk``: its threshold is that of the whole batch under the present student, which
        takes one more forward pass.
        """
        supervision = [self.supervision[row] for row in batch]
        if self.method.get("weights", {}).get("source") != "value_at_risk":
            return supervision
        losses = []
        for begin in range(0, len(batch), self.micro_batch):
            with explained_memory("backbones.*.batch.training"):
                predictions = self.student(batch[begin : begin + self.micro_batch])
                losses.append(token_cross_entropy(predictions.states, predictions.labels, self.backbone.head))
        return riskiest(supervision, torch.cat(losses), self.method["weights"]["level"])

    def accumulate_gradient(
        self, batch: Sequence[int], supervision: Sequence[Supervision] | None = None, epoch: int = 0
    ) -> list[float]:
        """Gradient of the objective over an effective batch; returns loss, L_wce, L_kd, L_hid.

        Micro-batches hold alike lengths; since each is divided by the totals of the whole batch, they add up to it.
        """
        weights = dict(zip(batch, supervision or self.supervision_of(batch), strict=True))
        total_weight = sum(sum(of_one.sums) for of_one in weights.values())
        total_positions = sum(self.lengths[row] for row in batch)
        teacher = self.teachers[epoch % len(self.teachers)]
        batch = sorted(batch, key=lambda row: (self.lengths[row], row))
        sums = [0.0, 0.0, 0.0, 0.0]
        for begin in range(0, len(batch), self.micro_batch):
            rows = batch[begin : begin + self.micro_batch]
            with explained_memory("backbones.*.batch.training"):
                predictions = self.student(rows, layers=bool(self.hidden))
                losses = distillation_loss(
                    predictions.states,
                    self._teacher_of(rows, teacher),
                    predictions.labels,
                    torch.cat([weights[row].weights for row in rows]).to(self.backbone.device),
                    self.backbone.head,
                    total_weight,
                    total_positions,
                    **self.loss,
                )
                total, alignment = losses.total, torch.zeros(())
                if self.hidden:
                    taught = self._teacher_of(rows, self.layers)
                    n_terms = len(taught) * total_positions
                    alignment = hidden_alignment(predictions.layers, taught) / n_terms
                    total = total + self.hidden * alignment
                total.backward()
            parts = (total, losses.cross_entropy, losses.distillation, alignment)
            sums = [so_far + float(part.detach()) for so_far, part in zip(sums, parts, strict=True)]
        return sums

    def _teacher_of(self, rows: Sequence[int], states: Mapping[str, torch.Tensor] | None) -> torch.Tensor | None:
        """The cached states (N, width), or of all layers (L, N, width), of some queries."""
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
        return torch.cat(parts, dim=-2).to(self.backbone.device)

    def _validate(self, done: Progress) -> None:
        """Ask the validation studies; keeps the best state."""
        rows = range(len(self.queries), len(self.lengths))
        criterion, of_term = self.student.validate(rows)
        epoch = done.step // self.steps_per_epoch
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

    def _resume(self, checkpoint: Path, made_by: str) -> Progress | None:
        if not checkpoint.is_file():
            return None
        # Tensors and plain values only: loading runs no code.
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if saved["made_by"] != made_by:
            log.info("%s is of other settings, data or code: starting from the beginning", checkpoint)
            return None
        self.intervention.load_state_dict(saved["adapter"])
        self.optimiser.load_state_dict(saved["optimiser"])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved["random_cuda"])  # of the present GPU: a resumed job may have got another one
        done = Progress(**saved["progress"])
        log.info("resuming after step %d of %d", done.step, self.total_steps)
        return done


def render_marked(
    backbone: Backbone,
    studies: str,
    spans: str,
    uids: Sequence[str],
    n_tokens: Mapping[str, int],
    max_report_tokens: int | None,
    weights: Mapping[str, Any],
    seed: int,
) -> tuple[PromptStore, list[np.ndarray]]:
    """The students' prompts of some studies, and which tokens of their reports are decisive (T,), bool.

    One by one, so that texts, offsets and lists of tokens are never all in memory; see ``render_supervised``
    and ``mark_decisive``.
    """
    targets = read_targets(studies, uids)
    prompts, marked = PromptStore(backbone.term_id), []
    for uid, of_study in zip(uids, spans_of(spans, uids), strict=True):
        (prompt,) = render_supervised(backbone, [uid], targets, n_tokens, max_report_tokens)
        prompts.append(prompt)
        marked.append(mark_decisive(prompt, of_study, targets[uid], weights, seed))
    return prompts, marked


def choose_scale(student: Student, n_queries: int, scales: Sequence[float]) -> Progress:
    """Try the scales of a fitted intervention on the validation studies, by the criterion of all methods.

    Args:
        student: the steered backbone over the queries' prompts, followed by the validation studies'.
        n_queries: how many prompts are queries'.
        scales: values for the buffers named ``scale`` of the intervention.

    Returns:
        A row of validation for each scale, in their order ("epoch" counts them), and the best state.
    """
    intervention = student.steering.intervention
    rows = range(n_queries, len(student.prompts))
    done = Progress(0, [], [], math.inf, 0, {})
    for index, scale in enumerate(scales):
        for name, buffer in intervention.named_buffers():
            if name.rpartition(".")[2] == "scale":
                buffer.fill_(scale)
        criterion, of_term = student.validate(rows)
        log.info("scale %g: validation cross-entropy %.4f", scale, criterion)
        done.validation.append([index, 0, criterion, of_term, len(rows)])
        done.keep(criterion, index, intervention)
    return done


def peak_memory() -> float:
    """Largest memory so far in MiB: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _dataset_of(studies: str) -> str:
    """The dataset's name, as the studies table keeps it."""
    import pyarrow.parquet as pq

    return (pq.read_schema(studies).metadata or {}).get(b"dive.dataset", b"an unnamed dataset").decode()


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows])


def distill(
    backbone: dict[str, Any],
    method: dict[str, Any],
    studies: str,
    pool: str,
    spans: str,
    vision: str,
    teacher: str | Sequence[str] | None,
    training: dict[str, Any],
    seed: int,
    out: str,
    checkpoint: str,
    layers: str | None = None,
    demonstrations: str | None = None,
) -> None:
    """Train or fit one method's intervention on the pool's queries and keep the state that is best on validation.

    A module with a function ``fit(intervention, examples)`` is first fitted on states of the queries, without
    gradients (``dive.distillation.examples``). A method with ``epochs`` is then trained; one with ``scales`` takes the
    one of them that validation prefers.

    The criterion is the same for all methods: the uniform cross-entropy of report and terminator on validation
    studies, before training and after every epoch. A killed run goes on from ``checkpoint`` and ends in the same bits.

    Args:
        backbone: ``backbones.<name>`` of the config; ``batch.training`` examples are in memory at once.
        method: ``methods.<name>``: module, and weights, loss, optimiser, epochs, batch_size of a trained method,
            ``scales`` of a fitted one, and what the module reads.
        studies: path of ``studies.parquet``.
        pool: path of the pool's JSON: queries and validation studies.
        spans: path of the decisive spans, of the annotator that ``method.weights.source`` asks for.
        vision: folder of the vision features.
        teacher: folder of the teacher's states, which hold what its demonstrations taught; or one for each of M draws
            of them, between which the epochs alternate; None or empty where ``loss.kd`` is 0.
        training: max_report_tokens, validation_studies; optionally prefix_cache_gb (1), checkpoint_seconds (60).
        seed: fixes initial values and order (demonstrations have their own stream).
        out: adapter folder.
        checkpoint: file outside the declared outputs; removed at the end.
        layers: folder of the states of the teacher's layers; None where nothing reads them.
        demonstrations: path of the drawn demonstrations, for a method that runs the queries with them itself.

    Raises:
        ValueError: a setting does not fit; the message names it.
        RuntimeError: the loss is not finite, or memory ran out.
    """
    is_trained = "epochs" in method
    teachers = [teacher] if isinstance(teacher, str) else list(teacher or ())
    loss_settings = {"kd": 1.0, "ce": 0.5, "hidden": 0.0, "temperature": 1.0, **method.get("loss", {})}
    if is_trained and loss_settings["kd"] and not teachers:
        raise ValueError("methods.*.loss.kd is not 0 but no teacher states are given")
    if is_trained and loss_settings["hidden"] and layers is None:
        raise ValueError("methods.*.loss.hidden is not 0 but no states of the teacher's layers are given")
    members = readable_pool(pool, vision)
    queries = members["queries"]
    validation = members["validation"][: training["validation_studies"]]
    if len(validation) < training["validation_studies"]:
        log.info("only %d validation studies, %d were asked for", len(validation), training["validation_studies"])
    if not queries or not validation:
        raise ValueError(f"{pool}: {len(queries)} queries and {len(validation)} validation studies; both are needed")
    uids = [*queries, *validation]
    features = VisionFeatures(vision)
    loaded = load_backbone(backbone)
    decoder = loaded.layers
    limit = training.get("max_report_tokens")
    weights = method.get("weights", {})
    prompts, marked = render_marked(loaded, studies, spans, uids, features.n_tokens, limit, weights, seed)
    if n_cut := sum(not prompt.complete for prompt in prompts):
        log.info("%d reports are longer than max_report_tokens: cut, and no terminator is taught there", n_cut)
    at_once = backbone["batch"]["training"]
    relevance = relevance_of(weights, prompts[: len(queries)], loaded, features, at_once) + [None] * len(validation)
    supervision = SupervisionStore(marked, [prompt.complete for prompt in prompts], weights, relevance)
    states = [Shards(folder) for folder in teachers] if loss_settings["kd"] else [None]
    layer_states = Shards(layers) if layers is not None else None

    intervention = build_intervention(
        method, len(decoder), loaded.width, seed, lambda: look_inside(loaded.model, decoder)[0].shape
    )
    torch.manual_seed(int(stream(seed, "training").integers(2**63)))  # a method may draw while it trains
    outcome = {key: value for key, value in training.items() if key not in ("prefix_cache_gb", "checkpoint_seconds")}
    made_by = fingerprint(
        [backbone, method, outcome, seed, code_version(__name__, *module_of(method))],
        [backbone["path"], studies, pool, spans, vision, *teachers, layers, demonstrations],
    )
    if (fit := fit_of(method)) is not None:
        of_queries, shown = prompts[: len(queries)], None
        if demonstrations is not None:
            drawn = readable_demonstrations(demonstrations, studies, vision)["queries"]
            targets = read_targets(studies, {*queries, *chain.from_iterable(drawn.values())})
            shown = render_supervised(loaded, queries, targets, features.n_tokens, limit, drawn)
        fit(intervention, Examples(loaded, queries, of_queries, features, at_once, seed, layer_states, shown))
    inside = look_inside(loaded.model, decoder) if intervention.acts_inside else None
    with Steering(decoder, intervention, inside) as steering:
        kept_bytes = training.get("prefix_cache_gb", 1.0) * 1e9
        student = Student(loaded, steering, prompts, features, at_once, kept_bytes)
        log.info(
            "%s: %d parameters on layers %s; %d queries, chosen on %d validation studies",
            method.get("title", method["module"]), intervention.n_parameters, intervention.sites, len(queries),
            len(validation),
        )  # fmt: skip
        if is_trained:
            run = Run(
                student, supervision, queries, states[0], method, loss_settings, at_once, seed,
                layer_states if loss_settings["hidden"] else None, states[1:],
            )  # fmt: skip
            log.info("%d steps", run.total_steps)
            progressed = run.train(Path(checkpoint), made_by, training.get("checkpoint_seconds", 60.0))
        else:
            progressed = choose_scale(student, len(queries), method.get("scales", [1.0]))

    intervention.load_state_dict(progressed.best_state)
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        save_adapter(
            folder,
            intervention,
            method,
            describe_backbone(loaded.model, decoder, loaded.source, loaded.revision),
            {"dataset": _dataset_of(studies), "queries": len(queries)} | ({"draws": len(states)} if states[1:] else {}),
            progressed.best_epoch,
            record(backbone=backbone, method=method, training=outcome, seed=seed),
        )
        _write_rows(folder / "training.csv", TRAINING_COLUMNS, progressed.training)
        best = [[*row, int(row[0] == progressed.best_epoch)] for row in progressed.validation]
        _write_rows(folder / "validation.csv", VALIDATION_COLUMNS, best)
    Path(checkpoint).unlink(missing_ok=True)
    kept = (
        f"epoch {progressed.best_epoch}"
        if is_trained
        else f"scale {method.get('scales', [1.0])[progressed.best_epoch]}"
    )
    log.info("kept %s: validation cross-entropy %.4f", kept, progressed.best)
