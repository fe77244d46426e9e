"""Which differences between methods are more than chance: paired resampling of patients and seeds.

Every metric of the tables is a function of sums over reports (`reports.parquet` holds the summands), so the score of
any resample is that function of one weighted column sum, and all resamples of all methods are one matrix product.

The unit is the patient: reports of one patient resemble each other, and 3,269 test reports of MIMIC-CXR come from 293.
The score of a method is the mean over its seeds of the seed's corpus score, so

    bootstrap (Koehn, 2004):      w_r ~ Multinomial(P; 1/P, ...),  u_r ~ Multinomial(S; 1/S, ...)
                                  score_r = sum_s u_rs / S f(sum_p w_rp X_sp)
    randomization (Noreen, 1989): z_rp ~ Bernoulli(1/2),  D_rs = sum_p z_rp (B_sp - A_sp)
                                  T_r = mean_s [f(sum_p A_sp + D_rs) - f(sum_p B_sp - D_rs)]

where X_sp are the summed statistics of patient p in the reports of seed s. w and u are shared by all methods, so that
differences are paired. u varies training and demonstrations together with the patients; of S seeds it shows (S - 1) / S
of their variance. Randomization exchanges all reports of a patient, those of every seed, between two methods: its
hypothesis is about the runs that were made. So a difference counts as resolved only where the bootstrap's interval,
which knows of the seeds, agrees with it (:mod:`dive.scores.multiplicity`). Nothing here imports torch.

Run as a module it measures itself: ``python -m dive.scores.significance``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dive.data.draws import stream
from dive.data.studies import LABELS
from dive.files import read_json, write_json
from dive.parquet import read_table
from dive.progress import log
from dive.provenance import record
from dive.scores import bleu

CHUNK = 4_000_000
"""Numbers of the matrix of weights that are in memory at a time (float64)."""

Columns = tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    """A metric as a function of sums over reports.

    Attributes:
        name: as in ``summary.json``.
        terms: what is summed: each term is the sum of some columns of ``reports.parquet``.
        score: (sums (..., terms), reports (...)) -> values (...).
        resampled: False where a resample has no meaning (a report drawn twice is no repetition); no interval then.
    """

    name: str
    terms: tuple[Columns, ...]
    score: Callable[[np.ndarray, np.ndarray], np.ndarray]
    resampled: bool = True


def mean(sums: np.ndarray, reports: np.ndarray) -> np.ndarray:
    """Mean over reports of the only term."""
    return sums[..., 0] / reports


def ratio(sums: np.ndarray, reports: np.ndarray) -> np.ndarray:
    """Ratio of the sums of two terms; 0 where the second is 0."""
    below = sums[..., 1]
    return np.divide(sums[..., 0], below, out=np.zeros_like(below), where=below > 0)


def micro_f1(sums: np.ndarray, reports: np.ndarray) -> np.ndarray:
    """200 tp / (2 tp + fp + fn) of summed counts; 0 where there is nothing to find and nothing was found."""
    twice = 2 * sums[..., 0]
    below = twice + sums[..., 1] + sums[..., 2]
    return np.divide(100 * twice, below, out=np.zeros_like(below), where=below > 0)


def corpus_bleu(sums: np.ndarray, reports: np.ndarray) -> np.ndarray:
    """Corpus BLEU-4 of summed statistics."""
    return bleu.bleu_from_statistics(sums)


def _mean_of(name: str, column: str, resampled: bool = True) -> Measure:
    return Measure(name, ((column,),), mean, resampled)


def _micro_f1_of(name: str, prefix: str) -> Measure:
    return Measure(name, tuple(tuple(f"{prefix}_{count}_{label}" for label in LABELS) for count in _COUNTS), micro_f1)


_COUNTS = ("tp", "fp", "fn")

MEASURES = (
    Measure("bleu4", tuple((f"bleu_{name}",) for name in bleu.STATISTICS), corpus_bleu),
    _mean_of("rouge_l", "rouge_l"),
    _mean_of("radgraph_f1", "radgraph_partial"),
    _micro_f1_of("chexbert_f1", "chexbert"),
    _micro_f1_of("lexicon_label_f1", "label"),
    _mean_of("lexicon_graph_f1", "graph_partial"),
    _mean_of("stop_rate", "stopped"),
    Measure("length_ratio", (("n_words",), ("reference_words",)), ratio),
    _mean_of("over_length_rate", "over_length"),
    _mean_of("under_length_rate", "under_length"),
    _mean_of("premature_stop_rate", "premature_stop"),
    _mean_of("repeated_4gram_rate", "repeated_4grams"),
    _mean_of("unique_report_rate", "first_occurrence", resampled=False),
)
"""Every metric that the tables compare, by the columns of ``reports.parquet`` that it needs."""


OF_MODELS = ("radgraph_f1", "chexbert_f1")
"""Metrics whose convention names an archive of weights."""


@dataclass(frozen=True)
class Statistics:
    """The additive statistics of all methods of a dataset and backbone.

    Attributes:
        sums: float64 (patients, runs, terms): a run is a method with a seed; NaN where a measure was not taken.
        reports: float64 (patients,): reports of each patient.
        runs: method -> its runs, positions in ``sums``, in the order of its seeds.
        seeds: method -> its seeds.
        measures: the measures; their terms follow each other in ``sums``.
    """

    sums: np.ndarray
    reports: np.ndarray
    runs: dict[str, list[int]]
    seeds: dict[str, list[int]]
    measures: tuple[Measure, ...] = MEASURES

    def part(self, measure: Measure) -> slice:
        """Where the terms of a measure are."""
        start = 0
        for other in self.measures:
            if other.name == measure.name:
                return slice(start, start + len(measure.terms))
            start += len(other.terms)
        raise KeyError(measure.name)

    def measured(self, measure: Measure, *methods: str) -> bool:
        """Whether all these methods have the measure."""
        runs = [run for method in methods for run in self.runs[method]]
        return not np.isnan(self.sums[:, runs, self.part(measure)]).any()

    @property
    def all_seeds(self) -> list[int]:
        """The seeds that are resampled: those of the methods with several."""
        return sorted({seed for seeds in self.seeds.values() if len(seeds) > 1 for seed in seeds})


def read_statistics(scores: Mapping[str, str], measures: tuple[Measure, ...] = MEASURES) -> Statistics:
    """Read the ``reports.parquet`` of methods and add up the reports of each patient.

    Args:
        scores: method -> folder of its scores; all of one dataset and backbone.
        measures: the measures; one whose columns are absent or null is not measured.

    Raises:
        ValueError: two methods or seeds were scored on different studies, one has a study twice or under another
            patient than the others, or a column is null in some rows only.
    """
    terms = [term for measure in measures for term in measure.terms]
    sums, runs, seeds = [], {}, {}
    studies: list[str] = []
    owned: dict[str, str] = {}
    patients = reports = np.zeros(0)
    for method, folder in scores.items():
        path = Path(folder) / "reports.parquet"
        table = read_table(path)
        absent = np.full(table.num_rows, np.nan)
        columns = {}
        for name in {name for term in terms for name in term}:
            found = name in table.column_names
            values = table[name].to_numpy().astype(np.float64) if found else absent
            if np.isnan(values).any() and not np.isnan(values).all():
                raise ValueError(
                    f"{path}: column {name} is null in some rows; it must be measured for all or none: score it again"
                )
            columns[name] = values
        of_seed = table["seed"].to_numpy()
        uids, owners = table["study_uid"].to_pylist(), table["patient_uid"].to_pylist()
        seeds[method], runs[method] = sorted(set(of_seed.tolist())), []
        for seed in seeds[method]:
            rows = np.flatnonzero(of_seed == seed)
            rows = rows[np.argsort([uids[row] for row in rows])]
            tested = [uids[row] for row in rows]
            if twice := [uid for uid, following in pairwise(tested) if uid == following]:
                raise ValueError(
                    f"{path}: seed {seed} has {len(twice)} studies more than once (first: {twice[0]}): score it again"
                )
            if not studies:
                studies, owned = tested, {uids[row]: owners[row] for row in rows}
                _, patients = np.unique([owners[row] for row in rows], return_inverse=True)
                reports = np.bincount(patients).astype(np.float64)
            if tested != studies:
                raise ValueError(
                    f"{path}: seed {seed} was scored on {len(tested)} studies, which are not the {len(studies)} of "
                    "the other methods; score all of them on the same pool"
                )
            if foreign := [uids[row] for row in rows if owners[row] != owned[uids[row]]]:
                raise ValueError(
                    f"{path}: seed {seed} has {len(foreign)} studies under another patient than the other methods "
                    f"(first: {foreign[0]}); score all of them on the same split"
                )
            values = np.stack([sum(columns[name][rows] for name in term) for term in terms], axis=1)
            run = np.zeros((len(reports), len(terms)))
            np.add.at(run, patients, values)
            runs[method].append(len(sums))
            sums.append(run)
    return Statistics(np.stack(sums, axis=1), reports, runs, seeds, measures)


def score_weighted(statistics: Statistics, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of all runs for weights of the patients.

    Args:
        statistics: of P patients.
        weights: (R, P); how often a patient is in each of R resamples.

    Returns:
        measure -> (R, runs), for the measures that can be resampled.
    """
    patients, runs, terms = statistics.sums.shape
    totals = (weights @ statistics.sums.reshape(patients, -1)).reshape(-1, runs, terms)
    reports = (weights @ statistics.reports)[:, None]
    return {
        measure.name: measure.score(totals[:, :, statistics.part(measure)], reports)
        for measure in statistics.measures
        if measure.resampled
    }


