"""The whole workflow on a configuration that learns nothing but goes through every stage."""

import csv
import json
import shutil

import pytest

from dive.reporting.latex import compile_tables
from tests.project import ROOT, Project


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """The project after a complete run, and what it printed."""
    project = Project(tmp_path_factory.mktemp("end_to_end") / "dive")
    overlay = (ROOT / "tests/end_to_end/config.yaml").read_text(encoding="utf-8")
    (project.folder / "small.yaml").write_text(overlay, encoding="utf-8")
    printed = project.snakemake("--cores", "2", "--configfile", "small.yaml", timeout=580)
    return project, printed


def test_it_ends_with_table_claims_acceptance_and_places(run: tuple[Project, str]) -> None:
    _, printed = run
    end = printed[printed.index("\nMIMIC-CXR (synthetic), Gemma 3 (tiny) (n = 8)") :]
    assert "of 24 criteria, measured in 3 settings" in end[end.index("# Claims of the abstract") :]
    assert "results/tables/main.tex" in end
    # Without the weights of RadGraph a claim about it is not measured, whatever its proxy says.
    claims = end[end.index("# Claims of the abstract in this run") :]
    line = next(line for line in claims.splitlines() if line.startswith("| best RadGraph F1 "))
    assert line.rstrip("| ").endswith("not measured")
    assert "results/costs/rules.md" in end


def test_then_there_is_nothing_to_do(run: tuple[Project, str]) -> None:
    project, _ = run
    assert project.planned("--configfile", "small.yaml") == {}


