"""A zoo of malformed configurations: each is one message that names the dotted key and the remedy, never a stack."""

import copy
import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dive.config import resolve
from dive.configfiles import DEEPEST, ConfigError, files_of, overlay, read_file, read_files

ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))

ITSELF: dict[str, Any] = {"like": "dive"}
ITSELF["weights"] = ITSELF
ITSELF_LIST: list[Any] = [0]
ITSELF_LIST.append(ITSELF_LIST)
WIDE: list[Any] = []
WIDE += [WIDE, WIDE]

MIMIC, TINY, QWEN = "datasets|synthetic-mimic-cxr", "backbones|tiny-gemma3", "backbones|tiny-qwen2.5-vl"
LONG = "x" * 260

ONE_WAY = {"datasets": ["synthetic-mimic-cxr"], "methods": ["dive@synthetic-mimic-cxr"]}

ZOO: list[tuple[str, Any, str]] = [
    # names: mappings, lists, numbers and nothing where one is wanted
    ("experiments", [{"main": None}], "experiments.0: must be a valid string"),
    ("experiments", [["main"]], "experiments.0: must be a valid string"),
    ("experiments", [None], "experiments.0: must be a valid string, not null"),
    ("experiments", [1.5], "experiments.0: must be a valid string, not 1.5"),
    ("experiments", "main", 'experiments: must be a valid list, as ["main"], not "main"'),
    ("experiments", {"main": None}, "experiments: must be a valid list"),
    ("experiments", [], "experiments: must have at least 1 item, not 0"),
    ("experiments", ["main", "main"], "experiments.1: 'main' is there twice"),
    ("experiments", [LONG], "experiments.0: 'xxx"),
    ("grids|main", None, "grids.main: must be a mapping, not null"),
    ("grids|main", ["dive"], "grids.main: must be a mapping, not a list"),
    ("grids|main|methods", [{"dive": None}], "grids.main.methods.0: must be a valid string"),
    ("grids|main|methods", [["dive@x"]], "grids.main.methods.0: must be a valid string"),
    ("grids|main|methods", [{"dive@synthetic-mimic-cxr": 1}], "grids.main.methods.0: must be a valid string"),
    ("grids|main|methods", ["dive@"], "grids.main.methods.0: '' is not among datasets"),
    ("grids|main|methods", ["@synthetic-mimic-cxr"], "grids.main.methods.0: '' is not among methods"),
    ("grids|main|methods", ["dive@a@b"], "grids.main.methods.0: 'a@b' is not among datasets"),
    ("grids|main|methods", None, "grids.main.methods: must be a valid list, not null"),
    ("grids|main|datasets", [None], "grids.main.datasets.0: must be a valid string"),
    ("grids|main|datasets", ["mimic"], "grids.main.datasets.0: 'mimic' is not among datasets"),
    ("grids|main|backbones", [True], "grids.main.backbones.0: must be a valid string"),
    ("grids|main|backbones", {"tiny-gemma3": 1}, "grids.main.backbones: must be a valid list"),
    ("methods|dive_static|like", ["live"], "methods.dive_static.like: must be the name of another entry, not a list"),
    ("methods|dive_static|like", {"live": 1}, "methods.dive_static.like: must be the name of another entry"),
    ("methods|dive_static|like", None, "methods.dive_static.like: must be the name of another entry, not null"),
    ("methods|dive_static|like", 1, "methods.dive_static.like: must be the name of another entry, not a number"),
    ("methods|dive_static|like", "dive_static", "methods.dive_static.like: 'dive_static' inherits from itself"),
    ("methods|dive|like", "dive_static", "methods.dive.like: 'dive' inherits from itself"),
    ("methods|dive", None, "methods.dive: kind must be constant, prompt or steering"),
    ("methods|dive", [1], "methods.dive: kind must be constant, prompt or steering"),
    ("methods|dive|kind", ["steering"], "methods.dive: kind must be constant, prompt or steering"),
    ("methods|dive|kind", {}, "methods.dive: kind must be constant, prompt or steering"),
    ("methods|dive|module", ["dive"], "methods.dive: kind must be constant, prompt or steering"),
    ("methods|dive|module", None, "methods.dive: kind must be constant, prompt or steering"),
    ("analysis|method", ["dive"], "analysis.method: must be a valid string"),
    ("analysis|method", {"dive": 1}, "analysis.method: must be a valid string"),
    ("analysis|method", None, "analysis.method: must be a valid string"),
    ("analysis|annotators", [{"idf": 1}], "analysis.annotators.0: must be 'vocabulary'"),
    ("annotation|annotator", ["idf"], "annotation.annotator: must be 'vocabulary'"),
    ("annotation|union", [None], "annotation.union.0: must be 'vocabulary'"),
    (f"{MIMIC}|reader", ["mimic_cxr"], "datasets.synthetic-mimic-cxr.reader: must be 'mimic_cxr' or 'chexpert_plus'"),
    (f"{MIMIC}|reader", {}, "datasets.synthetic-mimic-cxr.reader: must be 'mimic_cxr' or 'chexpert_plus'"),
    # keys that are no texts
    ("methods", {1: {"like": "dive"}}, "methods.1: the key 1 is not a text; put it in quotes"),
    ("methods", {None: {"like": "dive"}}, "methods.null: the key null is not a text; put it in quotes"),
    ("methods", {1.5: {"like": "dive"}}, "methods.1.5: the key 1.5 is not a text; put it in quotes"),
    ("methods", {True: {"like": "dive"}}, "methods.True: the key True is not a text; put it in quotes"),
    ("methods", {(1, 2): {}}, "methods.a list: the key a list is not a text; put it in quotes"),
    ("methods|dive|loss", {1: 2}, "methods.dive.loss.1: the key 1 is not a text"),
    (f"{TINY}|image", {None: 1}, "backbones.tiny-gemma3.image.null: the key null is not a text"),
    ("grids", {None: CONFIG["grids"]["main"]}, "grids.null: the key null is not a text"),
    ("annotation|radgraph|annotations", {1: "x"}, "annotation.radgraph.annotations.1: the key 1 is not a text"),
    # names that become files
    ("methods", {LONG: {"like": "dive"}}, f"methods.{LONG[:57]}...: a name becomes a folder"),
    ("methods", {"x" * 301: {}}, "the key has 301 characters; at most 300 are allowed"),
    ("methods", {"": {"like": "dive"}}, "a name becomes a folder"),
    ("methods", {"..": {"like": "dive"}}, "methods...: a name becomes a folder"),
    ("methods", {"a/b": {"like": "dive"}}, "methods.a/b: a name becomes a folder"),
    ("methods", {"a\nb": {"like": "dive"}}, "methods.a\\nb: a name becomes a folder"),
    ("methods", {"a\x00": {"like": "dive"}}, "the key holds the control character"),
    ("datasets", {"{dataset}": {"like": "synthetic-mimic-cxr"}}, "datasets.{dataset}: a name becomes a folder"),
    ("backbones", {"ä": {"like": "tiny-gemma3"}}, "backbones.ä: a name becomes a folder"),
    ("grids", {"claims": CONFIG["grids"]["main"]}, "grids.claims: files of the results are named claims; give"),
    ("grids", {"index.html": CONFIG["grids"]["main"]}, "grids.index.html: files of the results are named index.html"),
    ("grids", {"sparsity": CONFIG["grids"]["main"]}, "grids.sparsity: files of the results are named sparsity; give"),
    ("grids", {"tokens": CONFIG["grids"]["main"]}, "grids.tokens: files of the results are named tokens; give"),
    *(
        ("grids", {f"main{ending}": CONFIG["grids"]["main"]}, f"grids.main{ending}: files of the results are named")
        for ending in ("-training", "-claims", "-termination", "-significance", "-factorial", "-mechanisms")
    ),
    ("datasets", {"truth": {"like": "synthetic-mimic-cxr", "root": "data/truth"}}, "datasets.truth: data/truth holds"),
    ("datasets", {"lexicon.md": {"like": "synthetic-mimic-cxr"}}, "datasets.lexicon.md: results/world/lexicon.md is"),
    # titles
    ("methods|dive|title", "{dataset}", "methods.dive.title: must be one line"),
    ("methods|dive|title", "a$\\foo$b", "methods.dive.title: must be one line"),
    ("methods|dive|title", "$x", "methods.dive.title: must be one line"),
    ("methods|dive|title", "_DIVE", "methods.dive.title: must be one line"),
    ("methods|dive|title", "=1+1", "methods.dive.title: must be one line that does not begin with a blank or one of"),
    ("methods|dive|title", "-5", "methods.dive.title: must be one line that does not begin with a blank or one of"),
    ("methods|dive|title", "DIVE 医", "methods.dive.title: must be one line"),
    ("methods|dive|title", "a\nb", "methods.dive.title: must be one line"),
    ("methods|dive|title", "", "methods.dive.title: must be one line"),
    ("methods|dive|title", LONG, "methods.dive.title: has 260 characters; at most 80 are allowed"),
    ("methods|dive|title", "a\x07", "methods.dive.title: holds the control character"),
    ("methods|dive|title", "\ud800", "methods.dive.title: holds half of a character pair"),
    ("methods|dive|title", 5, "methods.dive.title: must be a valid string, not 5"),
    (f"{MIMIC}|title", "{seed}", "datasets.synthetic-mimic-cxr.title: must be one line"),
    (f"{MIMIC}|note", "{seed}", "datasets.synthetic-mimic-cxr.note: must be one line"),
    (f"{TINY}|title", "$\\frac$", "backbones.tiny-gemma3.title: must be one line"),
    # places
    (f"{MIMIC}|root", "data/{dataset}", "datasets.synthetic-mimic-cxr.root: must be a path or name without { }"),
    (f"{MIMIC}|root", "", "datasets.synthetic-mimic-cxr.root: must be a path or name"),
    (f"{MIMIC}|root", "x" * 5000, "datasets.synthetic-mimic-cxr.root: has 5,000 characters"),
    ("annotation|radgraph|path", "{archive}", "annotation.radgraph.path: must be a path or name"),
    ("scores|chexbert|path", "", "scores.chexbert.path: must be a path or name"),
    ("scores|chexbert|path", ["x"], "scores.chexbert.path: must be a valid string, not a list"),
    # numbers
    ("methods|dive|rank", 10_000_000, "methods.dive.rank: must be less than or equal to 65536, not 10000000"),
    ("methods|dive|rank", 129, "methods.dive.rank: must be at most 128, the width of tiny-gemma3, not 129"),
    ("methods|dive|rank", "129", "methods.dive.rank: must be at most 128"),
    ("methods|lora|like_dive", 500, "methods.lora.like_dive: must be at most 128"),
    ("methods|hificl|pairs", 10**9, "methods.hificl.pairs: must be less than or equal to 65536"),
    ("methods|dive|rank", True, "methods.dive.rank: must be a number, not true"),
    ("methods|dive|rank", 10**40, "methods.dive.rank: is a number of more than 30 digits"),
    ("methods|dive|rank", float("nan"), "methods.dive.rank: must be a finite number"),
    ("methods|dive|rank", 1.5, "methods.dive.rank: must be a valid integer, not 1.5"),
    ("methods|dive|loss|kd", float("inf"), "methods.dive.loss.kd: must be a finite number"),
    ("methods|dive|loss|kd", 1e300, "methods.dive.loss.kd: must be less than or equal to 1000000"),
    ("methods|dive|loss|kd", False, "methods.dive.loss.kd: must be a number, not false"),
    ("methods|dive|loss|temperature", 1e-300, "methods.dive.loss.temperature: must be greater than or equal to 0.01"),
    ("methods|live|alpha", 1e300, "methods.live.alpha: must be less than or equal to 1000000"),
    ("methods|dive|epochs", 10**9, "methods.dive.epochs: must be less than or equal to 65536"),
    ("methods|dive|weights|level", 1, "methods.dive.weights.level: must be less than 1"),
    ("seeds", [2**32], "seeds.0: must be less than or equal to 4294967295"),
    ("seeds", [-1], "seeds.0: must be greater than or equal to 0"),
    ("seeds", [True], "seeds.0: must be a number"),
    ("seeds", [[0]], "seeds.0: must be a valid integer, not a list"),
    ("seeds", [0, "0"], "seeds.1: 0 is there twice"),
    ("seeds", list(range(5000)), "seeds: must have at most 1000 items"),
    ("shots", 10**7, "shots: must be less than or equal to 1000"),
    ("draws", 10**7, "draws: must be less than or equal to 1000"),
    ("world|image_size", 10**6, "world.image_size: must be less than or equal to 4096"),
    ("world|seed", 2**40, "world.seed: must be less than or equal to 4294967295"),
    ("significance|resamples", 10**9, "significance.resamples: must be less than or equal to 1000000"),
    ("decoding|max_new_tokens", 10**8, "decoding.max_new_tokens: must be less than or equal to 65536"),
    (f"{TINY}|batch|teacher", 10**7, "backbones.tiny-gemma3.batch.teacher: must be less than or equal to 65536"),
    (f"{MIMIC}|pool|queries", 10**9, "datasets.synthetic-mimic-cxr.pool.queries: must be less than or equal to 1000"),
    (
        f"{MIMIC}|selection|fractions",
        {"validate": 0.6, "test": 0.6},
        "datasets.synthetic-mimic-cxr.selection.fractions: validate and test are 1.2 of the patients together",
    ),
    (
        f"{MIMIC}|selection|fractions|test",
        1.5,
        "datasets.synthetic-mimic-cxr.selection.fractions.test: must be less than 1, not 1.5",
    ),
    (f"{MIMIC}|selection|max_unreadable", 2, "datasets.synthetic-mimic-cxr.selection.max_unreadable: must be less"),
    ("annotation|idf|share", 1.5, "annotation.idf.share: must be less than 1"),
    # classes, types, layers, heads
    ("annotation|classes", ["pathologies"], "annotation.classes.0: must be 'observation'"),
    ("annotation|classes", [None], "annotation.classes.0: must be 'observation'"),
    ("annotation|scispacy|types", ["disease"], "annotation.scispacy.types.0: must be T and three digits, as in T047"),
    ("methods|dive|layers", [99], "methods.dive.layers: 99 is no layer of tiny-gemma3, whose layers are 0 to 3"),
    ("methods|dive|layers", [4], "methods.dive.layers: 4 is no layer of tiny-gemma3, whose layers are 0 to 3"),
    ("methods|dive|layers", [0, 0], "methods.dive.layers: has a layer twice"),
    ("methods|dive|layers", [-1], "methods.dive.layers.0: must be greater than or equal to 0"),
    ("methods|dive|layers", list(range(5000)), "or 4 is no layer of tiny-gemma3, whose layers are 0 to 3"),
    ("methods|dive|layers", [{}], "methods.dive.layers.0: must be a valid integer, not a mapping"),
    ("methods|dive|layers", "first", "methods.dive.layers: must be 'all'"),
    (f"{TINY}|tiny|heads", 3, "backbones.tiny-gemma3.tiny.width: must be a multiple of 2 * heads, which is 6, not 128"),
    (f"{QWEN}|tiny|heads", 5, "backbones.tiny-qwen2.5-vl.tiny.width: must be a multiple of 16 * heads, which is 80"),
    (f"{TINY}|tiny|vision_width", 98, "backbones.tiny-gemma3.tiny.vision_width: must be a multiple of 4, not 98"),
    (f"{TINY}|tiny|merge", 3, "backbones.tiny-gemma3.tiny.pixels: must be a multiple of 12 * merge, which is 36"),
    (f"{TINY}|tiny|width", 65_536, "backbones.tiny-gemma3.tiny: would have"),
    (f"{TINY}|tiny|layers", 1000, "backbones.tiny-gemma3.tiny: would have"),
    (f"{TINY}|tiny|images", 10**7, "backbones.tiny-gemma3.tiny.images: 10,000,000 images of 48 pixels a side"),
    (f"{TINY}|tiny|family", "gemma4", "backbones.tiny-gemma3.tiny.family: must be 'gemma3' or 'qwen2_5_vl'"),
    (f"{TINY}|tiny|family", ["gemma3"], "backbones.tiny-gemma3.tiny.family: must be 'gemma3' or 'qwen2_5_vl'"),
    (f"{MIMIC}|selection|labels", "chexpret", "selection.labels: 'chexpret' is no table of a synthetic dataset"),
    (f"{MIMIC}|selection|labels", ["chexpert"], "selection.labels: must be a valid string, not a list"),
    (f"{MIMIC}|selection|reports", "elsewhere", "selection.reports: must be null: a synthetic dataset has its reports"),
    # image processors
    (f"{QWEN}|image", {"max_pixel": 9}, "backbones.tiny-qwen2.5-vl.image.max_pixel: cannot be set"),
    (f"{QWEN}|image", {"size": {"height": 9}}, "backbones.tiny-qwen2.5-vl.image.size: cannot be set"),
    (f"{QWEN}|image", {"max_pixels": "401408"}, "backbones.tiny-qwen2.5-vl.image.max_pixels: must be a whole number"),
    (f"{QWEN}|image", {"max_pixels": 0}, "backbones.tiny-qwen2.5-vl.image.max_pixels: must be a whole number"),
    (f"{QWEN}|image", {"max_pixels": 1.5}, "backbones.tiny-qwen2.5-vl.image.max_pixels: must be a whole number"),
    (f"{QWEN}|image", {"max_pixels": [1]}, "backbones.tiny-qwen2.5-vl.image.max_pixels: must be a whole number"),
    (f"{QWEN}|image", {"max_pixels": True}, "backbones.tiny-qwen2.5-vl.image.max_pixels: must be a whole number"),
    (
        f"{QWEN}|image",
        {"min_pixels": 9, "max_pixels": 8},
        "backbones.tiny-qwen2.5-vl.image.min_pixels: must not exceed max_pixels, which is 8",
    ),
    (f"{QWEN}|image", {"patch_size": 14}, "backbones.tiny-qwen2.5-vl.image.patch_size: cannot be set"),
    (f"{TINY}|image", {"max_pixels": 9}, "backbones.tiny-gemma3.image.max_pixels: cannot be set"),
    (f"{TINY}|image", {"do_pan_and_scan": True}, "backbones.tiny-gemma3.image.do_pan_and_scan: cannot be set"),
    (f"{TINY}|image", {"image_mean": [0.5]}, "backbones.tiny-gemma3.image.image_mean: must be a list of three numbers"),
    (f"{TINY}|image", {"resample": 9}, "backbones.tiny-gemma3.image.resample: must be a whole number from 0 to 5"),
    (f"{TINY}|image", {"do_normalize": "no"}, "backbones.tiny-gemma3.image.do_normalize: must be true or false"),
    (f"{TINY}|image", None, "backbones.tiny-gemma3.image: must be a mapping, not null"),
    (f"{TINY}|image", [1], "backbones.tiny-gemma3.image: must be a mapping, not a list"),
    (f"{TINY}|image", {"image_std": [0, 0, 0]}, "image.image_std: must be a list of three numbers, one for each"),
    (f"{TINY}|image", {"image_std": [1, 1, 1e-300]}, "image.image_std: must be a list of three numbers"),
    (f"{TINY}|image", {"image_mean": [0, 0, 1e300]}, "image.image_mean: must be a list of three numbers"),
    (f"{TINY}|image", {"rescale_factor": 1e308}, "image.rescale_factor: must be a number above 0 and at most 1000"),
    # a choice between a number and names
    ("analysis|view|studies", -1, "analysis.view.studies: must be greater than or equal to 0, not -1, or must be a"),
    # values that contain themselves, are too many, or that YAML knows and a configuration does not
    ("methods|dive", ITSELF, f"is nested more than {DEEPEST} levels deep or contains itself"),
    ("seeds", ITSELF_LIST, f"is nested more than {DEEPEST} levels deep or contains itself"),
    ("grids", WIDE, f"is nested more than {DEEPEST} levels deep or contains itself"),
    ("seeds", [0] * 200_000, "has more than 100,000 values"),
    ("methods", {f"m{i}": {"like": "dive"} for i in range(2000)}, "methods: has 2,028 entries; at most"),
    ("methods|dive|title", "x" * 20_000, "methods.dive.title: has 20,000 characters"),
    ("seeds", {0, 1}, "seeds: is a set; write"),
    ("methods|dive|title", b"DIVE", "methods.dive.title: is binary data; write"),
    ("methods|dive|title", yaml.safe_load("2026-01-01"), "methods.dive.title: is a date; write"),
    ("datasets", {"a": {"like": "b"}, "b": {"like": "a"}}, "datasets.a.like: 'a' inherits from itself"),
    # rows
    ("grids|main", {**CONFIG["grids"]["main"], **ONE_WAY}, "grids.main.methods: no method is left"),
]  # fmt: skip


