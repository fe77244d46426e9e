"""Score reports against references. Each report has a row of additive statistics; metrics follow from column sums.

A row contains the statistics that add up over reports (BLEU's ten numbers, ROUGE-L, counts of labels, rewards of
graphs, flags of termination). The score of any subset or resample of reports is therefore computed from a weighted
column sum. :func:`score_method` scores a method of the workflow, :func:`score_reports` two lists of texts, and
``dive score`` a file. This module imports torch only if the weights of a model-based score are given.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow as pa

from dive.data.generations import LONGEST, count_endings, read_generations
from dive.data.readable import readable_pool, studies_left_out
from dive.files import atomic_path, write_json
from dive.parquet import read_table, write_table
from dive.progress import log
from dive.provenance import record
from dive.scores import bleu, lexicon, termination
from dive.scores.assets import MODELS, load_scorers, module_of_model
from dive.scores.graphs import LEVELS, graph_rewards
from dive.scores.labels import COUNTS, count_columns, flag_columns, label_counts, label_flags, label_scores
from dive.scores.rouge import rouge_l, rouge_tokens

BLEU = tuple(f"bleu_{name}" for name in bleu.STATISTICS)
RAW = tuple(f"raw_{name}" for name in bleu.STATISTICS)
ROUGE = ("rouge_l", "rouge_l_unstemmed")
LABEL_COUNTS = count_columns("label")
LABEL_FLAGS = flag_columns("label")
GRAPH = tuple(f"graph_{level}" for level in LEVELS)
STATISTICS = (*BLEU, *RAW, *ROUGE, *LABEL_COUNTS, *LABEL_FLAGS, *GRAPH, *termination.FLAGS)
"""Columns of ``reports.parquet`` after seed, study_uid, patient_uid and n_tokens, in this order; the columns of
RadGraph and CheXbert follow where these were measured."""

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
    "stop_rate": "share of reports that the model ends, by any of its end tokens; 0..1; null where unknown",
    "length_ratio": "generated words / reference words over the corpus",
    "over_length_rate": f"share of reports above {termination.OVER:.2f} times their reference's words",
    "under_length_rate": f"share of reports below {termination.UNDER:.2f} times their reference's words",
    "premature_stop_rate": "share of reports that the model ends and that are under-long",
    "repeated_4gram_rate": "mean of 1 - distinct / all 4-grams of a report",
    "unique_report_rate": "distinct reports / reports, case and white space aside",
    "distinct_1": "distinct words / words over all reports, case aside; falls with the amount of text",
    "distinct_2": "distinct pairs of neighbouring words / pairs over all reports",
    "words": "mean words of a report",
}


def report_statistics(
    hypotheses: Sequence[str], references: Sequence[str], stopped: Sequence[bool | None], words: "lexicon.Lexicon"
) -> np.ndarray:
    """Return the statistics of one seed's reports, float64 (n, len(STATISTICS)).

    Args:
        hypotheses: generated reports; the empty text is allowed.
        references: their references, in the same order.
        stopped: whether the model ended each report, and no limit; None where nobody knows.
        words: the labeler and graph builder of the lexicon proxies; it remembers texts that it has seen.
    """
    rows = []
    endings = termination.termination_statistics(hypotheses, references, stopped)
    for hypothesis, reference, ending in zip(hypotheses, references, endings, strict=True):
        counts = label_counts(words.labels(hypothesis), words.labels(reference))
        rows.append(
            np.concatenate(
                [
                    bleu.bleu_statistics(hypothesis, reference),
                    bleu.bleu_statistics(hypothesis, reference, bleu.raw_tokens),
                    [rouge_l(rouge_tokens(hypothesis, stem), rouge_tokens(reference, stem)) for stem in (True, False)],
                    counts.ravel(),
                    label_flags(counts),
                    graph_rewards(words.graph(hypothesis), words.graph(reference)),
                    ending,
                ]
            )
        )
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(STATISTICS))


def scores_from_statistics(total: np.ndarray, n: int, columns: Sequence[str] = STATISTICS) -> dict[str, float | None]:
    """Compute every metric of a corpus of ``n`` reports from the sum of their statistics, shape (len(columns),).

    Args:
        total: sums over reports, or any weighted column sum.
        n: number of reports, or the sum of the weights.
        columns: what was summed: STATISTICS, followed by the columns of the scorers that were measured.
    """
    where = {name: index for index, name in enumerate(columns)}

    def part(names: Sequence[str]) -> np.ndarray:
        return np.asarray(total)[[where[name] for name in names]]

    sums = part(BLEU)
    scores: dict[str, float | None] = {
        f"bleu{order}": float(bleu.bleu_from_statistics(sums, order)) for order in (4, 1, 2, 3)
    }
    scores["bleu4_raw"] = float(bleu.bleu_from_statistics(part(RAW)))
    scores["rouge_l"], scores["rouge_l_unstemmed"] = (float(value) / n for value in part(ROUGE))
    counts = part(LABEL_COUNTS).reshape(-1, len(COUNTS))
    scores.update(label_scores(counts, "lexicon_label", part(LABEL_FLAGS), n))
    for level, value in zip(LEVELS, part(GRAPH), strict=True):
        scores[f"lexicon_graph_{level}"] = float(value) / n
    scores["lexicon_graph_f1"] = scores["lexicon_graph_partial"]
    scores.update(termination.termination_scores(part(termination.FLAGS), n))
    for name in MODELS:
        if any(column.startswith(f"{name}_") for column in where):
            model = module_of_model(name)
            scores.update(model.scores(part(model.COLUMNS), n))
    return scores


def score_reports(
    hypotheses: Sequence[str | None],
    references: Sequence[str | None],
    words: "lexicon.Lexicon",
    stopped: Sequence[bool | None] | None = None,
    scorers: Sequence[Any] = (),
) -> tuple[dict[str, float | None], np.ndarray, tuple[str, ...]]:
    """Score paired texts of any system.

    Args:
        hypotheses: generated reports; None and the empty text count as a report without words.
        references: their references, in the same order.
        words: the lexicon proxies' reader.
        stopped: whether each report ended by itself; None when nobody knows: those rates are then None.
        scorers: of :func:`dive.scores.assets.load_scorers`.

    Returns:
        metric -> value; the statistics, float64 (n, columns); the names of their columns.

    Raises:
        ValueError: the two sequences differ in length, or are empty, or a text is longer than LONGEST characters.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references: scores need a pair a report")
    said, true = [text or "" for text in hypotheses], [text or "" for text in references]
    for side, texts in (("hypothesis", said), ("reference", true)):
        if long := [number for number, text in enumerate(texts, start=1) if len(text) > LONGEST]:
            length = len(texts[long[0] - 1])
            raise ValueError(
                f"{side} {long[0]} has {length:,} characters; shorten it to the {LONGEST:,} that are scored"
            )
    parts = [report_statistics(said, true, stopped or [None] * len(said), words)]
    parts += [scorer.statistics(said, true) for scorer in scorers]
    columns = (*STATISTICS, *(name for scorer in scorers for name in scorer.columns))
    statistics = np.concatenate(parts, axis=1)
    return scores_from_statistics(statistics.sum(axis=0), len(said), columns), statistics, columns


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def align_generations(
    path: str, test: Sequence[str], left_out: Collection[str] = (), patients: Mapping[str, str] | None = None
) -> dict[str, list]:
    """Read generations in the order of ``test``. Every method and seed must contain the same studies.

    Studies ``left_out`` may be there: a method that reads no image also writes reports of those that cannot be read.

    Args:
        path: the generations.
        test: the studies that are scored.
        left_out: further studies that may be there.
        patients: study -> its patient; None does not look at patients.

    Raises:
        ValueError: a test study is missing, repeated, under another patient or too long, or the file holds others;
            counted, the first named.
    """
    columns = read_generations(path)
    rows = {uid: index for index, uid in enumerate(columns["study_uid"])}
    wanted = {*test, *left_out}
    known = [] if patients is None else [uid for uid in test if uid in rows]
    problems = {
        "missing": [uid for uid in test if uid not in rows],
        "repeated": repeated(columns["study_uid"]),
        "not in the test set": [uid for uid in rows if uid not in wanted],
        "under another patient": [uid for uid in known if columns["patient_uid"][rows[uid]] != patients[uid]],
        f"longer than {LONGEST:,} characters": [
            uid for uid, index in rows.items() if len(columns["report"][index] or "") > LONGEST
        ],
    }
    found = [f"{len(uids)} studies are {what} (first: {uids[0]})" for what, uids in problems.items() if uids]
    if found:
        raise ValueError(
            f"{path}: {'; '.join(found)}. Every method is scored on every test study of the pool exactly once: "
            "remove the file and generate it again."
        )
    return {name: [values[rows[uid]] for uid in test] for name, values in columns.items()}


