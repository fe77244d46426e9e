"""What is wrong with settings or data is said at once and before any job."""

import gzip
import json
import re

import pyarrow.parquet as pq
import pytest
import yaml

from tests.project import ROOT, Project
from tests.unit.tiny_scorers import write_encoder, write_radgraph

MIMIC_TABLES = ("metadata", "split", "chexpert", "negbio")


def test_all_errors_are_told_at_once_without_a_traceback(fresh: Project) -> None:
    fresh.edit("config.yaml", "rank: 16                # r of U", "rank: -1 # r of U")
    fresh.edit("config.yaml", "      - lora_small\n", "      - lora_smal\n")
    fresh.edit("config.yaml", "section: findings ", "sectoin: findings ")
    done = fresh.run("snakemake", "--dry-run")
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    for line in (
        "methods.dive.rank: must be greater than or equal to 0, not -1",
        "grids.main.methods.7: 'lora_smal' is not among methods; did you mean lora_small?",
        "datasets.synthetic-mimic-cxr.selection.sectoin: unknown key; did you mean section?",
        "datasets.synthetic-mimic-cxr.selection.section: is missing",
    ):
        assert line in done.stdout
    assert not (fresh.folder / "logs").exists()


def test_another_system_s_file_is_a_row_and_absent_weights_are_told(fresh: Project) -> None:
    fresh.edit("config.yaml", "      - lora_small\n", "      - lora_small\n      - other\n")
    files = "{synthetic-mimic-cxr: reports/mimic.csv}"
    other = f"methods:\n  other: {{kind: external, title: Other, group: published, files: {files}}}\n"
    fresh.edit("config.yaml", "\nmethods:\n", f"\n{other}")
    message = "methods.other.files.synthetic-chexpert-plus: is missing: grid main has this method on that dataset"
    assert message in fresh.run("snakemake", "--dry-run").stdout
    fresh.edit("config.yaml", files, "{synthetic-mimic-cxr: mimic.csv, synthetic-chexpert-plus: chexpert.jsonl}")
    for name in ("mimic.csv", "chexpert.jsonl"):
        (fresh.folder / name).touch()
    planned = fresh.planned()
    assert planned["import_reports"] == 2  # one a dataset: no backbone is read
    assert planned["score"] == 2 * 2 * 10
    fresh.edit(
        "config.yaml", "    path: null              # chexbert.pth", "    path: weights.pth       # chexbert.pth"
    )
    told = fresh.run("snakemake", "--dry-run").stdout
    assert "scores.chexbert.path: no weights at weights.pth; `dive fetch-assets`" in told
    (fresh.folder / "weights.pth").touch()
    planned = fresh.planned()
    assert planned["import_reports"] == 2  # one a dataset: no backbone is read
    assert planned["score"] == 2 * 2 * 10