def replaced(path: str, value: Any) -> dict[str, Any]:
    """The default configuration with one value replaced, or entries added; keys of the path are separated by bars."""
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split("|")
    entry = config
    for parent in parents:
        entry = entry[parent]
    adds = not parents and last in ("methods", "datasets", "backbones", "grids") and isinstance(value, dict)
    entry[last] = {**entry[last], **value} if adds else value
    return config


def told(config: Any) -> str:
    """The message about a configuration: it comes at once and in little memory, and every line has a key."""
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ConfigError) as raised:
        resolve(config)
    assert time.process_time() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
    lines = str(raised.value).splitlines()
    assert lines[0] == "The configuration (config.yaml and its overlays) cannot be run:"
    assert 1 <= len(lines) - 1 <= 51
    for line in lines[1:]:
        assert re.fullmatch(r"  (\S.*: .{8,}|\.\.\. and \d+ more keys)", line), line
        assert len(line) < 1500
    return str(raised.value)


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 120


@pytest.mark.parametrize(("path", "value", "message"), ZOO, ids=range(len(ZOO)))
def test_each_is_one_message_with_key_and_remedy(path: str, value: Any, message: str) -> None:
    assert message in told(replaced(path, value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["main", "dive", "live", "all", "auto", "dive@synthetic-mimic-cxr", "tiny-gemma3", "x" * 300]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4) | st.sampled_from(["like", "kind", "module", "title"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in entries for place in places(item, (*path, key)))]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(places(CONFIG)[1:]), value=JSON)
