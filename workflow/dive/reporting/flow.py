"""The way of a dataset's studies from raw to used, as a flow diagram in the manner of CONSORT (Schulz et al. 2010).

Boxes down the middle hold what is left, boxes at the side what was left out, rule by rule; then come the splits, what
was drawn of them, and what of that could be decoded. Plain SVG without any resource of elsewhere.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STAGES = {
    "Read": (
        "tables_disagree",
        "no_split",
        "bad_path",
        "no_report",
        "unreadable_report",
        "undecodable_report",
        "sectioned_by_hand",
        "unknown_split",
    ),
    "With wanted views and text": (
        "no_frontal_image",
        "no_image",
        "no_findings",
        "no_impression",
        "no_text",
        "deidentified",
        "too_short",
        "too_long",
    ),
    "Selected": ("unreadable_image", "duplicate_text"),
}
"""What is left after a stage, and the rules of the stage; rules outside belong to the last."""

RULES = {
    "tables_disagree": "tables disagree about the study",
    "no_split": "in no split",
    "bad_path": "path names no study",
    "no_report": "no report file",
    "unreadable_report": "report cannot be read",
    "undecodable_report": "report cannot be decoded",
    "sectioned_by_hand": "sectioned by hand in the official code",
    "unknown_split": "unknown split",
    "no_frontal_image": "no frontal image",
    "no_image": "no image of a wanted view",
    "no_findings": "no findings section",
    "no_impression": "no impression section",
    "no_text": "neither findings nor impression",
    "deidentified": "text has ___",
    "too_short": "text too short",
    "too_long": "text too long",
    "unreadable_image": "image missing, cut off or of no usable size",
    "duplicate_text": "same text in an evaluation split",
}
"""What the side boxes say for a rule."""

GROUPS = {"queries": "train", "demonstrations": "train", "validation": "validate", "test": "test"}
SPLITS = {"train": "Training", "validate": "Validation", "test": "Test"}

WIDTH, MAIN, SIDE, GAP, LINE, PAD = 640, 300, 300, 26, 17, 9
"""Pixels: of the drawing, of the two columns of boxes, between boxes, of a line of text, within a box."""


def stages_of(flow: Sequence[Mapping[str, Any]], raw: int) -> list[tuple[str, int, list[tuple[str, int]], str]]:
    """Group the steps of ``counts.json``: (stage, what remains, (rule, left out) where any, unit of what remains).

    The last stage is what is used. A row for every image (unit ``image``) makes it count images.
    """
    known = {rule: stage for stage, rules in STAGES.items() for rule in rules}
    left: dict[str, list[tuple[str, int]]] = {stage: [] for stage in STAGES}
    remaining = dict.fromkeys(STAGES, raw)
    unit = "studies"
    names = list(STAGES)
    for step in flow:
        stage = known.get(step["rule"], names[-1])
        if step["rule"] == "one_row_an_image":
            unit = "images"
        if step["left_out"]:
            left[stage].append((step["rule"], step["left_out"]))
        for later in names[names.index(stage) :]:
            remaining[later] = step["remaining"]
    return [(stage, remaining[stage], left[stage], unit if stage == names[-1] else "studies") for stage in names]


def flow_diagram(
    title: str,
    counts: Mapping[str, Any],
    pool: Mapping[str, int] | None = None,
    decoded: Mapping[str, Mapping[str, tuple[int, int]]] | None = None,
) -> str:
    """Draw the diagram.

    Args:
        title: the dataset's, for those who cannot see the picture.
        counts: of ``counts.json``: raw, flow, used.
        pool: group -> studies drawn; None leaves these boxes out.
        decoded: backbone -> group -> (drawn, used): what was left when the images were decoded.
    """
    drawing = Drawing()
    raw = counts["raw"]
    drawing.main(["Raw", f"{raw['studies']:,} studies", f"{raw['images']:,} images of {raw['patients']:,} patients"])
    for stage, remaining, left, unit in stages_of(counts["flow"], raw["studies"]):
        if left:
            total = sum(number for _, number in left)
            told = [f"{RULES.get(rule, rule.replace('_', ' '))}: {number:,}" for rule, number in left]
            drawing.side([f"Left out: {total:,}", *told])
        drawing.main([stage, f"{remaining:,} {unit}"])
    columns = []
    for split, name in SPLITS.items():
        size = counts["used"].get(split)
        if size is not None:
            columns.append([f"{name}: {size['studies']:,}", f"{size['patients']:,} patients"])
    drawing.row(columns)
    if pool:
        drawing.row([drawn_lines(split, pool, decoded or {}) for split in SPLITS if split in counts["used"]])
    return drawing.render(f"Flow of studies: {title}")


def drawn_lines(split: str, pool: Mapping[str, int], decoded: Mapping[str, Mapping[str, tuple[int, int]]]) -> list[str]:
    """Lines of a split's last box: what was drawn of it, and what was lost when it was decoded."""
    groups = [group for group, of in GROUPS.items() if of == split and group in pool]
    lines = ["Drawn:", *(f"{group} {pool[group]:,}" for group in groups)]
    lost = {name: sum(drawn - used for drawn, used in map(sizes.get, groups)) for name, sizes in decoded.items()}
    # Decoding does not depend on the backbone, so all lose the same; if ever not, each is told.
    if lost and len(set(lost.values())) == 1:
        return [*lines, f"not decodable {next(iter(lost.values())):,}"]
    return [*lines, *(f"not decodable {number:,} ({name})" for name, number in lost.items())]


