"""What a change reruns, and nothing else: dry runs on a finished tree."""

import json
import os
import re
from pathlib import Path

import yaml

from dive.software import installed, metadata_file
from dive.whole import LISTS
from tests.project import Project
from tests.workflow.conftest import END_OF_MAIN, place

PAIRS = 4
"""Datasets times backbones."""

TRAINED, SHOWN, PLAIN = 9, 1, 2
"""Rows that are trained, that have demonstrations in the context, and that are the backbone alone."""

TAUGHT = 5
"""Of the trained, those with a loss to the teacher: LIVE, DIVE and three of the ablations."""

LAST = {
    **{"tabulate": 1, "tabulate_comparison": 4, "claim": 1, "plot": 1, "report": 1},
    **{"index_reports": 1, "summarise_costs": 1},
}
"""What gathers the scores of everything."""
RESCORED = {"compare": PAIRS, **LAST}
"""What new scores in every dataset and backbone rerun."""

DECISIVE = {"compare_annotators": 2}
"""Table and figure of decisive tokens."""

ANALYSED = {"analyse": PAIRS, "view_tokens": 2, **DECISIVE}
"""The analysis of decisive tokens, and what shows it."""


def retrained(methods: int) -> dict[str, int]:
    """The jobs of some steering methods of one seed, and of what gathers them."""
    jobs = PAIRS * methods
    return {"distill": jobs, "generate": jobs, "score": jobs, **RESCORED}


def test_everything_that_jobs_make_is_a_target(fresh: Project) -> None:
    """A transfer, layers' states and several draws included: only a target is missed, and made again, once deleted."""
    options = ("--config", "experiments=[transfer,ablations]", "seeds=[0]", "draws=2")
    printed = fresh.snakemake("--dry-run", *options)
    targets = re.search(r"^(?:local)?rule all:\n    input: (.*)$", printed, flags=re.MULTILINE).group(1).split(", ")
    assert len(targets) == len(set(targets))
    assert set(targets) == fresh.files(*options)


def test_a_deleted_table_or_figure_comes_back(project: Project) -> None:
    project.remove("results/tables/main.csv", "results/figures/main-training.svg")
    assert project.planned() == {"tabulate": 1, "plot": 1, "report": 1, "index_reports": 1, "summarise_costs": 1}


def test_a_deleted_adapter_generation_or_score_comes_back_with_what_is_made_from_it(project: Project) -> None:
    project.remove(
        "results/scores/synthetic-chexpert-plus/tiny-gemma3/zero_shot/summary.json",
        "results/generations/synthetic-chexpert-plus/tiny-qwen2.5-vl/icl/seed0.parquet",
        "results/adapters/synthetic-mimic-cxr/tiny-gemma3/live/seed0",
    )
    assert project.planned("--until", "distill") == {"distill": 1}  # a stage of DVC
    assert project.planned() == {"distill": 1, "generate": 2, "score": 3, "compare": 3, **LAST}


def test_a_folder_from_which_a_file_is_gone_is_made_again(project: Project) -> None:
    """An adapter without its weights, features without their list, a folder without anything in it."""
    adapter = "results/adapters/synthetic-mimic-cxr/tiny-gemma3/live/seed0"
    (project.folder / adapter / "config.json").write_text('{"sha256": {"adapter.safetensors": "0"}}')
    for name in LISTS["distill"]:
        project.remove(f"{adapter.replace('mimic-cxr', 'chexpert-plus')}/{name}")
    printed = project.snakemake("--dry-run")
    assert f"{adapter}: adapter.safetensors absent, so the folder is made again\n" in printed
    assert project.planned() == {"distill": 2, "generate": 2, "score": 2, "compare": 2, **LAST}
    (project.folder / adapter / "adapter.safetensors").touch()
    assert project.planned()["distill"] == 1


def test_a_rank_reruns_its_method_and_those_that_inherit_it(project: Project) -> None:
    project.edit("config.yaml", "rank: 16                # r of U", "rank: 8 # r of U")
    assert project.planned() == retrained(3)
    methods = {path.split("/")[4] for path in project.planned_files() if path.startswith("results/adapters/")}
    assert methods == {"dive", "dive_uniform", "dive_no_teacher"}