def summarise(values: Mapping[int, float | None], n: int) -> dict[str, Any]:
    """Mean and sample standard deviation of a metric over seeds; what is undefined is null."""
    defined = {str(seed): value for seed, value in values.items() if value is not None}
    mean = fmean(defined.values()) if defined else None
    spread = stdev(defined.values()) if len(defined) > 1 else None
    return {"mean": mean, "sd": spread, "seeds": defined, "n": n}


def score_method(
    studies: str,
    pool: str,
    generations: Mapping[int, str],
    vocabulary: str,
    out: str,
    vision: str | None = None,
    scorers: Mapping[str, Any] | None = None,
    remembered: str | None = None,
) -> None:
    """Score all seeds of one method.

    Args:
        studies: ``studies.parquet``, whose ``target`` is the reference.
        pool: JSON whose ``test`` names the studies to score.
        generations: seed -> generations parquet.
        vocabulary: the vocabulary of the lexicon proxies (CSV).
        out: folder that receives ``reports.parquet`` (a row a seed and study: statistics, no text) and
            ``summary.json`` (``metrics``: name -> {mean, sd, seeds: {seed: value}, n}, null where not measured;
            ``conventions``; ``provenance``: what ended the reports of each seed; archives, hashes and versions of the
            model-based scorers).
        vision: folder of the vision features; its studies without a readable image are scored for no method.
        scorers: settings of the model-based scorers (:func:`dive.scores.assets.located`); without them their metrics
            are null.
        remembered: folder in which they remember what they read.

    Raises:
        ValueError: a generations file does not hold every test study exactly once and under its patient, or a study has
            no reference, or two.
    """
    test = readable_pool(pool, vision)["test"]
    table = read_table(studies, columns=["study_uid", "patient_uid", "target"]).to_pydict()
    for path, uids in ((pool, test), (studies, table["study_uid"])):
        if twice := repeated(uids):
            raise ValueError(f"{path} lists {len(twice)} studies more than once (first: {twice[0]}): make it again")
    targets = dict(zip(table["study_uid"], table["target"], strict=True))
    patients = dict(zip(table["study_uid"], table["patient_uid"], strict=True))
    missing = [uid for uid in test if not targets.get(uid)]
    if missing or not test:
        raise ValueError(
            f"{pool} names {len(test)} test studies, {len(missing)} of them without a reference in {studies}"
            + (f" (first: {missing[0]})" if missing else "")
            + ": make the pool again"
        )
    references = [targets[uid] for uid in test]
    words = lexicon.Lexicon(vocabulary)
    models = load_scorers(scorers or {}, remembered)
    tables, values, endings = [], {}, {}
    for seed, path in sorted((int(seed), path) for seed, path in generations.items()):
        columns = align_generations(path, test, studies_left_out(vision), patients)
        endings[seed] = count_endings(columns["stopped"], columns["ended_by"])
        hypotheses = [report or "" for report in columns["report"]]
        values[seed], statistics, names = score_reports(hypotheses, references, words, columns["stopped"], models)
        tables.append(
            pa.table(
                {
                    "seed": pa.array([seed] * len(test), pa.int32()),
                    "study_uid": pa.array(test, pa.string()),
                    "patient_uid": pa.array(columns["patient_uid"], pa.string()),
                    "n_tokens": pa.array(columns["n_tokens"], pa.int32()),
                    **{name: statistics[:, index] for index, name in enumerate(names)},
                    **label_classes(models, hypotheses, references),
                }
            )
        )
        log.info(
            "seed %s: %d reports (%d empty), %s",
            *(seed, len(test), sum(not report.split() for report in hypotheses)),
            ", ".join(
                f"{name} {values[seed][name]:.2f}"
                for name in ("bleu4", "rouge_l", "stop_rate", "radgraph_f1", "radgraph_capped", "chexbert_f1")
                if values[seed].get(name) is not None
            ),
        )
    with atomic_path(out) as folder:
        folder.mkdir()
        write_table(pa.concat_tables(tables), folder / "reports.parquet")
        provenance = {
            "n": len(test),
            "patients": len(set(tables[0]["patient_uid"].to_pylist())),
            "seeds": list(values),
            "endings": endings,
            **record(),
        }
        write_json(Path(folder) / "summary.json", summary_of(values, len(test), models, provenance))


def label_classes(models: Sequence[Any], hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, pa.Array]:
    """CheXbert's four classes of every report and its reference, in the order of LABELS, if it was measured."""
    return {
        f"{model.name}_classes_{side}": pa.array(model.classes(texts).tolist(), pa.list_(pa.int8()))
        for model in models
        if hasattr(model, "classes")
        for side, texts in (("hypothesis", hypotheses), ("reference", references))
    }


def summary_of(
    values: Mapping[int, Mapping[str, float | None]], n: int, models: Sequence[Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of ``summary.json`` from seed -> metric -> value."""
    metrics: dict[str, Any] = {
        name: summarise({seed: scores[name] for seed, scores in values.items()}, n)
        for name in next(iter(values.values()))
    }
    for name, why in ABSENT.items():
        metrics.setdefault(name, {"mean": None, "sd": None, "seeds": {}, "n": 0, "why": why})
    conventions = dict(CONVENTIONS)
    for model in models:
        conventions.update(model.conventions)
    scorers = {model.name: model.identity for model in models}
    return {
        "metrics": metrics,
        "conventions": conventions,
        "provenance": {**provenance, **({"scorers": scorers} if scorers else {})},
    }
