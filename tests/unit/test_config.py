"""The configuration's model: what it accepts, what it says, and the schema that editors read."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dive.config import ConfigError, json_schema, overlay, resolve
from dive.settings import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def overlaid(config: dict[str, Any], name: str) -> dict[str, Any]:
    return overlay(config, yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))


def errors_of(config: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        resolve(config)
    return [line.strip() for line in str(raised.value).splitlines()[1:]]


@pytest.mark.parametrize("name", ["config/paper.yaml", "tests/end_to_end/config.yaml"])
def test_overlays_are_valid(config: dict[str, Any], name: str) -> None:
    resolve(overlaid(config, name))


def test_the_default_is_complete_and_plain(config: dict[str, Any]) -> None:
    resolved = resolve(config)
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved["methods"]["dive_static_uniform"]["rank"] == 0
    weights = resolved["methods"]["dive_static_uniform"]["weights"]
    assert weights == {"pathology": 1.0, "eos": 1.0, "source": None, "exponent": 1.0, "level": 0.1}
    assert resolved["methods"]["dive_static_uniform"]["optimiser"] == resolved["methods"]["dive"]["optimiser"]
    assert resolved["methods"]["dive_no_teacher"]["loss"]["kd"] == 0
    assert resolved["methods"]["dive_no_teacher"]["loss"]["ce"] == resolved["methods"]["dive"]["loss"]["ce"]


def test_a_method_of_another_module_inherits_what_all_methods_share(config: dict[str, Any]) -> None:
    """MimIC and LoRA are `like: dive`: DIVE's own rank and state do not come along."""
    methods = resolve(config)["methods"]
    assert not {"rank", "state"} & set(methods["mimic"])
    assert methods["mimic"]["epochs"] == methods["dive"]["epochs"]
    assert (methods["dive_shuffled"]["state"], methods["dive"]["state"]) == ("shuffled", "own")
    config["methods"]["other"] = {"like": "live", "module": "dive", "rank": 2, "state": "own"}
    assert "lr_a" not in resolve(config)["methods"]["other"]["optimiser"]


def test_a_transfer_is_the_method_with_the_place_of_its_training(config: dict[str, Any]) -> None:
    resolved = resolve(config)
    entry = resolved["methods"]["dive@synthetic-chexpert-plus"]
    assert entry == {**resolved["methods"]["dive"], "trained_on": "synthetic-chexpert-plus"}
    assert resolved["presentation"]["methods"]["dive@synthetic-chexpert-plus"] == {
        "title": "DIVE from CheXpert Plus (synthetic)",
        "group": "transfer",
    }


def test_presentation_is_apart(config: dict[str, Any]) -> None:
    resolved = resolve(config)
    for kind in ("datasets", "backbones", "methods"):
        for name, entry in resolved[kind].items():
            assert not {"title", "note", "group", "like"} & set(entry)
            assert resolved["presentation"][kind][name]["title"]


