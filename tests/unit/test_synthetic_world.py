"""The generative world: findings, phantoms that show them, reports that tell them and can be read back exactly."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dive.data import studies
from dive.data.synthetic.findings import (
    KINDS,
    LABELS,
    MOST_FINDINGS,
    OBSERVATIONS,
    Findings,
    class_targets,
    follow_up,
    sample_findings,
    to_chexpert,
)
from dive.data.synthetic.language import (
    BODY,
    FRAME,
    read_labels,
    runs_on,
    sample_style,
    target_style,
    write_boilerplate,
    write_impression,
    write_report,
)
from dive.data.synthetic.phantom import NOISE, blank_image, draw_image, draw_phantom

SITES = ("site_a", "site_b")
seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=300, deadline=None)
def test_every_report_is_read_back_exactly(seed):
    rng = np.random.default_rng(seed)
    findings, style = sample_findings(rng), sample_style(rng)
    assert read_labels(write_report(findings, style, rng)) == findings.labels()
    for site in SITES:
        assert read_labels(write_report(findings, target_style(site), rng)) == findings.labels()


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_impressions_and_boilerplate_add_nothing_false(seed):
    rng = np.random.default_rng(seed)
    findings, style = sample_findings(rng), sample_style(rng)
    assert read_labels(write_impression(findings, style, rng)) <= findings.labels()
    assert read_labels(write_boilerplate(rng)) == set()


def test_every_wording_of_a_finding_is_read_and_every_other_is_not():
    words = {"s": "mild", "side": "left", "zone": "upper", "grade": "limited abnormality"}
    positive = {
        slot for slot, wordings in BODY.items() if all(read_labels(wording.format(**words)) for wording in wordings)
    }
    silent = {
        slot
        for slot, wordings in (BODY | FRAME).items()
        if not any(read_labels(wording.format(**words)) for wording in wordings)
    }
    assert positive | silent == set(BODY) | set(FRAME)
    assert positive == {slot for slot in BODY if not slot.startswith(("no_", "normal_"))}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Small left pleural effusion. No pneumothorax.", {"left_effusion"}),
        ("Both costophrenic angles with minor pleural fluid.", {"left_effusion", "right_effusion"}),
        ("Neither effusion nor pneumothorax is shown.", set()),
        ("effusion", set()),
        ("", set()),
    ],
)
def test_labels_need_a_finding_a_side_and_no_negation(text, labels):
    assert read_labels(text) == labels


def test_same_seed_same_world():
    def world(seed):
        rng = np.random.default_rng(seed)
        findings, style = sample_findings(rng), sample_style(rng)
        return findings, write_report(findings, style, rng), draw_image(findings, rng).tobytes()

    assert world(3) == world(3)
    assert world(3) != world(4)


@pytest.mark.parametrize("site", SITES)
def test_reports_have_the_length_of_short_findings_sections(site):
    rng = np.random.default_rng(0)
    reports = [write_report(sample_findings(rng), target_style(site), rng) for _ in range(500)]
    lengths = np.array([len(report.replace(".", " .").split()) for report in reports])
    assert 30 <= np.median(lengths) <= 50
    assert lengths.min() >= 15
    assert lengths.max() <= 75
    assert len(set(reports)) > 450
    assert all(report[0].isupper() and report.endswith(".") for report in reports)


def test_sites_differ_from_each_other():
    rng = np.random.default_rng(0)
    cases = [sample_findings(rng) for _ in range(200)]
    sentences = [
        {sentence for case in cases for sentence in write_report(case, target_style(site), rng).split(". ")}
        for site in SITES
    ]
    assert len(sentences[0] & sentences[1]) < 0.2 * min(map(len, sentences))


def test_unknown_site_is_refused():
    with pytest.raises(ValueError, match="site_a"):
        target_style("site_c")


def test_prevalences_and_labels():
    rng = np.random.default_rng(0)
    cases = [sample_findings(rng) for _ in range(4000)]
    for kind, (prevalence, classes) in KINDS.items():
        values = np.array([getattr(case, kind) for case in cases])
        # Complex studies are drawn anew, which takes a little from every prevalence.
        assert prevalence - 0.06 < (values > 0).mean() < prevalence + 0.02, kind
        assert set(values) == set(range(classes + 1)), kind
    assert max(case.count for case in cases) == MOST_FINDINGS
    assert set().union(*(case.labels() for case in cases)) == set(LABELS)
    targets = class_targets(cases[0])
    assert targets.tolist() == [getattr(cases[0], kind) for kind in KINDS]


def test_follow_up_keeps_most_findings():
    rng = np.random.default_rng(0)
    pairs = [(first, follow_up(first, rng)) for first in (sample_findings(rng) for _ in range(500))]
    same = np.mean([[getattr(a, kind) == getattr(b, kind) for kind in KINDS] for a, b in pairs])
    assert 0.7 < same < 0.95
    assert max(later.count for _, later in pairs) <= MOST_FINDINGS


def test_class_out_of_range_is_refused():
    with pytest.raises(ValueError, match="edema"):
        Findings(edema=3)


def test_chexpert_labels():
    assert to_chexpert(Findings())["No Finding"] == 1.0
    assert to_chexpert(Findings(tube=1))["No Finding"] == 1.0
    labels = to_chexpert(Findings(right_effusion=2, nodule=1, line=1))
    assert tuple(labels) == OBSERVATIONS == studies.LABELS
    assert labels["Pleural Effusion"] == labels["Lung Lesion"] == labels["Support Devices"] == 1.0
    assert labels["Pneumothorax"] == 0.0
    assert labels["Fracture"] is labels["No Finding"] is None


def test_verbose_sites_run_on_the_more_there_is_to_say():
    rng = np.random.default_rng(0)
    style = next(s for s in (sample_style(rng) for _ in range(100)) if s.verbose)
    complex_case = Findings(1, 1, 1, 1, 1, 1)
    few = np.mean([runs_on(Findings(), style, rng) for _ in range(300)])
    many = np.mean([runs_on(complex_case, style, rng) for _ in range(300)])
    assert few < 0.3
    assert many == 1.0
    assert not any(runs_on(complex_case, target_style(site), rng) for site in SITES)


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, (_, n) in KINDS.items() for value in (1, n)])
def test_findings_can_be_seen_but_not_in_one_pixel(kind, value):
    """The same anatomy and noise with and without a finding: the mean difference is local and of modest height."""
    differences = [
        draw_phantom(Findings(**{kind: value}), np.random.default_rng(seed)).astype(float)
        - draw_phantom(Findings(), np.random.default_rng(seed))
        for seed in range(30)
    ]
    change = np.abs(np.mean(differences, axis=0))
    assert change.max() > 4, "cannot be seen"
    assert change.max() < 8 * NOISE * 255, "trivial"
    assert (change > 0.5 * change.max()).mean() < 0.35, "not local"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (Findings(left_effusion=3), Findings(right_effusion=3)),
        (Findings(consolidation=8), Findings(consolidation=4)),
        (Findings(pneumothorax=4), Findings(pneumothorax=2)),
        (Findings(nodule=3), Findings(nodule=1)),
        (Findings(atelectasis=2), Findings(atelectasis=1)),
    ],
)
def test_patient_left_is_image_right(left, right):
    for findings, half in ((left, slice(24, 48)), (right, slice(0, 24))):
        assert all(label.startswith("left" if findings is left else "right") for label in findings.labels())
        change = np.abs(
            draw_phantom(findings, np.random.default_rng(1)).astype(float)
            - draw_phantom(Findings(), np.random.default_rng(1))
        )
        assert change[:, half].sum() > 0.9 * change.sum()


def test_images_on_disk_are_gray_and_larger_than_what_is_seen():
    image = draw_image(Findings(), np.random.default_rng(0))
    assert (image.mode, image.size) == ("L", (96, 96))
    assert blank_image().getextrema() == (128, 128)


def test_the_world_needs_no_torch():
    code = (
        "import sys, dive.data.synthetic.language, dive.data.synthetic.phantom; "
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
