"""A zoo of malformed report files: each is one error with file, row and remedy, or is read as it is meant."""

import csv
import json
import time

import pandas as pd
import pytest

from dive.command import main
from dive.data.generations import LONGEST, read_generations
from dive.data.reports import LONGEST_LINE, import_reports
from dive.data.roots import DataError
from tests.unit.test_score import TARGETS

HEAD = "study_uid,hypothesis,reference\n"
SOUND = "s1,No effusion.,No pleural effusion.\n"
ROW = {"study_uid": "s1", "hypothesis": "No effusion.", "reference": "No pleural effusion."}
SECRET = "Unmentionable"
"""A word of every text in a malformed row: no error may repeat it."""


def line(**cells) -> str:
    """A line of JSON after a sound one; ``...`` leaves a column out."""
    row = {"study_uid": "s2", "hypothesis": SECRET, "reference": SECRET, **cells}
    kept = {name: value for name, value in row.items() if value is not ...}
    return f"{json.dumps(ROW)}\n{json.dumps(kept)}\n"


CSV = {
    "an unquoted comma in the hypothesis": (
        HEAD + SOUND + f"s2,{SECRET}, no effusion,Clear.\n",
        "row 2, line 3: has 4",
    ),
    "an unquoted comma in the reference": (HEAD + SOUND + f"s2,Clear.,{SECRET}, no effusion\n", "row 2, line 3: has 4"),
    "a trailing comma": (
        HEAD + SOUND + f"s2,{SECRET},{SECRET},\n",
        "row 2, line 3: has 4 cells where the header has 3",
    ),
    "a short row": (HEAD + SOUND + f"s2,{SECRET}\n", "row 2, line 3: has 2 cells where the header has 3"),
    "a row of one cell": (HEAD + f"{SECRET}\n" + SOUND, "row 1, line 2: has 1 cells"),
    "a row of blanks": (HEAD + SOUND + "   \n", "row 2, line 3: has 1 cells"),
    "an open quote": (HEAD + f's1,"{SECRET},Clear.\n' + SOUND * 3, "row 1, line 2: is no CSV"),
    "an open quote that a later cell closes": (
        HEAD + f's1,"{SECRET},Clear.\ns2,"{SECRET}, clear",Clear.\n',
        "row 1, line 2: is no CSV",
    ),
    "an open quote before a quoted row": (HEAD + f's1,"{SECRET},b\n"s2","c","d"\n', "row 1, line 2: is no CSV"),
    "an open quote in the last row": (HEAD + SOUND + f's2,Clear.,"{SECRET}\n', "row 2, line 3: is no CSV"),
    "an open quote in the header": ('study_uid,"hypothesis,reference\n' + SOUND, "line 1: is no CSV"),
    "text after a closing quote": (HEAD + f's1,"{SECRET}" clear,Clear.\n', "row 1, line 2: is no CSV"),
    "a quote that is not doubled": (HEAD + f's1,"a "{SECRET}" b",Clear.\n', "row 1, line 2: is no CSV"),
    "a doubled column": ("hypothesis,reference,hypothesis\na,b,c\n", "line 1: has the column hypothesis 2 times"),
    "a tripled reference": ("reference,hypothesis,reference,reference\n,,,\n", "the column reference 3 times"),
    "a doubled identifier": ("study_uid,study_uid,hypothesis,reference\n,,,\n", "the column study_uid 2 times"),
    "a header that is repeated": (HEAD + SOUND + HEAD, "row 2, line 3: repeats the header"),
    "a header repeated with its mark": (HEAD + SOUND + "\ufeff" + HEAD, "row 2, line 3: repeats the header"),
    "a header of another order": (
        HEAD + SOUND + "reference,study_uid, hypothesis\n",
        "row 2, line 3: repeats the header",
    ),
    "a study again, with a blank": (HEAD + SOUND + f"s1 ,{SECRET},b\n", "1 study (s1) more than once"),
    "a study again, after a mark": (HEAD + SOUND + f"\ufeffs1,{SECRET},b\n", "1 study (s1) more than once"),
    "a study again, composed": (HEAD + f"\u00e9,{SECRET},b\ne\u0301,{SECRET},b\n", "1 study (\u00e9) more than once"),
    "what a spreadsheet makes of - No": (
        HEAD + SOUND + "s2,#NAME?,b\n",
        "column hypothesis holds #NAME?, which stands",
    ),
    "a reference of #N/A": (HEAD + SOUND + f"s2,{SECRET},#N/A\n", "row 2, line 3: column reference holds no reference"),
    "a reference that was removed": (HEAD + SOUND + f"s2,{SECRET},___\n", "column reference holds no reference"),
    "a reference that nobody sees": (HEAD + SOUND + f"s2,{SECRET},\u200b\n", "column reference holds no reference"),
    "no header": (f"{SECRET} lungs are clear without effusion,{SECRET}\n", "its first row is no header"),
    "semicolons": (HEAD.replace(",", ";") + SOUND, "columns are separated by commas"),
    "tabulators": (HEAD.replace(",", "\t") + SOUND, "columns are separated by commas"),
    "a column of another name": (
        "hypothesis,truth\na,b\n",
        "has no column reference; it has hypothesis, truth; rename",
    ),
    "a column in capitals": ("Hypothesis,reference\na,b\n", "has no column hypothesis"),
    "an empty file": ("", "is empty; its first row must name"),
    "a header alone": (HEAD, "has no reports; check"),
    "an empty reference": (HEAD + SOUND + f"s2,{SECRET},\n", "row 2, line 3: column reference holds no reference"),
    "a blank reference": (HEAD + SOUND + f's2,{SECRET},"  "\n', "row 2, line 3: column reference holds no reference"),
    "a reference NaN": (HEAD + SOUND + f"s2,{SECRET},NaN\n", "row 2, line 3: column reference holds no reference"),
    "a hypothesis nan": (HEAD + SOUND + "s2,nan,Clear.\n", "row 2, line 3: column hypothesis holds nan"),
    "a hypothesis None": (HEAD + SOUND + "s2,None,Clear.\n", "row 2, line 3: column hypothesis holds None"),
    "a hypothesis <NA>": (HEAD + SOUND + "s2, <NA> ,Clear.\n", "leave the cell empty"),
    "an empty identifier": (HEAD + SOUND + f",{SECRET},{SECRET}\n", "row 2, line 3: column study_uid is empty"),
    "an identifier nan": (HEAD + SOUND + f"nan,{SECRET},{SECRET}\n", "row 2, line 3: column study_uid is empty"),
    "a study twice": (HEAD + SOUND * 2, "1 study (s1) more than once (first: row 1, line 2 and row 2, line 3)"),
    "Windows-1252": ((HEAD + f"s1,{SECRET} caf\xe9,b\n").encode("cp1252"), "line 2: byte 0xe9 at character 21 is no"),
    "UTF-16": ((HEAD + SOUND).encode("utf-16"), "line 1: byte 0xff at character 1 is no text in UTF-8"),
    "UTF-16 without a mark": ((HEAD + SOUND).encode("utf-16-le"), "line 1: byte 0x00 at character 2 is no"),
    "UTF-16, big end first": ((HEAD + SOUND).encode("utf-16-be"), "save it as UTF-8"),
    "UTF-32": ((HEAD + SOUND).encode("utf-32"), "save it as UTF-8"),
    "half a character": ((HEAD + f"s1,{SECRET} ").encode() + b"\xed\xa0\xbd,b\n", "line 2: byte 0xed"),
    "a character cut at the end": ((HEAD + f"s1,b,{SECRET} ").encode() + b"\xe2\x82", "line 2: byte 0xe2"),
    "a NUL": (HEAD + f"s1,{SECRET}\x00,b\n", "line 2: byte 0x00"),
    "a photograph": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "line 1: byte 0x89"),
    "gzip under another name": (b"\x1f\x8b\x08" + bytes(range(200, 256)), "save it as UTF-8"),
    "a text too long": (HEAD + SOUND + f"s2,{SECRET * LONGEST},b\n", "column hypothesis has 1,300,000 characters"),
    "a reference too long": (HEAD + f"s2,b,{'b ' * LONGEST}\n", "row 1, line 2: column reference has 200,000"),
    "a line without end": (HEAD + SECRET * LONGEST_LINE, "line 2: has more than 10,000,000 characters"),
}

