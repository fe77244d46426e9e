"""The code version changes with what would run differently, and with nothing else."""

from pathlib import Path

import pytest

from dive import provenance


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of three modules: the script imports ``loss``, which imports ``maths`` inside a function."""
    package = tmp_path / "workflow" / "dive"
    files = {
        "scripts/train.py": "from dive.steering.loss import loss\nloss()\n",
        "workflow/dive/__init__.py": "",
        "workflow/dive/steering/__init__.py": "",
        "workflow/dive/steering/loss.py": (
            '"""Losses."""\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from dive import hints\n\n\n'
            'def loss():\n    """Sum."""\n    from dive import maths  # late\n\n    return maths.add("""a\n\n  b""")\n'
        ),
        "workflow/dive/maths.py": "def add(x):\n    return x  # as it is: ä\n",
        "workflow/dive/hints.py": "A = 1\n",
        "workflow/dive/steering/live.py": "from . import loss\nfrom .. import maths\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    return tmp_path


def version_after(path: Path, old: str, new: str, *files: str) -> str:
    """Version of ``files`` once ``old`` has become ``new`` in ``path``, as a fresh process would compute it."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return fresh(*files)


def fresh(*files: str) -> str:
    forget()
    return provenance.code_version(*files)


def fresh_alone(*modules: str) -> str:
    forget()
    return provenance.code_alone(*modules)


def forget() -> None:
    for cached in (provenance._module_file, provenance._tree, provenance._imports, provenance._essence):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("workflow/dive/steering/loss.py", '"""Losses."""', '"""What is minimised.\n\nAt length. # no comment\n"""'),
        ("workflow/dive/steering/loss.py", '    """Sum."""\n', ""),
        ("workflow/dive/steering/loss.py", "  # late\n", "\n\n    # a line of its own\n"),
        ("workflow/dive/maths.py", "  # as it is: ä", "   "),
        ("workflow/dive/hints.py", "A = 1", "A = 2"),
        ("workflow/dive/steering/live.py", "import maths", "import hints"),
    ],
)
def test_comments_docstrings_and_strangers_do_not_count(project: Path, file: str, old: str, new: str) -> None:
    before = fresh("scripts/train.py")
    assert version_after(project / file, old, new, "scripts/train.py") == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("scripts/train.py", "loss()", "loss() or loss()"),
        ("workflow/dive/maths.py", "return x", "return x + 1"),
        ("workflow/dive/steering/loss.py", "a\n\n  b", "a\n  b"),
        ("workflow/dive/steering/loss.py", "a\n\n  b", "a\n \n  b"),
        ("workflow/dive/steering/__init__.py", "", "import dive.hints"),
    ],
)
def test_code_counts_wherever_an_import_leads(project: Path, file: str, old: str, new: str) -> None:
    before = fresh("scripts/train.py")
    assert version_after(project / file, old, new, "scripts/train.py") != before


STATED = """from dive import maths
def f(x):
    if x is None:
        raise ValueError("of two lines, "
            f"and a value: {x}")  # why
    log.info("a %s", x)
    login.x()
    return x
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('raise ValueError("of two lines, "\n            f"and', 'raise KeyError(f"and'),
        ('log.info("a %s", x)', 'log.warning(  # why\n        "b %s",\n        x)'),
        ("import maths\n", "import maths  # a comment\n"),
    ],
)
def test_code_alone_is_the_same_when_a_message_or_an_imported_module_changes(project: Path, old: str, new: str) -> None:
    file = project / "workflow/dive/stated.py"
    file.write_text(STATED, encoding="utf-8")
    before = fresh_alone("dive.stated")
    assert old in STATED
    file.write_text(STATED.replace(old, new), encoding="utf-8")
    (project / "workflow/dive/maths.py").write_text("A = 1\n", encoding="utf-8")
    assert fresh_alone("dive.stated") == before


@pytest.mark.parametrize(
    ("old", "new"), [("x is None", "not x"), ("login.x()", "login.y()"), ("return x", "return -x")]
)
def test_code_alone_counts_what_a_module_does(project: Path, old: str, new: str) -> None:
    file = project / "workflow/dive/stated.py"
    file.write_text(STATED, encoding="utf-8")
    before = fresh_alone("dive.stated")
    file.write_text(STATED.replace(old, new), encoding="utf-8")
    assert fresh_alone("dive.stated") != before


def test_relative_imports_and_a_method_by_name(project: Path) -> None:
    files = ("scripts/train.py", *provenance.module_of({"module": "live"}))
    assert fresh(*files) != fresh("scripts/train.py")
    before = fresh("dive.steering.live")
    assert version_after(project / "workflow/dive/maths.py", "return x", "return 2 * x", "dive.steering.live") != before


def test_prompts_name_no_module() -> None:
    assert provenance.module_of({"kind": "prompt"}) == ()


def test_an_absent_script_is_named(project: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"scripts/absent\.py"):
        fresh("scripts/absent.py")


def test_the_same_under_every_module_of_this_package() -> None:
    """Taking comments and docstrings out never breaks a real module: what is left still compiles, save empty bodies."""
    for path in provenance.PACKAGE.rglob("*.py"):
        provenance._essence(path)


def test_where_data_lie_and_how_jobs_are_framed_decides_nothing_of_a_model_s_results() -> None:
    """Their errors and progress lines may change without a day of training."""
    for rule in ("cache_vision", "cache_teacher", "cache_layers", "distill", "generate", "analyse"):
        reached = set(provenance._reached([f"scripts/{rule}.py"]))
        assert {f"workflow/dive/{name}.py" for name in ("files", "shards", "backbones/loading")} <= reached
        readers = {f"workflow/dive/data/{name}.py" for name in ("roots", "mimic_cxr", "chexpert_plus", "selection")}
        assert not (readers | {f"workflow/dive/{name}.py" for name in ("progress", "software", "warm")}) & reached, rule


def test_a_batch_size_decides_where_rounding_can_change_a_word() -> None:
    settings = {"path": "p", "batch": {"teacher": 4}}
    assert provenance.decisive({**settings, "dtype": "float32"}) == {"path": "p", "dtype": "float32"}
    for dtype in ("bfloat16", "float16"):
        assert provenance.decisive({**settings, "dtype": dtype}) == {**settings, "dtype": dtype}


def test_a_record_names_no_machine() -> None:
    record = provenance.record(dataset={"root": "/data/secret/mimic-cxr", "sizes": (1, None)})
    assert record["settings"] == {"dataset": {"root": "mimic-cxr", "sizes": [1, None]}}
    assert {"python", "numpy", "torch", "transformers"} <= set(record["packages"])


def test_a_record_carries_the_version_of_the_module_that_asks() -> None:
    names = {"__name__": "dive.files", "record": provenance.record}
    assert eval("record()", names)["code"] == provenance.code_version("dive.files")