def test_equal_settings_resolve_to_equal_text(config: dict[str, Any]) -> None:
    """Neither the order of keys nor 1 for 1.0 is a change: Snakemake compares the text of params."""
    other = copy.deepcopy(config)
    dive = other["methods"]["dive"]
    dive["loss"] = dict(reversed(dive["loss"].items())) | {"kd": 1}
    other["methods"]["dive"] = dict(reversed(dive.items()))
    assert repr(resolve(other)["methods"]["dive"]) == repr(resolve(config)["methods"]["dive"])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("methods.dive.rank", -1, "methods.dive.rank: must be greater than or equal to 0, not -1"),
        ("methods.dive.rnak", 4, "methods.dive.rnak: unknown key; did you mean rank?"),
        ("methods.dive.like", "dive_static", "methods.dive.like: 'dive' inherits from itself"),
        ("methods.dive_static.like", "dvie", "methods.dive_static.like: 'dvie' is unknown; did you mean dive?"),
        ("methods.icv.scales", [], "methods.icv.scales: must have at least 1 item"),
        ("methods.lora.dropout", 2, "methods.lora.dropout: must be less than or equal to 1"),
        ("methods.mimic.rank", 3, "methods.mimic.rank: unknown key"),
        ("methods.dive.state", "other", "methods.dive.state: must be 'own' or 'shuffled'"),
        ("methods.live.module", "no_such", "methods.live: kind must be constant, prompt or steering"),
        ("methods.icl.demonstrations", "some", 'methods.icl.demonstrations: must be a valid boolean, not "some"'),
        ("methods.a b", {"like": "dive"}, "methods.a b: a name becomes a folder"),
        ("grids.main.methods", ["dive", "dive"], "grids.main.methods.1: 'dive' is there twice"),
        ("grids.main.methods", ["dvie@synthetic-mimic-cxr"], "'dvie' is not among methods; did you mean dive?"),
        ("grids.main.methods", ["dive@synthetic-mimic"], "'synthetic-mimic' is not among datasets; did you mean synth"),
        ("grids.main.methods", ["icl@synthetic-mimic-cxr"], "'icl' is not a trained method, so it has no adapter"),
        ("grids.main.backbones", ["tiny-gemma"], "did you mean tiny-gemma3?"),
        ("experiments", ["mian"], "experiments.0: 'mian' is not among grids; did you mean main?"),
        ("seeds", [0, 0], "seeds.1: 0 is there twice"),
        ("shots", 500, "pool.demonstrations: must be at least shots, which is 500"),
        ("draws", 0, "draws: must be greater than or equal to 1, not 0"),
        ("demonstrations", "common", "demonstrations: must be 'per_query' or 'shared'"),
        ("world", None, "world: must be a mapping, not null"),
        ("decodign", {}, "decodign: unknown key; did you mean decoding?"),
        ("training.validation_studies", 500, "pool.validation: must be at least training.validation_studies, 500"),
        ("datasets.synthetic-mimic-cxr.root", "elsewhere", "root: must be data/synthetic-mimic-cxr"),
        (
            "datasets.synthetic-mimic-cxr.selection.convention",
            "official_valid",
            "mimic_cxr offers official",
        ),
        ("datasets.synthetic-mimic-cxr.selection.min_words", 301, "selection.min_words: must not exceed max_words"),
        ("backbones.tiny-gemma3.path", "x", "path: must be models/tiny-gemma3"),
        ("backbones.tiny-gemma3.device", "gpu", "backbones.tiny-gemma3.device: must be auto, cpu"),
        (
            "annotation.annotator",
            "scispacy",
            "annotation.scispacy.path: must be the folder of a pipeline, as annotation.an",
        ),
        (
            "analysis.annotators",
            ["radgraph"],
            "annotation.radgraph.path: must be hub or the folder of RadGraph's archives, as analysis.annotators uses "
            "it and annotations has no file of synthetic-mimic-cxr, synthetic-chexpert-plus",
        ),
        (
            "annotation.radgraph.annotations",
            {"mimic": "x"},
            "annotation.radgraph.annotations.mimic: 'mimic' is not among",
        ),
        ("analysis.annotators", ["tarot"], "analysis.annotators.0: must be 'vocabulary', 'scispacy'"),
        ("annotation.union", ["idf", "union"], "annotation.union: cannot hold itself"),
        ("analysis.method", "icl", "analysis.method: 'icl' has no weights"),
        ("methods.dive.weights.source", "tarot", "methods.dive.weights.source: must be 'vocabulary', 'scispacy'"),
        ("methods.dive.weights.eos", 0, "methods.dive.weights.eos: must be greater than 0, not 0"),
        ("methods.dive.loss", {"kd": 0, "ce": 0, "hidden": 0}, "nothing would be learned"),
    ],
)
def test_an_error_names_path_and_remedy(config: dict[str, Any], path: str, value: Any, message: str) -> None:
    # Names of datasets hold no dots here, so the path can be cut at them.
    *parents, last = path.split(".")
    entry = config
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    assert any(message in line for line in errors_of(config)), errors_of(config)


def test_annotators_are_asked_for_what_the_experiments_use(config: dict[str, Any]) -> None:
    config["annotation"]["random"]["like"] = "scispacy"
    config["methods"]["dive_random"]["weights"]["source"] = "random"
    config["analysis"]["annotators"] = ["vocabulary"]
    resolve(config)  # dive_random is in no grid that is run
    config["grids"]["main"]["methods"].append("dive_random")
    assert errors_of(config) == [
        "annotation.scispacy.path: must be the folder of a pipeline, as annotation.random.like uses it"
    ]
    config["annotation"]["scispacy"] |= {"path": "model", "types": ["T047"]}
    assert errors_of(config) == ["annotation.scispacy.linker: must be the folder of a linker, as types are asked for"]
    config["annotation"]["random"]["like"] = "radgraph"
    config["annotation"]["radgraph"]["annotations"] = {"synthetic-mimic-cxr": "graphs.json"}
    (line,) = errors_of(config)
    assert line.endswith("annotations has no file of synthetic-chexpert-plus")
    config["annotation"]["radgraph"]["path"] = "hub"
    resolve(config)


def test_all_errors_come_at_once_and_inherited_ones_once(config: dict[str, Any]) -> None:
    config["methods"]["dive"]["rank"] = "many"
    config["methods"]["dive"]["epochs"] = 0
    config["seeds"] = []
    del config["annotation"]
    lines = errors_of(config)
    wrong = ["annotation", "methods.dive.epochs", "methods.dive.rank", "seeds"]
    assert sorted(line.split(":")[0] for line in lines) == wrong


@pytest.mark.parametrize("garbage", [None, -3, "text", [], {}, {"methods": 3}, {"main": None, "dive": []}])
def test_garbage_is_told_not_raised(config: dict[str, Any], garbage: Any) -> None:
    for key in config:
        assert errors_of({**config, key: garbage})


def test_the_schema_in_the_repository_is_the_model_s() -> None:
    stored = json.loads((ROOT / "workflow/dive/resources/config.schema.json").read_text(encoding="utf-8"))
    assert stored == json_schema(), "run `make schema`"


def test_the_schema_accepts_the_file_as_it_is_written(config: dict[str, Any]) -> None:
    jsonschema.validate(config, json_schema())
    config["methods"]["dive"]["rank"] = -1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, json_schema())


def test_every_key_is_explained_where_it_stands(config: dict[str, Any]) -> None:
    """config.yaml gives every key of the model once, so that its comments can explain it: the model has no defaults."""
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    optional = {"like", "note"}
    for definition in (Config.model_json_schema(by_alias=True), *Config.model_json_schema()["$defs"].values()):
        for key in definition.get("properties", {}):
            assert key in optional or f"{key}:" in text, f"{key} is not in config.yaml"