def test_the_table_has_every_row_and_no_invented_number(run: tuple[Project, str]) -> None:
    project, _ = run
    with (project.folder / "results/tables/main.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    methods = ["constant", "zero_shot", "icl", "live", "dive"]
    # The adapter of the second dataset is also tried on the first.
    assert [row["method"] for row in rows] == [*methods, "dive@synthetic-chexpert-plus", *methods]
    assert rows[5]["title"] == "DIVE from CheXpert Plus (synthetic)"
    for row in rows:
        assert row["bleu4"]
        # Their weights are not there: empty, never zero.
        assert row["radgraph_f1"] == row["chexbert_f1"] == ""
    assert r"\toprule" in (project.folder / "results/tables/main.tex").read_text(encoding="utf-8")


def test_the_comparisons_give_their_tables(run: tuple[Project, str]) -> None:
    """The grids of this configuration lack a 2x2, and one lacks a published method and ours: no empty tables."""
    project, _ = run
    tables = project.folder / "results/tables"
    assert {path.name for path in tables.glob("*.tex")} == {
        *("main.tex", "other.tex", "main-claims.tex", "other-claims.tex"),
        *("main-termination.tex", "other-termination.tex"),
        "main-significance.tex",
    }
    with (tables / "main.csv").open(encoding="utf-8", newline="") as file:
        assert all(float(row["bleu4_low"]) <= float(row["bleu4_high"]) for row in csv.DictReader(file))
    comparison = json.loads(
        (project.folder / "results/comparisons/main/synthetic-mimic-cxr/tiny-gemma3.json").read_text()
    )
    others = {"constant", "zero_shot", "icl", "live", "dive@synthetic-chexpert-plus"}
    assert {row["against"] for row in comparison["comparisons"]} == others


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_a_real_latex_accepts_the_tables(run: tuple[Project, str]) -> None:
    project, _ = run
    compile_tables(str(project.folder / "results/tables"), str(project.folder / "tables.pdf"))


def test_the_costs_name_every_rule(run: tuple[Project, str]) -> None:
    project, _ = run
    with (project.folder / "results/costs/rules.csv").open(encoding="utf-8", newline="") as file:
        measured = {row["rule"] for row in csv.DictReader(file)}
    rules = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    # No method of this configuration reads the teacher's layers, and no system from outside is in it.
    assert rules - measured == {"summarise_costs", "cache_layers", "import_reports"}


def test_decisive_tokens_are_compared_and_shown(run: tuple[Project, str]) -> None:
    project, _ = run
    with (project.folder / "results/tables/sparsity/synthetic-mimic-cxr.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        rows = list(csv.DictReader(file))
    assert {row["backbone"] for row in rows} == {"Gemma 3 (tiny)", "Qwen 2.5-VL (tiny)"}
    assert {row["row"] for row in rows} >= {"vocabulary", "idf", "random", "term", "power_law"}
    page = (project.folder / "results/report/main/index.html").read_text(encoding="utf-8")
    assert rows[0]["verdict"][:40] in page
    assert 'href="../tokens/synthetic-mimic-cxr.html"' in page
    assert (project.folder / "results/report/tokens/synthetic-mimic-cxr.html").is_file()


def test_results_name_no_machine_and_no_user(run: tuple[Project, str]) -> None:
    """Records, tables and pages are the same wherever they are made."""
    project, _ = run
    place = str(project.folder)
    texts = [
        path
        for path in (project.folder / "results").rglob("*")
        if path.suffix in (".json", ".csv", ".tex", ".md", ".html", ".svg") and "costs" not in path.parts
    ]
    assert texts
    for path in texts:
        assert place not in path.read_text(encoding="utf-8"), path


def test_every_job_notes_its_packages(run: tuple[Project, str]) -> None:
    """A file for each cost that was measured; the run after it has nothing to say of them."""
    project, _ = run
    jobs = {
        path.relative_to(project.folder / "benchmarks").with_suffix("")
        for path in project.folder.glob("benchmarks/**/*.tsv")
    }
    notes = list((project.folder / "results/software").rglob("*.json"))
    assert {path.relative_to(project.folder / "results/software").with_suffix("") for path in notes} == jobs
    assert {"python", "numpy", "torch", "transformers"} <= set(json.loads(notes[0].read_text(encoding="utf-8")))


def test_training_again_gives_the_same_bytes(run: tuple[Project, str]) -> None:
    """The adapter and its course on validation; training.csv also holds seconds, which never repeat.

    The run had a warm process; this job is its run's first and imports its libraries itself.
    """
    project, _ = run
    adapter = project.folder / "results/adapters/synthetic-mimic-cxr/tiny-gemma3/dive/seed0"
    files = [adapter / name for name in ("adapter.safetensors", "config.json", "validation.csv")]
    before = [file.read_bytes() for file in files]
    target = str(adapter.relative_to(project.folder))
    project.snakemake("--cores", "2", "--configfile", "small.yaml", "--no-hooks", "--force", target)
    assert [file.read_bytes() for file in files] == before


def test_an_adapter_of_synthetic_data_may_be_published(run: tuple[Project, str]) -> None:
    project, _ = run
    configs = list((project.folder / "results/adapters").glob("*/*/*/seed0/config.json"))
    assert configs
    for config in configs:
        data = json.loads(config.read_text(encoding="utf-8"))["data"]
        assert (data["dataset"], data["credentialed"]) == (config.parents[3].name, False)


def test_the_acceptance_is_honest(run: tuple[Project, str]) -> None:
    """Untrained backbones meet no criterion, and the run says so rather than failing or bending one."""
    project, _ = run
    verdict = json.loads((project.folder / "results/world/acceptance.json").read_text(encoding="utf-8"))
    assert verdict["criteria"] == 3 * 8
    assert verdict["met"] < verdict["criteria"]


def test_dvc_records_a_run_sees_edits_of_all_code_and_brings_back_what_was_deleted(run: tuple[Project, str]) -> None:
    project, _ = run

    def dvc(*command: str) -> str:
        done = project.run("dvc", *command)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    project.edit("dvc.yaml", "  - snakemake: snakemake", "  - snakemake: snakemake --configfile small.yaml")
    assert project.run("git", "init", "-q").returncode == 0
    dvc("init", "-q")
    dvc("commit", "-q", "-f")
    assert json.loads(dvc("status", "--json")) == {}
    table = project.folder / "results/tables/main.csv"
    numbers = table.read_bytes()
    project.remove("results/tables/main.csv")
    dvc("repro", "-q")
    assert table.read_bytes() == numbers
    assert json.loads(dvc("status", "--json")) == {}
    for file in ("scripts/plot.py", "rules/report.smk", "workflow/dive/resources/templates/report.html.j2"):
        with (project.folder / file).open("a") as opened:
            opened.write("\n")
    changed = json.loads(dvc("status", "--json"))
    assert len(changed) == 16
    for stage, found in changed.items():
        assert found == [{"changed deps": dict.fromkeys(("rules", "scripts", "workflow"), "modified")}], stage
