"""The flow as it is written: lint, format, names, and what a dry run lists."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.project import ROOT, Project

RULES = sorted(ROOT.glob("rules/*.smk"))
SCRIPTS = sorted(ROOT.glob("scripts/*.py"))
NAMES = [name for path in RULES for name in re.findall(r"^rule (\w+):", path.read_text(), flags=re.MULTILINE)]


def test_lint_has_nothing_to_say_but_conda(fresh: Project) -> None:
    printed = fresh.run("snakemake", "--lint").stdout
    titles = re.findall(r"^    \* (.*):$", printed, flags=re.MULTILINE)
    assert set(titles) <= {"Specify a conda environment or container for each rule."}, printed


def test_every_rule_has_its_script_and_every_script_its_rule() -> None:
    assert sorted(NAMES) == [path.stem for path in SCRIPTS]
    for path in RULES:
        for name, script in re.findall(
            r'^rule (\w+):.*?script:\s+"\.\./scripts/(\w+)\.py"', path.read_text(), flags=re.MULTILINE | re.DOTALL
        ):
            assert name == script


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_says_what_it_needs(name: str) -> None:
    text = next(text for path in RULES if f"rule {name}:\n" in (text := path.read_text()))
    rule = re.search(rf"^rule {name}:\n((?:    .*\n|\n)*)", text, flags=re.MULTILINE).group(1)
    for directive in ("log", "params", "threads", "resources", "message", "script"):
        assert re.search(rf"^    {directive}:", rule, flags=re.MULTILINE), f"{name} has no {directive}"
    assert f'"scripts/{name}.py"' in rule, f"{name} has no code version of its own script"
    assert not re.search(r"^    run:", rule, flags=re.MULTILINE)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin(path: Path) -> None:
    """Fewer than 60 lines and one call into the package; the configuration's model is never imported."""
    text = path.read_text()
    assert len(text.splitlines()) < 60
    modules = [node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [module for module in modules if module.startswith("dive.")]
    assert len(ours) == 2
    assert "dive.job" in ours
    assert "dive.config" not in text
    assert "dive.settings" not in text


def test_the_top_level_holds_what_the_design_lists() -> None:
    listed = {
        ".ci", ".dvc", ".dvcignore", ".gitignore", "CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "README.md",
        "Snakefile", "config", "config.yaml", "dvc.yaml", "profiles", "pyproject.toml", "requirements.lock", "rules",
        "scripts", "tests", "workflow",
    }  # fmt: skip
    assert listed <= {path.name for path in ROOT.iterdir()}
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 45


def test_a_dry_run_of_the_default_lists_every_stage(fresh: Project) -> None:
    planned = fresh.planned()
    datasets, backbones, seeds = 2, 2, 3
    pairs = datasets * backbones
    # 5 methods are trained; these and in-context learning have 3 seeds, zero-shot and blank image one.
    assert planned == {
        "synthesize": datasets,
        "build_backbone": backbones,
        "split": datasets,
        "annotate": datasets * 2,  # the vocabulary, and idf to compare with; random tokens have no file
        "select": datasets,
        "demonstrate": datasets * seeds,
        "cache_vision": pairs,
        "cache_teacher": pairs * seeds,
        "cache_layers": pairs * seeds,  # MimIC aligns them
        "distill": pairs * 5 * seeds,
        "generate": pairs * (6 * seeds + 2),
        "repeat_report": datasets,
        "score": pairs * 9,
        "analyse": pairs,
        "compare_annotators": datasets,
        "view_tokens": datasets,
        "compare": pairs,
        "tabulate_comparison": 2,  # termination and significance: the 2x2 and the mechanisms are of the ablations
        "claim": 1,
        "probe_world": pairs,
        "accept_world": 1,
        "compare_lexicon": 1,
        "tabulate": 1,
        "plot": 1,
        "report": 1,
        "index_reports": 1,
        "summarise_costs": 1,
    }


def test_a_method_is_a_module_and_an_entry(fresh: Project) -> None:
    """docs/adding-a-method.md: nothing else has to know of it."""
    steering = fresh.folder / "workflow/dive/steering"
    (steering / "mine.py").write_text((steering / "live.py").read_text(encoding="utf-8"), encoding="utf-8")
    fresh.edit(
        "config.yaml", "methods:\n  constant:", "methods:\n  my_own:\n    like: live\n    module: mine\n  constant:"
    )
    planned = fresh.planned("results/scores/synthetic-mimic-cxr/tiny-gemma3/my_own/summary.json")
    assert planned["distill"] == planned["generate"] == 3
    assert planned["score"] == 1


def test_a_transfer_takes_the_other_dataset_s_adapter_and_trains_nothing(fresh: Project) -> None:
    fresh.change("seeds", "[0]")
    transfer = fresh.planned("--config", 'experiments=["transfer"]')
    # LIVE and DIVE on each of two datasets and two backbones; zero-shot, ICL, and of each method both adapters.
    assert transfer["distill"] == 2 * 4
    assert transfer["generate"] == transfer["score"] == 6 * 4
    reports = "results/generations/synthetic-mimic-cxr/tiny-gemma3/dive@synthetic-chexpert-plus/seed0.parquet"
    planned = fresh.planned(reports)
    assert planned["distill"] == planned["generate"] == 1
    other = "results/adapters/synthetic-mimic-cxr/tiny-gemma3/dive@synthetic-chexpert-plus/seed0"
    assert fresh.run("snakemake", "--dry-run", other).returncode != 0


def test_without_a_teacher_no_teacher_is_cached(fresh: Project) -> None:
    fresh.edit("config.yaml", "      - live\n      - mimic\n", "")
    fresh.edit("config.yaml", "      - lora_small\n      - dive\n", "      - lora_small\n      - dive_no_teacher\n")
    planned = fresh.planned()
    assert planned["distill"] == 3 * 4 * 3  # LoReFT, LoRA and DIVE without its teacher
    assert "cache_teacher" not in planned


def test_every_grid_has_its_own_table_claims_and_page(fresh: Project) -> None:
    """And shares what is not of a grid: no file of one run is that of another grid's."""
    fresh.change("seeds", "[0]")
    both = fresh.planned("--config", 'experiments=["main","transfer"]')
    assert both["claim"] == both["report"] == both["tabulate"] == both["plot"] == 2
    assert both["index_reports"] == 1
    alone = {name: fresh.planned_files("--config", f'experiments=["{name}"]') for name in ("main", "transfer")}
    of_grids = {name: {path for path in files if f"/{name}" in path} for name, files in alone.items()}
    for name, files in of_grids.items():
        assert {f"results/tables/{name}-claims.md", f"results/report/{name}/index.html"} <= files
    gathered = ("results/tables/", "results/figures/", "results/report/")
    shared = {path for path in alone["main"] & alone["transfer"] if path.startswith(gathered)}
    assert all("/sparsity/" in path or "/tokens/" in path or path == "results/report/index.html" for path in shared)


def test_a_dry_run_starts_fast(fresh: Project) -> None:
    """What it computes before the first job, not what other processes leave it: CPU seconds."""
    done = fresh.run("bash", "-c", "time snakemake --dry-run --quiet")
    minutes, seconds = re.search(r"user\s+(\d+)m([\d.]+)s", done.stdout).groups()
    assert 60 * int(minutes) + float(seconds) < 10


def test_the_default_profile_ignores_modification_times_of_scripts() -> None:
    profile = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert "code" not in profile["rerun-triggers"]
    assert {"mtime", "params", "input"} <= set(profile["rerun-triggers"])
