"""The engine on a GPU, on randomly initialised models of MedGemma-4B's and Lingshu-7B's shapes in bfloat16.

    PYTHONPATH=workflow python -m tests.benchmarks.gpu [medgemma-4b] [lingshu-7b] [--batch 16] [--out BENCHMARKS.md]

No weights, data or packages beside torch, transformers and Pillow are needed. Where there is no GPU the same runs on
shrunken shapes on the CPU, which shows that it works and no more. ``make bench-gpu`` puts the table into BENCHMARKS.md.
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from dive.distillation.run import Run, device_peak_memory
from dive.distillation.student import Student
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
    values left out, as much backwards. Not counted: the adapter, norms, and the softmax over the vocabulary.

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
        self.name, self.shape, self.batch, self.length = name, shape, batch, length
        self.backbone = random_backbone(shape, device, DTYPE)
        self.study = draw_study(shape, batch, length)
        self.features = draw_features(shape, self.backbone, self.study.queries)
        self.prompts = self.study.render(self.backbone)
        self.supervision = supervision_of(self.prompts, METHOD["weights"])
        generator = torch.Generator().manual_seed(3)
        with ShardWriter(folder, {}) as writer:
            for uid, prompt in zip(self.study.queries, self.prompts, strict=True):
                states = torch.randn(prompt.n_labels, shape.width, generator=generator)
                writer.add(uid, states.to(DTYPE))
        self.teacher = Shards(folder)

    def build(self, method: dict) -> Intervention:
        return build_intervention(method, self.shape.layers, self.shape.width, seed=0)

    def step(self, method: dict, limit_bytes: float, repetitions: int) -> tuple[list[float], list[float]]:
        """Seconds and losses of the first training steps with one steering, after one to warm up."""
        with Steering(self.backbone.layers, self.build(method)) as steering:
            student = Student(self.backbone, steering, self.prompts, self.features, self.batch, limit_bytes)
            at_once = {**method, "batch_size": self.batch}
            run = Run(
                student, self.supervision, self.study.queries, self.teacher, at_once, METHOD["loss"], self.batch, 0
            )
            losses: list[float] = []
            way = timed(lambda: losses.append(run.step(range(self.batch), 0)[0]))
            way()
            return [way() for _ in range(repetitions)], losses

    def training(self, peak: float, repetitions: int) -> Iterator[Row]:
        """Time, utilisation and memory of a step, and what steering costs in it."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        ways = {name: partial(self.step, method, 1e12, 5) for name, method in STEERINGS.items()}
        ways["recomputed"] = partial(self.step, METHOD, 0, 5)
        found = in_turns(repetitions, ways)
        seconds = {way: [statistics.median(times) for times, _ in of_way] for way, of_way in found.items()}
        kept, recomputed = (found[way][0][1] for way in ("rank 16", "recomputed"))
        apart = max(abs(a - b) / abs(a) for a, b in zip(kept, recomputed, strict=True))
        assert apart <= 2e-2, f"losses {kept} and {recomputed}"
        lengths = [prompt.n_labels for prompt in self.prompts]
        prefix = self.prompts[0].prompt_length - 1
        achieved = operations(self.shape, lengths, prefix) / statistics.median(seconds["rank 16"])
        setting = f"batch {self.batch}, {sum(lengths)} predicting positions"
        equal = f"losses with kept and recomputed prefixes, to {apart:.0e}"
        yield self.row(
            "training step: operations a second / those of a matrix product", f"{setting}, prefixes kept",
            f"{achieved / 1e12:,.2f} T, {milliseconds(seconds['rank 16'])}", f"{peak / 1e12:,.2f} T", achieved / peak,
            "0.5", equal,
        )  # fmt: skip
        yield self.row(
            "training step: prefixes recomputed / kept", setting, milliseconds(seconds["rank 16"]),
            milliseconds(seconds["recomputed"]), ratio_of(seconds["recomputed"], seconds["rank 16"]), "", equal,
        )  # fmt: skip
        for way, other in (("rank 16", "static"), ("rank 16", "none"), ("static", "none")):
            yield self.row(
                f"training step: {way} / {other}", setting, milliseconds(seconds[way]), milliseconds(seconds[other]),
                ratio_of(seconds[way], seconds[other]), "", "",
            )  # fmt: skip
        yield self.row("peak memory of training", setting, f"{device_peak_memory() / 1024:,.1f} GiB", "", None, "", "")
        yield from self.reading(statistics.median(seconds["rank 16"]))

    def reading(self, step_seconds: float) -> Iterator[Row]:
        """How fast cached states come from disk to device, checked, against what a step of training asks for."""
        n_bytes = sum(self.teacher[uid].nbytes for uid in self.study.queries)
        copies = max(1, min(500, int(2**28 / n_bytes)))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "states"
            with ShardWriter(folder, {}) as writer:
                for copy in range(copies):
                    for uid in self.study.queries:
                        writer.add(f"{uid}-{copy}", self.teacher[uid].clone())
            for path in folder.iterdir():  # out of the page cache, as at the start of a job
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

            def read(states: Shards) -> None:
                total = sum(states[key].to(self.backbone.device).float().sum() for key in states)
                assert total.isfinite(), "states that are no numbers"

            states = Shards(folder)
            first, again = timed(lambda: read(states))(), timed(lambda: read(states))()
        for words, seconds in (("first time, with checksums", first), ("again", again)):
            given, needed = copies * n_bytes / seconds, n_bytes / step_seconds
            yield self.row(
                "teacher's states read a second / used by training", words, f"{given / 1e9:,.2f} GB",
                f"{needed / 1e9:,.3f} GB", given / needed, "1", "",
            )  # fmt: skip

    def decoding(self, new_tokens: int, repetitions: int) -> Iterator[Row]:
        """What steering costs while a batch is decoded."""
        prompts = self.study.render(self.backbone, report=False)
        written: dict[str, list[list[int]]] = {}

        def decode(way: str, method: dict | None) -> None:
            with ExitStack() as stack:
                if method is not None:
                    stack.enter_context(Steering(self.backbone.layers, self.build(method)))
                reports = decode_batch(self.backbone, prompts, self.features, new_tokens)
                written[way] = [report.ids for report in reports]

        methods = {"rank 16": METHOD, "static": STEERINGS["static"], "unsteered": None}
        ways: dict[str, Callable[[], float]] = {
            way: timed(partial(decode, way, method)) for way, method in methods.items()
        }
        in_turns(1, ways)
        seconds = in_turns(repetitions, ways)
        # Untrained steering costs what trained steering costs and is the identity.
        assert written["rank 16"] == written["static"] == written["unsteered"]
        count = sum(map(len, written["unsteered"]))
        for way in ("rank 16", "static"):
            yield self.row(
                f"tokens a second: {way} / unsteered", f"batch {self.batch}, prompts read too",
                rate(count, seconds[way]), rate(count, seconds["unsteered"]),
                ratio_of(seconds["unsteered"], seconds[way]), "0.97", f"the same {count} tokens",
            )  # fmt: skip

    def row(self, measure: str, setting: str, *others) -> Row:
        return Row(measure, self.name, setting, *others)


