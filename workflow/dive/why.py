"""What a run would do and why: the jobs of a dry run, each counted under the change that makes it run.

A job runs because of a change of its own (settings, code, contents, absent outputs) or because its inputs are made by a
job that runs. The second kind is counted under the changes of the jobs before it.
"""

import ast
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dive.data.roots import DataError
from dive.demo import snakemake

NAMES = {
    "synthesize": "synthetic datasets",
    "build_backbone": "backbones",
    "split": "splits",
    "annotate": "annotations",
    "cache_vision": "vision caches",
    "cache_teacher": "teacher caches",
    "cache_layers": "layer caches",
    "distill": "trainings",
    "generate": "generations",
    "score": "scorings",
}
"""What a reader calls the jobs of a rule, in the order of the workflow; all other jobs are counted together."""

DIGEST = re.compile(r"[0-9a-f]{16,64}")


@dataclass
class Job:
    """A job of a dry run.

    Attributes:
        rule: its name.
        inputs, outputs: its files.
        reason: why it runs, in Snakemake's words.
        causes: changes that make it run, filled by :func:`find_causes`.
    """

    rule: str
    inputs: list[str]
    outputs: list[str]
    reason: str
    causes: set[str] = field(default_factory=set)


def explain(arguments: Sequence[str]) -> str:
    """Say what ``snakemake`` with these arguments would run, and why.

    Args:
        arguments: targets and options of snakemake.

    Returns:
        A line per cause, the one with the most jobs first.

    Raises:
        DataError: the dry run failed; the message is Snakemake's.
    """
    if not Path("Snakefile").is_file() and not {"-s", "--snakefile", "-d", "--directory"} & set(arguments):
        raise DataError("there is no Snakefile in this folder; run `dive why` in the folder of the workflow")
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.jsonl"
        command = [*snakemake(), "--dry-run", "--logger", "dive", "--logger-dive-plan", str(plan), *arguments]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            raise DataError(failure_of(done.stdout))
        lines = plan.read_text(encoding="utf-8").splitlines() if plan.is_file() else []
    return summarise(read_plan(lines))


def failure_of(printed: str) -> str:
    """Why a dry run failed: what Snakemake printed, without its progress and without its list of options."""
    told = printed.strip().rpartition("Building DAG of jobs...\n")[2]
    if told.startswith("usage:"):
        told = told.splitlines()[-1].rpartition(" error: ")[2] + "; `snakemake --help` lists the options"
    return told or "the dry run failed"


def read_plan(lines: Iterable[str]) -> list[Job]:
    """The jobs that the logger plugin wrote, the final target aside."""
    found = [json.loads(line) for line in lines]
    jobs = [Job(job["rule_name"], job["input"] or [], job["output"] or [], job["reason"] or "") for job in found]
    return [job for job in jobs if job.outputs]


