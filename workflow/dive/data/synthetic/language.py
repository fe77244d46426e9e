"""How synthetic radiologists write: a site has its own register, and every report can be read back exactly.

A *style* is two registers and a structure. The ``body`` register decides how findings and normal statements
are worded, the ``frame`` register the opening, the summary, the recommendation, the closing and the
adjectives; a wording follows its register with probability `FOLLOWING`, else it is drawn freely. So a few
reports of a site tell how it would word what they do not mention. Three in five of the sites that backbones
are trained on run on into boilerplate, the likelier the more there is to report, and then their reports end
without a terminator.
"""

import re
from dataclasses import dataclass

import numpy as np

from dive.data.synthetic.findings import MOST_FINDINGS, SIDES, ZONES, Findings

REGISTERS = 5
FOLLOWING = 0.8
SECOND_WORDING = 0.12
SWAP = 0.08
VERBOSE_SITES = 0.6

# Each body slot has one wording a register. {s}: severity, {side}: right or left, {zone}: upper or lower.
BODY: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        "There is {s} cardiomegaly.",
        "{s} cardiomegaly is present.",
        "{s} enlargement of the cardiac silhouette.",
        "Cardiac silhouette shows {s} enlargement.",
        "Heart with {s} enlargement.",
    ),
    "effusion": (
        "There is a {s} {side} pleural effusion.",
        "{s} {side} pleural effusion is present.",
        "{s} effusion on the {side}.",
        "{side} pleural space shows {s} effusion.",
        "{side} costophrenic angle with {s} pleural fluid.",
    ),
    "bilateral_effusion": (
        "There are {s} bilateral pleural effusions.",
        "{s} bilateral pleural effusions are present.",
        "{s} effusions on both sides.",
        "Both pleural spaces show {s} effusions.",
        "Both costophrenic angles with {s} pleural fluid.",
    ),
    "consolidation": (
        "There is {s} consolidation in the {side} {zone} lobe.",
        "{s} {side} {zone} lobe consolidation is present.",
        "{s} consolidation of the {side} {zone} zone.",
        "{side} {zone} lobe shows {s} consolidation.",
        "{side} {zone} lung with {s} consolidation.",
    ),
    "pneumothorax": (
        "There is a {s} {side} pneumothorax.",
        "{s} {side} pneumothorax is present.",
        "{s} pneumothorax on the {side}.",
        "{side} apex shows {s} pneumothorax.",
        "{side} apex with {s} pneumothorax.",
    ),
    "edema": (
        "There is {s} pulmonary edema.",
        "{s} pulmonary edema is present.",
        "{s} interstitial edema of both lungs.",
        "Pulmonary vessels show {s} edema.",
        "Perihilar lung with {s} edema.",
    ),
    "nodule": (
        "There is a nodule in the {side} {zone} lobe.",
        "{side} {zone} lobe nodule is present.",
        "Nodule of the {side} {zone} zone.",
        "{side} {zone} lobe shows a nodule.",
        "{side} {zone} lung with a nodule.",
    ),
    "atelectasis": (
        "There is {side} basilar atelectasis.",
        "{side} basilar atelectasis is present.",
        "Atelectasis of the {side} base.",
        "{side} base shows atelectasis.",
        "{side} base with linear atelectasis.",
    ),
    "tube": (
        "There is an endotracheal tube.",
        "Endotracheal tube is present.",
        "Endotracheal tube in place.",
        "Trachea shows an endotracheal tube.",
        "Trachea with endotracheal tube.",
    ),
    "line": (
        "There is a central venous catheter.",
        "Central venous catheter is present.",
        "Central venous catheter in place.",
        "Vena cava shows a central venous catheter.",
        "Vena cava with central venous catheter.",
    ),
    "pacemaker": (
        "There is a pacemaker.",
        "Pacemaker is present.",
        "Pacemaker in place.",
        "Chest wall shows a pacemaker.",
        "Chest wall with pacemaker leads.",
    ),
    "normal_heart": (
        "The heart size is normal.",
        "Normal heart size is present.",
        "No enlargement of the heart.",
        "Cardiac silhouette is unremarkable.",
    ),
    "normal_lungs": (
        "The lungs are clear.",
        "Clear lungs are present.",
        "No consolidation of the lungs.",
        "Lung fields are unremarkable.",
    ),
    "no_effusion": (
        "There is no pleural effusion.",
        "No pleural effusion is present.",
        "No effusion on either side.",
        "Pleural spaces are unremarkable.",
    ),
    "no_pneumothorax": (
        "There is no pneumothorax.",
        "No pneumothorax is present.",
        "No pneumothorax on either side.",
        "Apices show no pneumothorax.",
    ),
    "no_effusion_or_pneumothorax": (
        "There is no effusion or pneumothorax.",
        "No effusion or pneumothorax is present.",
        "No effusion or pneumothorax on either side.",
        "Neither effusion nor pneumothorax is shown.",
    ),
}

