"""What is wrong with a synthetic chest: eleven kinds of findings, each absent or of one class.

The findings are the only link between an image and its report: `phantom` draws them and `language` describes
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

SIDES = ("right", "left")
ZONES = ("upper", "lower")

# kind -> (prevalence, number of classes when present)
KINDS: Mapping[str, tuple[float, int]] = {
    "cardiomegaly": (0.40, 3),
    "left_effusion": (0.30, 3),
    "right_effusion": (0.30, 3),
    "consolidation": (0.45, 8),
    "pneumothorax": (0.22, 4),
    "edema": (0.25, 2),
    "nodule": (0.28, 4),
    "atelectasis": (0.32, 2),
    "tube": (0.25, 1),
    "line": (0.22, 1),
    "pacemaker": (0.20, 1),
}

# A study shows at most this many kinds: a report then stays within half of the generation limit.
MOST_FINDINGS = 6

LABELS = (
    "cardiomegaly",
    "left_effusion",
    "right_effusion",
    "left_consolidation",
    "right_consolidation",
    "left_pneumothorax",
    "right_pneumothorax",
    "edema",
    "left_nodule",
    "right_nodule",
    "left_atelectasis",
    "right_atelectasis",
    "tube",
    "line",
    "pacemaker",
)

OBSERVATIONS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)


@dataclass(frozen=True)
class Findings:
    """One study's findings; each field is 0 (absent) or a class from 1 to the count in `KINDS`.

    Severities grow with the class. The composed classes are read by the properties: `consolidation` is
    1 + 4 side + 2 zone + density, `pneumothorax` 1 + 2 side + size, `nodule` 1 + 2 side + zone, `atelectasis`
    1 + side, with sides and zones indexed as in `SIDES` and `ZONES`.
    """

    cardiomegaly: int = 0
    left_effusion: int = 0
    right_effusion: int = 0
    consolidation: int = 0
    pneumothorax: int = 0
    edema: int = 0
    nodule: int = 0
    atelectasis: int = 0
    tube: int = 0
    line: int = 0
    pacemaker: int = 0

    def __post_init__(self) -> None:
        for kind, (_, classes) in KINDS.items():
            if not 0 <= getattr(self, kind) <= classes:
                raise ValueError(f"{kind} must be 0..{classes}, not {getattr(self, kind)}")

    @property
    def count(self) -> int:
        """Number of kinds that are present."""
        return sum(getattr(self, kind) > 0 for kind in KINDS)

    @property
    def consolidation_place(self) -> tuple[int, int, int]:
        """(side, zone, density), each 0 or 1; only meaningful when a consolidation is present."""
        return (self.consolidation - 1) // 4, (self.consolidation - 1) // 2 % 2, (self.consolidation - 1) % 2

    @property
    def pneumothorax_place(self) -> tuple[int, int]:
        """(side, size), each 0 or 1; only meaningful when a pneumothorax is present."""
        return (self.pneumothorax - 1) // 2, (self.pneumothorax - 1) % 2

    @property
    def nodule_place(self) -> tuple[int, int]:
        """(side, zone), each 0 or 1; only meaningful when a nodule is present."""
        return (self.nodule - 1) // 2, (self.nodule - 1) % 2

    def labels(self) -> set[str]:
        """The labels out of `LABELS` that hold: findings with their side, without severity."""
        present = {
            kind
            for kind in (
                "cardiomegaly",
                "left_effusion",
                "right_effusion",
                "edema",
                "tube",
                "line",
                "pacemaker",
            )
            if getattr(self, kind)
        }
        if self.consolidation:
            present.add(f"{SIDES[self.consolidation_place[0]]}_consolidation")
        if self.pneumothorax:
            present.add(f"{SIDES[self.pneumothorax_place[0]]}_pneumothorax")
        if self.nodule:
            present.add(f"{SIDES[self.nodule_place[0]]}_nodule")
        if self.atelectasis:
            present.add(f"{SIDES[self.atelectasis - 1]}_atelectasis")
        return present


def sample_findings(rng: np.random.Generator) -> Findings:
    """Draw one study: kinds independently by prevalence, all anew when more than `MOST_FINDINGS` come up."""
    while True:
        present = rng.random(len(KINDS)) < [prevalence for prevalence, _ in KINDS.values()]
        if present.sum() <= MOST_FINDINGS:
            break
    classes = [int(rng.integers(1, count + 1)) for _, count in KINDS.values()]
    return Findings(**{kind: value if here else 0 for kind, value, here in zip(KINDS, classes, present, strict=True)})


def follow_up(previous: Findings, rng: np.random.Generator, change: float = 0.35) -> Findings:
    """Draw a later study of the same patient: each kind is drawn anew with probability ``change``, or stays."""
    while True:
        fresh = sample_findings(rng)
        renewed = rng.random(len(KINDS)) < change
        later = Findings(
            **{kind: getattr(fresh if new else previous, kind) for kind, new in zip(KINDS, renewed, strict=True)}
        )
        if later.count <= MOST_FINDINGS:
            return later


def class_targets(findings: Findings) -> np.ndarray:
    """Class of every kind in the order of `KINDS`, shape (11,), int64: the targets of the vision warm-up."""
    return np.array([getattr(findings, field.name) for field in fields(findings)], dtype=np.int64)


def to_chexpert(findings: Findings) -> dict[str, float | None]:
    """The fourteen CheXpert observations as a label file has them: 1.0 present, 0.0 denied, None not
    mentioned.

    What every report denies when absent (cardiomegaly, effusion, pneumothorax, consolidation) is 0.0; what
    reports leave unsaid is None. As with the CheXpert labeller, support devices alone still are "No Finding".
    """
    devices = bool(findings.tube or findings.line or findings.pacemaker)
    disease = findings.labels() - {"tube", "line", "pacemaker"}
    effusion = bool(findings.left_effusion or findings.right_effusion)
    values: dict[str, float | None] = dict.fromkeys(OBSERVATIONS)
    values["No Finding"] = None if disease else 1.0
    values["Cardiomegaly"] = float(findings.cardiomegaly > 0)
    values["Lung Opacity"] = 1.0 if findings.consolidation or findings.edema or findings.atelectasis else None
    values["Lung Lesion"] = 1.0 if findings.nodule else None
    values["Edema"] = 1.0 if findings.edema else None
    values["Consolidation"] = float(findings.consolidation > 0)
    values["Atelectasis"] = 1.0 if findings.atelectasis else None
    values["Pneumothorax"] = float(findings.pneumothorax > 0)
    values["Pleural Effusion"] = float(effusion)
    values["Support Devices"] = 1.0 if devices else None
    return values