def test_dive_why_says_so_in_a_line(project: Project) -> None:
    done = project.run("python", "-m", "dive", "why")
    assert done.stdout.startswith("Nothing to do")
    project.edit("config.yaml", "rank: 16                # r of U", "rank: 8 # r of U")
    told = project.run("python", "-m", "dive", "why").stdout.splitlines()
    assert len(told) == 2
    assert told[0].startswith("rank 16 -> 8: 12 trainings, 12 generations, 12 scorings, ")


def test_a_weight_reruns_only_where_it_is_used(project: Project) -> None:
    project.edit("config.yaml", "pathology: 3,", "pathology: 2,")
    assert project.planned() == {**retrained(3), **ANALYSED}  # the analysis is about DIVE's weights
    methods = {path.split("/")[4] for path in project.planned_files() if path.startswith("results/adapters/")}
    assert methods == {"dive", "dive_static", "dive_no_teacher"}


def test_a_seed_adds_its_own_files(project: Project) -> None:
    project.change("seeds", "[0, 1]")
    assert project.planned() == {
        "demonstrate": 2,
        "cache_teacher": PAIRS,
        "cache_layers": PAIRS,
        "distill": PAIRS * TRAINED,
        "generate": PAIRS * (TRAINED + SHOWN),
        "score": PAIRS * (TRAINED + SHOWN),
        **RESCORED,
    }
    assert not any("seed0" in path for path in project.planned_files())


def test_more_draws_add_their_own_teachers(project: Project) -> None:
    """What is there stays as it is, and only what learns from a teacher is trained again."""
    project.change("draws", "3")
    assert project.planned() == {"demonstrate": 2 * 2, "cache_teacher": PAIRS * 2, **retrained(TAUGHT)}
    made = {
        path for path in project.planned_files() if path.startswith(("results/demonstrations/", "results/teacher/"))
    }
    assert all("seed0-draw1" in path or "seed0-draw2" in path for path in made)
    assert not any("/dive_no_teacher/" in path for path in project.planned_files())


def test_shared_demonstrations_rerun_what_demonstrations_are_for(project: Project) -> None:
    project.change("demonstrations", "shared")
    planned = project.planned()
    assert planned["demonstrate"] == 2
    assert planned["cache_teacher"] == PAIRS
    assert planned["cache_layers"] == PAIRS
    assert planned["distill"] == PAIRS * (TAUGHT + 1)  # and MimIC, which aligns the teacher's layers
    assert planned["generate"] == PAIRS * (TAUGHT + 1 + SHOWN)  # and the reports of the teacher itself
    assert not {"split", "select", "annotate", "cache_vision"} & set(planned)


def test_decoding_reruns_generation_but_no_training(project: Project) -> None:
    project.change("max_new_tokens", "96")
    # The constant report needs no decoding, and nothing of its rows changes.
    assert project.planned() == {
        "generate": PAIRS * (TRAINED + SHOWN + PLAIN),
        "score": PAIRS * (TRAINED + SHOWN + PLAIN),
        "probe_world": PAIRS,
        "accept_world": 1,
        **RESCORED,
    }


def test_a_title_reruns_only_what_shows_it(project: Project) -> None:
    project.edit("config.yaml", "title: DIVE\n", "title: DIVE (ours)\n")
    assert project.planned() == {**LAST, **DECISIVE}


def test_a_margin_or_the_number_of_resamples_reruns_no_score(project: Project) -> None:
    project.change("margin", "2.0")
    assert project.planned() == {"claim": 1, "report": 1, "index_reports": 1, "summarise_costs": 1}
    project.change("resamples", "500")
    assert project.planned() == {rule: jobs for rule, jobs in RESCORED.items() if rule != "plot"}


def test_what_decides_no_result_reruns_nothing(project: Project) -> None:
    """In float32 batch sizes decide nothing, and a raised limit keeps what was made under the lower one."""
    for key, value in (
        ("checkpoint_seconds", "31"),
        ("prefix_cache_gb", "2"),
        ("max_unreadable", "0.1"),
        ("max_missing", "0.5"),
    ):
        project.change(key, value)
    project.edit(
        "config.yaml",
        "batch: {vision: 64, teacher: 8, generation: 128, training: 16}",
        "batch: {vision: 1, teacher: 2, generation: 3, training: 4}",
    )
    project.edit("config.yaml", "batch: 64 ", "batch: 8 ")  # of CheXbert
    for module in ("progress", "software", "warm", "scores/chexbert", "scores/radgraph"):  # their weights are not given
        with (project.folder / f"workflow/dive/{module}.py").open("a") as file:
            file.write("\n\nCHANGED = True\n")
    assert project.planned() == {}


