"""Token by token, on validation reports: what the zero-shot backbone loses, what the teacher would change, and who
calls it decisive.

One file holds all that the comparison of annotators (`dive.analyses.sparsity`) and the view of reports need. It has
places of tokens and numbers, but no text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from dive.annotation.alignment import mark_tokens
from dive.annotation.weights import permuted, power_law, surprisal, token_weights, value_at_risk
from dive.backbones.loading import Backbone, ImageFeatures, load_backbone
from dive.backbones.prompts import Prompt
from dive.backbones.vision import VisionFeatures
from dive.data.readable import readable_demonstrations, readable_pool
from dive.devices import explained_memory
from dive.distillation.cache import read_targets, render_supervised, teacher_states
from dive.distillation.losses import CHUNK, Head, token_cross_entropy
from dive.distillation.relevance import report_labels
from dive.distillation.supervision import spans_of
from dive.files import atomic_path
from dive.parquet import read_table, write_table
from dive.progress import log, progress


@torch.no_grad()
def token_divergence(student: torch.Tensor, teacher: torch.Tensor, head: Head, chunk: int = CHUNK) -> torch.Tensor:
    """KL(p_T || p_S) at each position over the whole vocabulary, (N,) float32, from final normed states (N, d)."""
    parts = []
    for i in range(0, len(student), chunk):
        log_p = F.log_softmax(head(student[i : i + chunk]).float(), dim=-1)
        log_q = F.log_softmax(head(teacher[i : i + chunk]).float(), dim=-1)
        parts.append((log_q.exp() * (log_q - log_p)).sum(-1))
    return torch.cat(parts)


def measure(
    backbone: Backbone,
    student: Sequence[Prompt],
    teacher: Sequence[Prompt],
    features: Mapping[str, ImageFeatures],
    batch_size: int,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Loss of the student, loss of the teacher and KL(p_T || p_S) of every label of each report, in nats.

    Args:
        backbone: the frozen model, unsteered.
        student: prompts without demonstrations.
        teacher: the same reports with demonstrations.
        features: image features by key.
        batch_size: prompts run at once.

    Returns:
        For each report three arrays of the length of its labels, float32.
    """
    order = sorted(range(len(teacher)), key=lambda row: -len(teacher[row].ids))
    found = {}
    shared = backbone.share(teacher, features)
    for begin in progress(range(0, len(order), batch_size), "batches analysed"):
        rows = order[begin : begin + batch_size]
        with explained_memory("backbones.*.batch.teacher"):
            zero_shot = teacher_states(backbone, [student[row] for row in rows], features)
            shown = teacher_states(backbone, [teacher[row] for row in rows], features, shared)
            for row, own, taught in zip(rows, zero_shot, shown, strict=True):
                labels = torch.tensor(student[row].labels, device=own.device)
                found[row] = (
                    token_cross_entropy(own, labels, backbone.head).cpu().numpy(),
                    token_cross_entropy(taught, labels, backbone.head).cpu().numpy(),
                    token_divergence(own, taught, backbone.head).clamp_min(0).cpu().numpy(),
                )
    return [found[row] for row in range(len(teacher))]


