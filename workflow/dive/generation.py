"""Batched, left-padded greedy decoding of reports, steered or not, from cached vision features."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from dive.backbones.files import describe_model
from dive.backbones.finite import states_error
from dive.backbones.loading import Backbone, ImageFeatures, load_backbone
from dive.backbones.prompts import Prompt, PromptStore
from dive.backbones.shared import Shared
from dive.backbones.steps import steps_for
from dive.backbones.vision import BLANK, VisionFeatures
from dive.data.readable import readable_demonstrations, readable_pool
from dive.devices import explained_memory, read_later, upload
from dive.files import Journal
from dive.progress import log, progress
from dive.provenance import code_version, decisive, fingerprint, module_of


class Decoded(NamedTuple):
    """One generated report.

    Attributes:
        ids: generated tokens, without the one that ended the report.
        text: their text, special tokens removed, stripped.
        ended_by: the token of ``Backbone.stop_ids`` that ended the report; None where the length limit did.
    """

    ids: list[int]
    text: str
    ended_by: int | None

    @property
    def stopped(self) -> bool:
        """Whether the backbone ended the report, and not the length limit."""
        return self.ended_by is not None


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

    A report ends at any token of ``backbone.stop_ids``. Finished reports leave the batch when enough of it has ended,
    so that a long one does not make the others wait; what is left continues from the same cache rows. Equal to
    ``model.generate(do_sample=False)`` on pixel values (tests/unit/test_generation.py).

    Args:
        backbone: steered where a handle of ``dive.steering.attach`` is active on it.
        prompts: B prompts without reports.
        features: image features by key.
        max_new_tokens: limit, the token that ends a report included.
        shared: ``backbone.share`` of these prompts, among others; None runs them whole.

    Raises:
        RuntimeError: out of device memory, or states that are not finite; the message names the setting.
    """
    batch = backbone.collate(prompts, features, shared=shared)
    cache = shared.new_cache() if shared else backbone.new_cache()
    hidden = backbone.prefill(batch, cache)[:, -1]
    steps = steps_for(backbone, cache, batch.mask, batch.next_position, max_new_tokens)
    stop_ids = backbone.stop_ids
    rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    running = set(rows)
    written: list[list[int]] = [[] for _ in prompts]
    ended_by: list[int | None] = [None] * len(prompts)
    for step in range(max_new_tokens):
        best, token = backbone.head(hidden).max(-1)  # a NaN is taken for the largest
        # The only copy from the device in a step, for which a GPU has to be waited for.
        read = read_later(torch.stack([token, best.isfinite()]))
        ahead = steps.ahead and step < max_new_tokens - 1
        if ahead:
            hidden = steps(token)
        for row, value, finite in zip(rows, *read(), strict=True):
            if row not in running:
                continue
            if not finite:
                raise states_error(f"the report of {prompts[row].images[-1]}, token {step + 1}", backbone.dtype)
            if value in stop_ids:
                ended_by[row] = value
                running.remove(row)
            else:
                written[row].append(value)
        if not running or step == max_new_tokens - 1:
            break
        if len(running) <= steps.few * len(rows):
            kept = [index for index, row in enumerate(rows) if row in running]
            rows = [rows[index] for index in kept]
            keep = upload(torch.tensor(kept), backbone.device)
            steps.keep(keep)
            token, hidden = token[keep], hidden[keep]
        if not ahead:
            hidden = steps(token)
    texts = backbone.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [Decoded(ids, text.strip(), end) for ids, text, end in zip(written, texts, ended_by, strict=True)]


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
    trained: Mapping[str, Any] | None = None,
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
        out: parquet with a row a study, see ``dive.data.generations``.
        partial: JSON Lines file outside the declared outputs.
        trained: ``dataset`` and ``seed`` of which the adapter must be; None takes any.
    """
    from dive.data.generations import count_endings, write_generations
    from dive.parquet import read_table

    if adapter is not None and trained is not None:
        from dive.steering.adapters import check_origin

        check_origin(adapter, method, **trained)
    table = read_table(studies, columns=["study_uid", "patient_uid", "target"]).to_pydict()
    patients = dict(zip(table["study_uid"], table["patient_uid"], strict=True))
    targets = dict(zip(table["study_uid"], table["target"], strict=True))
    uids = readable_pool(pool, vision)["test"]
    drawn = readable_demonstrations(demonstrations, studies, vision)["test"] if demonstrations else None
    code = code_version(__name__, *module_of(method))
    model = describe_model(backbone["path"], backbone.get("revision"))
    inputs = [studies, pool, demonstrations, vision, adapter]
    made_by = fingerprint([decisive(backbone), model, method, decoding, code], inputs)
    journal = Journal(partial, made_by)
    done = {uid: row for uid, *row in journal.read()}
    features = VisionFeatures(vision)
    loaded = load_backbone(backbone)
    if unused := unused_settings(loaded.model.generation_config):
        log.info(
            "reports are written greedily: generation_config.json of the backbone says %s, which is not used here; "
            "for the same reports, give model.generate %s",
            *(", ".join(f"{name}={values[name]}" for name in unused) for values in (unused, GREEDY)),
        )
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
                end = name_of(loaded.tokenizer, report.ended_by)
                done[uids[i]] = [report.text, len(report.ids), report.stopped, end]
            journal.append(*([uids[i], *done[uids[i]]] for i in batch))
    write_generations(out, [(uid, patients[uid], *done[uid]) for uid in uids])
    journal.remove()
    endings = count_endings([row[2] for row in done.values()], [row[3] for row in done.values()])
    log.info("%d reports, ended by %s", len(uids), ", ".join(f"{what} ({n})" for what, n in endings.items()))


def name_of(tokenizer: Any, token: int | None) -> str | None:
    """A token as the tokenizer writes it; its number where the tokenizer does not know it; None for None."""
    return None if token is None else tokenizer.convert_ids_to_tokens(token) or str(token)


GREEDY = {
    "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0,
    "min_new_tokens": 0, "suppress_tokens": [], "begin_suppress_tokens": [], "bad_words_ids": [], "sequence_bias": {},
    "forced_bos_token_id": None, "forced_eos_token_id": None, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None, "guidance_scale": None,
    "watermarking_config": None, "stop_strings": None,
}  # fmt: skip
"""Settings of ``model.generate`` that choose tokens, at the values under which it does what ``decode_batch`` does."""


def unused_settings(generation_config: Any) -> dict[str, Any]:
    """What a checkpoint's ``generation_config`` says of choosing tokens, and reports are written without."""
    said = {name: getattr(generation_config, name, None) for name in GREEDY}
    return {name: value for name, value in said.items() if value is not None and value != GREEDY[name]}
