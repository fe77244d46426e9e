"""The section parser behaves as the official one: each expectation was checked against MIT-LCP's section_parser.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dive.data.sections import SECTIONED_BY_HAND, canonical_name, last_sections, parse_sections

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old woman with cough  // pneumonia?
 
 COMPARISON:  None.
 
 FINDINGS: 
 
 The lungs are clear.  Heart size is
 normal.
 
 IMPRESSION: 
 
 No acute process.
"""


def test_an_ordinary_report():
    sections = last_sections(REPORT)
    assert list(sections) == ["preamble", "examination", "indication", "comparison", "findings", "impression"]
    assert sections["findings"] == "The lungs are clear.  Heart size is\n normal."
    assert sections["impression"] == "No acute process."
    assert sections["indication"] == "___ year old woman with cough  // pneumonia?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("\n FINDINGS: Small.", [("preamble", "\n "), ("findings", "Small.")], id="header"),
        pytest.param("\n    FINDINGS: Small.", [("preamble", "\n "), ("findings", "Small.")], id="more blanks"),
        pytest.param(
            "\n FINDINGS:Small.", [("full report", "\n FINDINGS:Small.")], id="no white space after the colon"
        ),
        pytest.param("\nFINDINGS: Small.", [("full report", "\nFINDINGS: Small.")], id="flush left"),
        pytest.param(" FINDINGS: Small.", [("full report", " FINDINGS: Small.")], id="on the first line"),
        pytest.param("\n Findings: Small.", [("full report", "\n Findings: Small.")], id="lower case"),
        pytest.param("\n FINDINGS 2: Small.", [("full report", "\n FINDINGS 2: Small.")], id="digit"),
        pytest.param(
            "\n FINDINGS: a\n FINDINGS: b", [("preamble", "\n "), ("findings", "a"), ("findings", "b")], id="two"
        ),
        pytest.param(
            "\n FINDINGS: a\n FINDINGS: \n \n IMPRESSION: c",
            [("preamble", "\n "), ("findings", "a"), ("impression", "c")],
            id="the second is empty",
        ),
        pytest.param(
            "\n FINDINGS:\n IMPRESSION: swallowed.\n IMPRESSION: c",
            [("preamble", "\n "), ("findings", " IMPRESSION: swallowed."), ("impression", "c")],
            id="the line after a header at its line's end is not searched",
        ),
        pytest.param(
            "\n FINDINGS: \n IMPRESSION: c",
            [("preamble", "\n "), ("impression", "c")],
            id="nor is the header's own line",
        ),
        pytest.param(
            "\n FINDINGS: a.\n ET TUBE: in place.\n more.",
            [("preamble", "\n "), ("findings", "a."), ("et tube", "in place.\n more.")],
            id="a device ends findings",
        ),
        pytest.param("\n FINDINGS AND IMPRESSION: a", [("preamble", "\n "), ("impression", "a")], id="combined"),
        pytest.param("\n NDICATION: a", [("preamble", "\n "), ("impression", "a")], id="ndication"),
        pytest.param(
            "\n COMPARISON: x\n \n First.\n \n Second.\n \n Third.",
            [("preamble", "\n "), ("comparison", "x"), ("last_paragraph", " First.\n \n Second.\n \n Third.")],
            id="last paragraph",
        ),
        pytest.param(
            "\n COMPARISON: x\n\n First.", [("preamble", "\n "), ("comparison", "x\n\n First.")], id="needs the blank"
        ),
        pytest.param(
            " One.\n \n Two.", [("full report", " One."), ("last_paragraph", " Two.")], id="last paragraph, no header"
        ),
        pytest.param(
            "\n FINDINGS: x\n \n Two.", [("preamble", "\n "), ("findings", "x\n \n Two.")], id="only without findings"
        ),
    ],
)
def test_oddities(text, expected):
    assert parse_sections(text) == expected


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("FINDNGS", "findings"),
        ("FINIDNGS", "findings"),
        ("CHEST, TWO VIEWS", "findings"),
        ("PORTABLE AP CHEST", "findings"),
        ("RIBS", "findings"),
        ("COMPARISON AND FINDINGS", "findings"),
        ("IMPRESSION AND FINDINGS", "impression"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("CONCLUSION", "impression"),
        ("IMPRESSOIN", "impression"),
        ("REASON FOR EXAM", "indication"),
        ("CLINICAL HISTORY", "history"),
        ("PFI", "history"),
        ("WETREAD", "wet read"),
        ("ADDENDUM BY DR", "addendum"),
        ("ET TUBE", "et tube"),
        ("  EXAM ", "examination"),
    ],
)
def test_names(header, name):
    assert canonical_name(header) == name


def test_the_last_findings_wins():
    assert last_sections("\n FINDINGS: preliminary\n FINDINGS: final")["findings"] == "final"


def test_reports_sectioned_by_hand():
    assert len(SECTIONED_BY_HAND) == 54
    assert all(study.startswith("s") and study[1:].isdigit() for study in SECTIONED_BY_HAND)


PIECES = ["\n", " ", "\n \n", "\n FINDINGS: ", "\n IMPRESSION:\n", " FINDINGS:", "\n ET TUBE: ", "text.", "\r", "\t"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_every_section_is_part_of_the_text_in_order(text):
    place = 0
    for _, body in parse_sections(text):
        place = text.index(body, place)
        place += len(body)
