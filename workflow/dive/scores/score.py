"""Score one method on one dataset and backbone: all its seeds, every test study, one row of statistics each.

A row holds what adds up over reports (BLEU's ten numbers, ROUGE-L, the lexicon's counts and graph rewards, the
flags of termination), so that the score of any subset or resample of reports is a weighted column sum.
Nothing here imports torch.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dive.data.generations import read_generations
from dive.data.readable import readable_pool, studies_left_out
from dive.data.studies import LABELS
from dive.files import atomic_path, write_json
from dive.progress import log
from dive.provenance import record
from dive.scores import bleu, lexicon, termination
from dive.scores.rouge import rouge_l, rouge_tokens

BLEU = tuple(f"bleu_{name}" for name in bleu.STATISTICS)
RAW = tuple(f"raw_{name}" for name in bleu.STATISTICS)
ROUGE = ("rouge_l", "rouge_l_unstemmed")
LABEL_COUNTS = tuple(f"label_{count}_{label}" for label in LABELS for count in lexicon.COUNTS)
GRAPH = tuple(f"graph_{level}" for level in lexicon.LEVELS)
STATISTICS = (*BLEU, *RAW, *ROUGE, *LABEL_COUNTS, *GRAPH, *termination.FLAGS)
"""Columns of ``reports.parquet`` after seed, study_uid, patient_uid and n_tokens, in this order."""

ABSENT = {
    "radgraph_f1": "the weights of RadGraph were not given",
    "chexbert_f1": "the weights of CheXbert were not given",
}
"""Metrics that need a model; without it they are null, never zero."""

CONVENTIONS = {
    "bleu4": "corpus BLEU-4 (pycocoevalcap's constants), lower-cased, separated punctuation; 0..100",
    "bleu4_raw": "corpus BLEU-4, cased, split at white space; 0..100",
    "rouge_l": "mean ROUGE-L F of rouge-score, stemmer on; 0..100",
    "rouge_l_unstemmed": "mean ROUGE-L F of rouge-score, stemmer off; 0..100",
    "lexicon_label_f1": "micro F1 of 14 CheXpert labels found by rules, uncertain as positive; not CheXbert; 0..100",
    "lexicon_graph_f1": "mean RadGraph-style `partial` reward of graphs found by rules; not RadGraph; 0..100",
    "stop_rate": "share of reports that end by the end-of-turn token; 0..1",
    "length_ratio": "generated words / reference words over the corpus",
    "over_length_rate": f"share of reports above {termination.OVER:.2f} times their reference's words",
    "under_length_rate": f"share of reports below {termination.UNDER:.2f} times their reference's words",
    "premature_stop_rate": "share of reports that end by the end-of-turn token and are under-long",
    "repeated_4gram_rate": "mean of 1 - distinct / all 4-grams of a report",
    "unique_report_rate": "distinct reports / reports, case and white space aside",
}


def report_statistics(
    hypotheses: Sequence[str], references: Sequence[str], stopped: Sequence[bool], words: "lexicon.Lexicon"
) -> np.ndarray:
    """Return the statistics of one seed's reports, float64 (n, len(STATISTICS)).

    Args:
        hypotheses: generated reports; the empty text is allowed.
        references: their references, in the same order.
        stopped: whether each report ended by TERM.
        words: the labeler and graph builder of the lexicon proxies; it remembers texts that it has seen.
    """
    rows = []
    endings = termination.termination_statistics(hypotheses, references, stopped)
    for hypothesis, reference, ending in zip(hypotheses, references, endings, strict=True):
        rows.append(
            np.concatenate(
                [
                    bleu.bleu_statistics(hypothesis, reference),
                    bleu.bleu_statistics(hypothesis, reference, bleu.raw_tokens),
                    [rouge_l(rouge_tokens(hypothesis, stem), rouge_tokens(reference, stem)) for stem in (True, False)],
                    lexicon.label_counts(words.labels(hypothesis), words.labels(reference)).ravel(),
                    lexicon.graph_rewards(words.graph(hypothesis), words.graph(reference)),
                    ending,
                ]
            )
        )
    return np.stack(rows)


def scores_from_statistics(total: np.ndarray, n: int) -> dict[str, float | None]:
    """Every metric of a corpus of ``n`` reports from the sum of their statistics, (len(STATISTICS),)."""
    parts, start = {}, 0
    for name, columns in (
        ("bleu", BLEU),
        ("raw", RAW),
        ("rouge", ROUGE),
        ("labels", LABEL_COUNTS),
        ("graph", GRAPH),
        ("ending", termination.FLAGS),
    ):
        parts[name] = total[start : start + len(columns)]
        start += len(columns)
    scores = {f"bleu{order}": float(bleu.bleu_from_statistics(parts["bleu"], order)) for order in (4, 1, 2, 3)}
    scores["bleu4_raw"] = float(bleu.bleu_from_statistics(parts["raw"]))
    scores["rouge_l"], scores["rouge_l_unstemmed"] = (float(value) / n for value in parts["rouge"])
    scores.update(lexicon.label_scores(parts["labels"].reshape(len(LABELS), len(lexicon.COUNTS))))
    for level, value in zip(lexicon.LEVELS, parts["graph"], strict=True):
        scores[f"lexicon_graph_{level}"] = float(value) / n
    scores["lexicon_graph_f1"] = scores["lexicon_graph_partial"]
    scores.update(termination.termination_scores(parts["ending"], n))
    return scores


def align_generations(path: str, test: Sequence[str], left_out: Collection[str] = ()) -> dict[str, list]:
    """Read generations in the order of ``test``; the same studies for every method and seed, or none at all.

    Studies ``left_out`` may be there: a method that reads no image also writes reports of those that cannot be read.

    Raises:
        ValueError: if a test study is missing or repeated, or the file holds others; counted, the first named.
    """
    columns = read_generations(path)
    rows: dict[str, int] = {}
    repeated = []
    for index, uid in enumerate(columns["study_uid"]):
        if uid in rows:
            repeated.append(uid)
        rows[uid] = index
    wanted = {*test, *left_out}
    problems = {
        "missing": [uid for uid in test if uid not in rows],
        "repeated": repeated,
        "not in the test set": [uid for uid in rows if uid not in wanted],
    }
    found = [f"{len(uids)} studies are {what} (first: {uids[0]})" for what, uids in problems.items() if uids]
    if found:
        raise ValueError(
            f"{path}: {'; '.join(found)}. Every method is scored on every test study of the pool exactly once: "
            "remove the file and generate it again."
        )
    return {name: [values[rows[uid]] for uid in test] for name, values in columns.items()}


def summarise(values: Mapping[int, float | None], n: int) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds (null for one seed) of one metric; all null where undefined."""
    defined = {str(seed): value for seed, value in values.items() if value is not None}
    mean = fmean(defined.values()) if defined else None
    spread = stdev(defined.values()) if len(defined) > 1 else None
    return {"mean": mean, "sd": spread, "seeds": defined, "n": n}


