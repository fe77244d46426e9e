"""The engine on a GPU, on randomly initialised models of MedGemma-4B's and Lingshu-7B's shapes in bfloat16.

    PYTHONPATH=workflow python -m tests.benchmarks.gpu medgemma-4b [--sections training decoding] [--out BENCHMARKS.md]

No weights, data or packages beside torch, transformers and Pillow are needed; Triton, which comes with torch's CUDA
builds, is used where it is installed. One backbone with all sections takes a few minutes. Each row is printed, and
written to ``--out``, as soon as it is measured. A section that fails becomes a row that says why, and the next section
follows. Without a GPU the same code runs on shrunken shapes on the CPU, which shows that it works and no more.
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dive.backbones import steps
from dive.distillation import losses
from dive.distillation.cache import teacher_states
from dive.distillation.run import Run, batches_of_epoch, device_peak_memory
from dive.distillation.student import Prefixes, Student
from dive.generation import decode_batch
from dive.shards import Shards, ShardWriter
from dive.steering.attach import Steering
from dive.steering.base import Intervention, build_intervention
from tests.benchmarks.models import (
    LINGSHU_7B,
    MEDGEMMA_4B,
    METHOD,
    Shape,
    draw_features,
    draw_study,
    image_processor,
    random_backbone,
    shrunk,
    supervision_of,
)
from tests.benchmarks.tables import (
    Row,
    in_turns,
    made_by,
    milliseconds,
    processor,
    put,
    rate,
    ratio_of,
    table,
    timed,
)

BACKBONES = {"medgemma-4b": MEDGEMMA_4B, "lingshu-7b": LINGSHU_7B}
DTYPE = torch.bfloat16
SHOTS = 4
STEERINGS = {
    "rank 16": METHOD,
    "static": {**METHOD, "rank": 0},
    # Gradients pass all layers, and hardly anything is steered: what training costs without steering.
    "none": {**METHOD, "rank": 0, "layers": [0]},
}


def product_rate(device: str) -> float:
    """Operations a second of a large matrix product: the best of ten."""
    side = 8192 if device == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=DTYPE) for _ in range(2))
    return 2 * side**3 / min(in_turns(10, {"": timed(lambda: a @ b)})[""])


def operations(shape: Shape, lengths: Sequence[int], prefix: int) -> float:
    """Floating-point operations that a training step on reports of ``lengths`` predicting positions cannot do without.

    Each weight of a decoder layer costs two a token forwards and two for the gradient of its input; the weights are
    frozen, and the input of the first layer needs no gradient. The head costs the same and two more for the teacher.
    Attention over s keys costs four times heads * head_dim * s forwards and, the gradient of the prefix's keys and
    values left out, as much backwards. Not counted: padding, the adapter, norms, and the softmax over the vocabulary.

    Args:
        shape: of the backbone.
        lengths: predicting positions of each report.
        prefix: cached positions before them.
    """
    tokens = sum(lengths)
    pairs = sum(n * prefix + n * (n + 1) / 2 for n in lengths)
    passes = 2 * shape.layers - 1
    attention = 4 * passes * shape.heads * shape.head_dim * pairs
    return tokens * (2 * passes * shape.layer_weights + 6 * shape.width * shape.vocabulary) + attention


def agreement(ours: list[list[int]], others: list[list[int]]) -> str:
    """How many reports are the same, in words."""
    same = sum(a == b for a, b in zip(ours, others, strict=True))
    return f"the same {sum(map(len, ours))} tokens" if same == len(ours) else f"{same} of {len(ours)} reports alike"


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` for a block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Memory:
    """Peak memory of a block in GiB, in ``used`` once it is left."""

    used = ""

    def __enter__(self) -> "Memory":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        self.used = f"{device_peak_memory() / 1024:,.1f} GiB"


class Bench:
    """One backbone with queries and cached states on disk.

    Args:
        name: for the table.
        shape: of the backbone.
        device: cuda or cpu.
        batch: queries a step.
        length: tokens of a report.
        folder: where states are written.
    """

    def __init__(self, name: str, shape: Shape, device: str, batch: int, length: int, folder: Path) -> None:
        self.name, self.shape, self.batch, self.length, self.device = name, shape, batch, length, device
        self.backbone = random_backbone(shape, device, DTYPE)
        # Of more queries than a step takes, so that a step's reports are of alike length, as in training.
        self.study = draw_study(shape, max(4 * batch, 64), length, SHOTS)
        self.features = draw_features(shape, self.backbone, [*self.study.queries, *self.study.shown])
        self.prompts = self.study.render(self.backbone)
        self.rows = batches_of_epoch([prompt.n_labels for prompt in self.prompts], batch, 0, 0)[0]
        self.supervision = supervision_of(self.prompts, METHOD["weights"])
        generator = torch.Generator().manual_seed(3)
        with ShardWriter(folder, {}) as writer:
            for uid, prompt in zip(self.study.queries, self.prompts, strict=True):
                states = torch.randn(prompt.n_labels, shape.width, generator=generator)
                writer.add(uid, states.to(DTYPE))
        self.teacher = Shards(folder)
        self.lengths = [self.prompts[row].n_labels for row in self.rows]
        padded = len(self.rows) * max(self.lengths)
        self.setting = f"batch {batch}, {sum(self.lengths)} positions and {padded - sum(self.lengths)} of padding"

    def build(self, method: dict) -> Intervention:
        return build_intervention(method, self.shape.layers, self.shape.width, seed=0)

    def step(
        self, method: dict, limit_bytes: float, repetitions: int, recorded: bool = True
    ) -> tuple[list[float], list[float]]:
        """Seconds and losses of training steps with one steering, after two to warm up.

        Args:
            method: what steers.
            limit_bytes: for prompt prefixes; 0 recomputes them.
            repetitions: steps that are timed.
            recorded: whether gradients may be replayed from a recorded graph.
        """
        with Steering(self.backbone.layers, self.build(method)) as steering:
            student = Student(self.backbone, steering, self.prompts, self.features, self.batch, limit_bytes)
            at_once = {**method, "batch_size": self.batch}
            run = Run(
                student, self.supervision, self.study.queries, self.teacher, at_once, METHOD["loss"], self.batch, 0
            )
            if not recorded:
                run.recorded = None
            found: list[float] = []
            way = timed(lambda: found.append(run.step(self.rows, 0)[0]))
            way(), way()
            return [way() for _ in range(repetitions)], found

    def training(self, repetitions: int) -> Iterator[Row]:
        """Time, utilisation and memory of a step, and what steering and recomputed prefixes cost in it."""
        peak = product_rate(self.device)
        with Memory() as memory:
            self.step(METHOD, 1e12, 1)
        ways = {name: partial(self.step, method, 1e12, 5) for name, method in STEERINGS.items()}
        ways["recomputed"] = partial(self.step, METHOD, 0, 5)
        ways["plain"] = partial(self.step, METHOD, 1e12, 5, recorded=False)
        found = in_turns(repetitions, ways)
        seconds = {way: [statistics.median(times) for times, _ in of_way] for way, of_way in found.items()}
        kept = found["rank 16"][0][1]
        prefix = self.prompts[self.rows[0]].prompt_length - 1
        achieved = operations(self.shape, self.lengths, prefix) / statistics.median(seconds["rank 16"])
        yield self.row(
            "training step: operations a second / those of a matrix product", f"{self.setting}, prefixes kept",
            f"{achieved / 1e12:,.2f} T, {milliseconds(seconds['rank 16'])}", f"{peak / 1e12:,.2f} T", achieved / peak,
            "0.5", f"the first loss is {kept[0]:.4f}", memory.used,
        )  # fmt: skip
        for words, way in {"prefixes recomputed / kept": "recomputed", "launched / replayed": "plain"}.items():
            apart = max(abs(a - b) / abs(a) for a, b in zip(kept, found[way][0][1], strict=True))
            yield self.row(
                f"training step: {words}", self.setting, milliseconds(seconds["rank 16"]), milliseconds(seconds[way]),
                ratio_of(seconds[way], seconds["rank 16"]), "", f"losses of {len(kept)} steps, to {apart:.0e}",
            )  # fmt: skip
        for way, other in (("rank 16", "static"), ("rank 16", "none"), ("static", "none")):
            yield self.row(
                f"training step: {way} / {other}", self.setting, milliseconds(seconds[way]),
                milliseconds(seconds[other]), ratio_of(seconds[way], seconds[other]), "", "",
            )  # fmt: skip

    def loss(self, repetitions: int) -> Iterator[Row]:
        """Head, loss and gradient of a chunk of positions: the kernel against torch's separate operations."""
        n = losses.CHUNK if self.device == "cuda" else 32
        draw = torch.Generator().manual_seed(4)
        student, teacher = (
            torch.randn(n, self.shape.width, generator=draw).to(self.backbone.device, DTYPE) for _ in range(2)
        )
        labels = torch.randint(self.shape.vocabulary, (n,), generator=draw).to(self.backbone.device)
        weights = torch.ones(n, device=self.backbone.device)
        found: dict[str, list[torch.Tensor]] = {}

        def compute(way: str) -> None:
            states = student.clone().requires_grad_()
            chosen = losses.has_triton if way == "kernel" else lambda device_type: False
            with replaced(losses, "has_triton", chosen):
                loss = losses.distillation_loss(states, teacher, labels, weights, self.backbone.head, n, n)
            loss.total.backward()
            found[way] = [loss.total.detach(), states.grad]

        with Memory() as memory:
            compute("kernel")
        ways = {way: timed(partial(compute, way)) for way in ("kernel", "operations")}
        in_turns(2, ways)
        seconds = in_turns(5 * repetitions, ways)
        (loss, slope), (expected, other) = found["kernel"], found["operations"]
        apart = float((slope.float() - other.float()).norm() / other.float().norm())
        yield self.row(
            "head, loss and gradient: separate operations / the kernel", f"{n} positions",
            milliseconds(seconds["kernel"]), milliseconds(seconds["operations"]),
            ratio_of(seconds["operations"], seconds["kernel"]), "",
            f"loss to {abs(float(loss - expected)) / abs(float(expected)):.0e}, gradient to {apart:.0e}", memory.used,
        )  # fmt: skip

    def caches(self, repetitions: int) -> Iterator[Row]:
        """What is computed once: image features, the teacher's states, prompt prefixes."""
        size = self.shape.pixels
        draw = np.random.default_rng(5)
        pictures = [Image.fromarray(draw.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(8)]
        self.backbone.image_processor = image_processor(self.shape)
        teacher_prompts = self.study.render(self.backbone, SHOTS)[: min(8, self.batch)]
        n_tokens = sum(len(prompt.ids) for prompt in teacher_prompts)
        some = self.prompts[: self.batch]
        settings = {
            "vision tower, pictures decoded and resized too": (
                len(pictures), f"{len(pictures)} images of {size} pixels",
                lambda: self.backbone.embed_images(pictures),
            ),
            f"teacher, {SHOTS} demonstrations": (
                len(teacher_prompts), f"batch {len(teacher_prompts)}, {n_tokens} tokens",
                lambda: teacher_states(self.backbone, teacher_prompts, self.features),
            ),
            "prompt prefixes": (
                len(some), f"batch {len(some)}",
                lambda: Prefixes(self.backbone, some, self.features, self.batch, 1e12),
            ),
        }  # fmt: skip
        each = []
        for words, (count, setting, way) in settings.items():
            with Memory() as memory:
                way()
            seconds = in_turns(repetitions, {"": timed(way)})[""]
            each.append(statistics.median(seconds) / count)
            yield self.row(
                f"{words}: time a query", setting, milliseconds(seconds, count), "", None, "", "", memory.used
            )
        step = statistics.median(self.step(METHOD, 1e12, 5)[0]) / self.batch
        yield self.row(
            "building all caches / a training step, of a query", f"{SHOTS} demonstrations", f"{1e3 * step:,.1f} ms",
            f"{1e3 * sum(each):,.1f} ms", sum(each) / step, "", "",
        )  # fmt: skip
        yield from self.reading(step * self.batch)

    def reading(self, step_seconds: float) -> Iterator[Row]:
        """How fast cached states come from disk to device, checked, against what a step of training asks for."""
        keys = [self.study.queries[row] for row in self.rows]
        n_bytes = sum(self.teacher[uid].nbytes for uid in keys)
        copies = max(1, min(500, int(2**28 / n_bytes)))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "states"
            with ShardWriter(folder, {}) as writer:
                for copy in range(copies):
                    for uid in keys:
                        writer.add(f"{uid}-{copy}", self.teacher[uid].clone())
            for path in folder.iterdir():  # out of the page cache, as at the start of a job
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

            def read(states: Shards) -> None:
                total = sum(states[key].to(self.backbone.device).float().sum() for key in states)
                if not total.isfinite():
                    raise ValueError("cached states that are no numbers")

            states = Shards(folder)
            first, again = timed(lambda: read(states))(), timed(lambda: read(states))()
        for words, seconds in (("first time, with checksums", first), ("again", again)):
            given, needed = copies * n_bytes / seconds, n_bytes / step_seconds
            yield self.row(
                "teacher's states read a second / used by training", words, f"{given / 1e9:,.2f} GB",
                f"{needed / 1e9:,.3f} GB", given / needed, "1", "",
            )  # fmt: skip

    def decoding(self, batch: int, new_tokens: int, repetitions: int) -> Iterator[Row]:
        """What steering costs while a batch is decoded, with prompts whose prefixes are read too."""
        prompts = self.study.render(self.backbone, report=False)[:batch]
        written: dict[str, list[list[int]]] = {}
        first: list[list[int]] = []
        used: dict[str, str] = {}

        def decode(way: str, method: dict | None, worth_recording: int = steps.WORTH_RECORDING) -> None:
            with ExitStack() as stack:
                stack.enter_context(replaced(steps, "WORTH_RECORDING", worth_recording))
                if method is not None:
                    stack.enter_context(Steering(self.backbone.layers, self.build(method)))
                memory = stack.enter_context(Memory())
                reports = decode_batch(self.backbone, prompts, self.features, new_tokens)
                written[way] = [report.ids for report in reports]
            used[way] = memory.used

        methods = {"rank 16": METHOD, "static": STEERINGS["static"], "unsteered": None}
        ways: dict[str, Callable[[], float]] = {
            way: timed(partial(decode, way, method)) for way, method in methods.items()
        }
        in_turns(1, ways)
        first += written["unsteered"]
        seconds = in_turns(repetitions, ways)
        launch = timed(partial(decode, "launched", METHOD, sys.maxsize))
        launched = [launch() for _ in range(2)][1:]
        # Of an untrained model two tokens are often equally likely, and not all kernels sum in one order.
        twice = agreement(first, written["unsteered"])

        def compared(way: str, other: str) -> str:
            found = agreement(written[way], written[other])
            return found if "alike" not in found else f"{found}; unsteered twice: {twice}"

        count = sum(map(len, written["unsteered"]))
        for way in ("rank 16", "static"):
            # Untrained steering costs what trained steering costs and is the identity.
            same = compared(way, "unsteered")
            yield self.row(
                f"tokens a second: {way} / unsteered", f"batch {batch}, prompts read too", rate(count, seconds[way]),
                rate(count, seconds["unsteered"]), ratio_of(seconds["unsteered"], seconds[way]), "0.97",
                same, used[way],
            )  # fmt: skip

        same = compared("rank 16", "launched")
        yield self.row(
            "tokens a second: steps replayed / launched", f"rank 16, batch {batch}", rate(count, seconds["rank 16"]),
            rate(count, launched), statistics.median(launched) / statistics.median(seconds["rank 16"]), "", same,
            used["launched"],
        )  # fmt: skip

    def compiled(self, repetitions: int) -> Iterator[Row]:
        """Training with ``backbones.<name>.compile``; the decoder stays compiled for what follows."""
        plain, expected = self.step(METHOD, 1e12, 5)
        self.backbone.compile("inductor" if self.device == "cuda" else "eager")
        begin = time.perf_counter()
        self.step(METHOD, 1e12, 1)
        waited = time.perf_counter() - begin
        with Memory() as memory:
            seconds, found = self.step(METHOD, 1e12, 5 * repetitions)
        apart = abs(found[0] - expected[0]) / abs(expected[0])
        peak = product_rate(self.device)
        prefix = self.prompts[self.rows[0]].prompt_length - 1
        achieved = operations(self.shape, self.lengths, prefix) / statistics.median(seconds)
        yield self.row(
            "training step, compiled: operations a second / those of a matrix product", self.setting,
            f"{achieved / 1e12:,.2f} T, {milliseconds(seconds)}", f"{peak / 1e12:,.2f} T", achieved / peak, "0.5",
            f"the first loss, to {apart:.0e}", memory.used,
        )  # fmt: skip
        yield self.row(
            "training step: plain / compiled", f"compiling took {waited:.0f} s", milliseconds(seconds),
            milliseconds(plain), statistics.median(plain) / statistics.median(seconds), "", "",
        )  # fmt: skip

    def row(self, measure: str, setting: str, *others: Any) -> Row:
        return Row(measure, self.name, setting, *others)


def stages(words: str, shape: Shape, device: str, batch: int, length: int, new_tokens: int) -> Iterator[Row]:
    """What each job of a small run takes, from loading the backbone to its result; needs pandas and pyarrow."""
    from tests.benchmarks.stages import run_stages

    with tempfile.TemporaryDirectory() as folder:
        for stage in run_stages(Path(folder), shape, DTYPE, device, batch, length, new_tokens):
            yield Row(
                f"job {stage.name}", words, f"batch {batch}, {stage.what}", f"{stage.seconds:,.1f} s", "", None, "", "",
                f"{stage.memory:,.1f} GiB",
            )  # fmt: skip


def sections(device: str, batch: int) -> dict[str, Callable[[Bench], Iterator[Row]]]:
    """What can be measured, in order; the names that the command takes."""
    on_gpu = device == "cuda"
    repetitions, new_tokens = (3, 64) if on_gpu else (1, 4)
    batches = sorted({1, batch, 64}) if on_gpu else [1, batch]
    return {
        "training": lambda bench: bench.training(repetitions),
        "loss": lambda bench: bench.loss(repetitions),
        "caches": lambda bench: bench.caches(repetitions),
        **{f"decoding-{n}": partial(Bench.decoding, batch=n, new_tokens=new_tokens, repetitions=repetitions)
           for n in batches},
        "stages": lambda bench: stages(bench.name, bench.shape, device, batch, bench.length, new_tokens),
        "compiled": lambda bench: bench.compiled(repetitions),
    }  # fmt: skip


def rows_of(name: str, words: str, ways: dict[str, Callable[[], Iterator[Row]]]) -> Iterator[Row]:
    """The rows of all sections; one that fails ends with a row that says how, and the next one follows."""
    for section, way in ways.items():
        begin = time.perf_counter()
        try:
            yield from way()
        except Exception as error:
            reason = " ".join(str(error).split()).replace("|", "/")[:200]
            yield Row(f"{section}: failed", words, "", "", "", None, "", f"{type(error).__name__}: {reason}")
        gc.collect()
        if torch.cuda.is_available():
            with suppress(
                RuntimeError
            ):  # after some errors a process has lost its GPU, and every further section says so
                torch.cuda.empty_cache()
        print(f"{name}, {section}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)


def run(name: str, device: str, batch: int, length: int, chosen: Sequence[str]) -> Iterator[Row]:
    """The rows of one backbone.

    Raises:
        ValueError: a section does not exist.
    """
    every = sections(device, batch)
    wanted = [section for section in every if not chosen or section in chosen or section.partition("-")[0] in chosen]
    known = {*every, *(section.partition("-")[0] for section in every)}
    if unknown := set(chosen) - known:
        raise ValueError(f"there is no section {min(unknown)}; sections are {', '.join(every)}")
    shape = BACKBONES[name] if device == "cuda" else shrunk(BACKBONES[name])
    words = f"{name}, {shape.parameters / 1e9:,.2f} billion parameters" if device == "cuda" else f"{name}, shrunken"
    with tempfile.TemporaryDirectory() as folder:
        made: list[Bench] = []

        def build() -> Iterator[Row]:
            made.append(Bench(words, shape, device, batch, length, Path(folder) / "teacher"))
            return iter(())

        yield from rows_of(name, words, {"model": build})
        if made:
            yield from rows_of(name, words, {section: partial(every[section], made[0]) for section in wanted})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the engine on models of the paper's shapes.")
    parser.add_argument("backbones", nargs="*", help=f"of {', '.join(BACKBONES)}; both by default")
    parser.add_argument("--sections", nargs="+", default=[], help=f"of {', '.join(sections('cuda', 16))}")
    parser.add_argument("--batch", type=int, help="queries a step, and reports decoded at once (16; 4 on a CPU)")
    parser.add_argument("--length", type=int, help="tokens of a report (100; 8 on a CPU)")
    parser.add_argument(
        "--out", help="a file for the table; in one with the markers <!-- gpu NAME --> it is put between them"
    )
    given = parser.parse_args(arguments)
    names = given.backbones or list(BACKBONES)
    if unknown := set(names) - set(BACKBONES):
        parser.error(f"there is no backbone {min(unknown)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("no GPU: shrunken shapes, whose figures mean nothing", file=sys.stderr)
    batch, length = given.batch or (16 if device == "cuda" else 4), given.length or (100 if device == "cuda" else 8)
    for name in names:
        words = f"python -m tests.benchmarks.gpu {name} --batch {batch} --length {length}"
        if given.sections:
            words += f" --sections {' '.join(given.sections)}"
        machine = torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, shrunken shapes"
        head, rows = made_by(words, machine), []
        print(head, flush=True)
        try:
            for row in run(name, device, batch, length, given.sections):
                rows.append(row)
                print(" | ".join(cell for cell in row._replace(ratio=f"{row.ratio or 0:.3g}") if cell), flush=True)
                if given.out:
                    put(given.out, f"gpu {name}", f"{head}\n\n{table(rows)}")
        except ValueError as error:
            parser.error(str(error))
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
