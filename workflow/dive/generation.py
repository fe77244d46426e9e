"""Batched, left-padded greedy decoding of reports, steered or not, from cached vision features."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dive.backbones.loading import Backbone, ImageFeatures, load_backbone
from dive.backbones.prompts import Prompt
from dive.backbones.vision import BLANK, VisionFeatures
from dive.data.generations import write_generations
from dive.data.readable import readable_demonstrations, readable_pool
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
def decode_batch(
    backbone: Backbone, prompts: Sequence[Prompt], features: Mapping[str, ImageFeatures], max_new_tokens: int
) -> list[Decoded]:
    """Greedy continuation of one batch of prompts; no length, repetition or minimum-length penalty.

    A finished report leaves the batch, so that a long one does not make the others wait; what is left continues from
    the same cache rows. Equal to ``model.generate(do_sample=False)`` on pixel values (tests/unit/test_generation.py).

    Args:
        backbone: steered where a handle of ``dive.steering.attach`` is active on it.
        prompts: B prompts without reports.
        features: image features by key.
        max_new_tokens: limit, the terminator included.
    """
    batch = backbone.collate(prompts, features)
    cache = backbone.new_cache()
    hidden = backbone.prefill(batch, cache)[:, -1]
    mask, position = batch.mask, batch.next_position
    rows = torch.arange(len(prompts), device=backbone.device)
    written: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    for step in range(max_new_tokens):
        token = backbone.head(hidden).argmax(-1)
        running = token != backbone.term_id
        for row, value, goes_on in zip(rows.tolist(), token.tolist(), running.tolist(), strict=True):
            if goes_on:
                written[row].append(value)
            else:
                stopped[row] = True
        if not running.any() or step == max_new_tokens - 1:
            break
        if not running.all():
            keep = running.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, token, mask, position = rows[keep], token[keep], mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        hidden = backbone.extend(token[:, None], mask, position, cache)[:, -1]
        position = position + 1
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
    for batch in progress(batches, "decoding batches"):
        reports = decode_batch(backbone, [prompts[i] for i in batch], features, max_new_tokens)
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
    from dive.data.studies import read_studies

    table = read_studies(studies, columns=["study_uid", "patient_uid", "target"])
    patients = dict(zip(table["study_uid"], table["patient_uid"], strict=True))
    targets = dict(zip(table["study_uid"], table["target"], strict=True))
    uids = readable_pool(pool, vision)["test"]
    drawn = readable_demonstrations(demonstrations, studies, vision)["test"] if demonstrations else None
    code = code_version(__name__, *module_of(method))
    made_by = fingerprint([backbone, method, decoding, code], [studies, pool, demonstrations, vision, adapter])
    done = _read_partial(Path(partial), made_by)
    features = VisionFeatures(vision)
    loaded = load_backbone(backbone)
    todo = [uid for uid in uids if uid not in done]
    if done:
        log.info("resuming: %d of %d reports were already written", len(done), len(uids))
    prompts = render_queries(loaded, todo, features.n_tokens, targets, drawn, blank=method.get("image") == "blank")
    order = sorted(range(len(todo)), key=lambda i: len(prompts[i].ids))
    size = backbone["batch"]["generation"]
    with ExitStack() as stack:
        if adapter is not None:
            from dive.steering.attach import attach

            stack.callback(attach(loaded.model, adapter).detach)
        Path(partial).parent.mkdir(parents=True, exist_ok=True)
        # Written anew on a resume: the kill may have cut its last line.
        file = stack.enter_context(open(partial, "w", encoding="utf-8"))
        file.writelines(json.dumps(line) + "\n" for line in [made_by, *([uid, *row] for uid, row in done.items())])
        for begin in progress(range(0, len(order), size), "decoding batches"):
            batch = order[begin : begin + size]
            reports = decode_batch(loaded, [prompts[i] for i in batch], features, decoding["max_new_tokens"])
            for i, report in zip(batch, reports, strict=True):
                done[todo[i]] = (report.text, len(report.ids), report.stopped)
                file.write(json.dumps([todo[i], *done[todo[i]]]) + "\n")
            file.flush()
    write_generations(out, [(uid, patients[uid], *done[uid]) for uid in uids])
    Path(partial).unlink()
    n_stopped = sum(stopped for _, _, stopped in done.values())
    log.info("%d reports, %d ended by the terminator", len(uids), n_stopped)


def _read_partial(path: Path, made_by: str) -> dict[str, tuple[str, int, bool]]:
    """Reports that an interrupted run left; a line that the kill cut off is dropped, and a foreign file ignored."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not lines or lines[0] != json.dumps(made_by):
        return {}
    done = {}
    for line in lines[1:]:
        try:
            uid, text, n_tokens, stopped = json.loads(line)
        except ValueError:
            continue
        done[uid] = (text, n_tokens, stopped)
    return done