def analyse_tokens(
    backbone: dict[str, Any],
    studies: str,
    pool: str,
    demonstrations: str,
    vision: str,
    spans: Mapping[str, str],
    settings: Mapping[str, Any],
    out: str,
) -> None:
    """Write the table of tokens of validation reports.

    Args:
        backbone: ``backbones.<name>`` of the config; ``batch.teacher`` prompts are run at once.
        studies: path of ``studies.parquet``.
        pool: path of the pool's JSON: validation studies, and queries, over which tokens are counted.
        demonstrations: path of the drawn demonstrations; ``validation`` maps a study to its K.
        vision: folder of the vision features.
        spans: annotator -> path of its spans; of ``random`` that of the annotator whose count it keeps.
        settings: ``studies``, how many; ``max_report_tokens``; ``seed`` of random tokens; ``statistics``:
            name -> its parameter (exponent or level); ``weights``: those of the method that the view shows, with
            ``source`` an annotator or a statistic of these.
        out: parquet with a row a supervised token: study_uid, patient_uid, index in the report, start and end
            (characters of target; null for TERM), term, loss and teacher_loss (nats, zero-shot and K-shot), kl,
            decisive_<annotator> (bool), relevance_<statistic> (mean 1 over report tokens) and weight.

    Raises:
        ValueError: the pool has no validation studies.
    """
    members = readable_pool(pool, vision)
    uids = members["validation"][: settings["studies"]]
    if not uids:
        raise ValueError(f"{pool}: no validation studies to analyse")
    drawn = readable_demonstrations(demonstrations, studies, vision)["validation"]
    targets = read_targets(studies)
    patients = read_patients(studies)
    features = VisionFeatures(vision)
    loaded = load_backbone(backbone)
    limit = settings["max_report_tokens"]
    student = render_supervised(loaded, uids, targets, features.n_tokens, limit)
    teacher = render_supervised(loaded, uids, targets, features.n_tokens, limit, drawn)
    numbers = measure(loaded, student, teacher, features, backbone["batch"]["teacher"])
    marks = {}
    for name, path in spans.items():
        of_report = [
            mark_tokens(prompt.offsets, of_study, targets[uid])
            for uid, prompt, of_study in zip(uids, student, spans_of(path, uids), strict=True)
        ]
        if name == "random":
            of_report = [permuted(m, settings["seed"], uid) for m, uid in zip(of_report, uids, strict=True)]
        marks[name] = of_report
    reports = [loss[: len(prompt.offsets)] for (loss, _, _), prompt in zip(numbers, student, strict=True)]
    relevance = {}
    for name, parameter in settings["statistics"].items():
        if name == "power_law":
            queries = render_supervised(loaded, members["queries"], targets, features.n_tokens, limit)
            corpus = [report_labels(prompt) for prompt in queries]
            relevance[name] = power_law([report_labels(prompt) for prompt in student], corpus, parameter)
        elif name == "surprisal":
            relevance[name] = surprisal(reports, parameter)
        else:
            kept = value_at_risk(np.concatenate(reports), parameter)
            kept = kept / kept.mean()
            relevance[name] = np.split(kept, np.cumsum([len(report) for report in reports])[:-1])
    weights = settings["weights"]
    source = weights["source"]
    marking = settings["annotator"] if source is None or source in relevance else source
    weight = [
        token_weights(
            marks[marking][row],
            prompt.complete,
            weights["pathology"],
            weights["eos"],
            relevance[source][row] if source in relevance else None,
        )
        for row, prompt in enumerate(student)
    ]
    write_tokens(out, uids, patients, student, numbers, marks, relevance, weight)
    n_tokens = sum(prompt.n_labels for prompt in student)
    log.info("%d tokens of %d reports", n_tokens, len(uids))


def read_patients(studies: str) -> dict[str, str]:
    """Patient of every study."""
    table = read_table(studies, columns=["study_uid", "patient_uid"])
    return dict(zip(table["study_uid"].to_pylist(), table["patient_uid"].to_pylist(), strict=True))


def write_tokens(
    out: str,
    uids: Sequence[str],
    patients: Mapping[str, str],
    prompts: Sequence[Prompt],
    numbers: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    marks: Mapping[str, Sequence[np.ndarray]],
    relevance: Mapping[str, Sequence[np.ndarray]],
    weight: Sequence[np.ndarray],
) -> None:
    """Write the table that `analyse_tokens` describes; TERM is never decisive and has relevance 1."""
    columns: dict[str, list[Any]] = {
        "study_uid": [], "patient_uid": [], "index": [], "start": [], "end": [], "term": [],
        "loss": [], "teacher_loss": [], "kl": [],
    }  # fmt: skip
    columns |= {f"decisive_{name}": [] for name in marks} | {f"relevance_{name}": [] for name in relevance}
    columns["weight"] = []
    for row, (uid, prompt) in enumerate(zip(uids, prompts, strict=True)):
        n, report = prompt.n_labels, len(prompt.offsets)
        columns["study_uid"] += [uid] * n
        columns["patient_uid"] += [patients[uid]] * n
        columns["index"] += range(n)
        columns["start"] += [start for start, _ in prompt.offsets] + [None] * (n - report)
        columns["end"] += [end for _, end in prompt.offsets] + [None] * (n - report)
        columns["term"] += [False] * report + [True] * (n - report)
        for name, values in zip(("loss", "teacher_loss", "kl"), numbers[row], strict=True):
            columns[name] += values.tolist()
        for name, of_report in marks.items():
            columns[f"decisive_{name}"] += of_report[row].tolist() + [False] * (n - report)
        for name, of_report in relevance.items():
            columns[f"relevance_{name}"] += of_report[row].tolist() + [1.0] * (n - report)
        columns["weight"] += weight[row].tolist()
    fixed = {
        "index": pa.int32(), "start": pa.int32(), "end": pa.int32(), "loss": pa.float32(),
        "teacher_loss": pa.float32(), "kl": pa.float32(), "weight": pa.float32(),
    }  # fmt: skip
    fixed |= {name: pa.float32() for name in columns if name.startswith("relevance_")}
    arrays = {name: pa.array(values, type=fixed.get(name)) for name, values in columns.items()}
    with atomic_path(out) as temporary:
        write_table(pa.table(arrays), temporary, compression="zstd")
