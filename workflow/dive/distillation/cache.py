"""The teacher, run once: its final normed states at the positions that predict report and terminator."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dive.backbones.loading import Backbone, ImageFeatures, load_backbone
from dive.backbones.prompts import Prompt
from dive.backbones.shared import Shared
from dive.backbones.vision import VisionFeatures
from dive.data.readable import readable_demonstrations
from dive.devices import explained_memory
from dive.progress import log, progress
from dive.provenance import record
from dive.shards import ShardWriter


def read_targets(studies: str) -> dict[str, str]:
    """Target report of every study of ``studies.parquet`` (two columns only: the table can be wide)."""
    import pyarrow.parquet as pq

    table = pq.read_table(studies, columns=["study_uid", "target"])
    return dict(zip(table["study_uid"].to_pylist(), table["target"].to_pylist(), strict=True))


def render_supervised(
    backbone: Backbone,
    uids: Sequence[str],
    targets: Mapping[str, str],
    n_tokens: Mapping[str, int],
    max_report_tokens: int | None,
    demonstrations: Mapping[str, Sequence[str]] | None = None,
) -> list[Prompt]:
    """Prompts with their reports: the student's, or the teacher's where demonstrations are given.

    Both tokenise the report alike, so the teacher's predicting positions match the student's one by one.

    Args:
        backbone: whose chat template is used.
        uids: studies, in order.
        targets: report of every study, demonstrations included.
        n_tokens: image tokens of every study.
        max_report_tokens: longer reports are cut and have no terminator label; demonstrations are never cut.
        demonstrations: study -> its K demonstrations; None for the student.
    """
    return [
        backbone.prompts.render(
            uid,
            n_tokens,
            demonstrations=[(other, targets[other]) for other in demonstrations[uid]] if demonstrations else (),
            report=targets[uid],
            max_report_tokens=max_report_tokens,
        )
        for uid in uids
    ]


def predicting_mask(prompts: Sequence[Prompt], longest: int) -> torch.Tensor:
    """Positions p-1 .. p+T-1 in full prompts left-padded to ``longest``: (B, longest) bool, CPU.

    p is the index of y_1. A cut report has no terminator to predict, so its last token predicts nothing.
    """
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        begin = longest - len(prompt.ids) + prompt.prompt_length - 1
        mask[row, begin : begin + prompt.n_labels] = True
    return mask


@torch.no_grad()
def teacher_states(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: Mapping[str, ImageFeatures],
    shared: Shared | None = None,
) -> list[torch.Tensor]:
    """Final normed states (T+1, width) at the predicting positions of each full prompt (T where it is cut).

    Args:
        backbone: the frozen model.
        prompts: with reports.
        features: image features by key.
        shared: ``backbone.share`` of these prompts, among others; None runs them whole.
    """
    batch = backbone.collate(prompts, features, part="full", shared=shared)
    hidden = backbone.prefill(batch, shared and shared.new_cache())
    mask = predicting_mask(prompts, hidden.shape[1])
    return [states[rows.to(states.device)] for states, rows in zip(hidden, mask, strict=True)]


def cache_teacher(
    backbone: dict[str, Any],
    studies: str,
    demonstrations: str,
    vision: str,
    training: dict[str, Any],
    out: str,
) -> None:
    """Write the K-shot teacher's states of every query as shards, under the query's study_uid.

    With the frozen output head they give the teacher's distribution over the whole vocabulary, exactly, at ``width``
    numbers a token instead of a vocabulary's.

    Args:
        backbone: ``backbones.<name>`` of the config; ``batch.teacher`` prompts are run at once.
        studies: path of ``studies.parquet``.
        demonstrations: path of the drawn demonstrations; ``queries`` maps a study to its K.
        vision: folder of the vision features.
        training: ``max_report_tokens``.
        out: folder of the shards.

    Raises:
        RuntimeError: out of device memory; the message names the setting.
    """
    drawn = readable_demonstrations(demonstrations, studies, vision)["queries"]
    targets = read_targets(studies)
    features = VisionFeatures(vision)
    loaded = load_backbone(backbone)
    prompts = render_supervised(
        loaded, list(drawn), targets, features.n_tokens, training.get("max_report_tokens"), drawn
    )
    n_bytes = sum(p.n_labels for p in prompts) * loaded.width * torch.finfo(loaded.dtype).bits // 8
    log.info("teacher states of %d queries, %.1f MB", len(prompts), n_bytes / 1e6)
    if n_cut := sum(not p.complete for p in prompts):
        log.info("%d reports are longer than max_report_tokens: cut, and no terminator is taught there", n_cut)
    # Alike lengths share a batch, the longest first: too large a batch fails at once, not after hours.
    keyed = sorted(zip(drawn, prompts, strict=True), key=lambda item: -len(item[1].ids))
    size = backbone["batch"]["teacher"]
    shared = loaded.share(prompts, features)
    if shared:
        log.info("all queries share their demonstrations: %d tokens are run once", shared.length)
    with ShardWriter(out, record(backbone=backbone, training=training)) as writer:
        for begin in progress(range(0, len(keyed), size), "teacher batches"):
            batch = keyed[begin : begin + size]
            with explained_memory("backbones.*.batch.teacher"):
                states = teacher_states(loaded, [prompt for _, prompt in batch], features, shared)
            for (uid, prompt), of_query in zip(batch, states, strict=True):
                if not of_query.isfinite().all():
                    raise RuntimeError(f"the teacher's states of {uid} are not finite; try dtype: float32")
                writer.add(uid, of_query, complete=prompt.complete)
