"""Sections of a MIMIC-CXR report, as MIT-LCP's ``txt/section_parser.py`` (MIMIC-CXR repository, MIT licence)
finds them.

The table of headers and every habit of that code are kept, odd ones included, since published splits and
scores rest on them:

- a header stands after a newline and at least one blank, in capitals, blanks and ``()/,-``, ended by a colon
and white
  space: ``FINDINGS:Small`` is none, neither is a header with a digit nor one flush left, nor one on the first
  line;
- the line of a header is not searched for a second one, and neither is the next line when the colon ends its
own;
- ``FINDINGS AND IMPRESSION`` is an impression; ``NDICATION``, in one report, is one too;
- any other header that contains ``findings``, or a view such as ``PORTABLE``, is FINDINGS;
- an unknown header (``ET TUBE:``) ends the section before it;
- empty impressions and findings are dropped, so that the last one *with text* wins;
- without either, the last section is cut at its first newline-blank-newline and the rest is
``last_paragraph``.
"""

import re

HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")

# canonical name -> the headers, lower-cased, that the official table maps to it
HEADERS = {
    "preamble": ["preamble"],
    "full report": ["full report"],
    "impression": [
        "impression",
        "conclusion",
        "findings and impression",
        "findings/impression",
        "findings/ impression",
        "ndication",
        "impresson",
        "imprression",
        "imoression",
        "impressoin",
        "imprssion",
        "impresion",
        "imperssion",
        "mpression",
        "impession",
    ],
    "findings": [
        "findings",
        "chest, two views",
        "finding",
        "findins",
        "findindgs",
        "findgings",
        "findngs",
        "findnings",
        "finidngs",
        "reference findings",
    ],
    "comparison": [
        "comparison",
        "comparisons",
        "reference exam",
        "comparison exam",
        "comparison film",
        "comparision",
        "comparsion",
        "comparrison",
        "comparisions",
    ],
    "indication": [
        "indication",
        "reason for examination",
        "reason for exam",
        "clinical indication",
        "idication",
    ],
    "history": ["history", "clinical history", "clinical information", "patient history", "pfi"],
    "examination": ["examination", "exam", "type of examination"],
    "technique": ["technique"],
    "notification": ["notification"],
    "recommendations": ["recommendations", "recommendation", "recommendation(s)"],
    "addendum": ["addendum"],
    "date": ["date"],
    "comment": ["comment"],
    "wet read": ["wet read", "wetread"],
}
CANONICAL = {header: name for name, headers in HEADERS.items() for header in headers}

# A header outside the table takes the first of these names that it contains ...
CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
# ... or is FINDINGS when it names a projection.
PROJECTION = re.compile(
    "chest|portable|pa and lateral|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|frontal view"
    "|pa view|ap view|one view|lateral view|bone window|frontal upright|frontal semi-upright|ribs|pa and lat"
)

# Reports that the official code sections by hand, for the labeller only: its table of sections leaves them
# out, and so do we (rule `sectioned_by_hand`). First those whose conclusion hides in another section, then
# those cut by character, last those that have no findings at all.
SECTIONED_BY_HAND = frozenset(
    """
    s50913680 s59363654 s59279892 s59768032 s57936451 s50058765 s53356173 s53202765 s50808053 s51966317
    s50743547 s56451190 s59067458 s59215320 s55124749 s54365831 s59087630 s58157373 s56482935 s58375018
    s54654948 s55157853 s51491012 s50525523 s57564132 s59982525 s53488209 s54875119 s50196495 s56579911
    s52648681 s59889364 s53514462 s59505494 s53182247 s51410602 s56412866 s54986978 s59003148 s57150433
    s56760320 s59562049 s52674888 s55258338 s59330497 s52119491 s58235663 s50798377 s54168089 s53071062
    s56724958 s54231141 s53607029 s52035334
    """.split()  # noqa: SIM905
)


def canonical_name(header: str) -> str:
    """Name of the section that ``header`` opens: ``CHEST, PA AND LATERAL`` -> ``findings``; unknown ones stay."""
    name = header.lower().strip()
    if name in CANONICAL:
        return CANONICAL[name]
    for contained in CONTAINED:
        if contained in name:
            return contained
    return "findings" if PROJECTION.search(name) else name


def parse_sections(text: str) -> list[tuple[str, str]]:
    """Split a report into ``(name, text)`` pairs in reading order.

    The text before the first header is the ``preamble``; a report without any header is one ``full report``.
    Newlines of ``text`` are ``\\n``, as in a file opened in text mode.
    """
    header = HEADER.search(text)
    if header is None:
        sections = [("full report", text)]
    else:
        sections = [("preamble", text[: header.start(1)])]
        while header is not None:
            start = header.end()
            newline = text.find("\n", start)
            following = HEADER.search(text, start if newline == -1 else newline)
            end = len(text) if following is None else following.start()
            sections.append((canonical_name(header.group(1)), text[start:end]))
            header = following
    sections = [(name, body) for name, body in sections if name not in ("impression", "findings") or body.strip()]
    if not {"impression", "findings"} & {name for name, _ in sections}:
        name, body = sections[-1]
        first, *rest = body.split("\n \n")
        if rest:
            sections[-1:] = [(name, first), ("last_paragraph", "\n \n".join(rest))]
    return sections


def last_sections(text: str) -> dict[str, str]:
    """Text of the last section of every name, stripped: what the official table holds for a report."""
    return {name: body.strip() for name, body in parse_sections(text)}
