"""A run on one screen: time left by expected time, rows of the table at once, errors printed, chatter not."""

import io
import json
import logging
import time
from types import SimpleNamespace

import pytest
from rich.console import Console
from snakemake_interface_logger_plugins.common import LogEvent

from dive import screen
from dive.job import QUIET
from dive.screen import Clock, LogHandler, LogHandlerSettings, minutes, row_of


def test_the_plugin_is_found_by_snakemake():
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    assert LoggerPluginRegistry().get_plugin("dive").log_handler is LogHandler


def handler(monkeypatch, dry=False, plan=None):
    monkeypatch.delenv(QUIET, raising=False)
    monkeypatch.setattr(screen, "measured_before", lambda: {"distill": [6.0, 2.0, 4.0]})
    return LogHandler(SimpleNamespace(dryrun=dry), LogHandlerSettings(plan=plan))


def record(event=None, level=logging.INFO, message="chatter", **given):
    made = logging.LogRecord("snakemake.logging", level, "", 0, message, (), None)
    made.__dict__.update(event=event, **given)
    return made


def test_done_is_by_expected_time_and_not_by_number_of_jobs():
    clock = Clock({"distill": [4.0, 4.0]})
    clock.waiting = {"distill": 2, "tabulate": 4}
    assert clock.expected("distill") == 4.0
    assert clock.state([]) == (0.0, None)
    clock.began = time.monotonic() - 4.0
    clock.finish("distill", 4.0)
    share, left = clock.state([("distill", 1.0)])
    rest = 4 * screen.OTHER
    assert share == pytest.approx(5.0 / (8.0 + rest))
    assert left == pytest.approx((4.0 + rest - 1.0) / (5.0 / 4.0), rel=0.01)
    assert minutes(125.9) == "2:05"


def test_rows_and_errors_are_printed_and_the_scheduler_s_words_are_not(tmp_path, monkeypatch, capsys):
    out = tmp_path / "scores/set/tiny/live/summary.json"
    out.parent.mkdir(parents=True)
    out.write_text(json.dumps({"metrics": {"bleu4": {"mean": 40.04}, "radgraph_f1": {"mean": None}}}))
    assert row_of(out) == "BLEU-4  40.0"
    assert row_of(tmp_path / "absent.json") == ""
    shown = handler(monkeypatch)
    shown.emit(record(message="Select jobs to execute..."))
    shown.emit(record(LogEvent.RUN_INFO, stats={"score": 1, "all": 1, "total": 2}))
    job = {"rule_name": "score", "rule_msg": "set, tiny, live: scoring", "output": [str(out)]}
    shown.emit(record(LogEvent.JOB_INFO, jobid=3, **job))
    shown.emit(record(LogEvent.JOB_FINISHED, job_id=3))
    shown.emit(record(level=logging.ERROR, message="job 3 stopped"))
    printed = capsys.readouterr().err
    assert "; set, tiny, live: scoring (0:00)" in printed
    assert f"{'set, tiny: live':<52} BLEU-4  40.0" in printed
    assert "job 3 stopped" in printed
    assert "Select jobs" not in printed
    assert shown.clock.waiting == {"score": 0}
    assert not shown.running


def test_a_record_that_cannot_be_shown_stops_nothing(monkeypatch, capsys):
    shown = handler(monkeypatch)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    shown.emit(record(LogEvent.RUN_INFO))  # without its numbers
    shown.emit(record(LogEvent.JOB_FINISHED, job_id=99))


def test_a_dry_run_is_left_to_snakemake_and_its_jobs_are_written(tmp_path, monkeypatch, capsys):
    shown = handler(monkeypatch, dry=True, plan=tmp_path / "plan")
    assert not shown.writes_to_stream
    job = {"rule_name": "score", "rule_msg": "scoring", "input": ["a"], "output": ["b"], "reason": "Forced execution"}
    shown.emit(record(LogEvent.JOB_INFO, jobid=3, **job))
    shown.emit(record(level=logging.WARNING, message="a warning"))
    assert json.loads((tmp_path / "plan").read_text())["output"] == ["b"]
    assert capsys.readouterr().err == ""


def test_a_narrow_terminal_shows_how_long_each_job_has_run(monkeypatch) -> None:
    shown = handler(monkeypatch)
    shown.jobs[3] = ("build_backbone", "a message that is wider than the terminal" * 9, [])
    shown.running[3] = time.monotonic() - 65
    console = Console(width=40, file=io.StringIO())
    console.print(shown.screen())
    assert "\n  1:05  a message" in console.file.getvalue()
