"""How fast the engine is, and how it grows: ratios within one run, against the loops that it replaces.

    python -m tests.benchmarks.engine [training] [decoding] [memory] [growth] [--quick] [--out BENCHMARKS.md]

Backbones are random (tests/benchmarks/models.py), in float32 on the CPU. What is compared takes turns within a
repetition, and a ratio is the median of the repetitions' ratios. Each comparison asserts that both sides compute the
same. ``make bench`` runs all and puts the table into BENCHMARKS.md.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dive.backbones.loading import Backbone, ImageFeatures
from dive.backbones.prompts import Prompt
from dive.distillation.run import Run
from dive.distillation.student import Student
from dive.distillation.training import distill
from dive.environment import OF_JOBS
from dive.files import read_json, write_json
from dive.generation import Decoded, decode_batch
from dive.job import peak_memory
from dive.shards import ShardWriter
from dive.steering.attach import Steering
from dive.steering.base import Intervention, build_intervention
from tests.benchmarks.loops import Epoch, Epochs, agreeing
from tests.benchmarks.models import (
    METHOD,
    SMALL,
    WORLD,
    Shape,
    draw_features,
    draw_study,
    random_backbone,
    shrunk,
    supervision_of,
)
from tests.benchmarks.tables import Row, in_turns, made_by, milliseconds, processor, put, rate, ratio_of, table, timed

EPOCHS = 10  # over which building the caches is spread
BATCH = 16  # queries a step where memory is measured


def described(shape: Shape) -> str:
    """A shape in a few words."""
    name = {SMALL: "paper", WORLD: "world"}.get(shape, shape.family)
    return f"{name}: {shape.image_tokens} tokens an image, d = {shape.width}, L = {shape.layers}"


def training(quick: bool) -> Iterator[Row]:
    """An epoch from the caches, with a live teacher, and as the peers do it."""
    shots, worlds = (1, 4, 8, 16), [(WORLD, 32, 24, 16), (SMALL, 8, 80, 4)]
    if quick:
        shots, worlds = (1, 2), [(WORLD, 4, 8, 2), (shrunk(SMALL), 4, 8, 2)]
    for shape, n_queries, length, batch in worlds:
        epochs = Epochs(shape, n_queries, length, batch, max(shots))
        with tempfile.TemporaryDirectory() as folder:
            vision = Path(folder) / "vision"
            seconds = epochs.build_vision(vision)
            for k in shots:
                yield from compare(epochs, k, vision, seconds, repetitions=1 if quick or k > 8 else 3)


def compare(epochs: Epochs, k: int, vision: Path, vision_seconds: float, repetitions: int) -> Iterator[Row]:
    """The rows of one K; ``vision`` holds the features, which took ``vision_seconds``."""
    teacher = vision.with_name(f"teacher{k}")
    build = vision_seconds + epochs.build_teacher(teacher, vision, k)
    ways: dict[str, Callable[[], Epoch]] = {
        "kept": lambda: epochs.cached(vision, teacher, 1e9),
        "recomputed": lambda: epochs.cached(vision, teacher, 0),
        "live": lambda: epochs.live(k),
    }
    if k in (2, 8):
        ways["peers"] = lambda: epochs.peers(k)
    found = in_turns(repetitions, ways)
    checked = agreeing([epoch for of_way in found.values() for epoch in of_way])
    seconds = {way: [epoch.seconds for epoch in of_way] for way, of_way in found.items()}
    n, where = len(epochs.prompts), described(epochs.shape)
    each = {way: milliseconds(of_way, n) for way, of_way in seconds.items()}
    wanted = "10" if k == 8 and epochs.shape is SMALL else ""
    for way in ("kept", "recomputed"):
        yield Row(
            "training on a query: live teacher / cached", where, f"K = {k}, prompt prefixes {way}", each[way],
            each["live"], ratio_of(seconds["live"], seconds[way]), wanted, checked,
        )  # fmt: skip
    spread = [(build + epoch.before) / EPOCHS + epoch.seconds for epoch in found["kept"]]
    yield Row(
        f"the same, building all caches counted, over {EPOCHS} epochs", where, f"K = {k}", milliseconds(spread, n),
        each["live"], ratio_of(seconds["live"], spread), "", checked,
    )  # fmt: skip
    if "peers" in seconds:
        yield Row(
            "training samples a second: engine / the peers' loop", where, f"K = {k}", rate(n, seconds["kept"]),
            rate(n, seconds["peers"]), ratio_of(seconds["peers"], seconds["kept"]), wanted, checked,
        )  # fmt: skip


class Timed(NamedTuple):
    """What decoding a batch took, and what came out."""

    seconds: float
    reports: list[Decoded]


def decoding(quick: bool) -> Iterator[Row]:
    """Tokens a second steered and not, and reports a second of the student and of prompting with demonstrations."""
    # Small images: the prompt is soon read, and what is left is decoding.
    wide = replace(SMALL, width=1024, mlp=4096, heads=8, kv_heads=4, head_dim=128, pixels=96, image_tokens=16)
    if quick:
        yield from steered_decoding(shrunk(SMALL), batch=4, new_tokens=4, repetitions=1)
        yield from student_or_prompting(shrunk(SMALL), batch=4, new_tokens=4, shots=2, repetitions=1)
    else:
        # Often: two hundredths are to be told apart.
        yield from steered_decoding(wide, batch=16, new_tokens=32, repetitions=15)
        # Once: prompting takes more than a minute, and the ratio is far from the one wanted.
        yield from student_or_prompting(SMALL, batch=64, new_tokens=64, shots=8, repetitions=1)


def steered_decoding(shape: Shape, batch: int, new_tokens: int, repetitions: int) -> Iterator[Row]:
    """What steering costs while a batch is decoded."""
    backbone = random_backbone(shape)
    study = draw_study(shape, batch, 8)
    prompts, features = study.render(backbone, report=False), draw_features(shape, backbone, study.queries)
    steerings = {
        "unsteered": None,
        "rank 16": build_intervention(METHOD, shape.layers, shape.width, 0),
        "static": build_intervention({**METHOD, "rank": 0}, shape.layers, shape.width, 0),
    }
    ways = {way: partial(decode, backbone, prompts, features, new_tokens, it) for way, it in steerings.items()}
    in_turns(1, ways)
    found = in_turns(repetitions, ways)
    # Untrained steering costs what trained steering costs and is the identity: the tokens must be the unsteered ones.
    expected = found["unsteered"][0].reports
    assert all(decoded.reports == expected for of_way in found.values() for decoded in of_way)
    written = sum(len(report.ids) for report in expected)
    seconds = {way: [decoded.seconds for decoded in of_way] for way, of_way in found.items()}
    plain = seconds.pop("unsteered")
    for way, of_way in seconds.items():
        yield Row(
            "tokens a second: steered / unsteered", described(shape), f"{way}, batch {batch}", rate(written, of_way),
            rate(written, plain), ratio_of(plain, of_way), "0.97", f"the same {written} tokens",
        )  # fmt: skip


def student_or_prompting(shape: Shape, batch: int, new_tokens: int, shots: int, repetitions: int) -> Iterator[Row]:
    """Reports of a steered backbone, and of one that is shown K demonstrations with every query."""
    backbone = random_backbone(shape)
    study = draw_study(shape, batch, 80, shots)
    features = draw_features(shape, backbone, list(study.reports))
    shown = {"student": study.render(backbone, report=False), "prompting": study.render(backbone, shots, report=False)}
    steerings = {"student": build_intervention(METHOD, shape.layers, shape.width, 0), "prompting": None}
    ways = {way: partial(decode, backbone, shown[way], features, new_tokens, it) for way, it in steerings.items()}
    found = in_turns(repetitions, ways)
    for way, it in steerings.items():
        assert decode(backbone, shown[way][:1], features, new_tokens, it).reports == found[way][0].reports[:1]
    student, prompting = ([decoded.seconds for decoded in found[way]] for way in ways)
    yield Row(
        "reports a second: steered student / prompting with demonstrations", described(shape),
        f"K = {shots}, batch {batch}, {new_tokens} tokens", rate(batch, student), rate(batch, prompting),
        ratio_of(prompting, student), "10", "a report alone is the one in its batch",
    )  # fmt: skip


def decode(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: dict[str, ImageFeatures],
    new_tokens: int,
    intervention: Intervention | None,
) -> Timed:
    """Decode one batch, steered or not."""
    with nullcontext() if intervention is None else Steering(backbone.layers, intervention):
        begin = time.perf_counter()
        reports = decode_batch(backbone, prompts, features, new_tokens)
        return Timed(time.perf_counter() - begin, reports)


def write_training(folder: Path, shape: Shape, n_queries: int, length: int, epochs: int) -> None:
    """All files that ``distill`` reads, with random features and states, and ``arguments.json``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    backbone = random_backbone(shape)
    backbone.model.save_pretrained(folder / "model")
    backbone.tokenizer.save_pretrained(folder / "model")
    n_validation = 16
    study = draw_study(shape, n_queries + n_validation, length)
    generator = torch.Generator().manual_seed(3)
    for name, keys in (("vision", study.queries), ("teacher", study.queries[:n_queries])):
        # Small shards, so that there are several.
        with ShardWriter(folder / name, {}, shard_bytes=1 << 24) as writer:
            for key in keys:
                n = shape.image_tokens if name == "vision" else len(study.reports[key].split()) + 1
                notes = {"grid": None} if name == "vision" else {"complete": True}
                writer.add(key, torch.randn(n, shape.width, generator=generator), **notes)
    pq.write_table(
        pa.table({"study_uid": study.queries, "target": [study.reports[uid] for uid in study.queries]}),
        folder / "studies",
    )
    spans = [
        {"study_uid": uid, "start": match.start(), "end": match.end()}
        for uid in study.queries
        for match in re.finditer(r"\bw1\d*", study.reports[uid])
    ]
    pq.write_table(pa.Table.from_pylist(spans), folder / "spans")
    groups = {"queries": study.queries[:n_queries], "validation": study.queries[n_queries:]}
    write_json(folder / "pool", {**groups, "demonstrations": [], "test": []})
    files = ("studies", "pool", "spans", "vision", "teacher")
    settings = {"path": str(folder / "model"), "dtype": "float32", "device": "cpu", "batch": {"training": BATCH}}
    write_json(
        folder / "arguments.json",
        {
            **{name: str(folder / name) for name in (*files, "out", "checkpoint")},
            "backbone": {**settings, "instruction": backbone.prompts.instruction},
            "method": {**METHOD, "batch_size": BATCH, "epochs": epochs},
            # What is kept of prompt prefixes is bounded by a setting of its own.
            "training": {"max_report_tokens": None, "validation_studies": n_validation, "prefix_cache_gb": 0},
            "seed": 0,
        },
    )  # fmt: skip


