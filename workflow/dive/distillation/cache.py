"""The teacher, run once: its states at the positions that predict report and terminator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from dive.backbones.files import describe_model
from dive.backbones.finite import require_finite
from dive.backbones.layers import states_at
from dive.backbones.loading import Backbone, ImageFeatures, load_backbone
from dive.backbones.prompts import Prompt, PromptStore
from dive.backbones.shared import Shared
from dive.backbones.vision import VisionFeatures
from dive.data.readable import readable_demonstrations
from dive.devices import explained_memory
from dive.progress import log, progress
from dive.provenance import decisive, fingerprint, record
from dive.shards import ShardWriter


def read_targets(studies: str, uids: Iterable[str] | None = None) -> dict[str, str]:
    """Target report of the studies in ``uids``, or of all, from ``studies.parquet``, which can be wide and long."""
    import pyarrow.compute as pc

    from dive.parquet import read_table

    wanted = None if uids is None else pc.field("study_uid").isin(list(uids))
    table = read_table(studies, columns=["study_uid", "target"], filters=wanted)
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

    Raises:
        RuntimeError: states are not finite; the message names a study and the setting.
    """
    batch = backbone.collate(prompts, features, part="full", shared=shared)
    hidden = backbone.prefill(batch, shared and shared.new_cache())
    states = states_at(hidden, predicting_mask(prompts, hidden.shape[1]))
    return finite_parts(backbone, prompts, states, dim=0)


def finite_parts(backbone: Backbone, prompts: Sequence[Prompt], states: torch.Tensor, dim: int) -> list[torch.Tensor]:
    """States of several prompts, one after another along ``dim``, by prompt.

    Raises:
        RuntimeError: they are not finite; the message names a study and the setting.
    """
    parts = states.split([prompt.n_labels for prompt in prompts], dim)
    require_finite({prompt.images[-1]: part for prompt, part in zip(prompts, parts, strict=True)}, backbone.dtype)
    return list(parts)


def cache_teacher(
    backbone: dict[str, Any],
    studies: str,
    demonstrations: str,
    vision: str,
    training: dict[str, Any],
    out: str,
    partial: str | None = None,
) -> None:
    """Write the K-shot teacher's final normed states of every query as shards, under the query's study_uid.

    With the frozen output head they give the teacher's distribution over the whole vocabulary, exactly, at ``width``
    numbers a token instead of a vocabulary's. For arguments and errors see ``cache_states``.
    """
    made = record(backbone=decisive(backbone), training=training)
    cache_states(backbone, studies, demonstrations, vision, training, out, partial, made, teacher_states)


def cache_states(
    backbone: dict[str, Any],
    studies: str,
    demonstrations: str,
    vision: str,
    training: dict[str, Any],
    out: str,
    partial: str | None,
    made: dict[str, Any],
    states_of: Callable[..., list[torch.Tensor]],
    every_layer: bool = False,
) -> None:
    """Write states of the K-shot teacher as shards; how many bytes that will be is said before the model runs.

    Args:
        backbone: ``backbones.<name>`` of the config; ``batch.teacher`` prompts are run at once.
        studies: path of ``studies.parquet``.
        demonstrations: path of the drawn demonstrations; ``queries`` maps a study to its K.
        vision: folder of the vision features.
        training: ``max_report_tokens``.
        out: folder of the shards.
        partial: folder outside the declared outputs, in which finished shards outlive a kill; None keeps nothing.
        made: the record of settings and code that make the states.
        states_of: runs the teacher on full prompts, as ``teacher_states`` does; (n, width) of each in the backbone's
            dtype, at the n positions that predict report and terminator.
        every_layer: they are (L, n, width), of all decoder layers.

    Raises:
        RuntimeError: no room on the disk, out of device memory (the message names the setting), or states that are
            not finite.
    """
    drawn = readable_demonstrations(demonstrations, studies, vision)["queries"]
    targets = read_targets(studies, {*drawn, *chain.from_iterable(drawn.values())})
    features = VisionFeatures(vision)
    loaded = load_backbone(backbone)
    uids, prompts = list(drawn), PromptStore(loaded.term_id)
    for uid in uids:  # one by one into little memory
        (prompt,) = render_supervised(
            loaded, [uid], targets, features.n_tokens, training.get("max_report_tokens"), drawn
        )
        prompts.append(prompt)
    lengths = [len(prompt.ids) for prompt in prompts]
    n_planes = len(loaded.layers) if every_layer else 1
    n_positions = sum(prompt.n_labels for prompt in prompts)
    n_bytes = n_planes * n_positions * loaded.width * torch.finfo(loaded.dtype).bits // 8
    log.info(
        "the teacher's states%s at %d positions of %d queries: %.1f MB will be written, %.2f MB per query",
        f" of {n_planes} layers" if every_layer else "", n_positions, len(uids), n_bytes / 1e6,
        n_bytes / 1e6 / max(len(uids), 1),
    )  # fmt: skip
    if n_cut := sum(not prompt.complete for prompt in prompts):
        log.info("%d reports exceed training.max_report_tokens; they are cut and get no end-of-turn label", n_cut)
    # Alike lengths share a batch, the longest first: too large a batch fails at once, not after hours.
    order = sorted(range(len(uids)), key=lambda row: -lengths[row])
    size = backbone["batch"]["teacher"]
    model = describe_model(backbone["path"], backbone.get("revision"))
    made_by = fingerprint([made, model], [studies, demonstrations, vision])
    with ShardWriter(out, made, partial=partial, made_by=made_by) as writer:
        writer.require(n_bytes, "datasets.*.pool.queries or training.max_report_tokens")
        if len(writer):
            log.info("continuing: %d of %d queries are already cached", len(writer), len(uids))
        shared = loaded.share(prompts, features)
        if shared:
            log.info("all queries share their demonstrations; their %d tokens are computed once", shared.length)
        for begin in progress(range(0, len(order), size), "teacher batches"):
            rows = order[begin : begin + size]
            if all(uids[row] in writer for row in rows):
                continue
            with explained_memory("backbones.*.batch.teacher"):
                states = states_of(loaded, [prompts[row] for row in rows], features, shared)
            for row, of_query in zip(rows, states, strict=True):
                if uids[row] not in writer:  # a kill can come between the shards of one batch
                    writer.add(uids[row], of_query, complete=prompts[row].complete)
