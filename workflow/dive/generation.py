"""Batched, left-padded greedy decoding of reports, steered or not, from cached vision features."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from dive.backbones.loading import Backbone, ImageFeatures, load_backbone
from dive.backbones.prompts import Prompt, PromptStore
from dive.backbones.shared import Shared
from dive.backbones.steps import steps_for
from dive.backbones.vision import BLANK, VisionFeatures
from dive.data.readable import readable_demonstrations, readable_pool
from dive.devices import explained_memory
from dive.files import Journal
from dive.progress import log, progress
from dive.provenance import code_version, fingerprint, module_of


class Decoded(NamedTuple):
    """One generated report.

    Attributes:
        ids: generated tokens, without the terminator.
        text: their text, special tokens removed, stripped.
        stopped: True where the backbone ended the report with TERM, False where the length limit did.
    """

    ids: list[int]
    text: str
    stopped: bool


@torch.no_grad()
@explained_memory("backbones.*.batch.generation")
def decode_batch(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: Mapping[str, ImageFeatures],
    max_new_tokens: int,
    shared: Shared | None = None,
) -> list[Decoded]:
    """Greedy continuation of one batch of prompts; no length, repetition or minimum-length penalty.

    Finished reports leave the batch when enough of it has ended, so that a long one does not make the others wait; what
    is left continues from the same cache rows. Equal to ``model.generate(do_sample=False)`` on pixel values
    (tests/unit/test_generation.py).

    Args:
        backbone: steered where a handle of ``dive.steering.attach`` is active on it.
        prompts: B prompts without reports.
        features: image features by key.
        max_new_tokens: limit, the terminator included.
        shared: ``backbone.share`` of these prompts, among others; None runs them whole.

    Raises:
        RuntimeError: out of device memory; the message names the setting.
    """
    batch = backbone.collate(prompts, features, shared=shared)
    cache = shared.new_cache() if shared else backbone.new_cache()
    hidden = backbone.prefill(batch, cache)[:, -1]
    steps = steps_for(backbone, cache, batch.mask, batch.next_position, max_new_tokens)
    rows = torch.arange(len(prompts), device=backbone.device)
    running = torch.ones_like(rows, dtype=torch.bool)
    written: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    for step in range(max_new_tokens):
        token = backbone.head(hidden).argmax(-1)
        ends = running & (token == backbone.term_id)
        running &= ~ends
        flags = zip(rows.tolist(), token.tolist(), running.tolist(), ends.tolist(), strict=True)
        for row, value, goes_on, ended in flags:
            if goes_on:
                written[row].append(value)
            elif ended:
                stopped[row] = True
        n_running = int(running.sum())
        if not n_running or step == max_new_tokens - 1:
            break
        if n_running <= steps.few * len(rows):
            keep = running.nonzero()[:, 0]
            steps.keep(keep)
            rows, running, token = (part[keep] for part in (rows, running, token))
        hidden = steps(token)
    texts = backbone.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [Decoded(ids, text.strip(), stop) for ids, text, stop in zip(written, texts, stopped, strict=True)]


def decode(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: Mapping[str, ImageFeatures],
    max_new_tokens: int,
    batch_size: int,
) -> list[Decoded]:
    """``decode_batch`` over any number of prompts, batched by length; the order of ``prompts`` is kept."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    decoded: dict[int, Decoded] = {}
    shared = backbone.share(prompts, features)
    for batch in progress(batches, "decoding batches"):
        reports = decode_batch(backbone, [prompts[i] for i in batch], features, max_new_tokens, shared)
        decoded.update(zip(batch, reports, strict=True))
    return [decoded[i] for i in range(len(prompts))]