def summarise(jobs: Sequence[Job]) -> str:
    """The lines for a reader."""
    if not jobs:
        return "Nothing to do: all results are as the configuration, the data and the code say.\n"
    find_causes(jobs)
    counted: dict[str, Counter[str]] = {}
    for job in jobs:
        counted.setdefault("; ".join(sorted(job.causes)), Counter())[job.rule] += 1
    ordered = sorted(counted.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    lines = [f"{cause}: {describe(rules)}" for cause, rules in ordered]
    return "\n".join([*lines, f"{len(jobs)} jobs in all; `snakemake --dry-run` lists them.", ""])


def describe(rules: Mapping[str, int]) -> str:
    """Numbers of jobs in words, in the order of the workflow: ``36 trainings, 36 generations, 12 other jobs``."""
    parts = [
        f"{rules[rule]} {name if rules[rule] != 1 else name[:-1]}" for rule, name in NAMES.items() if rule in rules
    ]
    if others := sum(count for rule, count in rules.items() if rule not in NAMES):
        parts.append(f"{others} {'other ' if parts else ''}job{'s' if others != 1 else ''}")
    return ", ".join(parts)


def find_causes(jobs: Sequence[Job]) -> None:
    """Fill ``causes`` of every job: its own, and those of the jobs that make its inputs."""
    maker = {output: job for job in jobs for output in job.outputs}

    @cache
    def causes(number: int) -> frozenset[str]:
        job = jobs[number]
        own = own_causes(job, maker)
        made = {id(maker[path]) for path in job.inputs if path in maker}
        before = [causes(index) for index, other in enumerate(jobs) if id(other) in made]
        # An absent output whose inputs are made too is a consequence of these.
        if before and own <= {ABSENT}:
            own = set()
        return frozenset(own.union(*before)) or frozenset({"inputs of unknown origin changed"})

    for number, job in enumerate(jobs):
        job.causes = set(causes(number))


ABSENT = "results that are not there yet"


def own_causes(job: Job, maker: Mapping[str, Job]) -> set[str]:
    """Changes of a job itself, in a reader's words."""
    found = set()
    for part in re.split(r"; (?=[A-Z][a-z]+ )", job.reason):
        head, _, rest = part.partition(": ")
        if head == "Missing output files":
            found.add(ABSENT)
        elif head == "Incomplete output files":
            found.add("results of an interrupted run")
        elif head == "Updated input files":
            changed = [name for name in rest.split(", ") if name not in maker]
            found.update(f"a newer file {name}" for name in changed[:1])
        elif head == "Params have changed since last execution":
            found.update(changes_of(job.rule, rest))
        elif head.startswith("Set of input files"):
            found.add("other input files than before")
        elif head.startswith(("Code has changed", "Software environment")):
            found.add("changed code")
        elif head == "Forced execution":
            found.add("--force")
    return found


def changes_of(rule: str, told: str) -> set[str]:
    """What differs between the parameters before and now, from Snakemake's account of both."""
    before, _, now = told.partition(" now: ")
    before = before.partition("before: ")[2]
    old, new = literals(before), literals(now)
    if old is None or new is None:
        return {f"changed settings of {rule}"}
    found: set[str] = set()
    unmatched = list(new)
    for value in old:
        other = nearest(value, unmatched)
        if other is None:
            found.add(difference(rule, value, None))
            continue
        unmatched.remove(other)
        found.update(differences(rule, value, other))
    found.update(difference(rule, None, value) for value in unmatched)
    return found - {""}


def literals(text: str) -> list[Any] | None:
    """The values of which Snakemake joined the representations; None where they cannot be told apart."""
    if text.strip() == "<nothing exclusive>":
        return []
    try:
        return list(ast.literal_eval(f"({text.strip()},)"))
    except (SyntaxError, ValueError):
        return None


def nearest(value: Any, others: Sequence[Any]) -> Any:
    """The value of the same kind that has most in common with this one; None where there is none."""
    same = [other for other in others if type(other) is type(value) and is_digest(other) == is_digest(value)]
    if isinstance(value, dict):
        return max(same, key=lambda other: len(set(flat(other).items()) & set(flat(value).items())), default=None)
    return same[0] if same else None


def is_digest(value: Any) -> bool:
    """Whether a value stands for code or the content of a file."""
    return isinstance(value, str) and bool(DIGEST.fullmatch(value))


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Dotted key -> representation of every leaf of nested mappings."""
    if not isinstance(value, dict):
        return {path: repr(value)}
    return {key: leaf for name, item in value.items() for key, leaf in flat(item, f"{path}.{name}".lstrip(".")).items()}


def differences(rule: str, old: Any, new: Any) -> set[str]:
    """The leaves in which two values differ, as ``rank 16 -> 8``."""
    if not isinstance(old, dict):
        return {difference(rule, old, new)}
    before, now = flat(old), flat(new)
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return {
        f"changed content ({key})"
        if is_digest(before.get(key, "").strip("'")) and is_digest(now.get(key, "").strip("'"))
        else f"{key} {before.get(key, 'unset')} -> {now.get(key, 'unset')}"
        for key in keys
    }


def difference(rule: str, old: Any, new: Any) -> str:
    """One value that differs; what its name is Snakemake does not say."""
    if is_digest(old) or is_digest(new):
        length = len(old if is_digest(old) else new)
        return "changed code" if length == 16 else "changed content of files"
    if isinstance(old, list) and isinstance(new, list):
        return f"{old} -> {new}" if len(f"{old}{new}") < 80 else f"changed settings of {rule}"
    if isinstance(old, dict | list) or isinstance(new, dict | list):
        return f"changed settings of {rule}"
    return f"{old} -> {new}"