JSON = {
    "a row without the hypothesis": (line(hypothesis=...), "row 2, line 2: has no hypothesis; add it, as null"),
    "a row without the reference": (line(reference=...), "row 2, line 2: has no reference"),
    "a row without the identifier": (line(study_uid=...), "row 2, line 2: has no study_uid"),
    "an identifier that rows before lack": (
        json.dumps({**ROW, "study_uid": ...}, default=lambda _: None).replace('"study_uid": null, ', "")
        + "\n"
        + json.dumps(ROW),
        "row 2, line 2: has study_uid, but rows before it do not",
    ),
    "a first row without the hypothesis": ('{"reference": "a"}\n', "row 1, line 1: has no column hypothesis"),
    "a hypothesis NaN": (line(hypothesis=float("nan")), "row 2, line 2: column hypothesis is NaN and no text"),
    "a hypothesis Infinity": (line(hypothesis=float("inf")), "column hypothesis is a number and no text"),
    "a reference NaN": (line(reference=float("nan")), "row 2, line 2: column reference is NaN and no text"),
    "a reference null": (line(reference=None), "row 2, line 2: column reference holds no reference"),
    "an empty reference": (line(reference=" \n "), "row 2, line 2: column reference holds no reference"),
    "a whole number": (line(hypothesis=7), "column hypothesis is a number and no text"),
    "a number": (line(hypothesis=7.5), "column hypothesis is a number and no text"),
    "a number beyond floats": (line(hypothesis="@").replace('"@"', "1e999"), "column hypothesis is a number"),
    "a list": (line(hypothesis=[SECRET]), "row 2, line 2: column hypothesis is a list and no text"),
    "an object": (line(reference={"text": SECRET}), "column reference is an object and no text"),
    "true": (line(hypothesis=True), "column hypothesis is true or false and no text"),
    "a text nan": (line(hypothesis="nan"), "column hypothesis holds nan, which stands for a missing value"),
    "an identifier with a point": (line(study_uid=2034.0), "row 2, line 2: column study_uid is a number and no text"),
    "an identifier null": (line(study_uid=None), "column study_uid is null and no text"),
    "an identifier false": (line(study_uid=False), "column study_uid is true or false"),
    "a number of 5,000 digits": (line(other=0).replace(": 0", ": " + "9" * 5000), "a number of thousands of digits"),
    "lists in lists": (line(other="@").replace('"@"', "[" * 99_999 + "]" * 99_999), "thousands of nested lists"),
    "a lone surrogate": (
        line(hypothesis=f"{SECRET} \ud83d"),
        "row 2, line 2: column hypothesis holds half a character",
    ),
    "a lone surrogate in the reference": (line(reference="\udc00"), "column reference holds half a character"),
    "a lone surrogate in the identifier": (line(study_uid="\ud800"), "column study_uid holds half a character"),
    "a doubled key": (f'{{"hypothesis": "{SECRET}", "hypothesis": "b", "reference": "c"}}', "names a column twice"),
    "half an object": (json.dumps(ROW) + f'\n{{"hypothesis": "{SECRET}', "row 2, line 2: no JSON"),
    "two objects on a line": (json.dumps(ROW) * 2, "row 1, line 1: no JSON (Extra data"),
    "a line break inside a text": (f'{{"hypothesis": "{SECRET}\nclear"}}\n', "row 1, line 1: no JSON"),
    "single quotes": (str(ROW), "row 1, line 1: no JSON"),
    "one list of objects": (json.dumps([ROW]), "row 1, line 1: an object is expected"),
    "an indented list": (json.dumps([ROW], indent=1), "row 1, line 1: no JSON"),
    "a text alone": (f'"{SECRET}"', "row 1, line 1: an object is expected"),
    "null alone": ("null\n", "row 1, line 1: an object is expected"),
    "CSV under another name": (HEAD + SOUND, "row 1, line 1: no JSON"),
    "empty lines alone": ("\n \n", "has no reports"),
    "a study twice, as a number and a text": (
        line(study_uid=7) + json.dumps({**ROW, "study_uid": "7"}),
        "1 study (7) more than once (first: row 2, line 2 and row 3, line 3)",
    ),
    "Windows-1252": (line(hypothesis="@").encode().replace(b"@", b"\x93clear\x94"), "line 2: byte 0x93"),
    "UTF-16": (line().encode("utf-16"), "line 1: byte 0xff"),
    "a text too long": (line(hypothesis="no effusion and " * 10_000), "has 160,000 characters, more than the 100,000"),
    "a line without end": (line() + '{"hypothesis": "' + "a" * LONGEST_LINE, "line 3: has more than 10,000,000"),
}

