"""The benchmarks run, compare what they say they compare, and know the published shapes; times are not tested."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks import engine, gpu, tables
from tests.benchmarks.loops import Epoch, agreeing
from tests.benchmarks.models import (
    LINGSHU_7B,
    MEDGEMMA_4B,
    SMALL,
    WORLD,
    build_model,
    draw_study,
    random_backbone,
    shrunk,
)

BILLIONS = {MEDGEMMA_4B: 4.300, LINGSHU_7B: 8.292}  # what the hub's model cards count


@pytest.mark.parametrize("shape", [MEDGEMMA_4B, LINGSHU_7B, SMALL, WORLD, shrunk(LINGSHU_7B)], ids=lambda s: s.family)
def test_a_model_has_the_parameters_that_its_shape_counts(shape):
    with torch.device("meta"):
        model = build_model(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
    if shape in BILLIONS:
        assert shape.parameters / 1e9 == pytest.approx(BILLIONS[shape], abs=1e-3)
    layers = model.model.language_model.layers
    matrices = sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2)
    assert matrices == shape.layers * shape.layer_weights


@pytest.mark.parametrize("published", [MEDGEMMA_4B, LINGSHU_7B], ids=lambda s: s.family)
def test_operations_of_a_step_are_those_of_its_matrix_products(published):
    """Counted by torch's profiler, which does not see into attention: that part is taken off, and the adapter's."""
    shape, tokens = shrunk(published), 4 * 9
    with engine.ready(shape, 4, 8, Path()) as step, torch.profiler.profile(with_flops=True) as profile:
        step()
    products = sum(event.flops for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm"))
    rank = 16
    adapter = (6 * shape.layers - 1) * 2 * tokens * rank * shape.width  # U and D, of the first layer not D's input
    assert gpu.operations(shape, [9] * 4, 100) - gpu.operations(shape, [9] * 4, 0) == (
        4 * (2 * shape.layers - 1) * shape.heads * shape.head_dim * tokens * 100
    )
    within = 4 * (2 * shape.layers - 1) * shape.heads * shape.head_dim * 4 * 45
    assert gpu.operations(shape, [9] * 4, 0) - within == products - adapter


def test_reports_have_the_length_asked_for():
    backbone = random_backbone(shrunk(MEDGEMMA_4B))
    study = draw_study(shrunk(MEDGEMMA_4B), 3, 20, 2, spread=0)
    for prompt, uid in zip(study.render(backbone, 2), study.queries, strict=True):
        assert prompt.n_labels == 21
        assert prompt.images == (*study.drawn[uid], uid)


@pytest.mark.parametrize("section", ["training", "decoding", "growth"])
def test_a_section_gives_its_rows_and_asserts_equality(section):
    rows = list(engine.SECTIONS[section](True))
    assert all(row.ratio is not None and row.measure and row.backbone for row in rows)
    lines = tables.table(rows).splitlines()
    assert {line.count(" | ") for line in lines if "---" not in line} == {len(tables.HEADER) - 2}  # no memory
    if section == "training":
        assert {row.setting for row in rows} >= {
            f"K = {k}, prompt prefixes {way}" for k in (1, 2) for way in ("kept", "recomputed")
        }
        assert sum("peers" in row.measure for row in rows) == 2
        assert all(row.checked.startswith("losses of 2 steps, to") for row in rows)


def test_training_in_a_process_of_its_own_is_measured():
    anonymous, resident = engine.memory(True)
    assert 0.5 < anonymous.ratio < 2
    assert float(resident.engine.split()[0].replace(",", "")) > float(anonymous.engine.split()[0].replace(",", ""))


def test_other_losses_or_an_idle_teacher_do_not_pass():
    epoch = Epoch(1.0, 0.0, [2.0, 1.0], [0.5, 0.5])
    assert agreeing([epoch, epoch._replace(losses=[2.0, 1.00005])]) == "losses of 2 steps, to 5e-05"
    with pytest.raises(AssertionError, match="losses differ"):
        agreeing([epoch, epoch._replace(losses=[2.0, 1.001])])
    with pytest.raises(AssertionError, match="alike"):
        agreeing([epoch._replace(divergences=[0.5, 0.0])])


def test_the_gpu_command_needs_torch_and_transformers_alone(tmp_path):
    """Neither other packages nor git; sections and backbones by name; the file is written as rows come."""
    absent = ("snakemake", "pandas", "pyarrow", "pydantic", "matplotlib", "scipy", "sklearn", "rouge_score")
    code = f"""
import os, sys
sys.modules.update(dict.fromkeys({absent}))
os.environ["PATH"] = ""
from tests.benchmarks.gpu import main
wanted = ["--sections", "training", "caches", "decoding", "--batch", "2", "--out", {str(tmp_path / "b.md")!r}]
main(["lingshu-7b", *wanted])
"""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "workflow"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / "b.md").read_text()
    assert "<!-- gpu lingshu-7b -->" in text
    assert "commit unknown" in text
    assert "failed" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "lingshu" in line]
    assert rows == [line for line in done.stdout.splitlines() if line.startswith("| ") and "lingshu" in line]
    assert len(rows) == 6 + 6 + 2 * 3


def test_what_fails_becomes_a_row_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    def out_of_memory(bench, repetitions):
        yield bench.row("one that was measured", "", "", "", None, "", "")
        raise torch.OutOfMemoryError("no room | for\nlogits")

    monkeypatch.setattr(gpu.Bench, "training", out_of_memory)
    gpu.main(["medgemma-4b", "--sections", "training", "loss", "--batch", "2", "--out", str(tmp_path / "b.md")])
    lines = [line for line in (tmp_path / "b.md").read_text().splitlines() if "medgemma-4b, shrunken" in line]
    assert [line.split("|")[1].strip() for line in lines] == [
        "one that was measured", "training: failed", "head, loss and gradient: separate operations / the kernel",
    ]  # fmt: skip
    assert "OutOfMemoryError: no room / for logits" in lines[1]
    with pytest.raises(SystemExit):
        gpu.main(["medgemma-4b", "--sections", "sleeping"])
    assert "there is no section sleeping" in capsys.readouterr().err


def test_a_run_of_the_stages_is_measured_job_by_job(capsys):
    gpu.main(["lingshu-7b", "--sections", "stages", "--batch", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| job ")]
    assert [row.split()[2] for row in rows] == ["cache_vision", "cache_teacher", "distill", "generate"]


def test_a_table_is_put_between_its_markers(tmp_path):
    path = tmp_path / "B.md"
    path.write_text("# A\n<!-- engine -->\nold\n<!-- /engine -->\nend\n")
    row = tables.Row("m", "b", "s", "1 ms", "2 ms", 2.0, "", "")
    tables.put(str(path), "engine", tables.table([row]))
    text = path.read_text()
    assert "old" not in text
    assert "| m | b | s | 1 ms | 2 ms | 2 |  |  |\n<!-- /engine -->\nend" in text