class Drawing:
    """Boxes laid out from top to bottom, with arrows between them."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._y = 1.0
        self._open: float | None = None  # lower end of the last box in the middle, from which an arrow goes on

    def main(self, lines: Sequence[str]) -> None:
        """A box in the middle column, below all others."""
        if self._open is not None:
            self._y += GAP
            self._arrow(MAIN / 2, self._open, MAIN / 2, self._y)
        self._box(0, self._y, MAIN, lines, strong=True)
        self._y += height(lines)
        self._open = self._y

    def side(self, lines: Sequence[str]) -> None:
        """A box at the side of the arrow to the next box in the middle."""
        self._y += GAP / 2
        middle = self._y + height(lines) / 2
        self._arrow(MAIN / 2, middle, WIDTH - SIDE, middle)
        self._box(WIDTH - SIDE, self._y, SIDE, lines, strong=False)
        self._y += height(lines) - GAP / 2

    def row(self, columns: Sequence[Sequence[str]]) -> None:
        """Boxes side by side over the whole width, each with an arrow from above."""
        if not columns:
            return
        wide = (WIDTH - GAP * (len(columns) - 1)) / len(columns)
        centres = [index * (wide + GAP) + wide / 2 for index in range(len(columns))]
        above = self._open
        self._y += GAP if above is None else GAP * 1.6
        if above is not None:
            bar = above + GAP * 0.6
            self._parts.append(f'<path d="M{MAIN / 2:g} {above:g}V{bar:g}M{centres[0]:g} {bar:g}H{centres[-1]:g}"/>')
        for centre, lines in zip(centres, columns, strict=True):
            self._arrow(centre, self._y - GAP, centre, self._y)
            self._box(centre - wide / 2, self._y, wide, lines, strong=True)
        self._y += max(map(height, columns))
        self._open = None

    def render(self, title: str) -> str:
        """The SVG element."""
        return (
            f'<svg class="consort" viewBox="0 0 {WIDTH} {self._y + 1:g}" role="img" aria-label="{escape(title)}" '
            'font-size="12.5" fill="none" stroke="#5c6b7a">'
            f"<title>{escape(title)}</title>{''.join(self._parts)}</svg>"
        )

    def _box(self, x: float, y: float, wide: float, lines: Sequence[str], strong: bool) -> None:
        fill = "#fff" if strong else "#f5f7f9"
        self._parts.append(
            f'<rect x="{x + 0.5:g}" y="{y:g}" width="{wide - 1:g}" height="{height(lines):g}" rx="4" fill="{fill}"/>'
        )
        for index, line in enumerate(lines):
            weight = ' font-weight="600"' if index == 0 else ""
            place = y + PAD + LINE * (index + 0.75)
            self._parts.append(
                f'<text x="{x + 10:g}" y="{place:g}" fill="#1d2733" stroke="none"{weight}>{escape(line)}</text>'
            )

    def _arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        head = "l-4 -6m4 6l4 -6" if x == to_x else "l-6 -4m6 4l-6 4"
        self._parts.append(f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}{head}"/>')


def height(lines: Sequence[str]) -> float:
    """Height of a box."""
    return LINE * len(lines) + 2 * PAD
