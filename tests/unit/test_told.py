"""Errors of jobs: one that a user can mend is its sentence on the terminal, a fault of the program keeps its stack."""

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dive import files
from dive.data.roots import DataError, require_root
from dive.data.studies import read_studies
from dive.job import logged
from dive.steering.base import steered_layers
from dive.told import sentence_of


def end_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> tuple[BaseException, str]:
    """How a job ends that does this, and its log."""
    monkeypatch.chdir(tmp_path)
    try:
        with logged("logs/job.log"):
            work()
    except BaseException as error:
        ended = error
    return ended, Path("logs/job.log").read_text(encoding="utf-8")


def test_an_error_of_the_data_is_its_sentence_and_the_log_has_the_stack(tmp_path, monkeypatch):
    ended, log = end_of(tmp_path, monkeypatch, lambda: require_root("mimic_cxr", "absent", "mine"))
    assert isinstance(ended, SystemExit)
    assert str(ended).startswith("datasets.mine: no mimic_cxr data at absent")
    assert "ERROR datasets.mine: no mimic_cxr data at absent" in log
    assert "Traceback" in log
    assert "DataError" in log


def test_what_the_package_raises_on_purpose_is_told_whatever_its_class(tmp_path, monkeypatch):
    ended, _ = end_of(tmp_path, monkeypatch, lambda: steered_layers([9], 4))
    assert isinstance(ended, SystemExit)
    assert str(ended) == "methods.*.layers is [9], but the backbone's layers are 0 to 3"


@pytest.mark.parametrize("fault", [lambda: {}["x"], lambda: int("x"), lambda: [][1], lambda: pd.DataFrame()["x"]])
def test_a_fault_of_the_program_keeps_its_stack(tmp_path, monkeypatch, fault):
    ended, log = end_of(tmp_path, monkeypatch, fault)
    assert not isinstance(ended, SystemExit)
    assert "Traceback" in log
    assert "ERROR failed" in log


def test_a_fault_inside_the_package_keeps_its_stack(tmp_path, monkeypatch):
    ended, _ = end_of(tmp_path, monkeypatch, lambda: steered_layers(3, 4))  # a number where a list is wanted
    assert isinstance(ended, TypeError)


def test_an_interrupt_is_said_in_a_word(tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    assert str(end_of(tmp_path, monkeypatch, interrupt)[0]) == "interrupted"


def write_parquet(path):
    pq.write_table(pa.table({"study_uid": ["s1"] * 50, "target": ["text"] * 50}), path)


WRITERS = {
    "studies.parquet": write_parquet,
    "pool.json": lambda path: path.write_text(json.dumps({"queries": ["s1"] * 50})),
}
READERS = {"studies.parquet": lambda path: read_studies(path, ["study_uid"]), "pool.json": files.read_json}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_names_itself(tmp_path, monkeypatch, name, share):
    path = tmp_path / "results" / name
    path.parent.mkdir()
    WRITERS[name](path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    ended, _ = end_of(tmp_path, monkeypatch, lambda: READERS[name](f"results/{name}"))
    assert isinstance(ended, SystemExit)
    assert str(ended).startswith(
        f"results/{name}"
    )  # by its reader, or where that passes a library's error on by `told`


def test_every_library_s_complaint_of_a_truncated_file_names_it(tmp_path, monkeypatch):
    """As if a module of the package read each of them."""
    module = tmp_path / "reading.py"
    module.write_text(
        "import gzip, zipfile, csv, json\n"
        "import pandas as pd, pyarrow.parquet as pq\n"
        "from PIL import Image\n"
        "from safetensors import safe_open\n"
        "def gz(path):\n    with gzip.open(path) as handle:\n        return handle.read()\n"
        "def table(path):\n    return pd.read_csv(path)\n"
        "def archive(path):\n    return zipfile.ZipFile(path)\n"
        "def tensors(path):\n    return safe_open(path, 'np')\n"
        "def text(path):\n    return open(path, encoding='utf-8').read()\n"
        "def image(path):\n    return Image.open(path).load()\n"
    )
    monkeypatch.setattr("dive.told.PACKAGE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    import reading

    content = {
        "gz": gzip.compress(b"x" * 1000)[:20],
        "table": gzip.compress(b"a,b\n1,2\n" * 1000)[:20],
        "archive": b"PK\3\4 no more",
        "tensors": b"\x10\0\0\0\0\0\0\0{",
        "text": b"caf\xe9",
        "image": b"\x89PNG\r\n",
    }
    for reader, data in content.items():
        path = tmp_path / f"{reader}{'.csv.gz' if reader == 'table' else ''}"
        path.write_bytes(data)
        told = None
        try:
            getattr(reading, reader)(str(path))
        except Exception as error:
            told = sentence_of(error)
        assert told is not None, reader
        assert told.startswith(f"{path} is damaged or incomplete ("), told
        assert told.endswith("copy or download it again")


def test_a_library_s_word_counts_and_no_file_that_was_not_read_is_blamed(tmp_path, monkeypatch):
    """Of a damaged model, say, while the study table lies beside: removing that would cost a result."""
    for name, text in {
        "package/passing": "from failing import fail\ndef work(model, studies, complaint):\n    n = len(studies)\n"
        "    return fail(\n        model,\n        complaint)\n",
        "library/failing": "def fail(model, complaint):\n    raise OSError(complaint)\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend((tmp_path / name).parent)
    monkeypatch.setattr("dive.told.PACKAGE", str(tmp_path / "package"))
    import passing

    studies, processor = tmp_path / "studies.parquet", tmp_path / "processor.json"
    studies.touch(), processor.touch()
    told = []
    for model, complaint in (
        (tmp_path, f"the file at '{processor}' is not valid"),
        (tmp_path, "no"),
        (processor, "no"),
    ):
        try:
            passing.work(str(model), str(studies), complaint)
        except OSError as error:
            told.append(sentence_of(error))
    assert told[1] is None
    assert told[0] == told[2]
    assert told[0].startswith(f"{processor} is damaged or incomplete (OSError)")


def test_the_operating_system_s_errors_name_the_file(tmp_path, monkeypatch):
    ended, _ = end_of(tmp_path, monkeypatch, lambda: Path("absent/file").read_bytes())
    assert str(ended) == "absent/file: No such file or directory"
    ended, _ = end_of(tmp_path, monkeypatch, lambda: Path("logs").read_bytes())
    assert str(ended) == "logs: Is a directory"
    full = OSError(28, "No space left on device")
    assert sentence_of(full) == "No space left on device (OSError)"
    assert "main memory" in sentence_of(MemoryError())


def test_the_terminal_hears_the_sentence_once(tmp_path, monkeypatch, capsys):
    def work():
        logging.getLogger("dive").info("reading")
        require_root("chexpert_plus", "absent", "mine")

    ended, _ = end_of(tmp_path, monkeypatch, work)
    printed = capsys.readouterr().err  # the interpreter prints what SystemExit holds
    assert printed == "reading\n"
    assert str(ended).count("no chexpert_plus data") == 1
    assert isinstance(ended.__context__, DataError)