FRAME: dict[str, tuple[str, ...]] = {
    "header": (
        "Frontal view of the chest.",
        "Portable chest radiograph.",
        "Single upright image obtained.",
        "Comparison with the prior study.",
        "Technique is adequate.",
    ),
    "summary": (
        "Overall, {grade}.",
        "In summary, {grade}.",
        "Taken together, {grade}.",
        "Conclusion is {grade}.",
    ),
    "recommendation": (
        "Follow up is recommended.",
        "Clinical correlation is advised.",
        "Please repeat as needed.",
    ),
    "closing": (
        "Discussed with the referring team.",
        "Results were called by telephone.",
        "Reviewed by the attending physician.",
    ),
}
GRADES = ("no acute abnormality", "limited abnormality", "multiple abnormalities")

# Adjectives by register: three severities, three sizes of an effusion, two densities, two sizes of a
# pneumothorax.
ADJECTIVES: dict[str, tuple[tuple[str, ...], ...]] = {
    "severity": (
        ("mild", "moderate", "severe"),
        ("slight", "moderate", "marked"),
        ("minimal", "moderate", "extensive"),
        ("minor", "considerable", "pronounced"),
        ("borderline", "definite", "massive"),
    ),
    "amount": (
        ("small", "moderate", "large"),
        ("trace", "moderate", "large"),
        ("tiny", "medium", "big"),
        ("minor", "considerable", "massive"),
        ("minimal", "definite", "extensive"),
    ),
    "density": (
        ("patchy", "dense"),
        ("faint", "dense"),
        ("hazy", "confluent"),
        ("subtle", "solid"),
        ("mild", "marked"),
    ),
    "size": (
        ("small", "large"),
        ("tiny", "large"),
        ("thin", "big"),
        ("minor", "massive"),
        ("minimal", "extensive"),
    ),
}

# What verbose sites run on with, again and again, until somebody cuts it off.
BOILERPLATE = (
    "This report was dictated with voice recognition software.",
    "Transcription errors may occur.",
)

ANATOMICAL = (
    "cardiomegaly",
    "edema",
    "consolidation",
    "nodule",
    "atelectasis",
    "left_effusion",
    "right_effusion",
    "pneumothorax",
    "tube",
    "line",
    "pacemaker",
)
DEVICES = ("tube", "line", "pacemaker")


@dataclass(frozen=True)
class Style:
    """How one site writes.

    Attributes:
        first, second: wording index of every slot of `BODY`, `FRAME` and `ADJECTIVES`; ``second`` is the
            rarer habit.
        order: "salience" (most severe first), "devices" (devices first) or "anatomical".
        normals: "separate", "merged" (one sentence denies effusion and pneumothorax) or "brief" (pneumothorax
            is not denied).
        summary, recommendation, closing: probability of that sentence.
        drop: probability of leaving out a normal sentence.
        verbose: the site runs on into boilerplate.
    """

    first: dict[str, int]
    second: dict[str, int]
    order: str
    normals: str
    summary: float
    recommendation: float
    closing: float
    drop: float
    verbose: bool


ORDERS = ("salience", "devices", "anatomical")
NORMALS = ("separate", "merged", "brief")
_INVENTORY = {
    **{slot: ("body", len(wordings)) for slot, wordings in BODY.items()},
    **{slot: ("frame", len(wordings)) for slot, wordings in FRAME.items()},
    **{slot: ("frame", len(wordings)) for slot, wordings in ADJECTIVES.items()},
}


def _by_register(body: int, frame: int) -> dict[str, int]:
    return {slot: (body if register == "body" else frame) % count for slot, (register, count) in _INVENTORY.items()}


def sample_style(rng: np.random.Generator) -> Style:
    """Draw a site that backbones are trained on."""
    body, frame = (int(value) for value in rng.integers(0, REGISTERS, 2))
    follows = _by_register(body, frame)
    first, second = {}, {}
    for slot, (_, count) in _INVENTORY.items():
        free = int(rng.integers(0, count))
        first[slot] = follows[slot] if rng.random() < FOLLOWING else free
        second[slot] = int(rng.integers(0, count))
    often = (0.05, 0.5, 0.95)
    return Style(
        first=first,
        second=second,
        order=ORDERS[rng.integers(3)],
        normals=NORMALS[rng.integers(3)],
        summary=often[rng.integers(3)],
        recommendation=often[rng.integers(3)],
        closing=often[rng.integers(3)],
        drop=float(rng.choice((0.05, 0.25))),
        verbose=bool(rng.random() < VERBOSE_SITES),
    )