def measure(name: str, shape: Shape, device: str, batch: int, length: int, repetitions: int) -> Iterator[Row]:
    """All rows of one backbone."""
    words = f"{name}, {shape.parameters / 1e9:,.2f} billion parameters" if device == "cuda" else f"{name}, shrunken"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(words, shape, device, batch, length, Path(folder) / "teacher")
        yield from bench.training(product_rate(device), repetitions)
        yield from bench.decoding(64 if device == "cuda" else 4, repetitions)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the engine on models of the paper's shapes.")
    parser.add_argument("backbones", nargs="*", help=f"of {', '.join(BACKBONES)}; both by default")
    parser.add_argument("--batch", type=int, default=16, help="queries a step, and reports decoded at once")
    parser.add_argument("--length", type=int, default=100, help="tokens of a report")
    parser.add_argument("--out", help="a Markdown file with the markers <!-- gpu --> that the table is put between")
    given = parser.parse_args(arguments)
    names = given.backbones or list(BACKBONES)
    if unknown := set(names) - set(BACKBONES):
        parser.error(f"there is no backbone {min(unknown)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("no GPU: shrunken shapes, whose figures mean nothing", file=sys.stderr)
        if given.out:
            parser.error("--out is for figures of a GPU")
    rows = []
    for name in names:
        shape = BACKBONES[name] if device == "cuda" else shrunk(BACKBONES[name])
        length = given.length if device == "cuda" else 8
        begin = time.perf_counter()
        rows += measure(name, shape, device, min(given.batch, 16 if device == "cuda" else 4), length, 3)
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        gc.collect()  # the memory of the next one is its own
    words = f"python -m tests.benchmarks.gpu {' '.join(names)} --batch {given.batch} --length {given.length}"
    block = f"{made_by(words, torch.cuda.get_device_name() if device == 'cuda' else processor())}\n\n{table(rows)}"
    print(block)
    if given.out:
        put(given.out, "gpu", block)


if __name__ == "__main__":
    main()