REAL = """
backbones:
  real: {like: tiny-gemma3, path: somebody/model, tiny: null, dtype: bfloat16, instruction: Describe.,
         batch: {vision: 4, teacher: 4, generation: 4, training: 4}}
"""
"""A backbone that is not built here."""


def test_in_bfloat16_a_batch_size_reruns_its_own_stage_and_the_instruction_no_vision(fresh: Project) -> None:
    """Rounding of another batch can change a word there. The vision tower reads no text."""
    settings = fresh.folder / "real.yaml"
    settings.write_text(REAL, encoding="utf-8")
    reports = "results/generations/synthetic-mimic-cxr/real/icl/seed0.parquet"
    target = ("--configfile", "real.yaml", "--", reports)
    place(fresh, fresh.files(*target))
    fresh.snakemake("--touch", "--forceall", "--no-hooks", "--cores", "1", *target)
    for old, new, rerun in (
        ("teacher: 4, generation: 4, training: 4", "teacher: 2, generation: 4, training: 2", {}),
        ("instruction: Describe.", "instruction: Report.", {"generate": 1}),
        ("vision: 4", "vision: 2", {"cache_vision": 1, "generate": 1}),
    ):
        fresh.edit("real.yaml", old, new)
        assert fresh.planned(*target) == rerun


def test_other_packages_and_lost_metadata_are_said_and_rerun_nothing(project: Project) -> None:
    """A note of torch concerns what computes with torch; metadata are missed wherever a result lacks them."""
    others = json.dumps({**installed(), "torch": "1.0"})
    for job in ("distill/synthetic-mimic-cxr/tiny-gemma3/live/seed0", "split/synthetic-mimic-cxr"):
        note = project.folder / f"results/software/{job}.json"
        note.parent.mkdir(parents=True)
        note.write_text(others)
    lost = "results/generations/synthetic-mimic-cxr/tiny-gemma3/icl/seed0.parquet"
    (project.folder / metadata_file(lost, Path(".snakemake/metadata"))).unlink()
    printed = project.snakemake("--dry-run")
    assert "Nothing to be done" in printed
    adapter = "results/adapters/synthetic-mimic-cxr/tiny-gemma3/live/seed0"
    assert f"distill ({adapter}): torch 1.0, now {installed()['torch']}\n" in printed
    assert "snakemake --forcerun distill\n" in printed
    assert f"  generate ({lost})\n" in printed
    assert "split (" not in printed


def test_a_reader_splits_its_own_datasets_anew(project: Project) -> None:
    with (project.folder / "workflow/dive/data/mimic_cxr.py").open("a") as file:
        file.write("\n\nCHANGED = True\n")
    planned = project.planned()
    assert (planned["split"], planned["cache_vision"], planned["distill"]) == (1, 2, 2 * TRAINED)


def test_touching_or_commenting_code_reruns_nothing(project: Project) -> None:
    os.utime(project.folder / "scripts/distill.py")
    os.utime(project.folder / "workflow/dive/distillation/training.py")
    project.edit("scripts/generate.py", "with logged", "# A comment.\n\n\nwith logged")
    assert project.planned() == {}


def test_a_module_reruns_those_that_import_it(project: Project) -> None:
    with (project.folder / "workflow/dive/reporting/tables.py").open("a") as file:
        file.write("\n\nCHANGED = True\n")
    assert project.planned() == {**LAST, **DECISIVE}


