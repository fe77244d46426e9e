"""The trained backbones that come with the project: their bytes, and that they are what the present code trains."""

import ast
import shutil
import zlib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from dive.backbones import ship, shipped, tiny
from dive.backbones.shipped import DECISIVE, SHIPPED, provide_backbone, sequences_hash, ship_backbone, shipped_hash
from dive.config import resolve
from dive.files import WeightsError, read_json, sha256
from tests.project import ROOT
from tests.unit.test_tiny_backbones import INSTRUCTION, SMALL, WORLD

CONFIG = resolve(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
RECIPES = {
    name: (backbone["tiny"], CONFIG["world"], backbone["instruction"])
    for name, backbone in CONFIG["backbones"].items()
    if backbone["tiny"]
}
REMEDY = "run make backbones, and python -m pytest -m long"
PREPARATION = {"dive.backbones.families", "dive.backbones.loading", "dive.files", "dive.progress"}
"""What else the deciding modules import: prompts and positions (see the test of the sequences), and tools."""


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_exactly_the_default_s_backbones_are_shipped():
    assert {path.name for path in SHIPPED.iterdir()} == set(RECIPES), REMEDY


@pytest.mark.parametrize("name", RECIPES)
def test_the_default_trains_none_since_recipe_and_deciding_code_are_those_of_the_shipped_one(name):
    folder = shipped.find_recipe(*RECIPES[name])
    assert folder == SHIPPED / name, f"the recipe has changed: {REMEDY}"
    assert shipped_hash(*RECIPES[name]), f"a module of {DECISIVE} has changed: {REMEDY}"


@pytest.mark.parametrize("name", RECIPES)
def test_the_files_are_those_of_the_fingerprint(name):
    made = {path.name: sha256(path) for path in (SHIPPED / name).iterdir() if path.name != shipped.FINGERPRINT}
    assert made == read_json(SHIPPED / name / shipped.FINGERPRINT)["files"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_present_code_renders_what_the_shipped_one_was_trained_on(name):
    """Language, tokenizer, chat template, prompts and positions, those that no module's hash stands for included."""
    written = read_json(SHIPPED / name / shipped.FINGERPRINT)["sequences"]
    assert sequences_hash(str(SHIPPED / name), *RECIPES[name]) == written, REMEDY


def test_all_that_is_shipped_is_at_most_12_mib_packed():
    packed = sum(len(zlib.compress(path.read_bytes())) for path in SHIPPED.rglob("*") if path.is_file())
    assert packed <= 12 * 2**20


def test_every_module_that_decides_the_weights_is_hashed():
    """A new import of a deciding module is one of them, or stands in this test because it is none."""
    imported = set()
    for module in DECISIVE:
        tree = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported |= {node.module for node in nodes if node.module.startswith("dive")}
    assert imported - set(DECISIVE) == PREPARATION


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small backbone that is not shipped, and its recipe."""
    folder = tmp_path_factory.mktemp("models") / "small"
    recipe = (SMALL | {"family": "gemma3", "images": 16, "vision_steps": 1, "steps": 1}, WORLD, INSTRUCTION)
    provide_backbone(str(folder), *recipe, shipped=shipped_hash(*recipe))
    return folder, recipe


@pytest.fixture
def elsewhere(trained, tmp_path, monkeypatch):
    """An empty place for shipped backbones, and a small trained one that is not yet in it."""
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "trained").symlink_to(trained[0])
    return tmp_path, trained[1]


def test_a_backbone_is_trained_once_and_copied_from_then_on(elsewhere, monkeypatch):
    folder, recipe = elsewhere
    assert shipped_hash(*recipe) is None
    ship_backbone(folder / "trained", "small", *recipe)
    monkeypatch.setattr(tiny, "build_backbone", None)
    provide_backbone(str(folder / "copied"), *recipe, shipped=shipped_hash(*recipe))
    assert files_of(folder / "copied") == files_of(folder / "trained")
    assert not list(folder.glob(".*tmp"))


def test_another_recipe_is_trained_in_silence_and_changed_code_is_said(elsewhere, monkeypatch, caplog):
    folder, recipe = elsewhere
    ship_backbone(folder / "trained", "small", *recipe)
    trained = []
    monkeypatch.setattr(tiny, "build_backbone", lambda *what: trained.append(what))
    other = ({**recipe[0], "steps": 2}, *recipe[1:])
    for changed in (other, (recipe[0], {**WORLD, "seed": 1}, INSTRUCTION), (*recipe[:2], "Describe.")):
        assert shipped_hash(*changed) is None
        provide_backbone("out", *changed, shipped=None)
        assert trained.pop() == ("out", *changed)
    assert not caplog.records
    monkeypatch.setattr(shipped, "DECISIVE", DECISIVE[1:])
    assert shipped_hash(*recipe) is None
    provide_backbone("out", *recipe, shipped=None)
    assert trained == [("out", *recipe)]
    assert "make backbones" in caplog.text


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_a_damaged_file_is_named_with_the_remedy_and_nothing_is_left(elsewhere, harm):
    folder, recipe = elsewhere
    ship_backbone(folder / "trained", "small", *recipe)
    harm(folder / "shipped/small/model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing or damaged.*git checkout.*make backbones"):
        provide_backbone(str(folder / "copied"), *recipe, shipped=shipped_hash(*recipe))
    assert not (folder / "copied").exists()
    assert not list(folder.glob(".*tmp"))


def test_a_short_training_tells_rearranged_code_from_code_that_trains_something_else(trained, tmp_path, monkeypatch):
    folder, recipe = trained
    monkeypatch.setattr(ship, "SHORT", {})  # its training is short as it is
    shutil.copytree(ROOT / "workflow/dive", tmp_path / "dive", ignore=shutil.ignore_patterns("resources"))

    def trained_with(old, new):
        file = tmp_path / "dive/backbones/tiny.py"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")
        return ship.train_short(tmp_path, *recipe)

    present = {path.name: sha256(path) for path in folder.iterdir()}
    assert trained_with("_as_stored", "as_on_disk") == present
    assert trained_with("weight_decay=0.01", "weight_decay=0.02") != present


def test_a_checkout_with_other_line_ends_leaves_the_files_as_they_are():
    """git must not translate line ends in files whose bytes are hashed."""
    attributes = (ROOT / ".gitattributes").read_text(encoding="utf-8").split("\n")
    assert f"/{SHIPPED.relative_to(ROOT)}/** -text -diff" in attributes