def train_alone(folder: Path) -> None:
    """Run ``distill`` on ``write_training``'s files; prints peak anonymous and resident memory in MiB, and steps."""

    def anonymous() -> int:
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1])

    peak = [0]
    done = threading.Event()

    def watch() -> None:  # the kernel keeps no peak of anonymous memory
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        distill(**read_json(folder / "arguments.json"))
    finally:
        done.set()
        watching.join()
    steps = len((folder / "out" / "training.csv").read_text(encoding="utf-8").splitlines()) - 1
    print(json.dumps([peak[0] / 1024, peak_memory(), steps]))


def memory(quick: bool) -> Iterator[Row]:
    """Peak memory of one whole training job, from few to many queries, each in a process of its own, as jobs are.

    Fewer queries are trained on for more epochs: for hundreds of steps a process keeps memory for what comes again.
    """
    counts, length, shape = ([8, 32], 8, shrunk(WORLD)) if quick else ([100, 1000, 10_000], 24, WORLD)
    found = []
    for count in counts:
        steps_per_epoch = math.ceil(count / BATCH)
        epochs = math.ceil(counts[-1] / count)
        with tempfile.TemporaryDirectory() as name:
            write_training(Path(name), shape, count, length, epochs)
            command = [sys.executable, "-m", "tests.benchmarks.engine", "--train-in", name]
            environment = {**OF_JOBS, **os.environ}
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            anonymous, whole, steps = json.loads(answer.splitlines()[-1])
            assert steps == steps_per_epoch * epochs, f"{steps} steps for {count} queries"
            found.append((anonymous, whole))
    for index, words in enumerate(("anonymous", "resident, mapped shards included")):
        sizes = [peaks[index] for peaks in found]
        yield Row(
            f"peak memory of training, {words}: most / fewest queries", described(shape),
            f"N = {', '.join(f'{n:,}' for n in counts)}", f"{sizes[-1]:,.0f} MiB",
            f"{', '.join(f'{size:,.0f}' for size in sizes[:-1])} MiB", sizes[-1] / sizes[0],
            "1.1" if index == 0 else "", "every query was trained on",
        )  # fmt: skip