@example(place=("experiments", 0), value={"main": None})
@example(place=("methods", "dive_static", "like"), value=["live"])
def test_any_value_anywhere_is_accepted_or_told(place: tuple[Any, ...], value: Any) -> None:
    config = copy.deepcopy(CONFIG)
    entry = config
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    message = ""
    try:
        resolved = resolve(config)
    except ConfigError as error:
        message = str(error)
    if message:
        assert ": " in message.splitlines()[1]
    else:
        assert json.loads(json.dumps(resolved)) == resolved


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(data=b"a: &a [*a]")
@example(data=b"? [1]\n: 2")
@example(data=b"a: " + b"[" * 100_000)
def test_any_bytes_are_read_or_told(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    message, found = "", None
    try:
        found = read_file(path)
    except ConfigError as error:
        message = str(error)
    assert message.startswith(str(path)) or isinstance(found, dict)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"shots: 2\nshots: 3\n", "line 2: the file: the key 'shots' is there twice, first in line 1; keep one"),
        (b"a: {b: 1, c: 2, 'b': 3}", "line 1: a: the key 'b' is there twice"),
        (b'{"a": 1,\n"a": 2}', "line 2: the file: the key 'a' is there twice"),
        (b"a:\n  - b: 1\n    b: 2", "line 3: a.0: the key 'b' is there twice"),
        ("title: Dïve".encode("latin-1"), "line 1 is not UTF-8 (perhaps Latin-1); save the file as UTF-8"),
        ("a: 1\ntitle: “x”".encode("cp1252"), "line 2 is not UTF-8"),
        ("a: 1".encode("utf-16"), "a text in UTF-16 or UTF-32; save it as a text in UTF-8"),
        ("a: 1".encode("utf-16-le"), "a text in UTF-16 or UTF-32"),
        (b"\x89PNG\r\n\x1a\n\x00", "binary"),
        (b"m: &m\n  dive: {title: x}\n  o: *m", "line 1: m.o: the anchor contains itself; write the value out"),
        (b"seeds: &s [0, *s]", "line 1: seeds.1: the anchor contains itself"),
        (b"a: &a [*a]", "line 1: a.0: the anchor contains itself"),
        (b"a: *b", "undefined alias"),
        (b"a: [" * 30, "line 1: values are nested more than 20 levels deep"),
        (b"a: " + b"[" * 200_000 + b"]" * 200_000, "line 1: values are nested more than 20 levels deep"),
        (
            b"a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
            + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 9)),
            "more than 100,000 values",
        ),
        (b"- 1", "must have keys at its top level, like `seeds: [0]`, not a list"),
        (b"text", "must have keys at its top level, like `seeds: [0]`, not a text"),
        (b"a:\n\tb: 1", "line 2: found character that cannot start any token; correct the YAML"),
        (b"a: b: c", "line 1: mapping values are not allowed in this context; correct the YAML"),
        (b"a: [1", "correct the YAML"),
        (b"? [1, 2]\n: 3", "line 1: the file: a mapping or list cannot be a key"),
        (b"a: 2026-13-45", "line 1: a: '2026-13-45' cannot be read as timestamp; if it is a text, put it in quotes"),
        (b"a: " + b"9" * 5000, "cannot be read as int; if it is a text, put it in quotes"),
        (b"a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        (b"a: 1\n---\nb: 2", "another document"),
        (b"x" * (5 * 2**20), "5 MiB are too much for a configuration"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_line_and_remedy(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as raised:
        read_file(path)
    assert str(raised.value).startswith(f"{path}")
    assert message in str(raised.value)
    assert len(str(raised.value)) < 600
    assert "\n" not in str(raised.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: there is no such file; correct the path"):
        read_file(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="Is a directory; correct the path"):
        read_file(tmp_path)


def test_files_are_read_as_snakemake_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\ufeffm: &m {a: 1, b: [1, 2]}\nn: {<<: *m, a: 2}\n", encoding="utf-8")
    (tmp_path / "b.json").write_text('{\n\t"m": {"b": [3]}\n}')
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    files = [tmp_path / name for name in ("a.yaml", "b.json", "empty.yaml")]
    assert read_files(files) == {"m": {"a": 1, "b": [3]}, "n": {"a": 2, "b": [1, 2]}}
    assert read_file(ROOT / "config.yaml") == CONFIG
    assert overlay({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


def test_a_command_line_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("configfile: [config/paper.yaml]\ncores: all\n")
    files, rest = files_of(["main", "--profile", str(tmp_path), "--configfile", "a.yaml", "b.yaml", "--cores", "2"])
    assert files == ["config.yaml", "config/paper.yaml", "a.yaml", "b.yaml"]
    assert rest == ["main", "--cores", "2"]
