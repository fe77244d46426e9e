"""What docs/ claims to be tested is tested, and what it names exists."""

import re

import yaml

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
