"""The constant-report baseline: the training report that scores best on the other training reports.

A text metric that this row approaches says little about reading images.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dive.data.generations import write_generations
from dive.files import read_json
from dive.parquet import read_table
from dive.progress import log
from dive.scores.bleu import ORDER, bleu_from_statistics, count_ngrams, separated_tokens


def best_report(reports: Sequence[str]) -> tuple[int, float]:
    """Find the report with the highest corpus BLEU-4 as everyone's hypothesis, against all *other* reports.

    The medoid under corpus BLEU. With A_k(g) the number of reports that hold the n-gram g at least k times,
    the clipped matches of a candidate summed over all reports are sum_g sum_{k<=count(g)} A_k(g), so all
    candidates together cost one pass over the texts instead of one per pair.

    Args:
        reports: training reports; at least two.

    Returns:
        The index of the best report (the first among equals) and its BLEU-4.

    Raises:
        ValueError: with fewer than two reports.
    """
    if len(reports) < 2:
        raise ValueError(f"the constant report is chosen among at least 2 training reports, not {len(reports)}")
    tokens = [separated_tokens(report) for report in reports]
    counts = [count_ngrams(words) for words in tokens]
    holders: Counter = Counter()
    for own in counts:
        for ngram, count in own.items():
            holders.update((ngram, k) for k in range(1, count + 1))
    others = len(reports) - 1
    lengths = np.array([len(words) for words in tokens])
    sums = np.zeros((len(reports), 2 * ORDER + 2), dtype=np.int64)
    for row, own in zip(sums, counts, strict=True):
        for ngram, count in own.items():
            # A report matches itself entirely: taken away, it is scored on the others alone.
            row[len(ngram) - 1] += sum(holders[ngram, k] for k in range(1, count + 1)) - count
    for n in range(1, ORDER + 1):
        sums[:, ORDER + n - 1] = others * np.maximum(0, lengths - n + 1)
    sums[:, -2] = others * lengths
    sums[:, -1] = lengths.sum() - lengths
    scores = bleu_from_statistics(sums)
    best = int(np.argmax(scores))
    return best, float(scores[best])


def repeat_best_report(studies: str, pool: str, out: str) -> None:
    """Write the best training report as the generation of every test study.

    The report is chosen among the pool's queries and demonstrations; validation and test are never read.
    ``n_tokens`` are words here, since no tokenizer is involved.

    Args:
        studies: ``studies.parquet`` of the dataset.
        pool: JSON with the study_uids of queries, demonstrations and test.
        out: the generations, in the order of the pool; ``stopped`` is always true.

    Raises:
        ValueError: if the pool names a study that the table lacks.
    """
    members = read_json(pool)
    table = read_table(studies, columns=["study_uid", "patient_uid", "target"])
    rows = {uid: index for index, uid in enumerate(table["study_uid"].to_pylist())}
    training, test = [*members["queries"], *members["demonstrations"]], members["test"]
    missing = [uid for uid in [*training, *test] if uid not in rows]
    if missing:
        raise ValueError(
            f"{pool} names {len(missing)} studies that {studies} lacks (first: {missing[0]}): run `select` again"
        )
    targets = table["target"].take([rows[uid] for uid in training]).to_pylist()
    patients = table["patient_uid"].take([rows[uid] for uid in test]).to_pylist()
    index, score = best_report(targets)
    log.info("constant report: of study %s, with BLEU-4 %.1f on the other training reports", training[index], score)
    report = targets[index]
    words = len(report.split())
    write_generations(out, ((uid, patient, report, words, True) for uid, patient in zip(test, patients, strict=True)))