@contextmanager
def ready(shape: Shape, n_queries: int, length: int, folder: Path) -> Iterator[Callable[[], Any]]:
    """A training on random features and states, to be timed: one step of four queries, or with more an epoch."""
    backbone = random_backbone(shape)
    n_validation = 4
    study = draw_study(shape, n_queries + n_validation, length, spread=0)
    prompts = study.render(backbone)
    supervision = supervision_of(prompts, METHOD["weights"])
    states = torch.randn(length + 1, shape.width, generator=torch.Generator().manual_seed(3))
    queries = study.queries[:n_queries]
    features = draw_features(shape, backbone, study.queries)
    intervention = build_intervention(METHOD, shape.layers, shape.width, seed=0)
    with Steering(backbone.layers, intervention) as steering:
        student = Student(backbone, steering, prompts, features, 4, 1e9)
        run = Run(student, supervision, queries, dict.fromkeys(queries, states), METHOD, METHOD["loss"], 4, seed=0)
        if n_queries == 4:
            yield lambda: run.step(range(4), 0)
        else:
            yield lambda: run.train(folder / "checkpoint", "", math.inf)


def growth(quick: bool) -> Iterator[Row]:
    """Time against N (an epoch), and against T, L and d (a step), with the exponent of a fitted power."""
    base, length = (shrunk(SMALL), 8) if quick else (SMALL, 80)

    def at_width(d: int) -> Shape:
        return replace(base, width=d, mlp=4 * d, heads=d // 64, kv_heads=d // 128, head_dim=64)

    ladders = {
        "queries N": {n: (WORLD, n, 24) for n in ((8, 16) if quick else (64, 256, 1024, 4096))},
        "report tokens T": {t: (base, 4, t) for t in ((4, 8) if quick else (32, 64, 128, 256, 512))},
        "layers L": {n: (replace(base, layers=n), 4, length) for n in ((1, 2) if quick else (3, 6, 12, 24))},
        "width d": {d: (at_width(d), 4, length) for d in ((128, 256) if quick else (128, 256, 512, 1024))},
    }
    for words, settings in ladders.items():
        what, repetitions = ("an epoch", 1) if words == "queries N" else ("a step", 1 if quick else 5)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            ways = {
                str(size): timed(stack.enter_context(ready(*setting, Path(folder))))
                for size, setting in settings.items()
            }
            if what == "a step":
                in_turns(1, ways)
            medians = [statistics.median(seconds) for seconds in in_turns(repetitions, ways).values()]
        slope = np.polyfit(np.log(list(settings)), np.log(medians), 1)[0]
        yield Row(
            f"growth of {what} with {words}: exponent", described(next(iter(settings.values()))[0]),
            ", ".join(f"{size:,}" for size in settings), ", ".join(f"{1000 * t:,.0f}" for t in medians) + " ms", "",
            float(slope), "", "",
        )  # fmt: skip


SECTIONS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "training": training,
    "decoding": decoding,
    "memory": memory,
    "growth": growth,
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the engine against the loops that it replaces.")
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="shapes too small to time, to see that all of it runs")
    parser.add_argument("--out", help="a Markdown file with the markers <!-- engine --> that the table is put between")
    parser.add_argument("--train-in", help=argparse.SUPPRESS)  # one job of the section memory
    given = parser.parse_args()
    if given.train_in:
        train_alone(Path(given.train_in))
        return
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"there is no section {min(unknown)}")
    rows = []
    for name in given.sections or SECTIONS:
        for row in SECTIONS[name](given.quick):
            rows.append(row)
            print(f"{row.measure}, {row.setting}: {row.ratio:.2f}", file=sys.stderr, flush=True)
    words = " ".join(["python -m tests.benchmarks.engine", *given.sections, *["--quick"] * given.quick])
    block = f"{made_by(words, processor())}\n\n{table(rows)}"
    print(block)
    if given.out:
        put(given.out, "engine", block)


if __name__ == "__main__":
    main()
