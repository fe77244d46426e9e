"""Does the synthetic world pose the paper's problem? Measured on validation studies, without any adapter.

Every criterion was written down before the world was made; the world is accepted or not by these numbers, whatever any
method later scores:

1. demonstrations help: K-shot BLEU-4 exceeds zero-shot by 15 points;
2. images matter for the text: the best constant report stays 10 points below the K-shot teacher;
3. images are read, not perfectly: the teacher's micro label F1 lies in 60..92 and 25 points above the same prompt
   with a blank query image, and no finding is at chance;
4. termination is to be learned: zero-shot ends 50 to 95 % of its reports by itself, the teacher more.

Labels are read from generated text by `dive.data.synthetic.language.read_labels` and compared with the truth behind the
images. Intervals are 95 % percentile intervals of a bootstrap over patients.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dive.data.readable import readable_demonstrations, readable_pool
from dive.data.synthetic.findings import LABELS
from dive.data.synthetic.language import read_labels
from dive.files import atomic_path, read_json, write_json
from dive.progress import log

ARMS = ("zero_shot", "icl", "blank_query", "constant")
RESAMPLES = 2000

# Thresholds of the criteria.
LEAST_GAIN = 15.0
LEAST_MARGIN = 10.0
F1_RANGE = (60.0, 92.0)
LEAST_GROUNDING = 25.0
STOP_RANGE = (0.5, 0.95)


def probe_world(
    backbone: dict[str, Any],
    studies: str,
    pool: str,
    demonstrations: str,
    vision: str,
    truth: str,
    decoding: dict[str, Any],
    out: str,
) -> None:
    """Write validation reports without demonstrations, with K, with K and a blank query image; and what they say.

    Args:
        backbone: ``backbones.<name>`` of the config.
        studies: path of ``studies.parquet``.
        pool: path of the pool's JSON; its validation studies are probed, the constant report comes from its queries
            and demonstrations.
        demonstrations: path of the drawn demonstrations.
        vision: folder of the vision features.
        truth: parquet with ``study_uid`` and one bool column a label of the synthetic world.
        decoding: ``max_new_tokens``.
        out: JSON to write: for every study and arm the BLEU statistics, the labels read and whether the report ended;
            labels of the truth; the longest reference in tokens.

    Raises:
        ValueError: the truth lacks a probed study.
    """
    from dive.backbones.loading import load_backbone
    from dive.backbones.vision import VisionFeatures
    from dive.data.studies import read_notes, read_studies
    from dive.parquet import read_table

    table = read_studies(studies, columns=["study_uid", "patient_uid", "target"])
    patients = dict(zip(table["study_uid"], table["patient_uid"], strict=True))
    targets = dict(zip(table["study_uid"], table["target"], strict=True))
    members = readable_pool(pool, vision)
    uids = members["validation"]
    facts = read_table(truth).to_pandas().set_index("study_uid")
    missing = [uid for uid in uids if uid not in facts.index]
    if missing:
        raise ValueError(
            f"{truth} lacks {len(missing)} validation studies, the first is {missing[0]}: run synthesize again"
        )
    rows = probe_reports(
        load_backbone(backbone),
        uids=uids,
        targets=targets,
        demonstrations=readable_demonstrations(demonstrations, studies, vision)["validation"],
        features=VisionFeatures(vision),
        training=[*members["queries"], *members["demonstrations"]],
        max_new_tokens=decoding["max_new_tokens"],
        batch_size=backbone["batch"]["generation"],
    )
    probe = {
        "dataset": read_notes(studies).get("dataset", Path(out).parent.name),
        "backbone": Path(out).stem,
        "max_new_tokens": decoding["max_new_tokens"],
        "labels": list(LABELS),
        "patients": [patients[uid] for uid in uids],
        "truth": [[int(facts.at[uid, label]) for label in LABELS] for uid in uids],
        **rows,
    }
    write_json(out, probe)
    summary = _Probe(probe).summary()
    log.info("%s", ", ".join(f"{name} {value:.2f}" for name, value in summary.items()))


def probe_reports(
    backbone: Any,
    uids: Sequence[str],
    targets: Mapping[str, str],
    demonstrations: Mapping[str, Sequence[str]],
    features: Any,
    training: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
) -> dict[str, Any]:
    """Generate the arms' reports and reduce them to numbers.

    Args:
        backbone: a loaded `dive.backbones.loading.Backbone`.
        uids: studies to report.
        targets: reference of every study, and report of every demonstration and training study.
        demonstrations: study -> its K demonstration studies.
        features: image features by key, with ``n_tokens`` by key.
        training: studies among whose reports the constant one is chosen.
        max_new_tokens, batch_size: of the decoding.

    Returns:
        ``{"longest_reference": tokens, "arms": {arm: {"bleu": (n, 10), "labels": (n, 15), "stopped": (n,)}}}`` as
        nested lists.
    """
    from dive.generation import decode, render_queries
    from dive.scores.bleu import bleu_statistics
    from dive.scores.constant import best_report

    def generate(**arguments: Any) -> tuple[list[str], list[bool]]:
        prompts = render_queries(backbone, uids, features.n_tokens, targets, **arguments)
        decoded = decode(backbone, prompts, features, max_new_tokens, batch_size)
        return [report.text for report in decoded], [report.stopped for report in decoded]

    candidates = [targets[uid] for uid in training]
    constant = candidates[best_report(candidates)[0]]
    written = {
        "zero_shot": generate(),
        "icl": generate(demonstrations=demonstrations),
        "blank_query": generate(demonstrations=demonstrations, blank=True),
        "constant": ([constant] * len(uids), [True] * len(uids)),
    }
    arms = {}
    for arm, (reports, stopped) in written.items():
        said = [read_labels(report) for report in reports]
        arms[arm] = {
            "bleu": [bleu_statistics(report, targets[uid]).tolist() for uid, report in zip(uids, reports, strict=True)],
            "labels": [[int(label in labels) for label in LABELS] for labels in said],
            "stopped": [int(value) for value in stopped],
        }
    lengths = [len(backbone.tokenizer(targets[uid], add_special_tokens=False)["input_ids"]) for uid in uids]
    return {"longest_reference": max(lengths), "arms": arms}


class _Probe:
    """The numbers of one probe under any weighting of its patients."""

    def __init__(self, probe: Mapping[str, Any]) -> None:
        self.probe = probe
        self.truth = np.array(probe["truth"], dtype=bool)
        self.said = {arm: np.array(probe["arms"][arm]["labels"], dtype=bool) for arm in ARMS}
        self.bleu = {arm: np.array(probe["arms"][arm]["bleu"], dtype=np.float64) for arm in ARMS}
        self.stopped = {arm: np.array(probe["arms"][arm]["stopped"], dtype=np.float64) for arm in ARMS}
        _, self.patient = np.unique(probe["patients"], return_inverse=True)

    def resample(self, rng: np.random.Generator) -> np.ndarray:
        """Weights (RESAMPLES, n) of the studies: patients drawn with replacement."""
        count = self.patient.max() + 1
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        return drawn[:, self.patient].astype(np.float64)

    @property
    def whole(self) -> np.ndarray:
        return np.ones((1, len(self.patient)))

    def bleu4(self, arm: str, weights: np.ndarray) -> np.ndarray:
        """Corpus BLEU-4 (0..100) of every row of ``weights`` (R, n): (R,)."""
        from dive.scores.bleu import bleu_from_statistics

        return bleu_from_statistics(weights @ self.bleu[arm])

    def label_f1(self, arm: str, weights: np.ndarray) -> np.ndarray:
        """Micro F1 over all labels, 0..100: (R,)."""
        hit = weights @ (self.said[arm] & self.truth).sum(1)
        return 200 * hit / np.maximum(weights @ (self.said[arm].sum(1) + self.truth.sum(1)), 1)

    def auroc(self, arm: str, label: int, weights: np.ndarray) -> np.ndarray:
        """AUROC of one label's yes or no, which is (sensitivity + specificity) / 2; nan without both classes: (R,)."""
        said, true = self.said[arm][:, label], self.truth[:, label]
        with np.errstate(invalid="ignore", divide="ignore"):
            sensitivity = weights @ (said & true) / (weights @ true)
            specificity = weights @ (~said & ~true) / (weights @ ~true)
        return (sensitivity + specificity) / 2

    def stop_rate(self, arm: str, weights: np.ndarray) -> np.ndarray:
        """Part of reports that were ended by the terminator: (R,)."""
        return weights @ self.stopped[arm] / weights.sum(1)

    def summary(self) -> dict[str, float]:
        """The headline numbers of every arm."""
        return {
            f"{arm} {name}": float(measure(arm, self.whole)[0])
            for arm in ARMS
            for name, measure in (("BLEU-4", self.bleu4), ("F1", self.label_f1), ("stop rate", self.stop_rate))
        }