def test_a_recipe_or_the_code_that_decides_the_weights_rebuilds_backbones_and_no_other_code_does(
    project: Project,
) -> None:
    """The trained backbones come with the project: of code only a change of the deciding modules makes them void."""
    for module in ("backbones/shipped", "backbones/loading", "backbones/prompts", "backbones/families"):
        with (project.folder / f"workflow/dive/{module}.py").open("a") as file:
            file.write("\n\nCHANGED = True\n")
    assert "build_backbone" not in project.planned()
    project.edit("workflow/dive/backbones/tiny.py", "%d images after %.0f s", "%d images drawn after %.0f s")
    assert "build_backbone" not in project.planned()
    project.edit("config.yaml", "tiny: {family: qwen2_5_vl, vision_steps: 180}", "tiny: {family: qwen2_5_vl}")
    assert project.planned()["build_backbone"] == 1
    with (project.folder / "workflow/dive/backbones/muon.py").open("a") as file:
        file.write("\n\nCHANGED = True\n")
    assert project.planned()["build_backbone"] == 2


def test_a_source_of_weights_retrains_its_method_and_annotates_what_is_not_there(project: Project) -> None:
    """Another annotator as a control is one entry; random tokens read the spans that are there."""
    project.edit("config.yaml", END_OF_MAIN, f"      - dive_random\n{END_OF_MAIN}")
    assert project.planned() == retrained(1)
    project.edit("config.yaml", "weights: {source: random}", "weights: {source: union}")
    assert project.planned() == {"annotate": 2, **retrained(1)}


def test_an_annotator_reruns_what_reads_it(project: Project) -> None:
    project.edit("config.yaml", "share: 0.3 ", "share: 0.2 ")
    assert project.planned() == {"annotate": 2, **ANALYSED, "report": 1, "index_reports": 1, "summarise_costs": 1}
    with (project.folder / "workflow/dive/annotation/radgraph.py").open("a") as file:
        file.write("\n\nCHANGED = True\n")
    assert project.planned()["annotate"] == 2


def test_a_method_s_module_reruns_that_method(project: Project) -> None:
    with (project.folder / "workflow/dive/steering/live.py").open("a") as file:
        file.write("\n\nCHANGED = True\n")
    assert project.planned() == retrained(1)
    methods = {path.split("/")[4] for path in project.planned_files() if path.startswith("results/adapters/")}
    assert methods == {"live"}


def test_editing_any_method_s_module_reruns_that_method_alone(fresh: Project) -> None:
    """For every steering module: the code version that its own jobs depend on changes, and no other method's."""
    ask = (
        "import json; from dive.settings import SAID; from dive.provenance import code_version; "
        "print(json.dumps({m: [code_version(f'scripts/{s}.py', f'dive.steering.{m}') "
        "for s in ('distill', 'generate')] for m in SAID}))"
    )

    def versions() -> dict[str, list[str]]:
        return json.loads(fresh.run("python", "-c", ask).stdout)

    before = versions()
    assert {"dive", "live", "task_vector", "icv", "mimic", "lora"} <= set(before)
    for module in before:
        with (fresh.folder / f"workflow/dive/steering/{module}.py").open("a") as file:
            file.write("\n\nCHANGED = True\n")
        after = versions()
        assert {name for name in before if before[name] != after[name]} == {module}
        assert all(old != new for old, new in zip(before[module], after[module], strict=True))
        before = after


def test_one_word_runs_the_ablations(fresh: Project) -> None:
    """Every row has its jobs; the states of all layers are cached only for those that read them."""
    ablations = yaml.safe_load((fresh.folder / "config.yaml").read_text())["grids"]["ablations"]["methods"]
    planned = fresh.planned("--config", "experiments=[ablations]", "seeds=[0]")
    assert planned["distill"] == PAIRS * (len(ablations) - 1)
    assert planned["cache_layers"] == PAIRS
    assert planned["generate"] == planned["score"] == PAIRS * len(ablations)
    assert "results/tables/ablations.tex" in fresh.planned_files("--config", "experiments=[ablations]", "seeds=[0]")


def test_the_configuration_s_model_reruns_nothing(project: Project) -> None:
    with (project.folder / "workflow/dive/config.py").open("a") as file:
        file.write("\n\nCHANGED = True\n")
    assert project.planned() == {}


def test_the_vocabulary_reruns_annotation_and_lexicon_scores(project: Project) -> None:
    with (project.folder / "workflow/dive/resources/vocabulary.csv").open("a") as file:
        file.write("\n")
    assert {"annotate", "score"} <= set(project.planned())
    assert not {"split", "cache_vision", "cache_teacher"} & set(project.planned())