def draw_weights(generator: np.random.Generator, resamples: int, units: int) -> np.ndarray:
    """How often each of ``units`` is drawn by ``units`` draws with replacement, float64 (resamples, units)."""
    drawn = generator.integers(units, size=(resamples, units), dtype=np.int64)
    drawn += np.arange(resamples)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units).astype(np.float64)


@dataclass(frozen=True)
class Bootstrap:
    """Scores of every method in the data (``observed``: measure -> method -> value) and in R resamples ((R,))."""

    observed: dict[str, dict[str, float]]
    resampled: dict[str, dict[str, np.ndarray]]

    def contrast(self, measure: str, weights: Mapping[str, float]) -> tuple[float, np.ndarray] | None:
        """A weighted sum of methods' scores, in the data and in every resample; None if one was not measured.

        ``{"dive": 1, "live": -1}`` is their difference, ``{"dive": 1}`` a score.
        """
        observed = self.observed[measure]
        if any(method not in observed for method in weights):
            return None
        resampled = self.resampled[measure]
        return (
            sum(weight * observed[method] for method, weight in weights.items()),
            sum(weight * resampled[method] for method, weight in weights.items()),
        )


def bootstrap(statistics: Statistics, resamples: int, seed: int) -> Bootstrap:
    """Draw patients and seeds with replacement, jointly and the same for every method.

    A method with one seed (it draws nothing at random) has that in every resample.

    Raises:
        ValueError: if methods have several seeds that are not the same ones.
    """
    patients = len(statistics.reports)
    all_seeds = statistics.all_seeds
    for method, seeds in statistics.seeds.items():
        if len(seeds) > 1 and seeds != all_seeds:
            raise ValueError(f"{method} has the seeds {seeds}, others have {all_seeds}; pairs need the same seeds")
    of_patients, of_seeds = stream(seed, "patients"), stream(seed, "seeds")
    names = [measure.name for measure in statistics.measures if measure.resampled]
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in names}
    step = max(1, CHUNK // patients)
    for start in range(0, resamples, step):
        weights = draw_weights(of_patients, min(step, resamples - start), patients)
        for name, values in score_weighted(statistics, weights).items():
            drawn[name].append(values)
    shares = draw_weights(of_seeds, resamples, len(all_seeds)) / len(all_seeds) if all_seeds else None
    truth = score_weighted(statistics, np.ones((1, patients)))
    observed: dict[str, dict[str, float]] = {name: {} for name in names}
    resampled: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for measure in statistics.measures:
        if not measure.resampled:
            continue
        scores = np.concatenate(drawn[measure.name])
        for method, runs in statistics.runs.items():
            if statistics.measured(measure, method):
                observed[measure.name][method] = float(truth[measure.name][0, runs].mean())
                several = len(runs) > 1
                resampled[measure.name][method] = (
                    (scores[:, runs] * shares).sum(axis=1) if several else scores[:, runs[0]]
                )
    return Bootstrap(observed, resampled)


def interval(resampled: np.ndarray, alpha: float) -> tuple[float, float]:
    """Percentile interval that covers 1 - alpha of the resamples."""
    low, high = np.quantile(resampled, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def align(statistics: Statistics, a: str, b: str) -> tuple[list[int], list[int]]:
    """Runs of two methods, seed by seed; a method with one seed meets every seed of the other.

    Raises:
        ValueError: if both have several seeds and these differ.
    """
    left, right = statistics.runs[a], statistics.runs[b]
    if len(left) > 1 and len(right) > 1 and statistics.seeds[a] != statistics.seeds[b]:
        raise ValueError(
            f"{a} has the seeds {statistics.seeds[a]} and {b} {statistics.seeds[b]}; pairs need the same seeds"
        )
    n = max(len(left), len(right))
    return left * (n // len(left)), right * (n // len(right))


def exchange(statistics: Statistics, a: str, b: str, swapped: np.ndarray) -> dict[str, np.ndarray]:
    """Differences a - b after the reports of some patients are exchanged between them.

    Args:
        statistics: of P patients.
        swapped: (R, P); 1 where a patient is exchanged in a trial, all seeds at once, else 0.

    Returns:
        measure -> (R,), for the measures that can be resampled.
    """
    left, right = align(statistics, a, b)
    moved = statistics.sums[:, right] - statistics.sums[:, left]
    moved = (swapped @ moved.reshape(len(moved), -1)).reshape(len(swapped), *moved.shape[1:])
    of_a, of_b = statistics.sums[:, left].sum(axis=0) + moved, statistics.sums[:, right].sum(axis=0) - moved
    reports = statistics.reports.sum()
    found = {}
    for measure in statistics.measures:
        if measure.resampled:
            part = statistics.part(measure)
            found[measure.name] = (
                measure.score(of_a[..., part], reports) - measure.score(of_b[..., part], reports)
            ).mean(axis=1)
    return found


def randomize(
    statistics: Statistics, pairs: Sequence[tuple[str, str]], resamples: int, seed: int
) -> dict[tuple[str, str], dict[str, float]]:
    """p values of paired approximate randomization: pair -> measure -> p, without what was not measured.

    In every trial each patient's reports, of all seeds, are exchanged between the two methods with probability 1/2.
    p = (1 + trials with |T_r| >= |T|) / (1 + trials), two-sided. All pairs see the same trials.
    """
    patients = len(statistics.reports)
    observed = {pair: exchange(statistics, *pair, np.zeros((1, patients))) for pair in pairs}
    extreme = {pair: dict.fromkeys(found, 0) for pair, found in observed.items()}
    generator = stream(seed, "exchange")
    step = max(1, CHUNK // patients)
    for start in range(0, resamples, step):
        swapped = generator.integers(2, size=(min(step, resamples - start), patients)).astype(np.float64)
        for pair in observed:
            for name, differences in exchange(statistics, *pair, swapped).items():
                # Equal differences may differ in their last digits by the order of addition.
                extreme[pair][name] += int((np.abs(differences) >= abs(observed[pair][name][0]) - 1e-9).sum())
    return {
        pair: {
            measure.name: (1 + extreme[pair][measure.name]) / (1 + resamples)
            for measure in statistics.measures
            if measure.resampled and statistics.measured(measure, *pair)
        }
        for pair in observed
    }


def compare_methods(
    scores: Mapping[str, str],
    ours: Sequence[str],
    contrasts: Mapping[str, Mapping[str, float]],
    settings: Mapping[str, Any],
    out: str,
) -> None:
    """Intervals of every method, differences of ours to every other, and further contrasts; one dataset and backbone.

    Args:
        scores: method -> folder with ``reports.parquet`` and ``summary.json``.
        ours: methods that are compared with all others (the others of ours included).
        contrasts: name -> method -> weight; the interactions and effects that a table asks for.
        settings: ``resamples``, ``alpha``, ``seed``.
        out: JSON: ``methods`` (method -> seeds, metrics: name -> {value, low, high}), ``comparisons`` (a list of
            {method, against, metric, difference, low, high, p}; p is not corrected, since a family is what a table
            shows), ``contrasts`` (name -> metric -> {value, low, high}), ``archives`` (metric of a model -> what the
            summaries say of its archive), and how it was done. What was not measured is absent.
    """
    resamples, alpha, seed = settings["resamples"], settings["alpha"], settings["seed"]
    started = time.perf_counter()
    statistics = read_statistics(scores)
    drawn = bootstrap(statistics, resamples, seed)
    pairs = [(method, other) for method in ours for other in scores if other != method]
    p_values = randomize(statistics, pairs, resamples, seed)

    def judge(measure: str, weights: Mapping[str, float]) -> dict[str, float] | None:
        found = drawn.contrast(measure, weights)
        if found is None:
            return None
        low, high = interval(found[1], alpha)
        return {"value": found[0], "low": low, "high": high}

    names = list(drawn.observed)
    methods = {
        method: {
            "seeds": len(statistics.seeds[method]),
            "metrics": {name: judged for name in names if (judged := judge(name, {method: 1.0}))},
        }
        for method in scores
    }
    whole = statistics.sums.sum(axis=0)
    for measure in statistics.measures:
        if not measure.resampled:
            values = measure.score(whole[:, statistics.part(measure)], statistics.reports.sum())
            for method, runs in statistics.runs.items():
                if statistics.measured(measure, method):
                    methods[method]["metrics"][measure.name] = {"value": float(values[runs].mean())}
    comparisons = []
    for method, other in pairs:
        for name in names:
            if judged := judge(name, {method: 1.0, other: -1.0}):
                difference = {"difference": judged["value"], "low": judged["low"], "high": judged["high"]}
                p = p_values[method, other][name]
                comparisons.append({"method": method, "against": other, "metric": name, **difference, "p": p})
    conventions = [read_json(Path(folder) / "summary.json")["conventions"] for folder in scores.values()]
    archives = {
        name: "; ".join(dict.fromkeys(said[name] for said in conventions if name in said))
        for name in OF_MODELS
        if drawn.observed[name]
    }
    write_json(
        out,
        {
            "n": int(statistics.reports.sum()),
            "patients": len(statistics.reports),
            "seeds": statistics.all_seeds,
            "methods": methods,
            "comparisons": comparisons,
            "contrasts": {
                contrast: {name: judged for name in names if (judged := judge(name, weights))}
                for contrast, weights in contrasts.items()
            },
            "archives": archives,
            "provenance": record(significance=dict(settings)),
        },
    )
    log.info(
        "%d methods, %d reports of %d patients, %d seeds: %d resamples and %d pairs in %.1f s",
        *(len(scores), statistics.reports.sum(), len(statistics.reports), len(statistics.all_seeds)),
        *(resamples, len(pairs), time.perf_counter() - started),
    )


def random_statistics(reports: int, patients: int, seeds: int, methods: int) -> Statistics:
    """Statistics of reports that do not exist, in the ranges of real ones, to measure time with."""
    generator = stream(0, "benchmark")
    measures = tuple(measure for measure in MEASURES if measure.name in _BENCHMARK)
    guesses = generator.integers(30, 90, size=(patients, methods * seeds, 1))
    parts = [guesses * (generator.random((patients, methods * seeds, 4)) * [0.6, 0.4, 0.3, 0.2])]
    parts += [guesses - np.arange(4), guesses, generator.integers(30, 90, size=guesses.shape)]
    parts += [100 * generator.random((patients, methods * seeds, 2))]
    parts += [generator.integers(4, size=(patients, methods * seeds, 3)) for _ in range(2)]
    share = np.full(patients, reports / patients)
    runs = {f"method{m}": list(range(m * seeds, (m + 1) * seeds)) for m in range(methods)}
    return Statistics(
        np.concatenate(parts, axis=2) * share[:, None, None],
        share,
        runs,
        {name: list(range(seeds)) for name in runs},
        measures,
    )


_BENCHMARK = ("bleu4", "rouge_l", "radgraph_f1", "chexbert_f1", "lexicon_label_f1")


def main(arguments: Sequence[str]) -> None:
    """Measure the time of bootstrap and randomization of two methods on five metrics."""
    parser = argparse.ArgumentParser(prog="python -m dive.scores.significance", description=main.__doc__)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--reports", type=int, default=3_000)
    parser.add_argument("--patients", type=int, default=3_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", type=int, default=2)
    chosen = parser.parse_args(arguments)
    statistics = random_statistics(chosen.reports, chosen.patients, chosen.seeds, chosen.methods)
    pairs = [("method0", name) for name in statistics.runs if name != "method0"]
    for label, work in (
        ("paired bootstrap", lambda: bootstrap(statistics, chosen.resamples, 0)),
        ("paired approximate randomization", lambda: randomize(statistics, pairs, chosen.resamples, 0)),
    ):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        print(
            f"{label}: {chosen.resamples} resamples x {len(statistics.measures)} metrics x {chosen.reports} reports of "
            f"{chosen.patients} patients, {chosen.methods} methods, {chosen.seeds} seed(s): "
            f"{time.perf_counter() - wall:.2f} s wall, {time.process_time() - cpu:.2f} s CPU"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
