"""What makes a target rerun, in a line per cause."""

import json

import pytest

from dive.why import Job, changes_of, failure_of, read_plan, summarise

BEFORE = "{'kind': 'steering', 'rank': 16, 'loss': {'kd': 1.0, 'ce': 0.5}}"
ACCOUNT = "Union of exclusive params before and now across all output: before: {before} now: {now} "


def params(before, now):
    return "Params have changed since last execution: " + ACCOUNT.format(before=before, now=now)


def test_a_changed_rank_is_one_line_with_all_that_follows_from_it():
    reason = params(BEFORE, BEFORE.replace("16", "8"))
    jobs = [Job("distill", ["cache"], [f"adapter{n}"], reason) for n in range(2)]
    jobs += [
        Job("generate", [f"adapter{n}"], [f"reports{n}"], f"Input files updated by another job: adapter{n}")
        for n in range(2)
    ]
    jobs += [
        Job("tabulate", ["reports0", "reports1"], ["table"], "Input files updated by another job: reports0, reports1")
    ]
    told = summarise(jobs).splitlines()
    assert told[0] == "rank 16 -> 8: 2 trainings, 2 generations, 1 other job"
    assert told[1].startswith("5 jobs in all")


def test_several_causes_are_told_apart_and_joined_where_they_meet():
    jobs = [
        Job("distill", [], ["a"], params(BEFORE, BEFORE.replace("0.5", "0.7"))),
        Job("score", [], ["b"], params("'0123456789abcdef'", "'fedcba9876543210'")),
        Job("tabulate", ["a", "b"], ["t"], "Missing output files: t; Input files updated by another job: a, b"),
    ]
    told = summarise(jobs).splitlines()
    assert "loss.ce 0.5 -> 0.7: 1 training" in told
    assert "changed code: 1 scoring" in told
    assert "changed code; loss.ce 0.5 -> 0.7: 1 job" in told


def test_a_first_run_has_one_cause():
    jobs = [
        Job("split", [], ["studies"], "Missing output files: studies"),
        Job("select", ["studies"], ["pool"], "Missing output files: pool; Input files updated by another job: studies"),
    ]
    assert summarise(jobs).splitlines()[0] == "results that are not there yet: 1 split, 1 other job"
    assert summarise([]).startswith("Nothing to do")


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ("4", "8", {"4 -> 8"}),
        ("'a'", "'b'", {"a -> b"}),
        ("{'rank': 16}", "{'rank': 16, 'state': 'own'}", {"state unset -> 'own'"}),
        ("{'rank': 16},'" + "a" * 16 + "'", "'" + "b" * 16 + "',{'rank': 8}", {"rank 16 -> 8", "changed code"}),
        ("'" + "a" * 64 + "'", "'" + "b" * 64 + "'", {"changed content of files"}),
        ("{'files': '" + "a" * 64 + "'}", "{'files': '" + "b" * 64 + "'}", {"changed content (files)"}),
        ("<nothing exclusive>", "[0, 1]", {"changed settings of distill"}),
        ("nan", "<object>", {"changed settings of distill"}),
    ],
)
def test_every_kind_of_change_is_named(before, now, told):
    assert changes_of("distill", ACCOUNT.format(before=before, now=now)) == told


def test_the_plan_is_read_without_the_final_target():
    job = {"rule_name": "split", "input": ["a"], "output": ["b"], "reason": "Missing output files: b", "wildcards": {}}
    read = read_plan([json.dumps(job), json.dumps({**job, "rule_name": "all", "output": []})])
    assert [(job.rule, job.inputs, job.outputs) for job in read] == [("split", ["a"], ["b"])]


def test_a_failed_dry_run_is_told_without_the_list_of_options() -> None:
    usage = "usage: x [-h]\n [--cores N]\nx: error: unrecognized arguments: --bogus"
    assert failure_of(usage) == "unrecognized arguments: --bogus; `snakemake --help` lists the options"
    assert failure_of("Using a profile\nBuilding DAG of jobs...\nNo rule makes x\n") == "No rule makes x"
    assert failure_of("") == "the dry run failed"