def target_style(site: str) -> Style:
    """The style of a synthetic data set: a site with a few deviations from its registers, which always comes
    to an end.

    Raises:
        ValueError: ``site`` is neither "site_a" nor "site_b".
    """
    if site == "site_a":
        first = _by_register(body=0, frame=1) | {"edema": 2, "line": 3, "summary": 0, "density": 0}
        second = _by_register(body=1, frame=0)
        return Style(first, second, "salience", "merged", 0.95, 0.05, 0.5, 0.05, False)
    if site == "site_b":
        first = _by_register(body=3, frame=2) | {"atelectasis": 1, "normal_heart": 0, "header": 4, "size": 0}
        second = _by_register(body=4, frame=3)
        return Style(first, second, "anatomical", "separate", 0.5, 0.95, 0.05, 0.05, False)
    raise ValueError(f"unknown site {site!r}: the styles of data sets are 'site_a' and 'site_b'")


class _Writer:
    """The wording choices of one report."""

    def __init__(self, style: Style, rng: np.random.Generator) -> None:
        self.style, self.rng = style, rng

    def index(self, slot: str) -> int:
        habit = self.style.second if self.rng.random() < SECOND_WORDING else self.style.first
        return habit[slot]

    def adjective(self, slot: str, degree: int) -> str:
        # Adjectives do not waver within a report, so severities stay comparable.
        return ADJECTIVES[slot][self.style.first[slot]][degree]

    def body(self, slot: str, **words: str) -> str:
        sentence = BODY[slot][self.index(slot)].format(**words)
        return sentence[0].upper() + sentence[1:]

    def frame(self, slot: str, **words: str) -> str:
        return FRAME[slot][self.index(slot)].format(**words)


def _positives(findings: Findings, writer: _Writer) -> list[tuple[str, float, str]]:
    """(kind, salience, sentence) of what is present, in anatomical order."""
    said: list[tuple[str, float, str]] = []
    left, right = findings.left_effusion, findings.right_effusion
    for kind in ANATOMICAL:
        value = getattr(findings, kind)
        if not value:
            continue
        if kind in DEVICES:
            said.append((kind, 0.4 + 0.1 * DEVICES.index(kind), writer.body(kind)))
        elif kind == "nodule":
            side, zone = findings.nodule_place
            said.append((kind, 1.6, writer.body(kind, side=SIDES[side], zone=ZONES[zone])))
        elif kind == "atelectasis":
            said.append((kind, 0.9, writer.body(kind, side=SIDES[value - 1])))
        elif kind == "left_effusion" and right:
            worst = max(left, right)
            sentence = writer.body("bilateral_effusion", s=writer.adjective("amount", worst - 1))
            said.append((kind, 0.8 + 0.7 * worst, sentence))
        elif kind == "right_effusion" and left:
            continue
        elif kind in ("left_effusion", "right_effusion"):
            sentence = writer.body("effusion", s=writer.adjective("amount", value - 1), side=kind.split("_")[0])
            said.append((kind, 0.7 + 0.7 * value, sentence))
        elif kind == "consolidation":
            side, zone, density = findings.consolidation_place
            words = {"s": writer.adjective("density", density), "side": SIDES[side], "zone": ZONES[zone]}
            said.append((kind, 1.7 + density, writer.body(kind, **words)))
        elif kind == "pneumothorax":
            side, size = findings.pneumothorax_place
            words = {"s": writer.adjective("size", size), "side": SIDES[side]}
            said.append((kind, 2.3 + size, writer.body(kind, **words)))
        else:
            # Cardiomegaly has three degrees and edema two, which are the mild and the severe one.
            degree = value - 1 if kind == "cardiomegaly" else 2 * (value - 1)
            said.append((kind, 0.6 + 0.6 * degree, writer.body(kind, s=writer.adjective("severity", degree))))
    return said


def _normals(findings: Findings, writer: _Writer) -> list[str]:
    """Sentences that deny what is absent, as the style does it."""
    effusion = findings.left_effusion or findings.right_effusion
    air = findings.pneumothorax
    slots = []
    if not findings.cardiomegaly:
        slots.append("normal_heart")
    if not (findings.consolidation or findings.edema or findings.nodule or findings.atelectasis):
        slots.append("normal_lungs")
    if writer.style.normals == "merged" and not effusion and not air:
        slots.append("no_effusion_or_pneumothorax")
    else:
        if not effusion:
            slots.append("no_effusion")
        if not air and writer.style.normals != "brief":
            slots.append("no_pneumothorax")
    return [writer.body(slot) for slot in slots if writer.rng.random() >= writer.style.drop]