def render_queries(
    backbone: Backbone,
    uids: Sequence[str],
    n_tokens: Mapping[str, int],
    reports: Mapping[str, str],
    demonstrations: Mapping[str, Sequence[str]] | None = None,
    blank: bool = False,
) -> list[Prompt]:
    """Generation prompts of studies.

    Args:
        backbone: whose chat template is used.
        uids: studies to report.
        n_tokens: image tokens of every key.
        reports: target texts, read for demonstrations alone.
        demonstrations: study -> its K demonstration studies; None for the zero-shot prompt.
        blank: show the blank image instead of the query's own (control).
    """
    return [
        backbone.prompts.render(
            BLANK if blank else uid,
            n_tokens,
            demonstrations=[(d, reports[d]) for d in demonstrations[uid]] if demonstrations else (),
        )
        for uid in uids
    ]


def generate_reports(
    backbone: dict[str, Any],
    method: dict[str, Any],
    studies: str,
    pool: str,
    demonstrations: str | None,
    vision: str,
    adapter: str | None,
    decoding: dict[str, Any],
    out: str,
    partial: str,
) -> None:
    """Generate the reports of the pool's test studies with one method.

    Finished batches are appended to ``partial``, from which a killed run goes on; it is removed at the end.

    Args:
        backbone: ``backbones.<name>`` of the config.
        method: ``methods.<name>``: ``demonstrations`` and ``image`` (own or blank) of a prompt method.
        studies: path of ``studies.parquet`` (patients, and reports of demonstrations).
        pool: path of the pool's JSON.
        demonstrations: path of the drawn demonstrations; None for methods without them.
        vision: folder of the vision features.
        adapter: folder of the trained intervention; None for prompt methods.
        decoding: ``max_new_tokens``.
        out: parquet with a row a study: study_uid, patient_uid, report, n_tokens, stopped.
        partial: JSON Lines file outside the declared outputs.
    """
    import pyarrow.parquet as pq

    from dive.data.generations import write_generations

    table = pq.read_table(studies, columns=["study_uid", "patient_uid", "target"]).to_pydict()
    patients = dict(zip(table["study_uid"], table["patient_uid"], strict=True))
    targets = dict(zip(table["study_uid"], table["target"], strict=True))
    uids = readable_pool(pool, vision)["test"]
    drawn = readable_demonstrations(demonstrations, studies, vision)["test"] if demonstrations else None
    code = code_version(__name__, *module_of(method))
    inputs = [backbone["path"], studies, pool, demonstrations, vision, adapter]
    made_by = fingerprint([backbone, method, decoding, code], inputs)
    journal = Journal(partial, made_by)
    done = {uid: tuple(row) for uid, *row in journal.read()}
    features = VisionFeatures(vision)
    loaded = load_backbone(backbone)
    if done:
        log.info("resuming: %d of %d reports were already written", len(done), len(uids))
    prompts = PromptStore(loaded.term_id)
    for uid in uids:
        (prompt,) = render_queries(loaded, [uid], features.n_tokens, targets, drawn, method.get("image") == "blank")
        prompts.append(prompt)
    # The same batches as without an interruption, since other padding is other rounding.
    order = sorted(range(len(uids)), key=lambda i: len(prompts[i].ids))
    size = backbone["batch"]["generation"]
    with ExitStack() as stack:
        if adapter is not None:
            from dive.steering.attach import attach

            stack.callback(attach(loaded.model, adapter).detach)
        shared = loaded.share(prompts, features)
        if shared:
            log.info("all studies share their demonstrations: %d tokens are run once", shared.length)
        journal.begin([uid, *row] for uid, row in done.items())
        for begin in progress(range(0, len(order), size), "decoding batches"):
            batch = order[begin : begin + size]
            if all(uids[i] in done for i in batch):
                continue
            chosen = [prompts[i] for i in batch]
            reports = decode_batch(loaded, chosen, features, decoding["max_new_tokens"], shared)
            for i, report in zip(batch, reports, strict=True):
                done[uids[i]] = (report.text, len(report.ids), report.stopped)
            journal.append(*([uids[i], *done[uids[i]]] for i in batch))
    write_generations(out, [(uid, patients[uid], *done[uid]) for uid in uids])
    journal.remove()
    n_stopped = sum(stopped for _, _, stopped in done.values())
    log.info("%d reports, %d ended by the terminator", len(uids), n_stopped)