def score_method(
    studies: str, pool: str, generations: Mapping[int, str], vocabulary: str, out: str, vision: str | None = None
) -> None:
    """Score all seeds of one method.

    Args:
        studies: ``studies.parquet``, whose ``target`` is the reference.
        pool: JSON whose ``test`` names the studies to score.
        generations: seed -> generations parquet.
        vocabulary: the vocabulary of the lexicon proxies (CSV).
        out: folder that receives ``reports.parquet`` (a row a seed and study: statistics, no text) and
            ``summary.json`` (``metrics``: name -> {mean, sd, seeds: {seed: value}, n}, null where not measured;
            ``conventions``; ``provenance``).
        vision: folder of the vision features; its studies without a readable image are scored for no method.

    Raises:
        ValueError: if a generations file does not hold every test study exactly once, or a study has no reference.
    """
    test = readable_pool(pool, vision)["test"]
    table = pq.read_table(studies, columns=["study_uid", "target"]).to_pydict()
    targets = dict(zip(table["study_uid"], table["target"], strict=True))
    missing = [uid for uid in test if not targets.get(uid)]
    if missing or not test:
        raise ValueError(
            f"{pool} names {len(test)} test studies, {len(missing)} of them without a reference in {studies}"
            + (f" (first: {missing[0]})" if missing else "")
        )
    references = [targets[uid] for uid in test]
    words = lexicon.Lexicon(vocabulary)
    tables, values = [], {}
    for seed, path in sorted((int(seed), path) for seed, path in generations.items()):
        columns = align_generations(path, test, studies_left_out(vision))
        hypotheses = [report or "" for report in columns["report"]]
        statistics = report_statistics(hypotheses, references, columns["stopped"], words)
        values[seed] = scores_from_statistics(statistics.sum(axis=0), len(test))
        tables.append(
            pa.table(
                {
                    "seed": pa.array([seed] * len(test), pa.int32()),
                    "study_uid": pa.array(test, pa.string()),
                    "patient_uid": pa.array(columns["patient_uid"], pa.string()),
                    "n_tokens": pa.array(columns["n_tokens"], pa.int32()),
                    **{name: statistics[:, index] for index, name in enumerate(STATISTICS)},
                }
            )
        )
        empty = sum(not report.split() for report in hypotheses)
        log.info(
            "seed %s: %d reports (%d empty), BLEU-4 %.2f, ROUGE-L %.2f, stop rate %.3f",
            *(seed, len(test), empty, values[seed]["bleu4"], values[seed]["rouge_l"], values[seed]["stop_rate"]),
        )
    names = next(iter(values.values()))
    metrics: dict[str, Any] = {
        name: summarise({seed: scores[name] for seed, scores in values.items()}, len(test)) for name in names
    }
    for name, why in ABSENT.items():
        metrics[name] = {"mean": None, "sd": None, "seeds": {}, "n": 0, "why": why}
    summary = {
        "metrics": metrics,
        "conventions": CONVENTIONS,
        "provenance": {
            "n": len(test),
            "patients": len(set(tables[0]["patient_uid"].to_pylist())),
            "seeds": list(values),
            **record(),
        },
    }
    with atomic_path(out) as folder:
        folder.mkdir()
        pq.write_table(pa.concat_tables(tables), folder / "reports.parquet")
        write_json(Path(folder) / "summary.json", summary)