def _ordered(said: list[tuple[str, float, str]], writer: _Writer) -> list[str]:
    """Positive sentences in the style's order, neighbours now and then swapped."""
    if writer.style.order == "salience":
        said = sorted(said, key=lambda item: -item[1])
    elif writer.style.order == "devices":
        said = sorted(said, key=lambda item: item[0] not in DEVICES)
    sentences = [sentence for _, _, sentence in said]
    for index in range(len(sentences) - 1):
        if writer.rng.random() < SWAP:
            sentences[index], sentences[index + 1] = sentences[index + 1], sentences[index]
    return sentences


def write_report(findings: Findings, style: Style, rng: np.random.Generator) -> str:
    """The text of the FINDINGS section, about 30 to 60 tokens, one sentence a finding."""
    writer = _Writer(style, rng)
    sentences = [
        writer.frame("header"),
        *_ordered(_positives(findings, writer), writer),
        *_normals(findings, writer),
    ]
    disease = sum(item not in DEVICES for item in findings.labels())
    if rng.random() < style.summary:
        sentences.append(writer.frame("summary", grade=GRADES[0 if not disease else 1 if disease < 3 else 2]))
    # A complex report has no room left for courtesies.
    if rng.random() < style.recommendation and findings.count < MOST_FINDINGS - 1:
        sentences.append(writer.frame("recommendation"))
    if rng.random() < style.closing and findings.count < MOST_FINDINGS - 1:
        sentences.append(writer.frame("closing"))
    return " ".join(sentences)


def write_impression(findings: Findings, style: Style, rng: np.random.Generator) -> str:
    """The text of the IMPRESSION section: disease in the site's words, most salient first, or its absence."""
    writer = _Writer(style, rng)
    disease = [item for item in _positives(findings, writer) if item[0] not in DEVICES]
    if not disease:
        return "No acute cardiopulmonary abnormality."
    return " ".join(sentence for _, _, sentence in sorted(disease, key=lambda item: -item[1])[:3])


def runs_on(findings: Findings, style: Style, rng: np.random.Generator) -> bool:
    """Whether a report of a verbose site continues into boilerplate: the likelier the more it has to say."""
    return style.verbose and rng.random() < 0.15 + 0.85 * findings.count / (MOST_FINDINGS - 1)


def write_boilerplate(rng: np.random.Generator) -> str:
    """The boilerplate that follows a report of a verbose site, cut after 8 to 28 words: it has no end of its own."""
    words = " ".join(BOILERPLATE * 3).split()
    return " ".join(words[: rng.integers(8, 29)])


_NEGATION = re.compile(r"\b(no|not|without|neither|nor|absent|free)\b")
_PATTERNS = {
    # Words that name a kind; the order matters only for devices, whose sentences name anatomy.
    "tube": re.compile(r"\b(endotracheal|tube)\b"),
    "line": re.compile(r"\b(central venous|catheter)\b"),
    "pacemaker": re.compile(r"\bpacemaker\b"),
    "cardiomegaly": re.compile(r"\bcardiomegaly\b|\benlargement\b"),
    "effusion": re.compile(r"\beffusions?\b|\bpleural fluid\b"),
    "consolidation": re.compile(r"\bconsolidations?\b"),
    "pneumothorax": re.compile(r"\bpneumothora(?:x|ces)\b"),
    "edema": re.compile(r"\bedema\b"),
    "nodule": re.compile(r"\bnodules?\b"),
    "atelectasis": re.compile(r"\batelectasis\b"),
}
_SIDED = ("effusion", "consolidation", "pneumothorax", "nodule", "atelectasis")
_BOTH = re.compile(r"\b(bilateral|both)\b")


def read_labels(text: str) -> set[str]:
    """The labels out of `findings.LABELS` that a text asserts.

    A label is asserted by a sentence that names its finding without a negation and, where the label has a
    side, names the side. The rule recovers the labels of every written report exactly; generated text is read
    by the same rule.
    """
    labels: set[str] = set()
    for sentence in re.split(r"[.\n]+", text.lower()):
        if _NEGATION.search(sentence):
            continue
        sides = [side for side in SIDES if re.search(rf"\b{side}\b", sentence)]
        if _BOTH.search(sentence):
            sides = list(SIDES)
        for kind, pattern in _PATTERNS.items():
            if not pattern.search(sentence):
                continue
            if kind in _SIDED:
                labels.update(f"{side}_{kind}" for side in sides)
            else:
                labels.add(kind)
    return labels
