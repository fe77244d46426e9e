"""docs/adding-a-method.md shows what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_diff_of_a_method_is_that_of_the_files():
    """Every added line stands, in this order and without a gap, in the file that the diff names."""
    page = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")
    diffs = re.findall(r"```diff\n--- \S+\n\+\+\+ b/(\S+)\n(.*?)```", page, flags=re.DOTALL)
    assert [path for path, _ in diffs] == [
        "workflow/dive/steering/reft.py", "config.yaml", "tests/unit/test_reft.py"
    ]  # fmt: skip
    for path, lines in diffs:
        added = "\n".join(line.removeprefix("+") for line in lines.splitlines())
        assert added in (ROOT / path).read_text(encoding="utf-8"), f"docs/adding-a-method.md shows another {path}"


def test_the_page_names_files_that_exist():
    for page in (ROOT / "docs").glob("*.md"):
        for path in re.findall(r"`((?:workflow|tests|docs|rules|scripts)/[\w./-]+\.\w+)`", page.read_text()):
            assert (ROOT / path).is_file(), f"{page.name} names {path}"