def test_radgraph_annotates_from_published_graphs_or_by_its_weights(fresh: Project) -> None:
    pytest.importorskip("radgraph", reason='the package comes with "dive[metrics]"')
    few = {"synthetic": {"patients": {"train": 12, "validate": 6, "test": 6}}}
    radgraph = {"max_missing": 1, "annotations": {"synthetic-mimic-cxr": "graphs.json"}, "path": "weights"}
    changes = {
        "datasets": {"synthetic-mimic-cxr": few, "synthetic-chexpert-plus": few},
        "annotation": {"radgraph": radgraph},
        "analysis": {"annotators": ["radgraph"]},
    }
    targets = [
        f"results/annotations/synthetic-{name}/radgraph/spans.parquet" for name in ("mimic-cxr", "chexpert-plus")
    ]

    (fresh.folder / "changes.yaml").write_text(yaml.safe_dump(changes))

    def told(*options: str) -> str:
        command = ("snakemake", "--cores", "1", "--no-hooks", "--configfile", "changes.yaml", *options, "--", *targets)
        return fresh.run(*command).stdout

    printed = told("--dry-run")
    assert "annotation.radgraph.annotations.synthetic-mimic-cxr: no file graphs.json" in printed
    assert "annotation.radgraph.path: no weights at weights/radgraph-xl/weights.th; `dive fetch-assets`" in printed
    assert not (fresh.folder / "logs").exists()

    (fresh.folder / "graphs.json").write_text(json.dumps([{"0": {"text": "of another report", "entities": {}}}]))
    write_radgraph(fresh.folder / "weights", write_encoder(fresh.folder / "bert"), "radgraph-xl", seed=5)
    printed = told()
    published, inferred = (pq.read_table(fresh.folder / target).to_pydict() for target in targets)
    assert published["text"] == [], printed
    assert set(inferred["source"]) == {"radgraph"}
    assert len(set(inferred["study_uid"])) > 5
    assert "RadGraph: archive radgraph-xl" in printed
    # Each depends on its own file alone.
    write_radgraph(fresh.folder / "others", fresh.folder / "bert", "radgraph-xl")
    (fresh.folder / "others/radgraph-xl/weights.th").replace(fresh.folder / "weights/radgraph-xl/weights.th")
    printed = told("--dry-run")
    assert "synthetic-chexpert-plus: annotating decisive spans by radgraph" in printed
    assert printed.count("annotating decisive spans") == 1, printed


def test_scispacy_needs_its_folders_before_any_job(fresh: Project) -> None:
    fresh.edit("config.yaml", "annotators: [vocabulary, idf, random]", "annotators: [union]")
    fresh.edit("config.yaml", "union: [vocabulary, idf]", "union: [vocabulary, scispacy]")
    fresh.edit(
        "config.yaml", "path: null              # folder of the pipeline", "path: models/ner # folder of the pipeline"
    )
    fresh.edit("config.yaml", "types: [] ", "types: [T047] ")
    fresh.edit("config.yaml", "linker: null ", "linker: models/umls ")
    told = fresh.run("snakemake", "--dry-run").stdout
    assert "annotation.scispacy: no file models/ner/config.cfg" in told
    assert "annotation.scispacy: no file models/umls/nmslib_index.bin" in told
    for file in ("models/ner/config.cfg", "models/umls/nmslib_index.bin"):
        (fresh.folder / file).parent.mkdir(parents=True)
        (fresh.folder / file).touch()
    assert fresh.planned()["annotate"] == 2 * 2


def test_absent_data_are_one_message(fresh: Project) -> None:
    done = fresh.run("snakemake", "--dry-run", "--configfile", "config/paper.yaml")
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    for words in (
        "datasets.mimic-cxr: no mimic_cxr data at data/mimic-cxr",
        "physionet.org",
        "datasets.chexpert-plus: no chexpert_plus data at data/chexpert-plus",
        "aimi.stanford.edu",
    ):
        assert done.stdout.count(words) == 1 or words == "physionet.org", done.stdout


def test_the_paper_s_plan_stands_on_a_stub_tree(fresh: Project) -> None:
    """Files with the right names and nothing in them: enough to plan, as no job reads them then."""
    mimic, chexpert = fresh.folder / "data/mimic-cxr", fresh.folder / "data/chexpert-plus"
    reports = mimic / "files/p10/p10000032"
    (reports / "s50414267").mkdir(parents=True)
    (reports / "s50414267.txt").touch()
    for table in MIMIC_TABLES:
        with gzip.open(mimic / f"mimic-cxr-2.0.0-{table}.csv.gz", "w"):
            pass
    (chexpert / "PNG/train").mkdir(parents=True)
    (chexpert / "chexbert_labels").mkdir()
    for name in ("df_chexpert_plus_240401.csv", "chexbert_labels/findings_fixed.json"):
        (chexpert / name).touch()
    planned = fresh.planned("--profile", "profiles/paper")
    assert planned["distill"] == 2 * 2 * 5 * 3
    # Real data and backbones are there already, and no synthetic world is held against its criteria.
    assert not {"synthesize", "build_backbone", "probe_world", "accept_world"} & set(planned)
    # Real reports are shown only where the settings say so.
    assert planned["compare_annotators"] == 2
    assert "view_tokens" not in planned
    fresh.edit("config.yaml", "credentialed: false", "credentialed: true")
    assert fresh.planned("--profile", "profiles/paper")["view_tokens"] == 2


