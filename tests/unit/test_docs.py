"""What docs/ claims to be tested is tested, and what it names exists."""

import re

import pytest
import yaml

from dive.reporting.readme import fill, rule_graph, verdicts
from tests.project import ROOT

METHODS = (ROOT / "docs/methods.md").read_text(encoding="utf-8")


def test_every_defect_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (\d+)\. .*?\| (.*) \|$", METHODS, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 11))
    for _, cell in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cell)
        assert named
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests/unit" / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_named_method_and_module_exists() -> None:
    entries = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["methods"]
    assert set(re.findall(r"`(dive\w*)`", METHODS)) <= set(entries)
    for names, module in re.findall(r"^\| (`[^|]+`) \| `(\w+\.py)` \|", METHODS, flags=re.MULTILINE):
        assert (ROOT / "workflow/dive/steering" / module).is_file()
        assert set(re.findall(r"`(\w+)`", names)) <= set(entries)


def test_the_rule_graph_shows_of_the_final_target_only_what_nothing_else_follows() -> None:
    edges = ["id1 --> id0", "id2 --> id0", "id2 --> id1"]
    lines = [
        "---",
        "title: DAG",
        "---",
        "flowchart TB",
        "\tid0[all]",
        "\tid1[report]",
        "\tid2[small]",
        "\tstyle id0 fill:red",
    ]
    graph = rule_graph("\n".join([*lines, *(f"\t{edge}" for edge in edges)]))
    assert graph.splitlines()[2:-1] == ["\tid0[all]", "\tid1[report]", "\tid2[small]", "\tid1 --> id0", "\tid2 --> id1"]


def test_documents_are_filled_between_markers() -> None:
    text = "a\n<!-- table -->\nold\n<!-- /table -->\nb\n<!-- costs -->\nkept\n<!-- /costs -->\n"
    filled = fill(text, {"table": "new \\1\n", "rules": "unused"})
    assert filled == "a\n<!-- table -->\nnew \\1\n<!-- /table -->\nb\n<!-- costs -->\nkept\n<!-- /costs -->\n"
    assert fill(filled, {"table": "new \\1"}) == filled
    with pytest.raises(ValueError, match="pairs"):
        fill("<!-- table -->\n", {"table": ""})


def test_every_marker_is_a_block_of_a_run() -> None:
    grids = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["grids"]
    known = {"rules", "table", "figure", "verdicts", "claims", "acceptance", "costs"}
    known |= {name for grid in grids for name in (grid, f"{grid}_verdicts")}
    for document in ("README.md", "docs/results.md"):
        assert set(re.findall(r"<!-- (\w+) -->", (ROOT / document).read_text(encoding="utf-8"))) <= known


def test_verdicts_are_the_claims_without_their_settings(tmp_path) -> None:
    rows = [
        "| claim | nearest | verdict |",
        "|---|---|---|",
        "| best BLEU-4 | | holds in 1 of 1 setting |",
        "| - here | LIVE | holds |",
    ]
    better = [
        "Ablations that score above our method:",
        "",
        "- On BLEU-4, the uniform-weights ablation scores above DIVE in 2 of 4 settings: One, Two (+1.0), One, Three",
        "  (+2.0).",
    ]
    claims = "\n".join(["# Claims", "", *rows, "", *better, "", "Text.", ""])
    (tmp_path / "claims.md").write_text(claims)
    above = "- On BLEU-4, the uniform-weights ablation scores above DIVE in 2 of 4 settings"
    assert verdicts(tmp_path / "claims.md").strip().splitlines() == ["- best BLEU-4: holds in 1 of 1 setting", above]
    (tmp_path / "claims.md").write_text(claims.replace("| holds in 1 of 1 setting |", "| not measured |"))
    assert verdicts(tmp_path / "claims.md").strip() == above