ZOO = [
    pytest.param(f"theirs.{kind}", *case, id=f"{kind}: {name}")
    for kind, cases in (("csv", CSV), ("jsonl", JSON))
    for name, case in cases.items()
]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_the_zoo_is_large():
    assert len(ZOO) >= 80


@pytest.mark.parametrize(("name", "content", "message"), ZOO)
def test_a_malformed_file_is_one_error_with_file_row_and_remedy(tmp_path, capsys, name, content, message):
    path = write(tmp_path / name, content)
    out = tmp_path / "scores.csv"
    assert main(["score", path, "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert told.err.startswith(path)
    assert message in told.err
    assert ";" in told.err or ":" in told.err.removeprefix(path)  # after which the remedy stands
    assert told.err.count("\n") == 1
    assert len(told.err) < 600
    assert SECRET not in told.err
    assert not told.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "\ufeff" + HEAD + SOUND),
        ("a.csv", "\ufeff" + '"study_uid","hypothesis","reference"\n' + SOUND),
        ("a.csv", (HEAD + SOUND).replace("\n", "\r\n")),
        ("a.csv", (HEAD + SOUND).replace("\n", "\r")),
        ("a.csv", "\n" + HEAD + "\n\n" + SOUND + "\n"),
        ("a.csv", "reference,note,study_uid,hypothesis,note\nNo pleural effusion.,x,s1,No effusion.,y\n"),
        ("a.CSV", HEAD + '"s1","No effusion.","No pleural effusion."'),
        ("a.jsonl", "\ufeff" + json.dumps(ROW) + "\n"),
        ("a.jsonl", json.dumps(ROW) + "\r\n\r\n"),
        ("a.jsonl", json.dumps({**ROW, "study_uid": 1, "losses": [float("nan"), 1e300], "other": {"a": "\ud83d"}})),
    ],
)
def test_a_mark_other_line_ends_and_other_columns_are_read(tmp_path, capsys, name, content):
    write(tmp_path / name, content)
    sound = write(tmp_path / "sound.csv", HEAD + SOUND)
    assert main(["score", sound, "--out", str(tmp_path / "expected.csv")]) == 0
    assert main(["score", str(tmp_path / name), "--out", str(tmp_path / "scores.csv")]) == 0
    found, expected = (
        [row[1:] for row in csv.reader((tmp_path / file).open())][1:] for file in ("scores.csv", "expected.csv")
    )
    assert found == expected
    assert capsys.readouterr().err == ""


