"""The benchmark runs: what it measures is what the rules run today."""

import re

from tests.benchmarks.data import STAGES, main


def test_every_stage_is_measured(tmp_path, capsys):
    out = tmp_path / "table.md"
    out.write_text("before\n<!-- data -->\n<!-- /data -->\nafter\n")
    (tmp_path / "trees").mkdir()
    main(["--shares", "0.003", "--layouts", "chexpert_plus", "--folder", str(tmp_path / "trees"), "--out", str(out)])
    written = out.read_text()
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    rows = [line.strip("| ").split(" | ") for line in written.splitlines() if line.startswith("| chexpert_plus")]
    assert [row[1] for row in rows] == list(STAGES)
    for *_, cell in rows:
        cpu, wall, peak = map(float, re.fullmatch(r"([\d.]+) \(([\d.]+)\), ([\d.]+) GiB", cell).groups())
        assert cpu > 0
        assert wall > 0
        assert 0.01 < peak < 4
    assert written.splitlines()[2] in capsys.readouterr().out
    assert list((tmp_path / "trees").iterdir()) == []