def test_dvc_stages_are_targets_of_snakemake(fresh: Project) -> None:
    """Every stage names existing rules, keeps its outputs, and depends on what a stage makes or git holds."""
    stages = yaml.safe_load((fresh.folder / "dvc.yaml").read_text())
    command = stages["vars"][0]["snakemake"]
    outs = set()
    for name, stage in stages["stages"].items():
        assert all(isinstance(out, dict) and out[next(iter(out))]["persist"] for out in stage["outs"]), name
        outs |= {next(iter(out)) for out in stage["outs"]}
        rules = stage["cmd"].partition("--until")[2].split()
        assert all((ROOT / f"scripts/{rule}.py").is_file() for rule in rules), name
    for name, stage in stages["stages"].items():
        assert {"Snakefile", "config", "config.yaml", "profiles", "rules", "scripts", "workflow"} <= set(stage["deps"])
        for dependency in stage["deps"]:
            assert dependency in outs or (fresh.folder / dependency).exists(), f"{name} depends on {dependency}"
    one = stages["stages"]["splits"]["cmd"].replace("${snakemake}", command)
    assert set(fresh.planned(*one.split()[1:])) == {"synthesize", "split"}


def test_dvc_stages_make_what_their_rules_make_and_depend_on_what_these_read(project: Project) -> None:
    """By what Snakemake recorded of a finished run: rule by rule, outputs and inputs."""
    stages = yaml.safe_load((project.folder / "dvc.yaml").read_text())["stages"]
    stage_of = {next(iter(out)): name for name, stage in stages.items() for out in stage["outs"]}
    rules = {rule: name for name, stage in stages.items() for rule in stage["cmd"].partition("--until")[2].split()}

    def out_of(path: str) -> str | None:
        return next((out for out in stage_of if f"{path}/".startswith(f"{out}/")), None)

    lines = [line.split("\t") for line in project.snakemake("--detailed-summary").splitlines() if line.count("\t") == 7]
    assert len(lines) > 100
    for output, _, rule, _, inputs, *_ in lines[1:]:
        stage = stage_of[out_of(output)]
        assert stage in (rules.get(rule, "report"), "world"), f"{rule} makes {output} of stage {stage}"
        read = {out_of(path) for path in inputs.split(",")} - {None}
        own = {out for out, name in stage_of.items() if name == stage}
        assert read <= {*stages[stage]["deps"], *own}, f"stage {stage}: {rule} reads {read}"


def test_what_dvc_commits_is_there_after_make_reproduce() -> None:
    """Of the outputs of DVC's stages a run leaves out those that no method needs."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    empty = {stage["cmd"].split()[2] for stage in stages.values() if stage["cmd"].startswith("mkdir -p")}
    assert empty == {"results/adapters", "results/layers", "results/teacher", "results/world"}
    makefile, snakefile = ((ROOT / name).read_text() for name in ("Makefile", "Snakefile"))
    assert set(re.search(r"^MAY_BE_EMPTY := (.*)$", makefile, flags=re.MULTILINE).group(1).split()) == empty
    made = re.search(r"for folder in \((.*)\):\n +os.makedirs\(f\"results/", snakefile).group(1)
    assert {f"results/{name}" for name in re.findall(r'"(\w+)"', made)} == empty
    reproduce = makefile.partition("\nreproduce: ")[2].partition("\n\n")[0]
    assert "mkdir -p $(MAY_BE_EMPTY)" in reproduce


def test_dvc_parses_its_stages(fresh: Project) -> None:
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        assert fresh.run(*command).returncode == 0
    done = fresh.run("dvc", "stage", "list", "--name-only")
    assert done.returncode == 0, done.stdout
    assert {"splits", "vision", "teacher", "adapters", "generations"} <= set(done.stdout.split())