def test_texts_with_commas_quotes_breaks_and_other_scripts_are_read_whole(tmp_path):
    texts = ['No "effusion", left\nor right.', "Größe, 心臓 \U0001f600", "\ufeff-", "3", "a\x0bb\u2028c", "none"]
    rows = [{"hypothesis": text, "reference": text, "study_uid": str(i)} for i, text in enumerate(texts)]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    files = [str(tmp_path / name) for name in ("a.csv", "b.jsonl", "c.jsonl")]
    assert main(["score", *files, "--out", str(tmp_path / "scores.csv")]) == 0
    table = {row["metric"]: row for row in csv.DictReader((tmp_path / "scores.csv").open())}
    assert [float(table["bleu4_raw"][file]) for file in files] == [pytest.approx(100)] * 3
    assert [float(table["words"][file]) for file in files] == [sum(len(text.split()) for text in texts) / 6] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "."], "is a folder; name a file to write"),
        (["--reports", "."], "is a folder; name a file to write"),
        (["--out", ""], "--out is empty; name a file to write, or omit it"),
        (["--hypothesis", "reference"], "--hypothesis and --reference both name the column reference; name another"),
        (["--id", "hypothesis"], "--hypothesis and --id both name the column hypothesis; name another one"),
        (["--out", "a.csv"], "is read by this command; name another file"),
        (["--out", "b.csv", "--reports", "b.csv"], "is written by this command; name another file"),
        (["--out", "a.csv/b.csv"], "nothing can be written in"),
        (["--remember", "a.csv"], "is a file; name a folder"),
        (["--vocabulary", "absent.csv"], "absent.csv: is no vocabulary that can be read"),
        (["--vocabulary", "."], "is no vocabulary that can be read"),
        (["--vocabulary", "a.csv"], "a.csv must have the columns observation"),
        (["--vocabulary", "cut.csv"], "cut.csv, line 2: has 5 cells, not 4"),
        (["--references", "absent.csv"], "no file absent.csv; check the path"),
        (["--references", "."], ". is a folder, not a file"),
        (["--references", "blank.csv"], "blank.csv, row 1, line 2: column reference holds no reference"),
        (["--references", "more.csv"], "a.csv lacks 1 study (s2) of more.csv; add them"),
        (["--id", "uid"], "a.csv, line 1: has no column uid; it has"),
        (["--stopped", "hypothesis"], "a.csv, row 1, line 2: column hypothesis says neither true nor false"),
        (["--stopped", "ended"], "has no column ended"),
        (["--radgraph", "a.csv"], "has no config.json, weights.th"),
        (["--chexbert", "a.csv", "--device", "cpu"], "a.csv: not a file of plain tensors"),
        (["--chexbert", "empty.pth", "--device", "cpu"], "empty.pth: not a file of plain tensors"),
        (["--chexbert", "."], "no file ."),
        (["other.csv"], "a.csv and other.csv differ in 2 studies (s1, s9) (column study_uid); score them in separate"),
        (["more.csv"], "more.csv, line 1: has no column hypothesis"),
        (["longer.csv"], "a.csv has 1 reports and longer.csv has 2; score them in separate commands"),
        (["a.xlsx"], "a.xlsx: reports are read from .csv or .jsonl files; unpack or convert it"),
    ],
)
def test_a_wrong_option_is_one_error_before_anything_is_written(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", HEAD + SOUND)
    write(tmp_path / "other.csv", HEAD + SOUND.replace("s1", "s9"))
    write(tmp_path / "longer.csv", HEAD + SOUND + SOUND.replace("s1", "s2"))
    write(tmp_path / "cut.csv", "observation,surface,class,source\nEdema,edema, lungs,observation,own\n")
    write(tmp_path / "blank.csv", "study_uid,reference\ns1,\n")
    write(tmp_path / "more.csv", "study_uid,reference\ns1,Clear.\ns2,Clear.\n")
    for name in ("empty.pth", "a.xlsx"):
        write(tmp_path / name, "")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["score", "a.csv", *options]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "a.csv").read_text() == HEAD + SOUND


