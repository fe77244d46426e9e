"""The benchmark runs: what it measures is what the rules run today."""

from tests.benchmarks.data import STAGES, main


def test_every_stage_is_measured(tmp_path, capsys):
    main(["--shares", "0.003", "--layouts", "chexpert_plus", "--folder", str(tmp_path)])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2] for row in rows] == ["(writing the tree)", *STAGES]
    assert all(float(row[3]) > 0 and float(row[5]) < 4 for row in rows[1:])
    assert list(tmp_path.iterdir()) == []
