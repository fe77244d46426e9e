"""The flow diagram: every study that comes in goes out somewhere, and the picture says where."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from dive.data.splits import split_dataset
from dive.files import read_json
from dive.reporting.flow import RULES, STAGES, flow_diagram, stages_of
from tests.unit.trees import MimicTree, report

COUNTS = {
    "raw": {"studies": 100, "patients": 60, "images": 130},
    "flow": [
        {"rule": "no_report", "left_out": 4, "remaining": 96},
        {"rule": "unknown_split", "left_out": 0, "remaining": 96},
        {"rule": "no_frontal_image", "left_out": 6, "remaining": 90},
        {"rule": "too_short", "left_out": 1, "remaining": 89},
        {"rule": "unreadable_image", "left_out": 2, "remaining": 87},
    ],
    "used": {split: {"studies": 29, "patients": 20} for split in ("train", "validate", "test")},
}


def texts(svg: str) -> list[str]:
    """What the diagram says, from top to bottom; it must be well-formed."""
    return [element.text for element in ElementTree.fromstring(svg).iter("text")]


def test_the_diagram_says_every_number():
    pool = {"queries": 10, "demonstrations": 9, "validation": 8, "test": 29}
    decoded = {"tiny": {"queries": (10, 10), "demonstrations": (9, 8), "validation": (8, 8), "test": (29, 27)}}
    said = texts(flow_diagram("A <set>", COUNTS, pool, decoded))
    assert said == [
        *("Raw", "100 studies", "130 images of 60 patients"),
        *("Left out: 4", "no report file: 4", "Read", "96 studies"),
        *("Left out: 7", "no frontal image: 6", "text too short: 1", "With wanted views and text", "89 studies"),
        *("Left out: 2", "image missing, cut off or of no usable size: 2", "Selected", "87 studies"),
        *("Training: 29", "20 patients", "Validation: 29", "20 patients", "Test: 29", "20 patients"),
        *("Drawn:", "queries 10", "demonstrations 9", "not decodable 1"),
        *("Drawn:", "validation 8", "not decodable 0"),
        *("Drawn:", "test 29", "not decodable 2"),
    ]


def test_the_diagram_holds_nothing_of_elsewhere():
    svg = flow_diagram("A <set> & more", COUNTS)
    assert not re.search(r"http|href|url\(|script|style", svg)
    assert "A &lt;set&gt; &amp; more" in svg


def test_what_goes_in_comes_out():
    stages = stages_of(COUNTS["flow"], 100)
    remaining = 100
    for _, left, rules, _ in stages:
        remaining -= sum(number for _, number in rules)
        assert left == remaining


def test_rows_of_images_are_counted_as_images():
    flow = [*COUNTS["flow"][:4], {"rule": "one_row_an_image", "left_out": 0, "remaining": 120}]
    flow.append({"rule": "unreadable_image", "left_out": 3, "remaining": 117})
    assert stages_of(flow, 100)[1][1::2] == (89, "studies")
    assert stages_of(flow, 100)[2] == ("Selected", 117, [("unreadable_image", 3)], "images")


@pytest.mark.parametrize("selection", [{}, {"section": "both", "deidentified": "exclude", "duplicates": "exclude"}])
def test_every_rule_of_a_selection_has_its_place(tmp_path, selection):
    tree = MimicTree(tmp_path / "data").study().study(50000002, 10000002, text=report(None, None))
    tree.study(50000003, 10000003, text=False).study(50000004, 10000004, views=("LATERAL",))
    out = [str(tmp_path / name) for name in ("studies", "excluded", "counts")]
    split_dataset("d", "mimic_cxr", str(tree.write()), {"min_words": 1, **selection}, *out)
    flow = read_json(out[2])["flow"]
    placed = {rule for rules in STAGES.values() for rule in rules}
    assert {step["rule"] for step in flow} <= placed <= set(RULES)
    assert stages_of(flow, 4)[-1][1] == 1