@pytest.mark.parametrize("named", [True, False])
def test_files_with_other_references_are_told_apart(tmp_path, capsys, named):
    """Real outputs have them: one writes ``b-lines``, another ``blines``."""
    rows = ["s1,Clear.,No  effusion.\n", "s2,Clear.,No b-lines.\n"]
    head = HEAD if named else HEAD.replace("study_uid", "number")
    first = write(tmp_path / "a.csv", head + "".join(rows))
    same = write(tmp_path / "b.csv", head + "".join(reversed(rows)).replace("  ", " "))
    other = write(tmp_path / "c.csv", head + "".join(rows).replace("b-lines", "blines"))
    assert main(["score", first, same]) == 0
    assert capsys.readouterr().err == ""
    assert main(["score", first, same, other]) == 0
    told = capsys.readouterr().err
    assert told.startswith(
        f"{first} and {other} have other references of {'1 study (s2)' if named else '1 of 2 rows'};"
    )
    assert told.count("\n") == 1


def test_a_repeating_report_takes_linear_time(tmp_path):
    """2,000 repeats took 5 s, and four times as many 16 times as long."""
    seconds = []
    for repeats in (2_000, 6_000):
        text = "no effusion and " * repeats
        path = write(tmp_path / "a.csv", HEAD + f"s1,{text},{text}\n")
        began = time.process_time()
        assert main(["score", path]) == 0
        seconds.append(time.process_time() - began)
    assert seconds[0] < 1.5
    assert seconds[1] < 6 * max(seconds[0], 0.2)


