"""Distillation: train or fit an intervention on a frozen backbone, from cached teacher states and prompt prefixes."""

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dive.backbones.files import describe_model
from dive.backbones.finite import states_error
from dive.backbones.loading import Backbone, load_backbone
from dive.backbones.prompts import PromptStore
from dive.backbones.vision import VisionFeatures
from dive.data.draws import stream
from dive.data.readable import readable_demonstrations, readable_pool
from dive.distillation.cache import read_targets, render_supervised
from dive.distillation.examples import Examples
from dive.distillation.relevance import relevance_of
from dive.distillation.run import TRAINING_COLUMNS, VALIDATION_COLUMNS, Progress, Run
from dive.distillation.student import Student
from dive.distillation.supervision import SupervisionStore, mark_decisive, spans_of
from dive.files import atomic_path, record_checksums
from dive.progress import log
from dive.provenance import code_version, decisive, fingerprint, module_of, record
from dive.shards import Shards
from dive.steering.adapters import describe_backbone, save_adapter
from dive.steering.attach import Steering
from dive.steering.attention import look_inside
from dive.steering.base import build_intervention, fit_of


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

    Raises:
        RuntimeError: the cross-entropy is finite at none of them.
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
    if not math.isfinite(done.best):
        raise states_error("the validation studies, at every scale", student.backbone.dtype)
    return done


def _dataset_of(studies: str) -> str:
    """The dataset's name, as the studies table keeps it."""
    from dive.parquet import read_schema

    return (read_schema(studies).metadata or {}).get(b"dive.dataset", b"an unnamed dataset").decode()


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
    credentialed: bool = True,
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
        credentialed: whether only credentialed users may have the dataset: its adapter is not published by mistake.

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
        asked = training["validation_studies"]
        log.info("there are only %d validation studies; training.validation_studies is %d", len(validation), asked)
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
        log.info("%d reports exceed training.max_report_tokens; they are cut and get no end-of-turn label", n_cut)
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
    model = describe_model(backbone["path"], backbone.get("revision"))
    made_by = fingerprint(
        [decisive(backbone), model, method, outcome, seed, code_version(__name__, *module_of(method))],
        [studies, pool, spans, vision, *teachers, layers, demonstrations],
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
    data = {"dataset": _dataset_of(studies), "credentialed": credentialed, "queries": len(queries)}
    if states[1:]:
        data["draws"] = len(states)
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        save_adapter(
            folder,
            intervention,
            method,
            describe_backbone(loaded.model, decoder, loaded.source, loaded.revision),
            data,
            progressed.best_epoch,
            record(backbone=decisive(backbone), method=method, training=outcome, seed=seed),
            {"validation cross-entropy": progressed.best},
        )
        _write_rows(folder / "training.csv", TRAINING_COLUMNS, progressed.training)
        best = [[*row, int(row[0] == progressed.best_epoch)] for row in progressed.validation]
        _write_rows(folder / "validation.csv", VALIDATION_COLUMNS, best)
        record_checksums(folder, "training.csv", "validation.csv")
    Path(checkpoint).unlink(missing_ok=True)
    kept = (
        f"epoch {progressed.best_epoch}"
        if is_trained
        else f"scale {method.get('scales', [1.0])[progressed.best_epoch]}"
    )
    log.info("kept %s: validation cross-entropy %.4f", kept, progressed.best)