def _judge(probe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every criterion for one dataset and backbone."""
    measures = _Probe(probe)
    resamples = measures.resample(np.random.default_rng(0))
    rows: list[dict[str, Any]] = []

    def add(
        criterion: str, value: Callable[[np.ndarray], np.ndarray], threshold: str, holds: Callable[[float], bool]
    ) -> None:
        point = float(value(measures.whole)[0])
        low, high = np.nanpercentile(value(resamples), [2.5, 97.5])
        rows.append(
            {
                "dataset": probe["dataset"],
                "backbone": probe["backbone"],
                "criterion": criterion,
                "value": round(point, 3),
                "interval": [round(float(low), 3), round(float(high), 3)],
                "threshold": threshold,
                "met": bool(holds(point)),
            }
        )

    add(
        "1. K-shot minus zero-shot BLEU-4",
        lambda w: measures.bleu4("icl", w) - measures.bleu4("zero_shot", w),
        f">= {LEAST_GAIN:g}",
        lambda v: v >= LEAST_GAIN,
    )
    add(
        "2. K-shot minus constant BLEU-4",
        lambda w: measures.bleu4("icl", w) - measures.bleu4("constant", w),
        f">= {LEAST_MARGIN:g}",
        lambda v: v >= LEAST_MARGIN,
    )
    add(
        "3. K-shot micro label F1",
        lambda w: measures.label_f1("icl", w),
        f"{F1_RANGE[0]:g} to {F1_RANGE[1]:g}",
        lambda v: F1_RANGE[0] <= v <= F1_RANGE[1],
    )
    add(
        "3. K-shot minus blank-image label F1",
        lambda w: measures.label_f1("icl", w) - measures.label_f1("blank_query", w),
        f">= {LEAST_GROUNDING:g}",
        lambda v: v >= LEAST_GROUNDING,
    )
    findings, unmeasured = [], []
    for index, label in enumerate(probe["labels"]):
        point = float(measures.auroc("icl", index, measures.whole)[0])
        if np.isnan(point):
            unmeasured.append(label)
            continue
        low, high = np.nanpercentile(measures.auroc("icl", index, resamples), [2.5, 97.5])
        findings.append((float(low), float(high), point, label))
    if not findings:
        raise ValueError(
            f"{probe['dataset']}: no finding is in some validation studies and not in others, so none has an "
            "AUROC; raise datasets.*.pool.validation"
        )
    low, high, point, label = min(findings)
    rows.append(
        {
            "dataset": probe["dataset"],
            "backbone": probe["backbone"],
            "criterion": f"3. lowest AUROC of a finding ({label.replace('_', ' ')})",
            "value": round(point, 3),
            "interval": [round(low, 3), round(high, 3)],
            "threshold": "interval above .5",
            # A finding that all or none of the studies have was not shown to be seen.
            "met": low > 0.5 and not unmeasured,
            "unmeasured": unmeasured,
            "findings": {
                name: {"value": round(middle, 3), "interval": [round(lower, 3), round(upper, 3)]}
                for lower, upper, middle, name in findings
            },
        }
    )
    add(
        "4. zero-shot stop rate",
        lambda w: measures.stop_rate("zero_shot", w),
        f"{STOP_RANGE[0]:g} to {STOP_RANGE[1]:g}",
        lambda v: STOP_RANGE[0] <= v <= STOP_RANGE[1],
    )
    add(
        "4. K-shot minus zero-shot stop rate",
        lambda w: measures.stop_rate("icl", w) - measures.stop_rate("zero_shot", w),
        "> 0",
        lambda v: v > 0,
    )
    ratio = probe["max_new_tokens"] / probe["longest_reference"]
    rows.append(
        {
            "dataset": probe["dataset"],
            "backbone": probe["backbone"],
            "criterion": "4. generation limit / longest reference",
            "value": round(ratio, 3),
            "interval": None,
            "threshold": ">= 2",
            "met": ratio >= 2,
        }
    )
    return rows


def accept_world(probes: Sequence[str], out_json: str, out_md: str) -> None:
    """Judge all probes and write the verdicts; nothing is raised when a criterion is not met, it is said.

    Args:
        probes: JSON files of `probe_world`.
        out_json: ``{"met": n, "criteria": n, "rows": [...], "numbers": {"dataset / backbone": {...}}}``.
        out_md: the same as Markdown tables.
    """
    rows, numbers = [], {}
    for path in probes:
        probe = read_json(path)
        rows += _judge(probe)
        numbers[f"{probe['dataset']} / {probe['backbone']}"] = {
            "n": len(probe["patients"]),
            **{name: round(value, 3) for name, value in _Probe(probe).summary().items()},
        }
    met = sum(row["met"] for row in rows)
    write_json(out_json, {"met": met, "criteria": len(rows), "rows": rows, "numbers": numbers})
    with atomic_path(out_md) as temporary:
        temporary.write_text(_markdown(rows, numbers, met), encoding="utf-8")
    log.info("the synthetic world meets %d of %d criteria", met, len(rows))
    for row in rows:
        if not row["met"]:
            log.warning(
                "not met: %s, %s: %s is %g, required %s",
                row["dataset"],
                row["backbone"],
                row["criterion"],
                row["value"],
                row["threshold"],
            )


def _markdown(rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, Mapping[str, float]], met: int) -> str:
    lines = [
        "# Acceptance of the synthetic world",
        "",
        f"{met} of {len(rows)} criteria are met, measured on validation studies without any adapter. In this world,",
        "in-context learning is partly the recognition of a site's writing style: demonstrations carry the style, the",
        "image carries the findings. The AUROC is computed from the yes or no of a finding in the generated reports.",
        "Intervals are 95 % bootstrap intervals over patients.",
        "",
        "| dataset | backbone | criterion | value | interval | required | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = "" if row["interval"] is None else "{:.2f} to {:.2f}".format(*row["interval"])
        lines.append(
            f"| {row['dataset']} | {row['backbone']} | {row['criterion']} | {row['value']:.2f} | {interval} | "
            f"{row['threshold']} | {'yes' if row['met'] else '**no**'} |"
        )
    lines += ["", "| dataset / backbone | arm | BLEU-4 | label F1 | stop rate |", "|---|---|---|---|---|"]
    for name, values in numbers.items():
        for arm in ARMS:
            lines.append(
                f"| {name} (n = {values['n']}) | {arm.replace('_', ' ')} | {values[f'{arm} BLEU-4']:.1f} | "
                f"{values[f'{arm} F1']:.1f} | {values[f'{arm} stop rate']:.2f} |"
            )
    return "\n".join(lines) + "\n"