@pytest.fixture
def dataset(tmp_path):
    """Two test studies of a dataset; what returns takes another system's file for them."""
    table = {"study_uid": ["t1", "t2"], "patient_uid": ["p1", "p2"], "target": [TARGETS["t1"], TARGETS["t2"]]}
    pd.DataFrame(table).to_parquet(tmp_path / "studies.parquet")
    (tmp_path / "pool.json").write_text(json.dumps({"test": ["t1", "t2"]}))

    def take(name, content):
        path = write(tmp_path / name, content)
        import_reports(str(tmp_path / "studies.parquet"), str(tmp_path / "pool.json"), path, str(tmp_path / "out"))
        return read_generations(tmp_path / "out")["report"]

    return take


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "study_uid,report\nt1,Clear, no effusion\nt2,b\n", "row 1, line 2: has 3 cells"),
        ("a.csv", "study_uid,report\nt1\nt2,b\n", "row 1, line 2: has 1 cells"),
        ("a.csv", 'study_uid,report\nt1,"a\nt2,b\n', "row 1, line 2: is no CSV"),
        ("a.csv", "study_uid,report,report\nt1,a,b\nt2,a,b\n", "has the column report 2 times"),
        (
            "a.csv",
            "study_uid,report\nt1,a\nt2,b\nt1,c\n",
            r"1 study \(t1\) more than once \(first: row 1, line 2 and row 3",
        ),
        ("a.csv", "study_uid,patient_uid,report\nt1,p2,a\nt2,p2,b\n", r"has 1 study \(t1\) under another patient"),
        ("a.jsonl", '{"study_uid": "t1", "report": "a"}\n{"study_uid": "t2"}\n', "row 2, line 2: has no report"),
        ("a.jsonl", '{"study_uid": "t1", "report": NaN}\n', "row 1, line 1: column report is NaN"),
        ("a.jsonl", '{"study_uid": "t1", "report": "a\\ud83d"}\n', "half a character"),
        ("a.csv", "study_uid,report\nt1,a\n", r"lacks 1 study \(t2\)"),
    ],
)
def test_an_external_system_s_file_is_read_as_strictly(dataset, tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        dataset(name, content)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert not (tmp_path / "out").exists()


def test_an_external_system_may_be_silent_and_name_the_patients(dataset):
    assert dataset("a.csv", "\ufeffstudy_uid,patient_uid,report\nt2,p2,\nt1,p1,Clear.\nx,y,z\n") == ["Clear.", ""]
    assert dataset("a.jsonl", '\ufeff{"study_uid": "t1", "report": null}\n{"study_uid": "t2", "report": "b"}') == [
        "",
        "b",
    ]
